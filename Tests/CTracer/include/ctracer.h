// SPDX-License-Identifier: Apache-2.0
// Ways to do to a running process what its own code never would, for the tests of its sandbox.
#ifndef CTRACER_H
#define CTRACER_H

// Makes a thread of another process perform a system call, as if code of its own had: `threads[0]` is made to,
// `threads[1]` must be asleep in a system call, so that it shows where the instruction is. 0, or -errno where the host
// forbids tracing.
int ctracer_call(const int threads[2], long number, const long arguments[6]);

// Runs a program to its end on a host that takes no filters and has no Landlock, with stdout and stderr going to
// `output`. Its wait status, or -1.
int ctracer_run_without_filters(const char *path, char *const arguments[], int output);

#endif
