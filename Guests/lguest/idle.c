// SPDX-License-Identifier: Apache-2.0
// A kernel of level 1 for lguest that sleeps: its clock event is off and it lies in HALT until something is typed at its
// console, a virtio device of the bus of Linux 2.6.31 to 3.19. A line is answered with itself; "spin", "die" and "off" are
// done. Linear addresses stay physical.
#include <stdint.h>

enum { INIT = 1, SHUTDOWN = 2, LOAD_IDT_ENTRY = 6, HALT = 10, NOTIFY = 17 };

// struct lguest_data of Linux 3.1 to 3.19.
struct guest_data {
  uint32_t irq_enabled, blocked, cr2;
  int32_t seconds, nanoseconds;
  uint32_t irq_pending;
  uint8_t status[64];
  uint32_t calls[64][5];
  uint32_t reserve_mem, tsc_khz, noirq[2], kernel_address, syscall_vec;
};
struct guest_data guest_data;
extern char iret_window[], iret_window_end[];
extern void handler_33(void);

static void call(uint32_t number, uint32_t a, uint32_t b, uint32_t c) {
  asm volatile("int $0x1f" : "+a"(number) : "b"(a), "c"(b), "d"(c), "S"(0) : "memory");
}

// What an interrupt says is in the queue.
void handle(void *frame) { (void)frame; }

// A virtqueue in the legacy layout (Virtual I/O Device specification 1.0, 2.4.2), where the device's descriptor says.
enum { WRITE = 2 };
struct descriptor {
  uint64_t address;
  uint32_t count;
  uint16_t flags, next;
};
struct ring {
  uint16_t flags;
  volatile uint16_t index;
  uint16_t slots[];
};
struct used {
  uint16_t flags;
  volatile uint16_t index;
  struct {
    uint32_t number, count;
  } slots[];
};
struct queue {
  uint32_t page, size;
  struct descriptor *descriptors;
  struct ring *available;
  struct used *used;
};

// The configuration of queue `number`: its size, interrupt and page.
static struct queue find(uint32_t device, uint32_t number) {
  const uint16_t *words = (const uint16_t *)(device + 5 + 8 * number);
  struct queue queue = {.page = (words[2] | (uint32_t)words[3] << 16) << 12, .size = words[0]};
  uint32_t ring = queue.page + 16 * queue.size, used = (ring + 6 + 2 * queue.size + 4095) & ~4095u;
  queue.descriptors = (struct descriptor *)queue.page;
  queue.available = (struct ring *)ring;
  queue.used = (struct used *)used;
  return queue;
}

static void offer(struct queue *queue, uint16_t number, const char *bytes, uint32_t count, uint16_t flags) {
  queue->descriptors[number] = (struct descriptor){(uint32_t)bytes, count, flags, 0};
  queue->available->slots[queue->available->index % queue->size] = number;
  asm volatile("" : : : "memory");
  queue->available->index++;
}

static struct queue input, output;
enum { LINE = 64 };
static char typed[LINE], line[LINE];

static void say(const char *text, uint32_t count) {
  offer(&output, 0, text, count, 0);
  call(NOTIFY, output.page, 0, 0);
}

static int is(const char *word, uint32_t count) {
  uint32_t i = 0;
  while (i < count && word[i] && word[i] == line[i]) i++;
  return i == count && !word[i];
}

static void answer(uint32_t count) {
  if (is("spin", count)) for (;;) {}
  if (is("die", count)) call(99, 0, 0, 0);
  if (is("off", count)) call(SHUTDOWN, (uint32_t)"Power down", 1, 0);
  line[count] = '\n';
  say(line, count + 1);
}

void main(void) {
  for (int i = 0; i < 64; i++) guest_data.status[i] = 0xff;
  guest_data.kernel_address = 0xC0000000;
  guest_data.syscall_vec = 0x80;
  guest_data.noirq[0] = (uint32_t)iret_window;
  guest_data.noirq[1] = (uint32_t)iret_window_end;
  call(INIT, (uint32_t)&guest_data, 0, 0);

  // The devices' descriptors are where RAM ends, which boot_params says: a console has type 3.
  uint32_t device = *(const uint32_t *)(0x2d0 + 8);
  for (const uint8_t *row; row = (const uint8_t *)device, row[0] && row[0] != 3;) device += 5u + 8 * row[1] + 2 * row[2] + row[3];
  uint32_t handler = (uint32_t)handler_33, vector = 32 + ((const uint16_t *)(device + 5))[1];
  call(LOAD_IDT_ENTRY, vector, 0x600000 | (handler & 0xffff), (handler & 0xffff0000) | 0x8e00);
  input = find(device, 0), output = find(device, 1);
  output.available->flags = 1; // no interrupts
  *(uint8_t *)(device + 4) = 7;
  call(NOTIFY, device, 0, 0);
  for (uint16_t i = 0; i < LINE; i++) offer(&input, i, &typed[i], 1, WRITE);
  say("ready\n", 6);
  call(NOTIFY, input.page, 0, 0);

  uint16_t seen = 0;
  uint32_t count = 0;
  for (;;) {
    guest_data.irq_enabled = 0;
    uint16_t before = seen;
    while (seen != input.used->index) {
      uint16_t number = (uint16_t)input.used->slots[seen++ % input.size].number;
      char byte = typed[number];
      offer(&input, number, &typed[number], 1, WRITE);
      if (byte == '\n') {
        answer(count);
        count = 0;
      } else if (count < LINE - 1) {
        line[count++] = byte;
      }
    }
    if (seen != before) call(NOTIFY, input.page, 0, 0);
    else call(HALT, 0, 0, 0);
  }
}
