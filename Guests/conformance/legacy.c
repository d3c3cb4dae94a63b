// SPDX-License-Identifier: Apache-2.0
// What came before 64-bit mode: segments with limits and types, call gates, tasks, virtual-8086 mode, 16-bit code and
// real mode.
#include "guest.h"

extern u8 pieces[], pieces_end[]; // legacy.S's 16-bit code, copied to LOW
enum { LOW = 0x8000 };
#define PIECE(label) ({ extern u8 label[]; LOW + (unsigned)(label - pieces); })

static void set_descriptor(unsigned selector, u32 base, u32 limit, unsigned access, unsigned flags) {
  gdt[selector / 8] = (limit & 0xFFFF) | (u64)(base & 0xFFFFFF) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
                      (u64)flags << 52 | (u64)(base >> 24) << 56;
}
static void set_call_gate(unsigned selector, word target, unsigned code, unsigned count, unsigned access) {
  gdt[selector / 8] = (target & 0xFFFF) | (u64)code << 16 | (u64)count << 32 | (u64)access << 40 | (u64)(target >> 16) << 48;
}
#define SEGMENT SPARE
#define OTHER (SPARE + 8)
#define THIRD (SPARE + 16)
static u8 data[256] __attribute__((aligned(16)));

// An exception gives FS back its flat segment: it is loaded again each time.
#define BY_FS(code, ...) TRY("pushl $0x60; popl %%fs; " code, __VA_ARGS__)
static void segments(void) {
  section("SDM 3, 5.3 to 5.5: limits, types and levels of segments");
  set_descriptor(SEGMENT, (u32)data, 99, 0x93, 4);
  data[99] = 0x5A;
  CHECK("the last byte", BY_FS("mov %%fs:99, %%al", .a = 0) << 8 | (after.a & 0xFF), NONE << 8 | 0x5A);
  CHECK("one beyond", BY_FS("mov %%fs:100, %%al", ), GP);
  CHECK("error code 0", last.error, 0);
  CHECK("a word over the end", BY_FS("mov %%fs:99, %%ax", ), GP);
  CHECK("a doubleword at the end", BY_FS("mov %%fs:96, %%eax", ), NONE);
  CHECK("a doubleword that wraps", BY_FS("mov %%fs:(%%eax), %%eax", .a = -2), GP);
  CHECK("a store beyond", BY_FS("movb $1, %%fs:100", ), GP);
  CHECK("LEA checks nothing", BY_FS(".byte 0x64; lea 1000, %%eax", ), NONE);
  set_descriptor(SEGMENT, (u32)data, 99, 0x97, 4); // expand-down: above 99 up to 4 GiB
    CHECK("expand-down: at its limit", BY_FS("mov %%fs:99, %%al", ), GP);
  CHECK("expand-down: above", BY_FS("mov %%fs:100, %%al", ), NONE);
  CHECK("expand-down: a word from the limit on", BY_FS("mov %%fs:99, %%ax", ), GP);
  set_descriptor(SEGMENT, (u32)data, 99, 0x97, 0); // up to 64 KiB
    CHECK("expand-down of 16 bits: its top", BY_FS("mov %%fs:0xFFFF, %%al", ), NONE);
  CHECK("expand-down of 16 bits: over its top", BY_FS("mov %%fs:0xFFFF, %%ax", ), GP);
  CHECK("expand-down of 16 bits: above", BY_FS("mov %%fs:0x10000, %%al", ), GP);
  set_descriptor(SEGMENT, (u32)data, 99, 0x91, 4);
    CHECK("read-only: read", BY_FS("mov %%fs:5, %%al", ), NONE);
  CHECK("read-only: written", BY_FS("mov %%al, %%fs:5", ), GP);
  CHECK("read-only as stack", TRY("mov %%eax, %%ss", .a = SEGMENT) << 16 | last.error, GP << 16 | SEGMENT);
  set_descriptor(SEGMENT, (u32)data, 99, 0x99, 4);
  CHECK("execute-only as data", TRY("mov %%eax, %%fs", .a = SEGMENT) << 16 | last.error, GP << 16 | SEGMENT);
  set_descriptor(SEGMENT, (u32)data, 99, 0x9B, 4);
  CHECK("readable code as data", BY_FS("mov %%fs:5, %%al", ), NONE);
  CHECK("readable code written", BY_FS("mov %%al, %%fs:5", ), GP);
  set_descriptor(SEGMENT, (u32)data, 0, 0x92, 12); // pages
  CHECK("a limit in pages", BY_FS("mov %%fs:0xFFF, %%al", ), NONE);
  CHECK("... and beyond", BY_FS("mov %%fs:0x1000, %%al", ), GP);
  CHECK("loading sets accessed", gdt[SEGMENT / 8] >> 40 & 1, 1);
  set_descriptor(SEGMENT, 0, 0x7FFF, 0x93, 12);
#define BY_SS(code) \
  TRY_THEN("mov %%ecx, %%ss; " code, "mov %%edx, %%ss;", .a = 0x8000000, .c = SEGMENT, .d = DATA)
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 | 0x200);
  CHECK("MOVAPS within the stack's limit", BY_SS("movaps %%ss:-0x7F00000(%%eax), %%xmm0"), NONE);
  CHECK("... beyond", BY_SS("movaps %%ss:(%%eax), %%xmm0"), SS);
  CHECK_NOT_TCG("... and misaligned", BY_SS("movaps %%ss:8(%%eax), %%xmm0"), GP, "measured: Intel family 6 model 207");
  WRITE("cr4", cr4);
  CHECK("the null selector loads", TRY("mov %%eax, %%fs", .a = 3), NONE);
  CHECK("... and cannot be used", TRY("mov %%eax, %%fs; mov %%fs:0, %%al", .a = 3), GP);
  CHECK("null as stack", TRY("mov %%eax, %%ss", .a = 0) << 16 | last.error, GP << 16);
  CHECK("a level 3 selector as stack", TRY("mov %%eax, %%ss", .a = DATA | 3) << 16 | last.error, GP << 16 | DATA);
}

static void descriptors(void) {
  section("SDM 2: LAR, LSL, VERR, VERW, ARPL, BOUND, INTO");
  set_descriptor(SEGMENT, (u32)data, 99, 0xF3, 4);
  set_descriptor(OTHER, (u32)data, 5, 0x9B, 12);
  set_descriptor(THIRD, 0, 0x67, 0x89, 0);
  CHECK("LAR", TRY("lar %%ax, %%ebx", .a = SEGMENT | 3) << 24 | after.b, NONE << 24 | 0x40F300);
  CHECK("LSL", (TRY("lsl %%ax, %%ebx", .a = SEGMENT | 3), after.b), 99);
  CHECK("LSL in pages", (TRY("lsl %%ax, %%ebx", .a = OTHER), after.b), 0x5FFF);
  CHECK("LAR of a task", (TRY("lar %%ax, %%ebx", .a = THIRD), after.b), 0x8900);
  CHECK("LAR of null keeps its target", (TRY("lar %%ax, %%ebx; setz %%cl", .a = 0, .b = 7), after.b << 8 | after.c), 0x700);
  CHECK("LAR beyond the table", (TRY("lar %%ax, %%ebx; setz %%cl", .a = 0xFFF8, .b = 7), after.b << 8 | after.c), 0x700);
  CHECK("VERR", (TRY("verr %%ax; setz %%bl; verr %%cx; setz %%bh", .a = OTHER, .c = THIRD), after.b), 1);
  CHECK("VERW", (TRY("verw %%ax; setz %%bl; verw %%cx; setz %%bh", .a = SEGMENT, .c = OTHER), after.b), 1);
  CHECK("ARPL raises", (TRY("arpl %%ax, %%bx; setz %%cl", .a = 3, .b = 0x10), after.b << 8 | after.c), 0x1301);
  CHECK("ARPL leaves", (TRY("arpl %%ax, %%bx; setz %%cl", .a = 1, .b = 0x12), after.b << 8 | after.c), 0x1200);
  static const int bounds[2] = {-5, 10};
  CHECK("BOUND inside", TRY("bound %%eax, (%%ebx)", .a = -5, .b = (word)bounds), NONE);
  CHECK("BOUND outside", TRY("bound %%eax, (%%ebx)", .a = 11, .b = (word)bounds), BR);
  CHECK("INTO without overflow", TRY("xor %%eax, %%eax; into", ), NONE);
  CHECK("INTO with overflow", TRY("mov $0x7FFFFFFF, %%eax; inc %%eax; into", ), OF);
}

static void gates(void) {
  section("SDM 3, 5.8: call gates");
  extern u8 gate_target[];
  extern volatile word gate_seen[4];
  void through(void) { asm volatile("pushl $0x1111; pushl $0x2222; lcall $0x6B, $0"); }
  void plain(void) { asm volatile("lcall $0x6B, $0"); }
  void inward(void) { asm volatile("lcall $0x08, $0"); }
  set_call_gate(SPARE + 8, (word)gate_target, CODE32, 2, 0xEC);
  CHECK("from level 3 to level 0", user(through), NONE);
  CHECK("... at level", gate_seen[0] & 3, 0);
  CHECK("... with parameters", gate_seen[1] << 16 | gate_seen[2], 0x11112222);
  CHECK("... on the stack of level 0", gate_seen[3], ({ extern u8 ring0_stack_top[]; (word)ring0_stack_top; }) - 24);
  CHECK("a far call to level 0", user(inward) << 16 | last.error, GP << 16 | CODE32);
  set_call_gate(SPARE + 8, (word)gate_target, CODE32, 0, 0x8C);
  CHECK("a gate of level 0", user(plain) << 16 | last.error, GP << 16 | (SPARE + 8));
  set_call_gate(SPARE + 8, (word)gate_target, CODE32, 0, 0x6C);
  CHECK("an absent gate", user(plain) << 16 | last.error, NP << 16 | (SPARE + 8));
  set_call_gate(SPARE + 8, (word)gate_target, DATA, 0, 0xEC);
  CHECK("a gate to data", user(plain) << 16 | last.error, GP << 16 | DATA);
  set_call_gate(SPARE + 8, (word)gate_target, 0, 0, 0xEC);
  CHECK("a gate to nothing", user(plain) << 16 | last.error, GP << 16);
  set_call_gate(SPARE + 8, (word)gate_target, CODE32, 0, 0x8C);
  CHECK("from level 0", TRY("lcall $0x68, $0", ), NONE);
}

// A second task.
static u32 task2[32] __attribute__((aligned(128)));
static u8 task2_stack[4096];
extern volatile word task_seen[6];
static void prepare_task(void (*code)(void)) {
  for (int i = 0; i < 32; i++) task2[i] = 0;
  task2[1] = (u32)task2_stack + 2048;
  task2[2] = DATA;
  task2[8] = (u32)code;
  task2[9] = 2;
  task2[10] = 0xAAAA;
  task2[14] = (u32)task2_stack + 4096;
  task2[18] = task2[20] = task2[21] = task2[22] = task2[23] = DATA;
  task2[19] = CODE32;
  task2[25] = 0x68 << 16;
  set_descriptor(SPARE + 16, (u32)task2, 0x67, 0x89, 0);
  for (int i = 0; i < 6; i++) task_seen[i] = 0;
}
static void tasks(void) {
  section("SDM 3, 7.3: task switches");
  extern void task_code(void), task_fault(void), task_jump(void);
  prepare_task(task_code);
  CHECK("CALL to a task", TRY("lcall $0x70, $0", .a = 5), NONE);
  CHECK("... its registers", task_seen[0], 0xAAAA);
  CHECK("... TR", task_seen[1], SPARE + 16);
  CHECK("... NT", task_seen[2] & FLAG_NT, FLAG_NT);
  CHECK("... its link", task2[0], TASK);
  CHECK("... TS", task_seen[3] & 8, 8);
  CHECK("... back with its own registers", after.a, 5);
  CHECK("... available again", gdt[(SPARE + 16) / 8] >> 40 & 0xF, 9);
  CHECK("... the first one busy", gdt[TASK / 8] >> 40 & 0xF, 0xB);
  CHECK("TR", ({ u16 tr; asm("str %0" : "=r"(tr)); tr; }), TASK);
  asm volatile("clts");
  task2[8] = (u32)task_code;
  set_gate(0x44, 0, SPARE + 16, 0x85, 0);
  CHECK("INT through a task gate", TRY("int $0x44", ), NONE);
  CHECK("... NT", task_seen[2] & FLAG_NT, FLAG_NT);
  gdt[SPARE / 8 + 3] = (u64)0xE500 << 32 | (u64)(SPARE + 16) << 16;
  prepare_task(task_code);
  void call_task(void) { asm volatile("lcall $0x7B, $0"); }
  CHECK("CALL of a task gate at level 3", user(call_task), NONE);
  CHECK("... ran", task_seen[0], 0xAAAA);
  prepare_task(task_fault);
  set_gate(GP, 0, SPARE + 16, 0x85, 0);
  CHECK("a fault through a task gate", TRY("movl $8f, task_resume; mov %%eax, %%ds; 8: nop", .a = 0xFFF8), NONE);
  CHECK("... its error code", task_seen[0], 0xFFF8);
  CHECK("... on its own stack", task_seen[1], (u32)task2_stack + 4092);
  set_gate(GP, (word)stubs[GP], CODE32, 0x8E, 0);
  prepare_task(task_jump);
  CHECK("JMP to a task and back", TRY("ljmp $0x70, $0", ), NONE);
  CHECK("... without NT", task_seen[2] & FLAG_NT, 0);
  CHECK("... without a link", task2[0], 0);
  asm volatile("clts");
  set_descriptor(SPARE + 16, (u32)task2, 0x66, 0x89, 0);
  CHECK("a task too small", TRY("lcall $0x70, $0", ) << 16 | last.error, TS << 16 | (SPARE + 16));
  set_descriptor(SPARE + 16, (u32)task2, 0x67, 0x09, 0);
  CHECK("an absent task", TRY("lcall $0x70, $0", ) << 16 | last.error, NP << 16 | (SPARE + 16));
  set_descriptor(SPARE + 16, (u32)task2, 0x67, 0x8B, 0);
  CHECK("a busy task", TRY("lcall $0x70, $0", ) << 16 | last.error, GP << 16 | (SPARE + 16));
  CHECK("a call to oneself", TRY("lcall $0x40, $0", ) << 16 | last.error, GP << 16 | TASK);
  prepare_task(task_code);
  task2[25] |= 1;
  handlers[DB] = 0;
  CHECK("the T bit", TRY("lcall $0x70, $0", ), DB);
  CHECK("... in DR6", READ("dr6") & 0xE00F, 0x8000);
  WRITE("dr6", 0xFFFF0FF0);
  // That exception came in the second task: go back by hand.
  gdt[TASK / 8] &= ~(2ull << 40);
  asm volatile("ltr %w0; clts" : : "r"(TASK));
  set_flags(2);
}

static unsigned vm86(unsigned ip, unsigned flags) {
  return enter(ip - LOW, LOW >> 4, FLAG_VM | 2 | flags, 0x1000, 0x2000);
}
enum { IOPL3 = 0x3000 };
static void virtual_8086(void) {
  section("SDM 3, 20.2 and 20.3: virtual-8086 mode");
  volatile u16 *const shared = (u16 *)0x20000; // its DS is 2000
  CHECK("INT 0x81 with IOPL 3", vm86(PIECE(vm_plain), IOPL3), NONE);
  CHECK("... what it stored", shared[0], 0x1234);
  CHECK("... its stack", shared[1], 0x1000);
  CHECK("... its flags", last.flags & (FLAG_VM | IOPL3), FLAG_VM | IOPL3);
  CHECK("... its CS", last.cs, LOW >> 4);
  CHECK("INT with IOPL 0", vm86(PIECE(vm_plain), 0) << 8 | last.error, GP << 8);
  CHECK("CLI with IOPL 0", vm86(PIECE(vm_cli), 0) << 8 | last.error, GP << 8);
  CHECK("CLI with IOPL 3", vm86(PIECE(vm_cli), IOPL3 | FLAG_IF), NONE);
  CHECK("... clears IF", last.flags & FLAG_IF, 0);
  CHECK("PUSHF with IOPL 0", vm86(PIECE(vm_pushf), 0), GP);
  CHECK("HLT", vm86(PIECE(vm_hlt), IOPL3), GP);
  CHECK("MOV CR0", vm86(PIECE(vm_cr0), IOPL3), GP);
  CHECK("LLDT", vm86(PIECE(vm_lldt), IOPL3), UD);
  CHECK("OUT to a port that the map allows", vm86(PIECE(vm_out), 0), GP); // it ends with INT
  CHECK("... went out", inb(0xE0), 0x77);
  tss[0x88 + 0xE0 / 8] = 1;
  outb(0xE0, 0);
  CHECK("OUT to one that it does not", vm86(PIECE(vm_out), IOPL3), GP);
  CHECK("... did not", inb(0xE0), 0);
  tss[0x88 + 0xE0 / 8] = 0;
  CHECK("a word at FFFF", vm86(PIECE(vm_wrap), IOPL3), GP);
  CHECK("INT3 with IOPL 0", vm86(PIECE(vm_int3), 0), BP);
  // Virtual-mode extensions (20.3).
  u32 out[4];
  cpuid(1, 0, out);
  CHECK("VME is offered", out[3] >> 1 & 1, 1);
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 | 1);
  // Interrupts go to the program's own handlers where the map has a clear bit: 0x70 to 0x77.
  for (int i = 0; i < 32; i++) tss[0x68 + i] = i == 0x70 / 8 ? 0 : 0xFF;
  CHECK("VME: CLI with IOPL 0", vm86(PIECE(vm_cli), FLAG_VIF), GP); // at its INT, which the map sends to the monitor
  CHECK("VME: ... clears VIF", last.flags & FLAG_VIF, 0);
  CHECK("VME: STI with IOPL 0", vm86(PIECE(vm_sti), 0), GP);
  CHECK("VME: ... sets VIF", last.flags & FLAG_VIF, FLAG_VIF);
  CHECK("VME: STI with VIP", vm86(PIECE(vm_sti), FLAG_VIP), GP);
  CHECK("VME: ... does not", last.flags & FLAG_VIF, 0);
  CHECK("VME: PUSHF with IOPL 0", vm86(PIECE(vm_pushf), FLAG_VIF), GP);
  CHECK("VME: ... shows VIF as IF, IOPL as 3", shared[2] & (IOPL3 | FLAG_IF), IOPL3 | FLAG_IF);
  const u32 old = *(volatile u32 *)(0x70 * 4 + (u8 *)0);
  asm volatile("movl %0, 0x1C0" : : "r"((LOW >> 4) << 16 | (PIECE(vm_handler) - LOW)) : "memory");
  shared[3] = 0;
  CHECK("VME: INT to its own handler", vm86(PIECE(vm_int70), FLAG_VIF), GP);
  CHECK("VME: ... ran", shared[3], 0x4321);
  CHECK("VME: ... back with VIF", last.flags & FLAG_VIF, FLAG_VIF);
  asm volatile("movl %0, 0x1C0" : : "r"(old) : "memory");
  WRITE("cr4", cr4);
}

static void sixteen(void) {
  section("SDM 3, 21: 16-bit code segments");
  set_descriptor(CODE16, LOW, 0xFFFF, 0x9B, 0);
  set_descriptor(DATA16, LOW, 0xFFFF, 0x93, 0);
  // The piece comes back by a far jump with a 32-bit offset.
  volatile u32 *const result = (u32 *)(LOW + 0xF00);
  for (int i = 0; i < 8; i++) result[i] = 0;
  CHECK("16-bit protected mode", TRY("movl $8f, 0x8F80; movw $8, 0x8F84; mov %%esp, %%ebx; ljmp *(%%eax); 8: mov %%ebx, %%esp; mov $0x18, %%eax; mov %%eax, %%ds; mov %%eax, %%ss",
                                     .a = (word)(u32[2]){PIECE(pm16) - LOW, CODE16}), NONE);
  CHECK("... 16-bit operands", result[0], 0x00001235);
  CHECK("... 16-bit stack", result[1], 0x0FFC);
  CHECK("... 32-bit prefix", result[2], 0x12345679);
  CHECK("... IP wraps nowhere", result[3], 0xBEEF);
}

static void real_mode(void) {
  section("SDM 3, 20.1: real-address mode");
  volatile u32 *const result = (u32 *)(LOW + 0xF00);
  for (int i = 0; i < 8; i++) result[i] = 0;
  set_descriptor(CODE16, LOW, 0xFFFF, 0x9B, 0);
  set_descriptor(DATA16, LOW, 0xFFFF, 0x93, 0);
  // Its handler of interrupt 0x70, the divide error's and the overflow's.
  asm volatile("movl %0, 0x1C0; movl %1, 0x0; movl %2, 0x34" : : "r"((LOW >> 4) << 16 | (PIECE(rm_handler) - LOW)),
               "r"((LOW >> 4) << 16 | (PIECE(rm_divide) - LOW)), "r"((LOW >> 4) << 16 | (PIECE(rm_general) - LOW)) : "memory");
  *(volatile u32 *)0x600 = 0xA20;
  *(volatile u32 *)0x100600 = 0x1A20;
  CHECK("there and back", TRY("movl $8f, 0x8F80; movw $8, 0x8F84; mov %%esp, %%esi; ljmp *(%%eax); 8: mov $0x18, %%eax; mov %%eax, %%ss; mov %%esi, %%esp; call load_segments; lidt idt_pointer",
                              .a = (word)(u32[2]){PIECE(real) - LOW, CODE16}), NONE);
  CHECK("an interrupt through the vector table", result[0], 0x7070);
  CHECK("... masks IF", result[1] & FLAG_IF, 0);
  CHECK("... IRET restores it", result[2] & FLAG_IF, FLAG_IF);
  CHECK("a divide error is a fault", result[3], 0xD1);
  CHECK("a word at FFFF is #GP", result[4], 0x60);
  CHECK("unreal mode reaches above 1 MiB", result[5], 0x1BADB002);
  CHECK("segments are 16 bytes apart", result[6], 0x9ABC);
  CHECK("addresses wrap at 1 MiB with A20 closed, and not with it open", result[7], 0x1A200A20);
  CHECK("port 92 has A20 on", inb(0x92) & 2, 2);
}

void test(void) {
  outb(0x21, 0xFF); // the 8259s say nothing
  outb(0xA1, 0xFF);
  for (u8 *from = pieces, *to = (u8 *)LOW; from < pieces_end;) *to++ = *from++;
  segments();
  descriptors();
  gates();
  tasks();
  virtual_8086();
  sixteen();
  real_mode();
}
