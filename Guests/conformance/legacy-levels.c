// SPDX-License-Identifier: Apache-2.0
// Privilege levels, local descriptor tables, 16-bit gates and tasks, port permissions and system calls of 32-bit mode.
#include "guest.h"

extern u8 ring0_stack_top[];
static volatile u32 seen[8];

static void set_descriptor(unsigned selector, u32 base, u32 limit, unsigned access, unsigned flags) {
  gdt[selector / 8] = (limit & 0xFFFF) | (u64)(base & 0xFFFFFF) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
                      (u64)flags << 52 | (u64)(base >> 24) << 56;
}

static void code_segments(void) {
  section("SDM 3, 5.8.1: conforming and nonconforming code segments");

  asm volatile("jmp 2f\n conforming: mov %%cs, %%eax; mov %%eax, %0; lret\n 2:" : "=m"(seen[0]));
  void call(void) { asm volatile("lcall $0x60, $conforming"); }
  void call_level3(void) { asm volatile("lcall $0x63, $conforming"); }
  set_descriptor(SPARE, 0, 0xFFFFF, 0x9E, 12); // conforming, level 0
  seen[0] = 0;
  CHECK("a call to conforming code", user(call), NONE);
  CHECK("... stays at level 3", seen[0], SPARE | 3);
  CHECK("... whatever the selector says", user(call_level3), NONE);
  set_descriptor(SPARE, 0, 0xFFFFF, 0x9A, 12);
  CHECK("to nonconforming code of level 0", user(call) << 16 | last.error, GP << 16 | SPARE);
  set_descriptor(SPARE, 0, 0xFFFFF, 0xFE, 12);
  CHECK("from level 0 to conforming code of level 3", TRY("lcall $0x60, $conforming", ) << 16 | last.error, GP << 16 | SPARE);
  set_descriptor(SPARE, 0, 0xFFFFF, 0x1A, 12);
  CHECK("to absent code", TRY("lcall $0x60, $conforming", ) << 16 | last.error, NP << 16 | SPARE);
  set_descriptor(SPARE, 0, 0x10, 0x9A, 4);
  CHECK("beyond its limit", TRY("lcall $0x60, $conforming", ) << 16 | last.error, GP << 16);
  CHECK("a far return inwards", ({ void inward(void) { asm volatile("pushl $0x08; pushl $conforming; lret"); } user(inward); }) << 16 | last.error, GP << 16 | CODE32);
  CHECK("IRET inwards", ({ void inward(void) { asm volatile("pushf; pushl $0x08; pushl $conforming; iret"); } user(inward); }) << 16 | last.error, GP << 16 | CODE32);
}

static u64 ldt[4];
static void local_tables(void) {
  section("SDM 3, 3.5.1: local descriptor tables");
  ldt[1] = 0x00CF93000000FFFF;
  ldt[2] = 0x00CFF3000000FFFF;
  set_descriptor(SPARE, (u32)ldt, 23, 0x82, 0);
  CHECK("LLDT", TRY("lldt %%ax", .a = SPARE), NONE);
  CHECK("SLDT", ({ u16 value; asm("sldt %0" : "=r"(value)); value; }), SPARE);
  CHECK("a local selector", TRY("mov %%eax, %%fs; mov %%fs:(%%ebx), %%ecx", .a = 0x0C, .b = (word)&seen[0]), NONE);
  CHECK("beyond its limit", TRY("mov %%eax, %%fs", .a = 0x1C) << 16 | last.error, GP << 16 | 0x1C);
  CHECK("LLDT of itself", TRY("lldt %%ax", .a = 0x0C) << 16 | last.error, GP << 16 | 0x0C);
  CHECK("LLDT null", TRY("lldt %%ax", .a = 0), NONE);
  CHECK("a local selector then", TRY("mov %%eax, %%fs", .a = 0x0C) << 16 | last.error, GP << 16 | 0x0C);
  CHECK("LTR of data", TRY("ltr %%ax", .a = DATA) << 16 | last.error, GP << 16 | DATA);
  set_descriptor(SPARE, (u32)ldt, 23, 0x02, 0);
  CHECK("LLDT of an absent table", TRY("lldt %%ax", .a = SPARE) << 16 | last.error, NP << 16 | SPARE);
}

static void ports(void) {
  section("SDM 1, 19.5: I/O privilege level and permission map");
  // The map begins at 0x88 in the task.
  void byte(void) { asm volatile("in $0xE0, %%al" : : : "eax"); }
  void wide(void) { asm volatile("in $0xE0, %%eax" : : : "eax"); }
  void string(void) { asm volatile("mov $0xE0, %%edx; lea -64(%%esp), %%edi; insb" : : : "edx", "edi"); }
  void high(void) { asm volatile("mov $0xFFFF, %%edx; in %%dx, %%al" : : : "eax", "edx"); }
  void cli(void) { asm volatile("cli"); }
  void popf(void) { asm volatile("pushl $0x3202; popf; pushf; popl %0" : "=m"(seen[0])); }
  CHECK("a byte the map allows", user(byte), NONE);
  CHECK("a string the map allows", user(string), NONE);
  tss[0x88 + 0xE3 / 8] = 1 << 3;
  CHECK("a byte beside one it does not", user(byte), NONE);
  CHECK("a doubleword over one it does not", user(wide) << 16 | last.error, GP << 16);
  CHECK("a port beyond the map", user(high) << 16 | last.error, GP << 16);
  CHECK("CLI at IOPL 0", user(cli), GP);
  CHECK("POPF cannot change IOPL and IF", (user(popf), seen[0] & 0x3200), 0);
  extern u8 wide_port[];
  asm volatile("jmp 2f\n wide_port: in $0xE0, %eax; int $0x81\n 2:");
  CHECK("at IOPL 3 the map is not asked", enter((word)wide_port, USER_CODE32, 0x3002, (word)user_stack_top, USER_DATA), NONE);
  tss[0x88 + 0xE3 / 8] = 0;
}

static void protected_virtual(void) {
  section("SDM 3, 20.4: protected-mode virtual interrupts");
  extern u8 pvi_cli[], pvi_sti[], pvi_popf[];
  asm volatile("jmp 2f\n pvi_cli: cli; int $0x81\n pvi_sti: sti; nop; int $0x81\n pvi_popf: pushl $0x202; popf; int $0x81\n 2:");
  const word cr4 = READ("cr4");
  u32 out[4];
  cpuid(1, 0, out);
  if (!(out[3] >> 1 & 1)) return;
  WRITE("cr4", cr4 | 2);
#define PVI "SDM 3, 20.4"
  CHECK_NOT_TCG("CLI", enter((word)pvi_cli, USER_CODE32, 2 | FLAG_VIF | FLAG_IF, (word)user_stack_top, USER_DATA), NONE, PVI);
  CHECK_NOT_TCG("... clears VIF, not IF", last.flags & (FLAG_VIF | FLAG_IF), FLAG_IF, PVI);
  CHECK_NOT_TCG("STI", enter((word)pvi_sti, USER_CODE32, 2, (word)user_stack_top, USER_DATA), NONE, PVI);
  CHECK_NOT_TCG("... sets VIF, not IF", last.flags & (FLAG_VIF | FLAG_IF), FLAG_VIF, PVI);
  CHECK_NOT_TCG("STI with VIP", enter((word)pvi_sti, USER_CODE32, 2 | FLAG_VIP, (word)user_stack_top, USER_DATA), GP, PVI);
  CHECK_NOT_TCG("POPF does not touch it", (enter((word)pvi_popf, USER_CODE32, 2, (word)user_stack_top, USER_DATA), last.flags & (FLAG_VIF | FLAG_IF)), 0, PVI);
  WRITE("cr4", cr4);
}

static void fast_calls(void) {
  section("SDM 2: SYSENTER, SYSEXIT");
  extern u8 fast_entry[];
  asm volatile("jmp 2f\n fast_entry: mov %%cs, %0; mov %%ss, %1; mov %%esp, %2; pushf; pop %3\n"
               "mov $fast_back, %%edx; mov $user_stack_top, %%ecx; sysexit\n fast_back: mov %%cs, %4; int $0x81\n 2:"
               : "=m"(seen[0]), "=m"(seen[1]), "=m"(seen[2]), "=m"(seen[3]), "=m"(seen[4]));
  void call(void) { asm volatile("sysenter"); }
  wrmsr(0x174, 0);
  CHECK("with a null CS", user(call), GP);
  CHECK("SYSEXIT with a null CS", TRY("sysexit", ), GP);
  // Descriptors in the fixed order: code and stack of level 0, code and stack of level 3.
  gdt[SPARE / 8] = gdt[CODE32 / 8];
  gdt[SPARE / 8 + 1] = gdt[DATA / 8];
  gdt[SPARE / 8 + 2] = gdt[USER_CODE32 / 8];
  gdt[SPARE / 8 + 3] = gdt[USER_DATA / 8];
  wrmsr(0x174, SPARE);
  wrmsr(0x175, (word)ring0_stack_top);
  wrmsr(0x176, (word)fast_entry);
  for (int i = 0; i < 5; i++) seen[i] = 0;
  CHECK("there and back", user(call), NONE);
  CHECK("... CS and SS", (seen[0] & 0xFFFF) << 16 | (seen[1] & 0xFFFF), SPARE << 16 | (SPARE + 8));
  CHECK("... ESP", seen[2], (word)ring0_stack_top);
  CHECK("... IF", seen[3] & FLAG_IF, 0);
  CHECK("... CS afterwards", seen[4] & 0xFFFF, (SPARE + 16) | 3);
  CHECK("SYSEXIT at level 3", ({ void leave(void) { asm volatile("sysexit"); } user(leave); }), GP);
}

static u16 old_task[22] __attribute__((aligned(64)));
static u8 old_stack[512];
static void old_tasks(void) {
  section("SDM 3, 7.6: 16-bit tasks");
  extern u8 old_code[];
  // A task of the 286; its code runs in the first 64 KiB of a segment at old_code.
  asm volatile("jmp 2f\n old_code: .byte 0xB8, 0x34, 0x12\n .byte 0xCF\n" // mov ax, 0x1234; iret
               "2:");
  set_descriptor(CODE16, (u32)old_code, 0xFFFF, 0x9B, 0);
  for (int i = 0; i < 22; i++) old_task[i] = 0;
  old_task[8] = 2;
  old_task[9] = 0x1111;
  set_descriptor(DATA16, (u32)old_stack, 511, 0x93, 0);
  old_task[13] = 512;
  old_task[17] = DATA;
  old_task[18] = CODE16;
  old_task[19] = DATA16;
  old_task[20] = DATA;
  set_descriptor(SPARE, (u32)old_task, 43, 0x81, 0);
  CHECK("CALL to a 16-bit task", TRY("lcall $0x60, $0", .a = 9), NONE);
  CHECK("... it ran", old_task[9], 0x1234);
  CHECK("... its IP", old_task[7], 4);
  CHECK("... its link", old_task[0], TASK);
  CHECK("... our EAX", after.a, 9);
  asm volatile("clts");
  set_descriptor(SPARE, (u32)old_task, 42, 0x81, 0);
  CHECK("one too small", TRY("lcall $0x60, $0", ) << 16 | last.error, TS << 16 | SPARE);
}

void test(void) {
  outb(0x21, 0xFF);
  outb(0xA1, 0xFF);
  code_segments();
  local_tables();
  ports();
  protected_virtual();
  fast_calls();
  old_tasks();
}
