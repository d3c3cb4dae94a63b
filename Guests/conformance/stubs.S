// SPDX-License-Identifier: Apache-2.0
// What a conformance guest of either mode begins with besides its code: the multiboot header, an entry for each vector,
// the tables and the stacks.

#ifdef __x86_64__
#define WORD	.quad
#define WORD_BYTES	8
#define TASK_LIMIT	0x67
#else
#define WORD	.long
#define WORD_BYTES	4
#define TASK_LIMIT	0x167	// with the maps behind it
#endif

	.section .multiboot, "a"
	.balign	4
	.long	0x1BADB002, 3, -(0x1BADB002 + 3)

	.text
	.set	vector, 0
	.balign	16
first_stub:
	.rept	256
	.balign	16
	.if	vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	.else
	push	$0
	.endif
	push	$vector
	jmp	common
	.set	vector, vector + 1
	.endr

	.data
	.globl	stubs, multiboot_info, saved_frame, gdt_pointer, idt_pointer
	.balign	8
stubs:
	.set	vector, 0
	.rept	256
	WORD	first_stub + 16 * vector
	.set	vector, vector + 1
	.endr

multiboot_info:
	.quad	0
saved_frame:
	WORD	0
gdt_pointer:
	.word	gdt_end - gdt - 1
	WORD	gdt
idt_pointer:
	.word	2 * WORD_BYTES * 256 - 1
	WORD	idt

	.globl	gdt
	.balign	16
gdt:	.quad	0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
	.quad	0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CF13000000FFFF
	.quad	0x0000890000000000 + TASK_LIMIT, 0, 0x00009B000000FFFF, 0x000093000000FFFF
	.fill	20, 8, 0
gdt_end:

	.bss
	.globl	idt, stack_top, user_stack_top, other_stack_top, ring0_stack_top, ist2_stack_top
	.balign	4096
idt:	.skip	4096
	.skip	16384
stack_top:
	.skip	8192
user_stack_top:
	.skip	8192
other_stack_top:
	.skip	8192
ring0_stack_top:
	.skip	8192
ist2_stack_top:
