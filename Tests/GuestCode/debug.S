// SPDX-License-Identifier: Apache-2.0
// Guests that are single-stepped; the comments give the offset behind each instruction.
#include "guest.h"

        .code64
        GUEST   step_plain
        inc     eax                             // 2
        push    rax
        pop     rcx
        .byte   0x90                            // 5
        jmp     1f                              // at 7
1:      mov     rbx, rsp                        // 10
        add     rbx, 0                          // ... 14
        hlt
        END     step_plain

        GUEST   step_rep
        mov     ecx, 3                          // 5
        rep stosb                               // 7
        nop
        cli
        hlt
        END     step_rep

        GUEST   step_mov_ss
        mov     ss, eax                         // 2
        nop                                     // 3
        nop                                     // 4
        cli
        hlt
        END     step_mov_ss

        GUEST   step_popf
        push    2                               // 2
        nop
        nop
        nop                                     // 5
        popfq                                   // 6
        nop
        hlt
        END     step_popf

        GUEST   step_begin
        push    0x102                           // 5
        popfq                                   // 6
        nop                                     // 7
        nop
        hlt
        END     step_begin

        GUEST   x87_zero
        fld1
        fldz
        fdivp
        MARK    x87_zero.at
        fld1
        hlt
        END     x87_zero

        // Handlers: count an exception in [0x30000 + vector * 4] and go back.
.macro COUNT name, vector, last:vararg
        GUEST   count_\name
        inc     dword ptr [0x30000 + \vector * 4]
        \last
        END     count_\name
.endm
        COUNT   db, 1, iretq
        COUNT   bp, 3, iretq
        COUNT   ud, 6, hlt
        COUNT   int80, 0x80, iretq

        // #DB as a fault: the instruction it goes back to is let through, by RF.
        GUEST   count_db_fault
        inc     dword ptr [0x30000 + 1 * 4]
        or      byte ptr [rsp + 16 + 2], 1
        iretq
        END     count_db_fault

        GUEST   trap_string
        mov     ecx, 5
        mov     esi, ORG
        mov     edi, 0x40000
        rep movsb
        ud2                                     // a stepped HLT does not wait
        END     trap_string

        GUEST   trap_interrupts
        nop
        int3
        int     0x80
        nop
        ud2
        END     trap_interrupts

        GUEST   trap_syscall
        syscall
        hlt
        END     trap_syscall

        GUEST   trap_slow
        mov     eax, [0x4ffe]                   // across two pages
        mov     [ORG + 0x100], eax              // into a page of code
        ud2
        END     trap_slow

        GUEST   trap_data
        mov     [0x40000], eax
        push    rax
        mov     ecx, [0x40002]
        MARK    trap_data.nop
        nop
        nop
        hlt
        END     trap_data

        GUEST   handler_hlt_iretq
        hlt
        MARK    handler_hlt_iretq.iretq
        iretq
        END     handler_hlt_iretq

        GUEST   trap_sysret
        sysretq
        END     trap_sysret

        GUEST   nops
        nop
        nop
        hlt
        END     nops

        GUEST   nop_move
        nop
        mov     eax, 1
        hlt
        END     nop_move

        GUEST   execution
        nop
        nop
        MARK    execution.at
        inc     eax
        nop
        hlt
        END     execution

        // For a debugger: a loop, slow accesses, a string at RDI, and instructions that leave.
        GUEST   debugged
        mov     ecx, 3
        MARK    debugged.loop
1:      dec     ecx
        jnz     1b
        push    rcx
        mov     [0x20ffc], rax                  // across two pages
        pop     rdx
        lock inc dword ptr [0x20000]
        mov     ecx, 2
        MARK    debugged.string
        rep stosb
        out     0x80, al
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        hlt
        END     debugged

        GUEST   debugged_load
        mov     al, [0x20000]
        MARK    debugged_load.behind
        hlt
        END     debugged_load

        GUEST   debugged_rdmsr
        rdmsr
        hlt
        END     debugged_rdmsr

        GUEST   debugged_add
        add     [rbx], eax
        hlt
        END     debugged_add

        GUEST   debugged_move
        mov     al, 1
        hlt
        END     debugged_move

        // Accesses at RBX + 0x123456, which the tests of host faults look for.
        GUEST   soft_group
        push    rax
        mov     rax, [rbx + 0x123456]
        push    rax
        cmp     eax, ecx
        mov     [rbx + 0x123456 + 8], rax
        pop     rdx
        pushfq
        pop     rsi
        hlt
        END     soft_group

        GUEST   soft_high_byte
        mov     [rbx + 0x123456], ah
        hlt
        END     soft_high_byte

        GUEST   soft_load
        mov     rax, [rbx + 0x123456]
        hlt
        END     soft_load

        GUEST   halt
        hlt
        END     halt

        GUEST   undefined
        ud2
        END     undefined

        GUEST   iretq
        iretq
        END     iretq

        GUEST   spin
        nop
1:      jmp     1b
        END     spin
