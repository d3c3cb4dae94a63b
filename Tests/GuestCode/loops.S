// SPDX-License-Identifier: Apache-2.0
// Endless loops of every kind: a kick must end each within a millisecond.
#include "guest.h"

        .code64
        GUEST   loop_self
1:      jmp     1b
        END     loop_self

        GUEST   loop_indirect
        lea     rax, [rip + 1f]
1:      jmp     rax
        END     loop_indirect

        GUEST   loop_indirect_pair
        lea     rax, [rip + 1f]
        lea     rbx, [rip + 2f]
1:      jmp     rbx
2:      jmp     rax
        END     loop_indirect_pair

        GUEST   loop_call_ret
1:      call    2f
        call    3f
        jmp     1b
2:      ret
3:      call    2b
        ret
        END     loop_call_ret

// Recursion without an end: RSP is put back by each frame.
        GUEST   loop_recursion
1:      add     rsp, 8
        call    1b
        END     loop_recursion

        GUEST   loop_ret
        lea     rax, [rip + 1f]
1:      push    rax
        ret
        END     loop_ret

        GUEST   loop_rep_stos
        mov     rax, 0x55
1:      mov     edi, 0x100000
        mov     ecx, 0x800000
        rep stosb
        jmp     1b
        END     loop_rep_stos

        GUEST   loop_rep_scas
        mov     rax, 0x55
1:      mov     edi, 0x100000
        mov     ecx, 0x800000
        repne scasb
        jmp     1b
        END     loop_rep_scas

        GUEST   loop_loop
1:      mov     rcx, -1
2:      loop    2b
        jmp     1b
        END     loop_loop

        GUEST   loop_adc
1:      adc     rax, rbx
        adc     rcx, rdx
        jmp     1b
        END     loop_adc

        GUEST   loop_cli
        cli
1:      inc     rax
        jmp     1b
        END     loop_cli

        GUEST   loop_jcc
1:      inc     rax
        jnz     1b
        jz      1b
        END     loop_jcc

        GUEST   loop_pause
1:      pause
        jmp     1b
        END     loop_pause

        GUEST   loop_syscalls
        lea     rcx, [rip + 1f]
        mov     r11d, 2
1:      pushfq
        popfq
        jmp     1b
        END     loop_syscalls

        GUEST   loop_iret
1:      mov     rax, rsp
        push    0x18
        push    rax
        pushfq
        push    0x10
        lea     rbx, [rip + 1b]
        push    rbx
        iretq
        END     loop_iret

        GUEST   loop_faults
        ud2
        END     loop_faults

// Straight line of jumps, each to the next page and the last back to the first; loaded in every page.
        GUEST   loop_page
        jmp     guest_loop_page + 4096
        END     loop_page
        GUEST   loop_page_back
        jmp     guest_loop_page_back - 4096 * 15
        END     loop_page_back

// Conditional jumps between two pages.
        GUEST   loop_ping
        inc     rax
        jnz     guest_loop_ping + 4096
        jmp     guest_loop_ping + 4096
        END     loop_ping
        GUEST   loop_pong
        inc     rax
        jnz     guest_loop_pong - 4096
        jmp     guest_loop_pong - 4096
        END     loop_pong

// Interrupt shadows. 90 at [20000] if the handler of 0x20 saw HLT behind.
        GUEST   sti_hlt
        sti
        hlt
        MARK    sti_hlt.after
        cli
        hlt
        END     sti_hlt

        GUEST   sti_nops
        sti
        nop
        MARK    sti_nops.open
        nop
        nop
        hlt
        END     sti_nops

        GUEST   sti_sti
        sti
        sti
        MARK    sti_sti.open
        nop
        hlt
        END     sti_sti

        GUEST   mov_ss_shadow
        mov     ss, eax
        mov     rsp, rbx
        MARK    mov_ss_shadow.open
        nop
        hlt
        END     mov_ss_shadow

        GUEST   sti_cli
        sti
        cli
        nop
        hlt
        END     sti_cli

        GUEST   popf_opens
        push    0x202
        popfq
        MARK    popf_opens.open
        nop
        hlt
        END     popf_opens

        GUEST   iret_opens
        mov     rax, rsp
        push    0x18
        push    rax
        push    0x202
        push    0x10
        lea     rbx, [rip + 1f]
        push    rbx
        iretq
        nop
1:
        MARK    iret_opens.open
        nop
        hlt
        END     iret_opens

        GUEST   sysret_opens
        mov     rcx, 0x30000
        mov     r11d, 0x202
        sysretq
        END     sysret_opens

        GUEST   nmi_handler
        iretq
        END     nmi_handler

// Deep recursion and a stack switch out of it: RAX = 10000.
        GUEST   deep
        mov     rbp, rsp
        xor     eax, eax
        mov     ecx, 10000
        call    1f
        ud2
1:      inc     eax
        dec     ecx
        jz      2f
        call    1b
        ud2
2:      mov     rsp, rbp
        lea     rbx, [rip + 3f]
        push    rbx
        ret
3:      cmp     rsp, rbp
        jne     4f
        hlt
4:      ud2
        END     deep

// Recursion that does return: RAX = 0 + 1 + ... + 5000.
        GUEST   recursion
        mov     edi, 5000
        xor     eax, eax
        call    1f
        hlt
1:      test    edi, edi
        jz      2f
        push    rdi
        dec     edi
        call    1b
        pop     rdi
        add     eax, edi
2:      ret
        END     recursion

// Linux's retpoline thunk and RSB stuffing, 1000 times.
        GUEST   retpoline
        mov     ecx, 1000
        xor     edx, edx
        lea     rax, [rip + 2f]
1:      call    3f
        dec     ecx
        jnz     1b
        mov     eax, edx
        .rept   16
        call    6f
        int3
6:      call    7f
        int3
7:      add     rsp, 16
        .endr
        hlt
2:      inc     edx
        ret
        .balign 32
3:      call    4f
5:      pause
        lfence
        jmp     5b
4:      mov     [rsp], rax
        ret
        END     retpoline

// Computes over many small blocks: RAX must not depend on how often code is forgotten.
        GUEST   many_blocks
        xor     eax, eax
        xor     edx, edx
1:      mov     rbx, 0x100000
2:      call    rbx
        add     rbx, 64
        cmp     rbx, 0x140000
        jb      2b
        inc     edx
        cmp     edx, 3
        jb      1b
        hlt
        END     many_blocks
        GUEST   small_block
        add     rax, rbx
        ror     rax, 3
        test    al, 1
        jz      1f
        xor     rax, rdx
1:      ret
        END     small_block
