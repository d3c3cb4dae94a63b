// SPDX-License-Identifier: Apache-2.0
// Guests of 16 and 32 bits, and the ways between the modes.
#include "guest.h"

        .code16
// Real mode, loaded at 10000, CS 1000. Results in AX and at 2000:0.
        GUEST   real_strings
        mov     ax, 0x2000
        mov     es, ax
        mov     ax, cs
        mov     ds, ax
        .byte   0xbe            // MOV SI, 1f
        .word   1f - guest_real_strings
        xor     di, di
        mov     cx, 5
        cld
        rep movsb
        mov     al, 'l'
        xor     di, di
        mov     cx, 5
        repne scasb
        mov     ax, di
        hlt
1:      .ascii  "hello"
        END     real_strings

        GUEST   real_far
        .byte   0xea            // JMP 0FFF:(1f + 16)
        .word   1f - guest_real_far + 16, 0x0FFF
        hlt
1:      mov     ax, cs
        push    ax
        .byte   0x9a            // CALL 1000:2f
        .word   2f - guest_real_far, 0x1000
        pop     bx
        hlt
2:      mov     cx, cs
        retf
        END     real_far

// INT 21 through the vector table at 0; the handler at 1000:1f adds.
        GUEST   real_int
        xor     ax, ax
        mov     ds, ax
        .byte   0xc7, 0x06      // MOV [84], 1f
        .word   0x84, 1f - guest_real_int
        mov     word ptr [0x86], 0x1000
        mov     ax, 5
        stc
        int     0x21
        jc      2f
        xor     ax, ax
2:      hlt
1:      add     ax, 37
        iret
        END     real_int

// The word at FFFF wraps? No: it is #GP, vector 13. Byte accesses at FFFF are fine, IP and SI wrap.
        GUEST   real_wrap
        mov     ax, 0x3000
        mov     ds, ax
        mov     es, ax
        mov     byte ptr [0xffff], 0x5a
        mov     byte ptr [0], 0xa5
        mov     si, 0xffff
        lodsb
        mov     bl, al
        lodsb
        mov     bh, al
        mov     cx, si
        hlt
        END     real_wrap

        GUEST   real_limit
        mov     ax, [0xffff]
        hlt
        END     real_limit

// From real to protected to 64-bit mode, as a trampoline does: GDTR is loaded, CR3 in EBX, result in RAX.
        GUEST   real_to_long
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0x66, 0xea
        .long   AT(real_to_long, 1f)
        .word   8
        .code32
1:      mov     eax, 0x18
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, 0x80000
        mov     eax, cr4
        or      eax, 0x20
        mov     cr4, eax
        mov     cr3, ebx
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        .byte   0xea
        .long   AT(real_to_long, 2f)
        .word   0x10
        .code64
2:      mov     rax, 0x123456789ABCDEF0
        push    rax
        pop     rcx
        hlt
        END     real_to_long

// And back: 64-bit to compatibility, paging off, protected, 16-bit protected, real. GDT selectors 8 (32), 50 (16).
        GUEST   long_to_real
        .code64
        push    8
        lea     rax, [rip + 1f]
        push    rax
        .byte   0x48
        retf
        .code32
1:      mov     eax, cr0
        and     eax, 0x7fffffff
        mov     cr0, eax
        mov     ecx, 0xC0000080
        rdmsr
        and     eax, ~0x100
        wrmsr
        .byte   0xea
        .long   2f - guest_long_to_real
        .word   0x90
        .code16
2:      mov     ax, 0x58
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     eax, cr0
        and     al, 0xfe
        mov     cr0, eax
        .byte   0xea
        .word   3f - guest_long_to_real, 0x1000
3:      mov     ax, 0x2000
        mov     ds, ax
        mov     word ptr [0], 0xBEEF
        mov     ax, [0]
        hlt
        END     long_to_real

        .code32
// 32-bit code with flat segments: loops, calls, strings, 16-bit operands, address wrap.
        GUEST   flat32
        xor     eax, eax
        mov     ecx, 1000
1:      call    2f
        loop    1b
        push    eax
        mov     ebx, 0xfffffff0
        mov     dword ptr [0x20000], 0x77
        add     eax, [ebx + 0x20010]
        pusha
        popa
        inc     eax
        dec     cx
        pop     edx
        mov     esi, 0x20000
        mov     edi, 0x21000
        mov     ecx, 64
        rep movsd
        daa
        hlt
2:      add     eax, ecx
        ret
        END     flat32

        GUEST   bound32
        mov     eax, 11
        MARK    bound32.at
        bound   eax, [0x20000]
        hlt
        END     bound32

        GUEST   into32
        mov     al, 0x7f
        add     al, 1
        into
        MARK    into32.after
        hlt
        END     into32

// Segments: DS = 68 (256 bytes at 20000), ES = 60 (expand-down above FFF), FS with a base.
        GUEST   segments32
        mov     eax, 0x68
        mov     ds, eax
        mov     dword ptr [0xfc], 0x11223344
        mov     eax, 0x60
        mov     es, eax
        mov     ebx, es:[0x200fc]
        mov     eax, 0x68
        mov     fs, eax
        mov     ecx, fs:[0xfc]
        mov     gs, eax
        lock inc dword ptr gs:[0xfc]
        mov     edx, gs:[0xfc]
        hlt
        END     segments32

        GUEST   limit32
        mov     eax, 0x68
        mov     ds, eax
        MARK    limit32.at
        mov     eax, [0xfd]
        hlt
        END     limit32

        GUEST   expand32
        mov     eax, 0x60
        mov     es, eax
        MARK    expand32.at
        mov     eax, es:[0xffc]
        hlt
        END     expand32

// Compatibility mode: SYSCALL-free; int 0x80 to the 64-bit kernel.
        GUEST   compatibility
        mov     eax, 0xffffffff
        add     eax, 1
        adc     ecx, 0
        mov     ebx, 0xffffffff
        mov     edx, [ebx + 0x20001]
        push    edx
        pop     esi
        int     0x80
        MARK    compatibility.after
        nop
        END     compatibility
