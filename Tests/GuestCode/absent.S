// SPDX-License-Identifier: Apache-2.0
// Accesses to a page that has gone away, at RAX, each followed by UD2.
#include "guest.h"

        .code64
.macro ACCESS name, instruction:vararg
        GUEST   absent_\name
        \instruction
        MARK    absent_\name\().behind
        ud2
        END     absent_\name
.endm
        ACCESS  inc, inc qword ptr [rax]
        ACCESS  load, mov rbx, [rax]
        ACCESS  both_pages, movups [rax - 8], xmm0
        ACCESS  rep_movsb, rep movsb
        ACCESS  push, push qword ptr [rax]
        ACCESS  store, mov [rax], rbx

        // To be loaded where its third byte is on another page.
        GUEST   absent_code
        mov     ebx, 1
        MARK    absent_code.behind
        ud2
        END     absent_code
