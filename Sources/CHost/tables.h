// SPDX-License-Identifier: Apache-2.0
// The tables of a vCPU that hold translations: their bitmaps, the sets of large pages, and what is done to each of them
// when translations change. flush.c says when.
#ifndef CHOST_TABLES_H
#define CHOST_TABLES_H

#include "private.h"

// --- Bitmaps and hashed sets

INLINE uint64_t hash_bit(uint64_t value, unsigned bits_log2) {
  return value * 0x9E3779B97F4A7C15ull >> (64 - bits_log2);
}

INLINE void set_bit(uint64_t *words, uint64_t bit) { words[bit >> 6] |= 1ull << (bit & 63); }
INLINE void clear_bit(uint64_t *words, uint64_t bit) { words[bit >> 6] &= ~(1ull << (bit & 63)); }
INLINE bool test_bit(const uint64_t *words, uint64_t bit) { return words[bit >> 6] >> (bit & 63) & 1; }

// The size of large pages is a property of the paging mode, whose change flushes everything.
INLINE unsigned large_shift(const chost_cpu *cpu) {
  if (cpu->space != CHOST_SPACE_REGISTERS) return cpu->space == CHOST_SPACE_WIDE ? 21 : 22;
  return (cpu->efer & EFER_LMA) || (cpu->cr4 & CR4_PAE) ? 21 : 22;
}

INLINE void remember_large(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift, bool fetch) {
  chost_private *p = private_of(cpu);
  if (shift == 12) return;
  if (shift == 30) {
    set_bit(p->giant, hash_bit(linear >> 30, GIANT_BITS_LOG2));
    p->giant_used = 1;
    return;
  }
  uint64_t bit = hash_bit(linear >> shift, LARGE_BITS_LOG2);
  set_bit(p->large[privilege], bit);
  if (fetch) set_bit(p->large_code[privilege], bit);
  p->large_used[privilege] = 1;
}

INLINE void forget_large(chost_private *p, unsigned privilege) {
  if (!p->large_used[privilege]) return;
  zero_words(p->large[privilege], sizeof p->large[0] / 8);
  zero_words(p->large_code[privilege], sizeof p->large_code[0] / 8);
  p->large_used[privilege] = 0;
}

// Linear addresses that can be in a table: canonical ones (SDM 3.3.7.1), and 32-bit ones outside IA-32e mode.
INLINE bool representable(const chost_cpu *cpu, uint64_t linear) {
  if (cpu->efer & EFER_LMA) return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
  return linear >> 32 == 0;
}

// --- tlb.c

void chost_tlb_flush(chost_cpu *cpu, unsigned privilege, unsigned write, bool keep_global);
void chost_tlb_drop_page(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t page);
// Drops every fragment of the large page around `linear`.
void chost_tlb_drop_window(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t linear, unsigned shift);
// Drops the entries that map the page at `host` for writing.
void chost_tlb_protect(chost_cpu *cpu, uint64_t host);
void chost_tlb_reset(chost_cpu *cpu);

// --- slots.c

void chost_slots_flush(chost_cpu *cpu, unsigned privilege, bool keep_global);
// Drops what maps any of the 1 << shift bytes around `linear`.
void chost_slots_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift);
// Drops what may be written: a page has come to hold code, which is rare.
void chost_slots_protect(chost_cpu *cpu);
void chost_slots_reset(chost_cpu *cpu);

// --- jump_cache.c

void chost_jump_flush(chost_cpu *cpu, unsigned privilege, bool keep_global);
// Drops the entries of pages [first, last] (page numbers, which wrap).
void chost_jump_drop_pages(chost_cpu *cpu, unsigned privilege, uint64_t first, uint64_t last);
// Whether there may be an entry of the page with this number.
bool chost_jump_may_hold(chost_cpu *cpu, unsigned privilege, uint64_t page);
void chost_jump_reset(chost_cpu *cpu);

// Frames of a shadow stack lead to code by linear address, as jump cache entries do, and die with them.
INLINE void shadow_reset(chost_cpu *cpu, unsigned privilege) { cpu->shadow[privilege] = cpu->shadow_top[privilege]; }

// --- lookup.c

void chost_fetch_flush(chost_cpu *cpu, unsigned privilege, bool keep_global);
void chost_fetch_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift);

#endif
