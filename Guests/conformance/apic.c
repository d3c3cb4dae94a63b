// SPDX-License-Identifier: Apache-2.0
// The local APIC as software sees it: modes, priorities, end of interrupt, NMIs, the timer, and wires into the IOAPIC.
#include "guest.h"

static volatile u32 *const page = (u32 *)0xFEE00000;
enum { ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xA0, EOI = 0xB0, LDR = 0xD0, DFR = 0xE0, SVR = 0xF0, ISR = 0x100,
       IRR = 0x200, ESR = 0x280, ICR = 0x300, TIMER = 0x320, LINT0 = 0x350, COUNT = 0x380, CURRENT = 0x390, DIVIDE = 0x3E0 };
#define APIC(offset) page[(offset) / 4]

static volatile unsigned count, order[8];
static void came(struct frame *frame) {
  if (count < 8) order[count] = frame->vector;
  count++;
  APIC(EOI) = 0;
}
static void came_x2(struct frame *frame) {
  order[count++ & 7] = frame->vector;
  wrmsr(0x80B, 0);
}
static void self(unsigned vector) { APIC(ICR) = 0x40000 | vector; }
static void allow(void) { asm volatile("sti; nop; nop; cli" : : : "memory"); }

static void priorities(void) {
  section("SDM 3, 11.8.3: interrupt, task and processor priority");
  for (unsigned vector = 0x20; vector < 0xF0; vector++)
    if (vector != LEAVE) handlers[vector] = came;
  APIC(SVR) = 0x1FF;
  CHECK("software enabled", APIC(SVR), 0x1FF);
  self(0x40);
  allow();
  CHECK("an interrupt to oneself", count, 1);
  count = 0;
  APIC(TPR) = 0x50;
  CHECK("TPR shows in CR8", READ("cr8"), 5);
  CHECK("PPR follows TPR", APIC(PPR), 0x50);
  self(0x5F);
  allow();
  CHECK("held back by its own class", count, 0);
  CHECK("... requested", APIC(IRR + 0x20) >> 31, 1);
  asm volatile("sti; nop; movl $0x4F, %0; mov %1, %%eax; cli; mov %%eax, %2"
               : "=m"(APIC(TPR)) : "m"(count), "m"(order[7]) : "rax", "memory");
  CHECK("delivered at once when TPR falls", order[7], 1);
  count = 0;
  WRITE("cr8", 6);
  CHECK("CR8 shows in TPR", APIC(TPR), 0x60);
  self(0x61);
  allow();
  CHECK("held back by CR8", count, 0);
  unsigned at_once = 9;
  asm volatile("sti; nop; mov %2, %%cr8; mov %1, %0; cli" : "=r"(at_once) : "m"(count), "r"(5ul) : "memory");
  CHECK("delivered at once when CR8 falls", at_once, 1);
  count = 0;
  WRITE("cr8", 15);
  self(0xE0);
  self(0x30);
  self(0xE1);
  WRITE("cr8", 0);
  allow();
  allow();
  CHECK("the highest first", order[0] << 16 | order[1] << 8 | order[2], 0xE1E030);
  count = 0;
  APIC(TPR) = 0x1F;
  CHECK("TPR's subclass shows in PPR", APIC(PPR), 0x1F);
  WRITE("cr8", 1);
  CHECK("writing the same class to CR8 clears it", APIC(TPR), 0x10);
  APIC(TPR) = 0;
}

static volatile unsigned depth, deepest;
static void nesting(struct frame *frame) {
  order[count++ & 7] = frame->vector;
  if (++depth > deepest) deepest = depth;
  if (frame->vector == 0x41) {
    CHECK("in service", APIC(ISR + 0x20) >> 1 & 1, 1);
    CHECK("PPR in service", APIC(PPR), 0x40);
    self(0x42); // the same class: waits for EOI
    self(0x51); // a higher one: does not
    asm volatile("sti; nop; nop; cli");
    order[7] = count;
  }
  APIC(EOI) = 0;
  depth--;
}
static void service(void) {
  section("SDM 3, 11.8.4 and 11.8.5: in service, end of interrupt");
  count = deepest = 0;
  handlers[0x41] = handlers[0x42] = handlers[0x51] = nesting;
  self(0x41);
  allow();
  allow();
  CHECK("higher class nests, same class waits", order[0] << 16 | order[1] << 8 | order[2], 0x415142);
  CHECK("two deep", deepest, 2);
  CHECK("one had nested", order[7], 2);
  CHECK("nothing in service", APIC(ISR + 0x20), 0);
  CHECK("PPR back", APIC(PPR), 0);
  handlers[0x41] = handlers[0x42] = handlers[0x51] = came;
  APIC(ESR) = 0;
  if (!is_tcg) self(5); // which TCG delivers
  APIC(ESR) = 0;
  CHECK_NOT_TCG("an illegal vector is an error", APIC(ESR), 0x20, "SDM 3, 11.5.3");
}

static volatile word where;
static void place(struct frame *frame) {
  where = frame->ip;
  count++;
  APIC(EOI) = 0;
}
// An interrupt waits; after the code, RBX is where it should have come.
#define SHADOW(name, code)                                                                                             \
  do {                                                                                                                 \
    where = count = 0;                                                                                                 \
    self(0x43);                                                                                                        \
    TRY(code "\n cli", );                                                                                              \
    CHECK(name, where ? where - after.b : 0xBAD, 0);                                                                   \
    count = 0;                                                                                                         \
    allow();                                                                                                           \
  } while (0)
static void shadows(void) {
  section("SDM 3, 6.8.1 and 6.8.3: STI, POPF and MOV SS");
  handlers[0x43] = place;
  SHADOW("STI holds back for an instruction", "lea 1f(%%rip), %%rbx; sti; inc %%eax; 1: inc %%eax; inc %%eax");
  SHADOW("STI with IF set does not", "lea 1f(%%rip), %%rbx; mov %%ebx, %%ebx; sti; nop; 1: sti; nop");
  SHADOW("STI, MOV SS", "lea 1f(%%rip), %%rbx; mov %%ss, %%eax; sti; mov %%eax, %%ss; nop; 1: nop; nop");
  SHADOW("POPF does not hold back", "lea 1f(%%rip), %%rbx; pushf; orl $0x200, (%%rsp); popf; 1: nop; nop");
  SHADOW("STI, HLT", "lea 1f(%%rip), %%rbx; sti; hlt; 1: nop; nop");
  SHADOW("STI, STI", "lea 1f(%%rip), %%rbx; sti; sti; 1: nop; nop");
  SHADOW("STI before a load that faults not", "lea 1f(%%rip), %%rbx; sti; mov (%%rsp), %%eax; 1: nop; nop");
  SHADOW("STI, a device", "lea 1f(%%rip), %%rbx; mov $0xFEE00030, %%edx; sti; mov (%%rdx), %%eax; 1: nop; nop");
  SHADOW("STI, CPUID", "lea 1f(%%rip), %%r8; sti; cpuid; 1: mov %%r8, %%rbx");
  SHADOW("STI, REP MOVS", "lea 1f(%%rip), %%rbx; lea -128(%%rsp), %%rsi; mov %%rsi, %%rdi; mov $1, %%ecx; sti; rep movsb; 1: nop");
  where = count = 0;
  self(0x43);
  TRY("sti; cli; nop; nop", );
  CHECK("STI, CLI", count, 0);
  allow();
  CHECK("... it came later", count, 1);
  handlers[0x43] = came;
}

static volatile unsigned nmis, inner;
static void nmi(struct frame *frame) {
  nmis++;
  if (nmis == 1) {
    APIC(ICR) = 0x40400; // another one, to oneself
    asm volatile("nop; nop; nop");
    inner = nmis;
    asm volatile("int3"); // its IRET ends the blocking
    inner |= nmis << 8;
  }
}
static void nothing(struct frame *frame) { (void)frame; }
static void non_maskable(void) {
  section("SDM 3, 6.7.1: NMIs block NMIs until IRET");
  handlers[NMI] = nmi;
  handlers[BP] = nothing;
  APIC(ICR) = 0x40400;
  asm volatile("nop; nop; nop");
  CHECK("both came", nmis, 2);
  CHECK("the second at the first IRET", inner, 0x201);
  handlers[NMI] = handlers[BP] = 0;
}

static void modes(void) {
  section("SDM 3, 11.4.3: disabling; 11.12.1: x2APIC transitions");
  u32 out[4];
  const u64 base = rdmsr(0x1B);
  CHECK("APIC_BASE", base & 0xFFF, 0x900);
  cpuid(1, 0, out);
  CHECK("CPUID has an APIC", out[3] >> 9 & 1, 1);
  const int has_x2 = out[2] >> 21 & 1;
  // TCG forgets that there was an APIC and then aborts.
  if (is_tcg) return;
#define OFF "SDM 3, 11.4.3"
  APIC(TPR) = 0x20;
  APIC(TIMER) = 0x300F0;
  wrmsr(0x1B, base & ~0x800ull);
  cpuid(1, 0, out);
  CHECK_NOT_TCG("CPUID has none when disabled", out[3] >> 9 & 1, 0, OFF);
  CHECK_NOT_TCG("its page is memory of nobody", APIC(VERSION), 0xFFFFFFFF, "SDM 3, 11.4.3");
  CHECK_NOT_TCG("disabled to x2APIC", try_wrmsr(0x1B, (base & ~0x800ull) | 0x400), GP, "SDM 3, 11.12.1");
  CHECK_NOT_TCG("disabled to both", try_wrmsr(0x1B, base | 0xC00), GP, "SDM 3, 11.12.1");
  wrmsr(0x1B, base);
  cpuid(1, 0, out);
  CHECK_NOT_TCG("CPUID has it again", out[3] >> 9 & 1, 1, OFF);
  CHECK_NOT_TCG("SVR after enabling", APIC(SVR), 0xFF, OFF);
  CHECK_NOT_TCG("TPR after enabling", APIC(TPR), 0, OFF);
  CHECK_NOT_TCG("CR8 after enabling", READ("cr8"), 0, OFF);
  CHECK_NOT_TCG("the timer after enabling", APIC(TIMER), 0x10000, OFF);
  CHECK_NOT_TCG("DFR after enabling", APIC(DFR), 0xFFFFFFFF, OFF);
  APIC(SVR) = 0x1FF;
  APIC(LDR) = 0x12345678;
  CHECK_NOT_TCG("LDR holds its byte", APIC(LDR), 0x12000000, OFF);
  CHECK_NOT_TCG("x2APIC registers in xAPIC mode", try_rdmsr(0x802), GP, OFF);
  // Somewhere else (11.4.4).
  CHECK_NOT_TCG("moved", try_wrmsr(0x1B, 0xFED40000 | (base & 0xFFF)), NONE, OFF);
  CHECK_NOT_TCG("... it is there", *(volatile u32 *)0xFED40030 & 0xFF, 0x14, OFF);
  CHECK_NOT_TCG("... and no longer here", APIC(VERSION), 0xFFFFFFFF, OFF);
  wrmsr(0x1B, base);
  CHECK_NOT_TCG("moved back", APIC(VERSION) & 0xFF, 0x14, OFF);
  if (!has_x2) return;
#define X2 "SDM 3, 11.12"
  const unsigned id = APIC(ID) >> 24;
  APIC(TPR) = 0x30;
  CHECK_NOT_TCG("to x2APIC", try_wrmsr(0x1B, base | 0x400), NONE, X2);
  CHECK_NOT_TCG("the same ID", rdmsr(0x802), id, X2);
  CHECK_NOT_TCG("TPR is kept", rdmsr(0x808), 0x30, X2);
  CHECK_NOT_TCG("SVR is kept", rdmsr(0x80F), 0x1FF, X2);
  CHECK_NOT_TCG("the logical ID", rdmsr(0x80D), 1u << (id & 15) | id >> 4 << 16, X2);
  wrmsr(0x808, 0);
  CHECK_NOT_TCG("no DFR", try_rdmsr(0x80E), GP, X2);
  CHECK_NOT_TCG("no second ICR", try_rdmsr(0x831), GP, X2);
  CHECK_NOT_TCG("EOI of 1", try_wrmsr(0x80B, 1), GP, X2);
  CHECK_NOT_TCG("EOI read", try_rdmsr(0x80B), GP, X2);
  CHECK_NOT_TCG("SELF IPI read", try_rdmsr(0x83F), GP, X2);
  CHECK_NOT_TCG("ID written", try_wrmsr(0x802, 0), GP, X2);
  CHECK_NOT_TCG("TPR of 100", try_wrmsr(0x808, 0x100), GP, X2);
  CHECK_NOT_TCG("SVR reserved", try_wrmsr(0x80F, 0x10000), GP, X2);
  CHECK_NOT_TCG("ESR of 1", try_wrmsr(0x828, 1), GP, X2);
  CHECK_NOT_TCG("a register that is none", try_rdmsr(0x801), GP, X2);
  CHECK_NOT_TCG("... beyond the end", try_rdmsr(0x840), GP, X2);
  for (unsigned vector = 0x20; vector < 0xF0; vector++)
    if (vector != LEAVE) handlers[vector] = came_x2;
  count = 0;
  wrmsr(0x83F, 0x77);
  allow();
  CHECK_NOT_TCG("SELF IPI", count << 8 | order[0], 0x177, X2);
  count = 0;
  wrmsr(0x830, (u64)id << 32 | 0x78);
  allow();
  CHECK_NOT_TCG("ICR", count << 8 | order[0], 0x178, X2);
  count = 0;
  wrmsr(0x808, 0x80);
  wrmsr(0x83F, 0x79);
  allow();
  CHECK_NOT_TCG("held back by TPR", count, 0, X2);
  unsigned at_once;
  asm volatile("sti; nop; wrmsr; mov %1, %0; cli" : "=r"(at_once) : "m"(count), "c"(0x808), "a"(0), "d"(0) : "memory");
  CHECK_NOT_TCG("at once when TPR falls", at_once, 1, X2);
  CHECK_NOT_TCG("x2APIC to xAPIC", try_wrmsr(0x1B, base), GP, X2);
  CHECK_NOT_TCG("x2APIC to the invalid state", try_wrmsr(0x1B, (base & ~0x800ull) | 0x400), GP, X2);
  CHECK_NOT_TCG("x2APIC to disabled", try_wrmsr(0x1B, base & ~0xC00ull), NONE, X2);
  CHECK_NOT_TCG("disabled to xAPIC", try_wrmsr(0x1B, base), NONE, X2);
  CHECK_NOT_TCG("reset on the way", APIC(SVR), 0xFF, X2);
  for (unsigned vector = 0x20; vector < 0xF0; vector++)
    if (vector != LEAVE) handlers[vector] = came;
  APIC(SVR) = 0x1FF;
}

static void timer(void) {
  section("SDM 3, 11.5.4: the timer");
  count = 0;
  APIC(DIVIDE) = 0xB;
  APIC(TIMER) = 0x60;
  APIC(COUNT) = 100000;
  asm volatile("1: sti; hlt; cli; cmpl $0, %0; je 1b" : : "m"(count) : "memory");
  CHECK("one shot", count << 8 | order[0], 0x160);
  CHECK("... is over", APIC(CURRENT), 0);
  count = 0;
  APIC(TIMER) = 0x20061;
  APIC(COUNT) = 20000;
  asm volatile("1: sti; hlt; cli; cmpl $5, %0; jb 1b" : : "m"(count) : "memory");
  CHECK("periodic", order[4], 0x61);
  APIC(TIMER) = 0x10000;
  APIC(COUNT) = 0;
  asm volatile("sti; nop; nop; cli" ::: "memory"); // a period that passed in the meantime
  u32 out[4];
  cpuid(1, 0, out);
  if (is_tcg || !(out[2] >> 24 & 1)) return; // TCG has no deadline mode
  count = 0;
  APIC(TIMER) = 0x40062;
  const u64 deadline = rdtsc() + 100000;
  wrmsr(0x6E0, deadline);
  asm volatile("1: sti; hlt; cli; cmpl $0, %0; je 1b" : : "m"(count) : "memory");
  CHECK_NOT_TCG("TSC deadline", order[0], 0x62, "SDM 3, 11.5.4.1");
  CHECK_NOT_TCG("... not early", rdtsc() >= deadline, 1, "SDM 3, 11.5.4.1");
  CHECK_NOT_TCG("... disarmed", rdmsr(0x6E0), 0, "SDM 3, 11.5.4.1");
  APIC(TIMER) = 0x10000;
}

static void startup(void) {
  section("SDM 3, 8.4.3 and 11.6.1: INIT and start-up IPIs");
  count = 0;
  APIC(ICR) = 0x44608; // a start-up IPI to oneself
  APIC(ICR) = 0x44699;
  CHECK("a start-up IPI does nothing to a processor that runs", count, 0);
  CHECK("... and is no error", (APIC(ESR) = 0, APIC(ESR)), 0);
  APIC(ICR + 0x10) = 0x77u << 24;
  APIC(ICR) = 0x4500;
  APIC(ICR) = 0x4608;
  CHECK("INIT and start-up IPIs to nobody", APIC(ICR) >> 12 & 1, 0);
  APIC(ICR + 0x10) = 0;
  APIC(ICR) = 0x88500; // the level's fall, to all
  CHECK("INIT de-asserted is no INIT", APIC(SVR), 0x1FF);
  APIC(ICR) = 0xC4500; // to all but oneself
  CHECK("INIT to all others", APIC(SVR), 0x1FF);
  self(0x70);
  allow();
  CHECK("interrupts still come", count << 8 | order[0], 0x170);
  count = 0;
}

static volatile unsigned interrupted, image;
extern u8 repeated[];
static void during(struct frame *frame) {
  if (frame->ip == (word)repeated && frame->cx && frame->cx != 0x1000000) {
    interrupted++;
    image = frame->flags >> 16 & 1;
  }
  APIC(EOI) = 0;
}
static void resume_flag(void) {
  section("SDM 3, 17.3.1.1: RF in the image of an interrupt");
  handlers[0x63] = during;
  APIC(DIVIDE) = 0xB;
  APIC(TIMER) = 0x63;
  interrupted = 0;
  // TCG does not interrupt it, and takes its time.
  for (unsigned i = 0; i < (is_tcg ? 2 : 10000) && !interrupted; i++) {
    APIC(COUNT) = 20000 + (i & 63) * 1000;
    word from = 0x1000000, left = 0x1000000, value = 0;
    asm volatile("sti; repeated: rep lodsb; cli" : "+S"(from), "+c"(left), "+a"(value) : : "memory");
  }
  asm volatile("sti; nop; nop; cli" ::: "memory");
  CHECK("between two elements", interrupted, 1);
  CHECK("... RF is set", image, 1);
  handlers[0x63] = came;
}

static void ioapic(unsigned index, u32 value) {
  *(volatile u32 *)0xFEC00000 = index;
  *(volatile u32 *)0xFEC00010 = value;
}
static void falling(struct frame *frame) {
  if (++count == 3) outb(0x2000 + 11, 0);
  APIC(EOI) = 0;
}
static void wires(void) {
  section("82093AA, 3.2.4; test machine: interrupt wires");
  allow();
  count = 0;
  ioapic(0x11 + 2 * 11, 0);
  ioapic(0x10 + 2 * 11, 0x65);
  outb(0x2000 + 11, 1);
  allow();
  CHECK("an edge", count << 8 | order[0], 0x165);
  outb(0x2000 + 11, 1);
  allow();
  CHECK("... once", count, 1);
  outb(0x2000 + 11, 0);
  ioapic(0x10 + 2 * 11, 0x8066);
  count = 0;
  handlers[0x66] = falling;
  outb(0x2000 + 11, 1);
  for (int i = 0; i < 5; i++) allow();
  CHECK("a level comes again until it falls", count, 3);
  ioapic(0x10 + 2 * 11, 0x10000);
}

void test(void) {
  outb(0x21, 0xFF); // the 8259s say nothing
  outb(0xA1, 0xFF);
  priorities();
  service();
  shadows();
  non_maskable();
  modes();
  timer();
  startup();
  resume_flag();
  wires();
}
