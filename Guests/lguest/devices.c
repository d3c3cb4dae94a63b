// SPDX-License-Identifier: Apache-2.0
// Devices of the ring-1 guest, where its era has them: a console that is written to, a disk whose first sector is read, and
// a source of entropy; and the early console.
#include "ring1.h"

// Buffers, each within a page.
#if LAYOUT != 4000
static char text[256] __attribute__((aligned(256)));
#endif
#if LAYOUT != 2623
static volatile uint8_t data[512] __attribute__((aligned(512)));
#endif
static const char written[] = "written by a driver\n";

#if LAYOUT == 2623
// struct lguest_dma.
struct buffer {
  uint32_t used, address[16];
  uint16_t count[16];
};
_Static_assert(sizeof(struct buffer) == 100, "struct lguest_dma");

void say(const char *from) {
  static volatile struct buffer buffer;
  uint32_t n = 0;
  while (from[n] && n < sizeof text) text[n] = from[n], n++;
  buffer.used = 0;
  buffer.address[0] = physical(text), buffer.count[0] = n, buffer.count[1] = 0;
  call(SEND_DMA, 0, physical(&buffer), 0, 0);
  if (buffer.used != n) for (;;) call(SHUTDOWN, physical("used_len"), 0, 0, 0);
}

void devices(uint32_t ram, int typed) {
  // Sixteen descriptors: type, features, status, number of pages, first page.
  volatile struct {
    uint16_t type, features, status, pages;
    uint32_t first;
  } *rows = (volatile void *)DEVICES;
  (void)ram;
  check(rows[0].type == 1 && !rows[15].type, "the console's descriptor");
  say(written);

  // What is typed comes to a buffer of two that are bound, with an interrupt.
  static volatile struct buffer input[2];
  static volatile char bytes[2];
  for (int i = 0; i < 2; i++) input[i].address[0] = physical(&bytes[i]), input[i].count[0] = 1;
  check(call(BIND_DMA, 0, physical(input), 2 << 8 | 3, 0) == 1, "BIND_DMA");
  check(call(BIND_DMA, 4, physical(input), 2 << 8 | 99, 0) == 0, "BIND_DMA to an interrupt that is not there");
  const char *expected = typed ? "ping\n" : "";
  for (uint32_t i = 0; expected[i]; i++) {
    while (!input[0].used && !input[1].used) call(HALT, 0, 0, 0, 0);
    uint32_t which = !input[0].used;
    check(input[which].used == 1 && bytes[which] == expected[i], "what was typed");
    input[which].used = 0;
  }
  check(!typed || count[32 + 3] >= 1, "the console's interrupt");
  check(call(BIND_DMA, 0, physical(input), 0, 0) == 1, "the end of BIND_DMA");
}
#else

// A queue: descriptors, what is available, what has been used.
struct queue {
  volatile uint8_t *start;
  volatile struct {
    uint32_t low, high, length;
    uint16_t flags, next;
  } *descriptors;
  volatile uint16_t *available, *used;
  uint16_t size, given;
  uint32_t page;
};
#if LAYOUT == 4000
static uint32_t common; // of a PCI device: where its registers are
#endif

static void lay(struct queue *queue, volatile void *start, uint16_t size) {
  queue->start = start;
  queue->descriptors = start;
  queue->available = (volatile uint16_t *)((uint32_t)start + size * 16u);
  queue->used = (volatile uint16_t *)(((uint32_t)start + size * 18u + 6 + 4095) & ~4095u);
  queue->size = size;
  queue->given = 0;
}

static void put(struct queue *queue, uint32_t index, const volatile void *place, uint32_t length, uint32_t flags) {
  queue->descriptors[index].low = physical(place), queue->descriptors[index].high = 0;
  queue->descriptors[index].length = length;
  queue->descriptors[index].flags = flags, queue->descriptors[index].next = index + 1;
}

// Makes the chain at 0 available, and waits for its end.
static void exchange(struct queue *queue, uint16_t number) {
  queue->available[2 + queue->given % queue->size] = 0;
  queue->available[1] = ++queue->given;
#if LAYOUT == 4000
  *(volatile uint16_t *)(common + 0x38) = number;
#else
  (void)number;
  call(NOTIFY, queue->page << 12, 0, 0, 0);
#endif
  while (queue->used[1] != queue->given) call(FLUSH_ASYNC, 0, 0, 0, 0);
}

// The first queue, or the console's second, of a device of a type; `line` is the interrupt.
static void drive(uint32_t type, struct queue *queue, uint16_t number, uint32_t line) {
  uint32_t before = count[32 + line];
  guest_data.irq_enabled = 0x200;
  if (type == 3) {
    put(queue, 0, written, sizeof written - 1, 0);
    exchange(queue, number);
  } else if (type == 4) {
    put(queue, 0, data, 16, 2);
    exchange(queue, number);
    uint32_t any = 0;
    for (int i = 0; i < 16; i++) any |= data[i];
    check(any, "entropy");
  } else if (type == 2) {
    // To 2.6.24 a header had eight bytes more.
    static volatile uint32_t header[6];
    static volatile uint8_t status;
    status = 0xff;
    put(queue, 0, header, LAYOUT == 2624 ? 24 : 16, 1);
    put(queue, 1, data, 512, 3);
    put(queue, 2, &status, 1, 2);
    exchange(queue, number);
    check(status == 0, "a disk's status");
    check(data[0] == 's' && data[511] == 'e', "a disk's first sector");
  } else return;
  while (count[32 + line] == before) call(FLUSH_ASYNC, 0, 0, 0, 0);
}

#if LAYOUT == 4000
static void out(uint32_t port, uint32_t value) { asm volatile("outl %0, %w1" : : "a"(value), "Nd"(port)); }
static void out_byte(uint32_t port, uint8_t value) { asm volatile("outb %0, %w1" : : "a"(value), "Nd"(port)); }
static uint32_t in(uint32_t port) {
  uint32_t value;
  asm volatile("inl %w1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static void at(uint32_t slot, uint32_t place) { out(0xcf8, 0x80000000 | slot << 11 | place); }

// The register for emergencies, through the window in configuration space: slot 1 is the console's.
void say(const char *from) {
  for (; *from; from++) {
    at(1, 0x88);
    out_byte(0xcfc, 0);
    at(1, 0x8c);
    out(0xcfc, 0x3c + 8);
    at(1, 0x90);
    out(0xcfc, 4);
    at(1, 0x94);
    out(0xcfc, *(const uint8_t *)from);
  }
}

void devices(uint32_t ram, int typed) {
  static uint8_t memory[3 * 4096] __attribute__((aligned(4096)));
  uint32_t consoles = 0;
  (void)typed;
  at(0, 8);
  check(in(0xcfc) >> 16 == 0x0600, "the bridge");
  for (uint32_t slot = 1; slot < 32; slot++) {
    at(slot, 0);
    uint32_t identity = in(0xcfc);
    if ((identity & 0xffff) != 0x1af4) continue;
    uint32_t type = (identity >> 16) - 0x1040;
    if (type == 3) consoles++;
    at(slot, 0x3c);
    uint32_t line = in(0xcfc) & 0xff;
    at(slot, 0x10);
    common = DEVICES + (in(0xcfc) & ~15u) - ram;
    volatile uint8_t *status = (volatile uint8_t *)(common + 20);
    *status = 0;
    *status = 1 | 2;
    *(volatile uint32_t *)(common + 8) = 1;
    *(volatile uint32_t *)(common + 12) = 1; // version 1
    *status = 1 | 2 | 8;
    check(*status & 8, "features");
    struct queue queue;
    uint16_t number = type == 3;
    for (uint32_t i = 0; i < sizeof memory; i++) memory[i] = 0;
    *(volatile uint16_t *)(common + 22) = number;
    lay(&queue, memory, *(volatile uint16_t *)(common + 24));
    *(volatile uint32_t *)(common + 32) = physical(queue.start);
    *(volatile uint32_t *)(common + 40) = physical(queue.available);
    *(volatile uint32_t *)(common + 48) = physical(queue.used);
    *(volatile uint16_t *)(common + 28) = 1;
    *status = 1 | 2 | 8 | 4;
    drive(type, &queue, number, line);
    *status = 0;
  }
  check(consoles == 1, "one console");
}
#else

void say(const char *from) {
  uint32_t n = 0;
  while (from[n] && n < sizeof text - 1) text[n] = from[n], n++;
  text[n] = 0;
  call(NOTIFY, physical(text), 0, 0, 0);
}

void devices(uint32_t ram, int typed) {
  volatile uint8_t *page = (volatile uint8_t *)DEVICES, *row = page;
  uint32_t consoles = 0;
  (void)typed;
  while (*row) {
    uint32_t type = row[0], number = type == 3, place = ram + (uint32_t)(row - page);
    volatile uint8_t *found = 0, *next;
    if (type == 3) consoles++;
#if LAYOUT == 2624
    // Type, bytes of fields, status; fields of type 2 are queues.
    volatile uint8_t *status = row + 2, *field = row + 3;
    uint32_t seen = 0;
    for (next = field + row[1]; field < next; field += 2 + field[1])
      if (field[0] == 2 && seen++ == number) {
        found = field + 2;
        field[0] |= 0x80;
      }
    *status = 1 | 2 | 4;
    (void)place;
#else
    // Type, number of queues, bytes of features, bytes of configuration, status.
    volatile uint8_t *status = row + 4;
    found = row + 5 + 8 * number;
    next = row + 5 + 8 * row[1] + 2 * row[2] + row[3];
    *status = 0;
    call(NOTIFY, place, 0, 0, 0);
    *status = 1 | 2 | 4;
    call(NOTIFY, place, 0, 0, 0);
#endif
    struct queue queue;
    check(found != 0, "a queue");
    if (found) {
      queue.page = *(volatile uint32_t *)(found + 4);
      lay(&queue, (volatile void *)(DEVICES + (queue.page << 12) - ram), *(volatile uint16_t *)found);
      drive(type, &queue, number, *(volatile uint16_t *)(found + 2));
    }
    row = next;
  }
  check(consoles == 1, "one console");
}
#endif
#endif
