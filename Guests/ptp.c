// SPDX-License-Identifier: Apache-2.0
// Reads the PTP clock that Linux's ptp_kvm makes of hypercall 9, in the three ways there are, and says what it saw:
// `fact ptp NAME` and for each way `fact WAY NANOSECONDS`, since 1970. Takes a module to load first.
#include <fcntl.h>
#include <linux/ptp_clock.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long nanoseconds(struct ptp_clock_time time) { return time.sec * 1000000000LL + time.nsec; }

int main(int count, char **words) {
  if (count > 1) {
    int module = open(words[1], O_RDONLY);
    if (module < 0 || syscall(SYS_finit_module, module, "", 0)) {
      perror(words[1]);
      return 1;
    }
  }
  char name[64] = "";
  FILE *file = fopen("/sys/class/ptp/ptp0/clock_name", "r");
  if (!file || !fgets(name, sizeof name, file)) {
    perror("clock_name");
    return 2;
  }
  printf("fact ptp %s", name);
  int device = open("/dev/ptp0", O_RDWR);
  if (device < 0) {
    perror("/dev/ptp0");
    return 3;
  }
  // The clock by itself; a clock's number is made of its descriptor (Linux Documentation/driver-api/ptp.rst).
  struct timespec time;
  if (clock_gettime((clockid_t)(~(unsigned)device << 3 | 3), &time)) {
    perror("clock_gettime");
    return 4;
  }
  printf("fact clock %lld\n", time.tv_sec * 1000000000LL + time.tv_nsec);
  // Between two readings of the guest's own clock.
  struct ptp_sys_offset offset = {.n_samples = 1};
  if (ioctl(device, PTP_SYS_OFFSET, &offset)) {
    perror("PTP_SYS_OFFSET");
    return 5;
  }
  printf("fact before %lld\nfact between %lld\nfact after %lld\n", nanoseconds(offset.ts[0]), nanoseconds(offset.ts[1]),
         nanoseconds(offset.ts[2]));
  // At the same moment as the guest's own clock: the counter that the hypercall tells is what that is computed from.
  struct ptp_sys_offset_precise precise;
  memset(&precise, 0, sizeof precise);
  if (ioctl(device, PTP_SYS_OFFSET_PRECISE, &precise)) {
    perror("PTP_SYS_OFFSET_PRECISE");
    return 6;
  }
  printf("fact precise %lld\nfact own %lld\n", nanoseconds(precise.device), nanoseconds(precise.sys_realtime));
  return 0;
}
