// SPDX-License-Identifier: Apache-2.0
// Start and handlers of the ring-1 guest. It begins at level 1, without a stack; where linear addresses
// are physical, but in the first era.
        .intel_syntax noprefix
        .text
        .globl  start
#if LAYOUT == 2623
        // Where such a kernel begins, wherever it is.
        .ascii  "GenuineLguest"
#endif
start:
        mov     esp, offset kernel_stack
        call    main
1:      jmp     1b

// A handler for each vector of interest: pushes an error code if the processor did not, and the vector, and calls C with
// the frame.
.macro HANDLER vector, hasCode
        .globl  handler_\vector
handler_\vector:
        .if \hasCode == 0
        push    0
        .endif
        push    \vector
        jmp     common
.endm
        HANDLER 3, 0
        HANDLER 6, 0
        HANDLER 7, 0
        HANDLER 13, 1
        HANDLER 14, 1
        HANDLER 32, 0
        .irp    line, 33, 34, 35, 36, 37, 38, 39, 40
        HANDLER \line, 0
        .endr
        HANDLER 128, 0

common:
        pusha
        // IRET to level 3 has cleared them.
        mov     eax, 0x69
        mov     ds, eax
        mov     es, eax
        push    esp
        call    handle
        add     esp, 4
        popa
        add     esp, 8
        // The end of every handler: interrupts are on again before the frame is gone.
        push    eax
        mov     eax, [esp + 12]
        and     eax, 0x200
        .globl  iret_window
iret_window:
        mov     dword ptr [guest_data], eax
        pop     eax
        .globl  iret_point
iret_point:
        iret
        .globl  iret_window_end
iret_window_end:

// void enter_user(uint32_t eip, uint32_t esp): goes on at level 3; the handler of vector 80h comes back by `resume_kernel`.
        .globl  enter_user
enter_user:
        mov     [saved_stack], esp
        mov     eax, [esp + 4]
        mov     ecx, [esp + 8]
        push    0x7b
        push    ecx
        push    0x202
        push    0x73
        push    eax
        iret
        .globl  resume_kernel
resume_kernel:
        mov     esp, [saved_stack]
        ret

// What runs at level 3: on a page of its own. Raises INT 1Fh, which is not its to raise, with prefixes too, then a system
// call.
        .balign 4096
        .globl  user_code
user_code:
        mov     eax, 10
        int     0x1f
        .globl  user_prefixed
user_prefixed:
        .byte   0x2e, 0x66, 0xcd, 0x1f
        .globl  user_came_back
user_came_back:
        mov     ebx, 0x1234
        int     0x80
        ud2
        .balign 4096

        .data
saved_stack:
        .long   0
        .bss
        .balign 4096
        .space  8192
        .globl  kernel_stack
kernel_stack:
        .space  8192
        .globl  trap_stack
trap_stack:
        .space  4096
        .globl  user_stack
user_stack:
// What `--abi auto` goes by: owner "lguest", type 1, nothing in it.
        .section .note.lguest, "a", @note
        .balign 4
        .long   7, 0, 1
        .asciz  "lguest"
        .balign 4
        .section .note.GNU-stack, "", @progbits
