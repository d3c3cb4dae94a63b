// SPDX-License-Identifier: Apache-2.0
// What `reboot=panic_warm` makes of a kernel panic: the mark of a warm reset at 0x472, then a reset.

	.globl _start
_start:
	movw	$0x1234, 0x472
	mov	$0xcf9, %edx
	mov	$6, %al
	out	%al, %dx
1:	hlt
	jmp	1b
