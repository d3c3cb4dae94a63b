// SPDX-License-Identifier: Apache-2.0
// Slots: where an access site, or a region of FS or GS, found its memory last. Emitted code compares one tag of its own
// before it asks the TLB. The stack has one slot for each privilege.
#include "paging.h"
#include "tables.h"

INLINE chost_slot *slot_table(chost_cpu *cpu, unsigned privilege) {
  return (chost_slot *)(chost_env(cpu) + CHOST_SLOTS + privilege * (uint64_t)CHOST_SLOT_BYTES);
}

INLINE bool slot_is_region(uint64_t index) { return index >= 2 * CHOST_SITES; }

// The largest operand of a site's class.
INLINE uint64_t slot_class(uint64_t index) {
  static const struct { uint16_t end[6], size[6]; } classes = {CHOST_CLASSES};
  unsigned i = 0;
  while ((index & (CHOST_SITES - 1)) >= classes.end[i]) i++;
  return classes.size[i];
}

// What no operand's region starts at: pages are multiples of their size, and from a canonical base of FS or GS a
// displacement does not reach the middle of the addresses that are not canonical. A site's distance is never below 0.
#define SLOT_EMPTY ((1ull << 63) + 1)
INLINE void slot_clear(chost_slot *slots, uint64_t index) { slots[index] = (chost_slot){SLOT_EMPTY, 0, 0, 0}; }

// The stack's tag is compared with any address: one that is not canonical is least likely, and what hits it all the same
// goes to inaccessible memory, where the access is done again slowly.
INLINE void stack_clear(chost_cpu *cpu, unsigned privilege) {
  cpu->stack[privilege] = (chost_tlb_entry){1ull << 63, cpu->slot_guard - (1ull << 63)};
}

// --- Emptying

void chost_slots_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  chost_private *p = private_of(cpu);
  stack_clear(cpu, privilege);
  for (unsigned word = 0; word < SLOT_WORDS; word++) {
    uint64_t kept = keep_global ? p->slot_filled[privilege][word] & p->slot_global[privilege][word] : 0;
    for (uint64_t bits = p->slot_filled[privilege][word] & ~kept; bits; bits &= bits - 1)
      slot_clear(slot_table(cpu, privilege), word * 64 + (unsigned)__builtin_ctzll(bits));
    p->slot_filled[privilege][word] = kept;
  }
}

void chost_slots_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift) {
  chost_private *p = private_of(cpu);
  chost_slot *slots = slot_table(cpu, privilege);
  const uint64_t first = linear >> shift << shift, last = first + ((1ull << shift) - 1);
  if (cpu->stack[privilege].tag >> shift == linear >> shift) stack_clear(cpu, privilege);
  for (unsigned word = 0; word < SLOT_WORDS; word++) {
    for (uint64_t bits = p->slot_filled[privilege][word]; bits; bits &= bits - 1) {
      uint64_t index = word * 64 + (unsigned)__builtin_ctzll(bits);
      uint64_t size = slot_is_region(index) ? 64 : slots[index].bound - 1 + slot_class(index);
      if (slots[index].tag > last || slots[index].tag + (size - 1) < first) continue;
      slot_clear(slots, index);
      clear_bit(p->slot_filled[privilege], index);
    }
  }
}

void chost_slots_protect(chost_cpu *cpu) {
  chost_private *p = private_of(cpu);
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    stack_clear(cpu, privilege);
    for (unsigned word = 0; word < SLOT_WORDS; word++) {
      uint64_t first = word * 64;
      bool writes = slot_is_region(first) ? first >= 2 * CHOST_SITES + CHOST_REGIONS : first >= CHOST_SITES;
      if (!writes) continue;
      for (uint64_t bits = p->slot_filled[privilege][word]; bits; bits &= bits - 1)
        slot_clear(slot_table(cpu, privilege), first + (unsigned)__builtin_ctzll(bits));
      p->slot_filled[privilege][word] = 0;
    }
  }
}

// A site's slot of zeros has no room for any operand; a region may start at 0.
void chost_slots_reset(chost_cpu *cpu) {
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    stack_clear(cpu, privilege);
    for (unsigned i = 2 * CHOST_SITES; i < CHOST_SLOTS_PER_PRIVILEGE; i++) slot_clear(slot_table(cpu, privilege), i);
  }
}

// --- Filling

typedef struct run { // of linear memory that is one in the host's
  uint64_t start, size;
} run;

// Pages from `from` up to `to` that the table maps with `addend`: whether that is all of them. `*global` is kept only if
// they all are; `globals`: which entries of the table are.
static bool table_maps(const chost_tlb_entry *table, const uint64_t *globals, uint64_t from, uint64_t to, uint64_t addend,
                       bool *global) {
  enum { MOST = 64 };
  if (to - from > MOST * PAGE_SIZE) return false;
  bool all = *global;
  for (; from != to; from += PAGE_SIZE) {
    uint64_t index = tlb_index(from);
    if (table[index].tag != from || table[index].addend != addend) return false;
    all &= test_bit(globals, index);
  }
  *global = all;
  return true;
}

// Puts the page of an entry into a site's slot: beside what is there, if the host's memory goes on there.
static void site_fill(chost_cpu *cpu, unsigned user, uint64_t number, const chost_tlb_entry *table, uint64_t index) {
  chost_private *p = private_of(cpu);
  chost_slot *slot = &slot_table(cpu, user)[number];
  const uint64_t class = slot_class(number), addend = table[index].addend;
  const bool write = number >= CHOST_SITES;
  bool global = test_bit(p->tlb_global[user][write], index), filled = test_bit(p->slot_filled[user], number);
  run new = {table[index].tag, PAGE_SIZE};
  leaf found;
  // What is read may come from a large page as a whole; what is written must be dirty page by page. The walk that made
  // the table's entry has set A. With the A20 gate closed a large page is two halves.
  if (!write && !cpu->address_cut && !cpu->late_pages && p->large_used[user] && test_bit(p->large[user], hash_bit(new.start >> large_shift(cpu), LARGE_BITS_LOG2)) &&
      !walk(cpu, new.start, user ? CHOST_ACCESS_USER : 0, false, &found) && found.shift == 21) {
    const uint64_t within = (1ull << 21) - 1;
    if (in_ram(cpu, found.physical & ~within, 1ull << 21) &&
        cpu->ram + (found.physical & ~within) - (new.start & ~within) == addend)
      new = (run){new.start & ~within, 1ull << 21};
  }
  if (filled && slot->value == addend) {
    const run old = {slot->tag, slot->bound - 1 + class};
    const uint64_t old_end = old.start + old.size, new_end = new.start + new.size;
    if (new.start - old.start < old.size && new_end - old.start <= old.size) return; // beyond the bound, not the run
    const uint64_t *globals = p->tlb_global[user][write];
    // A run that ends where addresses do has nothing above it.
    bool above = old_end && new.start >= old_end && new.start - old_end <= 1 << 20 &&
                 table_maps(table, globals, old_end, new.start, addend, &global);
    bool below = new_end && new_end <= old.start && old.start - new_end <= 1 << 20 &&
                 table_maps(table, globals, new_end, old.start, addend, &global);
    bool around = new.start <= old.start && new_end >= old_end;
    if (above) new = (run){old.start, new_end - old.start};
    if (below) new = (run){new.start, old_end - new.start};
    if (above || below || around) {
      global &= test_bit(p->slot_global[user], number);
      filled = false;
    }
  }
  if (filled && p->site_misses[user][number] != UINT16_MAX) p->site_misses[user][number]++;
  *slot = (chost_slot){new.start, addend, new.size - class + 1, 0};
  set_bit(p->slot_filled[user], number);
  if (global) set_bit(p->slot_global[user], number);
  else clear_bit(p->slot_global[user], number);
}

// Puts a region into its slot. A chunk may lie across two pages; a page starts where its entry does.
static void region_fill(chost_cpu *cpu, unsigned user, unsigned write, uint64_t number, uint64_t start,
                        const chost_tlb_entry *table, uint64_t index) {
  chost_private *p = private_of(cpu);
  if ((start & (PAGE_SIZE - 1)) > PAGE_SIZE - 64) return;
  slot_table(cpu, user)[number] = (chost_slot){start, start + table[index].addend, 0, 0};
  set_bit(p->slot_filled[user], number);
  if (test_bit(p->tlb_global[user][write], index)) set_bit(p->slot_global[user], number);
  else clear_bit(p->slot_global[user], number);
}

chost_fill_result chost_slot_fill(chost_cpu *cpu, uint64_t linear, uint64_t request) {
  uint32_t info = (uint32_t)request;
  unsigned user = info & CHOST_INFO_USER ? 1 : 0, write = info & CHOST_INFO_WRITE ? 1 : 0;
  uint64_t displacement = request >> CHOST_REQUEST_SLOT_SHIFT & 0xfffff, offset = request >> CHOST_REQUEST_OFFSET_SHIFT;
  uint64_t size = info >> CHOST_INFO_SIZE_SHIFT & 255, index = tlb_index(linear);
  cpu->count_slot_fill++;
  chost_fill_result result = {tlb_table(cpu, user, write)[index].addend, 0};
  if (linear - tlb_table(cpu, user, write)[index].tag > PAGE_SIZE - size || size == 255 || size == 0) {
    result = chost_tlb_fill(cpu, linear, info);
    if (result.failed) return result;
  }
  bool stack = displacement < CHOST_SLOTS;
  const chost_tlb_entry *table = tlb_table(cpu, user, stack ? 1 : write);
  // Not everything that is served stays in the table, and nothing that does not stays in a slot.
  bool fits = table[index].tag == (linear & PAGE_MASK);
  if (stack) {
    if (fits) cpu->stack[user] = table[index];
    return result;
  }
  uint64_t number = (displacement - CHOST_SLOTS) / CHOST_SLOT_SIZE - user * (uint64_t)CHOST_SLOTS_PER_PRIVILEGE;
  if (!slot_is_region(number)) {
    if (fits) site_fill(cpu, user, number, table, index);
    return result;
  }
  uint64_t start = linear - offset;
  if (fits) region_fill(cpu, user, write, number, start, table, index);
  result.addend += start;
  return result;
}

uint16_t *chost_site_misses(chost_cpu *cpu) { return private_of(cpu)->site_misses[0]; }

chost_fill_result chost_group_fill(chost_cpu *cpu, uint64_t linear, uint64_t request) {
  uint32_t info = (uint32_t)request;
  // In one page, and in place: what a group stores, it may load again.
  if ((linear & (PAGE_SIZE - 1)) + (info >> CHOST_INFO_SIZE_SHIFT & 255) > PAGE_SIZE) return (chost_fill_result){0, 1};
  if (request >> CHOST_REQUEST_SLOT_SHIFT) return chost_slot_fill(cpu, linear, request);
  return chost_tlb_fill(cpu, linear, info);
}

LIGHT_HELPERS_END
