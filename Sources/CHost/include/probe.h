// SPDX-License-Identifier: Apache-2.0
// Host questions whose calls Swift's Glibc module does not have.
#ifndef CHOST_PROBE_H
#define CHOST_PROBE_H

// CPUs the calling process may run on; at least 1.
int chost_usable_cpus(void);
// A new memfd that may be mapped executable, or -errno.
int chost_probe_memfd(void);

#endif
