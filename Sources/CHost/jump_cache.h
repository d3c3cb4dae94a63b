// SPDX-License-Identifier: Apache-2.0
// The jump caches' layout: two columns for each privilege, linear addresses and where their code is. An indirect branch
// looks into them before it asks for a lookup.
#ifndef CHOST_JUMP_CACHE_H
#define CHOST_JUMP_CACHE_H

#include "tables.h"

INLINE uint64_t *jump_tags(chost_cpu *cpu, unsigned privilege) {
  return (uint64_t *)(chost_env(cpu) + CHOST_JUMP_TAGS) + privilege * 2 * (uint64_t)CHOST_JUMP_ENTRIES;
}

INLINE uint64_t jump_index(uint64_t linear) { return (uint32_t)linear * (uint32_t)CHOST_JUMP_FACTOR >> CHOST_JUMP_SHIFT; }

INLINE void jump_insert(chost_cpu *cpu, unsigned privilege, uint64_t linear, uint64_t target, bool global) {
  chost_private *p = private_of(cpu);
  uint64_t index = jump_index(linear), *tags = jump_tags(cpu, privilege);
  tags[index] = linear;
  tags[index + CHOST_JUMP_ENTRIES] = target;
  set_bit(p->jump_filled[privilege], index);
  if (global) set_bit(p->jump_global[privilege], index);
  else clear_bit(p->jump_global[privilege], index), p->shadow_nonglobal[privilege] = 1;
  p->jump_summary[privilege] |= 1ull << (index >> 6);
  set_bit(p->jump_pages[privilege], hash_bit(linear >> 12, PAGES_BITS_LOG2));
}

#endif
