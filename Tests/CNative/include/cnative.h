// SPDX-License-Identifier: Apache-2.0
// Runs guest bytes natively, as the oracle of the differential tests: every register is loaded, the bytes are
// jumped to, and whatever exception they end with (a HLT behind them, which user mode may not execute, or one of
// their own) is caught as a signal, whose frame holds the whole state. One thread at a time.
#ifndef CNATIVE_H
#define CNATIVE_H

#include <stdint.h>

enum { CNATIVE_XSAVE_BYTES = 832 };

typedef struct cnative_state {
  uint64_t gpr[16]; // RAX RCX RDX RBX RSP RBP RSI RDI R8...R15
  uint64_t rflags;
  uint64_t rip;
  uint64_t fs_base, gs_base;
  // Filled in by the run: the exception's vector, error code and CR2.
  uint64_t vector, error_code, cr2;
  uint32_t segments[6]; // ES CS SS DS FS GS, for cnative_run_legacy, which leaves there what they are at its end
  uint64_t pad[6];
  // 64-byte aligned if the structure is: x87, SSE, header, AVX, in standard format.
  uint8_t xsave[CNATIVE_XSAVE_BYTES];
} cnative_state;

// Installs the signal handlers (once per process; chains to earlier ones). 0 or errno. The calling thread needs an
// alternate signal stack.
int cnative_prepare(void);
// Whether the processor and kernel let user mode write the FS base.
int cnative_can_run(void);
// Runs until an exception. `state` must be 64-byte aligned.
void cnative_run(cnative_state *state);
// The same in a 16- or 32-bit code segment: `segments` are the selectors, RIP and RSP are offsets.
void cnative_run_legacy(cnative_state *state);
// Writes an entry of the process's LDT (modify_ldt). `kind`: 0 data, 1 expand-down data, 2 code. `limit` is in pages if
// `pages`. `rights`: 1 forbids writing of data and reading of code, 2 makes it absent. 0 or errno.
int cnative_set_segment(unsigned entry, uint32_t base, uint32_t limit, int kind, int is32, int pages, int rights);
// Whether the kernel lets a 64-bit process have an LDT and run in 32-bit code segments. 0 or errno.
int cnative_can_run_legacy(void);
// Maps anonymous memory at exactly `address`, replacing nothing. 0 or errno.
int cnative_map(uint64_t address, uint64_t size, int executable);
int cnative_protect_read_only(uint64_t address, uint64_t size);

#endif
