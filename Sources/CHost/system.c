// SPDX-License-Identifier: Apache-2.0
// The light forms of the system instructions and of exception delivery that a running Linux executes thousands of
// times a second: SYSCALL, SYSRET, IRET, POPF, MOV CR3, INVLPG, WRFSBASE, and #PF. Each handles the case
// that 64-bit kernels meet, hands what 32-bit kernels do to system32.c, and declines everything else before it has
// changed anything; the complete semantics are Swift's (Translator/System), which then executes the instruction.
#include "light.h"

uint64_t chost_light_syscall(chost_cpu *cpu, uint32_t info) {
  if (cpu->no_light || !(cpu->efer & 1) || !(cpu->mode & CHOST_MODE_LONG) || (cpu->system_flags & FLAG_TF)) return CHOST_LIGHT_DECLINED;
  uint16_t selector = cpu->star >> 32 & 0xfffc;
  uint64_t flags = rflags(cpu);
  cpu->gpr[RCX] = next(cpu, info);
  cpu->gpr[R11] = flags & ~(uint64_t)FLAG_RF;
  set_rflags(cpu, flags & ~(cpu->sfmask | FLAG_RF | FLAG_VM));
  set_flat(&cpu->segments[CHOST_CS], selector, FLAT_CODE64);
  set_flat(&cpu->segments[CHOST_SS], selector + 8, FLAT_DATA);
  chost_update_mode(cpu);
  return go_to(cpu, cpu->lstar);
}

uint64_t chost_light_sysret(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint64_t target = cpu->gpr[RCX];
  if (!(cpu->efer & 1) || !(cpu->mode & CHOST_MODE_LONG) || (cpu->mode & CHOST_MODE_CPL) || !canonical(target) ||
      (cpu->system_flags & FLAG_TF) || (cpu->gpr[R11] & FLAG_TF) || cpu->interrupt_waiting || cpu->no_light)
    return CHOST_LIGHT_DECLINED;
  uint16_t base = cpu->star >> 48;
  set_rflags(cpu, cpu->gpr[R11] & 0x3c7fd7);
  set_flat(&cpu->segments[CHOST_CS], (base + 16) | 3, FLAT_CODE64 | DPL3);
  set_flat(&cpu->segments[CHOST_SS], (base + 8) | 3, FLAT_DATA | DPL3);
  chost_update_mode(cpu);
  return go_to(cpu, target);
}

// VMCALL and VMMCALL of 64-bit code at level 0 with a number whose answer does not depend on anything.
uint64_t chost_light_hypercall(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint64_t number = cpu->gpr[RAX];
  if (cpu->no_light || number >= CHOST_LIGHT_HYPERCALLS || !(cpu->light_hypercalls >> number & 1) ||
      (cpu->mode & (CHOST_MODE_LONG | CHOST_MODE_CPL)) != CHOST_MODE_LONG || (cpu->system_flags & (FLAG_TF | FLAG_RF)))
    return CHOST_LIGHT_DECLINED;
  cpu->count_hypercall[number]++;
  cpu->gpr[RAX] = (uint64_t)(int64_t)cpu->light_hypercall_result[number];
  return CHOST_LIGHT_CONTINUE;
}

// IRETQ in 64-bit mode, to the same code segment or out to level 3 in 64-bit mode.
uint64_t chost_light_iret(chost_cpu *cpu, uint32_t info) {
  if (!(cpu->mode & CHOST_MODE_LONG)) return chost_light32_iret(cpu, info);
  if ((cpu->mode & (CHOST_MODE_LONG | CHOST_MODE_CPL)) != CHOST_MODE_LONG || (cpu->system_flags & (FLAG_NT | FLAG_TF)) ||
      cpu->interrupt_waiting || cpu->no_light)
    return CHOST_LIGHT_DECLINED;
  const uint8_t *frame = supervisor(cpu, cpu->gpr[RSP], 40, false);
  if (!frame) return CHOST_LIGHT_DECLINED;
  uint64_t rip = load64(frame), flags = load64(frame + 16), rsp = load64(frame + 24);
  uint16_t cs = (uint16_t)load64(frame + 8), ss = (uint16_t)load64(frame + 32);
  if (!canonical(rip) || (flags & (FLAG_VM | FLAG_TF))) return CHOST_LIGHT_DECLINED;
  uint64_t code = 0, stack = 0;
  if ((cs & 3) == 3) {
    code = descriptor(cpu, cs);
    stack = descriptor(cpu, ss);
    uint32_t c = attributes_of(code), s = attributes_of(stack);
    // Code: present, level 3, accessed, not conforming, L, not D. Stack: present, level 3, accessed, writable data.
    if ((c & 0x60fd) != 0x20f9 || (s & 0xff) != 0xf3 || (ss & 3) != 3 || !keeps_data_segments(cpu))
      return CHOST_LIGHT_DECLINED;
  } else {
    if (!is_loaded(cpu, CHOST_CS, cs) || !is_loaded(cpu, CHOST_SS, ss)) return CHOST_LIGHT_DECLINED;
  }
  // Without breakpoints, for which there is no light way, RF would only be stale at the next instruction but one.
  set_rflags(cpu, flags & 0x3e7fd7);
  cpu->gpr[RSP] = rsp;
  if (code) {
    set_segment(&cpu->segments[CHOST_CS], cs, code);
    set_segment(&cpu->segments[CHOST_SS], ss, stack);
  }
  chost_update_mode(cpu);
  return go_to(cpu, rip);
}

// POPFQ in 64-bit mode.
uint64_t chost_light_popf(chost_cpu *cpu, uint32_t info) {
  if (!(cpu->mode & CHOST_MODE_LONG)) return chost_light32_popf(cpu, info);
  bool user = (cpu->mode & CHOST_MODE_CPL) == 3;
  uint64_t addend, rsp = cpu->gpr[RSP];
  if (cpu->no_light || !(cpu->mode & CHOST_MODE_LONG) || !canonical(rsp) || (rsp & (PAGE_SIZE - 1)) > PAGE_SIZE - 8 ||
      !chost_access_page(cpu, rsp, user, false, &addend))
    return CHOST_LIGHT_DECLINED;
  uint64_t image = load64((const uint8_t *)(rsp + addend)), old = cpu->system_flags;
  uint64_t changeable = 0x244dd5;  // AC ID NT DF TF and the arithmetic flags
  if (!(cpu->mode & CHOST_MODE_CPL)) changeable |= FLAG_IF | FLAG_IOPL;
  uint64_t changed = (image ^ old) & changeable;
  if ((changed & (FLAG_TF | FLAG_AC)) || (old & (FLAG_TF | FLAG_RF)) || ((changed & FLAG_IF) && cpu->interrupt_waiting))
    return CHOST_LIGHT_DECLINED;
  if ((cpu->mode & CHOST_MODE_CPL) && (cpu->mode & CHOST_MODE_CPL) <= (old >> 12 & 3)) return CHOST_LIGHT_DECLINED;
  set_rflags(cpu, (image & changeable) | (old & ~changeable));
  cpu->gpr[RSP] = rsp + 8;
  return CHOST_LIGHT_CONTINUE;
}

// MOV CR3, RAX-like: the value is in scratch[0]. Only where nothing but the page tables changes.
uint64_t chost_light_cr3(chost_cpu *cpu, uint32_t info) {
  if (!(cpu->mode & CHOST_MODE_LONG)) return chost_light32_cr3(cpu, info);
  uint64_t value = cpu->scratch[0];
  // Bit 63 under CR4.PCIDE allows entries to be kept: none need be, since none says which context it is of.
  if (cpu->cr4 & CR4_PCIDE) value &= ~(1ull << 63);
  // With reserved bits set, or PAE paging, Swift decides.
  if ((cpu->mode & (CHOST_MODE_LONG | CHOST_MODE_CPL)) != CHOST_MODE_LONG || (value & ~cpu->physical_mask) || cpu->no_light)
    return CHOST_LIGHT_DECLINED;
  cpu->cr3 = value;
  chost_flush_nonglobal(cpu);
  return CHOST_LIGHT_CONTINUE;
}

// INVLPG: the linear address is in scratch[0].
uint64_t chost_light_invlpg(chost_cpu *cpu, uint32_t info) {
  if (!(cpu->mode & CHOST_MODE_LONG)) return chost_light32_invlpg(cpu, info);
  if ((cpu->mode & (CHOST_MODE_LONG | CHOST_MODE_CPL)) != CHOST_MODE_LONG || cpu->no_light) return CHOST_LIGHT_DECLINED;
  if (canonical(cpu->scratch[0])) chost_flush_page(cpu, cpu->scratch[0]);
  return CHOST_LIGHT_CONTINUE;
}

// WRMSR of the registers a context switch writes.
uint64_t chost_light_wrmsr(chost_cpu *cpu, uint32_t info) {
  (void)info;
  uint64_t value = cpu->gpr[RDX] << 32 | (cpu->gpr[RAX] & 0xffffffff);
  if ((cpu->mode & (CHOST_MODE_LONG | CHOST_MODE_CPL)) != CHOST_MODE_LONG || !canonical(value) || cpu->no_light)
    return CHOST_LIGHT_DECLINED;
  switch ((uint32_t)cpu->gpr[RCX]) {
  case 0xc0000100: cpu->segments[CHOST_FS].base = value; break;
  case 0xc0000101: cpu->segments[CHOST_GS].base = value; break;
  case 0xc0000102: cpu->kernel_gs_base = value; break;
  default: return CHOST_LIGHT_DECLINED;
  }
  return CHOST_LIGHT_CONTINUE;
}

// Delivers an exception with an error code through a 64-bit interrupt or trap gate to level 0, without IST.
static uint64_t deliver(chost_cpu *cpu, unsigned vector, uint32_t error, uint64_t rip) {
  uint32_t offset = vector * 16;
  if (offset + 15 > cpu->idtr.limit || cpu->machine_vectors[0] || (cpu->system_flags & (FLAG_TF | FLAG_VM)) || (cpu->dr[7] & 0xff)) return 0;
  const uint8_t *entry = supervisor(cpu, cpu->idtr.base + offset, 16, false);
  if (!entry) return 0;
  uint64_t low = load64(entry), high = load64(entry + 8);
  unsigned type = low >> 40 & 0x9f;
  // Present, interrupt or trap gate, no IST.
  if ((type != 0x8e && type != 0x8f) || (low >> 32 & 7)) return 0;
  uint64_t target = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32;
  uint16_t selector = low >> 16 & 0xfffc;
  uint64_t code = descriptor(cpu, selector);
  if (!canonical(target) || (attributes_of(code) & 0x60fd) != 0x2099) return 0;
  unsigned privilege = cpu->mode & CHOST_MODE_CPL;
  uint64_t rsp = cpu->gpr[RSP];
  if (privilege) {
    const chost_segment *task = &cpu->segments[CHOST_TR];
    if (task->limit < 11) return 0;
    const uint8_t *rsp0 = supervisor(cpu, task->base + 4, 8, false);
    if (!rsp0) return 0;
    rsp = load64(rsp0);
  }
  rsp &= ~15ull;
  uint8_t *frame = supervisor(cpu, rsp - 48, 48, true);
  if (!frame) return 0;
  uint64_t flags = rflags(cpu);
  store64(frame + 40, cpu->segments[CHOST_SS].selector);
  store64(frame + 32, cpu->gpr[RSP]);
  store64(frame + 24, flags | FLAG_RF);
  store64(frame + 16, cpu->segments[CHOST_CS].selector);
  store64(frame + 8, rip);
  store64(frame, error);
  cpu->gpr[RSP] = rsp - 48;
  uint32_t cleared = FLAG_NT | FLAG_RF | (type == 0x8e ? FLAG_IF : 0);
  cpu->system_flags &= ~cleared;
  set_segment(&cpu->segments[CHOST_CS], selector, code);
  if (privilege) cpu->segments[CHOST_SS] = (chost_segment){.attributes = ATTRIBUTE_UNUSABLE};
  chost_update_mode(cpu);
  return go_to(cpu, target);
}

uint64_t chost_light_page_fault(chost_cpu *cpu, uint64_t linear, uint32_t info) {
  uint32_t size = info >> CHOST_INFO_SIZE_SHIFT & 0xff;
  // Large operands may owe #GP for their alignment first; crossing ones have two pages to fault on.
  if (cpu->no_light || ((cpu->efer & EFER_LMA) && !(cpu->mode & CHOST_MODE_LONG)) || size > 8 || size == 0 || (linear & (PAGE_SIZE - 1)) > PAGE_SIZE - size ||
      !canonical(linear) || (!(cpu->mode & CHOST_MODE_LONG) && linear >> 32))
    return CHOST_LIGHT_DECLINED;
  // FSW.ES: an x87 exception that is pending comes first, if the instruction waits for it.
  uint16_t status;
  __asm__ volatile("fnstsw %0" : "=a"(status));
  if (status & 0x80) return CHOST_LIGHT_DECLINED;
  uint32_t access = (info & CHOST_INFO_WRITE ? CHOST_ACCESS_WRITE : 0) | (info & CHOST_INFO_USER ? CHOST_ACCESS_USER : 0);
  uint64_t physical;
  uint32_t code = chost_probe(cpu, linear, access, &physical);
  // A fault has bit 31; an absent table is not one.
  if (!(code >> 31)) return CHOST_LIGHT_DECLINED;
  uint64_t old = cpu->cr2;
  cpu->cr2 = linear;
  uint64_t entry = (cpu->mode & CHOST_MODE_LONG ? deliver : chost_light32_deliver)(cpu, 14, code & 0x7fffffff, here(cpu, info));
  if (!entry) cpu->cr2 = old;
  return entry;
}

LIGHT_HELPERS_END
