// SPDX-License-Identifier: Apache-2.0
// The two hypercall instructions: the CPU's own, and the other vendor's under each policy. The command line's last word
// names the policy (native, emulate, patch, fault); the vendor is CPUID's. The policies are those of Anthony Liguori, "KVM:
// Refactor hypercall infrastructure (v3)", kvm-devel, 2007, and of KVM's emulator since.
#include "guest.h"

// QEMU's TCG is no KVM: it is asked nothing here.
#define KVM(name, value, expected) expect(name, (u64)(value), (u64)(expected), "KVM")

enum { UNKNOWN = 99 };
static const u64 no_such_call = -1000;
static enum { NATIVE, EMULATE, PATCH, FAULT } policy;
static u8 own, foreign; // the third bytes

extern u64 table[]; // of the first 2 MiB
// Two pages of RAM that nothing else uses, with a third behind the second's address when a test wants them apart.
enum { PAGE = 4096, PRESENT = 0x67, READ_ONLY = 0x65, DIRTY = 0x40 };
static u8 *const pages = (u8 *)0x180000;
static u64 *const entry = &table[0x180];

static void map(unsigned index, u64 physical, u64 bits) {
  entry[index] = physical | bits;
  asm volatile("invlpg (%0)" : : "r"(pages + index * PAGE) : "memory");
}

// Prefixes, the instruction and a return.
static void put(u8 *site, const char *prefixes, u8 third) {
  while (*prefixes) *site++ = *prefixes++;
  site[0] = 0x0F;
  site[1] = 0x01;
  site[2] = third;
  site[3] = 0xC3;
}
static u32 bytes(const u8 *site) { return site[0] | site[1] << 8 | site[2] << 16; }
static u32 code(u8 third) { return 0x010F | (u32)third << 16; }
static unsigned call(const u8 *site, u64 number) { return TRY("call *%%rsi", .a = number, .S = (word)site); }

static void own_instruction(void) {
  section("KVM: the CPU's own instruction");
  put(pages, "", own);
  KVM("a number that nobody has", call(pages, UNKNOWN) << 16 | (after.a & 0xFFFF), NONE << 16 | (no_such_call & 0xFFFF));
  KVM("... all of RAX", after.a, no_such_call);
  KVM("... high garbage in the number", (call(pages, 1ull << 32 | 1), after.a), no_such_call);
  KVM("number 1", (call(pages, 1), after.a), 0);
  KVM("no other register changes",
      TRY("call *%%rsi", .a = UNKNOWN, .b = 2, .c = 3, .d = 4, .S = (word)pages, .D = 6) << 16 |
        (after.b == 2 && after.c == 3 && after.d == 4 && after.S == (word)pages && after.D == 6),
      NONE << 16 | 1);
  static const char *const refused[] = {"\x66", "\xF2", "\xF3", "\xF0", 0};
  for (const char *const *prefix = refused; *prefix; prefix++) {
    put(pages, *prefix, own);
    KVM("66, F2, F3 and LOCK are #UD", call(pages, UNKNOWN), UD);
  }
  put(pages, "\x48", own);
  KVM("REX.W is accepted", call(pages, UNKNOWN) << 16 | (after.a & 0xFFFF), NONE << 16 | (no_such_call & 0xFFFF));
  put(pages, "\x2E", own);
  KVM("a segment prefix is", call(pages, UNKNOWN) << 16 | (after.a & 0xFFFF), NONE << 16 | (no_such_call & 0xFFFF));
}

static volatile word user_result;
static void user_call(void) {
  asm volatile("call *%2" : "=a"(user_result) : "0"(1ul), "r"(pages) : "memory");
}

static void levels(void) {
  section("KVM: who may call");
  put(pages, "", own);
  user_result = 7;
  KVM("at level 3", user(user_call) << 16 | (user_result & 0xFFFF), NONE << 16 | 0xFFFF);
}

static void other_instruction(void) {
  section("KVM: the other vendor's instruction");
  put(pages, "", foreign);
  const unsigned vector = call(pages, UNKNOWN);
  if (policy == FAULT) {
    KVM("#UD", vector, UD);
    KVM("... at the instruction", last.ip, (word)pages);
    KVM("... RAX stays", after.a, UNKNOWN);
  } else {
    KVM("answered", vector << 16 | (after.a & 0xFFFF), NONE << 16 | (no_such_call & 0xFFFF));
    KVM("... again", (call(pages, 1), after.a), 0);
  }
  KVM("the guest reads its own code", bytes(pages), code(policy == PATCH ? own : foreign));
  // The guest writes it again and again; each is dealt with.
  unsigned good = 0;
  for (int i = 0; i < 1000; i++) {
    pages[2] = foreign;
    good += call(pages, 1) == (policy == FAULT ? UD : NONE);
  }
  KVM("rewritten a thousand times", good, 1000);
  // In one stretch of code: the instruction, then a look at it.
  asm volatile("mov $1, %%eax; jmp 1f; .balign 64; 1:" : : : "rax");
  put(pages + 64, "", foreign);
  TRY("call *%%rsi; mov 2(%%rsi), %%dl", .a = UNKNOWN, .S = (word)(pages + 64), .d = 0);
  KVM("seen by the next instruction", after.d & 0xFF, policy == FAULT ? 0 : policy == PATCH ? own : foreign);
  const char *const prefixes[] = {"\x66", "\xF2", "\xF3", "\xF0", "\x48", "\x2E", 0};
  for (const char *const *prefix = prefixes; *prefix; prefix++) {
    put(pages, *prefix, foreign);
    const int works = policy == NATIVE && (**prefix == '\x48' || **prefix == '\x2E');
    KVM("a prefixed form", call(pages, UNKNOWN), works ? NONE : UD);
    KVM("... is never touched", bytes(pages + 1), code(foreign));
  }
  pages[0] = 0x0F, pages[1] = 0x0B; // UD2
  KVM("another #UD reaches the guest", call(pages, UNKNOWN) << 16 | (last.ip == (word)pages), UD << 16 | 1);
  static const u8 other[] = {0x0F, 0x01, 0xC5, 0xC3}; // unassigned
  for (int i = 0; i < 4; i++) pages[i] = other[i];
  KVM("... also 0F 01 with another third byte", call(pages, UNKNOWN) << 16 | pages[2], UD << 16 | 0xC5);
}

static void across_pages(void) {
  section("KVM: an instruction across pages");
  // The second page lies elsewhere in physical memory.
  map(1, 0x190000, PRESENT);
  for (int first = 1; first < 3; first++) {
    u8 *const site = pages + PAGE - first;
    put(site, "", foreign);
    const unsigned vector = call(site, UNKNOWN);
    KVM("executed", vector, policy == FAULT ? UD : NONE);
    KVM("... its bytes", bytes(site), code(policy == PATCH ? own : foreign));
    KVM("... where they are", ((u8 *)0x190000)[2 - first], policy == PATCH ? own : foreign);
  }
  u8 *const site = pages + PAGE - 2;
  put(site, "", foreign);
  map(1, 0x190000, READ_ONLY);
  if (policy == PATCH) {
    KVM("the second page is read-only", call(site, UNKNOWN) << 16 | last.error, PF << 16 | 3);
    KVM("... CR2 is its first byte", last.cr2, (word)pages + PAGE);
    KVM("... and no byte changed", bytes(site), code(foreign));
  }
  map(1, 0x190000, PRESENT);
  map(0, 0x180000, READ_ONLY);
  if (policy == PATCH) {
    // All bytes are checked before one is written, though only the third differs.
    KVM("the first page is read-only", call(site, UNKNOWN) << 16 | last.error, PF << 16 | 3);
    KVM("... CR2 is the instruction", last.cr2, (word)site);
  }
  map(0, 0x180000, PRESENT);
  map(1, 0, 0);
  KVM("the second page is not there", call(site, UNKNOWN) << 16 | (last.error & ~0x10), PF << 16 | 0);
  KVM("... CR2", last.cr2, (word)pages + PAGE);
  map(1, 0x181000, PRESENT);
}

static void protection(void) {
  section("KVM: write protection");
  put(pages, "", foreign);
  map(0, 0x180000, READ_ONLY);
  const unsigned vector = call(pages, UNKNOWN);
  if (policy == PATCH) {
    KVM("a read-only page", vector << 16 | last.error, PF << 16 | 3);
    KVM("... CR2", last.cr2, (word)pages);
    KVM("... RIP", last.ip, (word)pages);
    KVM("... RAX", after.a, UNKNOWN);
    KVM("... the code", bytes(pages), code(foreign));
    WRITE("cr0", READ("cr0") & ~0x10000ul);
    KVM("without CR0.WP it is replaced", call(pages, UNKNOWN) << 8 | pages[2], NONE << 8 | own);
    WRITE("cr0", READ("cr0") | 0x10000);
  } else {
    KVM("a read-only page does not matter", vector << 8 | pages[2], (policy == FAULT ? UD : NONE) << 8 | foreign);
  }
  map(0, 0x180000, PRESENT);
  put(pages, "", foreign);
  map(0, 0x180000, PRESENT & ~DIRTY);
  call(pages, UNKNOWN);
  KVM("the page-table entry is dirty", !!(entry[0] & DIRTY), policy == PATCH);
  map(0, 0x180000, PRESENT);
}

static void levels_of_the_other(void) {
  section("KVM: the other vendor's instruction at level 3");
  put(pages, "", foreign);
  user_result = 7;
  const unsigned vector = user(user_call);
  if (policy == FAULT) KVM("#UD", vector, UD);
  else if (policy == PATCH && foreign == 0xC1) KVM("VMCALL is #GP(0)", vector << 16 | last.error, GP << 16);
  else KVM("performed, and refused", vector << 16 | (user_result & 0xFFFF), NONE << 16 | 0xFFFF);
  if (policy != PATCH || foreign == 0xC1) return;
  put(pages, "", foreign);
  map(0, 0x180000, READ_ONLY);
  KVM("a read-only page", user(user_call) << 16 | last.error, PF << 16 | 7);
  map(0, 0x180000, PRESENT);
}

// What cannot be replaced, the guest executes for ever; it must still get its interrupts.
static volatile unsigned ticks, faults;
static void tick(struct frame *frame) {
  ticks++;
  *(volatile u32 *)0xFEE000B0 = 0;
}
static void again(struct frame *frame) {
  if (++faults == 100) *(volatile u32 *)0xFEE00380 = 1000; // the timer begins
  if (ticks) map(0, 0x180000, PRESENT);
}

static void endless(void) {
  section("KVM: a site that cannot be replaced");
  if (policy != PATCH) return;
  // The guest's handler returns to the instruction until a timer interrupt has come: nothing but that ends the loop.
  put(pages, "", foreign);
  map(0, 0x180000, READ_ONLY);
  handlers[PF] = again;
  handlers[0x50] = tick;
  volatile u32 *const apic = (u32 *)0xFEE00000;
  apic[0xF0 / 4] = 0x1FF;
  apic[0x3E0 / 4] = 0xB;
  apic[0x320 / 4] = 0x50;
  KVM("interrupts come", TRY("sti; call *%%rsi; cli", .a = UNKNOWN, .S = (word)pages) << 8 | ticks, NONE << 8 | 1);
  KVM("... many faults later", faults >= 100, 1);
  handlers[PF] = 0;
}

static void single_step(void) {
  section("KVM: single step");
  put(pages, "", foreign);
  const unsigned vector = enter((word)pages, CODE64, 2 | FLAG_TF, (word)user_stack_top - 8, DATA);
  if (policy == FAULT) KVM("#UD", vector, UD);
  else KVM("#DB behind it", vector << 8 | (last.ip - (word)pages), DB << 8 | 3);
}

void test(void) {
  u32 out[4];
  cpuid(0, 0, out);
  const int intel = out[1] == 0x756E6547; // "Genu"
  own = intel ? 0xC1 : 0xD9;
  foreign = intel ? 0xD9 : 0xC1;
  policy = last_word_is("emulate") ? EMULATE : last_word_is("patch") ? PATCH : last_word_is("fault") ? FAULT : NATIVE;
  if (is_tcg) return;
  own_instruction();
  levels();
  other_instruction();
  across_pages();
  protection();
  levels_of_the_other();
  endless();
  single_step();
}
