// SPDX-License-Identifier: Apache-2.0
// A kernel of level 1 for lguest: it makes hypercalls, has its traps reflected, takes interrupts and runs a program at
// level 3, and says what is not as it should be. Its first word on the command line names something that must kill it.
// LAYOUT says when it might have been built: 31 (Linux 2.6.31 to 3.0), 311 (3.1 to 3.19) or 40 (4.0 to 4.13).
#include <stdint.h>

enum { FLUSH_ASYNC, INIT, SHUTDOWN, LOAD_GDT, NEW_PGTABLE, FLUSH_TLB, LOAD_IDT_ENTRY, SET_STACK, TS, SET_CLOCKEVENT, HALT,
       SET_PMD = 13, SET_PTE, SET_PGD, LOAD_TLS, NOTIFY, LOAD_GDT_ENTRY, SEND_INTERRUPTS };

struct guest_data {
  uint32_t irq_enabled, blocked, cr2;
  int32_t seconds, nanoseconds;
  uint32_t irq_pending;
  uint8_t status[64];
  uint32_t calls[64][5];
  uint32_t reserve_mem, tsc_khz;
#if LAYOUT == 31
  uint32_t pgdir;
#endif
  uint32_t noirq[LAYOUT == 40 ? 1 : 2];
  uint32_t kernel_address, syscall_vec;
};

extern char iret_window[], iret_window_end[], iret_point[], user_code[], user_came_back[], trap_stack[], user_stack[];
extern void handler_3(void), handler_6(void), handler_7(void), handler_13(void), handler_14(void), handler_32(void),
    handler_33(void), handler_128(void), resume_kernel(void);
void enter_user(uint32_t eip, uint32_t esp);

struct guest_data guest_data;
static uint32_t directory[1024] __attribute__((aligned(4096))), table[4][1024] __attribute__((aligned(4096)));
static volatile uint32_t page[1024] __attribute__((aligned(4096)));

static void call(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("int $0x1f" : "+a"(number) : "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
}
static void say(const char *text) { call(NOTIFY, (uint32_t)text, 0, 0, 0); }

static uint32_t failures;
static void check(int holds, const char *what) {
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
static volatile uint32_t count[256], enabled_inside;
static uint32_t resume_at;

void handle(struct frame *frame) {
  count[frame->vector & 255]++;
  enabled_inside = guest_data.irq_enabled;
  seen[frame->vector & 255] = *frame;
  switch (frame->vector) {
  case 14: // The page comes back.
    table[(uint32_t)page >> 22][(uint32_t)page >> 12 & 1023] = (uint32_t)page | 7;
    break;
  case 13:
    if (frame->cs == 0x73) frame->eip += 2; // INT 1Fh of the program's
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

static void prepare(void) {
  for (int i = 0; i < 64; i++) guest_data.status[i] = 0xff;
  guest_data.blocked = 1;
  guest_data.kernel_address = 0xC0000000;
  guest_data.syscall_vec = 0x80;
#if LAYOUT == 40
  guest_data.noirq[0] = (uint32_t)iret_point;
#else
  guest_data.noirq[0] = (uint32_t)iret_window;
  guest_data.noirq[1] = (uint32_t)iret_window_end;
#endif
}

static int is(const char *word) {
  const char *given = (const char *)0x1000;
  while (*word && *word == *given) word++, given++;
  return !*word && (!*given || *given == ' ');
}

// Something that no guest may do; it does not come back.
static void sin(void) {
  if (is("call-99")) call(99, 0, 0, 0, 0);
  if (is("init-twice")) call(INIT, (uint32_t)&guest_data, 0, 0, 0);
  if (is("idt-index")) call(LOAD_IDT_ENTRY, 256, 0, 0x8e00, 0);
  if (is("idt-type")) call(LOAD_IDT_ENTRY, 5, 0, 0x8500, 0);
  if (is("gdt-index")) call(LOAD_GDT_ENTRY, 32, 0, 0, 0);
  if (is("stack-level")) call(SET_STACK, 0x68, (uint32_t)trap_stack, 1, 0);
  if (is("stack-pages")) call(SET_STACK, 0x69, (uint32_t)trap_stack, 3, 0);
  if (is("stack-nowhere")) {
    asm volatile("mov $0x30000000, %esp\n\tud2");
  }
  if (is("set-pte")) call(SET_PTE, (uint32_t)directory, 0xffe00000, 0, 0);
  if (is("set-pgd")) call(SET_PGD, (uint32_t)directory, 1024, 0, 0);
  if (is("tls")) call(LOAD_TLS, 0xfffffff0, 0, 0, 0);
  if (is("no-gate")) asm volatile("int3");
  if (is("ring")) {
    guest_data.calls[0][0] = 99;
    guest_data.status[0] = 0;
    call(FLUSH_ASYNC, 0, 0, 0, 0);
  }
  if (is("panic")) call(SHUTDOWN, (uint32_t)"no root today", 1, 0, 0);
  if (is("restart")) call(SHUTDOWN, 0x40000000, 2, 0, 0);
}

void main(void) {
  if (is("before-init")) call(HALT, 0, 0, 0, 0);
  if (is("bad-init")) call(INIT, 0xfffff000, 0, 0, 0);
  prepare();
  call(INIT, (uint32_t)&guest_data, 0, 0, 0);
  check(guest_data.reserve_mem == 0x400000, "reserve_mem");
  check(guest_data.seconds > 1000000000, "time at LGUEST_INIT");

  // From the first 16 MiB, which are where they are, level 3 has the program, its stack and nothing else.
  for (uint32_t i = 0; i < 4; i++) {
    directory[i] = (uint32_t)table[i] | 0x67;
    for (uint32_t j = 0; j < 1024; j++) table[i][j] = i << 22 | j << 12 | 3;
  }
  uint32_t code = (uint32_t)user_code >> 12, stack = ((uint32_t)user_stack - 4) >> 12;
  table[code >> 10][code & 1023] |= 4;
  table[stack >> 10][stack & 1023] |= 4;
  call(NEW_PGTABLE, (uint32_t)directory, 0, 0, 0);
  sin();
  if (is("wait")) {
    say("waiting\n");
    for (;;) call(FLUSH_ASYNC, 0, 0, 0, 0);
  }

  gate(3, handler_3, 0x6e);
  gate(6, handler_6, 0xf);
  gate(7, handler_7, 0xe);
  gate(13, handler_13, 0xe);
  gate(14, handler_14, 0xe);
  gate(32, handler_32, 0xe);
  gate(128, handler_128, 0x6f);
  call(LOAD_IDT_ENTRY, 8, 0, 0x8500, 0); // a task gate, which is ignored
  call(LOAD_GDT_ENTRY, 10, ~0u, ~0u, 0); // the host's, ignored
  call(LOAD_GDT_ENTRY, 14, 0xffff, 0xcffa00, 0);
  call(LOAD_GDT_ENTRY, 15, 0xffff, 0xcff200, 0);
  call(LOAD_GDT_ENTRY, 27, 0xffff | (uint32_t)page << 16, 0x409200 | (uint32_t)page >> 16 | ((uint32_t)page & 0xff000000), 0);
  call(SET_STACK, 0x69, (uint32_t)trap_stack, 2, 0);

  // Traps, reflected. A trap gate leaves interrupts as they are, an interrupt gate does not.
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
  table[(uint32_t)page >> 22][(uint32_t)page >> 12 & 1023] = 0;
  call(SET_PTE, (uint32_t)directory, (uint32_t)page, 0, 0);
  page[0]++;
  check(count[14] == 1 && guest_data.cr2 == (uint32_t)page && seen[14].code <= 2, "#PF");
  check(page[0] == 42, "the page's content");
  check((table[(uint32_t)page >> 22][(uint32_t)page >> 12 & 1023] & 0x60) == 0x60, "accessed and dirty");

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

  // Virtual CR0.TS.
  call(TS, 8, 0, 0, 0);
  asm volatile("fnop");
  check(count[7] == 1, "#NM");
  asm volatile("fnop");
  check(count[7] == 1, "no #NM");

  // The timer wakes HALT, whatever irq_enabled says.
  guest_data.blocked = 0;
  call(SET_CLOCKEVENT, 1000000, 0, 0, 0);
  call(HALT, 0, 0, 0, 0);
  check(count[32] == 1 && enabled_inside == 0 && (seen[32].eflags & 0x200), "the timer");
  // With interrupts off it waits, and says so.
  guest_data.irq_enabled = 0;
  call(SET_CLOCKEVENT, 1000, 0, 0, 0);
  while (!*(volatile uint32_t *)&guest_data.irq_pending) asm volatile("pause");
  check(count[32] == 1, "not while interrupts are off");
  guest_data.irq_enabled = 0x200;
  call(SEND_INTERRUPTS, 0, 0, 0, 0);
  check(count[32] == 2 && guest_data.irq_pending == 0, "SEND_INTERRUPTS");
  // A guest that only spins is interrupted too.
  call(SET_CLOCKEVENT, 1000, 0, 0, 0);
  while (count[32] == 2) {
  }
  guest_data.blocked = 1;

  // The ring: two calls, in order, and its slots are free again.
  guest_data.calls[0][0] = TS, guest_data.calls[0][1] = 8;
  guest_data.calls[1][0] = TS, guest_data.calls[1][1] = 0;
  guest_data.status[0] = guest_data.status[1] = 0;
  call(FLUSH_ASYNC, 0, 0, 0, 0);
  check(guest_data.status[0] == 0xff && guest_data.status[1] == 0xff, "the ring");
  asm volatile("fnop");
  check(count[7] == 1, "the ring's order");

  // Level 3.
  enter_user((uint32_t)user_code, (uint32_t)user_stack - 16);
  check(count[13] == 2 && seen[13].code == 0x1f * 8 + 2 && seen[13].cs == 0x73, "INT 1Fh of level 3");
  check(seen[13].eip + 2 == (uint32_t)user_came_back, "where it was");
  check(count[128] == 1 && seen[128].cs == 0x73 && seen[128].old_ss == 0x7b && seen[128].ebx == 0x1234, "a system call");
  check(seen[128].old_esp == (uint32_t)user_stack - 16, "the program's stack");

  say(failures ? "some failed\n" : "all passed\n");
  call(SHUTDOWN, (uint32_t)"Power down", 1, 0, 0);
}
