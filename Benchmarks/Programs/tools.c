// SPDX-License-Identifier: Apache-2.0
// The programs people wait for: a compiler and an archiver of Debian's, dynamically linked, run in a root file system of
// their own, so that the bare host runs the same files as the guests.
#define _GNU_SOURCE
#include "bench.h"

#include <sched.h>
#include <unistd.h>

// Runs a shell's command line in the tree and mixes what it prints to a checksum.
static uint64_t in_tree(char *command) {
  if (tree == NULL) fail("no --tree");
  int ends[2];
  if (pipe(ends) != 0) fail("pipe");
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    dup2(ends[1], 1);
    close(ends[0]), close(ends[1]);
    // Who is not root is it in a user namespace.
    if (chroot(tree) != 0 && (unshare(CLONE_NEWUSER) != 0 || chroot(tree) != 0)) _exit(126);
    if (chdir("/tmp") != 0) _exit(126);
    char *const words[] = {"busybox", "sh", "-c", command, NULL};
    char *const environment[] = {"PATH=/usr/bin", "LC_ALL=C", "TMPDIR=/tmp", NULL};
    execve("/usr/bin/busybox", words, environment);
    _exit(127);
  }
  return mix_output(child, ends, command);
}

// gcc: Debian's compiler and assembler make an object file of computation.c.
static uint64_t gcc(void) { return in_tree("gcc -O2 -c -o out.o source.c && busybox cat out.o"); }

// tar: the kernel's headers for C programs, packed and compressed.
static uint64_t tar(void) {
  return in_tree("tar --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0644 -cf - "
                 "-C /usr/include linux | gzip -n");
}

const struct program tools[] = {
    {"gcc", "system", 1, gcc},
    {"tar", "system", 1, tar},
    {NULL, NULL, 0, NULL},
};
