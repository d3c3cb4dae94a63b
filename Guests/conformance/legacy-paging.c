// SPDX-License-Identifier: Apache-2.0
// Paging before 64-bit mode: two levels with 4 KiB and 4 MiB pages, three levels with their four registers, and the
// switches between them.
#include "guest.h"

static u32 directory[1024] __attribute__((aligned(4096))), table[1024] __attribute__((aligned(4096)));
static u64 pdpt[4] __attribute__((aligned(32)));
static u64 wide[4][512] __attribute__((aligned(4096))), wide_table[512] __attribute__((aligned(4096)));
enum { PG = 0x80000000u, WP = 0x10000, PSE = 0x10, PAE = 0x20, PGE = 0x80, NXE = 0x800, WINDOW = 0x100000 };
static word cr0;

static void flush(void) { WRITE("cr3", READ("cr3")); }
// WINDOW is page 0x100 of the first 2 or 4 MiB.
static void set_page(u32 entry) {
  table[0x100] = entry;
  flush();
}

static void two_levels(void) {
  section("SDM 3, 4.3: 32-bit paging");
  void read(void) { asm volatile("mov 0x100000, %%al" : : : "eax"); }
  void write(void) { asm volatile("movb $1, 0x100000"); }
  for (u32 i = 0; i < 1024; i++) {
    directory[i] = i << 22 | 0x87;
    table[i] = i << 12 | 7;
  }
  directory[0] = (u32)table | 7;
  WRITE("cr4", PSE);
  WRITE("cr3", (u32)directory);
  WRITE("cr0", cr0 | PG | WP);
  CHECK("on", READ("cr0") >> 31, 1);
  set_page(WINDOW);
  CHECK("absent", TRY("mov 0x100004, %%al", ) << 8 | last.error, PF << 8);
  CHECK("... its address", last.cr2, 0x100004);
  CHECK("absent, written at level 3", user(write) << 8 | last.error, PF << 8 | 6);
  set_page(WINDOW | 3);
  CHECK("supervisor page at level 3", user(read) << 8 | last.error, PF << 8 | 5);
  set_page(WINDOW | 5);
  CHECK("read-only with WP", TRY("movb $1, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  WRITE("cr0", cr0 | PG);
  CHECK("read-only without WP", TRY("movb $1, 0x100000", ), NONE);
  CHECK("... at level 3", user(write) << 8 | last.error, PF << 8 | 7);
  WRITE("cr0", cr0 | PG | WP);
  CHECK("accessed and dirty", table[0x100] & 0x60, 0x60);
  directory[0] &= ~2u;
  set_page(WINDOW | 7);
  CHECK("read-only by its directory", TRY("movb $1, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  directory[0] |= 2;
  // 4 MiB pages: bits 21 are reserved, bits 20:13 are physical address bits 39:32 (PSE-36).
  directory[2] |= 1 << 21;
  flush();
  CHECK("a reserved bit of a large page", TRY("mov 0x800000, %%al", ) << 8 | last.error, PF << 8 | 9);
  directory[2] = 2 << 22 | 0x87;
  directory[3] = 2 << 22 | 0x87; // an alias
  flush();
  *(volatile u32 *)0x800010 = 0x12345678;
  CHECK("an alias by large pages", *(volatile u32 *)0xC00010, 0x12345678);
  directory[3] = 3 << 22 | 0x87;
  // Without PSE the bit means nothing: the entry names a table.
  table[0x3FF] = WINDOW | 7;
  *(volatile u32 *)WINDOW = 0xAABBCCDD;
  directory[3] = (u32)table | 0x87;
  flush();
  WRITE("cr4", PSE);
  // A page that the walk cannot find because its table is a hole.
  directory[4] = 0x3FFFF000 | 7;
  flush();
  const unsigned hole = TRY("mov 0x1000000, %%al", );
  CHECK("a table where no memory is", hole == NONE || hole == PF, 1);
  directory[4] = 4 << 22 | 0x87;
  directory[3] = 3 << 22 | 0x87;
  table[0x3FF] = 0x3FF000 | 7;
  flush();
  WRITE("cr0", cr0);
  CHECK("off", READ("cr0") >> 31, 0);
}

static void three_levels(void) {
  section("SDM 3, 4.4: PAE paging");
  for (int i = 0; i < 4; i++) {
    pdpt[i] = (u32)wide[i] | 1;
    for (u32 j = 0; j < 512; j++) wide[i][j] = ((u64)i << 30) | (u64)j << 21 | 0x87;
  }
  for (u32 i = 0; i < 512; i++) wide_table[i] = i << 12 | 7;
  wide[0][0] = (u32)wide_table | 7;
  wrmsr(0xC0000080, NXE);
  WRITE("cr4", PAE | PSE);
  pdpt[1] |= 2; // reserved
  CHECK("reserved bit 1, checked when paging begins",
        TRY("mov %%ebx, %%cr3; mov %%eax, %%cr0", .b = (u32)pdpt, .a = cr0 | PG | WP), GP);
  CHECK("... which it did not", READ("cr0") >> 31, 0);
  pdpt[1] &= ~2ull;
  CHECK("on", TRY("mov %%eax, %%cr0", .a = cr0 | PG | WP), NONE);
  pdpt[2] |= 1ull << 52;
  CHECK("an address too wide, checked by MOV CR3", TRY("mov %%eax, %%cr3", .a = (u32)pdpt), GP);
  CHECK("... and by a change of CR4", TRY("mov %%eax, %%cr4", .a = PAE | PSE | PGE), GP);
  pdpt[2] &= ~(1ull << 52);
  flush();
  // The registers hold what was loaded: a change of the table in memory is not seen.
  pdpt[3] = 0;
  CHECK_NOT_TCG("the registers are loaded by MOV CR3 only", TRY("mov 0xFEE00030, %%eax", ), NONE, "SDM 3, 4.4.1");
  flush();
  CHECK("absent afterwards", TRY("mov 0xFEE00030, %%eax", ) << 8 | last.error, PF << 8);
  pdpt[3] = (u32)wide[3] | 1;
  flush();
  wide_table[0x100] = WINDOW | 1ull << 63 | 7;
  flush();
  CHECK("no-execute read", TRY("mov 0x100000, %%eax", ), NONE);
  CHECK("no-execute fetched", TRY("mov $0x100000, %%eax; call *%%eax", ) << 8 | last.error, PF << 8 | 0x11);
  wide_table[0x100] = WINDOW | 1ull << 58 | 7;
  flush();
  CHECK("a reserved bit", TRY("mov 0x100000, %%eax", ) << 8 | last.error, PF << 8 | 9);
  wide_table[0x100] = WINDOW | 7;
  wide[0][4] |= 1 << 14;
  flush();
  CHECK("a reserved bit of a 2 MiB page", TRY("mov 0x800000, %%eax", ) << 8 | last.error, PF << 8 | 9);
  wide[0][4] = 0x800000 | 0x87;
  flush();
  WRITE("cr0", cr0);
}

void test(void) {
  cr0 = READ("cr0");
  two_levels();
  three_levels();
}
