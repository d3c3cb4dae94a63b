// SPDX-License-Identifier: Apache-2.0
// The same work by one thread and by two: what a second processor gains, on the bare host and in a guest with two vCPUs.
#define _GNU_SOURCE
#include "bench.h"

#include <pthread.h>
#include <stdlib.h>

enum { PARTS = 64, ITEMS = 40000, PHASES = 200, CELLS = 1 << 14 };

static uint64_t (*part)(int);
static int next_part;
static uint64_t results[PARTS];

static void *worker(void *unused) {
  (void)unused;
  int number;
  while ((number = __atomic_fetch_add(&next_part, 1, __ATOMIC_RELAXED)) < PARTS) results[number] = part(number);
  return NULL;
}

// Does all parts with `threads` threads, the caller among them.
static uint64_t distribute(uint64_t (*body)(int), int threads) {
  pthread_t others[8];
  part = body;
  next_part = 0;
  for (int i = 1; i < threads; i++)
    if (pthread_create(&others[i], NULL, worker, NULL)) fail("pthread_create");
  worker(NULL);
  for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
  uint64_t sum = 0;
  for (int i = 0; i < PARTS; i++) sum = mix(sum, results[i]);
  return sum;
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

// Sorts numbers of its own and mixes them.
static uint64_t sort_part(int number) {
  uint64_t seed = (uint64_t)number, sum = 0;
  uint64_t *items = need(malloc(ITEMS * sizeof *items));
  for (int i = 0; i < ITEMS; i++) items[i] = next_random(&seed);
  qsort(items, ITEMS, sizeof *items, ascending);
  for (int i = 0; i < ITEMS; i++) sum = mix(sum, items[i]);
  free(items);
  return sum;
}

static uint64_t compute_1(void) { return distribute(sort_part, 1); }
static uint64_t compute_2(void) { return distribute(sort_part, 2); }

// Phases with a barrier between: every cell becomes a function of its neighbours, who may be another thread's.
static uint64_t cells[2][CELLS];
static pthread_barrier_t barrier;
static int phase_threads;

static void *phases(void *which) {
  int first = (int)(intptr_t)which;
  for (int phase = 0; phase < PHASES; phase++) {
    const uint64_t *from = cells[phase & 1];
    uint64_t *to = cells[~phase & 1];
    for (int block = first; block < 16; block += phase_threads)
      for (int i = block * (CELLS / 16); i < (block + 1) * (CELLS / 16); i++)
        to[i] = mix(from[(i + CELLS - 1) % CELLS], from[i] + (from[(i + 1) % CELLS] >> 7));
    pthread_barrier_wait(&barrier);
  }
  return NULL;
}

static uint64_t run_phases(int threads) {
  for (int i = 0; i < CELLS; i++) cells[0][i] = (uint64_t)i;
  phase_threads = threads;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  pthread_t others[8];
  for (intptr_t i = 1; i < threads; i++)
    if (pthread_create(&others[i], NULL, phases, (void *)i)) fail("pthread_create");
  phases(0);
  for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
  pthread_barrier_destroy(&barrier);
  uint64_t sum = 0;
  for (int i = 0; i < CELLS; i++) sum = mix(sum, cells[PHASES & 1][i]);
  return sum;
}

static uint64_t phases_1(void) { return run_phases(1); }
static uint64_t phases_2(void) { return run_phases(2); }

const struct program parallel[] = {
    {"compute-1", "parallel", PARTS, compute_1},
    {"compute-2", "parallel", PARTS, compute_2},
    {"phases-1", "parallel", PHASES, phases_1},
    {"phases-2", "parallel", PHASES, phases_2},
    {NULL, NULL, 0, NULL},
};
