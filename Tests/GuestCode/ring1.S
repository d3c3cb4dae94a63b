// SPDX-License-Identifier: Apache-2.0
// A kernel of level 1 whose page tables and traps are somebody else's: the test's, as they are lguest's.
#include "guest.h"

        .code32
// Page 60 comes and goes. EAX what a load found after it came, EBX the sum of a loop's loads before the page was changed
// for another, ECX the same after that, EDX what the stack's page holds there.
        GUEST   ring1
        mov     eax, [0x60000]
        MARK    ring1.came
        inc     eax
        mov     [0x60004], eax
        mov     esi, 2
1:      mov     edi, 1000
        xor     ebx, ebx
2:      add     ebx, [0x60000]
        push    ebx
        pop     ebx
        dec     edi
        jnz     2b
        dec     esi
        jnz     1b
        int     0x1f
        MARK    ring1.changed
        mov     edi, 1000
        xor     ecx, ecx
3:      add     ecx, [0x60000]
        dec     edi
        jnz     3b
        mov     edx, [esp]
        int3
        MARK    ring1.clears
        cli
        MARK    ring1.writes
        mov     byte ptr [0x61000], 1
        MARK    ring1.leaves
        hlt
        END     ring1
