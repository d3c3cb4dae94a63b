// SPDX-License-Identifier: Apache-2.0
// The page walk: from a linear address to a physical one, with the rights of its path and the accessed and dirty bits.
// "SDM" is the Intel manual, volume 3. Translations are asked for in several files, and each compiles its own.
#ifndef CHOST_PAGING_H
#define CHOST_PAGING_H

#include "private.h"

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

// 4-level paging, and PAE paging below its PDPTEs, which are at `top` then: 8-byte entries, 9 bits a level (SDM 4.4, 4.5).
INLINE uint32_t walk_wide(chost_cpu *cpu, const uint64_t *top, uint64_t linear, uint32_t access, bool update, leaf *out) {
  const uint64_t address_bits = cpu->physical_mask & PAGE_MASK;
  for (;;) {
    step path[4];
    unsigned count = 0, level;
    uint64_t table, rights = ~0ull, nx = 0;
    // Bits 51:MAXPHYADDR are reserved in every entry.
    uint64_t reserved = ~cpu->physical_mask & ((1ull << 52) - 1);
    if (!(cpu->efer & EFER_NXE)) reserved |= PTE_NX;
    if (!top) {
      table = cpu->cr3 & address_bits;
      level = 3;
    } else {
      // PDPTEs have neither rights nor accessed bits, and MOV CR3 checked their reserved bits (SDM 4.4.1).
      uint64_t pdpte = top[linear >> 30 & 3];
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
INLINE uint32_t walk_narrow(chost_cpu *cpu, uint64_t root, uint64_t linear, uint32_t access, bool update, leaf *out) {
  for (;;) {
    step path[2];
    unsigned count = 0, shift = 22;
    uint64_t table = root & 0xFFFFF000u, rights = ~0ull, base;
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

// The walk of an address space that the machine keeps (kept_space.c).
uint32_t chost_walk_kept(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out);

INLINE uint32_t walk(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out) {
  uint32_t code = 0;
  if (__builtin_expect(cpu->space != CHOST_SPACE_REGISTERS, false)) {
    code = chost_walk_kept(cpu, linear, access, update, out);
  } else if (!(cpu->cr0 & CR0_PG)) {
    out->physical = (uint32_t)linear;
    out->shift = 12;
    out->user = out->global = false;
  } else if (cpu->efer & EFER_LMA) {
    code = walk_wide(cpu, 0, linear, access, update, out);
  } else if (cpu->cr4 & CR4_PAE) {
    code = walk_wide(cpu, cpu->pdpte, (uint32_t)linear, access, update, out);
  } else {
    code = walk_narrow(cpu, cpu->cr3, (uint32_t)linear, access, update, out);
  }
  if (!code) out->physical &= ~cpu->address_cut;
  return code;
}

#endif
