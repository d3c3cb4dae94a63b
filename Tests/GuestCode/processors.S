// SPDX-License-Identifier: Apache-2.0
// Guests that two vCPUs execute at the same time. Each ends with HLT; RAX is 0 unless something went wrong.
#include "guest.h"

        .code64
// Counts at [RBX], RCX times, in three ways that are one operation each.
        GUEST   smp_count
        mov     eax, 1
1:      lock inc qword ptr [rbx]
        mov     edx, 2
        lock xadd [rbx], rdx
2:      mov     rax, [rbx]
        lea     rdx, [rax + 3]
        lock cmpxchg [rbx], rdx
        jne     2b
        dec     rcx
        jnz     1b
        xor     eax, eax
        hlt
        END     smp_count

// RDI = 0: saves x87 state to [RBX], RCX times, by FXSAVE64 or, if RSI is not 0, XSAVE64, and then says so at
// [RBX + 1024]. Else: all that the pointers of the image have been until then, in RAX.
        GUEST   smp_image
        test    edi, edi
        jnz     4f
1:      fninit
        fld1
        fld1
        faddp
        test    esi, esi
        jnz     2f
        fxsave64 [rbx]
        jmp     3f
2:      mov     eax, 7
        xor     edx, edx
        xsave64 [rbx]
3:      dec     rcx
        jnz     1b
        mov     dword ptr [rbx + 1024], 1
        xor     eax, eax
        hlt
4:      xor     eax, eax
5:      or      rax, [rbx + 8]
        or      rax, [rbx + 16]
        cmp     dword ptr [rbx + 1024], 0
        je      5b
        hlt
        END     smp_image

// A lock made of XCHG at [RBX]; what it guards, at [RSI], is counted RCX times with plain instructions.
        GUEST   smp_exchange
1:      mov     eax, 1
        xchg    [rbx], eax
        test    eax, eax
        jz      2f
        pause
        jmp     1b
2:      mov     rdx, [rsi]
        inc     rdx
        mov     [rsi], rdx
        mov     dword ptr [rbx], 0
        dec     rcx
        jnz     1b
        xor     eax, eax
        hlt
        END     smp_exchange

// Peterson's lock: RBX + 0 and + 64 say who wants it, RBX + 128 whose turn it is not; RDI is 0 or 1. Without store-load
// order as MFENCE gives it, counts at [RSI] are lost.
        GUEST   smp_peterson
        mov     r8d, edi
        shl     r8d, 6
        mov     r9d, r8d
        xor     r9d, 64
1:      mov     dword ptr [rbx + r8], 1
        mov     [rbx + 128], edi
        mfence
2:      cmp     dword ptr [rbx + r9], 0
        je      3f
        cmp     [rbx + 128], edi
        jne     3f
        pause
        jmp     2b
3:      mov     rdx, [rsi]
        inc     rdx
        mov     [rsi], rdx
        mov     dword ptr [rbx + r8], 0
        dec     rcx
        jnz     1b
        xor     eax, eax
        hlt
        END     smp_peterson

// Calls RDX, which returns a number, until that number is RCX, and says at [RSI + 64] what came back; what is published at
// [RSI] before a call must be in it.
        GUEST   smp_caller
1:      mov     r8d, [rsi]
        call    rdx
        mov     [rsi + 64], eax
        cmp     eax, r8d
        jb      2f
        cmp     eax, ecx
        jb      1b
        xor     eax, eax
        hlt
2:      mov     dword ptr [rsi + 64], -1
        mov     eax, 1
        hlt
        END     smp_caller

// Changes the number in the code at RDX + 1, publishes it at [RSI] and waits until it has come back: 1...RCX.
        GUEST   smp_patcher
        xor     eax, eax
1:      inc     eax
        mov     [rdx + 1], eax
        mov     [rsi], eax
2:      pause
        cmp     [rsi + 64], eax
        jb      2b
        cmp     eax, ecx
        jb      1b
        xor     eax, eax
        hlt
        END     smp_patcher

// The function that they share.
        GUEST   smp_function
        mov     eax, 0
        ret
        END     smp_function

// Writes functions that return 1...RCX into 16 pages from RDX on, in turn, publishes each at [RSI] and waits until it
// has been called ([RSI + 64]).
        GUEST   smp_writer
        xor     eax, eax
1:      inc     eax
        mov     r8d, eax
        and     r8d, 15
        shl     r8d, 12
        add     r8, rdx
        mov     byte ptr [r8], 0xB8
        mov     [r8 + 1], eax
        mov     byte ptr [r8 + 5], 0xC3
        mov     [rsi], eax
2:      pause
        cmp     [rsi + 64], eax
        jne     2b
        cmp     eax, ecx
        jb      1b
        xor     eax, eax
        hlt
        END     smp_writer

// Calls them.
        GUEST   smp_reader
        xor     r9d, r9d
1:      inc     r9d
2:      pause
        cmp     [rsi], r9d
        jne     2b
        mov     r8d, r9d
        and     r8d, 15
        shl     r8d, 12
        add     r8, rdx
        call    r8
        cmp     eax, r9d
        jne     3f
        mov     [rsi + 64], r9d
        cmp     r9d, ecx
        jb      1b
        xor     eax, eax
        hlt
3:      mov     [rsi + 64], r9d
        mov     eax, 1
        hlt
        END     smp_reader

