// SPDX-License-Identifier: Apache-2.0
// A guest that notices when it is moved badly. Each vCPU keeps two copies of a region, changes them the same way at
// different moments, compares them, and makes a hypercall; its clocks must never go back. It is loaded at 1 MiB and
// entered in 64-bit mode with the first 4 GiB mapped one to one; further vCPUs wait at ACPI's mailbox at 0xF0000.
#include "guest.h"

#define WORDS 65536

        .code64
        GUEST   moving
        lea     rsp, [rip + guest_moving + 0x80000]
        mov     ecx, 1
1:      cmp     ecx, [rip + moving_cpus]
        jae     3f
        lea     rax, [rip + moving_work]
        mov     dword ptr [0xF0004], ecx
        mov     qword ptr [0xF0008], rax
        mov     word ptr [0xF0000], 1
2:      pause
        cmp     word ptr [0xF0000], 0
        jne     2b
        inc     ecx
        jmp     1b
3:      xor     ebx, ebx

// EBX is the vCPU's number. RSI and RDI are its regions, RBP its kvmclock, R15 the rounds left, R14 the last TSC, R13 the
// last kvmclock, R12 its sum.
moving_work:
        mov     eax, ebx
        shl     eax, 12
        lea     rsp, [rip + guest_moving + 0x80000]
        sub     rsp, rax
        mov     esi, ebx
        shl     esi, 22
        add     esi, 16 << 20
        lea     edi, [rsi + (2 << 20)]
        mov     ebp, ebx
        shl     ebp, 6
        add     ebp, 0x190000
        mov     ecx, 0x4b564d01
        lea     eax, [rbp + 1]
        xor     edx, edx
        wrmsr
        xor     ecx, ecx
1:      lea     rax, [rcx + rbx]
        mov     [rsi + rcx * 8], rax
        mov     [rdi + rcx * 8], rax
        inc     ecx
        cmp     ecx, WORDS
        jb      1b
        mov     r15d, [rip + moving_rounds]
        xor     r14d, r14d
        xor     r13d, r13d
moving_round:
        mov     r10, rsi
        call    moving_change
        call    moving_time
        mov     r11, rbx                // RBX is the first argument
        mov     eax, 1000
        MARK    moving_call
        vmcall
        mov     rbx, r11
        cmp     rax, -1000
        mov     al, 7
        jne     moving_fail
        mov     r10, rdi
        call    moving_change
        call    moving_time
        xor     ecx, ecx
        xor     r12d, r12d
2:      mov     rax, [rsi + rcx * 8]
        cmp     rax, [rdi + rcx * 8]
        jne     moving_lost
        rol     r12, 1
        xor     r12, rax
        inc     ecx
        cmp     ecx, WORDS
        jb      2b
        test    ebx, ebx
        jnz     3f
        xor     eax, eax
        xor     ecx, ecx
        cpuid
        mov     al, bl                  // G or A: the vendor's first letter
        xor     ebx, ebx
        mov     dx, 0x3F8
        out     dx, al
3:      dec     r15
        jnz     moving_round
        lock xor [rip + moving_sum], r12
        movzx   eax, byte ptr [rbp + 29]
        lock or [rip + moving_flags], eax
        lock inc dword ptr [rip + moving_done]
        test    ebx, ebx
        jz      5f
4:      cli
        hlt
        jmp     4b
5:      pause
        mov     eax, [rip + moving_done]
        cmp     eax, [rip + moving_cpus]
        jne     5b
        // A line of sixteen digits: the sum; then the flags of kvmclock.
        mov     r8, [rip + moving_sum]
        mov     ecx, 16
        mov     dx, 0x3F8
        mov     al, 10
        out     dx, al
6:      rol     r8, 4
        mov     eax, r8d
        and     eax, 15
        add     al, '0'
        cmp     al, '9'
        jbe     7f
        add     al, 'a' - '0' - 10
7:      out     dx, al
        dec     ecx
        jnz     6b
        mov     al, 32
        out     dx, al
        mov     eax, [rip + moving_flags]
        and     al, 7
        add     al, '0'
        out     dx, al
        mov     al, 10
        out     dx, al
        mov     al, 0x2A
        out     0xF4, al
        hlt
moving_lost:
        mov     al, 5
moving_fail:
        out     0xF4, al
        hlt
        jmp     moving_fail

// Changes the region at R10.
moving_change:
        mov     r8, 6364136223846793005
        mov     r9, 1442695040888963407
        xor     ecx, ecx
1:      mov     rax, [r10 + rcx * 8]
        imul    rax, r8
        add     rax, r9
        mov     [r10 + rcx * 8], rax
        inc     ecx
        cmp     ecx, WORDS
        jb      1b
        ret

// Looks at both clocks.
moving_time:
        mov     r9d, [rbp]
        test    r9d, 1
        jnz     moving_time
        lfence
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        mov     r8, rax
        sub     rax, [rbp + 8]
        mov     cl, [rbp + 28]
        test    cl, cl
        js      1f
        shl     rax, cl
        jmp     2f
1:      neg     cl
        shr     rax, cl
2:      mov     ecx, [rbp + 24]
        mul     rcx
        shrd    rax, rdx, 32
        add     rax, [rbp + 16]
        lfence
        cmp     r9d, [rbp]
        jne     moving_time
        mov     ecx, eax
        cmp     r8, r14
        mov     r14, r8
        jb      3f
        cmp     rax, r13
        mov     r13, rax
        jb      4f
        ret
3:      mov     al, 3
        jmp     moving_fail
4:      mov     al, 9
        jmp     moving_fail

        .balign 8
        MARK    moving_parameters
moving_cpus:
        .long   1
moving_rounds:
        .long   100
moving_sum:
        .quad   0
moving_done:
        .long   0
moving_flags:
        .long   0
        END     moving
