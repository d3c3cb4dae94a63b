// SPDX-License-Identifier: Apache-2.0
// Executes the shortest loop there is, for ever, with interrupts off.

	.globl _start
_start:
	jmp	_start
