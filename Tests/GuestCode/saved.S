// SPDX-License-Identifier: Apache-2.0
// A guest that is worth saving: every device has been programmed and interrupts, KVM's registers are in use, and its
// program, which goes round for ever, uses x87, SSE and AVX state, FS and GS, system calls, ports and page faults. It runs
// in 64-bit user mode, in 32-bit user mode with PAE paging, or in real mode. Loaded at 1 MiB and entered in 64-bit mode
// with the first 4 GiB mapped one to one; further vCPUs wait at ACPI's mailbox at 0xF0000.
#include "guest.h"

#define HERE(label) (label - guest_saved + 0x100000)
#define IN16(label) (label - saved_16)

#define IDT 0x180000
#define IDT32 0x184000
#define TSS 0x190000
#define TSS32 0x198000
#define LDT 0x1A0000
#define PML4 0x200000
#define PDPT32 0x208000
#define SHARED 0x210000
#define STACKS 0x300000
#define USER_STACKS 0x400000
#define IMAGES 0x500000
#define COUNTER 0x520000
// Copies of what follows the code, for code that cannot say where it is.
#define MODE 0x521000
#define HAS_XSAVE 0x521004
#define HAS_AVX 0x521005
#define USER32 0x521008
#define RESUME32 0x52100C
#define BACK32 0x521010
#define IDTR32 0x521018
#define IDTR16 0x521020
#define KERNEL_GS 0x530000
#define USER_GS 0x540000
#define USER_FS 0x550000
#define ABSENT 0xE00000
#define APIC 0xFEE00000
#define IOAPIC 0xFEC00000

        .code64
        GUEST   saved
        mov     esp, STACKS
        lea     rsi, [rip + saved_mode]
        mov     edi, MODE
        mov     ecx, 0x28
        rep movsb
        call    saved_tables
        call    saved_devices
        mov     ecx, 1
1:      cmp     ecx, [rip + saved_cpus]
        jae     3f
        lea     rax, [rip + saved_work]
        mov     dword ptr [0xF0004], ecx
        mov     qword ptr [0xF0008], rax
        mov     word ptr [0xF0000], 1
2:      pause
        cmp     word ptr [0xF0000], 0
        jne     2b
        inc     ecx
        jmp     1b
3:      xor     ebx, ebx

// EBX is the vCPU's number.
saved_work:
        cli
        lgdt    [rip + saved_gdtr]
        lidt    [rip + saved_idtr]
        mov     eax, PML4
        mov     cr3, rax
        mov     ebp, ebx
        shl     ebp, 14
        mov     esp, STACKS - 0x2000
        sub     esp, ebp
        push    8
        lea     rax, [rip + 1f]
        push    rax
        retfq
1:      mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        xor     eax, eax
        mov     fs, eax
        mov     gs, eax
        lea     eax, [rbx + rbx]
        lea     eax, [rax * 8 + 0x70]
        ltr     ax
        mov     eax, 0xB0
        lldt    ax
        mov     rax, cr0
        or      eax, 0x10022            // WP NE MP
        and     eax, ~4
        mov     cr0, rax
        mov     eax, 1
        mov     edi, ebx
        cpuid
        mov     ebx, edi
        mov     rax, cr4
        or      eax, 0x10680            // FSGSBASE OSXMMEXCPT OSFXSR PGE
        bt      ecx, 26
        jnc     1f
        or      eax, 1 << 18
        mov     cr4, rax
        mov     byte ptr [HAS_XSAVE], 1
        mov     eax, 3
        bt      ecx, 28
        jnc     2f
        mov     eax, 7
        mov     byte ptr [HAS_AVX], 1
2:      xor     ecx, ecx
        xor     edx, edx
        xsetbv
        jmp     2f
1:      mov     cr4, rax
2:      mov     ecx, 0xC0000080         // EFER: SCE, NXE
        rdmsr
        or      eax, 0x801
        wrmsr
        call    saved_registers
        call    saved_paravirt
        cmp     dword ptr [MODE], 0
        jne     saved_leave
        // To level 3, with interrupts and IOPL 3.
        mov     eax, USER_STACKS
        sub     eax, ebp
        push    0x23
        push    rax
        push    0x3202
        push    0x2B
        lea     rax, [rip + saved_user]
        push    rax
        iretq

// Descriptor tables, page tables, TSSs.
saved_tables:
        mov     edi, IDT
        xor     ecx, ecx
1:      lea     rax, [rip + saved_interrupt]
        cmp     ecx, 32
        jae     2f
        lea     rax, [rip + saved_stop]
        cmp     ecx, 14
        jne     2f
        lea     rax, [rip + saved_fault]
2:      mov     [rdi], ax
        mov     word ptr [rdi + 2], 8
        mov     word ptr [rdi + 4], 0xEE00
        shr     eax, 16
        mov     [rdi + 6], ax
        mov     qword ptr [rdi + 8], 0
        add     edi, 16
        inc     ecx
        cmp     ecx, 256
        jb      1b
        mov     edi, IDT32
        xor     ecx, ecx
1:      lea     rax, [rip + saved_interrupt32]
        cmp     ecx, 32
        jae     2f
        lea     rax, [rip + saved_stop32]
        cmp     ecx, 14
        jne     2f
        lea     rax, [rip + saved_fault32]
2:      mov     [rdi], ax
        mov     word ptr [rdi + 2], 0x50
        mov     word ptr [rdi + 4], 0xEE00
        shr     eax, 16
        mov     [rdi + 6], ax
        add     edi, 8
        inc     ecx
        cmp     ecx, 256
        jb      1b
        mov     qword ptr [PML4], PML4 + 0x1007
        xor     ecx, ecx
1:      mov     eax, ecx
        shl     eax, 12
        lea     eax, [rax + PML4 + 0x2007]
        mov     [rcx * 8 + PML4 + 0x1000], rax
        and     eax, ~6                 // of PAE's these bits are reserved
        mov     [rcx * 8 + PDPT32], rax
        inc     ecx
        cmp     ecx, 4
        jb      1b
        xor     ecx, ecx
1:      mov     eax, ecx
        shl     rax, 21
        or      eax, 0x87
        mov     [rcx * 8 + PML4 + 0x2000], rax
        inc     ecx
        cmp     ecx, 2048
        jb      1b
        mov     qword ptr [PML4 + 0x2000 + (ABSENT >> 21) * 8], 0
        xor     ecx, ecx
1:      mov     eax, ecx
        shl     eax, 14
        mov     edx, STACKS
        sub     edx, eax
        mov     edi, ecx
        shl     edi, 8
        add     edi, TSS
        mov     [rdi + 4], rdx
        mov     word ptr [rdi + 0x66], 0x68
        lea     eax, [rcx + rcx]
        lea     rdx, [rip + saved_gdt + 0x70]
        lea     rdx, [rdx + rax * 8]
        mov     word ptr [rdx], 0x67
        mov     [rdx + 2], edi
        mov     byte ptr [rdx + 5], 0x89
        mov     word ptr [rdx + 6], 0
        mov     qword ptr [rdx + 8], 0
        inc     ecx
        cmp     ecx, 4
        jb      1b
        mov     dword ptr [TSS32 + 4], STACKS
        mov     dword ptr [TSS32 + 8], 0x58
        mov     word ptr [TSS32 + 0x66], 0x68
        lea     rsi, [rip + saved_16]
        mov     edi, 0x8000
        mov     ecx, [rip + saved_16_length]
        rep movsb
        ret

.macro PUT port, value
        mov     dx, \port
        mov     al, \value
        out     dx, al
.endm

.macro REDIRECT pin, value
        mov     dword ptr [rdi], 0x10 + 2 * \pin
        mov     dword ptr [rdi + 0x10], \value
.endm

// Every device is told something.
saved_devices:
        PUT     0x20, 0x11
        PUT     0x21, 0x20
        PUT     0x21, 0x04
        PUT     0x21, 0x01
        PUT     0x21, 0xFA              // IRQ 0 and the slave
        PUT     0xA0, 0x11
        PUT     0xA1, 0x28
        PUT     0xA1, 0x02
        PUT     0xA1, 0x03              // ends interrupts by itself
        PUT     0xA1, 0xFF
        PUT     0xA0, 0x0B
        PUT     0x4D1, 0x0C
        PUT     0x43, 0x34              // channel 0: a tick every 8 ms
        PUT     0x40, 0x10
        PUT     0x40, 0x27
        PUT     0x43, 0x57              // channel 1: low byte, square wave, BCD
        PUT     0x41, 0x99
        PUT     0x43, 0xB0              // channel 2: terminal count
        PUT     0x61, 0x03
        PUT     0x42, 0xFF
        PUT     0x42, 0xFF
        PUT     0x43, 0xC8              // count and status of channel 2 latched
        PUT     0x43, 0x80              // a count latched
        PUT     0x42, 0x12              // half a count
        PUT     0x70, 0x0A
        PUT     0x71, 0x2A              // 64 Hz
        PUT     0x70, 0x05
        PUT     0x71, 0xFF
        PUT     0x70, 0x0B
        PUT     0x71, 0x72              // periodic, alarm, update ended, 24 hours
        PUT     0x3FB, 0x80
        PUT     0x3F8, 0x03
        PUT     0x3FB, 0x03
        PUT     0x3FA, 0xC1
        PUT     0x3FC, 0x0B
        PUT     0x3F9, 0x0F
        PUT     0x3FF, 0x5A
        PUT     0x64, 0xD0
        PUT     0x602, 0x21
        PUT     0xE0, 0x77
        mov     eax, 0x80000008
        mov     dx, 0xCF8
        out     dx, eax
        mov     ax, 3
        mov     dx, 0x510
        out     dx, ax
        mov     edi, IOAPIC
        cmp     dword ptr [MODE], 2
        je      1f
        REDIRECT 2, 0x41
        REDIRECT 8, 0x43
        REDIRECT 4, 0x8042              // level-triggered
1:      mov     dword ptr [rdi], 0x12
        mov     edi, APIC
        mov     dword ptr [rdi + 0xD0], 0x01000000
        mov     dword ptr [rdi + 0x310], 0
        ret

.macro WRITE number, low, high=0
        mov     ecx, \number
        mov     eax, \low
        mov     edx, \high
        wrmsr
.endm

.macro WRITE_PLACE number, label
        mov     ecx, \number
        lea     rax, [rip + \label]
        xor     edx, edx
        wrmsr
.endm

// Registers of this vCPU: for system calls, FS and GS, breakpoints, and its APIC with a timer.
saved_registers:
        WRITE   0xC0000081, 0, 0x001B0008
        WRITE_PLACE 0xC0000082, saved_system_call
        WRITE_PLACE 0xC0000083, saved_stop
        WRITE   0xC0000084, 0x00040700
        WRITE   0x174, 0x50
        WRITE   0x175, STACKS
        WRITE_PLACE 0x176, saved_sysenter
        WRITE   0xC0000103, 0x1234
        WRITE   0x277, 0x00070406, 0x00070105
        mov     ecx, 0xC0000102
        lea     eax, [rbx + KERNEL_GS >> 8]
        shl     eax, 8
        mov     edx, STACKS
        sub     edx, ebp
        mov     [rax], rdx
        xor     edx, edx
        wrmsr
        mov     ecx, 0xC0000101
        lea     eax, [rbx + USER_GS >> 12]
        shl     eax, 12
        wrmsr
        mov     ecx, 0xC0000100
        lea     eax, [rbx + USER_FS >> 12]
        shl     eax, 12
        wrmsr
        mov     eax, ABSENT
        mov     dr0, rax
        mov     dr3, rax
        mov     edi, APIC
        mov     dword ptr [rdi + 0xF0], 0x1FF
        mov     dword ptr [rdi + 0x3E0], 0xB
        cmp     dword ptr [MODE], 2
        je      1f
        mov     dword ptr [rdi + 0x320], 0x20040
        mov     dword ptr [rdi + 0x380], 2000000
1:      ret

// kvmclock, steal time, end of interrupt, asynchronous page faults.
saved_paravirt:
        mov     esi, ebx
        shl     esi, 8
        add     esi, SHARED
        xor     edx, edx
        mov     ecx, 0x4b564d01
        lea     eax, [rsi + 1]
        wrmsr
        mov     ecx, 0x4b564d03
        lea     eax, [rsi + 0x41]
        wrmsr
        mov     ecx, 0x4b564d04
        lea     eax, [rsi + 0x81]
        wrmsr
        mov     ecx, 0x4b564d06
        mov     eax, 0x44
        wrmsr
        mov     ecx, 0x4b564d02
        lea     eax, [rsi + 0xC0 + 9]
        wrmsr
        mov     ecx, 0x4b564d00
        mov     eax, SHARED + 0x800
        wrmsr
        ret

// --- 64-bit mode

saved_stop:
        cli
        hlt
        jmp     saved_stop

// A page fault of the program's: it goes on behind it.
saved_fault:
        add     rsp, 8
        push    rax
        lea     rax, [rip + saved_resume]
        mov     [rsp + 8], rax
        pop     rax
        iretq

.macro ACKNOWLEDGE
        mov     al, 0x0C
        out     0x70, al
        in      al, 0x71
        mov     dx, 0x3FA
        in      al, dx
        mov     dx, 0x3F8
        in      al, dx
        mov     al, 0x20
        out     0x20, al
.endm

saved_interrupt:
        push    rax
        push    rdx
        lock inc qword ptr [COUNTER]
        ACKNOWLEDGE
        mov     eax, APIC
        mov     dword ptr [rax + 0xB0], 0
        pop     rdx
        pop     rax
        iretq

saved_system_call:
        swapgs
        mov     gs:[8], rsp
        mov     rsp, gs:[0]
        push    rcx
        push    r11
        mov     eax, APIC
        mov     ecx, [rax + 0x80]
        test    r12d, 7
        jnz     1f
        str     eax
        sldt    eax
        mov     ecx, 0xC0000101
        rdmsr
        wrmsr
        mov     rax, cr4
        mov     cr4, rax
        mov     rax, cr3
        mov     cr3, rax
        mov     rax, cr0
        mov     cr0, rax
        mov     rax, cr8
        mov     cr8, rax
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        clts
        mov     rax, dr0
        mov     dr0, rax
        mov     rax, dr6
        invlpg  [USER_STACKS]
        mov     eax, 1000
        vmcall
1:      pop     r11
        pop     rcx
        mov     rsp, gs:[8]
        swapgs
        sysretq

// The program. RBX is the vCPU's number, R13 its XSAVE image, R12 counts rounds.
saved_user:
        xor     r12d, r12d
        mov     r13d, ebx
        shl     r13d, 12
        add     r13d, IMAGES
saved_round:
        inc     r12
        mov     rax, fs:[0]
        inc     rax
        mov     fs:[0], rax
        mov     gs:[8], rax
        fld1
        fadd    qword ptr fs:[32]
        fstp    qword ptr fs:[32]
        movups  xmm1, fs:[48]
        addps   xmm1, xmm1
        movups  fs:[48], xmm1
        cvtsi2sd xmm4, r12
        cmp     byte ptr [HAS_AVX], 0
        je      1f
        vmovups ymm2, gs:[64]
        vaddps  ymm2, ymm2, ymm3
        vmovups gs:[64], ymm2
1:      cmp     byte ptr [HAS_XSAVE], 0
        je      1f
        mov     eax, 7
        xor     edx, edx
        xsave64 [r13]
        xrstor64 [r13]
1:      fxsave64 [r13 + 0x400]
        fxrstor64 [r13 + 0x400]
        call    2f
        jmp     3f
2:      push    rax
        pushfq
        popfq
        pop     rax
        ret
3:      lea     rsi, [r13 + 0x700]
        lea     rdi, [r13 + 0x780]
        mov     ecx, 64
        rep movsb
        rdtsc
        syscall
        int     0x80
        test    r12d, 15
        jnz     1f
        in      al, 0x21
        in      al, 0x40
        in      al, 0x61
        in      al, 0x71
        in      al, 0x64
        mov     dx, 0x3FD
        in      al, dx
        mov     dx, 0x608
        in      eax, dx
        mov     eax, 0x15
        cpuid
        mov     ebx, r13d
        sub     ebx, IMAGES
        shr     ebx, 12
1:      test    r12d, 63
        jnz     saved_resume
        mov     al, [ABSENT]
saved_resume:
        test    r12d, 127
        jnz     saved_round
        mov     al, 'A'
        add     al, bl
        mov     dx, 0x3F8
        out     dx, al
        jmp     saved_round

// --- 32-bit mode

saved_leave:
        push    0x50
        lea     rax, [rip + 1f]
        push    rax
        retfq
        .code32
1:      mov     eax, 0x58
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     eax, cr0
        and     eax, 0x7FFFFFFF
        mov     cr0, eax
        mov     ecx, 0xC0000080
        rdmsr
        and     eax, ~0x100
        wrmsr
        cmp     dword ptr [MODE], 2
        je      saved_to_real
        lidt    [IDTR32]
        mov     eax, PDPT32
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        mov     eax, 0xC0
        ltr     ax
        mov     eax, 0x6B
        mov     ds, eax
        mov     es, eax
        mov     fs, eax
        mov     gs, eax
        push    0x6B
        push    USER_STACKS
        push    0x3202
        push    0x63
        push    dword ptr [USER32]
        iretd

saved_stop32:
        cli
        hlt
        jmp     saved_stop32

saved_fault32:
        add     esp, 4
        push    eax
        mov     eax, [RESUME32]
        mov     [esp + 4], eax
        pop     eax
        iretd

saved_interrupt32:
        push    eax
        push    edx
        push    ds
        mov     eax, 0x58
        mov     ds, eax
        lock inc dword ptr [COUNTER]
        ACKNOWLEDGE
        mov     dword ptr [APIC + 0xB0], 0
        pop     ds
        pop     edx
        pop     eax
        iretd

saved_sysenter:
        mov     eax, cr3
        mov     cr3, eax
        mov     eax, cr4
        mov     cr4, eax
        mov     eax, 0x58
        mov     es, eax
        mov     eax, 0x6B
        mov     es, eax
        sti
        sysexit

saved_user32:
        xor     edi, edi
saved_round32:
        inc     edi
        mov     eax, fs:[USER_FS]
        inc     eax
        mov     gs:[USER_GS], eax
        fld1
        fadd    qword ptr [USER_FS + 32]
        fstp    qword ptr [USER_FS + 32]
        movups  xmm1, [USER_FS + 48]
        addps   xmm1, xmm1
        movups  [USER_FS + 48], xmm1
        cmp     byte ptr [HAS_AVX], 0
        je      1f
        vmovups ymm2, [USER_FS + 64]
        vaddps  ymm2, ymm2, ymm3
        vmovups [USER_FS + 64], ymm2
        mov     eax, 7
        xor     edx, edx
        xsave   [IMAGES]
        xrstor  [IMAGES]
1:      pusha
        pushfd
        popfd
        popa
        push    es
        pop     es
        mov     eax, 0x6B
        mov     fs, eax
        mov     ecx, esp
        mov     edx, [BACK32]
        sysenter
saved_back32:
        int     0x80
        test    edi, 15
        jnz     1f
        in      al, 0x40
        in      al, 0x71
1:      test    edi, 63
        jnz     saved_resume32
        mov     al, [ABSENT]
saved_resume32:
        test    edi, 127
        jnz     saved_round32
        mov     al, 'A'
        mov     dx, 0x3F8
        out     dx, al
        jmp     saved_round32

// --- Real mode

saved_to_real:
        lidt    [IDTR16]
        .byte   0xEA                    // JMP 0xC8:0
        .long   0
        .word   0xC8

// Runs at 0x8000.
        .code16
        .balign 16
saved_16:
        jmp     1f
        .balign 4
        .word   IN16(saved_interrupt16)
1:      mov     ax, 0xD0
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
        mov     eax, cr0
        and     al, 0xFE
        mov     cr0, eax
        .byte   0xEA                    // JMP 0x800:
        .word   IN16(1f), 0x800
1:      xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7000
        mov     cx, 256
        xor     di, di
2:      mov     ax, cs:[4]
        mov     [di], ax
        mov     word ptr [di + 2], 0x800
        add     di, 4
        loop    2b
        mov     ax, 0x1000
        mov     fs, ax
        mov     ax, 0x2000
        mov     gs, ax
        sti
        xor     bp, bp
saved_round16:
        inc     bp
        mov     eax, fs:[0]
        inc     eax
        mov     gs:[8], eax
        fld1
        fadd    qword ptr fs:[32]
        fstp    qword ptr fs:[32]
        movups  xmm1, fs:[48]
        addps   xmm1, xmm1
        movups  fs:[48], xmm1
        fxsave  fs:[512]
        fxrstor fs:[512]
        pusha
        pushf
        popf
        popa
        push    es
        pop     es
        int     0x80
        push    cs
        .byte   0xE8                    // CALL, of 16 bits
        .word   3f - (. + 2)
        mov     ax, 0x1000
        mov     fs, ax
        test    bp, 15
        jnz     1f
        in      al, 0x40
        in      al, 0x71
1:      test    bp, 127
        jnz     saved_round16
        mov     al, 'A'
        mov     dx, 0x3F8
        out     dx, al
        jmp     saved_round16
3:      .byte   0xCB                    // RETF, of 16 bits
saved_interrupt16:
        push    ax
        push    dx
        ACKNOWLEDGE
        pop     dx
        pop     ax
        iret
saved_16_end:

        .balign 8
saved_gdt:
        .quad   0
        .quad   0x00AF9B000000FFFF      // 08: kernel's 64-bit code
        .quad   0x00CF93000000FFFF      // 10: kernel's data
        .quad   0x00CFFB000000FFFF      // 18: the program's 32-bit code, as SYSRET wants it
        .quad   0x00CFF3000000FFFF      // 20: data
        .quad   0x00AFFB000000FFFF      // 28: 64-bit code
        .quad   0, 0, 0, 0
        .quad   0x00CF9B000000FFFF      // 50: a 32-bit kernel's, as SYSENTER wants them
        .quad   0x00CF93000000FFFF
        .quad   0x00CFFB000000FFFF
        .quad   0x00CFF3000000FFFF
        .quad   0, 0, 0, 0, 0, 0, 0, 0  // 70: TSSs
        .quad   0x000082000000000F + (LDT << 16), 0 // B0
        .quad   0x0000890000000067 + (TSS32 << 16) // C0
        .quad   0x00009B008000FFFF      // C8: 16-bit code and data at 0x8000
        .quad   0x000093000000FFFF
saved_gdtr:
        .word   saved_gdtr - saved_gdt - 1
        .quad   HERE(saved_gdt)
saved_idtr:
        .word   0xFFF
        .quad   IDT
saved_16_length:
        .long   saved_16_end - saved_16
        .balign 8
        MARK    saved_parameters
saved_cpus:
        .long   1
        // From here on as at MODE.
saved_mode:
        .long   0
        .long   0
        .long   HERE(saved_user32), HERE(saved_resume32), HERE(saved_back32), 0
        .word   0x7FF
        .long   IDT32
        .word   0
        .word   0x3FF
        .long   0
        .word   0
        END     saved
