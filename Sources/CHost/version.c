// SPDX-License-Identifier: Apache-2.0
// The one place where the commit passed by Package.swift enters the program.
#include "version.h"

const char *chost_commit(void) { return LGUEST_COMMIT; }
