// SPDX-License-Identifier: Apache-2.0
// A kernel of level 1 for lguest: it makes hypercalls, has its traps reflected, takes interrupts, uses devices and runs a
// program at level 3, and says what is not as it should be. Its first word on the command line names something that must
// kill it.
#include "ring1.h"

extern char iret_window[], iret_window_end[], iret_point[], user_code[], user_prefixed[], user_came_back[], refused[], trap_stack[], user_stack[];
extern void handler_3(void), handler_6(void), handler_7(void), handler_13(void), handler_14(void), handler_32(void),
    handler_33(void), handler_34(void), handler_35(void), handler_36(void), handler_37(void), handler_38(void),
    handler_39(void), handler_40(void), handler_128(void), resume_kernel(void);
void enter_user(uint32_t eip, uint32_t esp);

struct guest_data guest_data;
static uint32_t directory[1024] __attribute__((aligned(4096))), table[4][1024] __attribute__((aligned(4096)));
static uint32_t device_table[1024] __attribute__((aligned(4096)));
static volatile uint32_t page[1024] __attribute__((aligned(4096)));
static uint32_t failures;
#if LAYOUT == 2624
// By which this kernel is told from the next, whose devices are described in another way.
static const char banner[] __attribute__((used)) = "Linux version 2.6.24 (ring 1)";
#endif

void check(int holds, const char *what) {
  if (holds) return;
  failures++;
  say("FAIL ");
  say(what);
  say("\n");
}

// What the last trap found.
struct frame {
  uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax, vector, code, eip, cs, eflags, old_esp, old_ss;
};
static volatile struct frame seen[256];
volatile uint32_t count[256];
static volatile uint32_t enabled_inside;
static uint32_t resume_at;

static uint32_t *entry(const volatile void *place) {
  uint32_t address = physical(place);
  return &table[address >> 22][address >> 12 & 1023];
}

void handle(struct frame *frame) {
  count[frame->vector & 255]++;
  enabled_inside = guest_data.irq_enabled;
  seen[frame->vector & 255] = *frame;
  switch (frame->vector) {
  case 14: // The page comes back.
    *entry(page) = physical(page) | 7;
    break;
  case 13:
    if (frame->cs == 0x73) frame->eip += frame->eip == (uint32_t)user_prefixed ? 4 : 2; // INT 1Fh of the program's
    else frame->eip = resume_at;
    break;
  case 6: frame->eip = resume_at; break;
  case 7: call(TS, 0, 0, 0, 0); break;
  case 128: // The program is done: back to the kernel, at level 1.
    frame->eip = (uint32_t)resume_kernel;
    frame->cs = 0x61;
    break;
  }
}

static void gate(uint32_t vector, void (*handler)(void), uint32_t type) {
  uint32_t address = (uint32_t)handler;
  call(LOAD_IDT_ENTRY, vector, 0x600000 | (address & 0xffff), (address & 0xffff0000) | 0x8000 | type << 8, 0);
}

// The descriptors of the kernel's and the program's segments, and of one that begins at `page`.
static uint32_t gdt[32][2];
static void segments(void) {
  uint32_t base = (uint32_t)page;
  gdt[10][0] = gdt[10][1] = ~0u; // the host's, ignored
  gdt[12][0] = 0xffff, gdt[12][1] = 0xcf9a00;
  gdt[13][0] = 0xffff, gdt[13][1] = 0xcf9200;
  gdt[14][0] = 0xffff, gdt[14][1] = 0xcffa00;
  gdt[15][0] = 0xffff, gdt[15][1] = 0xcff200;
  gdt[27][0] = 0xffff | base << 16, gdt[27][1] = 0x409200 | (base >> 16 & 0xff) | (base & 0xff000000);
#if LAYOUT <= 2630
  call(LOAD_GDT, physical(gdt), 32, 0, 0);
#else
  for (uint32_t i = 0; i < 32; i++) call(LOAD_GDT_ENTRY, i, gdt[i][0], gdt[i][1], 0);
#endif
}

static void prepare(void) {
  for (int i = 0; i < 64; i++) guest_data.status[i] = 0xff;
  guest_data.blocked = 1;
#if LAYOUT >= 2624
  guest_data.kernel_address = PAGE_OFFSET;
  guest_data.syscall_vec = 0x80;
#endif
#if LAYOUT == 4000
  guest_data.noirq[0] = (uint32_t)iret_point;
#else
  guest_data.noirq[0] = (uint32_t)iret_window;
  guest_data.noirq[1] = (uint32_t)iret_window_end;
#endif
}

// The page tables that the host made, before there are others.
static void first_tables(void) {
#if LAYOUT >= 2624 && LAYOUT <= 2635
  static volatile uint32_t word = 4711;
  uint32_t *first = (uint32_t *)guest_data.pgdir;
  check(first && !((uint32_t)first & 4095), "pgdir");
  if (LAYOUT <= 2625) // All RAM is at 0; such a kernel copies that to where it is linked.
    for (uint32_t i = 0; i < 32; i++) first[(PAGE_OFFSET >> 22) + i] = first[i];
  check(*(volatile uint32_t *)(PAGE_OFFSET + (uint32_t)&word) == 4711, "the kernel's address in the first tables");
  check(*(uint32_t *)(PAGE_OFFSET + 0xf00000) == *(uint32_t *)0xf00000, "RAM in the first tables");
#endif
}

// From the first 16 MiB level 3 has the program, its stack and nothing else; behind RAM devices may be.
static void own_tables(uint32_t ram) {
  for (uint32_t i = 0; i < 4; i++) {
    directory[(HERE >> 22) + i] = physical(table[i]) | 0x67;
    for (uint32_t j = 0; j < 1024; j++) table[i][j] = i << 22 | j << 12 | 3;
  }
  *entry(user_code) |= 4;
  *entry(user_stack - 4) |= 4;
  directory[DEVICES >> 22] = physical(device_table) | 0x67;
  for (uint32_t j = 0; j < 1024; j++) device_table[j] = (ram + (j << 12)) | 3;
  call(NEW_PGTABLE, physical(directory), 0, 0, 0);
}

static int is(const char *word) {
  const char *given = (const char *)(0x1000 + HERE);
  while (*word && *word == *given) word++, given++;
  return !*word && (!*given || *given == ' ');
}

// Something that no guest may do; it does not come back.
static void sin(void) {
  if (is("call-99")) call(99, 0, 0, 0, 0);
  if (is("call-of-others")) call(LAYOUT == 4000 ? NOTIFY : LAYOUT <= 2630 ? SEND_INTERRUPTS : LOAD_GDT, 0, 0, 0, 0);
  if (is("init-twice")) call(INIT, physical(&guest_data), 0, 0, 0);
  if (is("idt-index")) call(LOAD_IDT_ENTRY, 256, 0, 0x8e00, 0);
  if (is("idt-type")) call(LOAD_IDT_ENTRY, 5, 0, 0x8500, 0);
  if (is("gdt-index")) call(LOAD_GDT_ENTRY, 32, 0, 0, 0);
  if (is("stack-level")) call(SET_STACK, 0x68, (uint32_t)trap_stack, 1, 0);
  if (is("stack-pages")) call(SET_STACK, 0x69, (uint32_t)trap_stack, 3, 0);
  if (is("stack-nowhere")) {
    asm volatile("mov $0x30000000, %esp\n\tud2");
  }
  if (is("set-pte")) call(SET_PTE, physical(directory), 0xffe00000, 0, 0);
  if (is("set-pmd")) call(SET_PMD, 0, 0, 0, 0); // of PAE alone
  if (is("set-pgd")) call(SET_PGD, physical(directory), 1024, 0, 0);
  if (is("tls")) call(LOAD_TLS, 0xfffffff0, 0, 0, 0);
  if (is("no-gate")) asm volatile("int3");
  if (is("ring")) {
    guest_data.calls[0][0] = 99;
    guest_data.status[0] = 0;
    call(FLUSH_ASYNC, 0, 0, 0, 0);
  }
  if (is("panic")) call(SHUTDOWN, physical("no root today"), 1, 0, 0);
  // The reason lies outside RAM, as a kernel's does that gives none. What was set must be gone when it begins again.
  if (is("restart")) {
    volatile uint32_t *far = (uint32_t *)(0xf00000 + HERE);
    check(*far == 0 && page[0] == 0, "RAM after a restart");
    *far = page[0] = 1;
    call(TS, 8, 0, 0, 0);
    call(SET_CLOCKEVENT, 1000, 0, 0, 0);
    say("once more\n");
    call(SHUTDOWN, 0x40000000, 2, 0, 0);
  }
}

static void traps(void) {
  // A trap gate leaves interrupts as they are, an interrupt gate does not.
  guest_data.irq_enabled = 0x200;
  resume_at = (uint32_t)&&after_ud2;
  asm volatile goto("ud2" : : : "memory" : after_ud2);
after_ud2:
  check(count[6] == 1 && seen[6].cs == 0x61 && (seen[6].eflags & 0x200), "#UD");
  check(enabled_inside == 0x200, "a trap gate");
  asm volatile("int3");
  check(count[3] == 1 && enabled_inside == 0, "INT3");
  check(guest_data.irq_enabled == 0x200, "interrupts after a handler");
  guest_data.irq_enabled = 0;
  asm volatile("int3");
  check(count[3] == 2 && !(seen[3].eflags & 0x200) && guest_data.irq_enabled == 0, "INT3 with interrupts off");

  // A page that is not there; a page that is told to be gone by SET_PTE.
  page[0] = 41;
  *entry(page) = 0;
  call(SET_PTE, physical(directory), (uint32_t)page, 0, 0);
  page[0]++;
  check(count[14] == 1 && guest_data.cr2 == (uint32_t)page && seen[14].code <= 2, "#PF");
  check(page[0] == 42, "the page's content");
  check((*entry(page) & 0x60) == 0x60, "accessed and dirty");

  // A segment that was asked for, with the level that the host gives it.
  uint32_t word;
  asm volatile("mov %1, %%fs\n\tmov %%fs:0, %0\n\tmov %2, %%fs" : "=r"(word) : "r"(0xd8), "r"(0));
  check(word == 42, "a segment by FS");

  // Instructions that the host executes, and one that it reflects.
  asm volatile("cli");
  uint32_t value = 1;
  asm volatile("mov %%cr4, %0" : "=r"(value));
  check(value == 0, "CR4");
  asm volatile("inb $0x70, %%al" : "+a"(value));
  check(value == 0xff, "IN");
  asm volatile("outb %%al, $0x70" : : "a"(1));
  check(count[13] == 0, "no fault so far");
  resume_at = (uint32_t)&&after_hlt;
  asm volatile goto("hlt" : : : "memory" : after_hlt);
after_hlt:
  check(count[13] == 1 && seen[13].code == 0, "HLT is #GP");
  // Only level 0 may raise #GP by INT.
  resume_at = (uint32_t)&&after_int;
  asm volatile goto("refused: .byte 0x66, 0xcd, 13" : : : "memory" : after_int);
after_int:
  check(count[13] == 2 && seen[13].code == 13 * 8 + 2 && seen[13].eip == (uint32_t)refused, "INT with a prefix");

  // Virtual CR0.TS.
  call(TS, 8, 0, 0, 0);
  asm volatile("fnop");
  check(count[7] == 1, "#NM");
  asm volatile("fnop");
  check(count[7] == 1, "no #NM");
}

static void interrupts(void) {
  // The timer wakes HALT, whatever irq_enabled says.
  guest_data.blocked = 0;
  call(SET_CLOCKEVENT, 1000000, 0, 0, 0);
  call(HALT, 0, 0, 0, 0);
  check(count[32] == 1 && enabled_inside == 0 && (seen[32].eflags & 0x200), "the timer");
  // With interrupts off it waits, and says so since 2.6.31.
  guest_data.irq_enabled = 0;
  call(SET_CLOCKEVENT, 1000, 0, 0, 0);
#if LAYOUT >= 2631
  while (!*(volatile uint32_t *)&guest_data.irq_pending) asm volatile("pause");
  check(count[32] == 1, "not while interrupts are off");
  guest_data.irq_enabled = 0x200;
  call(SEND_INTERRUPTS, 0, 0, 0, 0);
  check(count[32] == 2 && guest_data.irq_pending == 0, "SEND_INTERRUPTS");
#else
  for (int i = 0; i < 100000; i++) asm volatile("pause");
  check(count[32] == 1, "not while interrupts are off");
  // These kernels do not say that they are on again.
  guest_data.irq_enabled = 0x200;
  while (count[32] == 1) {
  }
#endif
  // A guest that only spins is interrupted too.
  call(SET_CLOCKEVENT, 1000, 0, 0, 0);
  while (count[32] == 2) {
  }
  guest_data.blocked = 1;
#if LAYOUT >= 2624
  check(guest_data.seconds > 1000000000, "the time");
#else
  check(call(GET_WALLCLOCK, 0, 0, 0, 0) > 1000000000, "GET_WALLCLOCK");
#endif
}

// Puts a call into the ring's next slot, and says which that is.
static uint32_t put_call(uint32_t number, uint32_t a, uint32_t b, uint32_t c) {
  static uint32_t next;
  uint32_t slot = next++ % 64, *words = guest_data.calls[slot];
  words[0] = number, words[FIRST] = a, words[SECOND] = b, words[THIRD] = c;
  guest_data.status[slot] = 0;
  return slot;
}

static void ring(void) {
  // Two calls, in order, and their slots are free again.
  uint32_t slot_of_effect = 0;
  (void)slot_of_effect;
  uint32_t first = put_call(TS, 8, 0, 0), second = put_call(TS, 0, 0, 0);
  call(FLUSH_ASYNC, 0, 0, 0, 0);
  check(guest_data.status[first] == 0xff && guest_data.status[second] == 0xff, "the ring");
  asm volatile("fnop");
  check(count[7] == 1, "the ring's order");
#if LAYOUT != 4000
  // One that the machine has to do something for, and the call that is made: both are performed.
  slot_of_effect = put_call(LAYOUT == 2623 ? SEND_DMA : NOTIFY, LAYOUT == 2623 ? 0x7000 : physical(""), 0, 0);
  call(TS, 8, 0, 0, 0);
  asm volatile("fnop");
  check(guest_data.status[slot_of_effect] == 0xff && count[7] == 2, "a call behind one of the ring");
#endif
  // All arguments: a trap gate for a vector that had an interrupt gate.
  uint32_t address = (uint32_t)handler_3;
  uint32_t slot = put_call(LOAD_IDT_ENTRY, 3, 0x600000 | (address & 0xffff), (address & 0xffff0000) | 0xef00);
  guest_data.irq_enabled = 0x200;
  // Until 2.6.24 whatever came to the host drained it.
  if (LAYOUT == 2623) asm volatile("inb $0x70, %%al" : : : "eax");
  else call(FLUSH_ASYNC, 0, 0, 0, 0);
  asm volatile("int3");
  check(guest_data.status[slot] == 0xff && enabled_inside == 0x200, "a gate by the ring");
}

// All that a guest does, from gates that are as they were at first.
static void everything(uint32_t ram, int mode) {
  for (uint32_t i = 0; i < 256; i++) count[i] = 0;
  gate(3, handler_3, 0x6e);
  gate(6, handler_6, 0xf);
  gate(7, handler_7, 0xe);
  gate(13, handler_13, 0xe);
  gate(14, handler_14, 0xe);
  void (*const lines[])(void) = {handler_32, handler_33, handler_34, handler_35, handler_36,
                                 handler_37, handler_38, handler_39, handler_40};
  for (uint32_t i = 0; i < 9; i++) gate(32 + i, lines[i], 0xe);
  gate(128, handler_128, 0x6f);
  call(LOAD_IDT_ENTRY, 8, 0, 0x8500, 0); // a task gate, which is ignored
  segments();
  call(SET_STACK, 0x69, (uint32_t)trap_stack, 2, 0);
  traps();
  interrupts();
  ring();

  // Level 3.
  enter_user((uint32_t)user_code, (uint32_t)user_stack - 16);
  check(count[13] == 4 && seen[13].code == 0x1f * 8 + 2 && seen[13].cs == 0x73, "INT 1Fh of level 3");
  check(seen[13].eip == (uint32_t)user_prefixed, "where it was, prefixes and all");
  check(count[128] == 1 && seen[128].cs == 0x73 && seen[128].old_ss == 0x7b && seen[128].ebx == 0x1234, "a system call");
  check(seen[128].old_esp == (uint32_t)user_stack - 16, "the program's stack");

  devices(ram, mode);
}

void main(void) {
  uint32_t ram = *(uint32_t *)(0x2d8 + HERE);
  if (is("before-init")) call(HALT, 0, 0, 0, 0);
  if (is("bad-init")) call(INIT, 0xfffff000, 0, 0, 0);
  if (is("silent")) for (;;) asm volatile("pause");
  if (is("silent-fault")) asm volatile("ud2");
  prepare();
  call(INIT, physical(&guest_data), 0, 0, 0);
  check(guest_data.reserve_mem == 0x400000, "reserve_mem");
#if LAYOUT >= 2624
  check(guest_data.seconds > 1000000000, "time at LGUEST_INIT");
#endif
  first_tables();
  // Nobody could handle a fault yet.
  uint32_t low = 1, high = 1;
  asm volatile("rdmsr" : "+a"(low), "+d"(high) : "c"(0x1a0));
  asm volatile("wrmsr" : : "a"(low), "d"(high), "c"(0x1a0));
  check(low == 0 && high == 0, "RDMSR without a handler");
  own_tables(ram);
  sin();
  if (is("wait")) {
    say("waiting\n");
    for (;;) call(FLUSH_ASYNC, 0, 0, 0, 0);
  }

  // Those that are moved go round; one of them begins again then.
  uint32_t rounds = is("for-ever") ? ~0u : is("moving") ? 120 : is("again") ? 400 : 1;
  int mode = is("all typed") ? TYPED : is("all frames") ? FRAMES : is("echo") ? ECHO : PLAIN;
  if (is("again")) say("begin\n");
  for (uint32_t i = 0; i < rounds; i++) everything(ram, mode);
  if (is("again")) call(SHUTDOWN, 0x40000000, 2, 0, 0);
  say(failures ? "some failed\n" : "all passed\n");
  call(SHUTDOWN, physical("Power down"), 1, 0, 0);
}
