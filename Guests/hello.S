// SPDX-License-Identifier: Apache-2.0
// Says hello on COM1 and asks for a reset.

	.globl _start
_start:
	lea	text(%rip), %rsi
	mov	$length, %ecx
	mov	$0x3f8, %edx
	rep outsb
	mov	$0xcf9, %edx
	mov	$6, %al
	out	%al, %dx
1:	hlt
	jmp	1b
text:	.ascii	"hello from a guest\n"
	.set	length, . - text
