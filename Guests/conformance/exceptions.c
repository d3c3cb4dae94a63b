// SPDX-License-Identifier: Apache-2.0
// Exceptions: what raises which, with which error code and frame, how they nest, and what holds them back.
#include "guest.h"

extern u64 table[], directory[], pml4[];
static u8 *const window = (u8 *)0x100000; // pages whose entries tests change
#define ENTRY table[0x100]
static void set_page(u64 entry) {
  ENTRY = entry;
  asm volatile("invlpg (%0)" : : "r"(window) : "memory");
}

static void repair(struct frame *frame) {
  (void)frame;
  set_page(0x100000 | 7);
}

static void page_faults(void) {
  section("SDM 3, 4.7: page-fault error codes; 4.4.2, 4.5.4: reserved bits");
  void read(void) { asm volatile("mov 0x100000, %%al" : : : "rax"); }
  void write(void) { asm volatile("movb $1, 0x100000"); }
  void fetch(void) { asm volatile("mov $0x100000, %%eax; jmp *%%rax" : : : "rax"); }
  window[0] = 0xC3;
  set_page(0x100000);
  CHECK("read of an absent page", TRY("mov 0x100123, %%al", ) << 8 | last.error, PF << 8 | 0);
  CHECK("... its address", last.cr2, 0x100123);
  CHECK("write of an absent page", TRY("movb $1, 0x100000", ) << 8 | last.error, PF << 8 | 2);
  CHECK("read across into it", TRY("mov 0xFFFFE, %%eax", ) << 8 | last.error, PF << 8);
  CHECK("... its address is the page's", last.cr2, 0x100000);
  CHECK("read at level 3", user(read) << 8 | last.error, PF << 8 | 4);
  CHECK("write at level 3", user(write) << 8 | last.error, PF << 8 | 6);
  CHECK("fetch at level 3", user(fetch) << 8 | last.error, PF << 8 | 0x14);
  set_page(0x100000 | 3);
  CHECK("supervisor page read at level 3", user(read) << 8 | last.error, PF << 8 | 5);
  CHECK("supervisor page written at level 3", user(write) << 8 | last.error, PF << 8 | 7);
  CHECK("supervisor page fetched at level 3", user(fetch) << 8 | last.error, PF << 8 | 0x15);
  set_page(0x100000 | 5);
  CHECK("read-only page", user(read), NONE);
  CHECK("read-only page written at level 3", user(write) << 8 | last.error, PF << 8 | 7);
  CHECK("read-only page written at level 0", TRY("movb $0xC3, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  const word cr0 = READ("cr0");
  WRITE("cr0", cr0 & ~0x10000ul);
  CHECK("... without CR0.WP", TRY("movb $0xC3, 0x100000", ), NONE);
  WRITE("cr0", cr0);
  CHECK("... with it again", TRY("movb $0xC3, 0x100000", ) << 8 | last.error, PF << 8 | 3);
  set_page(0x100000 | 1ull << 63 | 7);
  CHECK("no-execute page read", user(read), NONE);
  CHECK("no-execute page fetched at level 3", user(fetch) << 8 | last.error, PF << 8 | 0x15);
  CHECK("no-execute page fetched at level 0", TRY("mov $0x100000, %%eax; call *%%rax", ) << 8 | last.error, PF << 8 | 0x11);
  // NXE off: the bit is reserved.
  const u64 efer = rdmsr(0xC0000080);
  wrmsr(0xC0000080, efer & ~0x800ull);
  CHECK("bit 63 without NXE", TRY("mov 0x100000, %%al", ) << 8 | last.error, PF << 8 | 9);
  wrmsr(0xC0000080, efer);
  set_page(0x100000 | 1ull << 51 | 7);
  CHECK("a physical address too wide", TRY("mov 0x100000, %%al", ) << 8 | last.error, PF << 8 | 9);
  CHECK("... written at level 3", user(write) << 8 | last.error, PF << 8 | 0xF);
  set_page(0x100000 | 7);
  const u64 large = directory[3];
  directory[3] = large | 1 << 13;
  asm volatile("invlpg 0x600000");
  CHECK("a reserved bit of a large page", TRY("mov 0x600000, %%al", ) << 8 | last.error, PF << 8 | 9);
  directory[3] = large;
  asm volatile("invlpg 0x600000");
  extern u64 pdpt[];
  const u64 giant = pdpt[3];
  pdpt[3] = 0xC0000000 | 0xE7 | 1 << 20;
  WRITE("cr3", READ("cr3"));
  CHECK("a reserved bit of a 1 GiB page", TRY("mov (%%rax), %%al", .a = 0xC0000000) << 8 | last.error, PF << 8 | 9);
  pdpt[3] = giant | 1ull << 51;
  WRITE("cr3", READ("cr3"));
  CHECK("an address too wide in a third-level entry", TRY("mov (%%rax), %%al", .a = 0xC0000000) << 8 | last.error, PF << 8 | 9);
  pdpt[3] = giant;
  const u64 second = directory[3];
  directory[3] = second | 1ull << 51;
  WRITE("cr3", READ("cr3"));
  CHECK("... in a large page", TRY("mov 0x600000, %%al", ) << 8 | last.error, PF << 8 | 9);
  directory[3] = second;
  WRITE("cr3", READ("cr3"));
  const u64 top = pml4[0];
  pml4[1] = top | 0x80;
  CHECK("bit 7 of a top entry", TRY("mov (%%rax), %%al", .a = 1ul << 39) << 8 | last.error, PF << 8 | 9);
  pml4[1] = 0;
  // Accessed and dirty (4.8).
  set_page(0x100000 | 7);
  CHECK("accessed by a read", (TRY("mov 0x100000, %%al", ), ENTRY & 0x60), 0x20);
  CHECK("dirty by a write", (TRY("movb $0xC3, 0x100000", ), ENTRY & 0x60), 0x60);
  // SMEP (4.6).
  u32 out[4];
  cpuid(7, 0, out);
  if (out[1] >> 7 & 1) {
    // Our own code is in user pages.
    for (int i = 2; i < 8; i++) directory[i] &= ~4ull;
    const word cr3 = READ("cr3"), cr4 = READ("cr4");
    WRITE("cr3", cr3);
    WRITE("cr4", (cr4 & ~0x80ul) | 1 << 20);
    CHECK("SMEP", TRY("mov $0x100000, %%eax; call *%%rax", ) << 8 | last.error, PF << 8 | 0x11);
    CHECK("SMEP and data", TRY("mov 0x100000, %%al", ), NONE);
    WRITE("cr4", cr4);
    CHECK("without SMEP", TRY("mov $0x100000, %%eax; call *%%rax", ), NONE);
    for (int i = 2; i < 8; i++) directory[i] |= 4;
    WRITE("cr3", cr3);
  }
  // What is not present is not cached: no INVLPG after making it present (4.10.2.3).
  set_page(0);
  TRY("mov 0x100000, %%al", );
  ENTRY = 0x100000 | 7;
  CHECK("made present", TRY("mov 0x100000, %%al", ), NONE);
}

static void double_faults(void) {
  section("SDM 3, 6.15: #DF, table 6-5");
  const int ist2 = 2;
  set_gate(DF, (word)stubs[DF], CODE64, 0x8E, ist2);
  set_gate(GP, (word)stubs[GP], CODE64, 0x0E, 0);
  CHECK("#NP delivering #GP", TRY("mov %%rax, (%%rax)", .a = 1ul << 63) << 8 | last.error, DF << 8);
  set_gate(GP, (word)stubs[GP], CODE64, 0x8E, 0);
  gdt[SPARE / 8] = 0x00AF1B000000FFFF; // absent code
  set_gate(PF, (word)stubs[PF], SPARE, 0x8E, 0);
  CHECK("#NP delivering #PF", TRY("mov (%%rax), %%al", .a = 1ul << 40) << 8 | last.error, DF << 8);
  CHECK("CR2 is the first fault's", last.cr2, 1ul << 40);
  set_gate(PF, (word)stubs[PF], CODE64, 0x8E, 0);
  set_gate(UD, (word)stubs[UD], SPARE, 0x8E, 0);
  CHECK("#NP delivering #UD is #NP", TRY("ud2", ) << 8 | last.error, NP << 8 | SPARE | 1);
  set_gate(UD, (word)stubs[UD], CODE64, 0x0E, 0);
  CHECK("an absent gate", TRY("ud2", ) << 8 | last.error, NP << 8 | UD << 3 | 3);
  set_gate(UD, (word)stubs[UD], DATA, 0x8E, 0);
  CHECK("a gate to data", TRY("ud2", ) << 8 | last.error, GP << 8 | DATA | 1);
  set_gate(UD, (word)stubs[UD], CODE32, 0x8E, 0);
  CHECK("a gate to 32-bit code", TRY("ud2", ) << 8 | last.error, GP << 8 | CODE32 | 1);
  set_gate(UD, (word)stubs[UD], 0, 0x8E, 0);
  CHECK("a gate to the null selector", TRY("ud2", ) << 8 | last.error, GP << 8 | 1);
  set_gate(UD, (word)stubs[UD], CODE64, 0x85, 0);
  CHECK("a gate of another type", TRY("ud2", ) << 8 | last.error, GP << 8 | UD << 3 | 3);
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 0);
  // A page fault while pushing the frame of a page fault.
  u64 *ist1 = (u64 *)(tss + 36);
  const u64 old = *ist1;
  set_gate(PF, (word)stubs[PF], CODE64, 0x8E, 1);
  *ist1 = 0x100800;
  set_page(0);
  CHECK("#PF delivering #PF", TRY("mov (%%rax), %%al", .a = 1ul << 40) << 8 | last.error, DF << 8);
  CHECK("CR2 is the last one's", last.cr2 >> 12, 0x100);
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 1);
  set_gate(PF, (word)stubs[PF], CODE64, 0x8E, 0);
  CHECK("#PF delivering #UD is #PF", TRY("ud2", ) << 8 | last.error, PF << 8 | 2);
  *ist1 = 1ul << 63 | 0x1000;
  CHECK("a stack that is not canonical", TRY("ud2", ) << 8 | last.error, SS << 8 | 1);
  *ist1 = old;
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 0);
  set_page(0x100000 | 7);
  // Beyond the limit of the table.
  struct __attribute__((packed)) { u16 limit; u64 base; } pointer = {0x81 * 16 + 15, (word)idt};
  asm volatile("lidt %0" : : "m"(pointer));
  CHECK("INT beyond the limit", TRY("int $0x90", ) << 16 | last.error, GP << 16 | 0x90 << 3 | 2);
}

static void frames(void) {
  section("SDM 3, 6.14: frames, stacks and the interrupt stack table in 64-bit mode");
  void ud(void) { asm volatile("ud2"); }
  last.sp = 0;
  TRY("mov %%rsp, %%rbx; and $-16, %%rsp; sub $8, %%rsp; mov %%rsp, %%rcx; ud2", );
  CHECK("the pushed stack pointer is not aligned", last.sp, after.c);
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 1);
  extern word saved_frame;
  TRY("ud2", );
  CHECK("the interrupt stack table", saved_frame, (word)other_stack_top - sizeof(struct frame));
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 0);
  CHECK("#UD at level 3", user(ud), UD);
  extern u8 ring0_stack_top[];
  CHECK("... comes on the stack of level 0", saved_frame, (word)ring0_stack_top - sizeof(struct frame));
  CHECK("... from level 3", last.cs, USER_CODE64);
  CHECK("RF is set in a fault's frame", last.flags >> 16 & 1, 1);
  TRY("stc; int3", );
  CHECK("not in a trap's", last.flags & (FLAG_RF | FLAG_CF), FLAG_CF);
  TRY("pushf; orl $0x4000, (%%rsp); popf; int $0x30", );
  CHECK("NT is pushed", last.flags & FLAG_NT, FLAG_NT);
  CHECK("NT is clear in the handler", flags() & FLAG_NT, 0);
  CHECK("IRET with NT", TRY("pushf; orl $0x4000, (%%rsp); popf; iretq", ), GP);
  // Selectors in error codes.
  CHECK("MOV DS beyond the table", TRY("mov %%eax, %%ds", .a = 0xFFF8) << 16 | last.error, GP << 16 | 0xFFF8);
  CHECK("MOV DS of the LDT", TRY("mov %%eax, %%ds", .a = 0x0C) << 16 | last.error, GP << 16 | 0x0C);
  CHECK("MOV DS absent", TRY("mov %%eax, %%ds", .a = ABSENT) << 16 | last.error, NP << 16 | ABSENT);
  CHECK("MOV SS absent", TRY("mov %%eax, %%ss", .a = ABSENT) << 16 | last.error, SS << 16 | ABSENT);
  CHECK("MOV SS of code", TRY("mov %%eax, %%ss", .a = CODE64) << 16 | last.error, GP << 16 | CODE64);
  CHECK("MOV SS of another level", TRY("mov %%eax, %%ss", .a = USER_DATA) << 16 | last.error, GP << 16 | (USER_DATA & ~3));
  CHECK("MOV SS null at level 0", TRY_THEN("mov %%eax, %%ss", "mov $0x18, %%eax; mov %%eax, %%ss", .a = 0), NONE);
  CHECK("MOV CS", TRY(".byte 0x8E, 0xC8", .a = CODE64), UD);
  CHECK("IRET to data", enter((word)&&here, DATA, 2, (word)other_stack_top, DATA) << 16 | last.error, GP << 16 | DATA);
  CHECK("IRET to an absent segment", enter((word)&&here, ABSENT, 2, (word)other_stack_top, DATA), GP);
  CHECK("IRET outwards with a bad SS", enter((word)&&here, USER_CODE64, 2, (word)other_stack_top, DATA) << 16 | last.error, GP << 16 | DATA);
here:
  CHECK("LTR of a busy task", TRY("ltr %%ax", .a = TASK) << 16 | last.error, GP << 16 | TASK);
  CHECK("LLDT of a task", TRY("lldt %%ax", .a = TASK) << 16 | last.error, GP << 16 | TASK);
  CHECK("far jump to data", TRY("push %%rax; push $0; lea (%%rsp), %%rbx; movl $0, (%%rsp); movw $0x18, 4(%%rsp); ljmp *(%%rbx)", ) << 16 | last.error, GP << 16 | DATA);
}

static void nothing(struct frame *frame) { (void)frame; }
static volatile unsigned traps, status, where[4], resumes;
static void trap(struct frame *frame) {
  const word dr6 = READ("dr6");
  if (traps < 4) where[traps] = frame->ip;
  if (traps < 16) resumes |= (frame->flags >> 16 & 1) << traps;
  traps++;
  status |= dr6 & 0xE00F;
  WRITE("dr6", 0xFFFF0FF0);
  if (traps > 20) frame->flags &= ~FLAG_TF;
}
static unsigned stepped(void) {
  const unsigned result = traps << 16 | status;
  traps = status = resumes = 0;
  return result;
}
// The TF that POPF loads traps after the instruction behind it; the one that POPF clears still traps after POPF.
#define STEP "pushf; orl $0x100, (%%rsp); popf\n"
#define STOP "pushf; andl $~0x100, (%%rsp); popf\n"

static void debugging(void) {
  section("SDM 3, 17.2 and 17.3: debug exceptions");
  handlers[DB] = trap;
  TRY(STEP "nop\n nop\n" STOP, );
  CHECK("single steps: NOP NOP PUSHF AND POPF", stepped(), 5 << 16 | 0x4000);
  TRY(STEP "mov %%ss, %%eax\n mov %%eax, %%ss\n nop\n" STOP, );
  CHECK("MOV SS holds its trap back", stepped(), 5 << 16 | 0x4000);
  handlers[BP] = nothing;
  TRY(STEP "mov %%ss, %%eax\n mov %%eax, %%ss\n int3\n" STOP, );
  CHECK("... and loses it (6.8.3): INT3 next", stepped(), 4 << 16 | 0x4000);
  TRY(STEP "mov %%ss, %%eax\n mov %%eax, %%ss\n .byte 0xF1\n" STOP, );
  CHECK("INT1 next", stepped(), 5 << 16 | 0x4000);
  handlers[BP] = 0;
  TRY(STEP "rep stosb\n" STOP, .D = (word)window + 0x1000, .c = 3);
  CHECK("... with RF after each but the last (17.3.1.1)", resumes, 3);
  CHECK("REP traps after each element", stepped(), 6 << 16 | 0x4000);
  TRY(STEP "int $0x30\n" STOP, );
  unsigned got = stepped();
  CHECK("INT does not trap", got >> 16, 0);
  TRY(STOP "nop", );
  stepped();
  TRY(STEP "cpuid\n" STOP, );
  CHECK("CPUID traps", stepped(), 4 << 16 | 0x4000);
  TRY(STEP "jmp 1f\n nop\n nop\n 1:" STOP, );
  CHECK("a branch traps at its target", stepped(), 4 << 16 | 0x4000);
  TRY(STEP "mov %%cr3, %%rax\n mov %%rax, %%cr3\n invlpg (%%rax)\n" STOP, );
  CHECK("system instructions trap", stepped(), 6 << 16 | 0x4000);
  TRY(STEP "movb $1, 0x100FFF\n movl $1, 0x100FFE\n" STOP, );
  CHECK("stores trap, also across pages", stepped(), 5 << 16 | 0x4000);
  TRY(".byte 0xF1", );
  CHECK("INT1 traps without BS", stepped(), 1 << 16);
  // SYSCALL with TF masked and not (SDM 2, SYSCALL).
  wrmsr(0xC0000081, (u64)CODE64 << 32);
  extern u8 target[];
  wrmsr(0xC0000082, (u64)target);
  wrmsr(0xC0000084, FLAG_TF);
  TRY("mov %%rsp, %%rbx\n" STEP "syscall\n target: mov %%rbx, %%rsp\n" STOP, );
  CHECK("SYSCALL that masks TF", stepped(), 0);
  extern u8 target2[];
  wrmsr(0xC0000082, (u64)target2);
  wrmsr(0xC0000084, 0);
  TRY(STEP "syscall\n target2: " STOP, );
  CHECK("SYSCALL that keeps TF", stepped(), 4 << 16 | 0x4000);

  // Breakpoints.
  static u64 data[4];
  WRITE("dr0", (word)&data[1]);
  WRITE("dr7", 0x400 | 2 | 1 << 16 | 3 << 18); // 4 bytes, written
  TRY("movl $1, (%%rax)", .a = (word)data);
  CHECK("a store below", stepped(), 0);
  TRY("movl $1, 7(%%rax)", .a = (word)data);
  CHECK("a store that touches the first byte", stepped(), 1 << 16 | 1);
  TRY("movb $1, 11(%%rax)", .a = (word)data);
  CHECK("a store to the last byte", stepped(), 1 << 16 | 1);
  TRY("movb $1, 12(%%rax)", .a = (word)data);
  CHECK("a store above", stepped(), 0);
  TRY("mov 8(%%rax), %%ecx", .a = (word)data);
  CHECK("a load", stepped(), 0);
  WRITE("dr7", 0x400 | 2 | 3 << 16 | 2 << 18); // 8 bytes, read or written
  TRY("mov 15(%%rax), %%cl", .a = (word)data);
  CHECK("a load with R/W", stepped(), 1 << 16 | 1);
  TRY("rep lodsb", .S = (word)data, .c = 10);
  CHECK("... with RF after the first alone", resumes, 1);
  CHECK("REP LODS traps at each hit", stepped(), 2 << 16 | 1);
  TRY("push 8(%%rax); pop %%rcx", .a = (word)data);
  CHECK("PUSH of it", stepped(), 1 << 16 | 1);
  WRITE("dr1", (word)&data[1]);
  WRITE("dr7", 0x400 | 2 | 8 | 3 << 16 | 2 << 18 | 3 << 20);
  TRY("mov 8(%%rax), %%cl", .a = (word)data);
  CHECK("two at once", stepped(), 1 << 16 | 3);
  WRITE("dr7", 0x400);
  TRY("mov 8(%%rax), %%cl", .a = (word)data);
  CHECK("disabled", stepped(), 0);
  // A breakpoint on a load of SS waits for the next instruction.
  data[1] = DATA;
  WRITE("dr7", 0x400 | 2 | 3 << 16 | 1 << 18);
  TRY("mov 8(%%rax), %%ss\n 1: nop\n 2: nop\n lea 2b(%%rip), %%rcx", .a = (word)data);
  CHECK("a breakpoint on MOV SS waits", where[0], after.c);
  CHECK("... and comes", stepped(), 1 << 16 | 1);
  // An instruction breakpoint is a fault, and RF in its frame lets it go on.
  extern u8 point[];
  WRITE("dr2", (word)point);
  WRITE("dr7", 0x400 | 0x20);
  handlers[DB] = 0;
  CHECK("an instruction breakpoint", TRY("nop\n point: inc %%rax; int $0x81", .a = 0), DB);
  CHECK("... before it", after.a << 8 | (last.ip == (word)point), 1);
  CHECK("... says so", READ("dr6") & 0xE00F, 4);
  CHECK("... without RF", last.flags >> 16 & 1, 0);
  WRITE("dr6", 0xFFFF0FF0);
  WRITE("dr7", 0x400);
  // RF lasts for one instruction (2.3).
  extern u8 resumed[];
  asm volatile("jmp 2f\n resumed: nop; nop; int $0x81\n 2:");
  enter((word)resumed, CODE64, 2 | FLAG_RF, (word)other_stack_top, DATA);
  CHECK("RF is over after an instruction", last.flags & FLAG_RF, 0);
  void fault(void) { asm volatile("mov 0x100000, %%al; int $0x81" : : : "rax"); }
  handlers[PF] = repair;
  set_page(0);
  user(fault);
  CHECK("... also after a fault", last.flags & FLAG_RF, 0);
  handlers[PF] = 0;
  WRITE("dr2", (word)point);
  WRITE("dr7", 0x400 | 0x20);
  enter((word)point, CODE64, 2 | FLAG_RF, (word)other_stack_top, DATA);
  CHECK("IRET with RF passes a breakpoint", READ("dr6") & 0xE00F, 0);
  WRITE("dr7", 0x400);
  // I/O breakpoints need CR4.DE.
  const word cr4 = READ("cr4");
  handlers[DB] = trap;
  WRITE("cr4", cr4 | 8);
  WRITE("dr3", 0xE1);
  WRITE("dr7", 0x400 | 0x80 | 2 << 28);
  outb(0xE1, 1);
  CHECK("an I/O breakpoint", stepped(), 1 << 16 | 8);
  outb(0xE2, 1);
  CHECK("another port", stepped(), 0);
  inl(0xE0);
  CHECK("a wide access that includes it", stepped(), 1 << 16 | 8);
  WRITE("dr7", 0x400);
  WRITE("cr4", cr4);
  handlers[DB] = 0;
}

static void instructions(void) {
  section("SDM 2, each instruction: #UD, #GP, #DE, #NM, #MF, #XM, #AC");
  void aligned(void) { asm volatile("pushf; orl $0x40000, (%%rsp); popf; mov 0x100001, %%eax" : : : "rax"); }
  CHECK("DIV by zero", TRY("div %%ecx", .a = 1), DE);
  CHECK("DIV that overflows", TRY("div %%ecx", .d = 1, .c = 1), DE);
  CHECK("IDIV of the least by -1", TRY("idiv %%rcx", .a = 1ul << 63, .d = -1, .c = -1), DE);
  CHECK("LOCK without memory", TRY(".byte 0xF0, 0x01, 0xC0", ), UD);
  CHECK("LOCK of a load", TRY(".byte 0xF0, 0x8B, 0x03", .b = (word)window), UD);
  CHECK("UD2", TRY("ud2", ), UD);
  CHECK("UD1", TRY("ud1 %%eax, %%eax", ), UD);
  CHECK("UD0", TRY(".byte 0x0F, 0xFF, 0xC0", ), UD);
  CHECK("PUSH ES in 64-bit mode", TRY(".byte 0x06", ), UD);
  CHECK("a prefix too many", TRY(".fill 14, 1, 0x66\n nop; nop", ), NONE);
  CHECK("16 bytes", TRY(".fill 15, 1, 0x66\n nop", ), GP);
  CHECK("MOVAPS misaligned", TRY("movaps 1(%%rax), %%xmm0", .a = (word)window), GP);
  CHECK("MOVAPS on a stack that is not canonical",
        TRY_THEN("xchg %%rbp, %%rax; movaps (%%rbp), %%xmm0", "xchg %%rbp, %%rax;", .a = 1ul << 63), SS);
  CHECK_NOT_TCG("... and misaligned",
        TRY_THEN("xchg %%rbp, %%rax; movaps 8(%%rbp), %%xmm0", "xchg %%rbp, %%rax;", .a = 1ul << 63), GP,
        "measured: Intel family 6 model 207");
  CHECK("FXSAVE misaligned", TRY("fxsave 8(%%rax)", .a = (word)window), GP);
  CHECK("CMPXCHG16B misaligned", TRY("cmpxchg16b 8(%%rsi)", .S = (word)window), GP);
  CHECK("LDMXCSR of a reserved bit", TRY("movl $0x10000, (%%rax); ldmxcsr (%%rax)", .a = (word)window), GP);
  const word cr0 = READ("cr0"), cr4 = READ("cr4");
  WRITE("cr0", cr0 | 8);
  CHECK("x87 with TS", TRY("fnop", ), NM);
  CHECK("SSE with TS", TRY("xorps %%xmm0, %%xmm0", ), NM);
  CHECK("FWAIT with TS and MP", TRY("fwait", ), NM);
  WRITE("cr0", (cr0 | 8) & ~2ul);
  CHECK("FWAIT with TS alone", TRY("fwait", ), NONE);
  WRITE("cr0", cr0 | 4);
  CHECK("x87 with EM", TRY("fnop", ), NM);
  CHECK("SSE with EM", TRY("xorps %%xmm0, %%xmm0", ), UD);
  CHECK("MMX with EM", TRY("pxor %%mm0, %%mm0", ), UD);
  WRITE("cr0", cr0);
  WRITE("cr4", cr4 & ~0x200ul);
  CHECK("SSE without OSFXSR", TRY("xorps %%xmm0, %%xmm0", ), UD);
  WRITE("cr4", cr4);
  CHECK("x87 exception", TRY("fninit; movw $0x37B, (%%rax); fldcw (%%rax); fld1; fldz; fdivrp; fwait", .a = (word)window), MF);
  static const u16 unmasked = 0x37B;
#define PENDING(code) \
  TRY("fninit; fldcw (%%rbx); fld1; fldz; fdivrp; " code, .a = (word)window, .b = (word)&unmasked)
#define PENDING_FIRST(code) CHECK_NOT_TCG("... before a page fault: " code, PENDING(code " (%%rax)"), MF, "SDM 1, 8.6")
  set_page(0x100000);
  PENDING_FIRST("fdivrs");
  PENDING_FIRST("fstps");
  PENDING_FIRST("fstpl");
  PENDING_FIRST("fldt");
  PENDING_FIRST("fildl");
  PENDING_FIRST("fldcw");
  PENDING_FIRST("fldenv");
  PENDING_FIRST("frstor");
  CHECK_NOT_TCG("... MMX", PENDING("movq (%%rax), %%mm0"), MF, "SDM 1, 8.6");
  CHECK("... not for FNSTCW", PENDING("fnstcw (%%rax)"), PF);
  CHECK("... not for FNSTSW", PENDING("fnstsw (%%rax)"), PF);
  CHECK("... not for FNSTENV", PENDING("fnstenv (%%rax)"), PF);
  CHECK("... not for FNSAVE", PENDING("fnsave (%%rax)"), PF);
  CHECK("... not for FXRSTOR", PENDING("fxrstor (%%rax)"), PF);
  CHECK("... not for a load of a general register", PENDING("mov (%%rax), %%ecx"), PF);
  set_page(0x100000 | 7);
  asm volatile("fninit");
  asm volatile("movl $0x1D80, %0; ldmxcsr %0" : "=m"(*(u32 *)window));
  CHECK("SSE exception", TRY("xorps %%xmm0, %%xmm0; movl $0x3F800000, (%%rax); movss (%%rax), %%xmm1; divss %%xmm0, %%xmm1", .a = (word)window), XM);
  WRITE("cr4", cr4 & ~0x400ul);
  CHECK("... without OSXMMEXCPT", TRY("divss %%xmm0, %%xmm1", ), UD);
  WRITE("cr4", cr4);
  asm volatile("movl $0x1F80, %0; ldmxcsr %0" : "=m"(*(u32 *)window));
  WRITE("cr0", cr0 | 0x40000);
  CHECK("misaligned at level 3 with AM and AC", user(aligned) << 8 | last.error, AC << 8);
  WRITE("cr0", cr0);
  CHECK("... without AM", user(aligned), NONE);
  void hlt(void) { asm volatile("int3"); }
  CHECK("INT3 at level 3", user(hlt), BP);
}

void test(void) {
  page_faults();
  frames();
  debugging();
  instructions();
  double_faults();
}
