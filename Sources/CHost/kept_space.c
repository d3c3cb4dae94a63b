// SPDX-License-Identifier: Apache-2.0
// Address spaces that the machine keeps: the same walk, from roots that are no control register's. A function of its own, so
// that guests whose control registers say where pages are pay for a comparison.
#include "paging.h"

uint32_t chost_walk_kept(chost_cpu *cpu, uint64_t linear, uint32_t access, bool update, leaf *out) {
  if (cpu->kept_page && linear >= cpu->kept_linear) {
    // The machine's: data that is only read, and not by level 3.
    if (linear - cpu->kept_linear >= PAGE_SIZE) return fault(cpu, access, 0);
    if (access & (CHOST_ACCESS_USER | CHOST_ACCESS_WRITE | CHOST_ACCESS_FETCH)) return fault(cpu, access, ERROR_P);
    out->physical = CHOST_KEPT_PHYSICAL + (linear - cpu->kept_linear);
    out->shift = 12;
    out->user = out->global = false;
    return 0;
  }
  switch (cpu->space) {
  case CHOST_SPACE_NARROW: return walk_narrow(cpu, cpu->kept_root, (uint32_t)linear, access, update, out);
  case CHOST_SPACE_WIDE: return walk_wide(cpu, cpu->kept_pdpte, (uint32_t)linear, access, update, out);
  default: // CHOST_SPACE_IDENTITY: no page is the user's
    if (access & CHOST_ACCESS_USER) return fault(cpu, access, ERROR_P);
    out->physical = (uint32_t)linear;
    out->shift = 12;
    out->user = out->global = false;
    return 0;
  }
}

LIGHT_HELPERS_END
