// SPDX-License-Identifier: Apache-2.0
// The part of the vCPU page that only the light helpers know (CHOST_PRIVATE): which entries of the software TLB
// and the jump caches are filled, so that a flush costs what was filled and not what could have been.
//
// Everything is a bitmap: a fill is one OR, has no capacity to exceed and no duplicates, and the 16 words of a
// TLB table are scanned faster than one entry is refilled.
#ifndef CHOST_PRIVATE_H
#define CHOST_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>

#include "chost.h"

// The guest's vector registers are in the host's while these functions run: the compiler may use general registers only.
// Every file that includes this one ends with LIGHT_HELPERS_END.
#pragma clang attribute push(__attribute__((target("general-regs-only"))), apply_to = function)
#define LIGHT_HELPERS_END _Pragma("clang attribute pop")

enum {
  FETCH_ENTRIES = 128,
  TLB_WORDS = CHOST_TLB_ENTRIES / 64,
  JUMP_WORDS = CHOST_JUMP_ENTRIES / 64,
  SLOT_WORDS = CHOST_SLOTS_PER_PRIVILEGE / 64,
  LARGE_BITS_LOG2 = 12,
  GIANT_BITS_LOG2 = 9,
  PAGES_BITS_LOG2 = 11,
};

// No page's address plus its global bit.
#define FETCH_REFUSED (~(uint64_t)0)

// A translation for instruction fetches; used by chost_lookup only.
typedef struct fetch_entry {
  uint64_t tag;   // linear page | 1; 0 when empty
  uint64_t value; // physical page | global
} fetch_entry;

// Everything indexed by privilege: 0 supervisor, 1 user.
typedef struct chost_private {
  uint64_t tlb_filled[2][2][TLB_WORDS]; // [privilege][write]
  uint64_t tlb_global[2][2][TLB_WORDS];
  uint64_t jump_filled[2][JUMP_WORDS];
  uint64_t jump_global[2][JUMP_WORDS];
  uint64_t jump_summary[2];             // bit w: jump_filled[w] is not zero
  uint64_t fetch_filled[2][FETCH_ENTRIES / 64];
  fetch_entry fetch[2][FETCH_ENTRIES];
  // Hashed sets that may say "yes" wrongly, never "no". INVLPG drops the whole large page (SDM volume 3,
  // 4.10.4.1), and the tables hold 4 KiB fragments of it, so fragments must be recognisable.
  uint64_t large[2][1 << (LARGE_BITS_LOG2 - 6)];       // windows of 2 or 4 MiB with a fragment in any table
  uint64_t large_code[2][1 << (LARGE_BITS_LOG2 - 6)];  // of these, windows that code was fetched from
  uint64_t giant[1 << (GIANT_BITS_LOG2 - 6)];          // 1 GiB pages with a fragment anywhere
  uint64_t jump_pages[2][1 << (PAGES_BITS_LOG2 - 6)];  // pages with a jump cache entry
  uint32_t large_used[2];
  uint32_t giant_used;
  uint32_t shadow_nonglobal[2]; // code of pages that are not global has run: its frames die with MOV CR3
  uint64_t slot_filled[2][SLOT_WORDS];
  uint64_t slot_global[2][SLOT_WORDS];
  uint16_t site_misses[2][2 * CHOST_SITES]; // of filled slots, since somebody looked
  uint32_t jump_mode[2]; // the mode word that the jump cache's targets were translated for
} chost_private;

_Static_assert(sizeof(chost_private) <= CHOST_BOUNCE - CHOST_PRIVATE, "the private area overflows");
_Static_assert(sizeof(chost_cpu) <= CHOST_TABLES + CHOST_ENV, "the vCPU structure reaches its tables");
_Static_assert(offsetof(chost_cpu, flags) == CHOST_ENV, "ENV points at `flags`");
_Static_assert(offsetof(chost_cpu, segments) == 2 * CHOST_ENV, "the hot slots are within ENV-128 ... ENV+127");
_Static_assert((CHOST_FPU + CHOST_ENV) % 64 == 0, "the XSAVE image is aligned");

#define INLINE static inline __attribute__((always_inline))

enum { PAGE_SIZE = 4096 };
#define PAGE_MASK (~(uint64_t)(PAGE_SIZE - 1))

enum { SYSTEM_TF = 1 << 8, SYSTEM_DF = 1 << 10, SYSTEM_VM = 1 << 17, SYSTEM_AC = 1 << 18 };
enum { EFER_LMA = 1 << 10, EFER_NXE = 1 << 11 };
enum { CR0_PE = 1 << 0, CR0_MP = 1 << 1, CR0_EM = 1 << 2, CR0_TS = 1 << 3, CR0_WP = 1 << 16, CR0_AM = 1 << 18 };
#define CR0_PG (1u << 31)
enum { CR4_TSD = 1 << 2, CR4_PSE = 1 << 4, CR4_PAE = 1 << 5, CR4_PGE = 1 << 7, CR4_OSFXSR = 1 << 9, CR4_UMIP = 1 << 11 };
enum { CR4_FSGSBASE = 1 << 16, CR4_PCIDE = 1 << 17, CR4_OSXSAVE = 1 << 18, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };
enum { XCR0_AVX = 1 << 2, DR7_ENABLED = 0xFF };
enum { ATTRIBUTE_UNUSABLE = 1 << 16 }; // of a segment

INLINE uint8_t *chost_env(chost_cpu *cpu) { return (uint8_t *)cpu + CHOST_ENV; }

INLINE chost_private *private_of(chost_cpu *cpu) { return (chost_private *)(chost_env(cpu) + CHOST_PRIVATE); }

INLINE chost_tlb_entry *tlb_table(chost_cpu *cpu, unsigned privilege, unsigned write) {
  return (chost_tlb_entry *)(chost_env(cpu) + CHOST_TLB_READ + (privilege * 2 + write) * (uint64_t)CHOST_TLB_BYTES);
}

INLINE uint64_t tlb_index(uint64_t linear) { return linear >> 12 & (CHOST_TLB_ENTRIES - 1); }

// A byte for each page of RAM: not for other addresses.
INLINE uint8_t *page_flags(const chost_cpu *cpu, uint64_t physical) {
  return (uint8_t *)cpu->page_flags + (physical >> 12);
}

// Whether a page of RAM has gone away. Only guests whose pages may pay for more than the first comparison.
INLINE bool is_absent(const chost_cpu *cpu, uint64_t physical) {
  return cpu->late_pages && (__atomic_load_n(page_flags(cpu, physical), __ATOMIC_ACQUIRE) & CHOST_PAGE_ABSENT);
}

// memcpy and memset may use vector registers, which hold the guest's values while these helpers run.
INLINE void copy_bytes(void *to, const void *from, uint64_t count) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

INLINE void zero_words(uint64_t *to, uint64_t count) {
  __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"((uint64_t)0) : "memory");
}

// Makes one guest page accessible and remembers it in the software TLB: linear + *addend is the host address.
// False when translated code may not touch the page directly: fault, device, code page.
bool chost_resolve(chost_cpu *cpu, uint64_t linear, bool user, bool write, uint64_t *addend);

// The same for `count` bytes of the page: stores that share no 64-byte chunk with code are served on code pages too.
bool chost_resolve_bytes(chost_cpu *cpu, uint64_t linear, bool user, bool write, uint64_t count, uint64_t *addend);

// The same for what the processor does on its own, descriptor tables and the like: EFLAGS.AC does not lift SMAP.
bool chost_resolve_implicit(chost_cpu *cpu, uint64_t linear, bool write, uint64_t *addend);

// Empties the jump cache of the current privilege if it was filled under another mode word.
void chost_match_jump_mode(chost_cpu *cpu);

// The same through the TLB.
INLINE bool chost_access_page(chost_cpu *cpu, uint64_t linear, bool user, bool write, uint64_t *addend) {
  const chost_tlb_entry *entry = &tlb_table(cpu, user, write)[tlb_index(linear)];
  if (entry->tag == (linear & PAGE_MASK)) {
    *addend = entry->addend;
    return true;
  }
  return chost_resolve(cpu, linear, user, write, addend);
}

#endif
