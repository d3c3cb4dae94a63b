// SPDX-License-Identifier: Apache-2.0
// The parts of legacy.c that are not C: what gates and tasks lead to, and 16-bit code, which is copied to 0x8000.

	.text
	.code32
	.globl	gate_target
gate_target:
	mov	%cs, %eax
	mov	%eax, gate_seen
	mov	12(%esp), %eax
	mov	%eax, gate_seen + 4
	mov	8(%esp), %eax
	mov	%eax, gate_seen + 8
	mov	%esp, gate_seen + 12
	testl	$3, 4(%esp)
	jz	1f
	lret	$8
1:	lret

	// A task that says what it found and returns; the next call finds it behind the IRET.
	.globl	task_code
task_code:
	mov	%eax, task_seen
	str	%ax
	movzwl	%ax, %eax
	mov	%eax, task_seen + 4
	pushf
	popl	task_seen + 8
	mov	%cr0, %eax
	mov	%eax, task_seen + 12
	clts
	mov	$0xAAAA, %eax
	iret
	jmp	task_code

	// A handler of a fault by a task gate: takes the error code and goes back behind the fault.
	.globl	task_fault
task_fault:
	mov	%esp, task_seen + 4
	popl	task_seen
	movzwl	tss + 0x60, %eax
	mov	task_resume, %eax
	mov	%eax, tss + 0x20
	clts
	iret

	.globl	task_jump
task_jump:
	pushf
	popl	task_seen + 8
	clts
	ljmp	$0x40, $0

	.data
	.globl	gate_seen, task_seen, task_resume
	.balign	16
gate_seen: .long 0, 0, 0, 0
task_seen: .long 0, 0, 0, 0, 0, 0
task_resume: .long 0

	.section .rodata
	.code16
	.globl	pieces, pieces_end
	.balign	16
pieces:
	.globl	vm_plain, vm_cli, vm_sti, vm_pushf, vm_hlt, vm_cr0, vm_lldt, vm_out, vm_wrap, vm_int3, vm_int70, vm_handler
vm_plain:
	movw	$0x1234, 0
	mov	%sp, 2
	int	$0x81
vm_cli:	cli
	int	$0x81
vm_sti:	sti
	nop
	int	$0x81
vm_pushf:
	pushf
	pop	%ax
	mov	%ax, 4
	int	$0x81
vm_hlt:	hlt
vm_cr0:	mov	%cr0, %eax
vm_lldt:
	lldt	%ax
vm_out:	mov	$0x77, %al
	out	%al, $0xE0
	int	$0x81
vm_wrap:
	mov	0xFFFF, %ax
vm_int3:
	int3
vm_int70:
	int	$0x70
	int	$0x81
vm_handler:
	movw	$0x4321, 6
	iret

	// 16-bit protected mode; CS is based at the copy. Results go to 0xF00, the way back is at 0xF80.
	.globl	pm16
pm16:	mov	$0x58, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x12340FFF + 1, %esp
	mov	$0xFFFF1234, %eax
	inc	%ax
	movzwl	%ax, %eax
	mov	%eax, 0xF00
	push	$5
	pushw	$6
	movzwl	%sp, %eax
	mov	%eax, 0xF04
	mov	$0x12345678, %eax
	incl	%eax
	mov	%eax, 0xF08
	call	1f
1:	pop	%ax
	movl	$0xBEEF, 0xF0C
	ljmpl	*0xF80

	// Real mode and back.
	.globl	real, rm_handler, rm_divide, rm_general
real:	mov	$0x58, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$0x18, %ax
	mov	%ax, %gs		// its limit stays: unreal mode
	lidtl	real_idt - pieces
	mov	%cr0, %eax
	and	$~1, %al
	mov	%eax, %cr0
	ljmp	$0x800, $1f - pieces
1:	mov	$0x800, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$0x1000, %sp
	sti
	int	$0x70
	pushfw
	pop	%ax
	cli
	movzwl	%ax, %eax
	mov	%eax, 0xF08
	xor	%cx, %cx
	div	%cx
	mov	0xFFFF, %ax
	xor	%ax, %ax
	mov	%ax, %gs
	mov	$0x400000, %ebx
	addr32 mov %gs:(%ebx), %eax
	mov	%eax, 0xF14
	movw	$0x9ABC, 0x10
	mov	$0x801, %ax
	mov	%ax, %es
	movzwl	%es:0, %eax
	mov	%eax, 0xF18
	in	$0x92, %al		// the A20 gate: FFFF:0610 is 0000:0600 while it is closed
	and	$~3, %al
	out	%al, $0x92
	mov	$0xFFFF, %ax
	mov	%ax, %es
	movzwl	%es:0x610, %eax
	mov	%eax, 0xF1C
	in	$0x92, %al
	and	$~1, %al
	or	$2, %al
	out	%al, $0x92
	movzwl	%es:0x610, %eax
	shl	$16, %eax
	or	%eax, 0xF1C
	lgdtl	%cs:real_gdt - pieces
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	*%cs:0xF80
rm_handler:
	movl	$0x7070, 0xF00
	pushfw
	pop	%ax
	movzwl	%ax, %eax
	mov	%eax, 0xF04
	iretw
rm_divide:
	movl	$0xD1, 0xF0C
	mov	%sp, %bp
	addw	$2, (%bp)		// behind DIV
	iretw
rm_general:
	movl	$0x60, 0xF10
	mov	%sp, %bp
	addw	$3, (%bp)
	iretw
	.balign	4
real_idt:
	.word	0x3FF
	.long	0
real_gdt:
	.word	32 * 8 - 1
	.long	gdt
pieces_end:
