// SPDX-License-Identifier: Apache-2.0
// Linux calls that Swift cannot import (variadic, macro-only or missing from the Glibc module), flattened to
// functions. Unless said otherwise a result below zero is -errno.
#ifndef CHOST_HOST_H
#define CHOST_HOST_H

#include <stdint.h>

// A memory file; closed on exec.
int chost_memfd(const char *name);
// Gives back what is behind `count` bytes of a file, through all its mappings: they are zero afterwards. 0 or -errno.
int chost_punch_hole(int fd, uint64_t offset, uint64_t count);

// Waits while *word == expected, until the CLOCK_MONOTONIC instant `deadline` in ns (UINT64_MAX: for ever).
// 0: woken (perhaps without cause). -EAGAIN: the word differs. -ETIMEDOUT, -EINTR.
int chost_futex_wait(const void *word, uint32_t expected, uint64_t deadline);
// Wakes at most `count` waiters; returns how many.
int chost_futex_wake(const void *word, int count);

enum { CHOST_POLL_IN = 1, CHOST_POLL_OUT = 4, CHOST_POLL_ERROR = 8, CHOST_POLL_HANGUP = 16 };
int chost_epoll(void);
// events != 0 adds (add != 0) or changes the interest in `fd`; events == 0 with add == 0 removes it.
int chost_epoll_set(int epoll, int fd, int add, uint32_t events, uint64_t tag);
typedef struct chost_ready {
  uint64_t tag;
  uint32_t events;
  uint32_t pad;
} chost_ready;
// Returns how many of `ready` were filled in. `timeout` in ms, -1: for ever. EINTR is retried.
int chost_epoll_wait(int epoll, chost_ready *ready, int capacity, int timeout);

// The user and the process at the other end of a connected Unix socket. 0 or -errno.
int chost_socket_peer(int fd, uint32_t *user, int32_t *process);

// One send and one receive, neither of which waits, with a descriptor on the way: -1 is none. One that arrives is
// closed on exec; more than one are closed at once. The number of bytes or -errno.
long chost_send(int fd, const void *bytes, uint64_t count, int descriptor);
long chost_receive(int fd, void *bytes, uint64_t count, int *descriptor);
// A connection of a listening socket, non-blocking, closed on exec, or -errno.
int chost_accept(int fd);

// Non-blocking, closed on exec.
int chost_eventfd(void);
int chost_timerfd(void);
// Arms for the CLOCK_MONOTONIC instant `deadline` in ns; 0 disarms.
int chost_timerfd_set(int timer, uint64_t deadline);
// Bit n - 1 of `mask` is signal n. The signals are blocked in the calling thread as well.
int chost_signalfd(uint64_t mask);
// The next pending signal number, or 0.
int chost_signalfd_read(int fd);
// Restores delivery of the signals in the calling thread.
void chost_unblock_signals(uint64_t mask);

// Starts a thread with all asynchronous signals blocked. 0 or -errno.
int chost_thread_start(unsigned long *thread, uint64_t stack_bytes, void *(*body)(void *), void *context);
int chost_thread_join(unsigned long thread);
// Names the calling thread; 15 bytes are kept.
void chost_thread_name(const char *name);

uint64_t chost_monotonic_ns(void);
uint64_t chost_wall_ns(void); // since 1970-01-01 UTC
void chost_sleep_until(uint64_t deadline); // CLOCK_MONOTONIC ns; restarts after signals

// CPUs in the calling thread's affinity mask.
int chost_affinity_count(void);

// Whether `count` bytes follow each other somewhere in memory.
int chost_has(const void *memory, uint64_t memory_count, const void *bytes, uint64_t count);

// CRC-32C of some bytes, going on from the sum of those before (0: none), and of each of `count` pages.
uint32_t chost_crc32c(uint32_t sum, const void *bytes, uint64_t count);
void chost_crc32c_pages(const void *pages, uint64_t count, uint32_t *sums);

#endif
