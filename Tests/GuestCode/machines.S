// SPDX-License-Identifier: Apache-2.0
// Guests of whole machines, in 64-bit code at 1 MiB as their ELF header says: a few instructions each.
#include "guest.h"

        .code64
#define COM1            0x3f8
#define COM1_STATUS     0x3fd
#define POWER           0x604           // PM1a control
#define POWER_OFF       0x3400
#define RESET           0xcf9
#define EXIT            0xf4            // the device of `--machine testdev`
#define APIC_BASE       0x1b
#define X2APIC_SPURIOUS 0x80f
#define X2APIC_EOI      0x80b
#define X2APIC_TIMER    0x832
#define TSC_DEADLINE    0x6e0

.macro POWEROFF
        mov     dx, POWER
        mov     ax, POWER_OFF
        out     dx, ax
        hlt
.endm

        // Prints "hi" and switches itself off.
        GUEST   machine_goodbye
        mov     dx, COM1
        mov     al, 'h'
        out     dx, al
        mov     al, 'i'
        out     dx, al
        mov     al, 10
        out     dx, al
        POWEROFF
        END     machine_goodbye

        // Resets through 0xCF9.
        GUEST   machine_reset
        mov     dx, RESET
        mov     al, 6
        out     dx, al
        hlt
        END     machine_reset

        // Resets as Linux does after a panic with `panic_warm`.
        GUEST   machine_warm_reset
        mov     word ptr [0x472], 0x1234
        mov     dx, RESET
        mov     al, 6
        out     dx, al
        hlt
        END     machine_warm_reset

        // An exception without an IDT.
        GUEST   machine_triple_fault
        push    0
        push    0
        lidt    [rsp]
        ud2
        END     machine_triple_fault

        // Halts with interrupts off, for ever.
        GUEST   machine_halt
        cli
1:      hlt
        jmp     1b
        END     machine_halt

        // Jumps to itself.
        GUEST   machine_spin
1:      jmp     1b
        END     machine_spin

        // Copies polled input to output until a q, then switches itself off.
        GUEST   machine_echo
1:      mov     dx, COM1_STATUS
        in      al, dx
        test    al, 1
        jz      1b
        mov     dx, COM1
        in      al, dx
        cmp     al, 'q'
        je      2f
        out     dx, al
        jmp     1b
2:      POWEROFF
        END     machine_echo

        // Asks for a port, an address and a hypercall that nobody has; 0x2A to 0xF4 if all answer as they should.
        GUEST   machine_oddities
        mov     al, 1
        out     0x80, al
        in      al, 0x81
        mov     ebx, 0xd0000000
        mov     eax, [rbx]
        cmp     eax, -1
        jne     1f
        mov     [rbx + 8], rax
        mov     eax, 77
        vmcall
        neg     eax
        cmp     eax, 1000                       // KVM_ENOSYS
        jne     1f
        mov     al, 0x2a
        out     EXIT, al
1:      mov     al, 1
        out     EXIT, al
        hlt
        END     machine_oddities

        // 300 halts, each ended by a TSC deadline up to a million ticks ahead; 0x42 to 0xF4, or 1 if one came early.
        GUEST   machine_deadlines
#define IDT     0x180000
#define VECTOR  0x30
        mov     rsp, 0x200000
        mov     rdi, IDT
        xor     eax, eax
        mov     ecx, 512
        rep stosq
        lea     rax, [rip + 4f]
        mov     rdi, IDT + VECTOR * 16
        mov     [rdi], ax
        mov     cx, cs
        mov     [rdi + 2], cx
        mov     word ptr [rdi + 4], 0x8e00
        shr     rax, 16
        mov     [rdi + 6], ax
        shr     rax, 16
        mov     [rdi + 8], eax
        lidt    [rip + 6f]
        mov     ecx, APIC_BASE
        rdmsr
        or      eax, 0xc00                      // enabled, x2APIC
        wrmsr
        mov     ecx, X2APIC_SPURIOUS
        mov     eax, 0x1ff
        xor     edx, edx
        wrmsr
        mov     ecx, X2APIC_TIMER
        mov     eax, 0x40000 | VECTOR           // by TSC deadline
        wrmsr
        mov     ebp, 300
        mov     ebx, 12345
1:      imul    ebx, ebx, 1103515245
        add     ebx, 12345
        mov     eax, ebx
        shr     eax, 12
        mov     r8d, eax
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        add     rax, r8
        mov     rsi, rax
        mov     rdx, rax
        shr     rdx, 32
        mov     ecx, TSC_DEADLINE
        wrmsr
        xor     r9d, r9d
2:      sti
        hlt
        cli
        test    r9d, r9d
        jz      2b
        dec     ebp
        jnz     1b
        mov     al, 0x42
        out     EXIT, al
3:      hlt
        jmp     3b
        // The handler.
4:      rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     rax, rsi
        jb      5f
        inc     r9d
        mov     ecx, X2APIC_EOI
        xor     eax, eax
        xor     edx, edx
        wrmsr
        iretq
5:      mov     al, 1
        out     EXIT, al
        hlt
        .balign 8
6:      .word   0xfff
        .quad   IDT
        END     machine_deadlines
