// SPDX-License-Identifier: Apache-2.0
// Offsets from ENV of the vCPU page's fields that the assembly uses; layout.c proves each against the struct.
#ifndef CHOST_LAYOUT_H
#define CHOST_LAYOUT_H

#define GPR(n) ((n) * 8 - 128)
#define OFF_FLAGS 0
#define OFF_MODE 36
#define OFF_LINEAR 72
#define OFF_EXIT_INFO 80
#define OFF_HOST_RSP 832
#define OFF_EXIT_STUB 840
#define OFF_CAPTURED 664
#define OFF_STUB_TLB_MISS 672
#define OFF_STUB_JUMP_MISS 680
#define OFF_STUB_STRING 688
#define OFF_STUB_LIGHT 696
#define OFF_STRING_OPERATION 704
#define OFF_SHADOW 712
#define OFF_STUB_RETURN 760
#define OFF_STUB_UNDERFLOW 768
#define OFF_USES_XSAVE 776
#define OFF_STUB_SLOT_MISS 856
#define OFF_STUB_GROUP_MISS 864
#define OFF_STUB_BRANCH_MISS 1296
#define OFF_STUB_CALL_MISS 1304
#define OFF_FPU 432000

#define EXIT_LOOKUP_INFO 0x02008000    // CHOST_EXIT_LOOKUP, flags saved
#define EXIT_REPEAT_REASON 0x09000000

#endif
