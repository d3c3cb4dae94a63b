// SPDX-License-Identifier: Apache-2.0
// What the 64-bit and the 32-bit guest of 2007 share: the page, the stub, and what the host makes of them (Ingo Molnar,
// "[PATCH 7/13] KVM: add MSR based hypercall API", linux-kernel, 19 February 2007). The last word of the command line is
// the interface: 2007, refactored, or anything else for today's.
#ifndef KVM_2007_H
#define KVM_2007_H
#include "guest.h"

// QEMU's TCG is no KVM: it is asked nothing here.
#define KVM(name, value, expected) expect(name, (u64)(value), (u64)(expected), "KVM")

#ifdef __x86_64__
#define CALL_STUB "call *%%rsi"
#else
#define CALL_STUB "call *%%esi"
#endif
enum { API_MAGIC = 0x87655678, PAGE_ADDRESS = 0x300000, OTHER_PAGE = 0x301000, MEMORY_END = 64 << 20 };
struct para_state {
  u32 guest_version, host_version, size, ret;
  u64 hypercall_gpa;
};
static volatile struct para_state *const page = (struct para_state *)PAGE_ADDRESS;
static u8 *const stubs_area = (u8 *)0x310000;
static u8 third; // of the CPU's own instruction

// "mov $-38, %eax; ret", as the guests of that time had it.
static u8 *put_stub(u32 offset) {
  static const u8 code[6] = {0xB8, 0xDA, 0xFF, 0xFF, 0xFF, 0xC3};
  for (int i = 0; i < 6; i++) stubs_area[offset + i] = code[i];
  return stubs_area + offset;
}
static int is_untouched(const u8 *stub) { return stub[0] == 0xB8 && stub[1] == 0xDA && stub[3] == 0xFF; }
static int is_patched(const u8 *stub) {
  // Four bytes; what is behind them stays.
  return stub[0] == 0x0F && stub[1] == 0x01 && stub[2] == third && stub[3] == 0xC3 && stub[4] == 0xFF && stub[5] == 0xC3;
}
static void fill(u32 version, u64 gpa) {
  page->guest_version = version;
  page->host_version = -1;
  page->size = sizeof(struct para_state);
  page->ret = 7;
  page->hypercall_gpa = gpa;
}
static unsigned enroll(u64 address) { return try_wrmsr(API_MAGIC, address); }

static void absent(void) {
  section("KVM since August 2007: the register is gone");
  u8 *const stub = put_stub(0);
  fill(1, (word)stub);
  KVM("WRMSR is #GP(0)", enroll(PAGE_ADDRESS) << 16 | last.error, GP << 16);
  KVM("RDMSR too", try_rdmsr(API_MAGIC) << 16 | last.error, GP << 16);
  KVM("nothing was written", page->host_version == -1u && page->ret == 7, 1);
  KVM("the stub says that there are no hypercalls", TRY(CALL_STUB, .S = (word)stub) << 8 | is_untouched(stub), NONE << 8 | 1);
  KVM("... -38", (u32)after.a, -38u);
}

static void registration(void) {
  section("KVM of February 2007: the register");
  u8 *stub = put_stub(0);
  fill(1, (word)stub);
  KVM("RDMSR is #GP(0)", try_rdmsr(API_MAGIC) << 16 | last.error, GP << 16);
  static const u64 bad[] = {PAGE_ADDRESS + 1, PAGE_ADDRESS + 0x800, MEMORY_END, 0xFEE00000, 1ull << 40, -4096ull, -1ull};
  for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
    KVM("an address that is no page of RAM", enroll(bad[i]) << 16 | last.error, GP << 16);
  KVM("... nothing was written", page->host_version == -1u && page->ret == 7 && is_untouched(stub), 1);
  static const u32 newer[] = {2, 0x80000000, -1};
  for (int i = 0; i < 3; i++) {
    fill(newer[i], (word)stub);
    KVM("a newer guest: WRMSR completes", enroll(PAGE_ADDRESS), NONE);
    KVM("... refused", page->ret, -1u);
    KVM("... the host's version is told", page->host_version, 1);
    KVM("... the stub stays", is_untouched(stub), 1);
  }
  static const u64 nowhere[] = {MEMORY_END, MEMORY_END - 3, 0xFEE00000, 1ull << 50, -1ull, -4ull};
  for (unsigned i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
    fill(1, nowhere[i]);
    KVM("a stub that is not RAM: WRMSR completes", enroll(PAGE_ADDRESS), NONE);
    KVM("... refused", page->ret, -1u);
  }
  fill(1, (word)stub);
  KVM("a good one", enroll(PAGE_ADDRESS), NONE);
  KVM("... result", page->ret, 0);
  KVM("... version", page->host_version, 1);
  KVM("... the guest's fields stay", page->guest_version << 16 | page->size, 1 << 16 | sizeof(struct para_state));
  KVM("... the stub", is_patched(stub), 1);
  KVM("a call that nobody answers", TRY(CALL_STUB, .a = 1, .b = 2, .c = 3, .d = 4, .S = (word)stub, .D = 6), NONE);
  KVM("... -1", after.a, (word)-1);
  KVM("... no other register", after.b == 2 && after.c == 3 && after.d == 4 && after.S == (word)stub && after.D == 6, 1);
  u8 *const second = put_stub(0x107);
  fill(0, (word)second);
  KVM("again, an older guest, a stub of any alignment", enroll(PAGE_ADDRESS) << 8 | page->ret, NONE << 8);
  KVM("... the new stub", is_patched(second), 1);
  KVM("... the old one stays as it was", is_patched(stub), 1);
  u8 *const across = put_stub(0xFFE);
  fill(1, (word)across);
  KVM("a stub across pages", enroll(PAGE_ADDRESS) << 8 | page->ret, NONE << 8);
  KVM("...", is_patched(across), 1);
  // The stub lies on `ret` itself: the result is written last.
  fill(1, PAGE_ADDRESS + 12);
  KVM("a stub on top of the result", enroll(PAGE_ADDRESS) << 8 | page->ret, NONE << 8);
  fill(1, MEMORY_END - 4);
  KVM("a stub at the very end of RAM", enroll(PAGE_ADDRESS) << 8 | page->ret, NONE << 8);
  // A stub that was executed is code that the translation has seen.
  u8 *const used = put_stub(0x200);
  TRY(CALL_STUB, .S = (word)used);
  KVM("before", (u32)after.a, -38u);
  fill(1, (word)used);
  enroll(PAGE_ADDRESS);
  TRY(CALL_STUB, .a = 0, .b = 0, .S = (word)used);
  KVM("after: the new code runs", after.a, (word)-1);
}

#endif
