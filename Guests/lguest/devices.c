// SPDX-License-Identifier: Apache-2.0
// Devices of the ring-1 guest, where its era has them: a console that is written to, a disk whose first sector is read and
// whose second is written, a source of entropy, and in the first era a network card; and the early console.
#include "ring1.h"

// Buffers, each within a page.
#if LAYOUT != 4000
static char text[256] __attribute__((aligned(256)));
#endif
static volatile uint8_t data[512] __attribute__((aligned(512)));
static const char written[] = "written by a driver\n";

// What a disk's second sector is to hold.
static uint8_t pattern(uint32_t i) { return (uint8_t)(i * 3 + 1); }
static void fill(uint8_t (*with)(uint32_t)) {
  for (uint32_t i = 0; i < sizeof data; i++) data[i] = with ? with(i) : 0;
}
static int has_pattern(void) {
  for (uint32_t i = 0; i < sizeof data; i++)
    if (data[i] != pattern(i)) return 0;
  return 1;
}

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

// Sleeps until a word is not 0: an interrupt comes with it.
static void await(volatile uint32_t *word) {
  for (;;) {
    guest_data.irq_enabled = 0;
    if (*word) break;
    call(HALT, 0, 0, 0, 0);
    guest_data.irq_enabled = 0x200;
    call(FLUSH_ASYNC, 0, 0, 0, 0);
  }
  guest_data.irq_enabled = 0x200;
  call(FLUSH_ASYNC, 0, 0, 0, 0);
}

// struct lguest_block_page.
struct request {
  uint32_t kind, sector, bytes, result, sectors;
};

// `data`, in two pieces.
static void put_data(volatile struct buffer *buffer) {
  buffer->address[0] = physical(data), buffer->count[0] = 100;
  buffer->address[1] = physical(data + 100), buffer->count[1] = sizeof data - 100, buffer->count[2] = 0;
}

// Reads a sector (0) or writes it (1), and says how that went.
static uint32_t ask(volatile struct request *page, uint32_t key, uint32_t kind, uint32_t sector, volatile struct buffer *bound) {
  volatile struct buffer sent;
  if (kind) put_data(&sent);
  else put_data(bound), sent.count[0] = 0;
  page->kind = kind, page->sector = sector, page->bytes = sizeof data, page->result = 0;
  sent.used = 0;
  call(SEND_DMA, key, physical(&sent), 0, 0);
  // What was sent has been looked at, but for the data.
  sent.address[0] = sent.address[1] = 0xfffff000;
  await(&page->result);
  check(bound->used == (kind || page->result != 1 ? 0 : sizeof data), "a disk's used_len");
  bound->used = 0;
  return page->result;
}

static void disk(uint32_t key, volatile struct request *page, uint32_t line) {
  static volatile struct buffer bound;
  check(page->sectors > 1, "a disk's size");
  check(call(BIND_DMA, key, physical(&bound), 1 << 8 | line, 0) == 1, "a disk's BIND_DMA");
  check(ask(page, key, 0, 0, &bound) == 1, "a disk's result");
  check(data[0] == 's' && data[511] == 'e', "a disk's first sector");
  fill(pattern);
  check(ask(page, key, 1, 1, &bound) == 1, "a write's result");
  fill(0);
  check(ask(page, key, 0, 1, &bound) == 1 && has_pattern(), "what was written");
  check(ask(page, key, 0, page->sectors, &bound) == 2, "a sector behind the last");
  check(ask(page, key, 2, 0, &bound) == 2, "a request of no known kind");
  check(count[32 + line] >= 5, "a disk's interrupts");
}

enum { FRAME = 64, ROUNDS = 20 };
// A frame in two pieces.
static void put_frame(volatile struct buffer *buffer, volatile uint8_t *frame) {
  buffer->address[0] = physical(frame), buffer->count[0] = 40;
  buffer->address[1] = physical(frame + 40), buffer->count[1] = FRAME - 40, buffer->count[2] = 0;
}

// A card: `FRAMES` sends frames to a peer that sends each back, which is this guest with `ECHO`.
static void card(uint32_t key, volatile uint8_t *page, uint32_t line, int mode) {
  static volatile uint8_t in[2][FRAME] __attribute__((aligned(FRAME))), out[FRAME] __attribute__((aligned(FRAME)));
  static volatile struct buffer bound[2];
  volatile struct buffer sent;
  // At place 0 is who wants every frame; the guest is at 1.
  check((page[0] & 3) == 3 && !page[6], "a network's page");
  page[6] = 2, page[7] = 0, page[8] = guest_data.number & 0xff, page[9] = guest_data.number >> 8, page[10] = page[11] = 0;
  check(guest_data.number, "the guest's number");
  for (int i = 0; i < 2; i++) put_frame(&bound[i], in[i]);
  check(call(BIND_DMA, key + 4, physical(bound), 2 << 8 | line, 0) == 1, "a network's BIND_DMA");
  put_frame(&sent, out);
  for (uint32_t i = 0; i < FRAME; i++) out[i] = i;
  if (mode == ECHO) say("waiting\n");
  for (uint32_t i = 0; mode != ECHO && i < (mode == FRAMES ? ROUNDS : 1); i++) {
    out[14] = i, out[15] = 0;
    sent.used = 0;
    call(SEND_DMA, key, physical(&sent), 0, 0);
    check(sent.used == FRAME, "a frame's used_len");
  }
  for (uint32_t seen = 0; mode == ECHO || (mode == FRAMES && seen != (1u << ROUNDS) - 1);) {
    guest_data.irq_enabled = 0;
    if (!bound[0].used && !bound[1].used) call(HALT, 0, 0, 0, 0);
    guest_data.irq_enabled = 0x200;
    call(FLUSH_ASYNC, 0, 0, 0, 0);
    for (int i = 0; i < 2; i++) {
      if (!bound[i].used) continue;
      check(bound[i].used == FRAME && in[i][16] == 16 && in[i][FRAME - 1] == FRAME - 1, "a frame");
      if (mode == ECHO) {
        for (uint32_t j = 0; j < FRAME; j++) out[j] = in[i][j];
        out[15] = 1;
        call(SEND_DMA, key, physical(&sent), 0, 0);
      } else {
        check(in[i][15] == 1 && in[i][14] < ROUNDS && !(seen & 1u << in[i][14]), "a frame that was sent back");
        seen |= 1u << in[i][14];
      }
      bound[i].used = 0;
    }
  }
  check(mode != FRAMES || count[32 + line] >= 1, "a network's interrupt");
  page[6] = 0;
  check(call(BIND_DMA, key + 4, physical(bound), 0, 0) == 1, "the end of a network's BIND_DMA");
}

void devices(uint32_t ram, int mode) {
  // Sixteen descriptors: type, features, status, number of pages, first page.
  volatile struct {
    uint16_t type, features, status, pages;
    uint32_t first;
  } *rows = (volatile void *)DEVICES;
  check(rows[0].type == 1 && !rows[15].type, "the console's descriptor");
  say(written);

  // What is typed comes to a buffer of two that are bound, with an interrupt.
  static volatile struct buffer input[2];
  static volatile char bytes[2];
  for (int i = 0; i < 2; i++) input[i].address[0] = physical(&bytes[i]), input[i].count[0] = 1;
  check(call(BIND_DMA, 0, physical(input), 2 << 8 | 1, 0) == 1, "BIND_DMA");
  check(call(BIND_DMA, 0, physical(input), 2 << 8 | 99, 0) == 0, "BIND_DMA to an interrupt that is not there");
  check(call(BIND_DMA, 4, physical(input), 2 << 8 | 1, 0) == 0, "BIND_DMA to nobody's key");
  const char *expected = mode == TYPED ? "ping\n" : "";
  for (uint32_t i = 0; expected[i]; i++) {
    while (!input[0].used && !input[1].used) call(FLUSH_ASYNC, 0, 0, 0, 0);
    uint32_t which = !input[0].used;
    check(input[which].used == 1 && bytes[which] == expected[i], "what was typed");
    input[which].used = 0;
  }
  check(mode != TYPED || count[32 + 1] >= 1, "the console's interrupt");
  check(call(BIND_DMA, 0, physical(input), 0, 0) == 1, "the end of BIND_DMA");

  // A driver's interrupt is by its device's place.
  for (uint32_t i = 1; i < 16; i++) {
    uint32_t key = rows[i].first << 12;
    volatile void *page = (volatile void *)(DEVICES + key - ram);
    if (rows[i].type == 2) card(key, page, i + 1, mode);
    if (rows[i].type == 3) disk(key, page, i + 1);
  }
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
  queue->given = queue->used[1]; // 0, but where nobody resets a device
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
    for (int i = 0; i < 5; i++) {
      put(queue, 0, data, 16, 2);
      exchange(queue, number);
    }
    uint32_t any = 0;
    for (int i = 0; i < 16; i++) any |= data[i];
    check(any, "entropy");
  } else if (type == 2) {
    // To 2.6.24 a header had eight bytes more.
    static volatile uint32_t header[6] = {0, 0, 0, 0, 0x5a5a5a5a, 0xa5a5a5a5};
    static volatile uint8_t status;
    // The first sector is read, the second written and read back.
    for (uint32_t step = 0; step < 3; step++) {
      header[0] = step == 1, header[2] = step > 0;
      fill(step == 1 ? pattern : 0);
      status = 0xff;
      put(queue, 0, header, LAYOUT == 2624 ? 24 : 16, 1);
      put(queue, 1, data, 512, step == 1 ? 1 : 3);
      put(queue, 2, &status, 1, 2);
      exchange(queue, number);
      check(status == 0, "a disk's status");
      if (step == 0) check(data[0] == 's' && data[511] == 'e', "a disk's first sector");
      if (step == 2) check(has_pattern(), "a disk's second sector");
    }
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

void devices(uint32_t ram, int mode) {
  static uint8_t memory[3 * 4096] __attribute__((aligned(4096)));
  uint32_t consoles = 0;
  (void)mode;
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

void devices(uint32_t ram, int mode) {
  volatile uint8_t *page = (volatile uint8_t *)DEVICES, *row = page;
  uint32_t consoles = 0;
  (void)mode;
  while (*row) {
    uint32_t type = row[0], number = type == 3, place = ram + (uint32_t)(row - page);
    volatile uint8_t *found = 0, *next;
    if (type == 3) consoles++;
#if LAYOUT == 2624
    // Type, bytes of fields, status; fields of type 2 are queues.
    volatile uint8_t *status = row + 2, *field = row + 3;
    uint32_t seen = 0;
    for (next = field + row[1]; field < next; field += 2 + field[1])
      if ((field[0] & 0x7f) == 2 && seen++ == number) {
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
