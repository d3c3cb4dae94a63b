// SPDX-License-Identifier: Apache-2.0
// The light forms of what 32-bit kernels and their programs execute thousands of times a second: SYSENTER, SYSEXIT,
// INT, IRETD, POPFD, loads of segment registers, MOV CR3 with and without PAE, INVLPG, and #PF. All of them in
// protected mode outside IA-32e mode with flat segments; everything else is declined, as in system.c.
#include "light.h"

enum {
  // P, level 0 or 3, S, code that does not conform, accessed, D; readable or not.
  CODE_MASK = 0x60fd, CODE0 = 0x4099, CODE3 = 0x40f9,
  // P, level 0 or 3, S, writable data that grows up, accessed, B.
  STACK_MASK = 0x40ff, STACK0 = 0x4093, STACK3 = 0x40f3,
  LEVEL_SHIFT = 5, // of attributes
};

// Flat 32-bit protected mode, without single-stepping and breakpoints.
INLINE bool plain(const chost_cpu *cpu) {
  const uint32_t looked_at = CHOST_MODE_PROTECTED | CHOST_MODE_LMA | CHOST_MODE_VM86 | CHOST_MODE_SEGMENTED | CHOST_MODE_CODE32 |
                             CHOST_MODE_STACK32 | CHOST_MODE_STEP;
  return (cpu->mode & looked_at) == (CHOST_MODE_PROTECTED | CHOST_MODE_CODE32 | CHOST_MODE_STACK32) && !cpu->no_light;
}

INLINE bool plain_kernel(const chost_cpu *cpu) { return plain(cpu) && !(cpu->mode & CHOST_MODE_CPL); }

// A descriptor of a segment that spans everything.
INLINE bool is_flat(uint64_t descriptor) { return base_of(descriptor) == 0 && limit_of(descriptor) == 0xffffffff; }

INLINE bool is_flat_code(uint64_t descriptor, uint32_t kind) {
  return (attributes_of(descriptor) & CODE_MASK) == kind && is_flat(descriptor);
}

INLINE bool is_flat_stack(uint64_t descriptor, uint32_t kind) {
  return (attributes_of(descriptor) & STACK_MASK) == kind && is_flat(descriptor);
}

uint64_t chost_light_sysenter(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint16_t selector = cpu->sysenter_cs & 0xfffc;
  if (!plain(cpu) || !selector) return CHOST_LIGHT_DECLINED;
  cpu->gpr[RSP] = (uint32_t)cpu->sysenter_esp;
  cpu->system_flags &= ~(uint32_t)(FLAG_VM | FLAG_IF | FLAG_RF);
  set_flat(&cpu->segments[CHOST_CS], selector, FLAT_CODE32);
  set_flat(&cpu->segments[CHOST_SS], selector + 8, FLAT_DATA);
  chost_update_mode(cpu);
  return go_to(cpu, (uint32_t)cpu->sysenter_eip);
}

uint64_t chost_light_sysexit(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint16_t selector = cpu->sysenter_cs & 0xfffc;
  if (!plain_kernel(cpu) || !selector) return CHOST_LIGHT_DECLINED;
  uint32_t target = (uint32_t)cpu->gpr[RDX];
  cpu->gpr[RSP] = (uint32_t)cpu->gpr[RCX];
  cpu->system_flags &= ~(uint32_t)FLAG_RF;
  set_flat(&cpu->segments[CHOST_CS], (selector + 16) | 3, FLAT_CODE32 | DPL3);
  set_flat(&cpu->segments[CHOST_SS], (selector + 24) | 3, FLAT_DATA | DPL3);
  chost_update_mode(cpu);
  return go_to(cpu, target);
}

// A word of RAM that a guest and the machine share, `place` plus 1; 0 if it is not simply there.
INLINE uint8_t *shared_word(chost_cpu *cpu, uint64_t place) {
  uint64_t physical = place - 1;
  if (physical >= cpu->ram_low_end || is_absent(cpu, physical)) return 0;
  uint8_t *flags = page_flags(cpu, physical);
  // Beside translated code a store is Swift's.
  if ((__atomic_load_n(flags, __ATOMIC_ACQUIRE) & (CHOST_PAGE_CODE | CHOST_PAGE_DIRTY)) != CHOST_PAGE_DIRTY) return 0;
  return (uint8_t *)(cpu->ram + physical);
}

// Through a 32-bit interrupt or trap gate to level 0 or 1. `software`: INT n, which needs the gate's permission.
INLINE uint64_t through_gate(chost_cpu *cpu, unsigned vector, bool has_error, uint32_t error, uint32_t eip, bool software) {
  uint32_t offset = vector * 8;
  if (!plain(cpu) || offset + 7 > cpu->idtr.limit || (cpu->machine_vectors[vector >> 6] >> (vector & 63) & 1)) return 0;
  const uint8_t *entry = supervisor(cpu, cpu->idtr.base + offset, 8, false);
  if (!entry) return 0;
  uint64_t gate = load64(entry);
  unsigned type = gate >> 40 & 0x9f, privilege = cpu->mode & CHOST_MODE_CPL;
  if ((type != 0x8e && type != 0x8f) || (software && privilege > (gate >> 45 & 3))) return 0;
  uint32_t target = (gate & 0xffff) | (uint32_t)(gate >> 32 & 0xffff0000);
  uint16_t selector = gate >> 16 & 0xfffc;
  uint64_t code = descriptor(cpu, selector), stack = 0;
  unsigned level = attributes_of(code) >> LEVEL_SHIFT & 3;
  if (level > 1 || level > privilege || !is_flat_code(code, CODE0 | level << LEVEL_SHIFT)) return 0;
  uint32_t esp = (uint32_t)cpu->gpr[RSP], old_esp = esp, count = has_error ? 16 : 12;
  uint16_t ss = 0;
  if (privilege != level) {
    const chost_segment *task = &cpu->segments[CHOST_TR];
    if ((task->attributes & 13) != 9 || task->limit < 9 + level * 8) return 0; // a 32-bit TSS with the level's SS:ESP
    const uint8_t *top = supervisor(cpu, task->base + 4 + level * 8, 6, false);
    if (!top) return 0;
    esp = load32(top);
    ss = *(const volatile uint16_t *)(top + 4);
    if ((ss & 3) != level) return 0;
    stack = descriptor(cpu, ss);
    if (!is_flat_stack(stack, STACK0 | level << LEVEL_SHIFT)) return 0;
    count += 8;
  }
  uint8_t *flag = 0, *address = 0;
  if (cpu->virtual_flag && !(flag = shared_word(cpu, cpu->virtual_flag))) return 0;
  if (cpu->fault_address && vector == 14 && !(address = shared_word(cpu, cpu->fault_address))) return 0;
  esp -= count;
  uint8_t *frame = supervisor(cpu, esp, count, true);
  if (!frame) return 0;
  uint32_t flags = (uint32_t)rflags(cpu);
  if (flag) flags = (flags & ~(uint32_t)FLAG_IF) | (load32(flag) & FLAG_IF);
  if (has_error) {
    store32(frame, error);
    frame += 4;
  }
  store32(frame, eip);
  store32(frame + 4, cpu->segments[CHOST_CS].selector);
  // Faults set RF in the image, so that a breakpoint does not trap again.
  store32(frame + 8, software ? flags : flags | FLAG_RF);
  if (privilege != level) {
    store32(frame + 12, old_esp);
    store32(frame + 16, cpu->segments[CHOST_SS].selector);
    set_segment(&cpu->segments[CHOST_SS], ss, stack);
  }
  cpu->gpr[RSP] = esp;
  bool masks = type == 0x8e;
  if (flag && masks) store32(flag, 0);
  if (address) store32(address, (uint32_t)cpu->cr2);
  cpu->system_flags &= ~(uint32_t)(FLAG_NT | FLAG_RF | (masks && !flag ? FLAG_IF : 0));
  set_segment(&cpu->segments[CHOST_CS], selector | level, code);
  chost_update_mode(cpu);
  return go_to(cpu, target);
}

uint64_t chost_light32_deliver(chost_cpu *cpu, unsigned vector, uint32_t error, uint64_t rip) {
  return through_gate(cpu, vector, true, error, (uint32_t)rip, false);
}

// INT n: the vector is in scratch[0].
uint64_t chost_light_int(chost_cpu *cpu, uint32_t info) {
  return through_gate(cpu, cpu->scratch[0] & 255, false, 0, (uint32_t)next(cpu, info), true);
}

// IRETD at level 0 or 1, to the same code segment or out to level 3.
uint64_t chost_light32_iret(chost_cpu *cpu, uint32_t info) {
  (void)info;
  unsigned privilege = cpu->mode & CHOST_MODE_CPL;
  if (!plain(cpu) || privilege > 1 || (cpu->system_flags & FLAG_NT) || cpu->interrupt_waiting) return CHOST_LIGHT_DECLINED;
  uint32_t esp = (uint32_t)cpu->gpr[RSP];
  const uint8_t *frame = supervisor(cpu, esp, 12, false);
  if (!frame) return CHOST_LIGHT_DECLINED;
  uint32_t eip = load32(frame), flags = load32(frame + 8);
  uint16_t cs = (uint16_t)load32(frame + 4), ss = 0;
  if (flags & (FLAG_VM | FLAG_TF)) return CHOST_LIGHT_DECLINED;
  uint64_t code = 0, stack = 0;
  if ((cs & 3) == 3) {
    frame = supervisor(cpu, esp, 20, false);
    if (!frame) return CHOST_LIGHT_DECLINED;
    esp = load32(frame + 12);
    ss = (uint16_t)load32(frame + 16);
    code = descriptor(cpu, cs);
    stack = descriptor(cpu, ss);
    if (!is_flat_code(code, CODE3) || !is_flat_stack(stack, STACK3) || (ss & 3) != 3 || !keeps_data_segments(cpu))
      return CHOST_LIGHT_DECLINED;
  } else {
    if (!is_loaded(cpu, CHOST_CS, cs)) return CHOST_LIGHT_DECLINED;
    esp += 12;
  }
  // Without breakpoints, for which there is no light way, RF would only be stale at the next instruction but one. IOPL, VIF
  // and VIP are level 0's, IF that of levels up to IOPL (SDM volume 2, IRET).
  uint32_t kept = privilege ? FLAG_IOPL | FLAG_VIF | FLAG_VIP : 0;
  if (privilege > (cpu->system_flags >> 12 & 3)) kept |= FLAG_IF;
  set_rflags(cpu, (flags & 0x3e7fd7 & ~kept) | (cpu->system_flags & kept));
  cpu->gpr[RSP] = esp;
  if (code) {
    set_segment(&cpu->segments[CHOST_CS], cs, code);
    set_segment(&cpu->segments[CHOST_SS], ss, stack);
  }
  chost_update_mode(cpu);
  return go_to(cpu, eip);
}

// POPFD.
uint64_t chost_light32_popf(chost_cpu *cpu, uint32_t info) {
  (void)info;
  unsigned privilege = cpu->mode & CHOST_MODE_CPL;
  uint64_t addend, esp = (uint32_t)cpu->gpr[RSP];
  if (!plain(cpu) || (esp & (PAGE_SIZE - 1)) > PAGE_SIZE - 4 || !chost_access_page(cpu, esp, privilege == 3, false, &addend))
    return CHOST_LIGHT_DECLINED;
  uint32_t image = load32((const uint8_t *)(esp + addend)), old = cpu->system_flags;
  uint32_t changeable = 0x244dd5; // AC ID NT DF TF and the arithmetic flags
  if (!privilege) changeable |= FLAG_IF | FLAG_IOPL;
  else if (privilege <= (old >> 12 & 3)) return CHOST_LIGHT_DECLINED;
  uint32_t changed = (image ^ old) & changeable;
  if ((changed & (FLAG_TF | FLAG_AC)) || (old & FLAG_RF) || ((changed & FLAG_IF) && cpu->interrupt_waiting))
    return CHOST_LIGHT_DECLINED;
  set_rflags(cpu, (image & changeable) | (old & ~changeable));
  cpu->gpr[RSP] = (uint32_t)(esp + 4);
  return CHOST_LIGHT_CONTINUE;
}

// A load of DS, ES, FS or GS: scratch[0] is the selector, and the register's number in bits 31:16.
uint64_t chost_light_segment(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint16_t selector = (uint16_t)cpu->scratch[0];
  unsigned number = cpu->scratch[0] >> 16 & 7, privilege = cpu->mode & CHOST_MODE_CPL, rpl = selector & 3;
  if (!plain(cpu)) return CHOST_LIGHT_DECLINED;
  if (!(selector & 0xfffc)) {
    cpu->segments[number] = (chost_segment){.attributes = ATTRIBUTE_UNUSABLE, .selector = selector};
  } else {
    uint64_t found = descriptor(cpu, selector);
    uint32_t attributes = attributes_of(found), level = attributes >> 5 & 3;
    // Present, data or readable code, accessed already. Conforming code has no level.
    if ((attributes & 0x91) != 0x91 || (attributes & 0xa) == 8) return CHOST_LIGHT_DECLINED;
    if ((attributes & 0xc) != 0xc && (privilege > level || rpl > level)) return CHOST_LIGHT_DECLINED;
    set_segment(&cpu->segments[number], selector, found);
  }
  chost_update_mode(cpu);
  return CHOST_LIGHT_CONTINUE;
}

// MOV CR3: the value is in scratch[0]. With PAE it loads the four top entries (SDM volume 3, 4.4.1).
uint64_t chost_light32_cr3(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint32_t value = (uint32_t)cpu->scratch[0], table = value & ~31u & ~(uint32_t)cpu->address_cut;
  if (!plain_kernel(cpu)) return CHOST_LIGHT_DECLINED;
  if ((cpu->cr0 & CR0_PG) && (cpu->cr4 & CR4_PAE)) {
    uint64_t entries[4], reserved = ~cpu->physical_mask | 0x1e6;
    if ((uint64_t)table + 32 > cpu->ram_low_end || is_absent(cpu, table)) return CHOST_LIGHT_DECLINED;
    for (unsigned i = 0; i < 4; i++) {
      entries[i] = load64((const uint8_t *)(cpu->ram + table + i * 8));
      if ((entries[i] & 1) && (entries[i] & reserved)) return CHOST_LIGHT_DECLINED;
    }
    for (unsigned i = 0; i < 4; i++) cpu->pdpte[i] = entries[i];
  }
  cpu->cr3 = value;
  chost_flush_nonglobal(cpu);
  return CHOST_LIGHT_CONTINUE;
}

// INVLPG: the linear address is in scratch[0].
uint64_t chost_light32_invlpg(chost_cpu *cpu, uint32_t info) {
  (void)info;
  if (!plain_kernel(cpu)) return CHOST_LIGHT_DECLINED;
  chost_flush_page(cpu, (uint32_t)cpu->scratch[0]);
  return CHOST_LIGHT_CONTINUE;
}

LIGHT_HELPERS_END
