// SPDX-License-Identifier: Apache-2.0
// The beginning of a 32-bit conformance guest: segments, which are flat, and the handlers' common part. Paging is off.

	.text
	.code32
	.globl	_start
_start:
	mov	$stack_top, %esp
	mov	%ebx, multiboot_info
	mov	$tss, %eax
	mov	%ax, gdt + 0x42
	shr	$16, %eax
	mov	%al, gdt + 0x44
	mov	%ah, gdt + 0x47
	lgdt	gdt_pointer
	lidt	idt_pointer
	ljmp	$0x08, $1f
1:	call	load_segments
	mov	$0x40, %eax
	ltr	%ax
	fninit
	call	guest_main

	.globl	load_segments
load_segments:
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	%eax, %fs
	mov	%eax, %gs
	ret

	// enter(ip, cs, flags, sp, ss); to virtual-8086 mode all segments but CS become `ss`.
	.globl	enter
enter:
	push	%ebx
	push	%ebp
	push	%esi
	push	%edi
	mov	20(%esp), %eax
	mov	24(%esp), %ebx
	mov	28(%esp), %ecx
	mov	32(%esp), %edx
	mov	36(%esp), %esi
	movl	$1f, resume_ip
	mov	%esp, resume_sp
	movl	$0xFFFF, last
	push	%esi
	push	%esi
	push	%esi
	push	%esi
	push	%esi
	push	%edx
	push	%ecx
	push	%ebx
	push	%eax
	test	$0x20000, %ecx
	jnz	2f
	test	$3, %ebx
	jz	2f
	mov	%esi, %ds
	mov	%esi, %es
2:	iret
1:	movl	$0, resume_ip
	call	load_segments
	mov	last, %eax
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	ret

	.globl	user
user:
	mov	4(%esp), %eax
	pushl	$0x2B
	movl	$leave_user, user_stack_top - 4
	pushl	$user_stack_top - 4
	pushl	$2
	pushl	$0x23
	push	%eax
	call	enter
	add	$20, %esp
	ret
leave_user:
	int	$0x81

	// Where the code goes on that provoked an exception, with its registers.
	.globl	resume
resume:
	call	load_segments
	mov	saved_frame, %eax
	mov	resume_sp, %esp
	pushl	$2
	popf
	mov	(%eax), %edi
	mov	4(%eax), %esi
	mov	8(%eax), %ebp
	mov	16(%eax), %ebx
	mov	20(%eax), %edx
	mov	24(%eax), %ecx
	mov	28(%eax), %eax
	jmp	*resume_ip

	.globl	common
common:
	push	%eax
	push	%ecx
	push	%edx
	push	%ebx
	push	%esp
	push	%ebp
	push	%esi
	push	%edi
	cld
	mov	$0x18, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%esp, saved_frame
	mov	%esp, %ebp
	push	%ebp
	call	handle
	mov	%ebp, %esp
	pop	%edi
	pop	%esi
	pop	%ebp
	pop	%ebx
	pop	%ebx
	pop	%edx
	pop	%ecx
	pop	%eax
	add	$8, %esp
	iret

	.data
	// With an interrupt redirection map at 0x68 and an I/O permission map behind it.
	.globl	tss
	.balign	16
tss:	.long	0, ring0_stack_top, 0x18
	.fill	22, 4, 0
	.word	0, 0x88
	.fill	0x100, 1, 0
	.byte	0xFF
