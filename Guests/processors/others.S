// SPDX-License-Identifier: Apache-2.0
// The way of the other processors from a start-up IPI to 64-bit code: `others_begin` to `others_end` is copied to the
// page that the IPI names, and runs there in real mode (SDM volume 3, 9.4.4).

	.code16
	.globl	others_begin, others_end
others_begin:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	pointer - others_begin
	mov	$0x6A0, %eax		// PAE, PGE, OSFXSR, OSXMMEXCPT
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	$0xC0000080, %ecx
	rdmsr
	or	$0x901, %eax		// NXE, LME, SCE
	wrmsr
	mov	$0x80010033, %eax	// PG, WP, NE, ET, MP, PE
	mov	%eax, %cr0
	ljmpl	$0x10, $arrived
pointer:
	.word	32 * 8 - 1
	.long	gdt
others_end:

	.code64
arrived:
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	// Each has a stack of its own, from the top of the stacks down.
	mov	$-0x2000, %rsp
	lock xadd %rsp, next_stack
	lgdt	gdt_pointer
	lidt	idt_pointer
	fninit
	call	other_main
1:	cli
	hlt
	jmp	1b

	.data
	.balign	8
next_stack:
	.quad	stacks_top
	.globl	others_arrived
others_arrived:
	.long	0
	.bss
	.balign	4096
	.fill	16 * 0x2000
stacks_top:
