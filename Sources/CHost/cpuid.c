// SPDX-License-Identifier: Apache-2.0
// The instructions about the host processor that Swift has no names for.
#include "chost.h"

uint64_t chost_read_tsc(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return (uint64_t)high << 32 | low;
}

void chost_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

// Only where CPUID.1:ECX.OSXSAVE is set.
uint64_t chost_xgetbv0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

uint32_t chost_mxcsr_mask(void) {
  struct { _Alignas(16) uint8_t bytes[512]; } image = {0};
  __asm__ volatile("fxsave64 %0" : "=m"(image));
  uint32_t mask;
  __builtin_memcpy(&mask, image.bytes + 28, sizeof mask);
  return mask ? mask : 0xffbf; // SDM volume 1, 11.6.6
}
