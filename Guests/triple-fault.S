// SPDX-License-Identifier: Apache-2.0
// 64-bit: an interrupt table without room for a single gate, then a breakpoint. The CPU shuts down.

	.globl _start
_start:
	lea	stack(%rip), %rsp
	push	$0
	push	$0
	lidt	(%rsp)
	int3
1:	hlt
	jmp	1b
	.balign	16
	.skip	256
stack:
