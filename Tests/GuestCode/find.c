// SPDX-License-Identifier: Apache-2.0
// Finds test guests by name in the table that the assembler files contribute to.
#include "guest_code.h"

#include <string.h>

typedef struct entry {
  const char *name;
  const uint8_t *address;
} entry;

extern const entry __start_guest_table[], __stop_guest_table[];

const uint8_t *guest_code_find(const char *name, unsigned index) {
  for (const entry *e = __start_guest_table; e < __stop_guest_table; e++)
    if (strcmp(e->name, name) == 0 && index-- == 0) return e->address;
  return 0;
}
