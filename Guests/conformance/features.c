// SPDX-License-Identifier: Apache-2.0
// Supervisor-mode access prevention, process-context identifiers and the A20 gate: what changes the meaning of addresses
// and is not always there. The first two are left out of CPUID unless asked for.
#include "guest.h"

extern u64 table[], directory[];
static u8 *const window = (u8 *)0x100000; // a page of level 3; ours are not while a test runs
enum { PCIDE = 1 << 17, SMAP = 1 << 21 };
static struct { u64 context, linear; } descriptor;

// Makes our own memory the supervisor's, or everybody's again.
static void supervise(int only) {
  for (int i = 2; i < 8; i++) directory[i] = (directory[i] & ~4ull) | (only ? 0 : 4);
  WRITE("cr3", READ("cr3"));
}

static unsigned at_level3(const char *code, unsigned count) {
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 & ~(word)SMAP);
  for (unsigned i = 0; i < count; i++) window[i] = code[i];
  WRITE("cr4", cr4);
  return enter((word)window, USER_CODE64, 2, (word)window + 0x800, USER_DATA);
}

static void smap(void) {
  section("SDM 3, 4.6 and 4.7: SMAP; 2: CLAC, STAC");
  const word cr0 = READ("cr0"), cr4 = READ("cr4");
  u32 out[4];
  cpuid(7, 0, out);
  if (!(out[1] >> 20 & 1)) {
    CHECK("CR4.SMAP where it is not offered", TRY_WRITE("cr4", cr4 | SMAP), GP);
    CHECK("CLAC", TRY("clac", ), UD);
    CHECK("STAC", TRY("stac", ), UD);
    return;
  }
  // Without CR4.SMAP they are but flags.
  CHECK("STAC", (TRY("stac; pushf; pop %%rbx; clac; pushf; pop %%rcx", ), after.b & FLAG_AC), FLAG_AC);
  CHECK("CLAC", after.c & FLAG_AC, 0);
  CHECK("LOCK CLAC", TRY(".byte 0xF0; clac", ), UD);
  CHECK("STAC at level 3", at_level3("\x0F\x01\xCB\xCD\x81", 5), UD);
  window[0] = 0xC3;
  supervise(1);
  WRITE("cr4", (cr4 & ~0x80ul) | SMAP);
  CHECK("a read", TRY("mov 0x100123, %%al", ) << 8 | last.error, PF << 8 | 1);
  CHECK("... its address", last.cr2, 0x100123);
  CHECK("a write", TRY("movb $1, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  CHECK("a read across into it", TRY("mov 0xFFFFE, %%eax", ) << 8 | last.error, PF << 8 | 1);
  CHECK("a read-modify-write", TRY("lock incl 0x100010", ) << 8 | last.error, PF << 8 | 3);
  CHECK("a vector", TRY("movups 0x100010, %%xmm0", ) << 8 | last.error, PF << 8 | 1);
  CHECK("an x87 operand", TRY("flds 0x100010", ) << 8 | last.error, PF << 8 | 1);
  CHECK("PUSH of it", TRY("pushq 0x100010", ) << 8 | last.error, PF << 8 | 1);
  CHECK("REP MOVS from it", TRY("rep movsb", .S = 0x100010, .D = (word)&descriptor, .c = 3) << 8 | last.error, PF << 8 | 1);
  CHECK("... of nothing", TRY("rep movsb", .S = 0x100010, .D = (word)&descriptor, .c = 0), NONE);
  CHECK("REP LODS", TRY("rep lodsb", .S = 0x100010, .c = 5) << 8 | last.error, PF << 8 | 1);
  CHECK("REP STOS", TRY("rep stosb", .D = 0x100010, .c = 5) << 8 | last.error, PF << 8 | 3);
  CHECK("a large page", TRY("mov 0x1400000, %%eax", ) << 8 | last.error, PF << 8 | 1);
  CHECK("a device", TRY("mov 0xFEE00030, %%eax", ) << 8 | last.error, PF << 8 | 1);
  CHECK("a fetch is SMEP's business", TRY("mov $0x100000, %%eax; call *%%rax", ), NONE);
  WRITE("cr0", cr0 & ~0x10000ul);
  CHECK("a write without CR0.WP", TRY("movb $1, 0x100020", ) << 8 | last.error, PF << 8 | 3);
  WRITE("cr0", cr0);
  CHECK("STAC lifts it", TRY("stac; mov 0x100000, %%al; movb $0xC3, 0x100000; clac", ), NONE);
  CHECK("... until CLAC", TRY("stac; mov 0x100000, %%al; clac; mov 0x100000, %%al", ) << 8 | last.error, PF << 8 | 1);
  CHECK("... close by", TRY("stac; mov (%%rbx), %%al; mov 8(%%rbx), %%cl; clac; mov 4(%%rbx), %%al", .b = 0x100000), PF);
  CHECK("... for writes", TRY("stac; movb $0xC3, 0x100000; clac; movb $0xC3, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  CHECK("... for strings", TRY("stac; rep lodsb; clac; mov $5, %%ecx; rep lodsb", .S = 0x100010, .c = 5), PF);
  CHECK("... for devices", TRY("stac; mov 0xFEE00030, %%eax; clac; mov 0xFEE00030, %%eax", ), PF);
  CHECK("... on the stack", TRY("mov %%rsp, %%rbx; mov $0x100800, %%esp; stac; push %%rax; pop %%rax; mov %%rbx, %%rsp; clac", ), NONE);
  CHECK("POPF lifts it", TRY("pushf; orl $0x40000, (%%rsp); popf; mov 0x100000, %%al; clac", ), NONE);
  CHECK("POPF ends that", TRY("pushf; stac; mov 0x100000, %%al; popf; mov 0x100000, %%al", ), PF);
  CHECK("IRET ends that", TRY("mov %%ss, %%eax; mov %%rsp, %%rbx; push %%rax; push %%rbx; pushf; push $0x10; lea 1f(%%rip), %%rcx; push %%rcx;"
                              "stac; mov 0x100000, %%al; iretq; 1: mov 0x100000, %%al", ), PF);
  CHECK("an exception keeps AC", (TRY("stac; ud2", ), last.flags & FLAG_AC), FLAG_AC);
  CHECK("... and shows it cleared", (TRY("stac; clac; ud2", ), last.flags & FLAG_AC), 0);
  CHECK("level 3 is not concerned", at_level3("\x8A\x04\x25\x00\x00\x10\x00\xCD\x81", 9), NONE);
  // What the processor reads on its own, AC does not allow: a local descriptor table in a page of level 3.
  asm volatile("stac");
  u64 *const ldt = (u64 *)(window + 0x400);
  ldt[1] = 0x00CF93000000FFFF;
  asm volatile("clac");
  gdt[SPARE / 8] = 0x0000820000000017 | (u64)(word)ldt << 16;
  gdt[SPARE / 8 + 1] = 0;
  CHECK("LLDT", TRY("lldt %%ax", .a = SPARE), NONE);
  CHECK("a descriptor in it", TRY("mov %%eax, %%fs", .a = 0x0C) << 8 | last.error, PF << 8 | 1);
  CHECK("... also under STAC", TRY("stac; mov %%eax, %%fs", .a = 0x0C) << 8 | last.error, PF << 8 | 1);
  CHECK("... after it was read", TRY("stac; mov 0x100408, %%rbx; mov %%eax, %%fs", .a = 0x0C) << 8 | last.error, PF << 8 | 1);
  TRY("lldt %%ax", .a = 0);
  WRITE("cr4", cr4);
  CHECK("off again", TRY("mov 0x100000, %%al", ), NONE);
  WRITE("cr4", cr4 | SMAP);
  CHECK("on again, with what was read cached", TRY("mov 0x100000, %%al", ), PF);
  WRITE("cr4", cr4);
  supervise(0);
}

static unsigned invpcid(word type, u64 context, u64 linear) {
  descriptor.context = context;
  descriptor.linear = linear;
  return TRY("invpcid (%%rbx), %%rax", .a = type, .b = (word)&descriptor);
}
// Whether a change of the window's entry is seen after it.
static unsigned renews(word type, u64 context, u64 global) {
  volatile u32 *const at = (u32 *)window;
  table[0x100] = 0x100067 | global;
  asm volatile("invlpg 0x100000");
  *at = 1;
  table[0x100] = 0x101067 | global;
  invpcid(type, context, (word)window);
  const unsigned seen = *at;
  table[0x100] = 0x100067;
  asm volatile("invlpg 0x100000");
  return seen;
}

static void pcid(void) {
  section("SDM 3, 4.10.1 and 4.10.4.1: PCIDs; 2: INVPCID, MOV CR");
  const word cr3 = READ("cr3"), cr4 = READ("cr4");
  u32 one[4], seven[4];
  cpuid(1, 0, one);
  cpuid(7, 0, seven);
  const int has_pcid = one[2] >> 17 & 1, has_invpcid = seven[1] >> 10 & 1;
  CHECK_NOT_TCG("CR3 bit 63 without PCIDE", TRY_WRITE("cr3", cr3 | 1ul << 63), GP, "SDM 2, MOV CR");
  if (!has_pcid) CHECK_NOT_TCG("CR4.PCIDE where it is not offered", TRY_WRITE("cr4", cr4 | PCIDE), GP, "SDM 3, 2.5");
  if (!has_invpcid) CHECK_NOT_TCG("INVPCID where it is not offered", invpcid(2, 0, 0), UD, "SDM 2, INVPCID");
  // TCG knows PCIDs in some versions, and INVPCID in none.
  if (is_tcg || !has_pcid || !has_invpcid) return;
#define PCID "SDM 3, 4.10.1"
#define INVPCID "SDM 2, INVPCID"
  *(volatile u32 *)0x101000 = 2;
  WRITE("cr3", cr3 | 8);
  CHECK_NOT_TCG("CR4.PCIDE with a context in CR3", TRY_WRITE("cr4", cr4 | PCIDE), GP, PCID);
  WRITE("cr3", cr3);
  CHECK_NOT_TCG("INVPCID of context 1 without PCIDE", invpcid(1, 1, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of an address there", invpcid(0, 1, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of everything", invpcid(2, 1, 0), NONE, INVPCID);
  CHECK_NOT_TCG("CR4.PCIDE", TRY_WRITE("cr4", cr4 | PCIDE), NONE, PCID);
  CHECK_NOT_TCG("a context", (TRY_WRITE("cr3", cr3 | 0xABC), READ("cr3")), cr3 | 0xABC, PCID);
  CHECK_NOT_TCG("bit 63", TRY_WRITE("cr3", cr3 | 0xABC | 1ul << 63), NONE, PCID);
  CHECK_NOT_TCG("... reads as 0", READ("cr3"), cr3 | 0xABC, PCID);
  CHECK_NOT_TCG("bit 62", TRY_WRITE("cr3", cr3 | 1ul << 62), GP, PCID);
  CHECK_NOT_TCG("bit 52", TRY_WRITE("cr3", cr3 | 1ul << 52), GP, PCID);
  CHECK_NOT_TCG("paging off", TRY_WRITE("cr0", READ("cr0") & ~(1ul << 31)), GP, PCID);
  CHECK_NOT_TCG("INVPCID of an address", renews(0, 0xABC, 0), 2, INVPCID);
  CHECK_NOT_TCG("... of this context", renews(1, 0xABC, 0), 2, INVPCID);
  CHECK_NOT_TCG("... of everything, global too", renews(2, 0, 0x100), 2, INVPCID);
  CHECK_NOT_TCG("... of everything but global", renews(3, 0, 0), 2, INVPCID);
  CHECK_NOT_TCG("... of type 4", invpcid(4, 0, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of a type above 32 bits", invpcid(1ul << 32, 0, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of context 1000", invpcid(1, 0x1000, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of everything, reserved bits", invpcid(2, 1ul << 63, 0), GP, INVPCID);
  CHECK_NOT_TCG("... of an address that is none", invpcid(0, 0xABC, 1ul << 47), GP, INVPCID);
  CHECK_NOT_TCG("... of a context and such an address", invpcid(1, 0xABC, 1ul << 47), NONE, INVPCID);
  CHECK_NOT_TCG("... of another context", invpcid(1, 7, 0), NONE, INVPCID);
  CHECK_NOT_TCG("... its operand absent", TRY("invpcid (%%rbx), %%rax", .a = 2, .b = 1ul << 40), PF, INVPCID);
  CHECK_NOT_TCG("... its operand a register", TRY(".byte 0x66, 0x0F, 0x38, 0x82, 0xC3", .a = 2), UD, INVPCID);
  CHECK_NOT_TCG("... without its prefix", TRY(".byte 0x0F, 0x38, 0x82, 0x03", .b = (word)&descriptor), UD, INVPCID);
  void level3(void) { asm volatile("xor %%eax, %%eax; invpcid descriptor, %%rax" : : : "rax"); }
  CHECK_NOT_TCG("... at level 3", user(level3), GP, INVPCID);
  // What one context has cached is not another's.
  volatile u32 *const at = (u32 *)window;
  *at = 1;
  table[0x100] = 0x101067;
  WRITE("cr3", cr3 | 5);
  CHECK_NOT_TCG("a context that is new", *at, 2, PCID);
  table[0x100] = 0x100067;
  WRITE("cr3", cr3 | 5);
  CHECK_NOT_TCG("loading it again without bit 63", *at, 1, PCID);
  WRITE("cr3", cr3);
  CHECK_NOT_TCG("PCIDE off", TRY_WRITE("cr4", cr4), NONE, PCID);
}

static void a20(void) {
  section("SDM 3, 8.7.13.4: A20M#, here port 92 and the keyboard controller");
  extern u8 low_code[], high_code[];
  asm volatile("jmp 1f; low_code: mov $1, %eax; ret; high_code: mov $2, %eax; ret; 1:");
  volatile u32 *const low = (u32 *)0x600, *const high = (u32 *)0x100600;
  low[0] = low[1] = 0x11111111;
  high[0] = high[1] = 0x22222222;
  for (int i = 0; i < 6; i++) {
    ((u8 *)low)[0x100 + i] = low_code[i];
    ((u8 *)high)[0x100 + i] = high_code[i];
  }
  u32 eax;
#define CALL asm volatile("call *%%rbx" : "=a"(eax) : "b"(0x100700ul) : "memory")
  CHECK("open at the start", inb(0x92) & 2, 2);
  CALL;
  CHECK("code above 1 MiB", eax, 2);
  outb(0x92, inb(0x92) & ~3);
  CHECK("closed", inb(0x92) & 2, 0);
  CHECK("a load wraps", high[0], 0x11111111);
  high[1] = 0x33333333;
  CHECK("a store wraps", low[1], 0x33333333);
  CALL;
  CHECK("code wraps", eax, 1);
  CHECK("so does a large page", *(volatile u32 *)0xF00000 == *(volatile u32 *)0xE00000, 1);
  *(volatile u32 *)0xF00008 = 0x44444444;
  CHECK("... stored to", *(volatile u32 *)0xE00008, 0x44444444);
  // Page tables are read through the gate as well: one at 3 MiB is found at 2 MiB.
  u64 *const tables = (u64 *)0x200000;
  for (int i = 0; i < 512; i++) tables[i] = 0x300067;
  const u64 old = directory[9];
  directory[9] = 0x300067;
  asm volatile("invlpg 0x1200000");
  *(volatile u32 *)0x1200010 = 0x55555555;
  CHECK("page tables and pages", *(volatile u32 *)0x200010, 0x55555555);
  directory[9] = old;
  asm volatile("invlpg 0x1200000");
  outb(0x92, 2);
  CHECK("open again", inb(0x92) & 2, 2);
  CHECK("a load", high[0], 0x22222222);
  CHECK("what was stored is below", high[1], 0x22222222);
  CALL;
  CHECK("code", eax, 2);
  // The keyboard controller's way.
  outb(0x64, 0xD1);
  outb(0x60, 0xDD);
  CHECK("D1, DD closes", high[0], 0x11111111);
  outb(0x64, 0xD1);
  outb(0x60, 0xDF);
  CHECK("D1, DF opens", high[0], 0x22222222);
  outb(0x64, 0xDD);
  CHECK("DD closes", high[0], 0x11111111);
  outb(0x64, 0xDF);
  CHECK("DF opens", high[0], 0x22222222);
  while (inb(0x64) & 1) inb(0x60);
  outb(0x64, 0xD0);
  CHECK("D0 is answered", inb(0x64) & 1, 1);
  CHECK("... with the output port", inb(0x60) & 3, 3);
  CHECK("... once", inb(0x64) & 1, 0);
}

void test(void) {
  smap();
  pcid();
  a20();
}
