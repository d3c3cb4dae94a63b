// SPDX-License-Identifier: Apache-2.0
// Memory operands on a device in 32-bit code, flat and through a segment with a base: as mmio.c in 64-bit code.
#include "guest.h"

enum { BYTES = 512 };
static u8 *const device = (u8 *)0xFF000000;
static u8 memory[BYTES] __attribute__((aligned(64)));
struct outcome {
  struct registers registers;
  word flags, vector;
  u8 bytes[BYTES];
};
static struct outcome outcomes[2];
word form_flags;

static void compare(const char *name) {
  const struct outcome *a = &outcomes[0], *b = &outcomes[1];
  unsigned bad = 0;
  if (a->vector != NONE || b->vector != NONE) bad |= 0x100 | (a->vector & 0xFF) << 16 | (b->vector & 0xFF) << 24;
  const word *x = (const word *)&a->registers, *y = (const word *)&b->registers;
  for (unsigned i = 0; i < sizeof a->registers / sizeof *x; i++) bad |= x[i] != y[i];
  if (a->flags != b->flags) bad |= 2;
  for (int i = 0; i < BYTES; i++)
    if (a->bytes[i] != b->bytes[i]) {
      bad |= 8 | i << 8;
      break;
    }
  CHECK(name, bad, 0);
}

static void set_base(u32 base) {
  gdt[SPARE / 8] = 0x0040930000000000 | 0x1FF | (u64)(base & 0xFFFFFF) << 16 | (u64)(base >> 24) << 56;
}

// EDI and ESI point into the operand, FS begins where it does.
#define FORM(name, code, ...)                                                                                          \
  do {                                                                                                                 \
    for (int which = 0; which < 2; which++) {                                                                          \
      u8 *const base = which ? device : memory;                                                                        \
      struct outcome *const o = &outcomes[which];                                                                      \
      for (int i = 0; i < BYTES; i++) base[i] = i * 7 + (i >> 3);                                                      \
      set_base((u32)base);                                                                                             \
      asm volatile("mov %0, %%fs" : : "r"(SPARE));                                                                     \
      o->vector = TRY_THEN("fninit; cmp %%al, %%al; " code, "pushf; popl form_flags; cld", .D = (word)base + 64,        \
                           .S = (word)base + 256, ##__VA_ARGS__);                                                      \
      o->flags = form_flags & 0xCD5;                                                                                   \
      o->registers = after;                                                                                            \
      o->registers.D -= (word)base;                                                                                    \
      o->registers.S -= (word)base;                                                                                    \
      for (int i = 0; i < BYTES; i++) o->bytes[i] = base[i];                                                           \
    }                                                                                                                  \
    compare(name);                                                                                                     \
  } while (0)

void test(void) {
  section("SDM 2: the instructions; a device is memory to them");
  FORM("MOV", "mov (%%edi), %%al; mov 2(%%edi), %%bx; mov 5(%%edi), %%ecx; mov %%edx, 8(%%edi); movb $1, (%%edi)", .d = 0x55667788);
  FORM("ADD and others", "add %%eax, (%%edi); sbb 4(%%edi), %%ebx; xorb $7, 8(%%edi); cmpw $9, 10(%%edi)", .a = 3);
  FORM("XCHG, CMPXCHG, XADD", "xchg %%eax, (%%edi); lock cmpxchg %%ecx, 4(%%edi); lock xadd %%bl, 8(%%edi)", .a = 1, .c = 2, .b = 3);
  FORM("CMPXCHG8B", "mov (%%edi), %%eax; mov 4(%%edi), %%edx; lock cmpxchg8b (%%edi)", .b = 5, .c = 6);
  FORM("bit tests", "bts %%eax, (%%edi); btrl $3, 4(%%edi); btc %%ebx, (%%edi)", .a = 70, .b = -40);
  FORM("PUSH, POP of memory", "pushl (%%edi); popl 8(%%edi); pushw 2(%%edi); popw 16(%%edi)");
  FORM("strings", "movsb; movsl; stosw; lodsl; scasb; cmpsl", .a = 5);
  FORM("REP strings", "rep movsb; mov $5, %%ecx; rep stosl; mov $9, %%ecx; rep lodsb", .c = 33);
  FORM("LDS, LES, LFS", "movl $0x1234, (%%edi); movw $0x18, 4(%%edi); les (%%edi), %%eax; lds (%%edi), %%ebx; lss (%%edi), %%ecx; lgs (%%edi), %%edx" , .a = 0);
  FORM("BOUND", "movl $-5, (%%edi); movl $5, 4(%%edi); bound %%eax, (%%edi)", .a = 5);
  FORM("ARPL, LAR, VERR", "movw $0x18, (%%edi); mov $3, %%eax; arpl %%ax, (%%edi); lar (%%edi), %%ebx; verr (%%edi)");
  FORM("a stack there", "mov %%esp, %%edx; lea 128(%%edi), %%esp; push %%eax; pusha; popa; pushf; popf; call 1f; 1: pop %%ebx; enter $8, $0; leave; mov %%edx, %%esp; xor %%ebx, %%ebx; xor %%edx, %%edx; mov $16, %%ecx; push %%edi; add $64, %%edi; xor %%eax, %%eax; rep stosl; pop %%edi", .a = 9);
  FORM("far CALL through it", "lea 1f, %%eax; mov %%eax, (%%edi); movw $8, 4(%%edi); lcall *(%%edi); 1: pop %%eax; pop %%eax; movl $0, (%%edi); xor %%eax, %%eax");
  FORM("SGDT, LGDT, SMSW", "sgdt (%%edi); lgdt (%%edi); smsw 8(%%edi); sidt 16(%%edi); lidt 16(%%edi)");
  FORM("x87", "flds (%%edi); fldl 8(%%edi); fstpt 16(%%edi); fistpl 32(%%edi); fld1; fbstp 48(%%edi); fnstcw 64(%%edi); fnstenv 72(%%edi)");
  FORM("FNSAVE of 16 bits", "fld1; data16 fnsave (%%edi); data16 frstor (%%edi)");
  FORM("XLAT", "mov %%edi, %%ebx; xlat; xor %%ebx, %%ebx", .a = 0);
  FORM("moffs by FS", "mov %%fs:0x40, %%al; mov %%eax, %%fs:0x44; mov %%fs:0x48, %%ax", .a = 0);
  FORM("by FS", "mov %%fs:(%%ebx), %%ecx; add %%ecx, %%fs:4(%%ebx); incw %%fs:8(%%ebx); pushl %%fs:12(%%ebx); popl %%fs:16(%%ebx)", .b = 0x40);
  FORM("bit tests by FS", "bts %%eax, %%fs:(%%ebx); lock btr %%ecx, %%fs:8(%%ebx)", .a = 70, .b = 0x40, .c = 3);
  FORM("strings by FS", "push %%esi; mov $0x20, %%esi; fs lodsb; fs lodsl; mov $3, %%ecx; rep movsl %%fs:(%%esi), %%es:(%%edi); pop %%esi", .c = 0);
  FORM("over the limit by FS", "mov %%fs:(%%ebx), %%eax; mov $0, %%eax", .b = 0x1FC);
  FORM("LOCK by FS", "lock incl %%fs:(%%ebx); lock xadd %%eax, %%fs:4(%%ebx); lock cmpxchg8b %%fs:8(%%ebx)", .b = 0x40, .a = 7);
}
