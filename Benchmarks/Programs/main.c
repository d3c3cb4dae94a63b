// SPDX-License-Identifier: Apache-2.0
// bench [--list] [--busybox FILE] [--tree DIRECTORY] [--budget MS] [NAME...]: runs the programs, all of them without a name, and prints for
// each one line `NAME NANOSECONDS CHECKSUM`, the least time of an operation over the repetitions that fit in the budget
// (at least three). Each runs in a process of its own, so that what one leaves behind does not slow the next. As process
// 1 of a guest without a name, it prints `bench: init` and powers off: the smallest user space there is, to measure a
// boot with.
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const char *self;
const char *busybox = "/bin/busybox";
const char *tree;

void fail(const char *what) {
  fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
  _exit(1);
}

uint64_t mix_output(pid_t child, const int ends[2], const char *what) {
  close(ends[1]);
  uint64_t sum = 0;
  static uint8_t buffer[65536];
  long got;
  while ((got = read(ends[0], buffer, sizeof buffer)) > 0)
    for (long i = 0; i < got; i++) sum = mix(sum, buffer[i]);
  close(ends[0]);
  int status;
  if (waitpid(child, &status, 0) != child || status != 0) fail(what);
  return sum;
}

void *need(void *pointer) {
  if (pointer == NULL || pointer == (void *)-1) fail("no memory");
  return pointer;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

// Whether sixteen steps of the clock take less than a millisecond.
static int fine_clock(void) {
  double begin = now(), last = begin;
  for (int step = 0; step < 16 && last - begin < 1e6; step++) {
    double time;
    while ((time = now()) == last) {}
    last = time;
  }
  return last - begin < 1e6;
}

// In a guest of lguest's interface the clock stands still between ticks until, two seconds after the start, Linux takes
// the time-stamp counter for it. Nothing is measured before.
static int await_fine_clock(void) {
  struct timespec pause = {0, 100000000};
  for (int attempt = 0; attempt < 50; attempt++) {
    if (fine_clock()) return 1;
    nanosleep(&pause, NULL);
  }
  return 0;
}

// The clock as a line, so that who reads it can compare it with another clock.
static void clock_line(const char *what) {
  printf("bench: clock %s %.6f\n", what, now() / 1e9);
  fflush(stdout);
}

static void measure(const struct program *program, double budget) {
  int fine = await_fine_clock();
  double least = 0;
  double begin = now();
  uint64_t checksum = program->run();
  for (int repetition = 0; repetition < 3 || now() - begin < budget; repetition++) {
    double start = now();
    uint64_t again = program->run();
    double took = now() - start;
    if (again != checksum) {
      printf("%s unstable %016llx\n", program->name, (unsigned long long)again);
      return;
    }
    if (repetition == 0 || took < least) least = took;
  }
  if (!fine || !await_fine_clock()) {
    printf("%s coarse clock\n", program->name);
    return;
  }
  printf("%s %.3f %016llx\n", program->name, least / (double)program->operations, (unsigned long long)checksum);
}

static int run(const struct program *program, double budget) {
  fflush(stdout);
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    measure(program, budget);
    fflush(stdout);
    _exit(0);
  }
  int status;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) fail("waitpid");
  if (status == 0) return 0;
  printf("%s died %x\n", program->name, status);
  return 1;
}

int main(int count, char **words) {
  self = words[0];
  const struct program *groups[] = {computation, systemwork, tools, parallel};
  double budget = 300e6;
  int first = 1, failed = 0, list = 0;
  if (count > 2 && strcmp(words[1], "--chain") == 0) {
    // One link of the program `exec`: runs itself with one less.
    int left = atoi(words[2]);
    if (left == 0) return 42;
    char number[16];
    snprintf(number, sizeof number, "%d", left - 1);
    execl(self, self, "--chain", number, (char *)NULL);
    fail("exec");
  }
  if (getpid() == 1 && (count < 2 || words[1][0] != '-')) {
    static const char line[] = "bench: init\n";
    if (write(1, line, sizeof line - 1) < 0) return 1;
    reboot(RB_POWER_OFF);
    return 1;
  }
  for (; first < count && words[first][0] == '-'; first++) {
    if (strcmp(words[first], "--list") == 0) {
      list = 1;
    } else if (strcmp(words[first], "--busybox") == 0 && first + 1 < count) {
      busybox = words[++first];
    } else if (strcmp(words[first], "--tree") == 0 && first + 1 < count) {
      tree = words[++first];
    } else if (strcmp(words[first], "--budget") == 0 && first + 1 < count) {
      budget = atof(words[++first]) * 1e6;
    } else {
      fprintf(stderr, "usage: bench [--list] [--busybox FILE] [--tree DIRECTORY] [--budget MS] [NAME...]\n");
      return 125;
    }
  }
  if (!list) clock_line("begin");
  for (int group = 0; group < 4; group++) {
    for (const struct program *program = groups[group]; program->name != NULL; program++) {
      int wanted = first == count && groups[group] != parallel;
      for (int word = first; word < count; word++) wanted |= strcmp(words[word], program->name) == 0;
      if (!wanted) continue;
      if (list)
        printf("%s %s\n", program->name, program->group);
      else
        failed |= run(program, budget);
    }
  }
  if (!list) clock_line("end");
  return failed;
}
