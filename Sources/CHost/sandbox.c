// SPDX-License-Identifier: Apache-2.0
// System-call filters, Landlock, and the signal that a refused call raises. What is allowed is data that comes from
// Swift (Host/SystemCallFilter.swift); here are the calls and the one handler that must not be Swift.
#define _GNU_SOURCE
#include "chost_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static int result(long value) { return value < 0 ? -errno : (int)value; }

// MARK: Filters

_Static_assert(sizeof(chost_bpf) == sizeof(struct sock_filter) &&
                   offsetof(chost_bpf, if_true) == offsetof(struct sock_filter, jt) &&
                   offsetof(chost_bpf, operand) == offsetof(struct sock_filter, k),
               "struct sock_filter");
_Static_assert(offsetof(struct seccomp_data, nr) == 0 && offsetof(struct seccomp_data, arch) == 4 &&
                   offsetof(struct seccomp_data, args) == 16,
               "the offsets in Host/SystemCallFilter.swift");

// Not in older headers: the thread keeps the speculation it had (linux 4.17). What guests and we share cannot be kept
// from each other that way, and older kernels would otherwise slow down everything that translated code does.
enum { SPEC_ALLOW = 1 << 2 };

int chost_filter_problem(void) {
  // A kernel that takes filters looks for the program first (seccomp(2), ERRORS).
  syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL);
  return errno == EFAULT ? 0 : -errno;
}

int chost_filter_install(const chost_bpf *program, uint16_t count) {
  // The thread takes its arena of malloc's now: the first time that may count processors, and read a file for it.
  void *volatile arena = malloc(1);
  free(arena);
  struct sock_fprog filter = {.len = count, .filter = (struct sock_filter *)program};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SPEC_ALLOW, &filter) == 0) return 0;
  return result(errno == EINVAL ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) : -1);
}

int chost_forbid_privileges(void) { return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); }

// MARK: Landlock

// Of linux/landlock.h, of which the hosts' headers have older versions than their kernels.
enum { CREATE_RULESET = 444, ADD_RULE = 445, RESTRICT_SELF = 446 };
enum { VERSION = 1 << 0, PATH_BENEATH = 1 };
enum { REMOVE_FILE = 1 << 5, MAKE_REG = 1 << 8 };
struct rules {
  uint64_t files, network, scoped;
};
struct path_beneath {
  uint64_t allowed;
  int32_t directory;
} __attribute__((packed));

int chost_landlock_version(void) { return result(syscall(CREATE_RULESET, NULL, 0, VERSION)); }

int chost_landlock_rules(int version) {
  // By version: what exists of rights to files, from EXECUTE to IOCTL_DEV.
  static const uint8_t file_rights[] = {0, 13, 14, 15, 15, 16};
  const int last = (int)sizeof file_rights - 1;
  struct rules rules = {.files = (1u << file_rights[version < last ? version : last]) - 1};
  size_t size = offsetof(struct rules, network);
  if (version >= 4) {
    rules.network = 3; // TCP: bind and connect
    size = offsetof(struct rules, scoped);
  }
  if (version >= 6) {
    rules.scoped = 3; // abstract sockets and signals: none to processes outside
    size = sizeof rules;
  }
  return result(syscall(CREATE_RULESET, &rules, size, 0));
}

int chost_landlock_allow_names(int rules, int directory) {
  struct path_beneath rule = {.allowed = REMOVE_FILE | MAKE_REG, .directory = directory};
  return result(syscall(ADD_RULE, rules, PATH_BENEATH, &rule, 0));
}

int chost_landlock_restrict(int rules) { return result(syscall(RESTRICT_SELF, rules, 0)); }

// MARK: Refusals

static _Atomic(chost_refusal) on_refusal;

enum { BY_FILTER = 1 }; // si_code; SYS_SECCOMP of asm-generic/siginfo.h, which glibc's header has not

// glibc's malloc asks once whether the host overcommits memory, at whatever moment it first gives back a part of a
// thread's heap (malloc/arena.c, check_may_shrink_heap). It is told that it may not read that: then it gives memory
// back by madvise, which is what it would do anyway on a host that overcommits.
static int is_mallocs_question(long number, const greg_t *registers) {
  return number == SYS_openat && registers[REG_RSI] != 0 &&
         strcmp((const char *)registers[REG_RSI], "/proc/sys/vm/overcommit_memory") == 0;
}

static void refused(int signal, siginfo_t *info, void *context) {
  (void)signal;
  chost_refusal refusal = on_refusal;
  if (info->si_code == BY_FILTER) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const int is_foreign = info->si_arch != AUDIT_ARCH_X86_64;
    if (!is_foreign && is_mallocs_question(info->si_syscall, registers)) {
      registers[REG_RAX] = -EACCES;
      return;
    }
    if (refusal) refusal(info->si_syscall, (uint32_t)info->si_errno, is_foreign);
  }
  // Sent by somebody, or nobody handles refusals. SIGSYS is blocked here, so that a call that a filter refuses ends
  // the process by it.
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(SIGSYS, &standard, NULL);
  raise(SIGSYS);
}

void chost_on_refusal(chost_refusal refusal) { on_refusal = refusal; }

int chost_prepare_refusals(void) {
  struct sigaction action = {.sa_sigaction = refused, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  return result(sigaction(SIGSYS, &action, NULL));
}
