// SPDX-License-Identifier: Apache-2.0
// Hypercalls of the host program, as a guest in C makes them. The other side is Examples/Embed/Sources/Hypercalls.
#ifndef PROGRAM_HYPERCALL_H
#define PROGRAM_HYPERCALL_H

// What the example's host program answers. KVM's own numbers are small; these are far from them.
enum program_call {
  CALL_SORT = 0x1000, // sorts `count` 32-bit integers at `address`; returns how many there were, or -14
  CALL_SUM = 0x1001, // returns the sum of two numbers
};

// The CPU's own instruction: VMCALL, or VMMCALL on AMD's and Hygon's processors. Number in RAX, arguments in RBX and RCX,
// result in RAX; nothing else changes.
unsigned long program_call(unsigned long number, unsigned long first, unsigned long second);

#endif
