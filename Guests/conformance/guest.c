// SPDX-License-Identifier: Apache-2.0
// The body of guest.h: the log, the table of handlers, and what becomes of an exception.
#include "guest.h"

volatile struct event last;
struct registers after;
void (*handlers[256])(struct frame *);
volatile word resume_ip, resume_sp;
int is_tcg;
static unsigned passed, failed;

void print(const char *text) {
  for (; *text; text++) outb(0x3F8, *text);
}

void print_hex(u64 value) {
  char digits[19], *at = digits + 18;
  *at = 0;
  do *--at = "0123456789abcdef"[value & 15];
  while (value >>= 4);
  *--at = 'x';
  *--at = '0';
  print(at);
}

void expect(const char *name, u64 value, u64 expected, const char *why) {
  const int good = value == expected;
  print(good ? "PASS " : "FAIL ");
  print(name);
  print(" = ");
  print_hex(value);
  if (!good) {
    print(", not ");
    print_hex(expected);
  }
  if (why) {
    print(" [");
    print(why);
    print("]");
  }
  print("\n");
  good ? passed++ : failed++;
}

int last_word_is(const char *text) {
  const u32 *const info = (const u32 *)(word)multiboot_info;
  if (!(info[0] & 4)) return 0;
  const char *at = (const char *)(word)info[4];
  for (const char *c = at; *c; c++)
    if (*c == ' ') at = c + 1;
  while (*text && *at == *text) at++, text++;
  return !*text && !*at;
}

void section(const char *manual) {
  print("-- ");
  print(manual);
  print("\n");
}

void die(const char *text) {
  print("FAIL ");
  print(text);
  print("\n");
  for (;;) {
    outl(0xF4, 2);
    asm volatile("cli; hlt");
  }
}

// Called by stubs.S for every vector.
void handle(struct frame *frame) {
  if (handlers[frame->vector & 255]) {
    handlers[frame->vector & 255](frame);
    return;
  }
  word cr2;
  asm volatile("mov %%cr2, %0" : "=r"(cr2));
  last.vector = frame->vector == LEAVE ? NONE : frame->vector;
  last.error = frame->error;
  last.ip = frame->ip;
  last.cs = frame->cs;
  last.flags = frame->flags;
  last.cr2 = cr2;
  if (sizeof(word) == 8 || (frame->cs & 3)) last.sp = frame->sp;
  else last.sp = (word)&frame->sp;
  if (!resume_ip) {
    print("vector ");
    print_hex(frame->vector);
    print(" error ");
    print_hex(frame->error);
    print(" at ");
    print_hex(frame->ip);
    print(" cr2 ");
    print_hex(cr2);
    print("\n");
    die("an exception nobody expected");
  }
  extern void resume(void) __attribute__((noreturn));
  resume();
}

void set_gate(unsigned vector, word target, unsigned selector, unsigned access, unsigned ist) {
  u64 low = ((u64)target & 0xFFFF) | (u64)selector << 16 | (u64)ist << 32 | (u64)access << 40 | ((u64)target >> 16 & 0xFFFF) << 48;
#ifdef __x86_64__
  idt[2 * vector] = low;
  idt[2 * vector + 1] = (u64)target >> 32;
#else
  idt[vector] = low;
#endif
}

void guest_main(void) {
  for (unsigned vector = 0; vector < 256; vector++) {
    const int any = vector == BP || vector == OF || vector == LEAVE;
    set_gate(vector, (word)stubs[vector], sizeof(word) == 8 ? CODE64 : CODE32, any ? 0xEE : 0x8E, 0);
  }
  u32 out[4];
  cpuid(0x40000000, 0, out);
  is_tcg = out[1] == 0x54474354; // "TCGTCGTCGTCG"
  test();
  print(failed ? "failed " : "all passed");
  if (failed) print_hex(failed);
  print("\n");
  for (;;) {
    outl(0xF4, failed ? 1 : 0);
    asm volatile("cli; hlt");
  }
}
