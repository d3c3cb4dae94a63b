// SPDX-License-Identifier: Apache-2.0
// Flushes: which tables forget what when translations change. "SDM" is the Intel manual, volume 3.
#include "tables.h"

static void flush_privilege(chost_cpu *cpu, unsigned privilege, bool keep_global) {
  chost_tlb_flush(cpu, privilege, 0, keep_global);
  chost_tlb_flush(cpu, privilege, 1, keep_global);
  chost_fetch_flush(cpu, privilege, keep_global);
  chost_jump_flush(cpu, privilege, keep_global);
  chost_slots_flush(cpu, privilege, keep_global);
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
    bool jump = chost_jump_may_hold(cpu, privilege, page) || chost_jump_may_hold(cpu, privilege, page - 1);
    if (!p->large_used[privilege] || !test_bit(p->large[privilege], window)) {
      chost_tlb_drop_page(cpu, privilege, 0, linear & PAGE_MASK);
      chost_tlb_drop_page(cpu, privilege, 1, linear & PAGE_MASK);
      chost_fetch_drop(cpu, privilege, linear, 12);
      chost_slots_drop(cpu, privilege, linear, 12);
      if (jump) chost_jump_drop_pages(cpu, privilege, page - 1, page);
      continue;
    }
    chost_tlb_drop_window(cpu, privilege, 0, linear, shift);
    chost_tlb_drop_window(cpu, privilege, 1, linear, shift);
    chost_fetch_drop(cpu, privilege, linear, shift);
    chost_slots_drop(cpu, privilege, linear, shift);
    uint64_t first = linear >> shift << (shift - 12), last = first + (1ull << (shift - 12)) - 1;
    jump |= test_bit(p->large_code[privilege], window) || chost_jump_may_hold(cpu, privilege, first - 1);
    if (jump) chost_jump_drop_pages(cpu, privilege, first - 1, last);
  }
}

void chost_protect_page(chost_cpu *cpu, uint64_t physical) {
  chost_slots_protect(cpu);
  chost_tlb_protect(cpu, cpu->ram + (physical & PAGE_MASK));
}

void chost_reset_tables(chost_cpu *cpu) {
  chost_slots_reset(cpu);
  chost_tlb_reset(cpu);
  chost_jump_reset(cpu);
}

LIGHT_HELPERS_END
