// SPDX-License-Identifier: Apache-2.0
// A small 32-bit kernel and its program: everything that a 32-bit Linux executes at every system call, fault and switch.
#include "guest.h"

        .code32
// Selectors: code 8, data 18, user code 23, user data 2B, 68 a small segment at 20000. SYSENTER goes to kernel32.sysenter,
// vector 80 to .syscall, 14 to .fault, 81 to .finish. [20020] is the address of page 60's entry, and 61's follows it by
// [20024]; both are not present. Results: EBX sum of the system calls' numbers, EDI number of SYSENTERs, ESI sum of the
// error codes.
        GUEST   kernel32
        xor     ebx, ebx
        xor     edi, edi
        mov     eax, 0x68
        mov     fs, eax
        push    fs
        pop     gs
        mov     dword ptr gs:[0x40], 0x12345678
        mov     eax, fs:[0x40]
        mov     [0x20060], eax
        xor     eax, eax
        mov     fs, eax
        mov     word ptr [0x20064], 0x2b
        mov     es, word ptr [0x20064]
        push    es
        pop     ds
        mov     [0x20066], ds
        pushfd
        or      dword ptr [esp], 0x40001
        and     dword ptr [esp], ~0x40000
        popfd
        setc    byte ptr [0x20068]
        mov     dword ptr [0x2006c], 0
        mov     eax, [0x61000]          // a fault of the kernel's own
        mov     eax, cr3
        mov     cr3, eax
        push    0x2b
        push    0x70000
        push    0x202
        push    0x23
        .byte   0x68            // PUSH 1f
        .long   AT(kernel32, 1f)
        iretd
1:      mov     ebp, 100
2:      mov     eax, ebp
        int     0x80
        .byte   0xba            // MOV EDX, 3f
        .long   AT(kernel32, 3f)
        mov     ecx, esp
        sysenter
3:      pushfd
        pop     eax
        dec     ebp
        jnz     2b
        mov     [0x60000], eax          // a fault of the program's
        mov     eax, [0x60000]
        int     0x81

        MARK    kernel32.syscall
        push    ds
        push    es
        push    fs
        mov     ecx, 0x18
        mov     ds, ecx
        mov     es, ecx
        add     ebx, eax
        pop     fs
        pop     es
        pop     ds
        iretd

        MARK    kernel32.sysenter
        inc     edi
        sti
        sysexit

        MARK    kernel32.fault
        push    eax
        push    ecx
        mov     eax, [esp + 8]
        add     [0x2006c], eax
        mov     eax, cr2
        mov     ecx, [0x20020]
        test    eax, 0x1000
        jz      1f
        add     ecx, [0x20024]
1:      or      dword ptr [ecx], 1
        invlpg  [eax]
        mov     ecx, cr3
        mov     cr3, ecx
        pop     ecx
        pop     eax
        add     esp, 4
        iretd

        MARK    kernel32.finish
        mov     esi, [0x2006c]
        hlt
        END     kernel32

        // Something at ESP first, of several kinds; then accesses that share a check, and a segment load.
.macro UPPER name, first, second
        GUEST   upper_\name
        \first
        \second
        mov     ecx, [esp + 4]
        push    ecx
        pop     edx
        mov     es, [esp]
        hlt
        END     upper_\name
.endm
        .code32
        UPPER   es, "mov es, [esp]"
        UPPER   movzx, "movzx ebx, byte ptr [esp]"
        UPPER   push_pop, "push dword ptr [esp]", "pop ebx"
        UPPER   fstp, "fstp dword ptr [esp]"
        UPPER   high_byte, "mov [esp + 8], ah"
        UPPER   pop_gs, ".byte 0x0f, 0xa9", "push eax"  // pop gs of 32 bits
        UPPER   add, "add dword ptr [esp], 0"
        UPPER   push_esi, "push eax", "pop esi"
