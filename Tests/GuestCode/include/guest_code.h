// SPDX-License-Identifier: Apache-2.0
// The test guests' machine code by name: what Tests/GuestCode/*.S define between GUEST and END, and the places
// that they MARK.
#ifndef GUEST_CODE_H
#define GUEST_CODE_H

#include <stdint.h>

// The address of a guest's first byte, of a mark in one, or (name "X.end") of the byte after guest X; null if
// there is none of that name; `index` counts those of the same name.
const uint8_t *guest_code_find(const char *name, unsigned index);

#endif
