// SPDX-License-Identifier: Apache-2.0
// The process that names files for one that may not any longer: made by fork, so that it has the descriptors, and so
// small that what it can be asked for is a number.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "chost_sandbox.h"

static int result(long value) { return value < 0 ? -errno : (int)value; }

int chost_name_job_do(const chost_name_job *job) {
  if (!job->temporary) return result(unlinkat(job->directory, job->name, 0));
  // A link cannot replace a file, so there are two steps.
  if (job->link && linkat(AT_FDCWD, job->link, job->directory, job->temporary, AT_SYMLINK_FOLLOW) < 0) return -errno;
  if (renameat(job->directory, job->temporary, job->directory, job->name) == 0) return 0;
  const int error = errno;
  unlinkat(job->directory, job->temporary, 0);
  return -error;
}

static int is_kept(const chost_keeper *keeper, int socket, int descriptor) {
  if (descriptor == socket) return 1;
  for (uint32_t i = 0; i < keeper->kept_count; i++)
    if (keeper->kept[i] == descriptor) return 1;
  for (uint32_t i = 0; i < keeper->job_count; i++)
    if (keeper->jobs[i].directory == descriptor) return 1;
  return 0;
}

// Everything else: the terminal, the guest's files and the pipes of whoever waits for the parent.
static void close_others(const chost_keeper *keeper, int socket) {
  int last = socket;
  for (uint32_t i = 0; i < keeper->kept_count; i++)
    if (keeper->kept[i] > last) last = keeper->kept[i];
  for (uint32_t i = 0; i < keeper->job_count; i++)
    if (keeper->jobs[i].directory > last) last = keeper->jobs[i].directory;
  for (int descriptor = 0; descriptor <= last; descriptor++)
    if (!is_kept(keeper, socket, descriptor)) close(descriptor);
  if (syscall(SYS_close_range, (unsigned)last + 1, ~0u, 0) == 0) return;
  const long limit = sysconf(_SC_OPEN_MAX);
  for (int descriptor = last + 1; descriptor < limit && descriptor < 65536; descriptor++)
    close(descriptor);
}

static int confine(const chost_keeper *keeper) {
  const int version = chost_landlock_version();
  int error = chost_forbid_privileges();
  if (!error && version > 0) {
    const int rules = chost_landlock_rules(version);
    error = rules < 0 ? rules : 0;
    for (uint32_t i = 0; i < keeper->job_count && !error; i++)
      error = chost_landlock_allow_names(rules, keeper->jobs[i].directory);
    if (!error) error = chost_landlock_restrict(rules);
    close(rules);
  }
  if (!error && keeper->count) error = chost_filter_install(keeper->program, keeper->count);
  return error;
}

static _Noreturn void keep(const chost_keeper *keeper, int socket) {
  // What ends the parent must not end this first: it ends with the parent.
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  static const int handled[] = {SIGILL, SIGTRAP, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGSYS};
  for (unsigned i = 0; i < sizeof handled / sizeof *handled; i++)
    signal(handled[i], SIG_DFL);
  prctl(PR_SET_NAME, "lguest-names");
  close_others(keeper, socket);
  if (confine(keeper)) _exit(1);
  uint8_t number;
  while (read(socket, &number, 1) == 1) {
    const int32_t answer = number < keeper->job_count ? chost_name_job_do(&keeper->jobs[number]) : -EINVAL;
    if (write(socket, &answer, sizeof answer) != sizeof answer) break;
  }
  _exit(0);
}

int chost_keeper_start(const chost_keeper *keeper, int *socket) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) return -errno;
  const pid_t child = fork();
  if (child == 0) keep(keeper, ends[1]);
  const int error = errno;
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    return -error;
  }
  *socket = ends[0];
  return child;
}

int chost_keeper_ask(int socket, uint8_t number) {
  int32_t answer;
  if (write(socket, &number, 1) != 1) return -EPIPE;
  ssize_t count;
  do
    count = read(socket, &answer, sizeof answer);
  while (count < 0 && errno == EINTR);
  return count == sizeof answer ? answer : -EPIPE;
}

void chost_keeper_end(int socket) {
  uint8_t byte;
  shutdown(socket, SHUT_WR);
  while (read(socket, &byte, 1) < 0 && errno == EINTR) {
  }
}
