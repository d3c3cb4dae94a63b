// SPDX-License-Identifier: Apache-2.0
// Jump caches: emptying them, as a whole or by page. Frames of the shadow stacks lead to code by linear address, too, and
// die with them.
#include "jump_cache.h"

// The tag is of another index, and not canonical.
INLINE void jump_clear(uint64_t *tags, uint64_t index) {
  tags[index] = 1ull << 63 | (jump_index(0) == index);
  tags[index + CHOST_JUMP_ENTRIES] = 0;
}

void chost_jump_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  chost_private *p = private_of(cpu);
  if (!keep_global || p->shadow_nonglobal[privilege]) {
    p->shadow_nonglobal[privilege] = 0;
    shadow_reset(cpu, privilege);
  }
  if (!p->jump_summary[privilege]) return;
  uint64_t *tags = jump_tags(cpu, privilege), left = 0;
  for (uint64_t words = p->jump_summary[privilege]; words; words &= words - 1) {
    unsigned word = (unsigned)__builtin_ctzll(words);
    uint64_t kept = keep_global ? p->jump_filled[privilege][word] & p->jump_global[privilege][word] : 0;
    for (uint64_t bits = p->jump_filled[privilege][word] & ~kept; bits; bits &= bits - 1)
      jump_clear(tags, word * 64 + (unsigned)__builtin_ctzll(bits));
    p->jump_filled[privilege][word] = kept;
    if (kept) left |= 1ull << word;
  }
  p->jump_summary[privilege] = left;
  // An empty cache has an empty set of pages: the early return above relies on it.
  if (!left) zero_words(p->jump_pages[privilege], sizeof p->jump_pages[0] / 8);
}

void chost_jump_drop_pages(chost_cpu *cpu, unsigned privilege, uint64_t first, uint64_t last) {
  chost_private *p = private_of(cpu);
  uint64_t *tags = jump_tags(cpu, privilege), left = 0;
  // The set of pages only grows between flushes; a scan is the occasion to make it exact again.
  zero_words(p->jump_pages[privilege], sizeof p->jump_pages[0] / 8);
  for (uint64_t words = p->jump_summary[privilege]; words; words &= words - 1) {
    unsigned word = (unsigned)__builtin_ctzll(words);
    for (uint64_t bits = p->jump_filled[privilege][word]; bits; bits &= bits - 1) {
      uint64_t index = word * 64 + (unsigned)__builtin_ctzll(bits), page = tags[index] >> 12;
      if (page - first <= last - first) {
        jump_clear(tags, index);
        clear_bit(p->jump_filled[privilege], index);
      } else {
        set_bit(p->jump_pages[privilege], hash_bit(page, PAGES_BITS_LOG2));
      }
    }
    if (p->jump_filled[privilege][word]) left |= 1ull << word;
  }
  p->jump_summary[privilege] = left;
}

bool chost_jump_may_hold(chost_cpu *cpu, unsigned privilege, uint64_t page) {
  return test_bit(private_of(cpu)->jump_pages[privilege], hash_bit(page, PAGES_BITS_LOG2));
}

void chost_flush_jump_cache(chost_cpu *cpu) {
  chost_jump_flush(cpu, 0, false);
  chost_jump_flush(cpu, 1, false);
}

// Zeros are the tag of address 0, whose index is one.
void chost_jump_reset(chost_cpu *cpu) {
  for (unsigned privilege = 0; privilege < 2; privilege++) jump_clear(jump_tags(cpu, privilege), jump_index(0));
}

LIGHT_HELPERS_END
