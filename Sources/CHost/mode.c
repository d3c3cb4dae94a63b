// SPDX-License-Identifier: Apache-2.0
// The mode word: what a translation depends on besides the bytes of the instructions. Recomputed after anything
// that changes a segment register, a control register or a system flag, so it must be cheap and
// must be the same number for the same state, since it is part of every block's key.
#include "private.h"

enum {
  ATTRIBUTE_WRITABLE = 1 << 1, // data segment; of a code segment: readable
  ATTRIBUTE_EXPAND_DOWN = 1 << 2,
  ATTRIBUTE_CODE = 1 << 3,
  ATTRIBUTE_DPL_SHIFT = 5,
  ATTRIBUTE_L = 1 << 13,
  ATTRIBUTE_DB = 1 << 14,
};

INLINE bool spans_everything(const chost_segment *segment) {
  return segment->base == 0 && segment->limit == 0xFFFFFFFF;
}

INLINE bool is_flat_data(const chost_segment *segment) {
  const uint32_t looked_at = ATTRIBUTE_WRITABLE | ATTRIBUTE_EXPAND_DOWN | ATTRIBUTE_CODE | ATTRIBUTE_UNUSABLE;
  return spans_everything(segment) && (segment->attributes & looked_at) == ATTRIBUTE_WRITABLE;
}

INLINE bool is_flat_code(const chost_segment *segment) {
  const uint32_t execute_only = segment->attributes & (ATTRIBUTE_CODE | ATTRIBUTE_WRITABLE);
  return spans_everything(segment) && execute_only != ATTRIBUTE_CODE &&
         !(segment->attributes & ATTRIBUTE_UNUSABLE);
}

// The first offset that may not be accessed. `typed`: in protected mode the descriptor's type counts too. An expand-down
// segment allows what lies above its limit; for it the answer is 0: every access then goes to Swift, which knows them all.
INLINE uint64_t bound(const chost_segment *segment, bool typed, bool write) {
  const uint32_t attributes = segment->attributes;
  if (typed) {
    if (attributes & ATTRIBUTE_UNUSABLE) return 0;
    if (attributes & ATTRIBUTE_CODE) {
      if (write || !(attributes & ATTRIBUTE_WRITABLE)) return 0;
    } else if ((attributes & ATTRIBUTE_EXPAND_DOWN) || (write && !(attributes & ATTRIBUTE_WRITABLE))) {
      return 0;
    }
  }
  return (uint64_t)segment->limit + 1;
}

INLINE void update_bounds(chost_cpu *cpu, unsigned first, bool typed) {
  for (unsigned i = first; i < 6; i++) {
    cpu->read_bound[i] = bound(&cpu->segments[i], typed, false);
    cpu->write_bound[i] = bound(&cpu->segments[i], typed, true);
  }
}

INLINE uint32_t when(bool condition, uint32_t bit) { return condition ? bit : 0; }

void chost_update_mode(chost_cpu *cpu) {
  const chost_segment *segments = cpu->segments;
  const uint64_t cr0 = cpu->cr0, cr4 = cpu->cr4;
  const bool protected_mode = cr0 & CR0_PE;
  const bool vm86 = protected_mode && (cpu->system_flags & SYSTEM_VM);
  const bool ia32e = cpu->efer & EFER_LMA;
  const bool long_mode = ia32e && (segments[CHOST_CS].attributes & ATTRIBUTE_L);
  // CPL is SS.DPL: SS is the one segment whose DPL always equals it (SDM volume 3, 25.4.1), and the hidden
  // part keeps it when SS is null in 64-bit mode.
  uint32_t cpl = segments[CHOST_SS].attributes >> ATTRIBUTE_DPL_SHIFT & 3;
  if (!protected_mode) cpl = 0;
  if (vm86) cpl = 3;

  uint32_t mode = cpl;
  mode |= when(long_mode, CHOST_MODE_LONG);
  if (!long_mode) {
    // In 64-bit mode these depend on nothing; leaving them clear keeps the keys canonical.
    bool flat = protected_mode && !vm86 && is_flat_code(&segments[CHOST_CS]) && is_flat_data(&segments[CHOST_DS]) &&
                is_flat_data(&segments[CHOST_ES]) && is_flat_data(&segments[CHOST_SS]);
    mode |= when(!flat, CHOST_MODE_SEGMENTED);
    update_bounds(cpu, flat ? CHOST_FS : CHOST_ES, protected_mode && !vm86);
    cpu->write_bound[CHOST_CS] = bound(&segments[CHOST_CS], protected_mode && !vm86, true);
    mode |= when(segments[CHOST_CS].attributes & ATTRIBUTE_DB, CHOST_MODE_CODE32);
    mode |= when(segments[CHOST_SS].attributes & ATTRIBUTE_DB, CHOST_MODE_STACK32);
  }
  mode |= when(protected_mode, CHOST_MODE_PROTECTED);
  mode |= when(vm86, CHOST_MODE_VM86);
  mode |= when(ia32e, CHOST_MODE_LMA);
  mode |= when(cr0 & CR0_MP, CHOST_MODE_MP);
  mode |= when(cr0 & CR0_EM, CHOST_MODE_EM);
  mode |= when(cr0 & CR0_TS, CHOST_MODE_TS);
  mode |= when(cr4 & CR4_TSD, CHOST_MODE_TSD);
  mode |= when(cr4 & CR4_OSFXSR, CHOST_MODE_OSFXSR);
  mode |= when(cr4 & CR4_UMIP, CHOST_MODE_UMIP);
  mode |= when(cr4 & CR4_FSGSBASE, CHOST_MODE_FSGSBASE);
  const bool osxsave = cr4 & CR4_OSXSAVE;
  mode |= when(osxsave, CHOST_MODE_OSXSAVE);
  mode |= when(osxsave && (cpu->xcr0 & XCR0_AVX), CHOST_MODE_AVX);
  mode |= when((cr0 & CR0_AM) && (cpu->system_flags & SYSTEM_AC) && cpl == 3, CHOST_MODE_ALIGN);
  mode |= when((cpu->system_flags & SYSTEM_TF) || (cpu->dr[7] & DR7_ENABLED), CHOST_MODE_STEP);
  cpu->mode = mode;
  chost_match_jump_mode(cpu);
}

void chost_set_attention(chost_cpu *cpu) { __atomic_store_n(&cpu->attention, 1, __ATOMIC_SEQ_CST); }

LIGHT_HELPERS_END
