// SPDX-License-Identifier: Apache-2.0
// The programs that compute: no system calls while the time runs, a few milliseconds each on a current machine.
#include "bench.h"

#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// calls: Fibonacci numbers by recursion.
static __attribute__((noinline, noclone)) uint64_t fibonacci(uint64_t n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
static uint64_t calls(void) { return fibonacci(28); }

// sort: the C library's qsort, of more elements than a branch predictor can learn.
enum { sorted = 1 << 18 };
static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}
static uint64_t sort(void) {
  static uint32_t numbers[sorted];
  mallopt(M_MMAP_THRESHOLD, 1 << 26); // qsort's copy stays where it was
  mallopt(M_TRIM_THRESHOLD, 1 << 26);
  uint64_t seed = 1, sum = 0;
  for (int i = 0; i < sorted; i++) numbers[i] = (uint32_t)next_random(&seed);
  qsort(numbers, sorted, sizeof numbers[0], ascending);
  for (int i = 0; i < sorted; i += 97) sum = mix(sum, numbers[i]);
  return sum;
}

// crc: CRC-32, a table of 256 entries, a byte at a time.
enum { crc_bytes = 1 << 18, crc_passes = 8 };
static uint64_t crc(void) {
  static uint8_t *data;
  static uint32_t table[256];
  if (data == NULL) {
    data = need(malloc(crc_bytes));
    uint64_t seed = 2;
    for (int i = 0; i < crc_bytes; i++) data[i] = (uint8_t)next_random(&seed);
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
      table[i] = value;
    }
  }
  uint32_t value = ~0u;
  for (int pass = 0; pass < crc_passes; pass++)
    for (int i = 0; i < crc_bytes; i++) value = table[(value ^ data[i]) & 255] ^ value >> 8;
  return ~value;
}

// interpreter: a stack machine with one indirect jump per instruction, running a sieve and a loop of arithmetic.
enum { OP_PUSH, OP_LOAD, OP_STORE, OP_ADD, OP_SUB, OP_MUL, OP_AND, OP_LESS, OP_JUMPZ, OP_JUMP, OP_GET, OP_PUT, OP_HALT };
static uint64_t interpret(const int32_t *code, int64_t *heap) {
  static const void *const labels[] = {&&push, &&load, &&store, &&add, &&sub, &&mul, &&and, &&less, &&jumpz, &&jump, &&get, &&put, &&halt};
  int64_t stack[32], variables[8] = {0}, *top = stack;
  const int32_t *pc = code;
#define NEXT goto *labels[*pc++]
  NEXT;
push: *top++ = *pc++; NEXT;
load: *top++ = variables[*pc++]; NEXT;
store: variables[*pc++] = *--top; NEXT;
add: top--; top[-1] += top[0]; NEXT;
sub: top--; top[-1] -= top[0]; NEXT;
mul: top--; top[-1] = (int64_t)((uint64_t)top[-1] * (uint64_t)top[0]); NEXT;
and: top--; top[-1] &= top[0]; NEXT;
less: top--; top[-1] = top[-1] < top[0]; NEXT;
jumpz: if (*--top == 0) pc = code + *pc; else pc++; NEXT;
jump: pc = code + *pc; NEXT;
get: top[-1] = heap[top[-1] & 4095]; NEXT;
put: top -= 2; heap[top[0] & 4095] = top[1]; NEXT;
halt: return (uint64_t)variables[2];
#undef NEXT
}
enum { interpreter_rounds = 40000 };
static uint64_t interpreter(void) {
  static int64_t heap[4096];
  // i = 0; s = 1; while (i < rounds) { heap[i * 7] = i + s; s = (s * 31 + heap[s]) & 0xFFFFFF; i = i + 1 }
  static const int32_t code[] = {
      OP_PUSH, 0, OP_STORE, 1, OP_PUSH, 1, OP_STORE, 2,
      /* 8 */ OP_LOAD, 1, OP_PUSH, interpreter_rounds, OP_LESS, OP_JUMPZ, 50,
      /* 15 */ OP_LOAD, 1, OP_PUSH, 7, OP_MUL, OP_LOAD, 1, OP_LOAD, 2, OP_ADD, OP_PUT,
      /* 26 */ OP_LOAD, 2, OP_PUSH, 31, OP_MUL, OP_LOAD, 2, OP_GET, OP_ADD, OP_PUSH, 0xFFFFFF, OP_AND, OP_STORE, 2,
      /* 40 */ OP_LOAD, 1, OP_PUSH, 1, OP_ADD, OP_STORE, 1, OP_JUMP, 8, OP_HALT, OP_HALT};
  memset(heap, 0, sizeof heap);
  return interpret(code, heap);
}

// dgemm: a product of matrices of doubles, three plain loops.
enum { order = 128 };
static uint64_t dgemm(void) {
  static double a[order][order], b[order][order], c[order][order];
  for (int i = 0; i < order; i++)
    for (int j = 0; j < order; j++) {
      a[i][j] = (i * 7 + j * 3) % 11;
      b[i][j] = (i * 5 + j * 2) % 13;
      c[i][j] = 0;
    }
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < order; i++)
      for (int j = 0; j < order; j++) {
        double sum = 0;
        for (int k = 0; k < order; k++) sum += a[i][k] * b[k][j];
        c[i][j] += sum;
      }
  uint64_t sum = 0;
  for (int i = 0; i < order; i++)
    for (int j = 0; j < order; j++) sum = mix(sum, (uint64_t)c[i][j]);
  return sum;
}

// libm: sin(x) * exp(-x). The library's variants differ in the last bit, so the sum is rounded.
enum { libm_calls = 100000 };
static uint64_t libm(void) {
  double sum = 0;
  for (int i = 0; i < libm_calls; i++) {
    double x = i * 1e-4;
    sum += sin(x) * exp(-x);
  }
  return (uint64_t)llround(sum * 1e3);
}

// sha256.
static const uint32_t sha_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))
static void sha_block(uint32_t state[8], const uint8_t *data) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    memcpy(&w[i], data + 4 * i, 4);
    w[i] = __builtin_bswap32(w[i]);
  }
  for (int i = 16; i < 64; i++) {
    uint32_t low = ROTATE(w[i - 15], 7) ^ ROTATE(w[i - 15], 18) ^ w[i - 15] >> 3;
    uint32_t high = ROTATE(w[i - 2], 17) ^ ROTATE(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 64; i++) {
    uint32_t one = h + (ROTATE(e, 6) ^ ROTATE(e, 11) ^ ROTATE(e, 25)) + ((e & f) ^ (~e & g)) + sha_constants[i] + w[i];
    uint32_t two = (ROTATE(a, 2) ^ ROTATE(a, 13) ^ ROTATE(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}
enum { sha_bytes = 1 << 20 };
static uint64_t sha256(void) {
  static uint8_t *data;
  if (data == NULL) {
    data = need(malloc(sha_bytes));
    uint64_t seed = 3;
    for (int i = 0; i < sha_bytes; i++) data[i] = (uint8_t)next_random(&seed);
  }
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (int i = 0; i < sha_bytes; i += 64) sha_block(state, data + i);
  return (uint64_t)state[0] << 32 | state[1];
}

// chase-l1, chase-4m: a ring of pointers in random order, one to a cache line.
static uint64_t chase(void ***ring, size_t bytes, uint64_t steps) {
  size_t count = bytes / 64;
  if (*ring == NULL) {
    // Whole huge pages, so that the row is about the caches, not about what pages there were.
    size_t whole = (bytes + (1 << 21) - 1) >> 21 << 21;
    char *memory = need(aligned_alloc(1 << 21, whole));
    madvise(memory, whole, MADV_HUGEPAGE);
    uint32_t *next = need(malloc(count * sizeof *next));
    for (size_t i = 0; i < count; i++) next[i] = (uint32_t)i;
    uint64_t seed = 4;
    for (size_t i = count - 1; i > 0; i--) {
      size_t j = next_random(&seed) % i;
      uint32_t swap = next[i];
      next[i] = next[j], next[j] = swap;
    }
    for (size_t i = 0; i < count; i++) *(void **)(memory + i * 64) = memory + (size_t)next[i] * 64;
    free(next);
    *ring = (void **)memory;
  }
  void **at = *ring;
  for (uint64_t i = 0; i < steps; i += 8) {
    at = *at, at = *at, at = *at, at = *at;
    at = *at, at = *at, at = *at, at = *at;
  }
  return (uint64_t)((char *)at - (char *)*ring);
}
enum { chases_l1 = 3000000, chases_4m = 500000 };
static uint64_t chase_l1(void) {
  static void **ring;
  return chase(&ring, 1 << 14, chases_l1);
}
static uint64_t chase_4m(void) {
  static void **ring;
  return chase(&ring, 1 << 22, chases_4m);
}

// memcpy: 4 MiB at a time.
enum { copy_bytes = 1 << 22, copies = 8 };
static uint64_t copying(void) {
  static uint8_t *from, *to;
  if (from == NULL) {
    from = need(malloc(copy_bytes)), to = need(malloc(copy_bytes));
    uint64_t seed = 5;
    for (size_t i = 0; i < copy_bytes; i++) from[i] = (uint8_t)next_random(&seed);
  }
  uint64_t sum = 0;
  for (int i = 0; i < copies; i++) {
    from[i] = 0;
    memcpy(to, from, copy_bytes);
    __asm__ volatile("" : : "r"(to) : "memory");
    sum = mix(sum, to[i] + to[copy_bytes - 1 - i]);
  }
  return sum;
}

// hash: a map from strings to numbers, open addressing: inserts, look-ups that hit, look-ups that miss.
enum { keys = 20000, slots = 1 << 16 };
struct slot {
  uint64_t hash;
  uint32_t value;
  char key[20];
};
static struct slot *find(struct slot *map, const char *key) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char *c = key; *c != 0; c++) hash = (hash ^ (uint8_t)*c) * 0x100000001B3u;
  hash |= 1;
  size_t i = hash >> 40 & (slots - 1);
  while (map[i].hash != 0 && (map[i].hash != hash || strcmp(map[i].key, key) != 0)) i = (i + 1) & (slots - 1);
  return &map[i];
}
static uint64_t hash(void) {
  static struct slot *map;
  static char (*names)[20];
  if (map == NULL) {
    map = need(malloc(slots * sizeof *map));
    names = need(malloc(2 * keys * sizeof *names));
    uint64_t seed = 6;
    for (int i = 0; i < 2 * keys; i++)
      snprintf(names[i], sizeof names[i], "%s.%llx", i & 1 ? "x" : "key", (unsigned long long)(next_random(&seed) & 0xFFFFFFFFFF));
  }
  memset(map, 0, slots * sizeof *map);
  uint64_t sum = 0;
  for (int i = 0; i < keys; i++) {
    struct slot *slot = find(map, names[i]);
    if (slot->hash == 0) {
      uint64_t value = 0xCBF29CE484222325u;
      for (const char *c = names[i]; *c != 0; c++) value = (value ^ (uint8_t)*c) * 0x100000001B3u;
      slot->hash = value | 1;
      slot->value = (uint32_t)i;
      strcpy(slot->key, names[i]);
    }
  }
  for (int i = 0; i < 2 * keys; i++) {
    struct slot *slot = find(map, names[i]);
    if (slot->hash != 0) sum = mix(sum, slot->value);
  }
  return sum;
}

// lz: LZ77 with a hash of the last position, and back again.
enum { lz_bytes = 1 << 17, lz_table = 1 << 13 };
static size_t lz_pack(const uint8_t *in, size_t count, uint8_t *out) {
  static uint32_t table[lz_table];
  memset(table, 0, sizeof table);
  size_t at = 0, written = 0, literal = 0;
  while (at + 4 <= count) {
    uint32_t four;
    memcpy(&four, in + at, 4);
    uint32_t index = four * 2654435761u >> 19;
    size_t before = table[index];
    table[index] = (uint32_t)at;
    uint32_t there;
    memcpy(&there, in + before, 4);
    if (before >= at || at - before > 65535 || there != four) {
      at++;
      if (at - literal < 255) continue;
    }
    size_t length = 0;
    if (before < at && at - before <= 65535 && there == four)
      while (at + length < count && length < 255 && in[before + length] == in[at + length]) length++;
    out[written++] = (uint8_t)(at - literal);
    memcpy(out + written, in + literal, at - literal);
    written += at - literal;
    size_t distance = length == 0 ? 0 : at - before;
    out[written++] = (uint8_t)length;
    out[written++] = (uint8_t)distance;
    out[written++] = (uint8_t)(distance >> 8);
    at += length;
    literal = at;
  }
  out[written++] = (uint8_t)(count - literal);
  memcpy(out + written, in + literal, count - literal);
  written += count - literal;
  out[written++] = 0, out[written++] = 0, out[written++] = 0;
  return written;
}
static size_t lz_unpack(const uint8_t *in, size_t count, uint8_t *out) {
  size_t written = 0;
  for (size_t at = 0; at < count;) {
    size_t literal = in[at++];
    for (size_t i = 0; i < literal; i++) out[written++] = in[at++];
    size_t length = in[at], distance = in[at + 1] | (size_t)in[at + 2] << 8;
    at += 3;
    for (size_t i = 0; i < length; i++, written++) out[written] = out[written - distance];
  }
  return written;
}
static uint64_t lz(void) {
  static uint8_t *text, *packed, *back;
  if (text == NULL) {
    static const char *const words[] = {"the ", "guest ", "memory ", "of ", "a ", "translator ", "block ", "is ", "page ", "and ", "register\n", "x", "0"};
    text = need(malloc(lz_bytes)), packed = need(malloc(2 * lz_bytes)), back = need(malloc(lz_bytes + 512));
    uint64_t seed = 7;
    for (size_t at = 0; at < lz_bytes;) {
      const char *word = words[next_random(&seed) % 13];
      for (; *word != 0 && at < lz_bytes; word++) text[at++] = (uint8_t)*word;
      if (next_random(&seed) % 4 == 0 && at < lz_bytes) text[at++] = (uint8_t)(next_random(&seed) % 64 + 32);
    }
  }
  uint64_t sum = 0;
  for (int pass = 0; pass < 2; pass++) {
    size_t size = lz_pack(text, lz_bytes, packed);
    size_t length = lz_unpack(packed, size, back);
    if (length != lz_bytes || memcmp(text, back, lz_bytes) != 0) return 0;
    sum = mix(sum, size);
  }
  return sum;
}

// json: counts and adds up what a document of records holds, by recursive descent.
struct json {
  const char *at;
  uint64_t strings, numbers, keys, sum;
  int depth;
};
static void json_space(struct json *json) {
  while (*json->at == ' ' || *json->at == '\n') json->at++;
}
static void json_string(struct json *json) {
  uint64_t value = 0;
  for (json->at++; *json->at != '"'; json->at++) {
    if (*json->at == '\\') json->at++;
    value = value * 31 + (uint8_t)*json->at;
  }
  json->at++;
  json->strings++;
  json->sum = mix(json->sum, value);
}
static __attribute__((noinline)) void json_value(struct json *json) {
  json_space(json);
  switch (*json->at) {
  case '{':
  case '[': {
    char close = *json->at == '{' ? '}' : ']';
    json->depth++;
    json->at++;
    for (json_space(json); *json->at != close; json_space(json)) {
      if (*json->at == ',') {
        json->at++;
        json_space(json);
      }
      if (close == '}') {
        json_string(json);
        json->keys++;
        json_space(json);
        json->at++; // the colon
      }
      json_value(json);
    }
    json->at++;
    json->depth--;
    break;
  }
  case '"': json_string(json); break;
  case 't':
  case 'n': json->at += 4; break;
  case 'f': json->at += 5; break;
  default: {
    double value = 0, scale = 1;
    int negative = *json->at == '-', fraction = 0;
    if (negative) json->at++;
    for (;; json->at++) {
      unsigned digit = (unsigned char)*json->at - '0';
      if (*json->at == '.') {
        fraction = 1;
      } else if (digit < 10) {
        value = value * 10 + digit;
        if (fraction) scale *= 10;
      } else {
        break;
      }
    }
    value /= scale;
    json->numbers++;
    json->sum = mix(json->sum, (uint64_t)(int64_t)(negative ? -value : value));
  }
  }
}
enum { json_records = 1500 };
static uint64_t json(void) {
  static char *text;
  if (text == NULL) {
    text = need(malloc(json_records * 256));
    uint64_t seed = 8;
    size_t at = 0;
    at += (size_t)sprintf(text + at, "[\n");
    for (int i = 0; i < json_records; i++) {
      uint64_t r = next_random(&seed);
      at += (size_t)sprintf(text + at, "  {\"id\": %d, \"name\": \"user \\\"%llx\\\"\", \"active\": %s, \"score\": -%u.%02u,\n   \"tags\": [\"a%u\", \"bb\", null], \"at\": {\"x\": %u, \"y\": %u}}%s\n", i,
          (unsigned long long)(r & 0xFFFFFF), r & 1 ? "true" : "false", (unsigned)(r >> 8 & 1023), (unsigned)(r >> 20 & 63), (unsigned)(r >> 30 & 15),
          (unsigned)(r >> 34 & 4095), (unsigned)(r >> 46 & 4095), i + 1 < json_records ? "," : "");
    }
    sprintf(text + at, "]\n");
  }
  struct json scan = {.at = text};
  for (int pass = 0; pass < 4; pass++) {
    scan.at = text;
    json_value(&scan);
  }
  return mix(mix(mix(scan.sum, scan.strings), scan.numbers), scan.keys);
}

// trees: binary trees made, walked and freed.
struct node {
  struct node *left, *right;
};
static __attribute__((noinline)) struct node *grow(int depth) {
  struct node *node = need(malloc(sizeof *node));
  node->left = depth == 0 ? NULL : grow(depth - 1);
  node->right = depth == 0 ? NULL : grow(depth - 1);
  return node;
}
static __attribute__((noinline)) uint64_t walk(const struct node *node) {
  return node->left == NULL ? 1 : 1 + walk(node->left) + walk(node->right);
}
static __attribute__((noinline)) void fell(struct node *node) {
  if (node->left != NULL) fell(node->left), fell(node->right);
  free(node);
}
static uint64_t trees(void) {
  uint64_t sum = 0;
  for (int i = 0; i < 12; i++) {
    struct node *tree = grow(12);
    sum = mix(sum, walk(tree));
    fell(tree);
  }
  return sum;
}

// virtual: calls through a table of functions, the kind of object changing in a pattern that a processor can learn.
struct shape {
  const struct methods *methods;
  uint64_t a, b;
};
struct methods {
  uint64_t (*area)(const struct shape *);
  void (*scale)(struct shape *, uint64_t);
};
static uint64_t area_square(const struct shape *s) { return s->a * s->a; }
static uint64_t area_box(const struct shape *s) { return s->a * s->b; }
static uint64_t area_triangle(const struct shape *s) { return s->a * s->b / 2; }
static uint64_t area_ring(const struct shape *s) { return 3 * (s->a * s->a - s->b); }
static void scale_one(struct shape *s, uint64_t by) { s->a = (s->a + by) & 1023; }
static void scale_two(struct shape *s, uint64_t by) { s->a = (s->a + by) & 1023, s->b = (s->b ^ by) & 1023; }
static const struct methods kinds[] = {{area_square, scale_one}, {area_box, scale_two}, {area_triangle, scale_two}, {area_ring, scale_one}};
enum { shapes = 32, shape_rounds = 16000 };
static uint64_t virtual_calls(void) {
  static struct shape all[shapes];
  uint64_t seed = 9, sum = 0;
  for (int i = 0; i < shapes; i++) all[i] = (struct shape){&kinds[next_random(&seed) & 3], (uint64_t)i, (uint64_t)i / 2};
  for (int round = 0; round < shape_rounds; round++)
    for (int i = 0; i < shapes; i++) {
      sum += all[i].methods->area(&all[i]);
      all[i].methods->scale(&all[i], sum & 7);
    }
  return sum;
}

const struct program computation[] = {
    {"calls", "computation", 1028457, calls},
    {"sort", "computation", sorted, sort},
    {"crc", "computation", crc_bytes * crc_passes, crc},
    {"interpreter", "computation", 30 * interpreter_rounds, interpreter},
    {"dgemm", "computation", 2 * order * order * order, dgemm},
    {"libm", "computation", libm_calls, libm},
    {"sha256", "computation", sha_bytes, sha256},
    {"chase-l1", "computation", chases_l1, chase_l1},
    {"chase-4m", "computation", chases_4m, chase_4m},
    {"memcpy", "computation", (uint64_t)copy_bytes * copies / 64, copying},
    {"hash", "computation", 3 * keys, hash},
    {"lz", "computation", 2 * lz_bytes, lz},
    {"json", "computation", 4 * json_records, json},
    {"trees", "computation", 12 * 8191, trees},
    {"virtual", "computation", 2 * shapes * shape_rounds, virtual_calls},
    {NULL, NULL, 0, NULL},
};
