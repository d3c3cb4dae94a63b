// SPDX-License-Identifier: Apache-2.0
// Guests that change code: their own next instruction, code run before, code through an alias. Each ends with HLT and a
// result in EAX.
#include "guest.h"

        .code64
// The store changes the immediate of the very next instruction.
        GUEST   smc_next
        lea     rbx, [rip + 1f]
        mov     byte ptr [rbx + 1], 42
1:      mov     eax, 7
        hlt
        END     smc_next

// The same with every kind of store; RDX says how far the immediate is. A chain of patches in one block.
        GUEST   smc_chain
        lea     rbx, [rip + 1f]
        mov     edx, 100
        mov     [rbx + 1], edx
        nop
1:      mov     eax, 1
        lea     rbx, [rip + 2f]
        lock add dword ptr [rbx + 1], 5
2:      mov     ecx, 1
        add     eax, ecx
        lea     rbx, [rip + 3f]
        movd    xmm0, eax
        movd    [rbx + 1], xmm0
3:      mov     esi, 1
        lea     rbx, [rip + 4f]
        mov     rdi, rbx
        inc     rdi
        mov     eax, 0x99
        stosb
4:      mov     eax, 1
        add     eax, esi
        lea     rdi, [rip + 5f + 1]
        lea     r8, [rip + 6f]
        xchg    rsi, r8
        mov     ecx, 4
        rep movsb
5:      mov     edx, 1
        add     eax, edx
        mov     r9, rsp
        lea     rsp, [rip + 7f + 3]
        .byte   0x66, 0x6a, 0x11
        mov     rsp, r9
7:      mov     ebp, 1
        add     eax, ebp
        lea     rbx, [rip + 9f + 1]
        cmpxchg [rbx], rcx
        bts     qword ptr [rbx], 4
9:      mov     ecx, 1
        hlt
6:      .long   0x1000
        END     smc_chain

// A function that is patched after it has run 100 times; EAX counts.
        GUEST   smc_executed
        xor     eax, eax
        mov     ecx, 100
1:      call    2f
        dec     ecx
        jnz     1b
        lea     rbx, [rip + 2f]
        mov     byte ptr [rbx + 2], 3
        mov     ecx, 100
3:      call    2f
        dec     ecx
        jnz     3b
        hlt
        .balign 64
2:      add     eax, 1
        ret
        END     smc_executed

// A loop that patches the loop body in each turn: EAX = 0 + 1 + ... + 199.
        GUEST   smc_loop
        xor     eax, eax
        xor     ecx, ecx
        lea     rbx, [rip + 1f]
2:      mov     [rbx + 1], cl
1:      mov     edx, 0
        add     eax, edx
        inc     ecx
        cmp     ecx, 200
        jne     2b
        hlt
        END     smc_loop

// Code in this page, hot data in the same page but another 64 bytes: a million stores.
        GUEST   smc_mixed
        mov     ecx, 1000000
        lea     rbx, [rip + 2f]
1:      add     dword ptr [rbx], 1
        dec     ecx
        jnz     1b
        mov     eax, [rbx]
        hlt
        .balign 128
2:      .long   0
        END     smc_mixed

// The same with the data in the same 64 bytes as the code.
        GUEST   smc_near
        jmp     1f
        .balign 8
2:      .long   0
1:      mov     ecx, 20000
        lea     rbx, [rip + 2b]
3:      add     dword ptr [rbx], 1
        dec     ecx
        jnz     3b
        mov     eax, [rbx]
        hlt
        END     smc_near

// RBX: where the code at 30000 is mapped too. Calls it, patches it through the alias, calls it again.
        GUEST   smc_alias
        xor     eax, eax
        mov     rsi, 0x30000
        call    rsi
        mov     byte ptr [rbx + 1], 2
        call    rsi
        hlt
        END     smc_alias

        GUEST   smc_callee
        add     al, 1
        ret
        END     smc_callee

// At an address so that MOV EAX, imm32 crosses into the next page; RBX: which byte to change, DL: to what.
        GUEST   smc_crossing
        mov     eax, 0x01010101
        ret
        END     smc_crossing
        GUEST   smc_crossing_main
        call    rsi
        mov     edi, eax
        mov     [rbx], dl
        call    rsi
        hlt
        END     smc_crossing_main

// The successor's bytes change so that the carry becomes live: CMC-less ADD EAX,EAX is replaced by ADC.
        GUEST   smc_live
        mov     ecx, 3
4:      xor     eax, eax
        mov     edx, -1
        add     edx, 1
        jmp     1f
        .balign 64
1:      add     eax, eax
        dec     ecx
        js      3f
        lea     rbx, [rip + 1b]
        mov     byte ptr [rbx], 0x11
        jmp     4b
3:      hlt
        END     smc_live

// Two tables map the linear page 40000 to different code; RSI and RDI are the CR3 values. EAX: 1, 2, 1, 2 shifted in.
        GUEST   smc_remap
        xor     eax, eax
        mov     ecx, 2
        mov     rbx, 0x40000
1:      mov     cr3, rsi
        call    rbx
        mov     cr3, rdi
        call    rbx
        dec     ecx
        jnz     1b
        hlt
        END     smc_remap
        GUEST   smc_one
        shl     eax, 4
        or      eax, 1
        ret
        END     smc_one
        GUEST   smc_two
        shl     eax, 4
        or      eax, 2
        ret
        END     smc_two

        // Calls what is at 0x40000.
        GUEST   smc_call
        xor     eax, eax
        call    guest_smc_call + (0x40000 - ORG)
        hlt
        END     smc_call

// The page entry at RDI is replaced by RSI between two calls, with INVLPG.
        GUEST   smc_invlpg
        xor     eax, eax
        mov     rbx, 0x40000
        call    rbx
        mov     [rdi], rsi
        invlpg  [rbx]
        call    rbx
        hlt
        END     smc_invlpg

// Fills a page that was executed with REP STOS, then with code by REP MOVS.
        GUEST   smc_rep
        xor     eax, eax
        mov     rbx, 0x40000
        call    rbx
        mov     edi, 0x40000
        mov     ecx, 4096
        push    rax
        mov     al, 0xF4
        rep stosb
        pop     rax
        mov     edi, 0x40000
        mov     esi, 0x41000
        mov     ecx, 7
        rep movsb
        call    rbx
        hlt
        END     smc_rep
