// SPDX-License-Identifier: Apache-2.0
// The same hypercalls as a guest of February 2007 made them: it registers a page, the host patches its stub, and every
// call goes to the host program, by the register convention of 64-bit or of 32-bit code (Ingo Molnar, "[PATCH 7/13] KVM:
// add MSR based hypercall API", linux-kernel, 19 February 2007).
#include "../conformance/guest.h"
#include "hypercall.h"

static struct {
  u32 guest_version, host_version, size, ret;
  u64 hypercall_gpa;
} page __attribute__((aligned(4096)));

// Before it is patched it says that there are no hypercalls.
static u8 stub[8] __attribute__((aligned(8))) = {0xB8, 0xDA, 0xFF, 0xFF, 0xFF, 0xC3};

static word old_call(word number, word first, word second) {
  word result;
#ifdef __x86_64__
  // Number in RAX, arguments in RDI, RSI, RDX, RCX, R8 and R9.
  asm volatile("call *%4" : "=a"(result) : "0"(number), "D"(first), "S"(second), "r"(stub) : "memory");
#else
  // Number in EBX, arguments in EAX, ECX, EDX, ESI, EDI and EBP.
  asm volatile("call *%4" : "=a"(result) : "b"(number), "0"(first), "c"(second), "d"(stub) : "memory");
#endif
  return result;
}

static u32 numbers[] = {31, 41, 59, 26, 53, 58, 97, 93, 23, 84};
enum { COUNT = sizeof numbers / sizeof *numbers };

void test(void) {
  CHECK("before registration", (u32)old_call(CALL_SUM, 40, 2), -38u);
  page.guest_version = 1;
  page.size = sizeof page;
  page.ret = -1;
  page.hypercall_gpa = (word)stub;
  CHECK("registration", try_wrmsr(0x87655678, (word)&page) << 16 | page.ret, NONE << 16);
  CHECK("40 + 2", old_call(CALL_SUM, 40, 2), 42);
  CHECK("numbers sorted", old_call(CALL_SORT, (word)numbers, COUNT), COUNT);
  unsigned descents = 0;
  for (int i = 1; i < COUNT; i++) descents += numbers[i - 1] > numbers[i];
  CHECK("descents", descents, 0);
  CHECK("an address that is not RAM", old_call(CALL_SORT, (word)0xF0000000, COUNT), (word)-14);
  CHECK("a number that nobody answers", old_call(0x1FFF, 0, 0), (word)-1);
}
