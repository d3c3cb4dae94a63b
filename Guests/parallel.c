// SPDX-License-Identifier: Apache-2.0
// Threads of one process on several processors at once: locked operations across cache lines, code that one thread
// writes and others call, protection that changes under those who store, signals to running threads, fork out of a
// process with many, and a clock that never goes backwards from one processor to the next. PARALLEL_SECONDS says how
// long each takes; without it a second in all.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { MOST = 8 };

static int processors, threads;
static double limit = 0.15;

static void pin(long number) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((unsigned)(number % processors), &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Runs `body` on all threads, each on its processor, until the time is up and `enough` has happened, if that is asked:
// where vCPUs wait for processors a thread may not get one for a while. A minute is the limit.
static volatile int stop;
static void run(void *(*body)(void *), double seconds, int (*enough)(void)) {
  pthread_t all[MOST];
  stop = 0;
  for (long i = 0; i < threads; i++)
    if (pthread_create(&all[i], 0, body, (void *)i)) abort();
  struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  while (nanosleep(&t, &t) && errno == EINTR) {}
  struct timespec more = {0, 10000000};
  for (int i = 0; enough && !enough() && i < 6000; i++) nanosleep(&more, 0);
  stop = 1;
  for (int i = 0; i < threads; i++) pthread_join(all[i], 0);
}

// --- Locked operations: in a line, across two lines, across two pages

static char *shared;
static const long places[] = {64, 126, 4093};
static uint64_t done[MOST][3];

static void *locked(void *which) {
  long me = (long)which;
  pin(me);
  while (!stop) {
    for (int p = 0; p < 3; p++) {
      uint64_t *at = (uint64_t *)(shared + places[p]);
      for (int i = 0; i < (p == 2 ? 5 : 100); i++) {
        uint64_t two = 2;
        __asm__ volatile("lock incq %0; lock xaddq %1, %0" : "+m"(*at), "+r"(two) : : "cc", "memory");
        done[me][p] += 3;
      }
    }
  }
  return 0;
}

static void locks(void) {
  shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(done, 0, sizeof done);
  run(locked, limit, 0);
  for (int p = 0; p < 3; p++) {
    uint64_t sum = 0, found;
    for (int i = 0; i < threads; i++) sum += done[i][p];
    memcpy(&found, shared + places[p], 8);
    EQUAL(found, sum);
  }
  munmap(shared, 8192);
}

// --- Time

static struct {
  _Alignas(64) volatile uint64_t last;
  volatile int lock;
} moment;
static volatile uint64_t backwards;

// The order of the lock is an order of time too, whatever processor reads the clock.
static void *reading(void *which) {
  pin((long)which);
  while (!stop) {
    while (__atomic_exchange_n(&moment.lock, 1, __ATOMIC_ACQUIRE)) __builtin_ia32_pause();
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t value = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
    if (value < moment.last) backwards++;
    moment.last = value;
    __atomic_store_n(&moment.lock, 0, __ATOMIC_RELEASE);
    sched_yield();
  }
  return 0;
}

static void clocks(void) {
  moment.last = backwards = 0;
  run(reading, limit, 0);
  EQUAL(backwards, 0);
}

// --- Code that one thread writes and all call

static uint8_t *code;
static volatile uint32_t newest;
static volatile uint64_t stale, calls;

static void *calling(void *which) {
  pin((long)which);
  if (which == 0) {
    for (uint32_t number = 1; !stop; number++) {
      // 32 functions in turn, on pages of their own and together, entered at an aligned immediate.
      uint8_t *function = code + (number % 32) * (number % 2 ? 4096 : 64) + 3;
      *(volatile uint8_t *)function = 0xB8;
      *(volatile uint32_t *)(function + 1) = number;
      *(volatile uint8_t *)(function + 5) = 0xC3;
      __atomic_store_n(&newest, number, __ATOMIC_RELEASE);
      for (int i = 0; i < 20; i++) __builtin_ia32_pause();
    }
    return 0;
  }
  while (!stop) {
    uint32_t number = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
    if (!number) continue;
    uint32_t found = ((uint32_t (*)(void))(code + (number % 32) * (number % 2 ? 4096 : 64) + 3))();
    // A newer number of the same place is as good: 32 or a multiple of it later.
    if (found < number || (found - number) % 32) stale++;
    calls++;
  }
  return 0;
}

static int all_called(void) { return threads == 1 || calls > 0; }

static void code_of_others(void) {
  code = mmap(0, 33 * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(code, 0xC3, 33 * 4096);
  newest = 0;
  stale = calls = 0;
  run(calling, limit, all_called);
  EQUAL(stale, 0);
  EXPECT(all_called());
  munmap(code, 33 * 4096);
}

// --- Protection that changes under those who store

static char *area;
static volatile uint64_t stored[MOST];
static volatile int is_protected;
static volatile uint64_t leaked;

static void denied(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  char *at = (char *)info->si_addr;
  if (at < area || at >= area + 16 * 4096) _exit(77);
  while (__atomic_load_n(&is_protected, __ATOMIC_ACQUIRE) && !stop) sched_yield();
}

static void *storing(void *which) {
  long me = (long)which;
  pin(me);
  if (me == 0) {
    while (!stop) {
      __atomic_store_n(&is_protected, 1, __ATOMIC_RELEASE);
      mprotect(area, 16 * 4096, PROT_READ);
      // From here on nobody may store: what is there now stays.
      uint64_t before[16], after[16];
      for (int i = 0; i < 16; i++) before[i] = *(volatile uint64_t *)(area + i * 4096);
      for (int i = 0; i < 200; i++) __builtin_ia32_pause();
      for (int i = 0; i < 16; i++) after[i] = *(volatile uint64_t *)(area + i * 4096);
      if (memcmp(before, after, sizeof before)) leaked++;
      mprotect(area, 16 * 4096, PROT_READ | PROT_WRITE);
      __atomic_store_n(&is_protected, 0, __ATOMIC_RELEASE);
      for (int i = 0; i < 500; i++) __builtin_ia32_pause();
    }
    mprotect(area, 16 * 4096, PROT_READ | PROT_WRITE);
    return 0;
  }
  for (uint64_t i = 0; !stop; i++) {
    __asm__ volatile("lock incq %0" : "+m"(*(uint64_t *)(area + i % 16 * 4096)) : : "cc", "memory");
    stored[me]++;
  }
  return 0;
}

static void protection(void) {
  area = mmap(0, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct sigaction action = {.sa_sigaction = denied, .sa_flags = SA_SIGINFO}, old;
  sigaction(SIGSEGV, &action, &old);
  memset((void *)stored, 0, sizeof stored);
  leaked = 0;
  run(storing, limit, 0);
  uint64_t sum = 0, found = 0;
  for (int i = 0; i < threads; i++) sum += stored[i];
  for (int i = 0; i < 16; i++) found += *(volatile uint64_t *)(area + i * 4096);
  EQUAL(found, sum);
  EQUAL(leaked, 0);
  sigaction(SIGSEGV, &old, 0);
  munmap(area, 16 * 4096);
}

// --- Signals to running threads, and fork out of them

static volatile uint64_t caught[MOST];
static __thread long own_number = -1;
static pthread_t members[MOST];
static volatile int members_known, members_done;

static void count_signal(int number) {
  (void)number;
  if (own_number >= 0) caught[own_number]++;
}

static void *signalling(void *which) {
  long me = (long)which;
  pin(me);
  own_number = me;
  members[me] = pthread_self();
  __atomic_fetch_add(&members_known, 1, __ATOMIC_SEQ_CST);
  while (members_known < threads) sched_yield();
  double value = 1;
  do {
    for (int i = 0; i < 1000; i++) value = value * 1.0000001 + 1e-9;
    pthread_kill(members[(me + 1) % threads], SIGUSR1);
  } while (!stop);
  EXPECT(value > 1);
  // Nobody is gone before the last signal was sent. A count of its own: some may only now see that all are known.
  __atomic_fetch_add(&members_done, 1, __ATOMIC_SEQ_CST);
  while (members_done < threads) sched_yield();
  return 0;
}

static int all_caught(void) {
  for (int i = 0; i < threads; i++)
    if (!caught[i]) return 0;
  return 1;
}

static void signals(void) {
  signal(SIGUSR1, count_signal);
  memset((void *)caught, 0, sizeof caught);
  members_known = members_done = 0;
  run(signalling, limit, all_caught);
  EXPECT(all_caught());
}

static void *forking(void *which) {
  long me = (long)which;
  pin(me);
  char *mine = mmap(0, 32 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (uint32_t round = 1; !stop; round++) {
    for (int i = 0; i < 32; i++) *(volatile uint32_t *)(mine + i * 4096) = round;
    if (me % 2) continue;
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
      for (int i = 0; i < 32; i++) {
        volatile uint32_t *at = (uint32_t *)(mine + i * 4096);
        if (*at != round) _exit(1);
        *at = 0;
      }
      _exit(0);
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || status) problem("a child ended with %x", (unsigned)status);
    for (int i = 0; i < 32; i++) EQUAL(*(volatile uint32_t *)(mine + i * 4096), round);
  }
  munmap(mine, 32 * 4096);
  return 0;
}

static void forks(void) { run(forking, limit, 0); }

// --- Futexes: a token goes round

static volatile int token;

static void *passing(void *which) {
  int me = (int)(long)which;
  pin(me);
  while (!stop) {
    int seen = token;
    if (seen % threads == me) {
      __atomic_store_n(&token, seen + 1, __ATOMIC_SEQ_CST);
      syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, MOST, 0, 0, 0);
    } else {
      struct timespec t = {0, 100000000};
      syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, seen, &t, 0, 0);
    }
  }
  return 0;
}

static int all_passed(void) { return token > 20; }

static void futexes(void) {
  token = 0;
  run(passing, limit, all_passed);
  EXPECT(all_passed());
}

int main(int count, char **names) {
  processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
  threads = processors < 2 ? 2 : processors > MOST ? MOST : processors;
  const char *seconds = getenv("PARALLEL_SECONDS");
  if (seconds) limit = atof(seconds);
  check(count, names, "locks", locks);
  check(count, names, "clocks", clocks);
  check(count, names, "code", code_of_others);
  check(count, names, "protection", protection);
  check(count, names, "signals", signals);
  check(count, names, "forks", forks);
  check(count, names, "futexes", futexes);
  return failures != 0;
}
