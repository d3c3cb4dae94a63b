// SPDX-License-Identifier: Apache-2.0
// Proves the offsets that the assembly uses, so that a change of the vCPU page cannot go unnoticed.
#include <stddef.h>

#include "chost.h"
#include "layout.h"

#define FIELD(offset, field) _Static_assert(offsetof(chost_cpu, field) == (offset) + CHOST_ENV, #field)
FIELD(GPR(0), gpr);
FIELD(OFF_FLAGS, flags);
FIELD(OFF_LINEAR, linear);
FIELD(OFF_EXIT_INFO, exit_info);
FIELD(OFF_HOST_RSP, host_rsp);
FIELD(OFF_EXIT_STUB, exit_stub);
FIELD(OFF_CAPTURED, captured_flags);
FIELD(OFF_STUB_TLB_MISS, stub_tlb_miss);
FIELD(OFF_STUB_JUMP_MISS, stub_jump_miss);
FIELD(OFF_STUB_STRING, stub_string);
FIELD(OFF_STUB_LIGHT, stub_light);
FIELD(OFF_STUB_SLOT_MISS, stub_slot_miss);
FIELD(OFF_STUB_GROUP_MISS, stub_group_miss);
FIELD(OFF_STUB_BRANCH_MISS, stub_branch_miss);
FIELD(OFF_STUB_CALL_MISS, stub_call_miss);
FIELD(OFF_STRING_OPERATION, string_operation);
FIELD(OFF_MODE, mode);
FIELD(OFF_SHADOW, shadow);
FIELD(OFF_STUB_RETURN, stub_return);
FIELD(OFF_STUB_UNDERFLOW, stub_underflow);
FIELD(OFF_USES_XSAVE, uses_xsave);
_Static_assert(offsetof(chost_tlb_entry, addend) == CHOST_SLOT_VALUE, "emitted code reads both with one displacement");
_Static_assert(OFF_FPU == CHOST_FPU, "FPU");
_Static_assert((CHOST_FPU + CHOST_ENV) % 64 == 0, "XSAVE images are 64-byte aligned");
_Static_assert(sizeof(chost_cpu) <= CHOST_TABLES + CHOST_ENV, "the tables follow the struct");
_Static_assert(EXIT_LOOKUP_INFO == (CHOST_EXIT_LOOKUP << CHOST_INFO_REASON_SHIFT | CHOST_INFO_FLAGS_SAVED), "");
_Static_assert(EXIT_REPEAT_REASON == CHOST_EXIT_REPEAT << CHOST_INFO_REASON_SHIFT, "");
