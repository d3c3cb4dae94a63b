// SPDX-License-Identifier: Apache-2.0
// The page walk, the software TLB and the lookup of blocks: what a miss in translated code needs without leaving
// it. The guest's vector registers are live in the host's while this runs, so it uses general registers only
// and calls nothing outside CHost. "SDM" is the Intel manual, volume 3.
#include "private.h"

#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_PGE (1u << 7)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)

// Page-table entry bits, the same in every format (SDM 4.3 to 4.5).
enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 1 << 5, PTE_D = 1 << 6, PTE_PS = 1 << 7, PTE_G = 1 << 8 };
#define PTE_NX (1ull << 63)

// Page-fault error code (SDM 4.7).
enum { ERROR_P = 1, ERROR_RSVD = 8 };
#define FAULT (1u << 31) // tells an error code of 0 from success

// --- Guest-physical memory

INLINE bool in_ram(const chost_cpu *cpu, uint64_t physical, uint64_t size) {
  const uint64_t high_start = 1ull << 32;
  return (physical < cpu->ram_low_end && size <= cpu->ram_low_end - physical) ||
         (physical >= high_start && physical < cpu->ram_high_end && size <= cpu->ram_high_end - physical);
}

// Other vCPUs change the byte too; the read keeps the common case free of a locked operation.
INLINE void mark_dirty(const chost_cpu *cpu, uint64_t physical) {
  uint8_t *flags = page_flags(cpu, physical);
  if (!(__atomic_load_n(flags, __ATOMIC_RELAXED) & CHOST_PAGE_DIRTY))
    __atomic_fetch_or(flags, CHOST_PAGE_DIRTY, __ATOMIC_RELAXED);
}

// Whether a page of RAM has to be brought in before it is accessed; if not, the access is noted.
INLINE bool is_late(const chost_cpu *cpu, uint64_t physical, bool user) {
  if (!cpu->late_pages) return false;
  uint8_t *flags = page_flags(cpu, physical), old = __atomic_load_n(flags, __ATOMIC_ACQUIRE);
  if (old & CHOST_PAGE_ABSENT) return true;
  if (user && !(old & CHOST_PAGE_USED)) __atomic_fetch_or(flags, CHOST_PAGE_USED, __ATOMIC_RELAXED);
  return false;
}

// --- The page walk

// Assigned field by field throughout: an initialiser that leaves padding becomes a call of memset in
// unoptimised builds.
typedef struct leaf {
  uint64_t physical;
  unsigned shift; // log2 of the page's size
  bool user;      // U/S is set at every level
  bool global;    // survives MOV CR3
} leaf;

typedef struct step { // one entry read by a walk
  uint64_t physical;
  uint64_t entry;
} step;

INLINE uint32_t fault(const chost_cpu *cpu, uint32_t access, uint32_t bits) {
  uint32_t code = FAULT | bits | (access & (CHOST_ACCESS_WRITE | CHOST_ACCESS_USER));
  // I/D is reported only by a processor state that can refuse a fetch (SDM 4.7).
  bool reports_fetch = (cpu->cr4 & CR4_SMEP) || ((cpu->cr4 & CR4_PAE) && (cpu->efer & EFER_NXE));
  if ((access & CHOST_ACCESS_FETCH) && reports_fetch) code |= CHOST_ACCESS_FETCH;
  return code;
}

// SDM 4.6.1. `rights` is the AND of the entries on the path, `nx` their OR.
INLINE bool denied(const chost_cpu *cpu, uint32_t access, uint64_t rights, uint64_t nx) {
  bool fetch = access & CHOST_ACCESS_FETCH, write = access & CHOST_ACCESS_WRITE;
  if (access & CHOST_ACCESS_USER) {
    if (!(rights & PTE_U) || (write && !(rights & PTE_W))) return true;
  } else {
    if (rights & PTE_U) {
      if (fetch && (cpu->cr4 & CR4_SMEP)) return true;
      bool lifted = (cpu->system_flags & SYSTEM_AC) && !(access & CHOST_ACCESS_IMPLICIT);
      if (!fetch && (cpu->cr4 & CR4_SMAP) && !lifted) return true;
    }
    if (write && !(rights & PTE_W) && (cpu->cr0 & CR0_WP)) return true;
  }
  // With EFER.NXE clear bit 63 was refused as reserved, and 32-bit entries do not have it.
  return fetch && (nx & PTE_NX);
}

// Sets accessed in every entry of a path and dirty in the last. Compare-and-exchange, not OR: another vCPU may
// have replaced the entry since it was read, and a bit set in what is now a swap entry or another page's
// would corrupt the guest. False: an entry changed, walk again.
INLINE bool update_path(const chost_cpu *cpu, const step *path, unsigned count, bool wide, bool write) {
  for (unsigned i = 0; i < count; i++) {
    uint64_t old = path[i].entry;
    uint64_t new = old | PTE_A | (write && i == count - 1 ? PTE_D : 0);
    if (old == new) continue;
    void *host = (void *)(cpu->ram + path[i].physical);
    bool stored;
    if (wide) {
      stored = __atomic_compare_exchange_n((uint64_t *)host, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
      uint32_t narrow = (uint32_t)old;
      stored = __atomic_compare_exchange_n((uint32_t *)host, &narrow, (uint32_t)new, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    if (!stored) return false;
    mark_dirty(cpu, path[i].physical);
  }
  return true;
}

// A table of the walk has gone away: whoever asked brings it in, and walks again.
INLINE uint32_t absent_table(uint64_t physical, leaf *out) {
  out->physical = physical;
  return CHOST_TABLE_ABSENT;
}

// 4-level paging, and PAE paging below its PDPTEs: 8-byte entries, 9 bits a level (SDM 4.4, 4.5).
INLINE uint32_t walk_wide(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out) {
  const uint64_t address_bits = cpu->physical_mask & PAGE_MASK;
  for (;;) {
    step path[4];
    unsigned count = 0, level;
    uint64_t table, rights = ~0ull, nx = 0;
    // Bits 51:MAXPHYADDR are reserved in every entry.
    uint64_t reserved = ~cpu->physical_mask & ((1ull << 52) - 1);
    if (!(cpu->efer & EFER_NXE)) reserved |= PTE_NX;
    if (cpu->efer & EFER_LMA) {
      table = cpu->cr3 & address_bits;
      level = 3;
    } else {
      // PDPTEs have neither rights nor accessed bits, and MOV CR3 checked their reserved bits (SDM 4.4.1).
      uint64_t pdpte = cpu->pdpte[linear >> 30 & 3];
      if (!(pdpte & PTE_P)) return fault(cpu, access, 0);
      table = pdpte & address_bits;
      level = 1;
      reserved |= 0x7FFull << 52; // ignored in 4-level entries, reserved in PAE's
    }
    unsigned shift;
    for (;; level--) {
      shift = 12 + 9 * level;
      uint64_t physical = (table + (linear >> shift & 511) * 8) & ~cpu->address_cut;
      // Outside RAM the bus reads as ones: a present entry with reserved bits set.
      if (!in_ram(cpu, physical, 8)) return fault(cpu, access, ERROR_P | ERROR_RSVD);
      if (is_absent(cpu, physical)) return absent_table(physical, out);
      uint64_t entry = __atomic_load_n((uint64_t *)(cpu->ram + physical), __ATOMIC_RELAXED);
      if (!(entry & PTE_P)) return fault(cpu, access, 0);
      bool large = level > 0 && (entry & PTE_PS);
      uint64_t forbidden = reserved;
      if (large) {
        // A PML4E has no PS; a large page's address bits below its size are reserved down to PAT (bit 12).
        forbidden |= level == 3 ? (uint64_t)PTE_PS : ((1ull << shift) - 1) & ~0x1FFFull;
      }
      if (entry & forbidden) return fault(cpu, access, ERROR_P | ERROR_RSVD);
      rights &= entry;
      nx |= entry;
      path[count++] = (step){physical, entry};
      if (large || level == 0) break;
      table = entry & address_bits;
    }
    if (denied(cpu, access, rights, nx)) return fault(cpu, access, ERROR_P);
    if (update && !update_path(cpu, path, count, true, access & CHOST_ACCESS_WRITE)) continue;
    uint64_t entry = path[count - 1].entry, within = (1ull << shift) - 1;
    out->physical = (entry & address_bits & ~within) | (linear & within);
    out->shift = shift;
    out->user = rights & PTE_U;
    out->global = (entry & PTE_G) && (cpu->cr4 & CR4_PGE);
    return 0;
  }
}

// 32-bit paging: 4-byte entries, 10 bits a level, 4 MiB pages with CR4.PSE and their PSE-36 extension (SDM 4.3).
INLINE uint32_t walk_narrow(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out) {
  for (;;) {
    step path[2];
    unsigned count = 0, shift = 22;
    uint64_t table = cpu->cr3 & 0xFFFFF000u, rights = ~0ull, base;
    for (;; shift -= 10) {
      uint64_t physical = (table + (linear >> shift & 1023) * 4) & ~cpu->address_cut;
      if (!in_ram(cpu, physical, 4)) return fault(cpu, access, ERROR_P | ERROR_RSVD);
      if (is_absent(cpu, physical)) return absent_table(physical, out);
      uint32_t entry = __atomic_load_n((uint32_t *)(cpu->ram + physical), __ATOMIC_RELAXED);
      if (!(entry & PTE_P)) return fault(cpu, access, 0);
      rights &= entry;
      path[count++] = (step){physical, entry};
      base = entry & 0xFFFFF000u;
      if (shift == 12) break;
      if ((entry & PTE_PS) && (cpu->cr4 & CR4_PSE)) {
        // Bits 20:13 are address bits 39:32 as far as MAXPHYADDR goes; bit 21 is reserved (SDM table 4-4).
        base = (entry & 0xFFC00000u) | (uint64_t)(entry >> 13 & 0xFF) << 32;
        if ((entry & 1u << 21) || (base & ~cpu->physical_mask)) return fault(cpu, access, ERROR_P | ERROR_RSVD);
        break;
      }
      table = base;
    }
    if (denied(cpu, access, rights, 0)) return fault(cpu, access, ERROR_P);
    if (update && !update_path(cpu, path, count, false, access & CHOST_ACCESS_WRITE)) continue;
    out->physical = base | (linear & ((1ull << shift) - 1));
    out->shift = shift;
    out->user = rights & PTE_U;
    out->global = (path[count - 1].entry & PTE_G) && (cpu->cr4 & CR4_PGE);
    return 0;
  }
}

INLINE uint32_t walk(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out) {
  uint32_t code = 0;
  if (!(cpu->cr0 & CR0_PG)) {
    out->physical = (uint32_t)linear;
    out->shift = 12;
    out->user = out->global = false;
  } else if (cpu->efer & EFER_LMA) {
    code = walk_wide(cpu, linear, access, update, out);
  } else if (cpu->cr4 & CR4_PAE) {
    code = walk_wide(cpu, (uint32_t)linear, access, update, out);
  } else {
    code = walk_narrow(cpu, (uint32_t)linear, access, update, out);
  }
  if (!code) out->physical &= ~cpu->address_cut;
  return code;
}

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

// --- Hashed sets

INLINE uint64_t hash_bit(uint64_t value, unsigned bits_log2) {
  return value * 0x9E3779B97F4A7C15ull >> (64 - bits_log2);
}

INLINE void set_bit(uint64_t *words, uint64_t bit) { words[bit >> 6] |= 1ull << (bit & 63); }
INLINE void clear_bit(uint64_t *words, uint64_t bit) { words[bit >> 6] &= ~(1ull << (bit & 63)); }
INLINE bool test_bit(const uint64_t *words, uint64_t bit) { return words[bit >> 6] >> (bit & 63) & 1; }

// The size of large pages is a property of the paging mode, whose change flushes everything.
INLINE unsigned large_shift(const chost_cpu *cpu) {
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

// --- The software TLB: filling

// Linear addresses that can be in a table: canonical ones (SDM 3.3.7.1), and 32-bit ones outside IA-32e mode.
INLINE bool representable(const chost_cpu *cpu, uint64_t linear) {
  if (cpu->efer & EFER_LMA) return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
  return linear >> 32 == 0;
}

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

// --- Slots

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

static void slot_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  chost_private *p = private_of(cpu);
  stack_clear(cpu, privilege);
  for (unsigned word = 0; word < SLOT_WORDS; word++) {
    uint64_t kept = keep_global ? p->slot_filled[privilege][word] & p->slot_global[privilege][word] : 0;
    for (uint64_t bits = p->slot_filled[privilege][word] & ~kept; bits; bits &= bits - 1)
      slot_clear(slot_table(cpu, privilege), word * 64 + (unsigned)__builtin_ctzll(bits));
    p->slot_filled[privilege][word] = kept;
  }
}

// Drops what maps any of the 1 << shift bytes around `linear`.
static void slot_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift) {
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

// Drops what may be written: a page has come to hold code, which is rare.
static void slot_protect(chost_cpu *cpu) {
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

// --- Jump caches

INLINE uint64_t *jump_tags(chost_cpu *cpu, unsigned privilege) {
  return (uint64_t *)(chost_env(cpu) + CHOST_JUMP_TAGS) + privilege * 2 * (uint64_t)CHOST_JUMP_ENTRIES;
}

INLINE uint64_t jump_index(uint64_t linear) { return (uint32_t)linear * (uint32_t)CHOST_JUMP_FACTOR >> CHOST_JUMP_SHIFT; }

// The tag is of another index, and not canonical.
INLINE void jump_clear(uint64_t *tags, uint64_t index) {
  tags[index] = 1ull << 63 | (jump_index(0) == index);
  tags[index + CHOST_JUMP_ENTRIES] = 0;
}

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

// Frames of a shadow stack lead to code by linear address, as jump cache entries do, and die with them.
INLINE void shadow_reset(chost_cpu *cpu, unsigned privilege) { cpu->shadow[privilege] = cpu->shadow_top[privilege]; }

static void jump_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
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

// Drops the entries of pages [first, last] (page numbers, which wrap).
static void jump_drop_pages(chost_cpu *cpu, unsigned privilege, uint64_t first, uint64_t last) {
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

INLINE bool jump_may_hold(chost_cpu *cpu, unsigned privilege, uint64_t page) {
  return test_bit(private_of(cpu)->jump_pages[privilege], hash_bit(page, PAGES_BITS_LOG2));
}

void chost_flush_jump_cache(chost_cpu *cpu) {
  jump_flush(cpu, 0, false);
  jump_flush(cpu, 1, false);
}

void chost_match_jump_mode(chost_cpu *cpu) {
  chost_private *p = private_of(cpu);
  unsigned user = (cpu->mode & CHOST_MODE_CPL) == 3;
  if (p->jump_mode[user] == cpu->mode) return;
  jump_flush(cpu, user, false);
  p->jump_mode[user] = cpu->mode;
}

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

// --- Flushing

INLINE void tlb_clear(chost_tlb_entry *table, uint64_t index) {
  // The address of a page that belongs elsewhere: no access with this index can hit, 0 and -1 included.
  table[index] = (chost_tlb_entry){(index ^ 1) << 12, 0};
}

static void tlb_flush(chost_cpu *cpu, unsigned privilege, unsigned write, bool keep_global) {
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

static void fetch_flush(chost_cpu *cpu, unsigned privilege, bool keep_global) {
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

static void flush_privilege(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  tlb_flush(cpu, privilege, 0, keep_global);
  tlb_flush(cpu, privilege, 1, keep_global);
  fetch_flush(cpu, privilege, keep_global);
  jump_flush(cpu, privilege, keep_global);
  slot_flush(cpu, privilege, keep_global);
  if (!keep_global) forget_large(private_of(cpu), privilege);
}

INLINE void flush_everything(chost_cpu *cpu) {
  chost_private *p = private_of(cpu);
  flush_privilege(cpu, 0, false);
  flush_privilege(cpu, 1, false);
  if (p->giant_used) {
    zero_words(p->giant, sizeof p->giant / 8);
    p->giant_used = 0;
  }
}

void chost_flush_all(chost_cpu *cpu) {
  cpu->count_tlb_flush++;
  flush_everything(cpu);
}

// Global pages may survive (SDM 4.10.2.4). In the user tables they are not worth telling apart: Linux has one,
// the vsyscall page.
void chost_flush_nonglobal(chost_cpu *cpu) {
  cpu->count_tlb_flush++;
  flush_privilege(cpu, 0, true);
  flush_privilege(cpu, 1, false);
}

static void tlb_drop_page(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t page) {
  uint64_t index = tlb_index(page);
  chost_tlb_entry *table = tlb_table(cpu, privilege, write);
  if (table[index].tag != page) return;
  tlb_clear(table, index);
  clear_bit(private_of(cpu)->tlb_filled[privilege][write], index);
}

// Drops every fragment of the large page around `linear`. Its pages have consecutive indexes, from a multiple
// of 64 on.
static void tlb_drop_window(chost_cpu *cpu, unsigned privilege, unsigned write, uint64_t linear, unsigned shift) {
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

static void fetch_drop(chost_cpu *cpu, unsigned privilege, uint64_t linear, unsigned shift) {
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

// Also global translations (SDM 4.10.4.1).
void chost_flush_page(chost_cpu *cpu, uint64_t linear) {
  // Which pages the frames are in is not known; losing them costs a few mispredicted returns.
  shadow_reset(cpu, 0);
  shadow_reset(cpu, 1);
  chost_private *p = private_of(cpu);
  cpu->count_tlb_flush++;
  if (!(cpu->efer & EFER_LMA)) linear = (uint32_t)linear;
  if (p->giant_used && test_bit(p->giant, hash_bit(linear >> 30, GIANT_BITS_LOG2))) {
    flush_everything(cpu); // a fragment may be anywhere; kernels use 1 GiB pages for what they never unmap
    return;
  }
  unsigned shift = large_shift(cpu);
  uint64_t page = linear >> 12, window = hash_bit(linear >> shift, LARGE_BITS_LOG2);
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    // A block may begin in the page before and end in this one.
    bool jump = jump_may_hold(cpu, privilege, page) || jump_may_hold(cpu, privilege, page - 1);
    if (!p->large_used[privilege] || !test_bit(p->large[privilege], window)) {
      tlb_drop_page(cpu, privilege, 0, linear & PAGE_MASK);
      tlb_drop_page(cpu, privilege, 1, linear & PAGE_MASK);
      fetch_drop(cpu, privilege, linear, 12);
      slot_drop(cpu, privilege, linear, 12);
      if (jump) jump_drop_pages(cpu, privilege, page - 1, page);
      continue;
    }
    tlb_drop_window(cpu, privilege, 0, linear, shift);
    tlb_drop_window(cpu, privilege, 1, linear, shift);
    fetch_drop(cpu, privilege, linear, shift);
    slot_drop(cpu, privilege, linear, shift);
    uint64_t first = linear >> shift << (shift - 12), last = first + (1ull << (shift - 12)) - 1;
    jump |= test_bit(p->large_code[privilege], window) || jump_may_hold(cpu, privilege, first - 1);
    if (jump) jump_drop_pages(cpu, privilege, first - 1, last);
  }
}

void chost_protect_page(chost_cpu *cpu, uint64_t physical) {
  slot_protect(cpu);
  uint64_t host = cpu->ram + (physical & PAGE_MASK);
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

void chost_reset_tables(chost_cpu *cpu) {
  zero_words((uint64_t *)private_of(cpu), sizeof(chost_private) / 8);
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    stack_clear(cpu, privilege);
    for (unsigned i = 0; i < CHOST_SLOTS_PER_PRIVILEGE; i++) slot_clear(slot_table(cpu, privilege), i);
  }
  for (unsigned privilege = 0; privilege < 2; privilege++) {
    for (unsigned i = 0; i < CHOST_TLB_ENTRIES; i++) {
      tlb_clear(tlb_table(cpu, privilege, 0), i);
      tlb_clear(tlb_table(cpu, privilege, 1), i);
    }
    for (unsigned i = 0; i < CHOST_JUMP_ENTRIES; i++) jump_clear(jump_tags(cpu, privilege), i);
  }
}

void chost_set_attention(chost_cpu *cpu) { __atomic_store_n(&cpu->attention, 1, __ATOMIC_SEQ_CST); }

LIGHT_HELPERS_END
