// SPDX-License-Identifier: Apache-2.0
// KVM's interfaces of 2007 from 64-bit code, and what their refactoring changed for the same guest (Anthony Liguori, "KVM:
// Refactor hypercall infrastructure (v3)", kvm-devel, 2007).
#include "kvm-2007.h"

static volatile u64 compatible_result;

// Executes the stub in compatibility mode: EFER.LMA is set and the code segment is not 64-bit.
static void from_compatibility_mode(word stub, u64 a) {
  asm volatile("sub $8, %%rsp; movl $2f, (%%rsp); movl $0x10, 4(%%rsp); push $0x08; movabs $1f, %%rax; push %%rax; mov %2, %%rax; lretq\n"
               ".code32\n 1: mov %%esp, %%ebp; call *%%esi; lret\n .code64\n 2: mov %%rax, %0"
               : "=m"(compatible_result), "+S"(stub)
               : "r"(a), "b"(0ul), "c"(0ul), "d"(0ul), "D"(0ul)
               : "rax", "rbp", "memory");
}

static volatile word user_result;
static void user_call(void) {
  asm volatile("call *%2" : "=a"(user_result) : "0"(0ul), "S"(stubs_area), "b"(0ul) : "memory");
}

static void modes(int is_2007) {
  section("KVM of 2007: privilege and EFER.LMA");
  u8 *const stub = put_stub(0);
  // Without the register the guest writes the instruction itself.
  stub[0] = 0x0F, stub[1] = 0x01, stub[2] = third, stub[3] = 0xC3;
  user_result = 7;
  // Neither interface of 2007 looked at the privilege level.
  KVM("a call at level 3", user(user_call) << 16 | (user_result & 0xFFFF), NONE << 16 | (is_2007 ? 0xFFFF : 0xFC18));
  from_compatibility_mode((word)stub, 0);
  KVM("in compatibility mode EFER.LMA counts: all 64 bits", compatible_result, is_2007 ? -1ull : -1000ull);
}

void test(void) {
  u32 out[4];
  cpuid(0, 0, out);
  third = out[1] == 0x756E6547 ? 0xC1 : 0xD9; // "Genu"
  if (is_tcg) return;
  if (last_word_is("2007")) {
    registration();
    modes(1);
    return;
  }
  absent();
  u8 *const stub = put_stub(0);
  stub[0] = 0x0F, stub[1] = 0x01, stub[2] = third, stub[3] = 0xC3;
  const int is_refactored = last_word_is("refactored");
  section(is_refactored ? "KVM of August 2007: no call exists" : "KVM: today's calls");
  for (u64 number = 0; number < 16; number++) {
    TRY("call *%%rsi", .a = number, .S = (word)stub);
    if (is_refactored || number == 0) KVM("number 0, and in 2007 any", after.a, -1000ull);
  }
  TRY("call *%%rsi", .a = 1, .S = (word)stub);
  KVM("number 1", after.a, is_refactored ? -1000ull : 0);
  if (is_refactored) modes(0);
}
