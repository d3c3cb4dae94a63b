// SPDX-License-Identifier: Apache-2.0
// The beginning of a 64-bit conformance guest: the way to 64-bit mode, page tables, and the handlers' common part. 4 GiB
// are mapped one to one in 2 MiB pages, for every level; the first 2 MiB in 4 KiB pages.

	.text
	.code32
	.globl	_start
_start:
	mov	$stack_top, %esp
	mov	%ebx, multiboot_info
	lgdt	gdt_pointer32
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	$0x6A0, %eax		// PAE, PGE, OSFXSR, OSXMMEXCPT
	mov	%eax, %cr4
	mov	$0xC0000080, %ecx
	rdmsr
	or	$0x901, %eax		// NXE, LME, SCE
	wrmsr
	mov	$0x80010033, %eax	// PG, WP, NE, ET, MP, PE
	mov	%eax, %cr0
	ljmp	$0x10, $1f
	.code64
1:	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	%eax, %fs
	mov	%eax, %gs
	mov	$stack_top, %rsp
	// The task's base goes into its descriptor.
	mov	$tss, %eax
	mov	%ax, gdt + 0x42
	shr	$16, %eax
	mov	%al, gdt + 0x44
	mov	%ah, gdt + 0x47
	lgdt	gdt_pointer
	lidt	idt_pointer
	mov	$0x40, %eax
	ltr	%ax
	fninit
	call	guest_main

	// enter(ip, cs, flags, sp, ss)
	.globl	enter
enter:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	movq	$1f, resume_ip
	mov	%rsp, resume_sp
	movl	$0xFFFF, last
	push	%r8
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	iretq
1:	movq	$0, resume_ip
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	last, %eax
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

	.globl	user
user:
	mov	$0x33, %esi
	mov	$2, %edx
	lea	user_stack_top - 8, %rcx
	movq	$leave_user, (%rcx)
	mov	$0x2B, %r8d
	jmp	enter
leave_user:
	int	$0x81

	// Where the code goes on that provoked an exception.
	.globl	resume
resume:
	mov	resume_sp, %rsp
	pushq	$0x18
	push	resume_sp
	pushq	$2
	pushq	$0x10
	push	resume_ip
	// The registers are those of the exception, but for the stack: as the interrupted code left them.
	mov	saved_frame, %rax
	mov	(%rax), %r15
	mov	8(%rax), %r14
	mov	16(%rax), %r13
	mov	24(%rax), %r12
	mov	32(%rax), %r11
	mov	40(%rax), %r10
	mov	48(%rax), %r9
	mov	56(%rax), %r8
	mov	64(%rax), %rdi
	mov	72(%rax), %rsi
	mov	80(%rax), %rbp
	mov	96(%rax), %rbx
	mov	104(%rax), %rdx
	mov	112(%rax), %rcx
	mov	120(%rax), %rax
	iretq

	.globl	common
common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rbx
	push	%rsp
	push	%rbp
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	cld
	mov	%rsp, saved_frame
	mov	%rsp, %rdi
	mov	%rsp, %rbp
	and	$-16, %rsp
	call	handle
	mov	%rbp, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rbp
	pop	%rbx
	pop	%rbx
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

	.data
	.balign	8
gdt_pointer32:
	.word	32 * 8 - 1
	.long	gdt

	.globl	tss
	.balign	16
tss:	.long	0
	.quad	ring0_stack_top, 0, 0, 0
	.quad	other_stack_top, ist2_stack_top, 0, 0, 0, 0, 0
	.quad	0
	.word	0, 0x68

	.globl	pml4, pdpt, directory, table
	.balign	4096
pml4:	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:	.quad	directory + 7, directory + 0x1007, directory + 0x2007, directory + 0x3007
	.fill	508, 8, 0
directory:
	.quad	table + 7
	.set	page, 1
	.rept	2047
	.quad	(page << 21) | 0xE7
	.set	page, page + 1
	.endr
table:
	.set	page, 0
	.rept	512
	.quad	(page << 12) | 0x67
	.set	page, page + 1
	.endr
