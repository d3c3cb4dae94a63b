// SPDX-License-Identifier: Apache-2.0
// Which source tree this build came from, as the package manifest was told.
#ifndef CHOST_VERSION_H
#define CHOST_VERSION_H

// The commit's short name, or "unknown". Never null, never freed.
const char *chost_commit(void);

#endif
