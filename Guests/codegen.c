// SPDX-License-Identifier: Apache-2.0
// Programs that write their own code, in every way a program can: in place, ahead of itself in one block, through another
// mapping, by the kernel, by string instructions, across a page boundary, beside hot data, in a child, by replacing a
// mapping. A translator that keeps a stale translation gives a wrong number.
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

typedef uint32_t function(void);

// MOV EAX, value; RET.
static void write_code(volatile uint8_t *at, uint32_t value) {
  at[0] = 0xB8;
  for (int i = 0; i < 4; i++) at[1 + i] = (uint8_t)(value >> 8 * i);
  at[5] = 0xC3;
}

static uint8_t *pages(size_t bytes, int protection) {
  uint8_t *p = mmap(0, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

enum { RW = PROT_READ | PROT_WRITE, RWX = RW | PROT_EXEC, RX = PROT_READ | PROT_EXEC };

static uint32_t call(const volatile uint8_t *at) { return ((function *)(uintptr_t)at)(); }

static void in_place(void) {
  uint8_t *p = pages(4096, RWX);
  for (uint32_t i = 0; i < 3000; i++) {
    uint8_t *at = p + i % 7 * 100;
    write_code(at, i * 2654435761u);
    EQUAL(call(at), i * 2654435761u);
    EQUAL(call(at), i * 2654435761u);
  }
  munmap(p, 4096);
}

// A store that changes the next instructions of its own block, as old self-decrypting programs do.
static void ahead(void) {
  // MOV [RIP+disp], DL where the immediate of the MOV EAX below it lies.
  static const uint8_t code[] = {0x88, 0x15, 0x01, 0, 0, 0, 0xB8, 1, 0, 0, 0, 0x83, 0xC0, 2, 0xC3};
  uint8_t *p = pages(8192, RWX);
  for (int place = 0; place < 2; place++) {
    uint8_t *at = place ? p + 4096 - 7 : p;
    memcpy(at, code, sizeof code);
    for (uint32_t i = 0; i < 500; i++) {
      uint32_t result;
      __asm__ volatile("call *%1" : "=a"(result) : "r"(at), "d"(i & 255) : "memory", "cc");
      EQUAL(result, (i & 255) + 2);
    }
  }
  munmap(p, 8192);
}

// A loop whose body rewrites its own constant.
static void loop(void) {
  // 0: MOV ECX, 1000; XOR EAX, EAX; 7: ADD EAX, imm32 (1); INC DWORD [RIP - 10] -> imm; DEC ECX; JNZ 7; RET
  static const uint8_t code[] = {0xB9, 0xE8, 3, 0, 0, 0x31, 0xC0, 0x05, 1, 0, 0, 0, 0xFF, 0x05, 0xF6, 0xFF, 0xFF, 0xFF,
                                 0xFF, 0xC9, 0x75, 0xF1, 0xC3};
  uint8_t *p = pages(4096, RWX);
  memcpy(p, code, sizeof code);
  uint32_t result;
  __asm__ volatile("call *%1" : "=a"(result) : "r"(p) : "rcx", "memory", "cc");
  EQUAL(result, 500500);
  munmap(p, 4096);
}

static void alias(void) {
  int file = memfd_create("code", 0);
  if (ftruncate(file, 8192)) abort();
  uint8_t *w = mmap(0, 8192, RW, MAP_SHARED, file, 0), *x = mmap(0, 8192, RX, MAP_SHARED, file, 0);
  uint8_t *y = mmap(0, 8192, RX, MAP_SHARED, file, 0);
  for (uint32_t i = 0; i < 1000; i++) {
    write_code(w + 64, i);
    write_code(w + 4093, ~i);
    EQUAL(call(x + 64), i);
    EQUAL(call(y + 64), i);
    EQUAL(call(x + 4093), ~i);
    EQUAL(call(y + 4093), ~i);
  }
  // The kernel writes.
  uint8_t bytes[6];
  for (uint32_t i = 0; i < 300; i++) {
    write_code(bytes, i * 3);
    if (pwrite(file, bytes, 6, 64) != 6) abort();
    EQUAL(call(x + 64), i * 3);
    int tube[2];
    if (pipe(tube)) abort();
    write_code(bytes, i * 5);
    if (write(tube[1], bytes, 6) != 6 || read(tube[0], w + 4093, 6) != 6) abort();
    EQUAL(call(x + 4093), i * 5);
    close(tube[0]);
    close(tube[1]);
  }
  munmap(w, 8192);
  munmap(x, 8192);
  munmap(y, 8192);
  close(file);
}

// Only one of the two pages that an instruction lies on changes.
static void straddling(void) {
  uint8_t *p = pages(8192, RWX);
  uint8_t *at = p + 4096 - 3; // B8 and two bytes of the constant | two more, RET
  write_code(at, 0x11111111);
  EQUAL(call(at), 0x11111111);
  for (uint32_t i = 0; i < 1000; i++) {
    ((volatile uint8_t *)p)[4096] = (uint8_t)i;
    EQUAL(call(at), 0x11001111u | (i & 255) << 16);
    ((volatile uint8_t *)p)[4095] = (uint8_t)(i * 3);
    EQUAL(call(at), 0x11000011u | (i & 255) << 16 | (i * 3 & 255) << 8);
    ((volatile uint8_t *)p)[4095] = 0x11;
  }
  // The second page replaced by another.
  uint8_t *q = pages(4096, RWX);
  for (uint32_t i = 0; i < 200; i++) {
    write_code(at, i);
    EQUAL(call(at), i);
    memcpy(q, p + 4096, 16);
    q[0] = 0x77;
    if (mremap(q, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, p + 4096) == MAP_FAILED) abort();
    EQUAL(call(at), (i & 0xFF00FFFF) | 0x770000);
    q = pages(4096, RWX);
  }
  munmap(p, 8192);
  munmap(q, 4096);
}

static void strings(void) {
  uint8_t *p = pages(16384, RWX), *source = pages(16384, RW);
  for (uint32_t i = 0; i < 60; i++) {
    for (uint32_t j = 0; j < 16384 / 512; j++) write_code(source + j * 512, i * 1000 + j);
    void *to = p, *from = source;
    size_t count = 16384;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    for (uint32_t j = 0; j < 16384 / 512; j++) EQUAL(call(p + j * 512), i * 1000 + j);
  }
  // Vector stores.
  uint8_t bytes[16] = {0};
  for (uint32_t i = 0; i < 500; i++) {
    write_code(bytes, i ^ 0x5555);
    __asm__ volatile("movdqu %1, %%xmm3; movdqu %%xmm3, %0" : "=m"(*(uint8_t(*)[16])(p + 37)) : "m"(bytes) : "xmm3");
    EQUAL(call(p + 37), i ^ 0x5555);
  }
  // Locked and 1-byte read-modify-write.
  write_code(p, 0);
  for (uint32_t i = 1; i < 500; i++) {
    __atomic_fetch_add((uint32_t *)(p + 1), 1, __ATOMIC_SEQ_CST);
    EQUAL(call(p), i);
  }
  munmap(p, 16384);
  munmap(source, 16384);
}

// Counters in the page of the code that counts.
static void hot_data(void) {
  uint8_t *p = pages(4096, RWX);
  // INC QWORD [RIP + 0x800 - 7]; MOV EAX, [RIP + ..]: RET
  static const uint8_t code[] = {0x48, 0xFF, 0x05, 0xF9, 0x07, 0, 0, 0x8B, 0x05, 0xF3, 0x07, 0, 0, 0xC3};
  memcpy(p, code, sizeof code);
  for (uint32_t i = 1; i <= 200000; i++) EQUAL(call(p), i);
  munmap(p, 4096);
}

// MOV EAX, 1; RET in many pages, made writable, changed and made executable again.
static void protection(void) {
  uint8_t *p = pages(4096, RW);
  for (uint32_t i = 0; i < 1000; i++) {
    write_code(p, i);
    mprotect(p, 4096, RX);
    EQUAL(call(p), i);
    mprotect(p, 4096, RW);
  }
  munmap(p, 4096);
  // The same address, new memory.
  void *hint = 0;
  for (uint32_t i = 0; i < 500; i++) {
    uint8_t *q = mmap(hint, 4096, RWX, MAP_PRIVATE | MAP_ANONYMOUS | (hint ? MAP_FIXED : 0), -1, 0);
    hint = q;
    write_code(q, i + 9);
    EQUAL(call(q), i + 9);
    if (i & 1) munmap(q, 4096);
  }
  munmap(hint, 4096);
}

static void children(void) {
  uint8_t *p = pages(4096, RWX);
  write_code(p, 1);
  for (uint32_t i = 0; i < 60; i++) {
    EQUAL(call(p), i + 1);
    pid_t child = fork();
    if (child == 0) {
      if (call(p) != i + 1) _exit(1);
      write_code(p, 77);
      _exit(call(p) == 77 ? 0 : 2);
    }
    EQUAL(call(p), i + 1);
    int status = -1;
    waitpid(child, &status, 0);
    EQUAL(status, 0);
    EQUAL(call(p), i + 1);
    write_code(p, i + 2);
  }
  munmap(p, 4096);
}

// Pages of code that are thrown away and made again, more than any cache of translations likes.
static void churn(void) {
  enum { SIZE = 1 << 20 };
  for (uint32_t round = 0; round < 6; round++) {
    uint8_t *p = pages(SIZE, RWX);
    for (uint32_t i = 0; i + 64 <= SIZE; i += 64) write_code(p + i, i ^ round);
    for (int again = 0; again < 2; again++)
      for (uint32_t i = 0; i + 64 <= SIZE; i += 64) EQUAL(call(p + i), i ^ round);
    munmap(p, SIZE);
  }
}

int main(int count, char **names) {
  check(count, names, "in-place", in_place);
  check(count, names, "ahead", ahead);
  check(count, names, "loop", loop);
  check(count, names, "alias", alias);
  check(count, names, "straddling", straddling);
  check(count, names, "strings", strings);
  check(count, names, "hot-data", hot_data);
  check(count, names, "protection", protection);
  check(count, names, "children", children);
  check(count, names, "churn", churn);
  return failures != 0;
}
