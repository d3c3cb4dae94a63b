// SPDX-License-Identifier: Apache-2.0
// KVM's interfaces of 2007 from 32-bit code.
#include "kvm-2007.h"

void test(void) {
  u32 out[4];
  cpuid(0, 0, out);
  third = out[1] == 0x756E6547 ? 0xC1 : 0xD9; // "Genu"
  if (is_tcg) return;
  if (last_word_is("2007")) registration();
  else absent();
}
