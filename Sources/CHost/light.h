// SPDX-License-Identifier: Apache-2.0
// What the light system instructions share: flags, descriptors, supervisor memory, and going on elsewhere. Included by
// system.c, for 64-bit kernels, and system32.c, for 32-bit ones; no other file needs it.
#ifndef CHOST_LIGHT_H
#define CHOST_LIGHT_H

#include "private.h"

enum {
  RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R11 = 11,

  FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_IOPL = 3 << 12, FLAG_NT = 1 << 14, FLAG_RF = 1 << 16, FLAG_VM = 1 << 17,
  FLAG_AC = 1 << 18, FLAG_VIF = 1 << 19, FLAG_VIP = 1 << 20,
  SYSTEM_FLAGS = 0x3f7700, // what `system_flags` holds: TF IF DF IOPL NT RF VM AC VIF VIP ID

  FLAT_CODE64 = 0xa09b, FLAT_CODE32 = 0xc09b, FLAT_DATA = 0xc093, DPL3 = 0x60,
};

INLINE uint64_t rflags(const chost_cpu *cpu) {
  uint64_t packed = cpu->flags;
  return (packed >> 8 & 0xd5) | (packed & 1) << 11 | cpu->system_flags | 2;
}

INLINE void set_rflags(chost_cpu *cpu, uint64_t flags) {
  cpu->flags = ((flags & 0xd5) | 2) << 8 | (flags >> 11 & 1);
  cpu->system_flags = flags & SYSTEM_FLAGS;
}

INLINE bool canonical(uint64_t address) { return (uint64_t)((int64_t)(address << 16) >> 16) == address; }

INLINE void set_flat(chost_segment *segment, uint16_t selector, uint32_t attributes) {
  *segment = (chost_segment){.limit = 0xffffffff, .attributes = attributes, .selector = selector};
}

// Continues at `linear`, which is canonical, in the mode that the state now has.
INLINE uint64_t go_to(chost_cpu *cpu, uint64_t linear) {
  cpu->linear = linear;
  uint64_t entry = chost_lookup(cpu, linear);
  return entry ? entry : CHOST_LIGHT_LOOKUP;
}

// The address of the instruction that the information word describes, and of the next.
INLINE uint64_t here(const chost_cpu *cpu, uint32_t info) { return cpu->page_va + (info & CHOST_INFO_OFFSET); }
INLINE uint64_t next(const chost_cpu *cpu, uint32_t info) { return here(cpu, info) + (info >> CHOST_INFO_SIZE_SHIFT & 0xff); }

// The host address of `count` bytes of supervisor memory inside one page, or 0. The tables hold no user's page under SMAP,
// and a stack in one, with EFLAGS.AC set, is left to Swift too.
INLINE uint8_t *supervisor(chost_cpu *cpu, uint64_t linear, unsigned count, bool write) {
  const chost_tlb_entry *cached = &tlb_table(cpu, 0, write)[tlb_index(linear)];
  uint64_t addend = cached->addend;
  if ((linear & (PAGE_SIZE - 1)) > PAGE_SIZE - count || !canonical(linear)) return 0;
  if (cached->tag != (linear & PAGE_MASK) && !chost_resolve_implicit(cpu, linear, write, &addend)) return 0;
  return (uint8_t *)(linear + addend);
}

INLINE uint32_t load32(const uint8_t *from) { return *(const volatile uint32_t *)from; }
INLINE uint64_t load64(const uint8_t *from) { return *(const volatile uint64_t *)from; }
INLINE void store32(uint8_t *to, uint32_t value) { *(volatile uint32_t *)to = value; }
INLINE void store64(uint8_t *to, uint64_t value) { *(volatile uint64_t *)to = value; }

// Reads a GDT descriptor of 8 bytes; 0 (not present) if it is not simply there.
INLINE uint64_t descriptor(chost_cpu *cpu, uint16_t selector) {
  uint32_t offset = selector & 0xfff8;
  if ((selector & 4) || !offset || offset + 7 > cpu->gdtr.limit) return 0;
  const uint8_t *entry = supervisor(cpu, cpu->gdtr.base + offset, 8, false);
  return entry ? load64(entry) : 0;
}

INLINE uint32_t attributes_of(uint64_t descriptor) { return (descriptor >> 40 & 0xff) | (descriptor >> 52 & 0xf) << 12; }

INLINE uint32_t limit_of(uint64_t descriptor) {
  uint32_t limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf0000);
  return descriptor >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

INLINE uint64_t base_of(uint64_t descriptor) { return (descriptor >> 16 & 0xffffff) | (descriptor >> 56) << 24; }

INLINE void set_segment(chost_segment *segment, uint16_t selector, uint64_t descriptor) {
  *segment = (chost_segment){
      .base = base_of(descriptor), .limit = limit_of(descriptor), .attributes = attributes_of(descriptor), .selector = selector};
}

// Whether the register holds what a load of `selector` would load into it: the descriptor may have changed since. A null
// selector in SS is one that an interrupt left.
INLINE bool is_loaded(chost_cpu *cpu, unsigned number, uint16_t selector) {
  const chost_segment *segment = &cpu->segments[number];
  if (segment->selector != selector) return false;
  if (!(selector & 0xfffc)) return segment->attributes & ATTRIBUTE_UNUSABLE;
  uint64_t found = descriptor(cpu, selector);
  return base_of(found) == segment->base && limit_of(found) == segment->limit && attributes_of(found) == segment->attributes;
}

// IRET clears data segments that the outer level may not use: that is left to Swift.
INLINE bool keeps_data_segments(const chost_cpu *cpu) {
  static const uint8_t numbers[] = {CHOST_ES, CHOST_DS, CHOST_FS, CHOST_GS};
  for (unsigned i = 0; i < 4; i++) {
    const chost_segment *segment = &cpu->segments[numbers[i]];
    if (segment->attributes & ATTRIBUTE_UNUSABLE) continue;
    if ((segment->attributes >> 5 & 3) != 3) return false;
  }
  return true;
}

// system32.c: the forms for 32-bit kernels.
uint64_t chost_light32_iret(chost_cpu *cpu, uint32_t info);
uint64_t chost_light32_popf(chost_cpu *cpu, uint32_t info);
uint64_t chost_light32_cr3(chost_cpu *cpu, uint32_t info);
uint64_t chost_light32_invlpg(chost_cpu *cpu, uint32_t info);
uint64_t chost_light32_deliver(chost_cpu *cpu, unsigned vector, uint32_t error, uint64_t rip);

#endif
