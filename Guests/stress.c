// SPDX-License-Identifier: Apache-2.0
// Many things at once on few processors: threads on futexes, processes on pipes, memory that changes its protection and
// its place, copy-on-write, and vector and x87 state that belongs to one task and must not leak into another.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

// --- Threads

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long counter, atomic_counter;
static __thread long own;
static int turn;

static void *counting(void *unused) {
  (void)unused;
  for (int i = 0; i < 3000; i++) {
    pthread_mutex_lock(&lock);
    counter++;
    if (i % 100 == 0) sched_yield();
    pthread_mutex_unlock(&lock);
    __atomic_fetch_add(&atomic_counter, 1, __ATOMIC_SEQ_CST);
    own++;
  }
  return (void *)own;
}

static void threads(void) {
  counter = atomic_counter = 0;
  pthread_t all[8];
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 8; i++)
      if (pthread_create(&all[i], 0, counting, 0)) abort();
    for (int i = 0; i < 8; i++) {
      void *result;
      pthread_join(all[i], &result);
      EQUAL((long)result, 3000);
    }
  }
  EQUAL(counter, 72000);
  EQUAL(atomic_counter, 72000);
}

static void *taking_turns(void *which) {
  long me = (long)which;
  for (int i = 0; i < 1000; i++) {
    pthread_mutex_lock(&lock);
    while (turn % 3 != me) pthread_cond_wait(&turned, &lock);
    turn++;
    pthread_cond_broadcast(&turned);
    pthread_mutex_unlock(&lock);
  }
  return 0;
}

static void turns(void) {
  pthread_t all[3];
  turn = 0;
  for (long i = 0; i < 3; i++) pthread_create(&all[i], 0, taking_turns, (void *)i);
  for (int i = 0; i < 3; i++) pthread_join(all[i], 0);
  EQUAL(turn, 3000);
}

static void *sleeper(void *unused) {
  (void)unused;
  struct timespec t = {0, 2000000};
  for (int i = 0; i < 20; i++) nanosleep(&t, 0);
  return 0;
}

static void sleeping(void) {
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  pthread_t all[10];
  for (int i = 0; i < 10; i++) pthread_create(&all[i], 0, sleeper, 0);
  for (int i = 0; i < 10; i++) pthread_join(all[i], 0);
  clock_gettime(CLOCK_MONOTONIC, &after);
  double seconds = (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9;
  if (seconds < 0.04 || seconds > 60) problem("20 sleeps of 2 ms took %f s", seconds);
}

// --- Processes

static void forks(void) {
  static volatile long data[4096];
  for (int i = 0; i < 4096; i++) data[i] = i;
  for (int round = 0; round < 100; round++) {
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
      long sum = 0;
      for (int i = 0; i < 4096; i++) {
        data[i] += round;
        sum += data[i];
      }
      _exit(sum == 4096L * 4095 / 2 + 4096L * round ? round & 63 : 99);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status));
    EQUAL(WEXITSTATUS(status), round & 63);
    for (int i = 0; i < 4096; i++)
      if (data[i] != i) problem("the child's write reached the parent");
  }
  for (int i = 0; i < 30; i++) {
    pid_t child = vfork();
    if (child == 0) {
      execl("/proc/self/exe", "stress", "nothing", (char *)0);
      _exit(98);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EQUAL(status, 0);
  }
}

static void pipes(void) {
  int there[2], back[2];
  if (pipe(there) || pipe(back)) abort();
  pid_t child = fork();
  if (child == 0) {
    close(there[1]);
    long value;
    while (read(there[0], &value, sizeof value) == sizeof value) {
      value = value * 3 + 1;
      if (write(back[1], &value, sizeof value) != sizeof value) _exit(1);
    }
    _exit(0);
  }
  close(there[0]);
  for (long i = 0; i < 3000; i++) {
    long value = i;
    if (write(there[1], &value, sizeof value) != sizeof value || read(back[0], &value, sizeof value) != sizeof value)
      abort();
    EQUAL(value, i * 3 + 1);
  }
  close(there[1]);
  close(back[0]);
  close(back[1]);
  int status = -1;
  waitpid(child, &status, 0);
  EQUAL(status, 0);
}

// --- Memory

static char *barrier_base;
static volatile int barrier_hits;

static void barrier(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  char *at = (char *)((uintptr_t)info->si_addr & ~4095ul);
  if (at < barrier_base || at >= barrier_base + 64 * 4096) _exit(77);
  barrier_hits++;
  mprotect(at, 4096, PROT_READ | PROT_WRITE);
}

static void write_barrier(void) {
  barrier_base = mmap(0, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct sigaction action = {.sa_sigaction = barrier, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, 0);
  barrier_hits = 0;
  for (int round = 0; round < 50; round++) {
    mprotect(barrier_base, 64 * 4096, PROT_READ);
    for (int i = 0; i < 64; i++) {
      volatile char *p = barrier_base + i * 4096 + round * 7;
      *p = (char)(*p + 1);
      p[1] = (char)(p[1] + 1);
      __asm__ volatile("lock addb $1, %0" : "+m"(p[2]));
    }
  }
  EQUAL(barrier_hits, 64 * 50);
  for (int i = 0; i < 64; i++) EQUAL(barrier_base[i * 4096 + 49 * 7], 1);
  signal(SIGSEGV, SIG_DFL);
  munmap(barrier_base, 64 * 4096);
}

static uint32_t seed = 12345;
static uint32_t next(uint32_t limit) {
  seed = seed * 1664525 + 1013904223;
  return (uint32_t)((uint64_t)seed * limit >> 32);
}

// Random mmap, munmap, mremap, madvise against a model of what every page holds.
static void memory(void) {
  enum { PAGES = 512 };
  uint32_t expected[PAGES] = {0};
  char *base = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (uint32_t step = 0; step < 8000; step++) {
    uint32_t i = next(PAGES), j = next(PAGES);
    char *p = base + i * 4096ul, *q = base + j * 4096ul;
    switch (next(8)) {
    case 0:
      if (mmap(p, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p) abort();
      expected[i] = 0;
      break;
    case 1:
      madvise(p, 4096, MADV_DONTNEED);
      expected[i] = 0;
      break;
    case 2:
      if (i == j) break;
      if (mremap(p, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, q) != q) abort();
      if (mmap(p, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p) abort();
      expected[j] = expected[i];
      expected[i] = 0;
      break;
    case 3:
      memcpy(q, p, 4096);
      expected[j] = expected[i];
      break;
    case 4:
      mprotect(p, 4096, PROT_READ);
      EQUAL(*(volatile uint32_t *)(p + 400), expected[i]);
      mprotect(p, 4096, PROT_READ | PROT_WRITE);
      break;
    default:
      expected[i] = step + 1;
      for (uint32_t k = 0; k < 4096; k += 4) *(volatile uint32_t *)(p + k) = step + 1;
    }
    EQUAL(*(volatile uint32_t *)(p + next(1024) * 4), expected[i]);
    EQUAL(*(volatile uint32_t *)(q + next(1024) * 4), expected[j]);
  }
  munmap(base, PAGES * 4096);
}

// --- Vector state across context switches

__attribute__((target("avx2"))) static int wide_work(uint64_t number) {
  uint64_t out[16][4];
  uint64_t in[4] = {number, number * 3, number * 5, number * 7};
  __asm__ volatile("vmovdqu %1, %%ymm0\n"
                   "vpaddq %%ymm0, %%ymm0, %%ymm1\n vpaddq %%ymm1, %%ymm0, %%ymm2\n vpaddq %%ymm2, %%ymm0, %%ymm3\n"
                   "vpaddq %%ymm3, %%ymm0, %%ymm4\n vpaddq %%ymm4, %%ymm0, %%ymm5\n vpaddq %%ymm5, %%ymm0, %%ymm6\n"
                   "vpaddq %%ymm6, %%ymm0, %%ymm7\n vpaddq %%ymm7, %%ymm0, %%ymm8\n vpaddq %%ymm8, %%ymm0, %%ymm9\n"
                   "vpaddq %%ymm9, %%ymm0, %%ymm10\n vpaddq %%ymm10, %%ymm0, %%ymm11\n"
                   "vpaddq %%ymm11, %%ymm0, %%ymm12\n vpaddq %%ymm12, %%ymm0, %%ymm13\n"
                   "vpaddq %%ymm13, %%ymm0, %%ymm14\n vpaddq %%ymm14, %%ymm0, %%ymm15\n"
                   "movl $24, %%eax\n syscall\n" // sched_yield
                   "movl $300000, %%ecx\n 1: decl %%ecx\n jnz 1b\n"
                   "vmovdqu %%ymm0, (%0)\n vmovdqu %%ymm1, 32(%0)\n vmovdqu %%ymm2, 64(%0)\n vmovdqu %%ymm3, 96(%0)\n"
                   "vmovdqu %%ymm4, 128(%0)\n vmovdqu %%ymm5, 160(%0)\n vmovdqu %%ymm6, 192(%0)\n"
                   "vmovdqu %%ymm7, 224(%0)\n vmovdqu %%ymm8, 256(%0)\n vmovdqu %%ymm9, 288(%0)\n"
                   "vmovdqu %%ymm10, 320(%0)\n vmovdqu %%ymm11, 352(%0)\n vmovdqu %%ymm12, 384(%0)\n"
                   "vmovdqu %%ymm13, 416(%0)\n vmovdqu %%ymm14, 448(%0)\n vmovdqu %%ymm15, 480(%0)\n"
                   :
                   : "r"(out), "m"(in)
                   : "rax", "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                     "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  for (unsigned i = 0; i < 16; i++)
    for (unsigned j = 0; j < 4; j++)
      if (out[i][j] != in[j] * (i + 1)) return 1;
  return 0;
}

static int x87_work(long number) {
  long double value = number, kept[7];
  uint32_t mxcsr = 0x1F80 | (uint32_t)(number & 3) << 13, after = 0;
  uint16_t control = (uint16_t)(0x037F | (number & 3) << 10), control_after = 0;
  __asm__ volatile("ldmxcsr %3; fldcw %4\n fldt %5\n"
                   "fld1; fadd %%st(1), %%st; fld1; fadd %%st(1), %%st; fld1; fadd %%st(1), %%st\n"
                   "fld1; fadd %%st(1), %%st; fld1; fadd %%st(1), %%st; fld1; fadd %%st(1), %%st\n"
                   "movl $24, %%eax; syscall; movl $200000, %%ecx; 1: decl %%ecx; jnz 1b\n"
                   "fstpt (%2); fstpt 16(%2); fstpt 32(%2); fstpt 48(%2); fstpt 64(%2); fstpt 80(%2); fstpt 96(%2)\n"
                   "stmxcsr %0; fnstcw %1\n"
                   : "=m"(after), "=m"(control_after)
                   : "r"(kept), "m"(mxcsr), "m"(control), "m"(value)
                   : "rax", "rcx", "r11", "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
                     "st(7)");
  static const uint32_t standard = 0x1F80;
  static const uint16_t standard_control = 0x037F;
  __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(standard), "m"(standard_control));
  for (int i = 0; i < 7; i++)
    if (kept[i] != (long double)(number + 6 - i)) return 2;
  if ((after & 0xFFC0) != mxcsr) return 3;
  if (control_after != control) return 4;
  return 0;
}

static void vectors(void) {
  enum { PROCESSES = 12 };
  pid_t children[PROCESSES];
  for (int i = 0; i < PROCESSES; i++) {
    children[i] = fork();
    if (children[i] == 0) {
      for (int round = 0; round < 30; round++) {
        uint64_t number = (uint64_t)(i + 1) * 1000003 + (uint64_t)round;
        int wrong = i % 3 == 2 || !__builtin_cpu_supports("avx2") ? 0 : wide_work(number);
        if (!wrong && i % 3 != 0) wrong = x87_work((long)number);
        if (wrong) _exit(wrong);
      }
      _exit(0);
    }
  }
  for (int i = 0; i < PROCESSES; i++) {
    int status = -1;
    waitpid(children[i], &status, 0);
    EQUAL(status, 0);
  }
}

// A thread's time slice ends by the timer wherever it is.
static volatile long spun[4], stop;
static void *spin(void *which) {
  while (!stop) spun[(long)which]++;
  return 0;
}

static void preemption(void) {
  pthread_t all[4];
  stop = 0;
  for (long i = 0; i < 4; i++) pthread_create(&all[i], 0, spin, (void *)i);
  // For 0.3 s, and on a busy host until each has had its turn, a minute at most.
  struct timespec t = {0, 300000000}, more = {0, 10000000};
  nanosleep(&t, 0);
  for (int i = 0; i < 6000 && !(spun[0] && spun[1] && spun[2] && spun[3]); i++) nanosleep(&more, 0);
  stop = 1;
  for (int i = 0; i < 4; i++) pthread_join(all[i], 0);
  for (int i = 0; i < 4; i++) EXPECT(spun[i] > 0);
}

int main(int count, char **names) {
  check(count, names, "threads", threads);
  check(count, names, "turns", turns);
  check(count, names, "sleeping", sleeping);
  check(count, names, "forks", forks);
  check(count, names, "pipes", pipes);
  check(count, names, "write-barrier", write_barrier);
  check(count, names, "memory", memory);
  check(count, names, "vectors", vectors);
  check(count, names, "preemption", preemption);
  return failures != 0;
}
