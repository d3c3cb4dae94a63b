// SPDX-License-Identifier: Apache-2.0
// Guests that make hypercalls.
#include "guest.h"

        .code64
        // Calls 1 and 2 have one answer each; the others are asked for.
        GUEST   call_constants
        mov     eax, 1
        vmcall
        mov     rbx, rax
        mov     eax, 2
        vmcall
        mov     ecx, 3
        vmmcall
        mov     eax, 5
        vmcall
        END     call_constants

        // What the guest itself reads of the instruction behind which it stands.
        GUEST   call_read
        vmmcall
        movzx   eax, byte ptr [rip + call_read_last]
        hlt
        .equ    call_read_last, guest_call_read + 2
        END     call_read

        GUEST   call_foreign
        vmmcall
        hlt
        END     call_foreign

        GUEST   call_foreign_twice
        vmmcall
        vmmcall
        hlt
        END     call_foreign_twice

        GUEST   call_shadow
        sti
        vmcall
        nop
        ud2
        END     call_shadow
