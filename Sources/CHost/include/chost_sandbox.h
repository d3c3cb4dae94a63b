// SPDX-License-Identifier: Apache-2.0
// What a thread gives up for good: system calls by a filter (seccomp), files by Landlock. And what is left of that
// outside: the signal of a refused call, and the small process that names files. A result below zero is -errno.
#ifndef CHOST_SANDBOX_H
#define CHOST_SANDBOX_H

#include <stdint.h>

// One instruction of classic BPF (struct sock_filter, linux/filter.h).
typedef struct chost_bpf {
  uint16_t code;
  uint8_t if_true, if_false;
  uint32_t operand;
} chost_bpf;

// 0 if this host takes filters, found out without installing one.
int chost_filter_problem(void);
// Filters the calling thread's system calls, and those of threads that it starts.
int chost_filter_install(const chost_bpf *program, uint16_t count);
// Nothing that the calling thread executes gains rights: without this a filter is not taken.
int chost_forbid_privileges(void);

// The version of Landlock's interface.
int chost_landlock_version(void);
// A set of rules that allows nothing, as far as this version of the interface goes; a descriptor.
int chost_landlock_rules(int version);
// Allows making, renaming and removing ordinary files below a directory.
int chost_landlock_allow_names(int rules, int directory);
// Applies rules to the calling thread, and to those that it starts.
int chost_landlock_restrict(int rules);

// Called for a call that a filter refused: its number, what the filter returned with it, and whether it was made by
// another architecture's numbers. Runs in a signal handler; must not return.
typedef void (*chost_refusal)(int32_t number, uint32_t data, int32_t is_foreign);
// Has `refusal` called from now on; null: the process dies of SIGSYS.
void chost_on_refusal(chost_refusal refusal);
// Takes SIGSYS: before the first filter.
int chost_prepare_refusals(void);
// A system call's name; never null.
const char *chost_system_call_name(int32_t number);

// Something to be done with a name in a directory. All pointers must stay valid.
typedef struct chost_name_job {
  int directory;
  // An open file without a name, as a path by which it can be linked; null: it has the name `temporary`.
  const char *link;
  // Renamed to `name`, which it replaces. Null: `name` is removed.
  const char *temporary;
  const char *name;
} chost_name_job;

// Does it. 0 or -errno. Async-signal-safe.
int chost_name_job_do(const chost_name_job *job);

// A process that does jobs when asked: a byte with the number of one comes, an int32_t with the result goes. It keeps
// the descriptors of `kept`, is confined to the jobs' directories and, unless `count` is 0, to the calls of `program`,
// and ends when the other end of its socket is closed. For a process that has one thread.
typedef struct chost_keeper {
  const chost_name_job *jobs;
  const int *kept;
  const chost_bpf *program;
  uint32_t job_count, kept_count;
  uint16_t count;
} chost_keeper;
// Starts it and gives our end of the socket. The process's number or -errno.
int chost_keeper_start(const chost_keeper *keeper, int *socket);
// Has a job done. Async-signal-safe.
int chost_keeper_ask(int socket, uint8_t number);
// Ends the process and waits for that.
void chost_keeper_end(int socket);

#endif
