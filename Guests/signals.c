// SPDX-License-Identifier: Apache-2.0
// Every exception a program can raise, as the signal it becomes: number, code, address, registers, and that the program
// goes on correctly afterwards. Single-stepping counts instructions; vector state survives handlers that destroy it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

static volatile sig_atomic_t caught, code;
static volatile uintptr_t address, pc, faults_code, trap;
static volatile long long flags;
static gregset_t registers;
static sigjmp_buf back;

static void note(int signal, siginfo_t *info, void *context) {
  ucontext_t *c = context;
  caught = signal;
  code = info->si_code;
  address = (uintptr_t)info->si_addr;
  pc = (uintptr_t)c->uc_mcontext.gregs[REG_RIP];
  flags = c->uc_mcontext.gregs[REG_EFL];
  trap = (uintptr_t)c->uc_mcontext.gregs[REG_TRAPNO];
  faults_code = (uintptr_t)c->uc_mcontext.gregs[REG_ERR];
  memcpy(registers, c->uc_mcontext.gregs, sizeof registers);
}

static void jump_back(int signal, siginfo_t *info, void *context) {
  note(signal, info, context);
  siglongjmp(back, 1);
}

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int more) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | more};
  sigemptyset(&action.sa_mask);
  if (sigaction(signal, &action, 0)) abort();
  caught = 0;
  code = 0;
  address = pc = 0;
}

#define EXPECT_SIGNAL(number, statement)                                                                               \
  do {                                                                                                                 \
    on(number, jump_back, SA_NODEFER);                                                                                 \
    if (!sigsetjmp(back, 1)) {                                                                                         \
      statement;                                                                                                       \
      problem("line %d: no signal", __LINE__);                                                                         \
    }                                                                                                                  \
    EQUAL(caught, number);                                                                                             \
  } while (0)

static char *page(int protection) {
  char *p = mmap(0, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

static void segv(void) {
  EXPECT_SIGNAL(SIGSEGV, *(volatile int *)0x1234);
  EQUAL(code, SEGV_MAPERR);
  EQUAL(address, 0x1234);
  EQUAL(trap, 14);
  EQUAL(faults_code, 4);
  char *p = page(PROT_READ);
  EXPECT_SIGNAL(SIGSEGV, *(volatile char *)(p + 77) = 1);
  EQUAL(code, SEGV_ACCERR);
  EQUAL(address, (uintptr_t)p + 77);
  EQUAL(faults_code & ~1u, 6); // the page may not have been present
  (void)*(volatile char *)p;
  EXPECT_SIGNAL(SIGSEGV, *(volatile char *)(p + 78) = 1);
  EQUAL(faults_code, 7);
  char *q = page(PROT_READ | PROT_WRITE);
  q[0] = (char)0xC3;
  EXPECT_SIGNAL(SIGSEGV, ((void (*)(void))(uintptr_t)q)());
  EQUAL(code, SEGV_ACCERR);
  EQUAL(address, (uintptr_t)q);
  EQUAL(pc, (uintptr_t)q);
  EQUAL(faults_code, 0x15);
  EXPECT_SIGNAL(SIGSEGV, ((void (*)(void))0x10)());
  EQUAL(address, 0x10);
  EQUAL(pc, 0x10);
  EXPECT_SIGNAL(SIGSEGV, __asm__ volatile("movq (%0), %%rax" : : "r"(0x8000000000000000ull) : "rax"));
  EQUAL(code, SI_KERNEL);
  EQUAL(address, 0);
  EQUAL(trap, 13);
  EXPECT_SIGNAL(SIGSEGV, __asm__ volatile("jmp *%0" : : "r"(0x8000000000000000ull)));
  EQUAL(trap, 13);
  // The second page of an access that straddles two.
  char *r = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(r + 4096, 4096);
  r[4093] = 7;
  EXPECT_SIGNAL(SIGSEGV, *(volatile uint64_t *)(r + 4092) = 0x1122334455667788);
  EQUAL(address, (uintptr_t)r + 4096);
  EQUAL(r[4093], 7);
  EXPECT_SIGNAL(SIGSEGV, (void)*(volatile uint32_t *)(r + 4094));
  EQUAL(address, (uintptr_t)r + 4096);
  // REP MOVSB stops exactly.
  register uintptr_t rest = 100, to = (uintptr_t)r + 4096 - 60, from = (uintptr_t)r;
  on(SIGSEGV, jump_back, SA_NODEFER);
  if (!sigsetjmp(back, 1)) {
    __asm__ volatile("rep movsb" : "+c"(rest), "+D"(to), "+S"(from) : : "memory");
    problem("no fault of rep movsb");
  }
  EQUAL(registers[REG_RCX], 40);
  EQUAL(registers[REG_RDI], (uintptr_t)r + 4096);
  EQUAL(registers[REG_RSI], (uintptr_t)r + 60);
  munmap(r, 4096);
  munmap(p, 4096);
  munmap(q, 4096);
  on(SIGSEGV, jump_back, SA_NODEFER);
  if (!sigsetjmp(back, 1)) __asm__ volatile("hlt");
  EQUAL(caught, SIGSEGV);
  EQUAL(trap, 13);
  on(SIGSEGV, jump_back, SA_NODEFER);
  if (!sigsetjmp(back, 1)) __asm__ volatile("int $0x77");
  EQUAL(caught, SIGSEGV);
  EQUAL(faults_code, 0x77 * 8 + 2);
  on(SIGSEGV, jump_back, SA_NODEFER);
  if (!sigsetjmp(back, 1)) __asm__ volatile("movl $0x1234, %%eax; movl %%eax, %%ds" : : : "rax");
  EQUAL(caught, SIGSEGV);
  static char unaligned[64] __attribute__((aligned(16)));
  EXPECT_SIGNAL(SIGSEGV, __asm__ volatile("movaps %0, %%xmm0" : : "m"(unaligned[1]) : "xmm0"));
  EQUAL(trap, 13);
}

// Every register as it was at the fault, and execution resumes where the handler says.
static void skip(int signal, siginfo_t *info, void *context) {
  note(signal, info, context);
  ucontext_t *c = context;
  c->uc_mcontext.gregs[REG_RIP] += 3;
  c->uc_mcontext.gregs[REG_RBX] += 1;
  c->uc_mcontext.gregs[REG_R12] += 1;
}

static void frame(void) {
  on(SIGSEGV, skip, 0);
  uint64_t rbx = 0, r12 = 0, left = 0;
  __asm__ volatile(
      "push %%rbp\n movq $0x101, %%rax\n movq $0x102, %%rbx\n movq $0x103, %%rcx\n movq $0x104, %%rdx\n"
      "movq $0x105, %%rsi\n movq $0x106, %%rdi\n movq $0x107, %%rbp\n movq $0x108, %%r8\n movq $0x109, %%r9\n"
      "movq $0x10a, %%r10\n movq $0x10b, %%r11\n movq $0x10c, %%r12\n movq $0x10d, %%r13\n movq $0x10e, %%r14\n"
      "movq $0x10f, %%r15\n cmpq $1, %%rax\n stc\n"
      "movq (%%r15), %%rax\n"
      "sbbq %2, %2\n pop %%rbp\n"
      : "=&b"(rbx), "+&r"(r12), "=&a"(left)
      :
      : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
  EQUAL(caught, SIGSEGV);
  EQUAL(address, 0x10f);
  EQUAL(rbx, 0x103);
  EQUAL(left, UINT64_MAX); // the carry came back
  EQUAL(flags & 1, 1);
  static const int order[] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8,
                              REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (unsigned i = 0; i < 15; i++) EQUAL(registers[order[i]], 0x101 + i);
}

static void divide(void) {
  volatile int zero = 0, one = 1;
  EXPECT_SIGNAL(SIGFPE, one = one / zero);
  EQUAL(code, FPE_INTDIV);
  EQUAL(address, pc);
  EQUAL(trap, 0);
  volatile int least = -2147483647 - 1, minus = -1;
  EXPECT_SIGNAL(SIGFPE, one = least / minus);
  EQUAL(code, FPE_INTDIV);
  uint64_t quotient = 5;
  EXPECT_SIGNAL(SIGFPE, __asm__ volatile("divq %1" : "+a"(quotient) : "m"((uint64_t){1}), "d"(1ull)));
  on(SIGFPE, skip, 0);
  for (int i = 0; i < 2000; i++) {
    uint64_t kept = (uint64_t)i;
    caught = 0;
    __asm__ volatile("xorl %%edx, %%edx; xorl %%ecx, %%ecx; movq %0, %%rax; divq %%rcx; addq $3, %0"
                     : "+r"(kept) : : "rax", "rcx", "rdx", "rbx", "r12");
    EQUAL(caught, SIGFPE);
    EQUAL(kept, (uint64_t)i + 3);
  }
}

static void float_exceptions(void) {
  static const struct { int bit; int code; } kinds[] = {
      {FE_DIVBYZERO, FPE_FLTDIV}, {FE_INVALID, FPE_FLTINV}, {FE_OVERFLOW, FPE_FLTOVF}, {FE_UNDERFLOW, FPE_FLTUND},
      {FE_INEXACT, FPE_FLTRES}};
  for (unsigned i = 0; i < 5; i++) {
    for (int wide = 0; wide < 2; wide++) {
      feclearexcept(FE_ALL_EXCEPT);
      on(SIGFPE, jump_back, SA_NODEFER);
      if (!sigsetjmp(back, 1)) {
        feenableexcept(kinds[i].bit);
        volatile double a = 1, b = 3, r;
        volatile long double x = 1, y = 3, z;
        switch (kinds[i].bit) {
        case FE_DIVBYZERO: b = 0, y = 0; break;
        case FE_INVALID: a = b = 0, x = y = 0; break;
        case FE_OVERFLOW: a = 1e308, b = 1e-300, x = 1e4931L, y = 1e-4900L; break;
        case FE_UNDERFLOW: a = 3e-308, b = 3e300, x = 3e-4931L, y = 7e4900L; break;
        }
        if (wide) {
          z = x / y;
          __asm__ volatile("fwait");
          (void)z;
        } else {
          r = a / b;
          (void)r;
        }
        problem("no signal for exception %d, x87 %d", kinds[i].bit, wide);
      }
      fedisableexcept(FE_ALL_EXCEPT);
      feclearexcept(FE_ALL_EXCEPT);
      EQUAL(caught, SIGFPE);
      EQUAL(code, kinds[i].code);
      EQUAL(trap, wide ? 16 : 19);
      EQUAL(address, wide ? address : pc);
    }
  }
  // Masked again, everything works.
  volatile double one = 1, zero = 0;
  EXPECT(__builtin_isinf(one / zero));
  EXPECT(fetestexcept(FE_DIVBYZERO));
  feclearexcept(FE_ALL_EXCEPT);
}

static void illegal(void) {
  EXPECT_SIGNAL(SIGILL, __asm__ volatile("ud2"));
  EQUAL(code, ILL_ILLOPN);
  EQUAL(address, pc);
  EXPECT_SIGNAL(SIGILL, __asm__ volatile(".byte 0x06"));
  EXPECT_SIGNAL(SIGILL, __asm__ volatile(".byte 0x0f, 0xff, 0xc0"));
  EXPECT_SIGNAL(SIGILL, __asm__ volatile(".byte 0xf0, 0x89, 0xc0"));
}

static void bus(void) {
  char name[] = "/tmp/checkXXXXXX";
  int file = mkstemp(name);
  unlink(name);
  if (ftruncate(file, 100)) abort();
  char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  p[50] = 1;
  EXPECT_SIGNAL(SIGBUS, *(volatile char *)(p + 5000) = 1);
  EQUAL(code, BUS_ADRERR);
  EQUAL(address, (uintptr_t)p + 5000);
  munmap(p, 8192);
  close(file);
}

// Linux leaves AC set for the handler.
__attribute__((noinline)) static void clear_alignment(void) {
  __asm__ volatile("sub $128, %%rsp; pushfq; andl $~0x40000, (%%rsp); popfq; add $128, %%rsp" : : : "memory", "cc");
}

static void misaligned(int signal, siginfo_t *info, void *context) {
  clear_alignment();
  jump_back(signal, info, context);
}

static void alignment(void) {
  static char data[64] __attribute__((aligned(16)));
  on(SIGBUS, misaligned, SA_NODEFER);
  if (!sigsetjmp(back, 1)) {
    __asm__ volatile("sub $128, %%rsp; pushfq; orl $0x40000, (%%rsp); popfq; movl %0, %%eax; pushfq; andl $~0x40000, "
                     "(%%rsp); popfq; add $128, %%rsp"
                     : : "m"(data[1]) : "rax", "memory", "cc");
    problem("no signal");
  }
  EQUAL(caught, SIGBUS);
  EQUAL(code, BUS_ADRALN);
}

// Single-stepping: every instruction once, in order.
static volatile int steps;
static uintptr_t trail[256];

static void step(int signal, siginfo_t *info, void *context) {
  ucontext_t *c = context;
  caught = signal;
  code = info->si_code;
  int number = steps;
  steps = number + 1;
  if (number < 256) trail[number] = (uintptr_t)c->uc_mcontext.gregs[REG_RIP];
}

static void traps(void) {
  on(SIGTRAP, note, 0);
  uintptr_t after;
  __asm__ volatile("int3; leaq 0(%%rip), %0" : "=r"(after));
  EQUAL(caught, SIGTRAP);
  EQUAL(code, SI_KERNEL);
  on(SIGTRAP, note, 0);
  __asm__ volatile(".byte 0xcd, 3");
  EQUAL(caught, SIGTRAP);

  on(SIGTRAP, step, 0);
  static char from[64], to[64];
  memset(from, 5, sizeof from);
  steps = 0;
  static uintptr_t first, memory;
  uint64_t count = 5, destination = (uintptr_t)to, origin = (uintptr_t)from;
  __asm__ volatile("sub $128, %%rsp\n leaq 1f(%%rip), %%rax\n movq %%rax, %0\n pushfq\n orl $0x100, (%%rsp)\n popfq\n"
                   "1: nop\n"                     // the first stepped instruction
                   "movq (%%rsi), %%rax\n"        // 1
                   "addq $1, %%rax\n"             // 2
                   "movq %%rax, %1\n"             // 3
                   "jmp 2f\n ud2\n"               // 4
                   "2: xorl %%eax, %%eax\n"       // 5
                   "jz 3f\n ud2\n"                // 6
                   "3: call 4f\n"                 // 7
                   "jmp 5f\n"                     // 9
                   "4: ret\n"                     // 8
                   "5: rep movsb\n"               // 10, 11, 12, 13, 14
                   "cpuid\n"                      // 15
                   "movdqu (%%rsi), %%xmm0\n"     // 16
                   "pushq $7\n popq %%rax\n"      // 17, 18
                   "movl $39, %%eax\n syscall\n"  // 19; Linux returns with TF set: no trap of SYSCALL
                   "pushfq\n andl $~0x100, (%%rsp)\n popfq\n" // 20, 21, 22
                   "nop\n add $128, %%rsp"
                   : "=m"(first), "+m"(memory), "+c"(count), "+D"(destination), "+S"(origin)
                   :
                   : "rax", "rbx", "rdx", "r11", "xmm0", "memory", "cc");
  EQUAL(caught, SIGTRAP);
  EQUAL(code, TRAP_TRACE);
  EQUAL(memory, 0x0505050505050506);
  EXPECT(memcmp(from, to, 5) == 0);
  EQUAL(trail[0], first + 1);
  EQUAL(trail[1], first + 4);
  EQUAL(trail[2], first + 8);
  EQUAL(trail[9], trail[13]); // rep movsb traps after each iteration, at itself but for the last
  EQUAL(steps, 23);
  for (int i = 1; i < steps && i < 23; i++)
    if (i < 10 || i > 13) EXPECT(trail[i] != trail[i - 1]);
}

static volatile int depth;
__attribute__((noinline)) static int overflow(volatile char *above) {
  volatile char block[4096];
  block[0] = above[0];
  depth++;
  return above[1] == 99 ? 0 : overflow(block) + block[1];
}

static void alternate(void) {
  static char stack[65536];
  stack_t s = {.ss_sp = stack, .ss_size = sizeof stack};
  if (sigaltstack(&s, 0)) abort();
  pid_t child = fork();
  if (child == 0) {
    on(SIGSEGV, jump_back, SA_ONSTACK | SA_NODEFER);
    if (!sigsetjmp(back, 1)) {
      volatile char c = 0;
      overflow(&c);
    }
    _exit(caught == SIGSEGV && depth > 500 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EQUAL(status, 0);
  s.ss_flags = SS_DISABLE;
  sigaltstack(&s, 0);
}

// A process that dies of a signal says so.
static void deaths(void) {
  static const int expected[] = {SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
  for (unsigned i = 0; i < 5; i++) {
    pid_t child = fork();
    if (child == 0) {
      for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
      volatile int zero = 0;
      switch (i) {
      case 0: *(volatile int *)8 = 1; break;
      case 1: zero = 7 / zero; break;
      case 2: __asm__ volatile("ud2"); break;
      case 3: __asm__ volatile("int3"); break;
      case 4: abort();
      }
      _exit(99);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT(WIFSIGNALED(status));
    EQUAL(WTERMSIG(status), expected[i]);
  }
}

static volatile int ticks;
__attribute__((target("avx2"))) static void destroy_wide(void) {
  __asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0; vpcmpeqd %%ymm7, %%ymm7, %%ymm7; vpcmpeqd %%ymm15, %%ymm15, %%ymm15;"
                   "vxorps %%ymm1, %%ymm1, %%ymm1" : : : "xmm0", "xmm1", "xmm7", "xmm15");
}

static void tick(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info, (void)context;
  ticks++;
  if (__builtin_cpu_supports("avx2")) destroy_wide();
  else __asm__ volatile("pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm7, %%xmm7; xorps %%xmm1, %%xmm1" : : : "xmm0", "xmm1", "xmm7");
  __asm__ volatile("fninit; fldpi; fldl2e; fldz" : : : "st", "st(1)", "st(2)");
  uint32_t control = 0x9F80;
  __asm__ volatile("ldmxcsr %0; std; stc" : : "m"(control) : "cc");
}

__attribute__((target("avx2"))) static int wide_round(void) {
  static const double in[4] = {1.5, 2.5, 3.5, 4.5};
  double out[4], sum = 0;
  __asm__ volatile("vmovupd %1, %%ymm0; vmovapd %%ymm0, %%ymm7; vmovapd %%ymm0, %%ymm15; vmovapd %%ymm0, %%ymm1\n"
                   "movl $2000, %%ecx\n 1: dec %%ecx; jnz 1b\n"
                   "vaddpd %%ymm0, %%ymm7, %%ymm7; vaddpd %%ymm15, %%ymm7, %%ymm7; vaddpd %%ymm1, %%ymm7, %%ymm7\n"
                   "vmovupd %%ymm7, %0"
                   : "=m"(out) : "m"(in) : "rcx", "xmm0", "xmm1", "xmm7", "xmm15", "cc");
  for (int i = 0; i < 4; i++) sum += out[i];
  return sum == 48;
}

static void vector_state(void) {
  on(SIGALRM, tick, SA_RESTART);
  ticks = 0;
  struct itimerval timer = {{0, 1000}, {0, 1000}};
  setitimer(ITIMER_REAL, &timer, 0);
  int wide = __builtin_cpu_supports("avx2");
  for (long round = 0; ticks < 100 && round < 100000000; round++) {
    long double a = 3, b = 0;
    __asm__ volatile("fldt %1; fld %%st(0); fmul %%st(1); faddp; movl $1500, %%ecx; 1: dec %%ecx; jnz 1b; fstpt %0"
                     : "=m"(b) : "m"(a) : "rcx", "st", "st(1)", "cc");
    EXPECT(b == 12);
    if (wide) EXPECT(wide_round());
    uint32_t control = 0;
    __asm__ volatile("stmxcsr %0" : "=m"(control));
    EQUAL(control & 0xFFC0, 0x1F80);
    char source[8] = "abcdefg", target[8] = {0};
    memcpy(target, source, 8);
    EXPECT(!memcmp(source, target, 8));
    if (problems) break;
  }
  EXPECT(ticks >= 100);
  memset(&timer, 0, sizeof timer);
  setitimer(ITIMER_REAL, &timer, 0);
}

int main(int count, char **names) {
  setvbuf(stdout, 0, _IOLBF, 0);
  check(count, names, "segv", segv);
  check(count, names, "frame", frame);
  check(count, names, "divide", divide);
  check(count, names, "float-exceptions", float_exceptions);
  check(count, names, "illegal", illegal);
  check(count, names, "bus", bus);
  check(count, names, "alignment", alignment);
  check(count, names, "traps", traps);
  check(count, names, "alternate-stack", alternate);
  check(count, names, "deaths", deaths);
  check(count, names, "vector-state", vector_state);
  return failures != 0;
}
