// SPDX-License-Identifier: Apache-2.0
// Linux calls that Swift cannot import, and the two things Swift must not do: run in a signal handler and start
// a thread before its signal mask is right. No policy here.
#define _GNU_SOURCE
#include "chost_host.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

extern int atexit(void (*)(void)); // <stdlib.h> has inline functions that return double

static int result(long value) { return value < 0 ? -errno : (int)value; }

static struct timespec timespec_of(uint64_t ns) {
  return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

int chost_has(const void *memory, uint64_t memory_count, const void *bytes, uint64_t count) {
  return memmem(memory, memory_count, bytes, count) != NULL;
}

int chost_memfd(const char *name) { return result(memfd_create(name, MFD_CLOEXEC)); }

int chost_punch_hole(int fd, uint64_t offset, uint64_t count) {
  return result(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
}

int chost_futex_wait(const void *word, uint32_t expected, uint64_t deadline) {
  struct timespec until = timespec_of(deadline);
  // The bitset form takes an absolute CLOCK_MONOTONIC timeout.
  return result(syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected,
                        deadline == UINT64_MAX ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY));
}

int chost_futex_wake(const void *word, int count) {
  return result(syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NULL, NULL, 0));
}

_Static_assert(CHOST_POLL_IN == EPOLLIN && CHOST_POLL_OUT == EPOLLOUT && CHOST_POLL_ERROR == EPOLLERR &&
                   CHOST_POLL_HANGUP == EPOLLHUP,
               "epoll's bits");

int chost_epoll(void) { return result(epoll_create1(EPOLL_CLOEXEC)); }

int chost_epoll_set(int epoll, int fd, int add, uint32_t events, uint64_t tag) {
  struct epoll_event event = {.events = events, .data.u64 = tag};
  int operation = add ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
  return result(epoll_ctl(epoll, operation, fd, &event));
}

int chost_epoll_wait(int epoll, chost_ready *ready, int capacity, int timeout) {
  struct epoll_event events[64];
  int count;
  do
    count = epoll_wait(epoll, events, capacity < 64 ? capacity : 64, timeout);
  while (count < 0 && errno == EINTR);
  for (int i = 0; i < count; i++)
    ready[i] = (chost_ready){.tag = events[i].data.u64, .events = events[i].events};
  return result(count);
}

int chost_socket_peer(int fd, uint32_t *user, int32_t *process) {
  struct ucred credentials;
  socklen_t size = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) return -errno;
  *user = credentials.uid;
  *process = credentials.pid;
  return 0;
}

long chost_send(int fd, const void *bytes, uint64_t count, int descriptor) {
  if (descriptor < 0) {
    const ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? -errno : sent;
  }
  union {
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
  } control = {.head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
  memcpy(CMSG_DATA(&control.head), &descriptor, sizeof descriptor);
  struct iovec part = {.iov_base = (void *)bytes, .iov_len = count};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  const ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  return sent < 0 ? -errno : sent;
}

long chost_receive(int fd, void *bytes, uint64_t count, int *descriptor) {
  // Room for one: the kernel closes what does not fit.
  union {
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec part = {.iov_base = bytes, .iov_len = count};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *descriptor = -1;
  const ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (received < 0) return -errno;
  const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS &&
      head->cmsg_len == CMSG_LEN(sizeof(int)))
    memcpy(descriptor, CMSG_DATA(head), sizeof *descriptor);
  return received;
}

int chost_accept(int fd) { return result(accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)); }

int chost_eventfd(void) { return result(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

int chost_timerfd(void) { return result(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)); }

int chost_timerfd_set(int timer, uint64_t deadline) {
  struct itimerspec when = {.it_value = timespec_of(deadline)};
  return result(timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL));
}

static sigset_t set_of(uint64_t mask) {
  sigset_t set;
  sigemptyset(&set);
  for (int n = 1; n <= 64; n++)
    if (mask >> (n - 1) & 1)
      sigaddset(&set, n);
  return set;
}

int chost_signalfd(uint64_t mask) {
  sigset_t set = set_of(mask);
  int error = pthread_sigmask(SIG_BLOCK, &set, NULL);
  return error ? -error : result(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int chost_signalfd_read(int fd) {
  struct signalfd_siginfo info;
  return read(fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

void chost_unblock_signals(uint64_t mask) {
  sigset_t set = set_of(mask);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

// Signals an instruction raises on its own thread; they must never be blocked.
static const int synchronous[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
enum { SYNCHRONOUS = sizeof synchronous / sizeof *synchronous };

int chost_thread_start(unsigned long *thread, uint64_t stack_bytes, void *(*body)(void *), void *context) {
  _Static_assert(sizeof(pthread_t) == sizeof(unsigned long), "glibc's pthread_t");
  pthread_attr_t attributes;
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (int i = 0; i < SYNCHRONOUS; i++)
    sigdelset(&blocked, synchronous[i]);
  pthread_attr_init(&attributes);
  int error = pthread_attr_setstacksize(&attributes, stack_bytes);
  if (!error) {
    // The mask is inherited, so there is no moment at which the new thread could take a signal.
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    error = pthread_create(thread, &attributes, body, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_attr_destroy(&attributes);
  return -error;
}

int chost_thread_join(unsigned long thread) { return -pthread_join(thread, NULL); }

void chost_thread_name(const char *name) {
  char kept[16] = {0};
  strncpy(kept, name, sizeof kept - 1);
  pthread_setname_np(pthread_self(), kept);
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t chost_monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
uint64_t chost_wall_ns(void) { return clock_ns(CLOCK_REALTIME); }

void chost_sleep_until(uint64_t deadline) {
  struct timespec until = timespec_of(deadline);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
  }
}

int chost_affinity_count(void) {
  unsigned long mask[1024]; // 65536 CPUs; the kernel refuses a mask shorter than its own
  long bytes = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
  if (bytes < 0)
    return -errno;
  int count = 0;
  for (long i = 0; i < bytes / (long)sizeof *mask; i++)
    count += __builtin_popcountl(mask[i]);
  return count;
}
