// SPDX-License-Identifier: Apache-2.0
// What the conformance guests share: a line `PASS NAME = VALUE` or `FAIL NAME = VALUE, not VALUE` on the serial port for
// each expectation, exceptions that a test provokes and survives, code at other privilege levels, registers by name.
// They are multiboot kernels for `lguest run --machine testdev` and for QEMU with the same devices, so that the two logs
// can be compared line by line. SDM is Intel's Software Developer's Manual, by volume and section.
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word; // a general register

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };
#define NONE 0xFFFFu // no exception came

// Selectors, the same in both modes (start64.S, start32.S).
enum {
  CODE32 = 0x08, CODE64 = 0x10, DATA = 0x18, USER_CODE32 = 0x20 | 3, USER_DATA = 0x28 | 3, USER_CODE64 = 0x30 | 3,
  ABSENT = 0x38, TASK = 0x40, CODE16 = 0x50, DATA16 = 0x58, SPARE = 0x60 // from there on free for tests
};

// What common code pushes for an interrupt or exception (stubs.S).
struct frame {
#ifdef __x86_64__
  word r15, r14, r13, r12, r11, r10, r9, r8;
#endif
  word di, si, bp, unused, bx, dx, cx, ax;
  word vector, error, ip, cs, flags, sp, ss; // sp and ss in 32-bit mode only from another level
};

// The last exception that came.
struct event {
  word vector, error, ip, cs, flags, sp, cr2;
};
extern volatile struct event last;
extern void (*handlers[256])(struct frame *);
extern volatile word resume_ip, resume_sp;

extern u64 gdt[];
extern u64 idt[];
extern u8 tss[];
extern u8 stack_top[], user_stack_top[], other_stack_top[];

// Registers before and after TRY.
struct registers {
  word a, b, c, d, S, D;
};
extern struct registers after;

// Runs instructions that may raise an exception, with registers as named (.a = 1), and says which exception came. What
// is in `then` runs in any case, with the registers as they were left. Labels from 9 on are ours.
#define TRY_THEN(code, then, ...)                                                                                      \
  ({                                                                                                                   \
    struct registers registers_ = {__VA_ARGS__};                                                                       \
    last.vector = NONE;                                                                                                \
    asm volatile(RESUME_AT_9 code "\n9: " RESUME_NOWHERE then                                                          \
                 : "+a"(registers_.a), "+b"(registers_.b), "+c"(registers_.c), "+d"(registers_.d), "+S"(registers_.S), \
                   "+D"(registers_.D)                                                                                  \
                 :                                                                                                     \
                 : "memory", "cc" MORE_REGISTERS);                                                                     \
    after = registers_;                                                                                                \
    (unsigned)last.vector;                                                                                             \
  })
#define TRY(code, ...) TRY_THEN(code, "", __VA_ARGS__)
#ifdef __x86_64__
#define RESUME_AT_9 "movq $9f, resume_ip\n movq %%rsp, resume_sp\n"
#define RESUME_NOWHERE "movq $0, resume_ip\n"
#define MORE_REGISTERS , "r8", "r9", "r10", "r11"
#else
#define RESUME_AT_9 "movl $9f, resume_ip\n movl %%esp, resume_sp\n"
#define RESUME_NOWHERE "movl $0, resume_ip\n"
#define MORE_REGISTERS
#endif

// Jumps to cs:ip with the flags given, by IRET, and comes back with the next exception or with INT 0x81.
unsigned enter(word ip, word cs, word flags, word sp, word ss);
// A function at privilege level 3, with interrupts off; NONE if it came back without an exception.
unsigned user(void (*function)(void));
#define LEAVE 0x81

void print(const char *text);
void print_hex(u64 value);
// What the loader told (Multiboot specification 0.6.96, 3.3), and whether its command line ends in this word.
extern u32 multiboot_info;
int last_word_is(const char *text);
// Whether this is QEMU's TCG, which departs from the manual here and there.
extern int is_tcg;
// One expectation. `why`, if not null, is the section of the manual that says so where TCG does otherwise; such an
// expectation is not even tried there, since some would end the guest.
void expect(const char *name, u64 value, u64 expected, const char *why);
// The part of the manual that the expectations from here on come from; stands in the log above them.
void section(const char *manual);
#define CHECK(name, value, expected) expect(name, (u64)(value), (u64)(expected), 0)
#define CHECK_NOT_TCG(name, value, expected, why) (is_tcg ? (void)0 : expect(name, (u64)(value), (u64)(expected), why))
void set_gate(unsigned vector, word target, unsigned selector, unsigned access, unsigned ist);
void die(const char *text) __attribute__((noreturn));
void test(void); // of each guest

extern void *stubs[256];

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) {
  u8 value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u16 inw(u16 port) {
  u16 value;
  asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u32 inl(u16 port) {
  u32 value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u64 rdmsr(u32 index) {
  u32 low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return (u64)high << 32 | low;
}
static inline void wrmsr(u32 index, u64 value) {
  asm volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
static inline unsigned try_wrmsr(u32 index, u64 value) {
  return TRY("wrmsr", .c = index, .a = (u32)value, .d = (u32)(value >> 32));
}
static inline unsigned try_rdmsr(u32 index) { return TRY("rdmsr", .c = index); }
static inline u64 rdtsc(void) {
  u32 low, high;
  asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
  return (u64)high << 32 | low;
}
static inline void cpuid(u32 leaf, u32 subleaf, u32 out[4]) {
  asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}
#define READ(register)                                                                                                 \
  ({                                                                                                                   \
    word value_;                                                                                                       \
    asm volatile("mov %%" register ", %0" : "=r"(value_));                                                             \
    value_;                                                                                                            \
  })
#define WRITE(register, value) asm volatile("mov %0, %%" register : : "r"((word)(value)) : "memory")
#ifdef __x86_64__
#define TRY_WRITE(register, value) TRY("mov %%rax, %%" register, .a = (word)(value))
#else
#define TRY_WRITE(register, value) TRY("mov %%eax, %%" register, .a = (word)(value))
#endif
static inline word flags(void) {
  word value;
  asm volatile("pushf; pop %0" : "=r"(value));
  return value;
}
static inline void set_flags(word value) { asm volatile("push %0; popf" : : "r"(value) : "memory", "cc"); }

enum {
  FLAG_CF = 1, FLAG_ZF = 0x40, FLAG_TF = 0x100, FLAG_IF = 0x200, FLAG_DF = 0x400, FLAG_OF = 0x800, FLAG_NT = 0x4000,
  FLAG_RF = 0x10000, FLAG_VM = 0x20000, FLAG_AC = 0x40000, FLAG_VIF = 0x80000, FLAG_VIP = 0x100000
};

#endif
