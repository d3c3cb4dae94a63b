// SPDX-License-Identifier: Apache-2.0
// The programs that work the system: calls, faults, mappings, switches, processes. Those with two sides stay on one
// processor, so that the bare host does what a guest with one processor does.
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void one_processor(void) {
  static int done;
  if (done) return;
  done = 1;
  cpu_set_t all, one;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  int cpu = 0;
  while (cpu < CPU_SETSIZE && !CPU_ISSET(cpu, &all)) cpu++;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
}

// getpid: the smallest system call.
enum { getpids = 20000 };
static uint64_t do_getpid(void) {
  long sum = 0, own = syscall(SYS_getpid);
  for (int i = 0; i < getpids; i++) sum += syscall(SYS_getpid) == own;
  return (uint64_t)sum;
}

// read: 4 KiB of /dev/zero.
enum { reads = 5000 };
static uint64_t do_read(void) {
  static int zero = -1;
  static char buffer[4096] __attribute__((aligned(4096)));
  if (zero < 0 && (zero = open("/dev/zero", O_RDONLY)) < 0) fail("/dev/zero");
  uint64_t sum = 0;
  for (int i = 0; i < reads; i++) {
    buffer[i & 4095] = 1;
    long got = read(zero, buffer, sizeof buffer);
    if (got < 0) fail("read");
    sum += (uint64_t)got + (uint64_t)buffer[i & 4095];
  }
  return sum;
}

// fault: the first touch of each page of new memory.
enum { fault_pages = 1024 };
static uint64_t fault(void) {
  volatile char *memory = need(mmap(NULL, fault_pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  madvise((void *)memory, fault_pages * 4096, MADV_NOHUGEPAGE);
  uint64_t sum = 0;
  for (int i = 0; i < fault_pages; i++) memory[i * 4096] = 1;
  for (int i = 0; i < fault_pages; i += 64) sum += (uint64_t)memory[i * 4096];
  if (munmap((void *)memory, fault_pages * 4096) != 0) fail("munmap");
  return sum;
}

// mmap: 64 KiB mapped, one page touched, unmapped.
enum { mappings = 1500 };
static uint64_t do_mmap(void) {
  uint64_t sum = 0;
  for (int i = 0; i < mappings; i++) {
    volatile char *memory = need(mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memory[4096] = 3;
    sum += (uint64_t)memory[4096];
    if (munmap((void *)memory, 65536) != 0) fail("munmap");
  }
  return sum;
}

// pipe: a byte to another process and back.
enum { trips = 1000 };
static uint64_t do_pipe(void) {
  one_processor();
  int there[2], back[2];
  if (pipe(there) != 0 || pipe(back) != 0) fail("pipe");
  pid_t child = fork();
  if (child < 0) fail("fork");
  unsigned char byte = 0;
  if (child == 0) {
    for (int i = 0; i < trips; i++) {
      if (read(there[0], &byte, 1) != 1) _exit(1);
      byte += 3;
      if (write(back[1], &byte, 1) != 1) _exit(1);
    }
    _exit(0);
  }
  uint64_t sum = 0;
  for (int i = 0; i < trips; i++) {
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) fail("pipe");
    sum = mix(sum, byte);
  }
  int status;
  if (waitpid(child, &status, 0) < 0 || status != 0) fail("the other side");
  close(there[0]), close(there[1]), close(back[0]), close(back[1]);
  return sum;
}

// futex: two threads that wake each other.
enum { turns = 1000 };
static _Atomic uint32_t turn;
static void await(uint32_t parity) {
  uint32_t seen;
  while (((seen = atomic_load(&turn)) & 1) != parity) syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void pass(void) {
  atomic_fetch_add(&turn, 1);
  syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
static void *other_thread(void *unused) {
  for (int i = 0; i < turns; i++) await(1), pass();
  return unused;
}
static uint64_t do_futex(void) {
  one_processor();
  pthread_t other;
  atomic_store(&turn, 0);
  if (pthread_create(&other, NULL, other_thread, NULL) != 0) fail("pthread_create");
  for (int i = 0; i < turns; i++) await(0), pass();
  pthread_join(other, NULL);
  return atomic_load(&turn);
}

// fork: a process that ends at once, and the wait for it.
enum { forks = 60 };
static uint64_t fork_and_wait(int count) {
  one_processor();
  uint64_t sum = 0;
  for (int i = 0; i < count; i++) {
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) _exit(i & 63);
    int status;
    if (waitpid(child, &status, 0) != child) fail("waitpid");
    sum = mix(sum, (uint64_t)WEXITSTATUS(status));
  }
  return sum;
}
static uint64_t do_fork(void) { return fork_and_wait(forks); }

// fork-20m: the same by a process that has touched 20 MiB, in pages of 4 KiB.
enum { large = 20 << 20, large_forks = 20 };
static uint64_t fork_large(void) {
  static char *memory;
  if (memory == NULL) {
    memory = need(mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(memory, large, MADV_NOHUGEPAGE);
    for (int i = 0; i < large; i += 4096) memory[i] = 1;
  }
  return fork_and_wait(large_forks);
}

// exec: this program replaced by itself, again and again.
enum { execs = 30 };
static uint64_t do_exec(void) {
  one_processor();
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    char number[16];
    snprintf(number, sizeof number, "%d", execs - 1);
    execl(self, self, "--chain", number, (char *)NULL);
    _exit(1);
  }
  int status;
  if (waitpid(child, &status, 0) != child) fail("waitpid");
  return (uint64_t)WEXITSTATUS(status);
}

// What busybox's shell prints for a script, mixed to a checksum.
static uint64_t shell_script(const char *script) {
  int ends[2];
  if (pipe(ends) != 0) fail("pipe");
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    dup2(ends[1], 1);
    close(ends[0]), close(ends[1]);
    execl(busybox, "sh", "-c", script, busybox, (char *)NULL);
    _exit(127);
  }
  return mix_output(child, ends, "the shell");
}

// shell: a loop of a shell with arithmetic, a substitution and a command in each round.
static uint64_t shell(void) {
  one_processor();
  return shell_script("i=0; while [ $i -lt 10 ]; do i=$((i+1)); x=$(echo $i$x); \"$0\" true; done; echo $x");
}

// script: what a shell does without starting anything.
static uint64_t script(void) {
  return shell_script("i=0; x=; while [ $i -lt 2000 ]; do i=$((i+1)); case $i in *7) x=${x#??}$i ;; *) : ;; esac; done; echo $i $x");
}

const struct program systemwork[] = {
    {"getpid", "system", getpids, do_getpid},
    {"read-4k", "system", reads, do_read},
    {"fault", "system", fault_pages, fault},
    {"mmap", "system", mappings, do_mmap},
    {"pipe", "system", trips, do_pipe},
    {"futex", "system", turns, do_futex},
    {"fork", "system", forks, do_fork},
    {"fork-20m", "system", large_forks, fork_large},
    {"exec", "system", execs, do_exec},
    {"shell", "system", 10, shell},
    {"script", "system", 2000, script},
    {NULL, NULL, 0, NULL},
};
