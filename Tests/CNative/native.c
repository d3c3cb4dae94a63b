// SPDX-License-Identifier: Apache-2.0
// The native runner: an assembly entry that loads everything, and a signal handler that stores everything and
// returns to the entry's caller.
#define _GNU_SOURCE
#include "cnative.h"

#include <asm/ldt.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

// Used by the assembly below.
cnative_state *cnative_current;
uint64_t cnative_host_rsp, cnative_host_fs, cnative_host_gs, cnative_target;
struct {
  uint32_t offset;
  uint16_t selector;
} __attribute__((packed)) cnative_far;
static int cnative_is_legacy;
static long cnative_thread;
void cnative_enter(cnative_state *state);
void cnative_enter_legacy(cnative_state *state);
void cnative_leave(void);
void cnative_leave_legacy(void);

_Static_assert(offsetof(cnative_state, rflags) == 128 && offsetof(cnative_state, rip) == 136, "assembly");
_Static_assert(offsetof(cnative_state, fs_base) == 144 && offsetof(cnative_state, gs_base) == 152, "assembly");
_Static_assert(offsetof(cnative_state, segments) == 184, "assembly");
_Static_assert(offsetof(cnative_state, xsave) % 64 == 0 && offsetof(cnative_state, xsave) == 256, "assembly");

__asm__(
    ".intel_syntax noprefix\n"
    ".text\n"
    ".globl cnative_enter\n"
    ".type cnative_enter, @function\n"
    "cnative_enter:\n"
    "  push rbp; push rbx; push r12; push r13; push r14; push r15\n"
    "  mov [rip + cnative_host_rsp], rsp\n"
    "  rdfsbase rax\n"
    "  mov [rip + cnative_host_fs], rax\n"
    "  rdgsbase rax\n"
    "  mov [rip + cnative_host_gs], rax\n"
    "  mov eax, 7\n"
    "  xor edx, edx\n"
    "  xrstor64 [rdi + 256]\n"
    "  mov rax, [rdi + 136]\n"
    "  mov [rip + cnative_target], rax\n"
    "  mov rax, [rdi + 152]\n"
    "  wrgsbase rax\n"
    "  mov rax, [rdi + 144]\n"
    "  wrfsbase rax\n"
    "  push qword ptr [rdi + 128]\n"
    "  popfq\n"
    "  mov rax, [rdi]\n"
    "  mov rcx, [rdi + 8]\n"
    "  mov rdx, [rdi + 16]\n"
    "  mov rbx, [rdi + 24]\n"
    "  mov rsp, [rdi + 32]\n"
    "  mov rbp, [rdi + 40]\n"
    "  mov rsi, [rdi + 48]\n"
    "  mov r8, [rdi + 64]\n"
    "  mov r9, [rdi + 72]\n"
    "  mov r10, [rdi + 80]\n"
    "  mov r11, [rdi + 88]\n"
    "  mov r12, [rdi + 96]\n"
    "  mov r13, [rdi + 104]\n"
    "  mov r14, [rdi + 112]\n"
    "  mov r15, [rdi + 120]\n"
    "  mov rdi, [rdi + 56]\n"
    "  jmp [rip + cnative_target]\n"
    ".globl cnative_enter_legacy\n"
    ".type cnative_enter_legacy, @function\n"
    "cnative_enter_legacy:\n"
    "  push rbp; push rbx; push r12; push r13; push r14; push r15\n"
    "  mov [rip + cnative_host_rsp], rsp\n"
    "  rdfsbase rax\n"
    "  mov [rip + cnative_host_fs], rax\n"
    "  rdgsbase rax\n"
    "  mov [rip + cnative_host_gs], rax\n"
    "  mov eax, 7\n"
    "  xor edx, edx\n"
    "  xrstor64 [rdi + 256]\n"
    "  mov eax, [rdi + 136]\n"
    "  mov [rip + cnative_far], eax\n"
    "  mov eax, [rdi + 188]\n"
    "  mov [rip + cnative_far + 4], ax\n"
    "  push qword ptr [rdi + 128]\n"
    "  popfq\n"
    "  mov es, [rdi + 184]\n"
    "  mov ds, [rdi + 196]\n"
    "  mov fs, [rdi + 200]\n"
    "  mov gs, [rdi + 204]\n"
    "  mov rax, [rdi]\n"
    "  mov rcx, [rdi + 8]\n"
    "  mov rdx, [rdi + 16]\n"
    "  mov rbx, [rdi + 24]\n"
    "  mov rbp, [rdi + 40]\n"
    "  mov rsi, [rdi + 48]\n"
    "  mov ss, [rdi + 192]\n"
    "  mov rsp, [rdi + 32]\n"
    "  mov rdi, [rdi + 56]\n"
    "  jmp fword ptr [rip + cnative_far]\n"
    ".globl cnative_leave_legacy\n"
    ".type cnative_leave_legacy, @function\n"
    "cnative_leave_legacy:\n"
    "  xor eax, eax\n"
    "  mov ds, eax\n"
    "  mov es, eax\n"
    "  mov fs, eax\n"
    "  mov gs, eax\n"
    "  jmp cnative_leave\n"
    ".globl cnative_leave\n"
    ".type cnative_leave, @function\n"
    "cnative_leave:\n"
    "  mov rax, [rip + cnative_host_fs]\n"
    "  wrfsbase rax\n"
    "  mov rax, [rip + cnative_host_gs]\n"
    "  wrgsbase rax\n"
    "  cld\n"
    "  fninit\n"
    "  vzeroupper\n"
    "  push 0x1f80\n"
    "  ldmxcsr [rsp]\n"
    "  add rsp, 8\n"
    "  pop r15; pop r14; pop r13; pop r12; pop rbx; pop rbp\n"
    "  ret\n"
    ".att_syntax\n");

static const int signals[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP};
enum { SIGNALS = sizeof signals / sizeof signals[0] };
static struct sigaction previous[SIGNALS];
static int installed;

// gettid() without errno, which is thread-local.
static inline long thread(void) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(186) : "rcx", "r11", "memory");
  return result;
}

static void capture(cnative_state *state, ucontext_t *context, uint64_t fs, uint64_t gs) {
  static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  greg_t *registers = context->uc_mcontext.gregs;
  for (int i = 0; i < 16; i++) state->gpr[i] = (uint64_t)registers[order[i]];
  state->rflags = (uint64_t)registers[REG_EFL];
  state->rip = (uint64_t)registers[REG_RIP];
  state->fs_base = fs;
  state->gs_base = gs;
  state->vector = (uint64_t)registers[REG_TRAPNO];
  state->error_code = (uint64_t)registers[REG_ERR];
  state->cr2 = (uint64_t)registers[REG_CR2];
  const uint8_t *image = (const uint8_t *)context->uc_mcontext.fpregs;
  for (int i = 0; i < CNATIVE_XSAVE_BYTES; i++) state->xsave[i] = image[i];
}

// The handler runs with the selectors of the code that was interrupted, but for CS and SS.
static void capture_segments(cnative_state *state, ucontext_t *context) {
  const uint64_t packed = (uint64_t)context->uc_mcontext.gregs[REG_CSGSFS];
  uint32_t value;
#define SELECTOR(number, name)                        \
  __asm__ volatile("mov %%" name ", %0" : "=r"(value)); \
  state->segments[number] = value & 0xffff
  SELECTOR(0, "es");
  state->segments[1] = packed & 0xffff;
  state->segments[2] = packed >> 48;
  SELECTOR(3, "ds");
  SELECTOR(4, "fs");
  SELECTOR(5, "gs");
#undef SELECTOR
}

// The guest's FS base is in force: nothing here may use thread-local storage (the stack protector included) before
// it is restored.
__attribute__((no_stack_protector)) static void handle(int signal, siginfo_t *info, void *context) {
  uint64_t fs, gs;
  __asm__ volatile("rdfsbase %0" : "=r"(fs));
  __asm__ volatile("rdgsbase %0" : "=r"(gs));
  cnative_state *state = cnative_current;
  if (state && thread() == cnative_thread) {
    __asm__ volatile("wrfsbase %0" ::"r"(cnative_host_fs));
    __asm__ volatile("wrgsbase %0" ::"r"(cnative_host_gs));
    capture(state, context, fs, gs);
    if (cnative_is_legacy) capture_segments(state, context);
    cnative_current = 0;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    registers[REG_RIP] = (greg_t)cnative_leave;
    if (cnative_is_legacy) {
      // CS and SS of 64-bit mode; DS, ES, FS and GS are loaded by the code gone to.
      registers[REG_RIP] = (greg_t)cnative_leave_legacy;
      registers[REG_CSGSFS] = (greg_t)(((uint64_t)registers[REG_CSGSFS] & 0xffffffff0000) | (uint64_t)0x2b << 48 | 0x33);
    }
    registers[REG_RSP] = (greg_t)cnative_host_rsp;
    registers[REG_EFL] = 0x202;
    return;
  }
  for (unsigned i = 0; i < SIGNALS; i++) {
    if (signals[i] != signal) continue;
    if (previous[i].sa_flags & SA_SIGINFO) {
      previous[i].sa_sigaction(signal, info, context);
    } else if (previous[i].sa_handler != SIG_DFL && previous[i].sa_handler != SIG_IGN) {
      previous[i].sa_handler(signal);
    } else {
      struct sigaction standard = {.sa_handler = SIG_DFL};
      sigaction(signal, &standard, 0);
    }
  }
}

int cnative_prepare(void) {
  if (installed) return 0;
  installed = 1;
  for (unsigned i = 0; i < SIGNALS; i++) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(signals[i], 0, &previous[i]) || sigaction(signals[i], &action, 0)) return errno;
  }
  return 0;
}

int cnative_can_run(void) { return (getauxval(AT_HWCAP2) & 2) != 0; }

void cnative_run_legacy(cnative_state *state) {
  cnative_thread = thread();
  cnative_is_legacy = 1;
  cnative_current = state;
  cnative_enter_legacy(state);
}

int cnative_set_segment(unsigned entry, uint32_t base, uint32_t limit, int kind, int is32, int pages, int rights) {
  struct user_desc description = {
      .entry_number = entry,
      .base_addr = base,
      .limit = limit,
      .seg_32bit = is32 != 0,
      .contents = (unsigned)kind,
      .limit_in_pages = pages != 0,
      .read_exec_only = rights & 1,
      .seg_not_present = rights >> 1 & 1,
      .useable = 1,
  };
  return syscall(SYS_modify_ldt, 0x11, &description, sizeof description) ? errno : 0;
}

int cnative_can_run_legacy(void) {
  // LAR tells whether the kernel's 32-bit user code segment is there.
  uint32_t rights = 0;
  uint8_t valid;
  __asm__("lar %2, %0\n\tsetz %1" : "+r"(rights), "=q"(valid) : "r"(0x23) : "cc");
  if (!valid) return ENOEXEC;
  return cnative_set_segment(0, 0, 0, 0, 1, 0, 0);
}

void cnative_run(cnative_state *state) {
  cnative_is_legacy = 0;
  cnative_thread = thread();
  cnative_current = state;
  cnative_enter(state);
}

int cnative_map(uint64_t address, uint64_t size, int executable) {
  int access = PROT_READ | PROT_WRITE | (executable ? PROT_EXEC : 0);
  void *wanted = (void *)address;
  void *result = mmap(wanted, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (result == MAP_FAILED) return errno;
  if (result != wanted) {
    munmap(result, size);
    return EEXIST;
  }
  return 0;
}

int cnative_protect_read_only(uint64_t address, uint64_t size) {
  return mprotect((void *)address, size, PROT_READ) ? errno : 0;
}
