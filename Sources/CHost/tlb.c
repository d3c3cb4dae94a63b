// SPDX-License-Identifier: Apache-2.0
// The software TLB: pages that translated code may access, by linear address, privilege and kind of access. A miss fills an
// entry without leaving translated code.
#include "paging.h"
#include "tables.h"

uint32_t chost_translate(chost_cpu *cpu, uint64_t linear, uint32_t access, uint64_t *physical) {
  leaf found;
  uint32_t code = walk(cpu, linear, access, true, &found);
  if (!(code & FAULT)) *physical = found.physical;
  return code;
}

uint32_t chost_probe(chost_cpu *cpu, uint64_t linear, uint32_t access, uint64_t *physical) {
  leaf found;
  uint32_t code = walk(cpu, linear, access, false, &found);
  if (!(code & FAULT)) *physical = found.physical;
  return code;
}

// --- Filling

INLINE void tlb_insert(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t linear, uint64_t addend,
                       bool global) {
  chost_private *p = private_of(cpu);
  uint64_t index = tlb_index(linear);
  tlb_table(cpu, privilege, write)[index] = (chost_tlb_entry){linear & PAGE_MASK, addend};
  set_bit(p->tlb_filled[privilege][write], index);
  if (global) set_bit(p->tlb_global[privilege][write], index);
  else clear_bit(p->tlb_global[privilege][write], index);
}

// Whether `count` bytes share a 64-byte chunk with translated code.
INLINE bool overlaps_code(const chost_cpu *cpu, uint64_t physical, uint64_t count) {
  const uint64_t *chunks = (const uint64_t *)cpu->code_chunks;
  if (!chunks || count == 0) return true;
  unsigned first = physical >> 6 & 63, last = (physical + count - 1) >> 6 & 63;
  uint64_t word = __atomic_load_n(&chunks[physical >> 12], __ATOMIC_ACQUIRE);
  return word & (~0ull << first) & (~0ull >> (63 - last));
}

// `count`: bytes about to be accessed, all in one page; 0: the page as a whole.
static bool resolve(chost_cpu *cpu, uint64_t linear, uint32_t access, uint64_t count, uint64_t *addend) {
  if (!representable(cpu, linear)) return false;
  leaf found;
  const bool user = access & CHOST_ACCESS_USER, write = access & CHOST_ACCESS_WRITE;
  if (walk(cpu, linear, access, true, &found)) return false;
  uint64_t page = found.physical & PAGE_MASK;
  if (page == CHOST_KEPT_PHYSICAL) {
    // The walk has refused everything but reads by a supervisor.
    *addend = cpu->kept_page - (linear & PAGE_MASK);
    tlb_insert(cpu, 0, 0, linear, *addend, false);
    return true;
  }
  if (!in_ram(cpu, page, PAGE_SIZE) || is_late(cpu, page, user)) return false;
  if (write) {
    if (__atomic_load_n(page_flags(cpu, page), __ATOMIC_ACQUIRE) & CHOST_PAGE_CODE) {
      // A store to translated code is done by Swift, which discards the blocks it hits. One beside it is served, but
      // leaves no entry: the next may hit. Said before looking, so that another vCPU that translates what is being
      // stored to (TranslatedCPU.translate) sees this, if this does not see its block.
      if (cpu->store_beside != (page | 1)) __atomic_store_n(&cpu->store_beside, page | 1, __ATOMIC_SEQ_CST);
      if (overlaps_code(cpu, found.physical, count)) return false;
      mark_dirty(cpu, page);
      *addend = cpu->ram + page - (linear & PAGE_MASK);
      return true;
    }
    mark_dirty(cpu, page);
  }
  *addend = cpu->ram + page - (linear & PAGE_MASK);
  // Under SMAP a supervisor's right to a user page lasts until AC is cleared, which is inline code that
  // flushes nothing: serve this access only.
  if (!user && found.user && (cpu->cr4 & CR4_SMAP)) return true;
  // What may be written may be read, and most of what is written is read soon.
  tlb_insert(cpu, user, 0, linear, *addend, found.global);
  if (write) tlb_insert(cpu, user, 1, linear, *addend, found.global);
  remember_large(cpu, user, linear, found.shift, false);
  return true;
}

INLINE uint32_t rights(bool user, bool write) {
  return (user ? CHOST_ACCESS_USER : 0) | (write ? CHOST_ACCESS_WRITE : 0);
}

bool chost_resolve(chost_cpu *cpu, uint64_t linear, bool user, bool write, uint64_t *addend) {
  return resolve(cpu, linear, rights(user, write), 0, addend);
}

bool chost_resolve_bytes(chost_cpu *cpu, uint64_t linear, bool user, bool write, uint64_t count, uint64_t *addend) {
  return resolve(cpu, linear, rights(user, write), count, addend);
}

bool chost_resolve_implicit(chost_cpu *cpu, uint64_t linear, bool write, uint64_t *addend) {
  return resolve(cpu, linear, rights(false, write) | CHOST_ACCESS_IMPLICIT, 0, addend);
}

chost_fill_result chost_tlb_fill(chost_cpu *cpu, uint64_t linear, uint32_t info) {
  const chost_fill_result failed = {0, 1};
  bool user = info & CHOST_INFO_USER, write = info & CHOST_INFO_WRITE;
  uint64_t size = info >> CHOST_INFO_SIZE_SHIFT & 255;
  if (size == 255) size = 1024; // the longest operand served by translated code has not more
  if (size == 0) size = 1;
  cpu->count_tlb_fill++;
  uint64_t room = PAGE_SIZE - (linear & (PAGE_SIZE - 1)), first, second;
  if (size <= room) {
    if (!resolve(cpu, linear, rights(user, write), size, &first)) return failed;
    return (chost_fill_result){first, 0};
  }
  // Across pages: a read is assembled in the bounce buffer. A write is not, because its effect must reach
  // both pages after the instruction ran.
  if (write || size > 64) return failed;
  uint64_t next = linear + room;
  if (!(cpu->mode & CHOST_MODE_LONG) && next >> 32) return failed; // wraps to 0: rare enough for Swift
  if (!representable(cpu, linear)) return failed;
  if (!chost_access_page(cpu, linear, user, false, &first)) return failed;
  if (!chost_access_page(cpu, next, user, false, &second)) return failed;
  // As misaligned as the operand is, so that an instruction that minds raises #GP.
  uint8_t *bounce = chost_env(cpu) + CHOST_BOUNCE + (linear & 63);
  copy_bytes(bounce, (const void *)(linear + first), room);
  copy_bytes(bounce + room, (const void *)(next + second), size - room);
  return (chost_fill_result){(uint64_t)bounce - linear, 0};
}

// --- Emptying

INLINE void tlb_clear(chost_tlb_entry *table, uint64_t index) {
  // The address of a page that belongs elsewhere: no access with this index can hit, 0 and -1 included.
  table[index] = (chost_tlb_entry){(index ^ 1) << 12, 0};
}

void chost_tlb_flush(chost_cpu *cpu, unsigned privilege, unsigned write, bool keep_global) {
  chost_private *p = private_of(cpu);
  chost_tlb_entry *table = tlb_table(cpu, privilege, write);
  uint64_t *filled = p->tlb_filled[privilege][write], *global = p->tlb_global[privilege][write];
  for (unsigned word = 0; word < TLB_WORDS; word++) {
    uint64_t kept = keep_global ? filled[word] & global[word] : 0, bits = filled[word] & ~kept;
    if (bits == ~0ull) {
      for (unsigned i = 0; i < 64; i++) tlb_clear(table, word * 64 + i);
    } else {
      for (; bits; bits &= bits - 1) tlb_clear(table, word * 64 + (unsigned)__builtin_ctzll(bits));
    }
    filled[word] = kept;
  }
}

void chost_tlb_drop_page(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t page) {
  uint64_t index = tlb_index(page);
  chost_tlb_entry *table = tlb_table(cpu, privilege, write);
  if (table[index].tag != page) return;
  tlb_clear(table, index);
  clear_bit(private_of(cpu)->tlb_filled[privilege][write], index);
}

// Drops every fragment of the large page around `linear`. Its pages have consecutive indexes, from a multiple
// of 64 on.
void chost_tlb_drop_window(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t linear, unsigned shift) {
  chost_tlb_entry *table = tlb_table(cpu, privilege, write);
  uint64_t *filled = private_of(cpu)->tlb_filled[privilege][write];
  uint64_t first = tlb_index(linear >> shift << shift) / 64;
  for (uint64_t word = first; word < first + (1ull << (shift - 18)); word++) {
    for (uint64_t bits = filled[word]; bits; bits &= bits - 1) {
      unsigned bit = (unsigned)__builtin_ctzll(bits);
      if (table[word * 64 + bit].tag >> shift != linear >> shift) continue;
      tlb_clear(table, word * 64 + bit);
      filled[word] &= ~(1ull << bit);
    }
  }
}

void chost_tlb_protect(chost_cpu *cpu, uint64_t host) {
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    chost_tlb_entry *table = tlb_table(cpu, privilege, 1);
    uint64_t *filled = private_of(cpu)->tlb_filled[privilege][1];
    for (unsigned word = 0; word < TLB_WORDS; word++) {
      for (uint64_t bits = filled[word]; bits; bits &= bits - 1) {
        unsigned bit = (unsigned)__builtin_ctzll(bits);
        chost_tlb_entry *entry = &table[word * 64 + bit];
        if (entry->tag + entry->addend != host) continue;
        tlb_clear(table, word * 64 + bit);
        filled[word] &= ~(1ull << bit);
      }
    }
  }
}

// Zeros are the address of page 0, which belongs to entry 0.
void chost_tlb_reset(chost_cpu *cpu) {
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    tlb_clear(tlb_table(cpu, privilege, 0), 0);
    tlb_clear(tlb_table(cpu, privilege, 1), 0);
  }
}

LIGHT_HELPERS_END
