// SPDX-License-Identifier: Apache-2.0
// String instructions by pages: one TLB check for as many elements as a page holds, or as pages that follow each other in
// the host's memory hold, then the host's own string instruction on the guest's memory. Memory moves most of its bytes this way, so it must be native speed;
// and it must be interruptible with exact registers, as REP is.
//
// What is not a plain access to RAM within one page is left to the caller, one element at a time.
#include "private.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
enum { REP_NONE, REP_EQUAL, REP_NOT_EQUAL };
enum { DONE, SLOW, RESUME };

// Work between two polls: about 10 microseconds either way.
enum { LIMIT_BYTES = 65536, LIMIT_COMPARISONS = 4096 };

// A register of the address size: 16-bit writes merge, 32-bit writes zero-extend (SDM volume 1, 3.4.1.1).
INLINE void write_register(chost_cpu *cpu, unsigned number, unsigned size_log2, uint64_t value) {
  if (size_log2 == 1) cpu->gpr[number] = (cpu->gpr[number] & ~0xFFFFull) | (value & 0xFFFF);
  else if (size_log2 == 2) cpu->gpr[number] = (uint32_t)value;
  else cpu->gpr[number] = value;
}

INLINE uint64_t load(const void *at, unsigned size_log2) {
  switch (size_log2) {
  case 0: return *(const volatile uint8_t *)at;
  case 1: return *(const volatile uint16_t *)at;
  case 2: return *(const volatile uint32_t *)at;
  default: return *(const volatile uint64_t *)at;
  }
}

// The flags of `left - right`, in the layout of chost_cpu.flags.
INLINE uint64_t compare(uint64_t left, uint64_t right, unsigned size_log2) {
  uint64_t flags;
#define COMPARE(modifier) \
  __asm__("xorl %%eax, %%eax\n\tcmp %" modifier "2, %" modifier "1\n\tlahf\n\tseto %%al" \
          : "=&a"(flags) : "q"(left), "q"(right) : "cc")
  switch (size_log2) {
  case 0: COMPARE("b"); break;
  case 1: COMPARE("w"); break;
  case 2: COMPARE("k"); break;
  default: COMPARE("q"); break;
  }
#undef COMPARE
  return flags;
}

// Elements from `address` on, in the direction given, that stay inside its page. 0: the first one crosses.
INLINE uint64_t elements_in_page(uint64_t address, unsigned size_log2, bool down) {
  uint64_t offset = address & (PAGE_SIZE - 1), size = 1ull << size_log2;
  if (offset + size > PAGE_SIZE) return 0;
  return down ? (offset >> size_log2) + 1 : (PAGE_SIZE - offset) >> size_log2;
}

// The same for the wrap of an effective address: with a base that is not page-aligned it happens inside a page.
INLINE uint64_t elements_before_wrap(uint64_t address, uint64_t mask, unsigned size_log2, bool down) {
  if (mask == ~0ull) return mask;
  uint64_t size = 1ull << size_log2;
  if (down) return (address >> size_log2) + 1;
  uint64_t room = mask - address + 1;
  return room < size ? 1 : room >> size_log2; // an operand may straddle the wrap, its bytes do not wrap
}

// The same for the limit of the segment. 0: the first one is beyond it.
INLINE uint64_t elements_in_bound(uint64_t address, uint64_t bound, unsigned size_log2, bool down) {
  if (bound == ~0ull) return bound;
  if (address >= bound || bound - address < 1u << size_log2) return 0;
  return down ? ~0ull : (bound - address) >> size_log2;
}

// Bytes from `linear` on, `count` at most, whose pages may be accessed and follow each other in the host's memory too.
// `addend` is that of the first page.
static uint64_t contiguous(chost_cpu *cpu, uint64_t linear, uint64_t count, bool user, bool write, uint64_t addend) {
  uint64_t room = PAGE_SIZE - (linear & (PAGE_SIZE - 1)), next;
  while (room < count && chost_access_page(cpu, linear + room, user, write, &next) && next == addend) room += PAGE_SIZE;
  return room < count ? room : count;
}

INLINE uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void move(void *to, const void *from, uint64_t count, unsigned size_log2, bool down) {
  // The element size matters when source and destination overlap, and for what other vCPUs see.
#define MOVE(suffix) \
  if (down) __asm__ volatile("std\n\trep movs" suffix "\n\tcld" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc"); \
  else __asm__ volatile("rep movs" suffix : "+D"(to), "+S"(from), "+c"(count) : : "memory")
  switch (size_log2) {
  case 0: MOVE("b"); break;
  case 1: MOVE("w"); break;
  case 2: MOVE("l"); break;
  default: MOVE("q"); break;
  }
#undef MOVE
}

static void store(void *to, uint64_t value, uint64_t count, unsigned size_log2, bool down) {
#define STORE(suffix) \
  if (down) __asm__ volatile("std\n\trep stos" suffix "\n\tcld" : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc"); \
  else __asm__ volatile("rep stos" suffix : "+D"(to), "+c"(count) : "a"(value) : "memory")
  switch (size_log2) {
  case 0: STORE("b"); break;
  case 1: STORE("w"); break;
  case 2: STORE("l"); break;
  default: STORE("q"); break;
  }
#undef STORE
}

typedef struct comparison {
  uint64_t left, right; // of the last element compared
  uint64_t count;       // elements compared
  bool stopped;         // the condition ended the repetition
} comparison;

// Compares until the condition of `rep` fails or `count` elements are done. `from` is null for SCAS.
INLINE comparison compare_elements(const uint8_t *from, const uint8_t *to, uint64_t value, uint64_t count,
                                   unsigned size_log2, bool down, unsigned rep) {
  const uint64_t mask = ~0ull >> (64 - (8u << size_log2));
  const int64_t step = down ? -(int64_t)(1u << size_log2) : (int64_t)(1u << size_log2);
  comparison result;
  result.left = value & mask;
  result.count = 0;
  do {
    if (from) {
      result.left = load(from, size_log2);
      from += step;
    }
    result.right = load(to, size_log2);
    to += step;
    result.count++;
    result.stopped = rep == REP_NONE || (result.left == result.right) != (rep == REP_EQUAL);
  } while (!result.stopped && result.count < count);
  return result;
}

static comparison compare_run(const uint8_t *from, const uint8_t *to, uint64_t value, uint64_t count,
                              unsigned size_log2, bool down, unsigned rep) {
  switch (size_log2) { // a loop for each size
  case 0: return compare_elements(from, to, value, count, 0, down, rep);
  case 1: return compare_elements(from, to, value, count, 1, down, rep);
  case 2: return compare_elements(from, to, value, count, 2, down, rep);
  default: return compare_elements(from, to, value, count, 3, down, rep);
  }
}

static __attribute__((noinline)) uint32_t string_by_pages(chost_cpu *cpu, uint32_t operation) {
  const unsigned kind = operation & 15, size_log2 = operation >> 4 & 3, address_log2 = operation >> 8 & 3;
  const unsigned rep = operation >> 12 & 3, segment = operation >> 16 & 7;
  const bool user = operation >> 24 & 1, long_mode = cpu->mode & CHOST_MODE_LONG;
  const bool reads = kind != CHOST_STRING_STOS && kind != CHOST_STRING_SCAS; // DS:RSI, or another segment
  const bool uses_destination = kind != CHOST_STRING_LODS;                   // ES:RDI
  const bool writes = kind == CHOST_STRING_MOVS || kind == CHOST_STRING_STOS;
  const bool compares = kind == CHOST_STRING_SCAS || kind == CHOST_STRING_CMPS;

  uint64_t source_base = 0, source_bound = ~0ull, destination_base = 0, destination_bound = ~0ull;
  if (segment == CHOST_FS || segment == CHOST_GS || (cpu->mode & CHOST_MODE_SEGMENTED)) {
    source_base = cpu->segments[segment].base;
    if (!long_mode) source_bound = cpu->read_bound[segment];
  }
  if (cpu->mode & CHOST_MODE_SEGMENTED) {
    destination_base = cpu->segments[CHOST_ES].base;
    destination_bound = writes ? cpu->write_bound[CHOST_ES] : cpu->read_bound[CHOST_ES];
  }
  const uint64_t linear_mask = long_mode ? ~0ull : 0xFFFFFFFF;
  const uint64_t mask = address_log2 >= 3 ? ~0ull : (1ull << (8u << address_log2)) - 1;
  const bool down = cpu->system_flags & SYSTEM_DF;

  uint64_t remaining = rep ? cpu->gpr[RCX] & mask : 1;
  uint64_t source = cpu->gpr[RSI] & mask, destination = cpu->gpr[RDI] & mask;
  const uint64_t limit = compares ? LIMIT_COMPARISONS : LIMIT_BYTES >> size_log2;
  uint64_t budget = limit;
  if (remaining == 0) {
    // What becomes of bits above a 32-bit count and 32-bit addresses depends on the guest's vendor: Strings.swift.
    const uint64_t used = cpu->gpr[RCX] | cpu->gpr[RSI] | cpu->gpr[RDI];
    return long_mode && address_log2 == 2 && used >> 32 ? SLOW : DONE;
  }

  for (;;) {
    const uint64_t from = (source_base + source) & linear_mask, to = (destination_base + destination) & linear_mask;
    uint64_t most = least(remaining, budget), count = most, from_addend = 0, to_addend = 0;
    if (reads) {
      count = least(count, elements_in_page(from, size_log2, down));
      most = least(most, elements_before_wrap(source, mask, size_log2, down));
      most = least(most, elements_in_bound(source, source_bound, size_log2, down));
    }
    if (uses_destination) {
      count = least(count, elements_in_page(to, size_log2, down));
      most = least(most, elements_before_wrap(destination, mask, size_log2, down));
      most = least(most, elements_in_bound(destination, destination_bound, size_log2, down));
    }
    count = least(count, most);
    if (count == 0) return SLOW;
    // Both accesses are checked before either has an effect; the source faults first.
    if (reads && !chost_access_page(cpu, from, user, false, &from_addend)) return SLOW;
    if (uses_destination && !chost_access_page(cpu, to, user, writes, &to_addend)) {
      const uint64_t bytes = count << size_log2, lowest = down ? to + (1u << size_log2) - bytes : to;
      if (!writes || !chost_resolve_bytes(cpu, lowest, user, true, bytes, &to_addend)) return SLOW;
    } else if (writes && !down && count < most) {
      // Long runs gain from being one: the host takes some time to begin each.
      uint64_t bytes = contiguous(cpu, to, most << size_log2, user, true, to_addend);
      if (reads) bytes = contiguous(cpu, from, bytes, user, false, from_addend);
      count = bytes >> size_log2;
    }
    uint8_t *host_from = (uint8_t *)(from + from_addend), *host_to = (uint8_t *)(to + to_addend);

    bool stopped = false;
    uint64_t flags = 0;
    switch (kind) {
    case CHOST_STRING_MOVS: move(host_to, host_from, count, size_log2, down); break;
    case CHOST_STRING_STOS: store(host_to, cpu->gpr[RAX], count, size_log2, down); break;
    case CHOST_STRING_LODS: {
      // Reading RAM has no effect, so only the last element is worth loading.
      uint64_t skipped = (count - 1) << size_log2;
      uint64_t value = load(down ? host_from - skipped : host_from + skipped, size_log2);
      if (size_log2 == 0) cpu->gpr[RAX] = (cpu->gpr[RAX] & ~0xFFull) | value;
      else if (size_log2 == 1) cpu->gpr[RAX] = (cpu->gpr[RAX] & ~0xFFFFull) | value;
      else cpu->gpr[RAX] = value;
      break;
    }
    default: {
      const comparison last =
          compare_run(reads ? host_from : 0, host_to, cpu->gpr[RAX], count, size_log2, down, rep);
      count = last.count;
      stopped = last.stopped;
      flags = compare(last.left, last.right, size_log2);
      break;
    }
    }

    const uint64_t advance = down ? -(count << size_log2) : count << size_log2;
    if (reads) {
      source = (source + advance) & mask;
      write_register(cpu, RSI, address_log2, source);
    }
    if (uses_destination) {
      destination = (destination + advance) & mask;
      write_register(cpu, RDI, address_log2, destination);
    }
    remaining -= count;
    budget -= count;
    if (rep) write_register(cpu, RCX, address_log2, remaining);
    if (remaining == 0 || stopped) {
      // Only now: a fault in the middle shows the flags from before the instruction (SDM volume 2, REP).
      if (compares) cpu->flags = flags;
      return DONE;
    }
    if (budget == 0) {
      if (__atomic_load_n(&cpu->attention, __ATOMIC_RELAXED)) return RESUME;
      budget = limit;
    }
  }
}

// Most moves and stores are short: upwards in flat segments, all of it within pages that the tables hold. False: nothing
// has been done.
INLINE bool string_at_once(chost_cpu *cpu, uint32_t operation) {
  const unsigned kind = operation & 15, size_log2 = operation >> 4 & 3, address_log2 = operation >> 8 & 3;
  const unsigned rep = operation >> 12 & 3, segment = operation >> 16 & 7;
  const bool user = operation >> 24 & 1, moves = kind == CHOST_STRING_MOVS;
  if ((!moves && kind != CHOST_STRING_STOS) || cpu->mode & CHOST_MODE_SEGMENTED || segment == CHOST_FS || segment == CHOST_GS ||
      cpu->system_flags & SYSTEM_DF || address_log2 < 2)
    return false;
  const uint64_t mask = address_log2 == 2 ? 0xFFFFFFFF : ~0ull;
  const uint64_t count = rep ? cpu->gpr[RCX] & mask : 1, bytes = count << size_log2;
  const uint64_t from = cpu->gpr[RSI] & mask, to = cpu->gpr[RDI] & mask;
  if (count - 1 >= PAGE_SIZE || (to & (PAGE_SIZE - 1)) + bytes > PAGE_SIZE) return false;
  const chost_tlb_entry *target = &tlb_table(cpu, user, true)[tlb_index(to)];
  if (target->tag != (to & PAGE_MASK)) return false;
  if (moves) {
    const chost_tlb_entry *origin = &tlb_table(cpu, user, false)[tlb_index(from)];
    if ((from & (PAGE_SIZE - 1)) + bytes > PAGE_SIZE || origin->tag != (from & PAGE_MASK)) return false;
    move((void *)(to + target->addend), (const void *)(from + origin->addend), count, size_log2, false);
    cpu->gpr[RSI] = (from + bytes) & mask;
  } else {
    store((void *)(to + target->addend), cpu->gpr[RAX], count, size_log2, false);
  }
  cpu->gpr[RDI] = (to + bytes) & mask;
  if (rep) cpu->gpr[RCX] = 0;
  return true;
}

uint32_t chost_string(chost_cpu *cpu, uint32_t operation) {
  return string_at_once(cpu, operation) ? DONE : string_by_pages(cpu, operation);
}

LIGHT_HELPERS_END
