// SPDX-License-Identifier: Apache-2.0
// The time-stamp counter: how it runs, what writing it does, and who may read it.
#include "guest.h"

enum { TSC = 0x10, ADJUST = 0x3B, AUX = 0xC0000103 };

void test(void) {
  section("SDM 3, 17.17: the time-stamp counter");
  u64 before = rdtsc();
  unsigned backwards = 0;
  for (int i = 0; i < 10000; i++) {
    const u64 now = rdtsc();
    backwards += now < before;
    before = now;
  }
  CHECK("never backwards", backwards, 0);
  const u64 wanted = 0x123456789ABC;
  wrmsr(TSC, wanted);
  const u64 after_write = rdtsc();
  CHECK("written, all 64 bits", after_write >= wanted && after_write < wanted + 0x100000000, 1);
  CHECK("RDMSR agrees", rdmsr(TSC) - after_write < 0x100000000, 1);
  wrmsr(TSC, -1000000000ull);
  CHECK("just before it wraps", rdtsc() >> 40, 0xFFFFFF);
  wrmsr(TSC, 0);
  CHECK("from zero", rdtsc() >> 36, 0);
  u32 out[4];
  cpuid(7, 0, out);
  CHECK_NOT_TCG("TSC_ADJUST is offered", out[1] >> 1 & 1, 1, "SDM 3, 17.17.3");
  if (!is_tcg) {
    const u64 adjust = rdmsr(ADJUST);
    wrmsr(ADJUST, adjust + (1ull << 40));
    CHECK_NOT_TCG("TSC_ADJUST moves the counter", rdtsc() >> 40, 1, "SDM 3, 17.17.3");
    CHECK_NOT_TCG("... reads back", rdmsr(ADJUST), adjust + (1ull << 40), "SDM 3, 17.17.3");
    const u64 old = rdmsr(ADJUST), then = rdtsc();
    wrmsr(TSC, 3ull << 50);
    const u64 moved = rdmsr(ADJUST) - old, distance = (3ull << 50) - then;
    CHECK_NOT_TCG("writing the counter moves TSC_ADJUST", distance - moved < 0x100000000, 1, "SDM 3, 17.17.3");
    wrmsr(ADJUST, 0);
  }
  section("SDM 2: RDTSCP");
  cpuid(0x80000001, 0, out);
  CHECK("RDTSCP is offered", out[3] >> 27 & 1, 1);
  wrmsr(AUX, 0x12345678);
  TRY("rdtscp", .c = -1ul);
  CHECK("RDTSCP gives TSC_AUX", after.c, 0x12345678);
  CHECK("... and clears upper halves", after.a >> 32 | after.d >> 32, 0);
  CHECK("TSC_AUX has 32 bits", try_wrmsr(AUX, 1ull << 32), GP);
  section("SDM 3, 2.5: CR4.TSD");
  void with_aux(void) { asm volatile("rdtscp" : : : "rax", "rcx", "rdx"); }
  CHECK("RDTSCP at level 3", user(with_aux), NONE);
  WRITE("cr4", READ("cr4") | 4);
  CHECK("... with TSD", user(with_aux), GP);
  CHECK("RDTSCP at level 0 with TSD", TRY("rdtscp", ), NONE);
  WRITE("cr4", READ("cr4") & ~4ul);
  CHECK("RDPMC of nothing", TRY("rdpmc", .c = 0x1234), GP);
}
