// SPDX-License-Identifier: Apache-2.0
// Makes threads of other processes perform system calls, by ptrace(2), and starts programs where seccomp(2) is refused.
#define _GNU_SOURCE
#include "ctracer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

// Stops a thread and reads its registers.
static int stop(int thread, struct user_regs_struct *registers) {
  if (ptrace(PTRACE_SEIZE, thread, 0, 0) < 0) return -errno;
  int status;
  if (ptrace(PTRACE_INTERRUPT, thread, 0, 0) < 0 || waitpid(thread, &status, __WALL) != thread ||
      ptrace(PTRACE_GETREGS, thread, 0, registers) < 0)
    return -errno;
  return 0;
}

int ctracer_call(const int threads[2], long number, const long arguments[6]) {
  struct user_regs_struct asleep, registers;
  int error = stop(threads[1], &asleep);
  if (error) return error;
  const unsigned long instruction = asleep.rip - 2;
  const long bytes = ptrace(PTRACE_PEEKTEXT, threads[1], instruction, 0);
  if (threads[0] == threads[1])
    registers = asleep;
  else {
    ptrace(PTRACE_DETACH, threads[1], 0, 0);
    error = stop(threads[0], &registers);
    if (error) return error;
  }
  if ((bytes & 0xFFFF) != 0x050F) {
    ptrace(PTRACE_DETACH, threads[0], 0, 0);
    return -EAGAIN;
  }
  registers.rip = instruction;
  registers.rax = (unsigned long)number;
  registers.orig_rax = ~0ul; // not in a system call, so that none is started again
  registers.rdi = (unsigned long)arguments[0];
  registers.rsi = (unsigned long)arguments[1];
  registers.rdx = (unsigned long)arguments[2];
  registers.r10 = (unsigned long)arguments[3];
  registers.r8 = (unsigned long)arguments[4];
  registers.r9 = (unsigned long)arguments[5];
  if (ptrace(PTRACE_SETREGS, threads[0], 0, &registers) < 0) return -errno;
  return ptrace(PTRACE_DETACH, threads[0], 0, 0) < 0 ? -errno : 0;
}

enum { LANDLOCK_CREATE_RULESET = 444 };

int ctracer_run_without_filters(const char *path, char *const arguments[], int output) {
  static struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, LANDLOCK_CREATE_RULESET, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  const pid_t child = fork();
  if (child < 0) return -1;
  if (child == 0) {
    const struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};
    const int input = open("/dev/null", O_RDONLY);
    if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0) _exit(99);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)) _exit(99);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(path, arguments);
    _exit(99);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child ? status : -1;
}
