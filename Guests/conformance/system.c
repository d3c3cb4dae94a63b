// SPDX-License-Identifier: Apache-2.0
// System calls and returns, segments of 64-bit mode, compatibility mode, and the state-saving instructions.
#include "guest.h"

static volatile word seen[8];

static void system_calls(void) {
  section("SDM 2: SYSCALL, SYSRET; 3, 5.8.8");
  extern u8 entry[], back64[], back32[];
  asm volatile("jmp 2f\n entry: mov %%rcx, %0; mov %%r11, %1; mov %%cs, %2; mov %%ss, %3; pushf; pop %4; jmp *%%rdx\n 2:"
               : "=m"(seen[0]), "=m"(seen[1]), "=m"(seen[2]), "=m"(seen[3]), "=m"(seen[4]));
  // STAR: SYSCALL to CODE64 and DATA, SYSRET to 0x20 + 16 = USER_CODE64's and 0x20 + 8 = USER_DATA's descriptors.
  wrmsr(0xC0000081, (u64)0x20 << 48 | (u64)CODE64 << 32);
  wrmsr(0xC0000082, (word)entry);
  wrmsr(0xC0000084, FLAG_DF | FLAG_CF);
  TRY("stc; std; lea 1f(%%rip), %%rdx; lea 3f(%%rip), %%rbx; syscall; 3: ud2; 1: cld", );
  CHECK("RCX is the next instruction", seen[0], after.b);
  CHECK("R11 holds the flags", seen[1] & (FLAG_CF | FLAG_DF), FLAG_CF | FLAG_DF);
  CHECK("SFMASK clears flags", seen[4] & (FLAG_CF | FLAG_DF), 0);
  CHECK("CS", seen[2] & 0xFFFF, CODE64);
  CHECK("SS is CS + 8", seen[3] & 0xFFFF, CODE64 + 8);
  wrmsr(0xC0000084, 0);
  asm volatile("jmp 2f\n back64: mov %%cs, %0; mov %%ss, %1; pushf; pop %2; int $0x81\n 2:" : "=m"(seen[5]), "=m"(seen[6]), "=m"(seen[7]));
  CHECK("SYSRET to 64-bit code", TRY("mov %%rsp, %%rbx; mov $user_stack_top, %%rsp; mov $0x13A83, %%r11d; sysretq", .c = (word)back64), NONE);
  CHECK("... its CS", seen[5] & 0xFFFF, USER_CODE64);
  CHECK("... its SS", seen[6] & 0xFFFF, USER_DATA);
  CHECK("... flags without RF", seen[7] & 0x13A83, 0x3A83 & 0x13A83);
  asm volatile("jmp 2f\n .code32\n back32: int $0x81\n .code64\n 2:");
  CHECK("SYSRET to 32-bit code", TRY("mov $2, %%r11d; sysretl", .c = (word)back32), NONE);
  CHECK("... its CS", last.cs, USER_CODE32);
  void user_sysret(void) { asm volatile("sysretq"); }
  CHECK("SYSRET at level 3", user(user_sysret), GP);
  // SYSENTER and SYSEXIT work in 64-bit mode on Intel's processors alone.
  wrmsr(0x174, 0);
  CHECK_NOT_TCG("SYSENTER with a null CS", TRY("sysenter", ), GP, "SDM 2, SYSENTER");
  CHECK("SYSEXIT with a null CS", TRY("sysexitl", ), GP);
}

static void segments(void) {
  section("SDM 3, 3.4.4 and 5.2.1: segments in 64-bit mode");
  CHECK("limits are not checked", (gdt[SPARE / 8] = 0x0000930000000000, TRY("mov %%eax, %%es; mov %%es:0x100000, %%ecx", .a = SPARE)), NONE);
  CHECK("read-only data can be written", (gdt[SPARE / 8] = 0x00CF91000000FFFF, TRY("mov %%eax, %%es; mov %%ecx, %%es:0x100000", .a = SPARE)), NONE);
  asm volatile("mov %0, %%es" : : "r"(DATA));
  // FS and GS have bases of 32 bits from descriptors and of 64 from registers.
  gdt[SPARE / 8] = 0x1200930000000000 | (u64)0x345678 << 16;
  TRY("mov %%eax, %%fs", .a = SPARE);
  CHECK("FS takes its base from the descriptor", rdmsr(0xC0000100), 0x12345678);
  wrmsr(0xC0000100, 0xFFFF800012345678);
  CHECK("... or from the register", rdmsr(0xC0000100), 0xFFFF800012345678);
  CHECK("... its selector stays", ({ u16 fs; asm("mov %%fs, %0" : "=r"(fs)); fs; }), SPARE);
  wrmsr(0xC0000100, (word)seen);
  seen[1] = 0x5A5A;
  CHECK("an access by FS", TRY("mov %%fs:8, %%rax", ) << 16 | after.a, NONE << 16 | 0x5A5A);
  wrmsr(0xC0000101, 1);
  wrmsr(0xC0000102, 2);
  TRY("swapgs", );
  CHECK("SWAPGS", rdmsr(0xC0000101) << 4 | rdmsr(0xC0000102), 0x21);
  CHECK("a 64-bit FS.base adds", (wrmsr(0xC0000100, -8ull), TRY("mov %%fs:(%%rbx), %%rax", .b = (word)&seen[2]), after.a), 0x5A5A);
  wrmsr(0xC0000100, 0);
  CHECK("DS, ES and SS have none", TRY("mov %%ss, %%eax; mov %%eax, %%ds; mov %%ds:(%%rbx), %%rax", .b = (word)&seen[1]) << 16 | after.a, NONE << 16 | 0x5A5A);
  CHECK("MOV SS null at level 3", ({ void null(void) { asm volatile("xor %%eax, %%eax; mov %%eax, %%ss" : : : "rax"); } user(null); }), GP);
  CHECK("a data segment's level", TRY("mov %%eax, %%ds", .a = USER_DATA), NONE);
  void inner(void) { asm volatile("mov $0x18, %%eax; mov %%eax, %%ds" : : : "rax"); }
  CHECK("... at level 3", user(inner) << 16 | last.error, GP << 16 | DATA);
  asm volatile("mov %0, %%ds" : : "r"(DATA));
  CHECK("LAR of a 16-byte task", (TRY("lar %%ax, %%ebx", .a = TASK), after.b), 0x8B00);
  CHECK("LSL of it", (TRY("lsl %%ax, %%ebx", .a = TASK), after.b), 0x67);
  gdt[SPARE / 8] = 0x00008C0000100000; // a call gate
  gdt[SPARE / 8 + 1] = 0;
  CHECK("LAR of a call gate", (TRY("lar %%ax, %%ebx; setz %%cl", .a = SPARE, .b = 0), after.c & 1), 1);
  CHECK("LSL of a call gate", (TRY("lsl %%ax, %%ebx; setz %%cl", .a = SPARE, .b = 0), after.c & 1), 0);
  CHECK("a call gate to 32-bit code", (gdt[SPARE / 8] = 0x00008C0000080000, TRY("push $0x60; push $0; fs lcall *(%%rsp)", )), GP);
}

static void compatibility(void) {
  section("SDM 1, 3.1.1; 2: compatibility mode");
  extern u8 c32[], c32_push[], c32_inc[], c32_far[];
  asm volatile("jmp 2f\n .code32\n"
               "c32: mov $0x2B, %%ecx; mov %%ecx, %%ds; mov $0xFFFFFFFF, %%eax; inc %%eax; mov %%eax, %c0; int $0x81\n"
               "c32_push: push %%es; pop %%es; pusha; popa; int $0x81\n"
               "c32_inc: .byte 0x40, 0x48; int $0x81\n"
               "c32_far: ljmp $0x33, $1f\n .code64\n 1: mov %%cs, %%eax; mov %%eax, %c0; int $0x81\n"
               ".code64\n 2:" : : "i"(0x100000));
  *(volatile u32 *)0x100000 = 7;
  CHECK("32-bit code at level 3", enter((word)c32, USER_CODE32, 2, (word)user_stack_top, USER_DATA), NONE);
  CHECK("... wrote", *(volatile u32 *)0x100000, 0);
  CHECK("... at level", last.cs, USER_CODE32);
  CHECK("PUSH ES, PUSHA", enter((word)c32_push, USER_CODE32, 2, (word)user_stack_top, USER_DATA), NONE);
  CHECK("40 is INC", enter((word)c32_inc, USER_CODE32, 2, (word)user_stack_top, USER_DATA), NONE);
  CHECK("a far jump to 64-bit code", enter((word)c32_far, USER_CODE32, 2, (word)user_stack_top, USER_DATA), NONE);
  CHECK("... arrived", *(volatile u32 *)0x100000, USER_CODE64);
  CHECK("beyond the limit", (gdt[SPARE / 8] = 0x0040FA000000FFFF, enter(0x10000, SPARE | 3, 2, (word)user_stack_top, USER_DATA)), GP);
  CHECK("L with D", (gdt[SPARE / 8] = 0x00EFFB000000FFFF, enter((word)c32, SPARE | 3, 2, (word)user_stack_top, USER_DATA) << 16 | last.error), GP << 16 | SPARE);
}

static void state(void) {
  section("SDM 1, 13.7 and 13.8: XSAVE and XRSTOR");
  u32 out[4];
  cpuid(1, 0, out);
  if (!(out[2] >> 26 & 1)) return;
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 | 1 << 18);
  cpuid(0xD, 0, out);
  const u32 supported = out[0] & 7;
  CHECK("x87 and SSE are there", supported & 3, 3);
  asm volatile("xsetbv" : : "a"(3), "c"(0), "d"(0));
  cpuid(0xD, 0, out);
  CHECK("the size for them", out[1], 576);
  static u8 area[1024] __attribute__((aligned(64)));
  static const u8 ones[32] = {[0 ... 31] = 0xFF};
  asm volatile("fninit; movups %0, %%xmm1" : : "m"(ones));
  TRY("xsave (%%rbx)", .b = (word)area, .a = 3);
  CHECK("XSTATE_BV has SSE", *(u64 *)(area + 512) >> 1 & 1, 1);
  CHECK("XCOMP_BV is zero", *(u64 *)(area + 520), 0);
  CHECK("XMM1 is in it", *(u64 *)(area + 176), -1ull);
  // Components that are not asked for stay.
  for (int i = 0; i < 576; i++) area[i] = 0;
  TRY("xsave (%%rbx)", .b = (word)area, .a = 1);
  CHECK("only x87: no XMM1", *(u64 *)(area + 176), 0);
  CHECK("... FCW", *(u16 *)area, 0x37F);
  // A clear bit of XSTATE_BV is the initial state.
  for (int i = 0; i < 576; i++) area[i] = 0;
  *(u32 *)(area + 24) = 0x1F80;
  TRY("xrstor (%%rbx)", .b = (word)area, .a = 3);
  static u64 value[4];
  asm volatile("movups %%xmm1, %0" : "=m"(value));
  CHECK("XRSTOR of nothing clears XMM1", value[0] | value[1], 0);
  if (supported & 4) {
    CHECK("XCR0 with AVX", TRY("xsetbv", .a = 7), NONE);
    cpuid(0xD, 0, out);
    CHECK("the size with it", out[1], 832);
    CHECK("AVX", TRY("vmovups (%%rax), %%ymm1", .a = (word)ones), NONE);
    TRY("xsave (%%rbx)", .b = (word)area, .a = 7);
    CHECK("... in XSTATE_BV", *(u64 *)(area + 512) >> 2 & 1, 1);
    CHECK("... its upper half", *(u64 *)(area + 576 + 16), -1ull);
    *(u64 *)(area + 512) &= ~4ull;
    TRY("xrstor (%%rbx)", .b = (word)area, .a = 7);
    TRY("vmovups %%ymm1, (%%rax)", .a = (word)value);
    CHECK("XRSTOR without its bit", value[0] ^ value[2], -1ull);
    TRY("vmovups (%%rax), %%ymm1; xorps %%xmm1, %%xmm1; vmovups %%ymm1, (%%rbx)", .a = (word)ones, .b = (word)value);
    CHECK("SSE leaves upper halves alone", value[2], -1ull);
    TRY("vmovups (%%rax), %%ymm1; vxorps %%xmm1, %%xmm1, %%xmm1; vmovups %%ymm1, (%%rbx)", .a = (word)ones, .b = (word)value);
    CHECK("VEX of 128 bits clears them", value[2], 0);
    asm volatile("xsetbv" : : "a"(3), "c"(0), "d"(0));
    CHECK("AVX without its bit", TRY("vmovups (%%rax), %%ymm1", .a = (word)ones), UD);
    asm volatile("xsetbv" : : "a"(7), "c"(0), "d"(0));
    const word cr0 = READ("cr0");
    WRITE("cr0", cr0 | 8);
    CHECK("AVX with TS", TRY("vmovups (%%rax), %%ymm1", .a = (word)ones), NM);
    CHECK("XSAVE with TS", TRY("xsave (%%rbx)", .b = (word)area, .a = 7), NM);
    WRITE("cr0", cr0);
  }
  WRITE("cr4", cr4);
  CHECK("XSAVE without OSXSAVE", TRY("xsave (%%rbx)", .b = (word)area, .a = 3), UD);
  CHECK("FXSAVE", TRY("fxsave (%%rbx)", .b = (word)area), NONE);
}

static void odd_ends(void) {
  section("SDM 2: encodings");
  CHECK("66 does not narrow a near branch", TRY(".byte 0x66; jmp 1f; 1:", ), NONE);
  CHECK("PUSH of 16 bits", TRY("mov %%rsp, %%rax; pushw $1; sub %%rsp, %%rax; add $2, %%rsp", ) << 8 | after.a, NONE << 8 | 2);
  CHECK("67 wraps an address", TRY("movl $7, (%%rbx); mov 8(%%eax), %%ecx", .b = (word)&seen[0], .a = ((word)&seen[0] - 8) | 0xABCD00000000) << 8 | after.c, NONE << 8 | 7);
  CHECK("BSF of zero keeps its target", (TRY("bsf %%rbx, %%rax", .a = 0x1122334455667788, .b = 0), after.a), 0x1122334455667788);
  CHECK("MOV r32 clears the upper half", (TRY("mov %%ebx, %%eax", .a = -1, .b = 1), after.a), 1);
  CHECK("CMPXCHG8B of a register", TRY(".byte 0x0F, 0xC7, 0xC8", ), UD);
  CHECK("LOCK CMPXCHG8B of a register", TRY(".byte 0xF0, 0x0F, 0xC7, 0xC8", ), UD);
  CHECK("POP CS", TRY(".byte 0x0F, 0x04", ), UD);
  CHECK("LSS of a register", TRY(".byte 0x0F, 0xB2, 0xC0", ), UD);
  CHECK("LES in 64-bit mode", TRY(".byte 0xC4, 0x00, 0x00", ), UD);
  CHECK("far CALL direct", TRY(".byte 0x9A, 0, 0, 0, 0, 8, 0", ), UD);
  CHECK("AAA in 64-bit mode", TRY(".byte 0x37", ), UD);
  CHECK("INTO in 64-bit mode", TRY(".byte 0xCE", ), UD);
  CHECK("ENTER deep", TRY("mov %%rsp, %%rax; push %%rbp; mov %%rsp, %%rbp; enter $16, $3; mov %%rax, %%rcx; sub %%rsp, %%rcx; leave; mov %%rax, %%rsp; mov -8(%%rsp), %%rbp", ) << 8 | after.c, NONE << 8 | (8 + 8 + 24 + 16));
  // What another CPU model offers, TCG's does.
  CHECK_NOT_TCG("VMCALL of a number unknown", TRY("vmcall", .a = 9999) << 16 | (after.a & 0xFFFF), NONE << 16 | 0xFC18, "KVM");
  CHECK_NOT_TCG("MONITOR is not offered", TRY("monitor", ), UD, "SDM 2, MONITOR");
  CHECK_NOT_TCG("RDPID is not offered", TRY("rdpid %%rax", ), UD, "SDM 2, RDPID");
  CHECK("RSM outside SMM", TRY("rsm", ), UD);
  CHECK("VMXOFF", TRY("vmxoff", ), UD);
}

void test(void) {
  system_calls();
  segments();
  compatibility();
  state();
  odd_ends();
}
