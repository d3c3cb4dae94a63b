// SPDX-License-Identifier: Apache-2.0
// The one instruction behind every hypercall of the host program, chosen by the vendor that CPUID names.
#include "hypercall.h"

static int is_amd(void) {
  unsigned a = 0, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return b == 0x68747541 || b == 0x6F677948; // "Auth", "Hygo"
}

unsigned long program_call(unsigned long number, unsigned long first, unsigned long second) {
  unsigned long result = number;
  if (is_amd()) asm volatile("vmmcall" : "+a"(result) : "b"(first), "c"(second) : "memory");
  else asm volatile("vmcall" : "+a"(result) : "b"(first), "c"(second) : "memory");
  return result;
}
