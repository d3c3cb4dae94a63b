// SPDX-License-Identifier: Apache-2.0
// The same in 32-bit protected mode, entered by Xen's PVH protocol: `--entry pvh`.

	.section .note.pvh, "a", @note
	.long	4, 4, 18	// name and descriptor sizes, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	_start

	.text
	.code32
	.globl _start
_start:
	mov	$stack, %esp
	push	$0
	push	$0
	lidt	(%esp)
	int3
1:	hlt
	jmp	1b
	.balign	16
	.skip	256
stack:
