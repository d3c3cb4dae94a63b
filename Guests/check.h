// SPDX-License-Identifier: Apache-2.0
// What the guest's check programs share: a line `ok NAME` or `FAIL NAME reason` for each check, and an exit status that
// says whether any failed. They pass on any x86-64 Linux, so what fails in a guest and not on the host is ours.
#ifndef CHECK_H
#define CHECK_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;
static int problems; // of the current check
static const char *check_name = "";

// Notes a problem of the current check; only the first is told.
__attribute__((format(printf, 1, 2), unused)) static void problem(const char *format, ...) {
  if (problems++) return;
  printf("FAIL %s ", check_name);
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
  fflush(stdout);
}

#define EXPECT(condition) ((condition) ? (void)0 : problem("line %d: %s", __LINE__, #condition))
#define EQUAL(a, b)                                                                                                    \
  do {                                                                                                                 \
    unsigned long long left_ = (unsigned long long)(a), right_ = (unsigned long long)(b);                              \
    if (left_ != right_) problem("line %d: %s is %#llx, not %#llx", __LINE__, #a, left_, right_);                      \
  } while (0)

// Runs one check, if the command line names none or this one.
static void check(int count, char **names, const char *name, void (*body)(void)) {
  if (count > 1) {
    int wanted = 0;
    for (int i = 1; i < count; i++) wanted |= strcmp(names[i], name) == 0;
    if (!wanted) return;
  }
  check_name = name;
  problems = 0;
  body();
  if (problems) failures++;
  else printf("ok %s\n", name);
  fflush(stdout);
}

#endif
