// SPDX-License-Identifier: Apache-2.0
// lguest's interface as a kernel of LAYOUT has it: 2623 is Linux 2.6.23, 2624 2.6.24, 2625 2.6.25 to 2.6.29, 2630 2.6.30,
// 2631 2.6.31 to 2.6.34, 2635 2.6.35 to 3.0, 3001 3.1 to 3.19, 4000 4.0 to 4.13.
#include <stdint.h>

enum { FLUSH_ASYNC, INIT, SHUTDOWN, LOAD_GDT, NEW_PGTABLE, FLUSH_TLB, LOAD_IDT_ENTRY, SET_STACK, TS, SET_CLOCKEVENT, HALT,
       GET_WALLCLOCK, BIND_DMA, SEND_DMA, SET_PTE, SET_PGD, LOAD_TLS, NOTIFY, LOAD_GDT_ENTRY, SEND_INTERRUPTS,
       SET_PMD = SEND_DMA };

// How much higher linear addresses are: only the first era begins in page tables.
#if LAYOUT == 2623
#define HERE 0xC0000000u
#else
#define HERE 0u
#endif
#define PAGE_OFFSET 0xC0000000u

// The words of a ring's slot that hold the arguments.
enum {
#if LAYOUT == 2624 || LAYOUT == 2625
  FIRST = 3, SECOND = 1, THIRD = 2
#else
  FIRST = 1, SECOND = 2, THIRD = 3
#endif
};

struct guest_data {
  uint32_t irq_enabled, blocked, cr2;
#if LAYOUT >= 2624
  int32_t seconds, nanoseconds;
#endif
#if LAYOUT >= 2631
  uint32_t irq_pending;
#endif
  uint8_t status[64];
  uint32_t calls[64][LAYOUT >= 2631 ? 5 : 4];
  uint32_t reserve_mem;
#if LAYOUT == 2623
  uint16_t number;
#endif
  uint32_t tsc_khz;
#if LAYOUT >= 2624 && LAYOUT <= 2635
  uint32_t pgdir;
#endif
  uint32_t noirq[LAYOUT == 4000 ? 1 : 2];
#if LAYOUT >= 2624
  uint32_t kernel_address, syscall_vec;
#endif
};
_Static_assert(sizeof(struct guest_data) == (LAYOUT == 2623   ? 1120
                                             : LAYOUT <= 2630 ? 1136
                                             : LAYOUT <= 2635 ? 1396
                                             : LAYOUT == 3001 ? 1392
                                                              : 1388),
               "struct lguest_data");
extern struct guest_data guest_data;

// The physical address of what is in this image.
static inline uint32_t physical(const volatile void *place) { return (uint32_t)place - HERE; }

#define INT_1F "int $0x1f"
#define VMCALL ".byte 0x0f, 0x01, 0xc1"

static inline uint32_t call(uint32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if LAYOUT < 2630
  (void)d;
  asm volatile(INT_1F : "+a"(number) : "d"(a), "b"(b), "c"(c) : "memory");
#elif LAYOUT == 2630
  (void)d;
  asm volatile(VMCALL : "+a"(number) : "b"(a), "c"(b), "d"(c) : "memory");
#elif LAYOUT == 2631
  asm volatile(VMCALL : "+a"(number) : "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
#else
  // The era after VMCALL's had forgotten one.
  if (LAYOUT == 2635 && number == SEND_INTERRUPTS)
    asm volatile(VMCALL : "+a"(number) : "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
  else
    asm volatile(INT_1F : "+a"(number) : "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
#endif
  return number;
}

// The early console; and what does not hold is told there.
void say(const char *text);
void check(int holds, const char *what);

// The handlers' counts, by vector.
extern volatile uint32_t count[256];

// Where devices' pages are, and how the host's memory behind RAM is reached: at DEVICES, from the end of RAM on.
#define DEVICES 0xD0000000u
// `TYPED`: the console's input is "ping\n". With a network card: `FRAMES` are sent to another guest, which has `ECHO`.
enum { PLAIN, TYPED, FRAMES, ECHO };
void devices(uint32_t ram, int mode);
