// SPDX-License-Identifier: Apache-2.0
// The world switch: into translated code and out of it, and the light ways out to the C helpers. Register
// convention of translated code (RegisterMap.swift is the same table for Swift):
//
//   RAX RCX RDX RBX RBP RSI RDI R8  the guest's own
//   R9, R10                         guest R12, R13
//   R12                             guest RSP
//   R11                             ENV, CHOST_ENV bytes into the vCPU page
//   R13 R14 R15                     T2, T1, T0: scratch
//   RSP                             the shadow stack of return addresses, 16-byte aligned
//
// Guest R9, R10, R11, R14, R15 live in the page.
#include "layout.h"

        .intel_syntax noprefix
        .text

.macro SAVE_CALLER_SAVED
        mov     [r11 + GPR(0)], rax
        mov     [r11 + GPR(1)], rcx
        mov     [r11 + GPR(2)], rdx
        mov     [r11 + GPR(6)], rsi
        mov     [r11 + GPR(7)], rdi
        mov     [r11 + GPR(8)], r8
        mov     [r11 + GPR(12)], r9
        mov     [r11 + GPR(13)], r10
.endm

.macro RESTORE_CALLER_SAVED
        mov     rax, [r11 + GPR(0)]
        mov     rcx, [r11 + GPR(1)]
        mov     rdx, [r11 + GPR(2)]
        mov     rsi, [r11 + GPR(6)]
        mov     rdi, [r11 + GPR(7)]
        mov     r8, [r11 + GPR(8)]
        mov     r9, [r11 + GPR(12)]
        mov     r10, [r11 + GPR(13)]
.endm

// RAX = 0 in supervisor mode, 1 in user mode: the number of the shadow stack in use.
.macro SHADOW_NUMBER
        mov     eax, [r11 + OFF_MODE]
        and     eax, 3
        cmp     eax, 3
        sete    al
        movzx   eax, al
.endm

// Helpers run on the host's stack, the frame of chost_enter below them. Destroys RAX.
.macro TO_HOST_STACK
        SHADOW_NUMBER
        mov     [r11 + OFF_SHADOW + rax * 8], rsp
        mov     rsp, [r11 + OFF_HOST_RSP]
        push    r11
        push    r11
.endm

// The helper may have changed the mode, and emptied a shadow stack. Its result moves to T1.
.macro TO_SHADOW_STACK
        pop     r11
        pop     r11
        mov     r14, rax
        SHADOW_NUMBER
        mov     rsp, [r11 + OFF_SHADOW + rax * 8]
.endm

// void chost_enter(chost_cpu *cpu, uint64_t host_pc)
        .globl  chost_enter
        .type   chost_enter, @function
chost_enter:
        push    rbp
        push    rbx
        push    r12
        push    r13
        push    r14
        push    r15
        sub     rsp, 8                          // translated code runs with an aligned stack
        lea     r11, [rdi + 128]
        mov     [r11 + OFF_HOST_RSP], rsp
        mov     r14, rsi
        cmp     dword ptr [r11 + OFF_USES_XSAVE], 0
        je      1f
        mov     eax, 7                          // x87, SSE, AVX
        xor     edx, edx
        xrstor64 [r11 + OFF_FPU]
        jmp     2f
1:      fxrstor64 [r11 + OFF_FPU]
2:      mov     rbx, [r11 + GPR(3)]
        mov     r12, [r11 + GPR(4)]
        mov     rbp, [r11 + GPR(5)]
        mov     r15, [r11 + OFF_LINEAR]         // T0: the linear address being entered
        SHADOW_NUMBER
        mov     rsp, [r11 + OFF_SHADOW + rax * 8]
        RESTORE_CALLER_SAVED
        jmp     r14
        .size   chost_enter, . - chost_enter

// The full exit. exit_info says why; every register of translated code is live, and so may be EFLAGS.
        .globl  chost_stub_exit
        .type   chost_stub_exit, @function
chost_stub_exit:
        mov     [r11 + GPR(0)], rax
        lahf
        seto    al
        movzx   eax, ax
        mov     [r11 + OFF_CAPTURED], rax
        test    dword ptr [r11 + OFF_EXIT_INFO], 0x8000
        jnz     1f
        mov     [r11 + OFF_FLAGS], rax
1:      mov     [r11 + GPR(1)], rcx
        mov     [r11 + GPR(2)], rdx
        mov     [r11 + GPR(3)], rbx
        mov     [r11 + GPR(4)], r12
        mov     [r11 + GPR(5)], rbp
        mov     [r11 + GPR(6)], rsi
        mov     [r11 + GPR(7)], rdi
        mov     [r11 + GPR(8)], r8
        mov     [r11 + GPR(12)], r9
        mov     [r11 + GPR(13)], r10
        cmp     dword ptr [r11 + OFF_USES_XSAVE], 0
        je      2f
        mov     eax, 7
        xor     edx, edx
        xsave64 [r11 + OFF_FPU]
        vzeroupper
        jmp     3f
2:      fxsave64 [r11 + OFF_FPU]
3:      cld
        fninit
        SHADOW_NUMBER
        mov     [r11 + OFF_SHADOW + rax * 8], rsp
        mov     rsp, [r11 + OFF_HOST_RSP]
        mov     dword ptr [rsp], 0x1f80
        ldmxcsr [rsp]
        add     rsp, 8
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbx
        pop     rbp
        ret
        .size   chost_stub_exit, . - chost_stub_exit

// A miss, reached by CALL: asks a helper (vCPU, T0, T1). Flags are dead or saved.
.macro ASK_HELPER helper
        pop     qword ptr [r11 + OFF_STUB_RETURN]
        SAVE_CALLER_SAVED
        TO_HOST_STACK
        lea     rdi, [r11 - 128]
        mov     rsi, r15
        mov     rdx, r14
        call    \helper
.endm

// Goes on behind the CALL, with T1 = what the helper has found.
.macro GO_ON
        TO_SHADOW_STACK
        RESTORE_CALLER_SAVED
        push    qword ptr [r11 + OFF_STUB_RETURN]
        ret
.endm

// A miss of the software TLB: T0 = linear address, T1 = exit information word. Returns with T1 = addend, or leaves.
        .type   stub_tlb_miss, @function
stub_tlb_miss:
        mov     [r11 + OFF_EXIT_INFO], r14d
        ASK_HELPER chost_tlb_fill
        test    rdx, rdx
        jnz     miss_refused
        GO_ON
miss_refused:                                   // perhaps a page fault that can be delivered at once
        mov     r11, [rsp]
        mov     [r11 + OFF_LINEAR], r15
        mov     [r11 + GPR(4)], r12
        lea     rdi, [r11 - 128]
        mov     rsi, r15
        mov     edx, [r11 + OFF_EXIT_INFO]
        call    chost_light_page_fault
        jmp     continue_light
        .size   stub_tlb_miss, . - stub_tlb_miss

// A miss of a slot: the same with T1 = what chost_slot_fill is asked. Returns with T1 = addend or, for a region, its host
// address.
        .type   stub_slot_miss, @function
stub_slot_miss:
        mov     [r11 + OFF_EXIT_INFO], r14d
        ASK_HELPER chost_slot_fill
        test    rdx, rdx
        jnz     miss_refused
        GO_ON
        .size   stub_slot_miss, . - stub_slot_miss

// A miss of a group's check: the same, but what cannot be served goes back five bytes further, over a JMP, and nothing
// faults: the accesses are then made one by one.
        .type   stub_group_miss, @function
stub_group_miss:
        ASK_HELPER chost_group_fill
        mov     r11, [rsp]
        lea     rdx, [rdx + rdx * 4]
        add     [r11 + OFF_STUB_RETURN], rdx
        GO_ON
        .size   stub_group_miss, . - stub_group_miss

// Looks up T0 = linear address of a target, and goes there. What follows it has found no block.
.macro LOOK_UP
        SAVE_CALLER_SAVED
        TO_HOST_STACK
        lea     rdi, [r11 - 128]
        mov     rsi, r15
        call    chost_lookup
        TO_SHADOW_STACK
        RESTORE_CALLER_SAVED
        test    r14, r14
        jz      1f
        jmp     r14
1:      mov     [r11 + OFF_LINEAR], r15
.endm

// A miss of the jump cache: T0 = linear address of the target. Reached by a jump; flags are saved.
        .type   stub_jump_miss, @function
stub_jump_miss:
        LOOK_UP
2:      mov     dword ptr [r11 + OFF_EXIT_INFO], EXIT_LOOKUP_INFO
        jmp     chost_stub_exit
        .size   stub_jump_miss, . - stub_jump_miss

// The same for a branch whose target may not be canonical: T1 = exit information word with which Swift then executes it.
// What follows this has such a target.
.macro LOOK_UP_BRANCH
        mov     [r11 + OFF_EXIT_INFO], r14d
        LOOK_UP
        mov     r14, r15
        shl     r14, 16
        sar     r14, 16
        cmp     r14, r15
        je      2b
.endm

        .type   stub_branch_miss, @function
stub_branch_miss:
        LOOK_UP_BRANCH
        jmp     chost_stub_exit
        .size   stub_branch_miss, . - stub_branch_miss

// The same for a CALL, which has pushed: reached by CALL, which completes the frame on the shadow stack.
        .type   stub_call_miss, @function
stub_call_miss:
        LOOK_UP_BRANCH
        lea     rsp, [rsp + 16]
        add     r12, 8
        jmp     chost_stub_exit
        .size   stub_call_miss, . - stub_call_miss

// Where the frame at the top of an empty shadow stack returns to, which nothing matches.
        .type   stub_underflow, @function
stub_underflow:
        lea     rsp, [rsp - 8]
        jmp     stub_jump_miss
        .size   stub_underflow, . - stub_underflow

// A string instruction: string_operation says which, T1 = exit information word (CHOST_EXIT_MEMORY). Reached by
// CALL; flags are saved, and current in the page afterwards.
        .type   stub_string, @function
stub_string:
        pop     qword ptr [r11 + OFF_STUB_RETURN]
        SAVE_CALLER_SAVED
        mov     [r11 + OFF_EXIT_INFO], r14d
        TO_HOST_STACK
        lea     rdi, [r11 - 128]
        mov     esi, [r11 + OFF_STRING_OPERATION]
        call    chost_string
        TO_SHADOW_STACK
        RESTORE_CALLER_SAVED
        test    r14d, r14d
        jnz     1f
        push    qword ptr [r11 + OFF_STUB_RETURN]
        ret
1:      cmp     r14d, 1
        je      chost_stub_exit
        and     dword ptr [r11 + OFF_EXIT_INFO], 0xffffff
        or      dword ptr [r11 + OFF_EXIT_INFO], EXIT_REPEAT_REASON
        jmp     chost_stub_exit
        .size   stub_string, . - stub_string

// A light system instruction: T0 = its number (CHOST_LIGHT_*), T1 = exit information word (CHOST_EXIT_INSTRUCTION, the
// instruction's length as size). Reached by CALL; flags are saved, and current in the page afterwards.
        .type   stub_light, @function
stub_light:
        pop     qword ptr [r11 + OFF_STUB_RETURN]
        SAVE_CALLER_SAVED
        mov     [r11 + GPR(4)], r12
        mov     [r11 + OFF_EXIT_INFO], r14d
        TO_HOST_STACK
        lea     rdi, [r11 - 128]
        mov     esi, r14d
        lea     r14, [rip + light_table]
        call    [r14 + r15 * 8]
continue_light:
        TO_SHADOW_STACK
        RESTORE_CALLER_SAVED
        mov     r12, [r11 + GPR(4)]
        cmp     r14, 2
        ja      1f
        je      2f
        test    r14, r14
        jz      3f
        push    qword ptr [r11 + OFF_STUB_RETURN]
        ret
1:      mov     r15, [r11 + OFF_LINEAR]
        jmp     r14
2:      mov     dword ptr [r11 + OFF_EXIT_INFO], EXIT_LOOKUP_INFO
3:      jmp     chost_stub_exit
        .size   stub_light, . - stub_light

        .section .data.rel.ro, "aw"
        .balign 8
light_table:
        .quad   chost_light_syscall, chost_light_sysret, chost_light_iret, chost_light_popf, chost_light_cr3
        .quad   chost_light_invlpg, chost_light_wrmsr, chost_light_sysenter, chost_light_sysexit, chost_light_int
        .quad   chost_light_segment, chost_light_hypercall
        .text

// void chost_set_stubs(chost_cpu *cpu)
        .globl  chost_set_stubs
        .type   chost_set_stubs, @function
chost_set_stubs:
        lea     rax, [rip + chost_stub_exit]
        mov     [rdi + OFF_EXIT_STUB + 128], rax
        lea     rax, [rip + stub_tlb_miss]
        mov     [rdi + OFF_STUB_TLB_MISS + 128], rax
        lea     rax, [rip + stub_slot_miss]
        mov     [rdi + OFF_STUB_SLOT_MISS + 128], rax
        lea     rax, [rip + stub_group_miss]
        mov     [rdi + OFF_STUB_GROUP_MISS + 128], rax
        lea     rax, [rip + stub_jump_miss]
        mov     [rdi + OFF_STUB_JUMP_MISS + 128], rax
        lea     rax, [rip + stub_branch_miss]
        mov     [rdi + OFF_STUB_BRANCH_MISS + 128], rax
        lea     rax, [rip + stub_call_miss]
        mov     [rdi + OFF_STUB_CALL_MISS + 128], rax
        lea     rax, [rip + stub_string]
        mov     [rdi + OFF_STUB_STRING + 128], rax
        lea     rax, [rip + stub_light]
        mov     [rdi + OFF_STUB_LIGHT + 128], rax
        lea     rax, [rip + stub_underflow]
        mov     [rdi + OFF_STUB_UNDERFLOW + 128], rax
        ret
        .size   chost_set_stubs, . - chost_set_stubs

        .section .note.GNU-stack, "", @progbits
