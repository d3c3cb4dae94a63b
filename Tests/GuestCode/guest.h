// SPDX-License-Identifier: Apache-2.0
// The macros of the guest files. A guest is loaded at ORG unless its test says otherwise; absolute addresses inside
// one are written AT(label).

        .intel_syntax noprefix

#define ORG 0x10000
#define AT(guest, label) (label - guest_##guest + ORG)

.macro ENTRY name, address
        .pushsection guest_names, "a", @progbits
9:      .asciz  "\name"
        .popsection
        .pushsection guest_table, "aw", @progbits
        .balign 8
        .quad   9b, \address
        .popsection
.endm

.macro GUEST name
        .section .rodata.guest, "a", @progbits
        .balign 16
guest_\name:
        ENTRY   \name, guest_\name
.endm

.macro MARK name
mark_\name:
        ENTRY   \name, mark_\name
.endm

.macro END name
end_\name:
        ENTRY   \name\().end, end_\name
.endm
