// SPDX-License-Identifier: Apache-2.0
// The benchmark programs' common ground. A program is a function that does a fixed amount of work once and returns a
// checksum of what it computed, the same on every machine and in every repetition; main.c repeats it and takes the time.
// What a program needs beforehand it makes in its first call, whose time the minimum leaves out.
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct program {
  const char *name;
  const char *group;      // computation, system, or parallel, which runs only when named
  uint64_t operations;    // how many operations one call does; the time is given per operation
  uint64_t (*run)(void);
};

extern const struct program computation[];
extern const struct program systemwork[];
extern const struct program tools[];
extern const struct program parallel[];
extern const char *self;      // this executable, for the programs that start it again
extern const char *busybox;   // the shell
extern const char *tree;      // a root file system with a compiler in it, or NULL

// A small generator, so that the inputs are the same everywhere.
static inline uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static inline uint64_t mix(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x100000001B3u; }

// Mixes what a child writes to a pipe to a checksum, and waits for it; `ends` are the pipe's. Its failure is `what`'s.
uint64_t mix_output(pid_t child, const int ends[2], const char *what);
void *need(void *pointer);            // the pointer, or the end of the program
void fail(const char *what) __attribute__((noreturn));

#endif
