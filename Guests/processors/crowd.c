// SPDX-License-Identifier: Apache-2.0
// Eight vCPUs, meant for fewer host threads, all busy in the way that the last word of the command line names. What a
// guest can see of its host's scheduler is whether every vCPU goes on; how long each waited for a thread, the host
// counts.
#include "../conformance/guest.h"

enum { COUNT = 8, VECTOR = 0x60, START_PAGE = 0x8000, MILLISECONDS = 200, MEETINGS = 40, REWRITES = 3000 };
enum { SEND_IPI = 10, SCHED_YIELD = 11 }; // KVM's hypercalls

extern u8 others_begin[], others_end[];
extern volatile u32 others_arrived;

static volatile u32 *const apic = (u32 *)0xFEE00000;
enum { ID = 0x20 / 4, EOI = 0xB0 / 4, SPURIOUS = 0xF0 / 4, COMMAND = 0x300 / 4, TIMER = 0x320 / 4 };

// What each vCPU counts, in cache lines of its own.
static volatile struct {
  u64 turns, interrupts, lost, wrong, unused[4];
} counts[COUNT];

static u64 end;                                         // of the work, in ticks
static volatile u32 may_begin, finished, entered, gate; // `entered` and `gate`: of the meeting
static volatile u32 is_over;

static void add(volatile u32 *counter) { asm volatile("lock incl %0" : "+m"(*counter)); }
static void rest(void) { asm volatile("pause"); }

static void interrupt(struct frame *frame) {
  counts[apic[ID] >> 24].interrupts++;
  apic[EOI] = 0;
}

// The hypercall instruction, whose third byte says whose it is, and RET.
static volatile u8 *const site = (u8 *)0x180000;
static u8 native, foreign;

static u64 call(u64 number, u64 b, u64 c, u64 d, u64 S) {
  u64 result;
  register word place asm("r8") = (word)site;
  asm volatile("call *%%r8" : "=a"(result) : "0"(number), "b"(b), "c"(c), "d"(d), "S"(S), "r"(place) : "memory", "cc");
  return result;
}

// An interrupt to oneself by hypercall has come when the call is over.
static void call_oneself(u32 id) {
  const u64 before = counts[id].interrupts;
  const u64 reached = call(SEND_IPI, 1, 0, id, VECTOR);
  asm volatile("nop; nop" : : : "memory");
  if (reached != 1) counts[id].wrong++;
  if (counts[id].interrupts != before + 1) counts[id].lost++;
  counts[id].turns++;
}

static void meet(void) {
  const u32 this_gate = gate;
  u32 before = 1;
  asm volatile("lock xaddl %0, %1" : "+r"(before), "+m"(entered));
  if (before == COUNT - 1) {
    entered = 0;
    gate = this_gate + 1;
  } else {
    while (gate == this_gate) rest();
  }
}

// Step by step at first, each step with the other vendor's instruction; then one vCPU changes the instruction while the
// others execute it.
static void meetings(u32 id) {
  for (u32 round = 0; round < MEETINGS; round++) {
    meet();
    call_oneself(id);
    meet();
    if (id == 0) site[2] = foreign;
  }
  meet();
  if (id != 0) {
    while (!is_over) call_oneself(id);
    return;
  }
  for (u32 i = 0; i < REWRITES; i++) {
    site[2] = i & 1 ? foreign : native;
    if (i % 64 == 0) rest();
  }
  counts[0].turns++;
  is_over = 1;
}

static void hypercalls(u32 id) {
  while (rdtsc() < end) call_oneself(id);
}

static void ports(u32 id) {
  for (; rdtsc() < end; counts[id].turns++) inb(0x3FD);
}

static void pauses(u32 id) {
  for (; rdtsc() < end; counts[id].turns++) rest();
}

static void loops(u32 id) {
  for (; rdtsc() < end; counts[id].turns++);
}

// Half of them sleep, and are woken every half millisecond.
static void sleeps(u32 id) {
  if (id % 2 == 0) return loops(id);
  asm volatile("cli"); // but for HLT
  apic[TIMER] = 0x40000 | VECTOR; // TSC-deadline mode
  for (const u64 pause = (end - rdtsc()) / MILLISECONDS / 2; rdtsc() < end; counts[id].turns++) {
    wrmsr(0x6E0, rdtsc() + pause);
    asm volatile("sti; hlt; cli" : : : "memory");
  }
  asm volatile("sti");
}

// Two let each other go first, always.
static void yields(u32 id) {
  if (id > 1) return loops(id);
  for (; rdtsc() < end; counts[id].turns++) call(SCHED_YIELD, 1 - id, 0, 0, 0);
}

static const struct {
  const char *word;
  void (*work)(u32 id);
} works[] = {{"meetings", meetings}, {"hypercalls", hypercalls}, {"ports", ports},  {"pauses", pauses},
             {"loops", loops},       {"sleeps", sleeps},         {"yields", yields}};
static void (*work)(u32 id) = meetings;

// Each of the others comes here.
void other_main(void) {
  apic[SPURIOUS] = 0x1FF;
  add(&others_arrived);
  while (!may_begin) rest();
  asm volatile("sti");
  work(apic[ID] >> 24);
  asm volatile("cli");
  add(&finished);
}

void test(void) {
  for (u32 i = 0; i < sizeof works / sizeof works[0]; i++)
    if (last_word_is(works[i].word)) work = works[i].work;
  handlers[VECTOR] = interrupt;
  u32 out[4];
  cpuid(0, 0, out);
  const int is_intel = out[1] == 0x756E6547; // "Genu"
  native = is_intel ? 0xC1 : 0xD9;
  foreign = is_intel ? 0xD9 : 0xC1;
  site[0] = 0x0F;
  site[1] = 0x01;
  site[2] = foreign;
  site[3] = 0xC3;

  for (u32 i = 0; others_begin + i < others_end; i++) ((volatile u8 *)START_PAGE)[i] = others_begin[i];
  apic[SPURIOUS] = 0x1FF;
  apic[COMMAND] = 0xC4500; // INIT to all others, and where they start
  apic[COMMAND] = 0xC4600 | START_PAGE >> 12;
  while (others_arrived != COUNT - 1) rest();

  cpuid(0x40000010, 0, out); // ticks in a millisecond
  end = rdtsc() + (u64)out[0] * MILLISECONDS;
  may_begin = 1;
  asm volatile("sti");
  work(0);
  asm volatile("cli");
  add(&finished);
  while (finished != COUNT) rest();

  u64 idle = 0, lost = 0, wrong = 0;
  for (u32 id = 0; id < COUNT; id++) {
    idle += counts[id].turns == 0;
    lost += counts[id].lost;
    wrong += counts[id].wrong;
  }
  CHECK("vCPUs that did nothing", idle, 0);
  CHECK("calls without an answer", wrong, 0);
  CHECK("calls without an interrupt", lost, 0);
}
