// SPDX-License-Identifier: Apache-2.0
// libFuzzer as a library (LLVM documentation, "Using libFuzzer as a library").
#pragma once
#include <stddef.h>
#include <stdint.h>

// Runs libFuzzer with a command line; returns its status.
int fuzzer_run(int argc, char **argv, int (*target)(const uint8_t *bytes, size_t count));
