// SPDX-License-Identifier: Apache-2.0
// One instruction each that raises an exception, at the mark X.at, with every arithmetic flag live across it.
#include "guest.h"

        .code64
.macro FAULT name, instruction:vararg
        GUEST   \name
        nop
        MARK    \name\().at
        \instruction
        pushfq
        hlt
        END     \name
.endm

        FAULT   div8, div cl
        FAULT   div16, div cx
        FAULT   div32, div ecx
        FAULT   div64, div rcx
        FAULT   div_r14, div r14
        FAULT   div_memory, div qword ptr [rbx]
        FAULT   div8_high, div ch
        FAULT   idiv8, idiv cl
        FAULT   idiv16, idiv cx
        FAULT   idiv32, idiv ecx
        FAULT   idiv64, idiv rcx
        FAULT   idiv_memory, idiv dword ptr [rbx]
        FAULT   ud2, ud2
        FAULT   ud1, .byte 0x0f, 0xb9, 0xc0
        FAULT   ud_0f04, .byte 0x0f, 0x04
        FAULT   ud_lock_nop, .byte 0xf0, 0x90
        FAULT   ud_lock_register, .byte 0xf0, 0x01, 0xc8
        FAULT   ud_lock_mov, .byte 0xf0, 0x89, 0x03
        FAULT   ud_lock_cmp, .byte 0xf0, 0x39, 0x03
        FAULT   ud_push_cs, .byte 0x0e
        FAULT   ud_into, .byte 0xce
        FAULT   ud_daa, .byte 0x27
        FAULT   ud_lea_register, .byte 0x48, 0x8d, 0xc0
        FAULT   ud_mov_cs, .byte 0x8e, 0xc8
        FAULT   ud_cr1, .byte 0x0f, 0x20, 0xc8
        FAULT   ud_far_register, .byte 0xff, 0xe8
        FAULT   x87, fadd st(1)
        FAULT   mmx, paddd mm0, mm1
        FAULT   sse, addps xmm0, xmm1
        FAULT   avx, vaddps ymm0, ymm1, ymm2
        FAULT   wait, fwait
        FAULT   fxsave, fxsave64 [rbx]
        FAULT   xsave, xsave64 [rbx]
        FAULT   ldmxcsr, ldmxcsr [rbx]
        FAULT   load1, movzx eax, byte ptr [rbx]
        FAULT   load2, movzx eax, word ptr [rbx]
        FAULT   load4, mov eax, [rbx]
        FAULT   load8, mov rax, [rbx]
        FAULT   load_r15, mov r15, [rbx + r14]
        FAULT   load_fs, mov rax, fs:[rbx]
        FAULT   load_high, mov ah, [rbx]
        FAULT   store1, mov [rbx], al
        FAULT   store2, mov [rbx], ax
        FAULT   store4, mov [rbx], eax
        FAULT   store8, mov [rbx], rax
        FAULT   store_immediate, mov qword ptr [rbx], -5
        FAULT   load_rbp, mov rax, [rbp]
        FAULT   add_memory, add [rbx], rax
        FAULT   add_from, add rax, [rbx]
        FAULT   adc_memory, adc [rbx], rax
        FAULT   xadd_locked, lock xadd [rbx], rax
        FAULT   xchg_memory, xchg [rbx], rax
        FAULT   cmpxchg_locked, lock cmpxchg [rbx], rcx
        FAULT   cmpxchg16, lock cmpxchg16b [rbx]
        FAULT   bts_memory, lock bts [rbx], rax
        FAULT   push_register, push rax
        FAULT   push_memory, push qword ptr [rbx]
        FAULT   push_immediate, push 0x12345
        FAULT   push_flags, pushfq
        FAULT   pop_register, pop rax
        FAULT   pop_memory, pop qword ptr [rbx]
        FAULT   pop_flags, popfq
        FAULT   leave, leave
        FAULT   enter, enter 32, 0
        FAULT   call_near, call 1f + 0x100
1:
        FAULT   call_register, call rax
        FAULT   call_memory, call qword ptr [rbx]
        FAULT   jump_register, jmp rax
        FAULT   jump_memory, jmp qword ptr [rbx]
        FAULT   ret, ret
        FAULT   ret_pop, ret 16
        FAULT   iret, iretq
        FAULT   movs, movsq
        FAULT   rep_movsb, rep movsb
        FAULT   rep_movsq, rep movsq
        FAULT   rep_stosb, rep stosb
        FAULT   rep_stosd, rep stosd
        FAULT   rep_lodsb, rep lodsb
        FAULT   repe_cmpsb, repe cmpsb
        FAULT   repne_scasb, repne scasb
        FAULT   movaps_load, movaps xmm0, [rbx]
        FAULT   movaps_store, movaps [rbx], xmm0
        FAULT   movups_load, movups xmm0, [rbx]
        FAULT   movups_store, movups [rbx], xmm0
        FAULT   addps_memory, addps xmm0, [rbx]
        FAULT   vmovaps_store, vmovaps [rbx], ymm0
        FAULT   vmovups_load, vmovups ymm0, [rbx]
        FAULT   vmovups_store, vmovups [rbx], ymm0
        FAULT   fld_memory, fld tbyte ptr [rbx]
        FAULT   fstp_memory, fstp tbyte ptr [rbx]
        FAULT   fild_memory, fild qword ptr [rbx]
        FAULT   divps, divps xmm0, xmm1
        FAULT   divps_memory, divps xmm0, [rbx]
        FAULT   hlt, hlt
        FAULT   cli, cli
        FAULT   sti, sti
        FAULT   in_dx, in al, dx
        FAULT   out_dx, out dx, eax
        FAULT   mov_cr0, mov rax, cr0
        FAULT   mov_to_cr3, mov cr3, rax
        FAULT   mov_dr7, mov rax, dr7
        FAULT   lgdt, lgdt [rbx]
        FAULT   lidt, lidt [rbx]
        FAULT   ltr, ltr ax
        FAULT   lmsw, lmsw ax
        FAULT   clts, clts
        FAULT   invlpg, invlpg [rbx]
        FAULT   wbinvd, wbinvd
        FAULT   rdmsr, rdmsr
        FAULT   wrmsr, wrmsr
        FAULT   swapgs, swapgs
        FAULT   sysret, sysretq
        FAULT   int21, int 0x21
        FAULT   int3, int3
        FAULT   int80, int 0x80
        FAULT   icebp, .byte 0xf1
        FAULT   mov_ds, mov ds, eax
        FAULT   mov_ss, mov ss, eax
        FAULT   mov_fs, mov fs, eax
        FAULT   clac, clac
        FAULT   xsetbv, xsetbv
        FAULT   too_long, .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
