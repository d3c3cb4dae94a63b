// SPDX-License-Identifier: Apache-2.0
// Garbage for everything a guest can ask KVM for: hypercalls with any number and argument, the register of 2007 and the
// page behind it, KVM's own registers, and both hypercall instructions with any prefixes, across pages, in pages that are
// read-only or not there. What the host writes goes to memory set aside for it, so that this guest survives and says so;
// the last word of the command line is the seed.
#include "../conformance/guest.h"

enum { ROUNDS = 5000, PAGE = 4096, MEMORY_END = 64 << 20 };
extern u64 table[]; // of the first 2 MiB
static u8 *const code = (u8 *)0x180000; // two pages
static u8 *const data = (u8 *)0x1A0000; // sixteen pages, for the host to write to
enum { DATA_SIZE = 16 * PAGE };

static u64 state;
static u64 next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}
static u64 below(u64 limit) { return next() % limit; }

// An address: in the memory set aside, at the edges of RAM, outside of it, or anything that is not RAM.
static u64 address(void) {
  switch (below(6)) {
  case 0: return MEMORY_END - below(16);
  case 1: return MEMORY_END + below(1 << 20) * below(2) * 64;
  case 2: return -1ull - below(5000);
  case 3: return next() | 1ull << 40;
  default: return (word)data + below(DATA_SIZE - 256);
  }
}
static u64 value(void) {
  switch (below(5)) {
  case 0: return below(16);
  case 1: return next();
  case 2: return 1ull << below(64);
  case 3: return -below(16);
  default: return address();
  }
}

static u8 put(u8 *site) {
  static const u8 prefixes[] = {0x66, 0xF2, 0xF3, 0xF0, 0x48, 0x41, 0x2E, 0x64};
  static const u8 thirds[] = {0xC1, 0xD9, 0xC1, 0xD9, 0xC1, 0xD9, 0xC5, 0xD6};
  for (unsigned i = below(8) ? 0 : below(4); i; i--) *site++ = prefixes[below(sizeof prefixes)];
  site[0] = 0x0F, site[1] = 0x01, site[2] = thirds[below(sizeof thirds)], site[3] = 0xC3;
  return site[2];
}

static void map(u64 first, u64 second) {
  table[0x180] = 0x180000 | first;
  table[0x181] = 0x181000 | second;
  asm volatile("invlpg (%0); invlpg (%1)" : : "r"(code), "r"(code + PAGE) : "memory");
}

static void call(void) {
  map(0x67, 0x67);
  u8 *const site = code + (below(2) ? PAGE - below(8) : below(PAGE - 16));
  put(site);
  static const u64 kinds[] = {0x67, 0x67, 0x67, 0x65, 0x63, 0};
  map(kinds[below(6)], kinds[below(6)]);
  const u64 number = below(4) ? below(16) : value();
  // SEND_IPI: what would reset the machine is left out.
  const u64 fourth = number == 10 ? (value() & ~0x700ull) | (below(3) ? 0 : 0x400) : value();
  const u64 first = number == 9 || number == 12 ? address() : value();
  TRY("call *%%rdi", .a = number, .b = first, .c = value(), .d = value(), .S = fourth, .D = (word)site);
}

static void enroll(void) {
  u32 *const page = (u32 *)(data + below(16) * PAGE);
  page[0] = below(4) ? below(3) : next();
  page[1] = next();
  page[2] = next();
  page[3] = next();
  *(u64 *)(page + 4) = below(8) ? address() : (word)code + below(2 * PAGE);
  const u64 where = below(4) ? (word)page : address();
  try_wrmsr(0x87655678, where);
}

static void clock(void) {
  static const u32 indices[] = {0x11, 0x12, 0x4B564D00, 0x4B564D01, 0x4B564D02, 0x4B564D03, 0x4B564D04, 0x4B564D05,
                                0x4B564D06, 0x4B564D07, 0x4B564D08, 0x4B564DFF};
  const u32 index = indices[below(12)];
  const u64 wanted = below(8) ? address() & ~(below(2) ? 63ull : 0) : below(256);
  try_wrmsr(index, wanted | below(2));
  try_rdmsr(index);
}

static void ignore(struct frame *frame) {}

void test(void) {
  const u32 *const info = (const u32 *)(word)multiboot_info;
  state = 88172645463325252ull;
  if (info[0] & 4)
    for (const char *c = (const char *)(word)info[4]; *c; c++) state = *c == ' ' ? 1 : state * 31 + *c;
  if (!state) state = 1;
  handlers[NMI] = ignore;
  for (unsigned round = 0; round < ROUNDS; round++)
    switch (below(4)) {
    case 0: enroll(); break;
    case 1: clock(); break;
    default: call();
    }
  // Nothing is written any more.
  try_wrmsr(0x4B564D01, 0);
  try_wrmsr(0x12, 0);
  CHECK("rounds survived", ROUNDS, ROUNDS);
}
