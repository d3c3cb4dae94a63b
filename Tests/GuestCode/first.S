// SPDX-License-Identifier: Apache-2.0
// The first things a guest must do: compute, touch memory, loop and call, move strings, ask a port.
#include "guest.h"

        .code64
        GUEST   first_sum
        mov     eax, 5
        add     eax, 7
        hlt
        END     first_sum

        GUEST   first_memory
        mov     rbx, 0x20000
        mov     r14, 0x1234
        mov     [rbx + 8], r14
        add     qword ptr [rbx + 8], 1
        push    qword ptr [rbx + 8]
        pop     r15
        lea     rcx, [rbx + r15 * 2 + 4]
        hlt
        END     first_memory

        GUEST   first_calls
        xor     eax, eax
        mov     ecx, 1000
1:      call    2f
        dec     ecx
        jnz     1b
        hlt
2:      add     eax, ecx
        ret
        END     first_calls

        GUEST   first_strings
        mov     esi, ORG
        mov     edi, 0x30000
        mov     ecx, 5
        rep movsb
        mov     dx, 0x3f8
        mov     al, [0x30001]
        out     dx, al
        hlt
        END     first_strings

        GUEST   first_device
        mov     eax, [0x20000000]
        hlt
        END     first_device

        // XRSTOR of everything from [RBX].
        GUEST   first_xrstor
        mov     eax, 7
        xor     edx, edx
        MARK    first_xrstor.at
        xrstor  [rbx]
        hlt
        END     first_xrstor

        GUEST   first_movsxd
        .byte   0x66, 0x63, 0x03                // movsxd ax, word ptr [rbx]
        .byte   0x66, 0x63, 0xcb                // movsxd cx, bx
        hlt
        END     first_movsxd

        // Loads and stores of floating-point state at RBX; MXCSR's are at RBX + 24.
.macro STATE name, instruction:vararg
        GUEST   state_\name
        \instruction
        hlt
        END     state_\name
.endm
        STATE   fxsave, fxsave [rbx]
        STATE   fxrstor, fxrstor [rbx]
        STATE   xsave, xsave [rbx]
        STATE   xrstor, xrstor [rbx]
        STATE   ldmxcsr, ldmxcsr [rbx + 24]
        STATE   stmxcsr, stmxcsr [rbx + 24]
        STATE   vldmxcsr, vldmxcsr [rbx + 24]
        STATE   vstmxcsr, vstmxcsr [rbx + 24]
        STATE   fldenv, fldenv [rbx]
