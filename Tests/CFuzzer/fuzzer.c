// SPDX-License-Identifier: Apache-2.0
// The one function of libFuzzer that Swift calls.
#include "fuzzer.h"

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*target)(const uint8_t *bytes, size_t count));

int fuzzer_run(int argc, char **argv, int (*target)(const uint8_t *bytes, size_t count)) {
  return LLVMFuzzerRunDriver(&argc, &argv, target);
}
