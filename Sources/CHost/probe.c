// SPDX-License-Identifier: Apache-2.0
// GNU-only calls behind plain prototypes: CPU affinity and memfd_create.
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U // since Linux 6.3; older kernels answer EINVAL
#endif

int chost_usable_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

int chost_probe_memfd(void) {
  int file = memfd_create("lguest-probe", MFD_CLOEXEC | MFD_EXEC);
  if (file < 0 && errno == EINVAL) file = memfd_create("lguest-probe", MFD_CLOEXEC);
  return file < 0 ? -errno : file;
}
