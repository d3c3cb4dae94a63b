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
