// SPDX-License-Identifier: Apache-2.0
// What the checker of emitted code is asked about: pieces of host code, several to a list. R11 is the vCPU page; R14 and
// R15 are scratch registers, and R14 tells where something of the host's lies.
#include "guest.h"

        .code64
// A piece of up to four instructions. All pieces of a list have its name.
.macro PIECE list, a, b, c, d
        .section .rodata.guest, "a", @progbits
        .balign 16
piece_\@:
        ENTRY   \list, piece_\@
        \a
        \b
        \c
        \d
piece_end_\@:
        ENTRY   \list\().end, piece_end_\@
.endm

        PIECE   allowed, "add rax, rbx"
        PIECE   allowed, "mov rax, [r11 + 16]"

        // What reaches memory or the kernel, or goes elsewhere.
        PIECE   refused, "mov rax, [rbx]"
        PIECE   refused, "mov rax, [rbx + r14]"
        PIECE   refused, "mov rax, [rip]"
        PIECE   refused, "mov rax, fs:[0]"
        PIECE   refused, "mov rax, [r11 + 0x7f000000]"
        PIECE   refused, "mov rax, [r11 + r14]"
        PIECE   refused, syscall
        PIECE   refused, "int 0x80"
        PIECE   refused, sysenter
        PIECE   refused, int3
        PIECE   refused, hlt
        PIECE   refused, cli
        PIECE   refused, vmcall
        PIECE   refused, movsb
        PIECE   refused, "rep stosb"
        PIECE   refused, xlatb
        PIECE   refused, leave
        PIECE   refused, "pop qword ptr [rax]"
        PIECE   refused, "push qword ptr [rbx]"
        PIECE   refused, "jmp rax"
        PIECE   refused, "call rax"
        PIECE   refused, ".byte 0xeb, 0x70"                     // jmp, jmp, je and call out of the block
        PIECE   refused, ".byte 0xe9, 0, 0, 1, 0"
        PIECE   refused, ".byte 0x74, 0x70"
        PIECE   refused, ".byte 0xe8, 0, 0, 1, 0"
        PIECE   refused, "mov rbx, r11", "xor r11, r11"
        PIECE   refused, "mov rsp, rbx"
        PIECE   refused, "wrfsbase rax"
        PIECE   refused, popfq
        PIECE   refused, ".byte 0x66, 0xeb, 0"                  // with 16 bits, to the next instruction
        PIECE   refused, ".byte 0x66, 0x75, 0"
        PIECE   refused, ".byte 0x66, 0xe2, 0"
        PIECE   refused, ".byte 0x66, 0x0f, 0x85, 0, 0, 0, 0"

        // What would show the guest an address of the host's.
        PIECE   secret, "mov rax, r14"
        PIECE   secret, "mov [r11 - 56], r14"
        PIECE   secret, "add rax, r14"
        PIECE   secret, "xchg rax, r14"
        PIECE   secret, "lea rax, [r14 + 16]"
        PIECE   secret, "movzx r14d, r14w", "mov rax, r14"
        PIECE   secret, "add r14b, 1", "mov rax, r14"
        PIECE   secret, "mov rax, [r11 + 880]"              // of a group
        PIECE   secret, "mov eax, [r11 + 40]"               // of scratch

        PIECE   no_secret, "mov r14d, 1", "mov rax, r14"

        // ... by operands that are not named, by parts of registers, or by flags.
        PIECE   hidden_secret, "mov rax, r14", "xchg rax, rbx", "mov eax, 0"
        PIECE   hidden_secret, "mov rax, r14", "mul rbx", "mov eax, 0"
        PIECE   hidden_secret, "mov rax, r14", "mov edx, 0", "div rbx", "mov eax, 0"
        PIECE   hidden_secret, "mov rdx, r14", "mulx rbx, rax, rcx", "mov edx, 0"
        PIECE   hidden_secret, "mov rcx, r14", ".byte 0xe2, 0"  // loop
        PIECE   hidden_secret, "mov rcx, r14", "shl rbx, cl", "mov ecx, 0"
        PIECE   hidden_secret, "mov rax, r14", cqo, "mov eax, 0"
        PIECE   hidden_secret, "mov rax, r14", sahf, "mov eax, 0"
        PIECE   hidden_secret, "mov rax, r14", "cmpxchg rbx, rcx", "mov eax, 0"
        PIECE   hidden_secret, "mov rbx, r14", "mov ebx, 0"     // CMPXCHG16B would store it
        PIECE   hidden_secret, ".byte 0x66", "lea r14, [rbx]", "mov rsi, r14"
        PIECE   hidden_secret, "mov r14w, 1", "mov rsi, r14"
        PIECE   hidden_secret, ".byte 0x66, 0x41, 0xc7, 0xc6, 1, 0", "mov rsi, r14"     // the same by C7
        PIECE   hidden_secret, "cmp r14d, 0x10000", "setb al"
        PIECE   hidden_secret, "and r14d, 0x10000", "setz al"
        PIECE   hidden_secret, "shr r14d, 20", "setc al"
        PIECE   hidden_secret, "add r14, 0x10000", "sets al"
        PIECE   hidden_secret, "inc r14", "sets al"
        PIECE   hidden_secret, "mov r15, r14", "cmp r15, [rsp + 8]", "setb al"
        PIECE   hidden_secret, "mov [r11 + 40], r14", "and dword ptr [r11 + 40], 0x10000", "setz al"

        // RBX, to which 16 is added.
        PIECE   far_constant, "movabs rbx, 0x7fffffffffffffff"
        PIECE   far_constant, "movabs rbx, 0x7ffffffffffffff0"
        PIECE   far_constant, "movabs rbx, 0x4000000000000000"
        PIECE   far_constant, "movabs rbx, 0x8000000000000000"

        // Not a NOP, although its opcode is 90.
        PIECE   exchange, ".byte 0x49, 0x90"
        PIECE   exchange, ".byte 0x41, 0x90"
        PIECE   exchange, ".byte 0x66, 0x49, 0x90"
