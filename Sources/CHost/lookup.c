// SPDX-License-Identifier: Apache-2.0
// The lookup of a block: from the linear address to the page that instructions are fetched from, from there to the block,
// whose entry the jump cache then remembers.
#include "jump_cache.h"
#include "paging.h"

// --- The block table

INLINE uint64_t block_start(uint64_t key) { return key * 0x9E3779B97F4A7C15ull >> 32; }

uint64_t chost_block_find(const chost_block_slot *table, uint64_t mask, uint64_t key) {
  uint64_t start = block_start(key);
  for (uint64_t i = 0; i <= mask; i++) {
    const chost_block_slot *slot = &table[(start + i) & mask];
    uint64_t found = __atomic_load_n(&slot->key, __ATOMIC_ACQUIRE);
    if (found == 0) return 0;
    if (found != key) continue;
    uint64_t entry = __atomic_load_n(&slot->entry, __ATOMIC_ACQUIRE);
    // The slot may have been given to another key in between.
    if (__atomic_load_n(&slot->key, __ATOMIC_RELAXED) == key) return entry;
    return 0;
  }
  return 0;
}

void chost_block_insert(chost_block_slot *table, uint64_t mask, uint64_t key, uint64_t entry) {
  uint64_t start = block_start(key);
  chost_block_slot *free_slot = 0;
  for (uint64_t i = 0; i <= mask; i++) {
    chost_block_slot *slot = &table[(start + i) & mask];
    if (slot->key == key) {
      __atomic_store_n(&slot->entry, entry, __ATOMIC_RELEASE);
      return;
    }
    if (slot->key <= 1 && !free_slot) free_slot = slot;
    if (slot->key == 0) break;
  }
  if (!free_slot) return; // full, which the caller prevents: the block is merely not found
  __atomic_store_n(&free_slot->entry, entry, __ATOMIC_RELAXED);
  __atomic_store_n(&free_slot->key, key, __ATOMIC_RELEASE);
}

int chost_block_remove(chost_block_slot *table, uint64_t mask, uint64_t key) {
  uint64_t start = block_start(key);
  for (uint64_t i = 0; i <= mask; i++) {
    uint64_t at = (start + i) & mask;
    if (table[at].key == 0) return 0;
    if (table[at].key != key) continue;
    __atomic_store_n(&table[at].key, 1, __ATOMIC_RELEASE);
    // At the end of a chain deleted slots are as good as empty, and shorten later searches.
    if (table[(at + 1) & mask].key == 0)
      for (; table[at].key == 1; at = (at - 1) & mask) __atomic_store_n(&table[at].key, 0, __ATOMIC_RELEASE);
    return 1;
  }
  return 0;
}

INLINE chost_straddle_slot *straddle_slot(chost_straddle_slot *table, uint64_t key) {
  return &table[block_start(key) & (CHOST_STRADDLES - 1)];
}

void chost_straddle_insert(chost_straddle_slot *table, uint64_t key, uint64_t second, uint64_t offset) {
  chost_straddle_slot *slot = straddle_slot(table, key);
  __atomic_store_n(&slot->key, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&slot->value, second >> 12 << CHOST_CODE_BITS | offset, __ATOMIC_RELEASE);
  __atomic_store_n(&slot->key, key, __ATOMIC_RELEASE);
}

void chost_straddle_remove(chost_straddle_slot *table, uint64_t key, uint64_t second) {
  chost_straddle_slot *slot = straddle_slot(table, key);
  if (slot->key == key && slot->value >> CHOST_CODE_BITS == second >> 12)
    __atomic_store_n(&slot->key, 0, __ATOMIC_RELEASE);
}

// --- Fetches

// The physical page that instructions at `linear` are fetched from, plus 1 if it is global; or FETCH_REFUSED.
static uint64_t fetch_page(chost_cpu *cpu, unsigned user, uint64_t linear) {
  chost_private *p = private_of(cpu);
  uint64_t index = linear >> 12 & (FETCH_ENTRIES - 1);
  fetch_entry *cached = &p->fetch[user][index];
  if (cached->tag != (linear & PAGE_MASK) + 1) {
    leaf found;
    if (!representable(cpu, linear) ||
        walk(cpu, linear, CHOST_ACCESS_FETCH | (user ? CHOST_ACCESS_USER : 0), true, &found))
      return FETCH_REFUSED;
    if (cpu->late_pages && in_ram(cpu, found.physical, 1) && is_late(cpu, found.physical, user)) return FETCH_REFUSED;
    *cached = (fetch_entry){(linear & PAGE_MASK) + 1, (found.physical & PAGE_MASK) + found.global};
    set_bit(p->fetch_filled[user], index);
    remember_large(cpu, user, linear, found.shift, true);
  }
  return cached->value;
}

void chost_fetch_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  chost_private *p = private_of(cpu);
  for (unsigned word = 0; word < FETCH_ENTRIES / 64; word++) {
    for (uint64_t bits = p->fetch_filled[privilege][word]; bits; bits &= bits - 1) {
      unsigned bit = (unsigned)__builtin_ctzll(bits);
      fetch_entry *entry = &p->fetch[privilege][word * 64 + bit];
      if (keep_global && (entry->value & 1)) continue;
      entry->tag = 0;
      p->fetch_filled[privilege][word] &= ~(1ull << bit);
    }
  }
}

void chost_fetch_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift) {
  chost_private *p = private_of(cpu);
  if (shift == 12) {
    uint64_t index = linear >> 12 & (FETCH_ENTRIES - 1);
    if (p->fetch[privilege][index].tag != (linear & PAGE_MASK) + 1) return;
    p->fetch[privilege][index].tag = 0;
    clear_bit(p->fetch_filled[privilege], index);
    return;
  }
  for (unsigned index = 0; index < FETCH_ENTRIES; index++) {
    uint64_t tag = p->fetch[privilege][index].tag;
    if (!tag || tag >> shift != linear >> shift) continue;
    p->fetch[privilege][index].tag = 0;
    clear_bit(p->fetch_filled[privilege], index);
  }
}

// --- The lookup

void chost_match_jump_mode(chost_cpu *cpu) {
  chost_private *p = private_of(cpu);
  unsigned user = (cpu->mode & CHOST_MODE_CPL) == 3;
  if (p->jump_mode[user] == cpu->mode) return;
  chost_jump_flush(cpu, user, false);
  p->jump_mode[user] = cpu->mode;
}

// The entry of the block that goes on in the page after `linear`'s. The second page is translated only if there may be
// such a block.
static uint64_t straddle_find(chost_cpu *cpu, unsigned user, uint64_t linear, uint64_t key, uint64_t *second) {
  const chost_straddle_slot *slot = straddle_slot((chost_straddle_slot *)cpu->straddle_table, key);
  if (__atomic_load_n(&slot->key, __ATOMIC_ACQUIRE) != key) return 0;
  uint64_t value = __atomic_load_n(&slot->value, __ATOMIC_ACQUIRE);
  // The slot may have been given to another block in between.
  if (__atomic_load_n(&slot->key, __ATOMIC_RELAXED) != key) return 0;
  *second = fetch_page(cpu, user, (linear | (PAGE_SIZE - 1)) + 1);
  if (*second == FETCH_REFUSED || value >> CHOST_CODE_BITS != *second >> 12) return 0;
  return cpu->code_base + (value & ((1ull << CHOST_CODE_BITS) - 1));
}

uint64_t chost_lookup(chost_cpu *cpu, uint64_t linear) {
  uint32_t mode = cpu->mode;
  unsigned user = (mode & CHOST_MODE_CPL) == 3;
  cpu->count_lookup++;
  chost_match_jump_mode(cpu);
  uint64_t fetched = fetch_page(cpu, user, linear), entry = 0;
  if (fetched != FETCH_REFUSED) {
    uint64_t physical = (fetched & PAGE_MASK) | (linear & (PAGE_SIZE - 1));
    uint64_t key = physical << CHOST_MODE_BITS | mode;
    entry = chost_block_find((const chost_block_slot *)cpu->block_table, cpu->block_mask, key);
    // Where a segment limit may lie between the pages Swift looks.
    if (!entry && (linear & (PAGE_SIZE - 1)) > PAGE_SIZE - 15 && !(mode & CHOST_MODE_SEGMENTED)) {
      uint64_t next = 0;
      entry = straddle_find(cpu, user, linear, key, &next);
      fetched &= next; // global if both are
    }
  }
  if (!entry) {
    cpu->count_lookup_miss++;
    return 0;
  }
  if (!(mode & CHOST_MODE_STEP)) jump_insert(cpu, user, linear, entry, fetched & 1);
  return entry;
}

LIGHT_HELPERS_END
