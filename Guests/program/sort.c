// SPDX-License-Identifier: Apache-2.0
// A guest in C that has the host program sort an array of its, and says how it went.
#include "../conformance/guest.h"
#include "hypercall.h"

static u32 numbers[] = {31, 41, 59, 26, 53, 58, 97, 93, 23, 84};
enum { COUNT = sizeof numbers / sizeof *numbers };

void test(void) {
  // The machine's memory is mapped one to one: an address is a guest-physical address.
  CHECK("numbers sorted", program_call(CALL_SORT, (u64)numbers, COUNT), COUNT);
  unsigned descents = 0;
  for (int i = 1; i < COUNT; i++) descents += numbers[i - 1] > numbers[i];
  CHECK("descents", descents, 0);
  CHECK("the first", numbers[0], 23);
  CHECK("the last", numbers[COUNT - 1], 97);
  CHECK("an address that is not RAM", program_call(CALL_SORT, 1ull << 40, COUNT), -14ull);
  CHECK("40 + 2", program_call(CALL_SUM, 40, 2), 42);
  CHECK("a number that nobody answers", program_call(0x1FFF, 0, 0), -1000ull);
}
