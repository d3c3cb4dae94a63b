// SPDX-License-Identifier: Apache-2.0
// Exceptions that the host processor raises for a guest instruction (division, unmasked x87 and SSE exceptions,
// a misaligned MOVAPS) arrive as signals. The handler writes the facts into the vCPU page and resumes at
// the full exit, so that Swift sees CHOST_EXIT_FAULT like any other exit and maps the host address to the
// guest's instruction. A signal from anywhere else is passed to whoever was there before.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <ucontext.h>

#include "chost.h"

// Vectors, in Linux's REG_TRAPNO.
enum { TRAP_DE = 0, TRAP_UD = 6, TRAP_GP = 13, TRAP_PF = 14, TRAP_MF = 16, TRAP_AC = 17, TRAP_XM = 19 };
enum { EFLAGS_TF = 1 << 8, EFLAGS_DF = 1 << 10, EFLAGS_AC = 1 << 18 };

// Read by signal handlers while other threads register: a slot is claimed by its start, and live while its end
// is not 0.
static struct {
  uint64_t start, end;
} ranges[CHOST_MAX_RANGES];
// No slot from here on was ever claimed.
static unsigned range_count;

static const int signals[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS};
enum { SIGNALS = sizeof signals / sizeof signals[0] };
static struct sigaction previous[SIGNALS];
static int installed;

int chost_register_code(uint64_t start, uint64_t end) {
  for (unsigned i = 0; i < CHOST_MAX_RANGES; i++) {
    uint64_t unused = 0;
    if (!__atomic_compare_exchange_n(&ranges[i].start, &unused, start, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      continue;
    unsigned count = __atomic_load_n(&range_count, __ATOMIC_RELAXED);
    while (count <= i && !__atomic_compare_exchange_n(&range_count, &count, i + 1, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    }
    __atomic_store_n(&ranges[i].end, end, __ATOMIC_RELEASE);
    return 0;
  }
  return -1;
}

void chost_unregister_code(uint64_t start) {
  for (unsigned i = 0; i < CHOST_MAX_RANGES; i++) {
    if (__atomic_load_n(&ranges[i].start, __ATOMIC_ACQUIRE) != start) continue;
    __atomic_store_n(&ranges[i].end, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&ranges[i].start, 0, __ATOMIC_RELEASE);
    return;
  }
}

static bool is_code(uint64_t address) {
  unsigned count = __atomic_load_n(&range_count, __ATOMIC_ACQUIRE);
  for (unsigned i = 0; i < count; i++) {
    // The end first: a start read after it belongs to it, or to a later range that is not live yet.
    uint64_t end = __atomic_load_n(&ranges[i].end, __ATOMIC_ACQUIRE);
    uint64_t start = __atomic_load_n(&ranges[i].start, __ATOMIC_ACQUIRE);
    if (end && start && start <= address && address < end) return true;
  }
  return false;
}

// What a guest's instruction can raise by itself. A host page fault cannot be one: every access was checked. Should it
// happen, Swift deals with it all the same.
static bool is_guest_exception(int signal, uint64_t trap) {
  switch (signal) {
  case SIGSEGV: return trap == TRAP_GP;
  case SIGFPE: return trap == TRAP_DE || trap == TRAP_MF || trap == TRAP_XM;
  case SIGILL: return trap == TRAP_UD;
  case SIGBUS: return trap == TRAP_AC;
  default: return false;
  }
}

static void pass_on(int signal, siginfo_t *info, void *context) {
  const struct sigaction *action = 0;
  for (unsigned i = 0; i < SIGNALS; i++)
    if (signals[i] == signal) action = &previous[i];
  if (!action) return;
  if (action->sa_flags & SA_SIGINFO) {
    action->sa_sigaction(signal, info, context);
    return;
  }
  if (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN) {
    action->sa_handler(signal);
    return;
  }
  const bool sent = info->si_code <= 0; // by kill and its like, not by an instruction
  if (sent && action->sa_handler == SIG_IGN) return;
  // The instruction is executed again on return and meets the default action, with the original context in the
  // core dump. A signal that was sent must be sent again.
  struct sigaction standard = {.sa_handler = SIG_DFL};
  sigaction(signal, &standard, 0);
  if (sent) raise(signal);
}

// Deep recursion has filled a shadow stack: it starts again from its top, and the returns that lose their frames
// go through the jump cache. The push that faulted is executed again.
static bool wrap_shadow_stack(chost_cpu *cpu, uint64_t address, greg_t *registers) {
  for (unsigned i = 0; i < 2; i++) {
    if (address >= cpu->shadow_bottom[i] || address < cpu->shadow_bottom[i] - CHOST_SHADOW_GUARD) continue;
    registers[REG_RSP] = (greg_t)cpu->shadow_top[i];
    return true;
  }
  return false;
}

static void handle(int signal, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint64_t pc = (uint64_t)registers[REG_RIP], env = (uint64_t)registers[REG_R11];
  // A signal that was sent leaves the trap number of an earlier exception.
  const bool page_fault = info->si_code > 0 && signal == SIGSEGV && registers[REG_TRAPNO] == TRAP_PF;
  const bool raised = page_fault || (info->si_code > 0 && is_guest_exception(signal, (uint64_t)registers[REG_TRAPNO]));
  // ENV is this engine's as long as translated code runs; what it points to must agree.
  const bool plausible = env >> 47 == 0 && env >= 65536 && (env - CHOST_ENV) % 64 == 0;
  if (!raised || !is_code(pc) || !plausible) {
    pass_on(signal, info, context);
    return;
  }
  chost_cpu *cpu = (chost_cpu *)(env - CHOST_ENV);
  if (pc < cpu->code_base || pc >= cpu->code_end) {
    pass_on(signal, info, context);
    return;
  }
  const bool slot = page_fault && (uint64_t)info->si_addr - cpu->slot_guard < CHOST_SLOT_GUARD;
  if (page_fault && !slot && wrap_shadow_stack(cpu, (uint64_t)info->si_addr, registers)) return;
  cpu->fault_pc = pc;
  cpu->fault_trap = slot ? CHOST_TRAP_SLOT : (uint32_t)registers[REG_TRAPNO];
  cpu->fault_code = (uint32_t)registers[REG_ERR];
  // EFLAGS are captured at the exit; whether they or the page's copy are the guest's, the block knows.
  cpu->exit_info = (uint32_t)CHOST_EXIT_FAULT << CHOST_INFO_REASON_SHIFT | CHOST_INFO_FLAGS_SAVED;
  // The floating-point state of the context is the guest's, sticky exception flags included: untouched.
  registers[REG_EFL] &= ~(greg_t)(EFLAGS_TF | EFLAGS_DF | EFLAGS_AC);
  registers[REG_RIP] = (greg_t)cpu->exit_stub;
}

int chost_install_fault_handlers(void) {
  if (__atomic_exchange_n(&installed, 1, __ATOMIC_ACQ_REL)) return 0;
  for (unsigned i = 0; i < SIGNALS; i++) {
    // `previous` first: a signal may arrive as soon as the handler is in place.
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(signals[i], 0, &previous[i]) || sigaction(signals[i], &action, 0)) {
      int error = errno;
      while (i-- > 0) sigaction(signals[i], &previous[i], 0);
      __atomic_store_n(&installed, 0, __ATOMIC_RELEASE);
      return error;
    }
  }
  return 0;
}

int chost_prepare_thread(void *stack, uint64_t size) {
  stack_t alternate = {.ss_sp = stack, .ss_size = size, .ss_flags = stack ? 0 : SS_DISABLE};
  return sigaltstack(&alternate, 0) ? errno : 0;
}
