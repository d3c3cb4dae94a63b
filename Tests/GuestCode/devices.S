// SPDX-License-Identifier: Apache-2.0
// One access each to a device page at RBX (R15 too), then HLT.
#include "guest.h"

        .code64
.macro ACCESS name, instruction:vararg
        GUEST   mmio_\name
        \instruction
        hlt
        END     mmio_\name
.endm
        ACCESS  load1, mov al, [rbx + 1]
        ACCESS  load2, mov ax, [rbx + 2]
        ACCESS  load4, mov eax, [rbx + 4]
        ACCESS  load8, mov rax, [rbx + 8]
        ACCESS  load4_odd, mov eax, [rbx + 2]
        ACCESS  movzx, movzx eax, byte ptr [rbx]
        ACCESS  movsx, movsx rax, word ptr [rbx]
        ACCESS  store1, mov [rbx + 1], al
        ACCESS  store2, mov [rbx + 2], ax
        ACCESS  store4, mov [rbx + 4], eax
        ACCESS  store8, mov [rbx + 8], rax
        ACCESS  store_immediate, mov dword ptr [rbx], 0x1234
        ACCESS  add, add [rbx], eax
        ACCESS  add_from, add eax, [rbx]
        ACCESS  or_locked, lock or dword ptr [rbx], 0x10
        ACCESS  xchg, xchg [rbx], eax
        ACCESS  cmpxchg, lock cmpxchg [rbx], ecx
        ACCESS  bts, lock bts dword ptr [rbx], 35
        ACCESS  bts_far, bts dword ptr [rbx], eax
        ACCESS  cmp, cmp byte ptr [rbx], 5
        ACCESS  not, not word ptr [rbx]
        ACCESS  movups_load, movups xmm0, [rbx]
        ACCESS  movups_store, movups [rbx], xmm0
        ACCESS  movq_store, movq [rbx], xmm0
        ACCESS  fild, fild dword ptr [rbx]
        ACCESS  movsd_from, movsd
        ACCESS  rep_movsb, rep movsb
        ACCESS  stosd, stosd
        ACCESS  rep_stosw, rep stosw
        ACCESS  lodsb, lodsb
        ACCESS  scasd, scasd
        ACCESS  cmpsb, cmpsb
        ACCESS  push_memory, push qword ptr [rbx]
        ACCESS  pop_memory, pop qword ptr [rbx]
        ACCESS  push, push rax
        ACCESS  pop, pop rax
        ACCESS  popfq, popfq
        ACCESS  call_memory, call qword ptr [rbx]
        ACCESS  jump_memory, jmp qword ptr [rbx]
        ACCESS  movabs, movabs al, [0xFE000010]
        ACCESS  lgdt, lgdt [rbx]
        ACCESS  sgdt, sgdt [rbx]
        ACCESS  insd, insd
        ACCESS  outsb, outsb
        ACCESS  mov_sreg, mov word ptr [rbx], ds
