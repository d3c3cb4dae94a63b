// SPDX-License-Identifier: Apache-2.0
// Addresses at the edges of what an encoding holds: displacements near 2 GiB beside registers that move, RIP-relative
// operands and branches that reach across 2 GiB, bases of FS and GS that no sane program has, accesses that do not
// happen, branches to where no address is canonical.
#include "guest.h"

extern u64 pml4[], directory[];
static u8 *const data = (u8 *)0x300000;

static void displacements(void) {
  section("SDM 1, 3.7.5: displacements are sign-extended, sums of 64 bits");
  for (int i = 0; i < 512; i++) ((volatile u64 *)data)[i] = 0x1000 + i;
  const word low = (word)data + 0x800 + 0x80000000, high = (word)data + 0x800 - 0x7FFFFFF8;
  // 0x1100 is what stands at data + 0x800.
  CHECK("the least displacement", (TRY("mov -0x80000000(%%rbx), %%rax", .b = low), after.a), 0x1100);
  CHECK("... and after SUB",
        (TRY("mov -0x80000000(%%rbx), %%rax; sub $8, %%rbx; mov -0x80000000(%%rbx), %%rcx", .b = low), after.c),
        0x10FF);
  CHECK("... after ADD",
        (TRY("mov -0x80000000(%%rsi), %%rax; add $16, %%rsi; mov -0x80000000(%%rsi), %%rcx", .S = low), after.c),
        0x1102);
  CHECK("... after LEA, a store",
        (TRY("mov -0x80000000(%%rdi), %%rax; lea -24(%%rdi), %%rdi; mov %%rax, -0x80000000(%%rdi);"
             "mov -0x7FFFFFE8(%%rdi), %%rcx", .D = low), after.c), 0x1100);
  CHECK("... what it stored", ((volatile u64 *)data)[0xFD], 0x1100);
  CHECK("... after DEC, eight times",
        (TRY("mov -0x7FFFFFFF(%%rbx), %%rax; dec %%rbx; dec %%rbx; dec %%rbx; dec %%rbx; dec %%rbx; dec %%rbx;"
             "dec %%rbx; dec %%rbx; mov -0x7FFFFFFF(%%rbx), %%rcx", .b = low - 1), after.c), 0x10FF);
  CHECK("the greatest, then more",
        (TRY("mov 0x7FFFFFF8(%%rbx), %%rax; add $8, %%rbx; mov 0x7FFFFFF8(%%rbx), %%rcx", .b = high), after.c), 0x1101);
  CHECK("... an index",
        (TRY("mov 0x7FFFFFF8(%%rbx,%%rsi,8), %%rax; sub $8, %%rbx; mov 0x7FFFFFF8(%%rbx,%%rsi,8), %%rcx",
             .b = high, .S = 1), after.c), 0x1100);
  CHECK("... a byte in AH",
        (TRY("mov $0x5A00, %%eax; mov %%ah, 0x7FFFFFF8(%%rbx); sub $1, %%rbx; mov 0x7FFFFFF8(%%rbx), %%cx",
             .b = high), after.c & 0xFFFF), 0x5A00);
  CHECK("the first canonical address", TRY("mov -0x80000000(%%rbx), %%rax", .b = 0xFFFF800080000000), PF);
  CHECK("... below it", (TRY("mov -0x80000000(%%rbx), %%rcx", .b = 0xFFFF80007FFFFFF8), last.vector), GP);
}

static void relative(void) {
  section("SDM 1, 3.5.1 and SDM 2, JMP: RIP plus 32 bits, sign-extended");
  // Behind 2 GiB the same memory once more.
  u8 *const code = (u8 *)0x600F00;
  directory[0x80600000 >> 21] = directory[0x600000 >> 21];
  WRITE("cr3", READ("cr3"));
  const word far = (word)code + 7 + 0x7FFFFF80;
  volatile u64 *const word_there = (u64 *)(far - 0x80000000);
  *word_there = 0x1234567812345678;
  static const u8 load[] = {0x48, 0x8B, 0x05, 0x80, 0xFF, 0xFF, 0x7F, 0xC3};
  static const u8 lea[] = {0x48, 0x8D, 0x05, 0x80, 0xFF, 0xFF, 0x7F, 0xC3};
  for (int i = 0; i < 8; i++) code[i] = load[i];
  CHECK("a load", (TRY("call *%%rdi", .D = (word)code), after.a), 0x1234567812345678);
  for (int i = 0; i < 8; i++) code[i] = lea[i];
  CHECK("LEA", (TRY("call *%%rdi", .D = (word)code), after.a), far);
  *word_there = 0;
  static const u8 branches[][9] = {
      {0xE9, 0x80, 0xFF, 0xFF, 0x7F, 0xCC},
      {0x39, 0xC0, 0x0F, 0x84, 0x80, 0xFF, 0xFF, 0x7F, 0xCC},
      {0xE8, 0x80, 0xFF, 0xFF, 0x7F, 0xC3},
  };
  static const u8 lengths[] = {5, 8, 5};
  static const char *const names[] = {"JMP", "Jcc", "CALL"};
  for (int n = 0; n < 3; n++) {
    u8 *there = code + lengths[n] + 0x7FFFFF80 - 0x80000000;
    for (int i = 0; i < 9; i++) code[i] = branches[n][i];
    there[0] = 0xB0, there[1] = 0x77 + n, there[2] = 0xC3; // MOV AL; RET
    CHECK(names[n], (TRY("call *%%rdi", .D = (word)code), after.a & 0xFF), 0x77 + n);
    there[0] = there[1] = there[2] = 0;
  }
}

static void bases(void) {
  section("SDM 1, 3.4.4: any canonical base of FS and GS");
  *(volatile u64 *)0 = 0x0807060504030201, *(volatile u64 *)8 = 0x100F0E0D0C0B0A09;
  const word old = rdmsr(0xC0000101);
  static const struct { word base, value; } cases[] = {{1, 0x0908070605040302}, {0, 0x0807060504030201}, {3, 0x0B0A090807060504}};
  for (unsigned i = 0; i < 3; i++) {
    wrmsr(0xC0000101, cases[i].base);
    WRITE("cr3", READ("cr3"));
    CHECK("GS:0", (TRY("mov %%gs:0, %%rax", ), after.a), cases[i].value);
    CHECK("... again", (TRY("mov %%gs:0, %%rax", ), after.a), cases[i].value);
  }
  for (int distance = 64; distance <= 0x10000; distance *= 4) {
    wrmsr(0xC0000101, 1 - (word)distance);
    WRITE("cr3", READ("cr3"));
    CHECK("1 - 64n and 64n", (TRY("mov %%gs:(%%rbx), %%rax", .b = distance), after.a), 0x0908070605040302);
  }
  wrmsr(0xC0000101, 1 - 64);
  WRITE("cr3", READ("cr3"));
  CHECK("1 - 64 and a displacement of 64", (TRY("mov %%gs:64, %%rax", ), after.a), 0x0908070605040302);
  wrmsr(0xC0000101, old);
}

// At level 3 with a stack pointer that is not canonical: the first access does not happen, or faults.
#define AT_LEVEL3(name, code)                                                                                          \
  extern void name(void);                                                                                              \
  asm(".globl " #name "\n.balign 64\n" #name ": fninit; fldcw control_" #name "; movabs $0x8000000000000010, %rsp; jmp 1f\n"    \
      ".balign 64\n1: " code "\n int $0x81\ncontrol_" #name ": .word 0x37e\n");
AT_LEVEL3(x87_store, "fstps (%rsp); mov %rax, 8(%rsp)")
AT_LEVEL3(x87_integer, "fistpl 4(%rsp); mov 12(%rsp), %rax")
AT_LEVEL3(pushes, "push %rax; push %rbx; pop %rcx")
AT_LEVEL3(high_byte, "mov %ah, (%rsp); mov 8(%rsp), %rdi")

static void absent(void) {
  section("SDM 3, 6.15, interrupt 12: stack addresses that are not canonical; SDM 1, 8.5: x87 stores with unmasked exceptions");
  void (*const functions[])(void) = {x87_store, x87_integer, pushes, high_byte};
  static const char *const names[] = {"FSTP of nothing, then a store", "FISTP of nothing, then a load", "PUSH, PUSH", "a byte of AH"};
  for (unsigned i = 0; i < 4; i++) {
    WRITE("cr3", READ("cr3"));
    CHECK(names[i], enter((word)functions[i], USER_CODE64, 2, (word)user_stack_top, USER_DATA), SS);
  }
  asm volatile("fninit");
}

// At level 3, with the stack it is given.
extern void call_computed(void);
asm(".globl call_computed\n.balign 64\ncall_computed: movabs $0x800000000000, %rcx; call *%rcx\n int $0x81\n");

// Whether the last exception was #GP of the instruction at `ip` with RSP as it was before it.
static word refused(word ip, word sp) { return last.vector == GP && last.error == 0 && last.ip == ip && last.sp == sp; }

static void transfers(void) {
  section("SDM 2, CALL, JMP, Jcc, RET: #GP of the branch, with nothing pushed or popped");
  static const word targets[] = {0x800000000000, 1ul << 63, 0xFFFF7FFFFFFFFFF0, 0x8000000000000010};
  for (unsigned i = 0; i < 4; i++) {
    // Twice: the second time a look-up has failed before.
    for (int n = 0; n < 2; n++) {
      TRY("lea 1f(%%rip), %%rax; push %%rcx; mov %%rsp, %%rbx; 1: ret", .c = targets[i]);
      CHECK("RET", refused(after.a, after.b), 1);
      TRY("lea 1f(%%rip), %%rax; push %%rcx; push %%rcx; mov %%rsp, %%rbx; 1: ret $8", .c = targets[i]);
      CHECK("RET 8", refused(after.a, after.b), 1);
      TRY("lea 1f(%%rip), %%rax; mov %%rsp, %%rbx; push %%rcx; pop %%rdx; 1: jmp *%%rcx", .c = targets[i]);
      CHECK("JMP", refused(after.a, after.b), 1);
      TRY("lea 1f(%%rip), %%rax; mov %%rsp, %%rbx; 1: call *%%rcx", .c = targets[i]);
      CHECK("CALL", refused(after.a, after.b), 1);
      TRY("lea 1f(%%rip), %%rax; push %%rcx; mov %%rsp, %%rbx; push %%rcx; pop %%rdx; 1: call *(%%rsp)", .c = targets[i]);
      CHECK("CALL of memory, behind PUSH and POP", refused(after.a, after.b), 1);
    }
  }
  volatile u64 *const top = (u64 *)user_stack_top;
  for (int n = 0; n < 2; n++) {
    top[-1] = 77;
    CHECK("CALL at level 3", enter((word)call_computed, USER_CODE64, 2, (word)user_stack_top, USER_DATA), GP);
    CHECK("... has stored nothing", top[-1] == 77 && last.sp == (word)top, 1);
    CHECK("... nor looked for its stack", enter((word)call_computed, USER_CODE64, 2, 0x4000000000, USER_DATA), GP);
  }
  // The last page below the hole.
  static u64 q[512] __attribute__((aligned(4096))), d[512] __attribute__((aligned(4096))), t[512] __attribute__((aligned(4096)));
  pml4[255] = (word)q | 7, q[511] = (word)d | 7, d[511] = (word)t | 7, t[511] = 0x700067;
  WRITE("cr3", READ("cr3"));
  u8 *const page = (u8 *)0x7FFFFFFFF000;
  static const struct { const char *name; u16 at, ip; u8 code[10]; } cases[] = {
      {"JMP rel8", 0xFF0, 0xFF0, {0xEB, 0x10}},
      {"JMP rel32", 0xF00, 0xF00, {0xE9, 0x00, 0x10, 0x00, 0x00}},
      {"JE", 0xFF0, 0xFF2, {0x39, 0xC0, 0x74, 0x20}},
      {"JE rel32", 0xFE0, 0xFE2, {0x39, 0xC0, 0x0F, 0x84, 0x20, 0x00, 0x00, 0x01}},
      {"CALL", 0xFE0, 0xFE0, {0xE8, 0x20, 0x00, 0x00, 0x00}},
      {"CALL behind PUSH and POP", 0xFE0, 0xFE2, {0x51, 0x59, 0xE8, 0x20, 0x00, 0x00, 0x00}},
      {"LOOP", 0xFF0, 0xFF0, {0xE2, 0x20}},
      {"CALL that ends with the page", 0xFFB, 0xFFB, {0xE8, 0x20, 0x00, 0x00, 0x00}},
  };
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int n = 0; n < 10; n++) page[cases[i].at + n < 4096 ? cases[i].at + n : 0] = cases[i].code[n];
    for (int n = 0; n < 2; n++) {
      TRY("mov %%rsp, %%rbx; jmp *%%rdi", .D = (word)page + cases[i].at, .c = 5);
      CHECK(cases[i].name, refused((word)page + cases[i].ip, after.b), 1);
    }
  }
  // A call whose return address is the first that is not canonical: RET finds that.
  static const u8 call[] = {0xE8, 0xE0, 0xFF, 0xFF, 0xFF};
  for (int n = 0; n < 5; n++) page[0xFFB + n] = call[n];
  page[0xFE0] = 0xC3;
  for (int n = 0; n < 2; n++) {
    TRY("lea -8(%%rsp), %%rbx; jmp *%%rdi", .D = (word)page + 0xFFB);
    CHECK("RET to behind the last page", refused((word)page + 0xFE0, after.b), 1);
  }
  for (int n = 0; n < 5; n++) page[0xFFB + n] = 0x90;
  TRY("jmp *%%rdi", .D = (word)page + 0xFFB);
  CHECK("running into the hole", last.vector == GP && last.ip == 0x800000000000, 1);
  // A call that ends with a page, and comes back.
  u8 *const low = (u8 *)0x700000;
  static const u8 code[] = {0x53, 0xE8, 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0xC0, 0x5B, 0xC3}; // PUSH RBX; CALL; INC EAX; POP RBX; RET
  for (int n = 0; n < 10; n++) low[0xFFA + n] = code[n];
  low[0xF00] = 0xB8, low[0xF01] = 41, low[0xF02] = low[0xF03] = low[0xF04] = 0, low[0xF05] = 0xC3; // MOV EAX, 41; RET
  for (int n = 0; n < 3; n++)
    CHECK("CALL that ends with the page, and RET", (TRY("call *%%rdi", .D = 0x700FFA), after.a), 42);
}

void test(void) {
  displacements();
  relative();
  bases();
  absent();
  transfers();
}
