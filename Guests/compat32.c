// SPDX-License-Identifier: Apache-2.0
// A 32-bit program with no library: what compatibility mode has of its own, checked, with INT 80h for everything.
typedef unsigned u32;
typedef unsigned long long u64;

static int call3(int number, u32 a, u32 b, u32 c) {
  int result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
  return result;
}

static void print(const char *text) {
  u32 count = 0;
  while (text[count]) count++;
  call3(4, 1, (u32)text, count);
}

static int failed;
static void check(const char *name, int good) {
  print(good ? "ok " : "FAIL ");
  print(name);
  print("\n");
  failed |= !good;
}

static int general(void) {
  u32 a = 0x12345678, b, c, d;
  __asm__ volatile("pushl %1; popl %0" : "=r"(b) : "r"(a));
  __asm__ volatile("pushal; movl $0, %%ecx; movl $0, %%esi; movl $7, %%eax; popal; movl %%ecx, %0" : "=a"(c) : "c"(a));
  __asm__ volatile("incl %0; decl %0; incl %0" : "=r"(d) : "0"(a));
  if (b != a || c != a || d != a + 1) return 0;
  // Decimal adjustments.
  u32 al = 0x38;
  __asm__ volatile("addb $0x45, %%al; daa" : "+a"(al) : : "cc");
  if ((al & 0xFF) != 0x83) return 0;
  al = 0x0605;
  __asm__ volatile("aad" : "+a"(al) : : "cc");
  if ((al & 0xFF) != 65) return 0;
  __asm__ volatile("aam" : "+a"(al) : : "cc");
  if (al != 0x0605) return 0;
  u32 flags;
  __asm__ volatile("stc; pushfl; popl %0; clc; salc" : "=r"(flags), "=a"(al) : : "cc");
  if (!(flags & 1) || (al & 0xFF) != 0) return 0;
  static u32 slot = 5;
  u32 moffs;
  __asm__ volatile("movl %1, %%eax; addl $2, %%eax; movl %%eax, %1" : "=a"(moffs), "+m"(slot));
  return slot == 7 && moffs == 7;
}

static int wide(void) {
  volatile u64 a = 0x123456789ABCDEFull, b = 1000003;
  if (a * b + (a >> 13) - (a << 7) != 0x123456789ABCDEFull * 1000003ull + (0x123456789ABCDEFull >> 13) - (0x123456789ABCDEFull << 7)) return 0;
  volatile double x = 3, y = 7;
  volatile long double z = 1;
  for (int i = 1; i < 30; i++) z = z * i / 2 + (long double)x;
  double root;
  __asm__("sqrtsd %1, %0" : "=x"(root) : "x"((double)(x * y + 4)));
  return root == 5 && z > 1;
}

static int strings(void) {
  static char a[5000], b[5000];
  for (u32 i = 0; i < sizeof a; i++) a[i] = (char)(i * 7);
  void *to = b;
  const void *from = a;
  u32 count = sizeof a;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
  if (count || (char *)to != b + sizeof b) return 0;
  to = b, from = a, count = sizeof a;
  unsigned char equal;
  __asm__ volatile("repe cmpsb; sete %0" : "=q"(equal), "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
  if (!equal) return 0;
  // Addresses wrap at 4 GiB.
  u32 value, base = 0xFFFFFFF0u;
  static u32 word = 0xCAFE;
  __asm__ volatile("movl 0x10(%1,%2), %0" : "=r"(value) : "r"(base), "r"(&word) : "memory");
  return value == 0xCAFE;
}

static __attribute__((noinline)) u32 recursive(u32 n) { return n < 2 ? n : recursive(n - 1) + recursive(n - 2); }

// Into 64-bit code and back.
static int mode_switch(void) {
  u32 low, high;
  __asm__ volatile("lcall $0x33, $1f\n jmp 2f\n"
                   "1: .byte 0x48, 0xB8; .quad 0x1122334455667788\n" // mov rax, imm64
                   ".byte 0x49, 0x89, 0xC0\n"                        // mov r8, rax
                   ".byte 0x4C, 0x89, 0xC2\n"                        // mov rdx, r8
                   ".byte 0x48, 0xC1, 0xEA, 0x20\n"                  // shr rdx, 32
                   "lret\n"
                   "2:"
                   : "=a"(low), "=d"(high) : : "memory", "cc");
  return low == 0x55667788 && high == 0x11223344;
}

struct user_desc { u32 entry, base, limit, flags; };

// A TLS segment with a base: GS-relative accesses and limits.
static int segments(void) {
  static u32 block[16];
  block[3] = 99;
  struct user_desc d = {(u32)-1, (u32)block, 0xFFFFF, 0x51}; // 32-bit, limit in pages, usable
  if (call3(243, (u32)&d, 0, 0)) return 0;
  u32 value;
  __asm__ volatile("movw %w1, %%gs; movl %%gs:12, %0; movl $5, %%gs:16; xorl %%eax, %%eax; movw %%ax, %%gs"
                   : "=&r"(value) : "r"(d.entry * 8 + 3) : "eax", "memory");
  return value == 99 && block[4] == 5;
}

struct action { u32 handler, flags, restorer, mask[2]; };
static volatile u32 signals;
static void handler(int number) { signals += (u32)number; }
__asm__("restorer: movl $173, %eax; int $0x80");
extern char restorer[];

static int delivered(void) {
  struct action a = {(u32)handler, 0x04000000 | 0x40000000 | 4, (u32)restorer, {0, 0}};
  {
    register u32 size __asm__("esi") = 8;
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(174), "b"(10), "c"(&a), "d"(0), "r"(size) : "memory");
    if (result) return 0;
  }
  u32 self = (u32)call3(20, 0, 0, 0);
  for (int i = 0; i < 100; i++) call3(37, self, 10, 0);
  return signals == 1000;
}

__attribute__((used)) static void run(void) {
  check("general", general());
  check("wide", wide());
  check("strings", strings());
  check("recursion", recursive(20) == 6765);
  check("mode-switch", mode_switch());
  check("segments", segments());
  check("signals", delivered());
  call3(1, (u32)failed, 0, 0);
}

__asm__(".globl _start\n_start: xorl %ebp, %ebp; andl $-16, %esp; call run");
