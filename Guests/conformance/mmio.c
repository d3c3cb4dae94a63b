// SPDX-License-Identifier: Apache-2.0
// Every form of memory operand on a device, and every form of port access: the same instruction runs on ordinary memory
// and on the test machine's scratch memory, and registers, flags and bytes must come out the same.
#include "guest.h"

enum { BYTES = 1024 };
static u8 *const device = (u8 *)0xFF000000;
static u8 memory[BYTES + 64] __attribute__((aligned(64)));
static u8 vectors[2][512] __attribute__((aligned(64)));
static int has_avx;

struct outcome {
  struct registers registers;
  word flags, vector;
  u8 vectors[512];
  u8 bytes[BYTES];
};
static struct outcome outcomes[2];

static void fill(u8 *at) {
  for (int i = 0; i < BYTES; i++) at[i] = i * 7 + (i >> 3);
}
static void load_vectors(void) {
  for (int i = 0; i < 512; i++) vectors[0][i] = i * 3 + 1;
  for (int i = 0; i < 16; i++) asm volatile("" : : : "memory");
#define LOAD(n) asm volatile("movups %0, %%xmm" #n : : "m"(vectors[0][n * 32]));
  LOAD(0) LOAD(1) LOAD(2) LOAD(3)
  if (has_avx) {
#define LOADY(n) asm volatile("vmovups %0, %%ymm" #n : : "m"(vectors[0][n * 32]));
    LOADY(0) LOADY(1) LOADY(2) LOADY(3)
    // Masks and indices: ymm2 selects every other element, ymm3 holds small offsets.
    static const u32 mask[8] = {0x80000000, 0, 0xFFFFFFFF, 0, 0x80000000, 0x80000000, 0, 0x80000001};
    static const u32 offsets[8] = {0, 8, 4, 100, 33, 2, 60, 17};
    asm volatile("vmovups %0, %%ymm2; vmovups %1, %%ymm3" : : "m"(mask), "m"(offsets));
  }
}
static void store_vectors(u8 *at) {
  for (int i = 0; i < 512; i++) at[i] = 0;
#define STORE(n) asm volatile("movups %%xmm" #n ", %0" : "=m"(at[n * 32]));
  STORE(0) STORE(1) STORE(2) STORE(3)
  if (has_avx) {
#define STOREY(n) asm volatile("vmovups %%ymm" #n ", %0" : "=m"(at[n * 32]));
    STOREY(0) STOREY(1) STOREY(2) STOREY(3)
  }
}
static int same(const void *a, const void *b, int count) {
  const u8 *x = a, *y = b;
  for (int i = 0; i < count; i++)
    if (x[i] != y[i]) return 0;
  return 1;
}

// RDI and RSI point into the operand; what the instruction leaves in them is compared relative to it.
#define FORM(name, code, ...)                                                                                          \
  do {                                                                                                                 \
    for (int which = 0; which < 2; which++) {                                                                          \
      u8 *const base = which ? device : memory;                                                                        \
      struct outcome *const o = &outcomes[which];                                                                      \
      fill(base);                                                                                                      \
      load_vectors();                                                                                                  \
      o->vector = TRY_THEN("fninit; cmp %%al, %%al; " code, "pushf; pop %%r8; mov %%r8, form_flags; cld",              \
                           .D = (word)base + 64, .S = (word)base + 256, ##__VA_ARGS__);                                \
      o->flags = form_flags & 0xCD5;                                                                                   \
      o->registers = after;                                                                                            \
      o->registers.D -= (word)base;                                                                                    \
      o->registers.S -= (word)base;                                                                                    \
      store_vectors(o->vectors);                                                                                       \
      for (int i = 0; i < BYTES; i++) o->bytes[i] = base[i];                                                           \
    }                                                                                                                  \
    compare(name);                                                                                                     \
  } while (0)
word form_flags;

static void compare(const char *name) {
  const struct outcome *a = &outcomes[0], *b = &outcomes[1];
  unsigned bad = 0;
  if (a->vector != NONE || b->vector != NONE) bad |= 0x100 | (a->vector & 0xFF) << 16 | (b->vector & 0xFF) << 24;
  if (!same(&a->registers, &b->registers, sizeof a->registers)) bad |= 1;
  if (a->flags != b->flags) bad |= 2;
  if (!same(a->vectors, b->vectors, 512)) bad |= 4;
  if (!same(a->bytes, b->bytes, BYTES)) bad |= 8;
  for (int i = 0; bad & 8 && i < BYTES; i++)
    if (a->bytes[i] != b->bytes[i]) {
      bad |= i << 8;
      break;
    }
  CHECK(name, bad, 0);
}

static void general(void) {
  section("SDM 2: the instructions; a device is memory to them");
  FORM("MOV r8", "mov (%%rdi), %%al; mov 1(%%rdi), %%bh; mov %%cl, 2(%%rdi)", .c = 0x55);
  FORM("MOV r16", "mov (%%rdi), %%ax; mov %%cx, 3(%%rdi)", .c = 0x5566);
  FORM("MOV r32", "mov (%%rdi), %%eax; mov %%ecx, 4(%%rdi)", .c = 0x55667788);
  FORM("MOV r64", "mov (%%rdi), %%rax; mov %%rcx, 8(%%rdi)", .c = 0x5566778899AABBCC);
  FORM("MOV misaligned", "mov 1(%%rdi), %%rax; mov 3(%%rdi), %%ebx; mov %%rcx, 13(%%rdi)", .c = 0x5566778899AABBCC);
  FORM("MOV immediate", "movb $1, (%%rdi); movw $0x203, 2(%%rdi); movl $0x4050607, 4(%%rdi); movq $-9, 8(%%rdi)");
  FORM("MOVZX, MOVSX", "movzbl (%%rdi), %%eax; movsbq 1(%%rdi), %%rbx; movzwl 2(%%rdi), %%ecx; movslq 4(%%rdi), %%rdx");
  FORM("ADD, OR, ADC, SBB", "add %%eax, (%%rdi); or (%%rdi), %%ebx; adc %%rcx, 8(%%rdi); sbb 16(%%rdi), %%dx", .a = 77);
  FORM("AND, SUB, XOR, CMP", "andb $15, (%%rdi); sub 4(%%rdi), %%eax; xor %%rbx, 8(%%rdi); cmp 2(%%rdi), %%cx", .b = -3);
  FORM("TEST, NOT, NEG", "notb (%%rdi); negl 4(%%rdi); testl $0x1234, 8(%%rdi)");
  FORM("INC, DEC", "incb (%%rdi); decw 2(%%rdi); incl 4(%%rdi); decq 8(%%rdi)");
  FORM("shifts", "shlb $3, (%%rdi); sarw %%cl, 2(%%rdi); rorl $7, 4(%%rdi); rclq $5, 8(%%rdi); shldl $3, %%eax, 16(%%rdi)", .c = 5, .a = -7);
  FORM("MUL, DIV", "mulb (%%rdi); imul 4(%%rdi), %%ebx; imull $77, 8(%%rdi), %%ecx; mov $0, %%edx; divl 12(%%rdi); cmp %%edi, %%edi", .a = 33, .b = 9);
  FORM("XCHG, XADD", "xchg %%al, (%%rdi); xchg %%rbx, 8(%%rdi); lock xadd %%ecx, 16(%%rdi)", .a = 1, .b = 2, .c = 3);
  FORM("CMPXCHG fails", "cmpxchg %%ecx, (%%rdi)", .a = 1, .c = 2);
  FORM("CMPXCHG succeeds", "mov (%%rdi), %%rax; lock cmpxchg %%rcx, (%%rdi)", .c = 2);
  FORM("CMPXCHG8B", "mov (%%rdi), %%eax; mov 4(%%rdi), %%edx; lock cmpxchg8b (%%rdi); cmpxchg8b (%%rdi)", .b = 5, .c = 6);
  FORM("CMPXCHG16B", "mov (%%rdi), %%rax; mov 8(%%rdi), %%rdx; lock cmpxchg16b (%%rdi); cmpxchg16b (%%rdi)", .b = 5, .c = 6);
  FORM("BT, BTS, BTR, BTC", "bt %%eax, (%%rdi); btsl $3, 4(%%rdi); lock btr %%rbx, (%%rdi); btc %%cx, (%%rdi)", .a = 70, .b = -100, .c = 200);
  FORM("SETcc, CMOVcc", "sete (%%rdi); setne 1(%%rdi); cmove 4(%%rdi), %%eax; cmovne 8(%%rdi), %%ebx");
  FORM("PUSH, POP", "pushq (%%rdi); popq 8(%%rdi); pushw 2(%%rdi); popw 16(%%rdi)");
  FORM("BSF, BSR, BSWAP", "bsf (%%rdi), %%eax; bsr 4(%%rdi), %%rbx; popcnt 8(%%rdi), %%ecx");
  FORM("XLAT", "mov %%rdi, %%rbx; xlat; mov $0, %%ebx", .a = 9);
  FORM("LODS, STOS", "lodsb; stosq; lodsl; stosw");
  FORM("MOVS", "movsb; movsw; movsl; movsq");
  FORM("CMPS, SCAS", "cmpsb; scasl; cmpsq; scasb", .a = 3);
  FORM("REP MOVS", "rep movsb", .c = 77);
  FORM("REP MOVSQ", "rep movsq", .c = 7);
  FORM("REP STOS", "rep stosl", .c = 13, .a = 0x12345678);
  FORM("REP LODS", "rep lodsw", .c = 9);
  FORM("REPE CMPS", "mov %%rdi, %%rsi; repe cmpsb", .c = 50);
  FORM("REPNE SCAS", "repne scasb", .c = 50, .a = 0x31);
  FORM("strings downwards", "std; rep movsb; lodsq; stosl", .c = 20);
  FORM("strings of 32-bit addresses", "addr32 rep movsl; addr32 lodsb", .c = 5);
  FORM("MOVNTI, MOVBE", "movnti %%eax, (%%rdi); movnti %%rbx, 8(%%rdi)", .a = 5, .b = -1);
  FORM("CRC32", "crc32b (%%rdi), %%eax; crc32q 8(%%rdi), %%rbx");
  FORM("MOV of segments", "mov %%ds, (%%rdi); movw $0x18, 8(%%rdi); mov 8(%%rdi), %%es");
  FORM("SMSW, SLDT, STR, SGDT, SIDT", "smsw (%%rdi); sldt 2(%%rdi); str 4(%%rdi); sgdt 16(%%rdi); sidt 32(%%rdi)");
  FORM("LGDT, LIDT", "sgdt 16(%%rdi); lgdt 16(%%rdi); sidt 32(%%rdi); lidt 32(%%rdi)");
  FORM("LAR, LSL, VERR", "movw $0x18, (%%rdi); lar (%%rdi), %%eax; lsl (%%rdi), %%ebx; verw (%%rdi)");
  FORM("CALL, JMP through it", "lea 1f(%%rip), %%rax; mov %%rax, (%%rdi); jmp *(%%rdi); ud2; 1: lea 2f(%%rip), %%rax; mov %%rax, 8(%%rdi); call *8(%%rdi); 2: pop %%rax; mov $0, %%eax");
  FORM("far JMP through it", "lea 1f(%%rip), %%rax; mov %%rax, (%%rdi); movw $0x10, 8(%%rdi); rex.w ljmp *(%%rdi); ud2; 1: mov $0, %%eax");
  FORM("a stack there", "mov %%rsp, %%rdx; lea 128(%%rdi), %%rsp; push %%rax; pushf; pop %%rcx; call 1f; 1: pop %%rbx; enter $16, $0; leave; mov %%rdx, %%rsp; mov $0, %%rbx; mov $0, %%edx; movq $0, 112(%%rdi)", .a = 99);
  FORM("IRET from there", "mov %%rsp, %%rdx; lea 128(%%rdi), %%rsp; mov $0x18, %%eax; push %%rax; push %%rdx; pushf; push $0x10; lea 1f(%%rip), %%rax; push %%rax; iretq; ud2; 1: mov $0, %%edx; mov $0, %%eax; movq $0, 112(%%rdi)");
  FORM("XSAVE's older sister", "fxsave 64(%%rdi); fxrstor 64(%%rdi)");
}

static void floating(void) {
  section("SDM 2: x87, MMX, SSE and AVX operands");
  FORM("FLD, FST", "flds (%%rdi); fldl 8(%%rdi); fstps 16(%%rdi); fstpl 24(%%rdi)");
  FORM("FLD m80", "fld1; fstpt 32(%%rdi); fldt 32(%%rdi); fistpl (%%rdi)");
  FORM("FILD, FBLD", "filds (%%rdi); fildll 8(%%rdi); faddp; fistpll 16(%%rdi); fld1; fbstp 32(%%rdi); fbld 32(%%rdi); fistps (%%rdi)");
  FORM("FADD m", "fld1; fadds (%%rdi); fmull 8(%%rdi); fstpl 16(%%rdi)");
  FORM("FSTCW, FSTSW, FSTENV", "fnstcw (%%rdi); fldcw (%%rdi); fnstsw 2(%%rdi); fnstenv 16(%%rdi); fldenv 16(%%rdi)");
  FORM("FNSAVE, FRSTOR", "fld1; fnsave (%%rdi); frstor (%%rdi)");
  FORM("MMX", "movq (%%rdi), %%mm0; paddb 8(%%rdi), %%mm0; movq %%mm0, 16(%%rdi); movd %%mm0, 24(%%rdi); emms");
  FORM("MOVAPS, MOVUPS", "movaps (%%rdi), %%xmm0; movups 3(%%rdi), %%xmm1; movaps %%xmm1, 16(%%rdi); movntps %%xmm0, 32(%%rdi)");
  FORM("MOVSS, MOVSD, MOVQ", "movss (%%rdi), %%xmm0; movsd 8(%%rdi), %%xmm1; movq %%xmm2, 16(%%rdi); movhps %%xmm0, 24(%%rdi); movlps 32(%%rdi), %%xmm2");
  FORM("integer SSE", "paddd (%%rdi), %%xmm0; pshufb 16(%%rdi), %%xmm1; pinsrd $1, 32(%%rdi), %%xmm2; pextrb $3, %%xmm0, 48(%%rdi)");
  FORM("conversions", "cvtsi2sdl (%%rdi), %%xmm0; cvtps2pd 8(%%rdi), %%xmm1; cvttsd2si 16(%%rdi), %%eax");
  FORM("LDMXCSR, STMXCSR", "stmxcsr (%%rdi); ldmxcsr (%%rdi)");
  FORM("MASKMOVDQU", "maskmovdqu %%xmm1, %%xmm0");
  FORM("MASKMOVQ", "movq (%%rdi), %%mm0; movq 8(%%rdi), %%mm1; maskmovq %%mm1, %%mm0; emms");
  if (!has_avx) return;
  FORM("VMOVUPS", "vmovups (%%rdi), %%ymm0; vmovups %%ymm1, 33(%%rdi); vmovntdq %%ymm0, 64(%%rdi)");
  FORM("VBROADCAST, VINSERT", "vbroadcastss (%%rdi), %%ymm0; vinsertf128 $1, 16(%%rdi), %%ymm1, %%ymm1; vextractf128 $1, %%ymm0, 32(%%rdi)");
  FORM("VMASKMOVPS load", "vmaskmovps (%%rdi), %%ymm2, %%ymm0; vmaskmovps 4(%%rdi), %%xmm2, %%xmm1");
  FORM("VMASKMOVPS store", "vmaskmovps %%ymm0, %%ymm2, (%%rdi); vmaskmovpd %%ymm1, %%ymm2, 64(%%rdi)");
  u32 out[4];
  cpuid(7, 0, out);
  if (!(out[1] >> 5 & 1)) return;
  FORM("VPMASKMOV", "vpmaskmovd (%%rdi), %%ymm2, %%ymm0; vpmaskmovq %%ymm0, %%ymm2, 64(%%rdi)");
  FORM("VPGATHERDD", "vpgatherdd %%ymm2, (%%rdi,%%ymm3,1), %%ymm0");
  FORM("VPGATHERDQ", "vpgatherdq %%ymm2, (%%rdi,%%xmm3,2), %%ymm0");
  FORM("VGATHERDPS, 128 bits", "vgatherdps %%xmm2, 8(%%rdi,%%xmm3,4), %%xmm0");
  FORM("VPGATHERQD", "vpmovzxdq %%xmm3, %%ymm3; vpgatherqd %%xmm2, (%%rdi,%%ymm3,1), %%xmm0");
  FORM("VPGATHERQQ", "vpmovzxdq %%xmm3, %%ymm3; vgatherqpd %%ymm2, (%%rdi,%%ymm3,1), %%ymm0");
  FORM("BMI", "andn (%%rdi), %%ecx, %%eax; pext 8(%%rdi), %%rdx, %%rbx; shlx %%ecx, 4(%%rdi), %%edx; mulx (%%rdi), %%rbx, %%rcx; rorx $7, (%%rdi), %%eax", .c = 0x5A5A, .d = -1);
  FORM("FMA", "vfmadd231ps (%%rdi), %%ymm0, %%ymm1; vcvtph2ps 32(%%rdi), %%ymm2");
  FORM("XSAVE, XRSTOR", "mov %%rdi, %%r8; lea 576(%%rdi), %%rdi; xor %%eax, %%eax; mov $8, %%ecx; rep stosq; mov %%r8, %%rdi; mov $7, %%eax; xsave 64(%%rdi); xrstor 64(%%rdi)");
}

static void strings_of_ports(void) {
  section("SDM 2, INS, OUTS; test machine: scratch ports");
  static u8 buffer[64];
  outl(0xE0, 0x44332211);
  CHECK("bytes", inb(0xE0) | inb(0xE1) << 8 | inb(0xE2) << 16 | (u32)inb(0xE3) << 24, 0x44332211);
  CHECK("words", inw(0xE0) | (u32)inw(0xE2) << 16, 0x44332211);
  outb(0xE1, 0xAA);
  CHECK("a byte in the middle", inl(0xE0), 0x4433AA11);
  outw(0xE2, 0x7788);
  CHECK("a word", inl(0xE0), 0x7788AA11);
  for (int i = 0; i < 64; i++) buffer[i] = i;
  TRY("rep outsb", .S = (word)buffer, .c = 5, .d = 0xE0);
  CHECK("REP OUTSB", inb(0xE0) << 16 | (after.S - (word)buffer) << 8 | after.c, 4 << 16 | 5 << 8);
  TRY("rep outsw", .S = (word)buffer + 1, .c = 2, .d = 0xE0);
  CHECK("REP OUTSW", inw(0xE0) << 8 | (after.S - (word)buffer), 0x0403 << 8 | 5);
  TRY("outsl", .S = (word)buffer + 8, .d = 0xE0);
  CHECK("OUTSD", inl(0xE0), 0x0B0A0908);
  TRY("std; rep outsb; cld", .S = (word)buffer + 20, .c = 3, .d = 0xE0);
  CHECK("downwards", inb(0xE0) << 8 | (after.S - (word)buffer), 18 << 8 | 17);
  TRY("rep insb", .D = (word)buffer, .c = 3, .d = 0xE3);
  CHECK("REP INSB", buffer[0] << 16 | buffer[2] << 8 | buffer[3], 0x0B0B03);
  TRY("insl", .D = (word)buffer, .d = 0xE0);
  CHECK("INSD", *(u32 *)buffer, inl(0xE0));
  TRY("rep insb", .D = (word)buffer, .c = 0, .d = 0xE0);
  CHECK("nothing", after.D - (word)buffer, 0);
  // A fault in the middle leaves exact registers.
  extern u64 table[];
  table[0x101] = 0;
  asm volatile("invlpg 0x101000");
  CHECK("REP INSB into an absent page", TRY("rep insb", .D = 0x100FFD, .c = 8, .d = 0xE0), PF);
  CHECK("... stops there", after.D << 8 | after.c, 0x101000ul << 8 | 5);
  CHECK("REP OUTSW from an absent page", TRY("rep outsw", .S = 0x100FFD, .c = 8, .d = 0xE0), PF);
  CHECK("... stops before it", after.S << 8 | after.c, 0x100FFFul << 8 | 7);
  table[0x101] = 0x101067;
  // Between a device and a port.
  *(volatile u32 *)device = 0xDDCCBBAA;
  TRY("rep outsb", .S = (word)device, .c = 4, .d = 0xE0);
  CHECK("REP OUTSB from a device", inb(0xE0), 0xDD);
  TRY("rep insw", .D = (word)device + 8, .c = 2, .d = 0xE0);
  CHECK("REP INSW to a device", *(volatile u32 *)(device + 8) & 0xFF00FF, 0xDD00DD);
}

static void delivery(void) {
  section("SDM 3, 6.11 to 6.14: tables and stacks are memory, wherever they lie");
  extern u8 idt_pointer[];
  struct __attribute__((packed)) { u16 limit; u64 base; } pointer = {4095, (word)device + 0x2000};
  volatile u64 *const table = (u64 *)(device + 0x2000);
  for (int i = 0; i < 512; i++) table[i] = idt[i];
  asm volatile("lidt %0" : : "m"(pointer));
  CHECK("an interrupt table in a device", TRY("ud2", ) << 16 | TRY("int $0x30", ), UD << 16 | 0x30);
  CHECK("... with error codes", TRY("mov %%eax, %%ds", .a = 0xFFF8) << 16 | last.error, GP << 16 | 0xFFF8);
  asm volatile("lidt %0" : : "m"(*(u64 *)idt_pointer));
  u64 *const ist1 = (u64 *)(tss + 36);
  const u64 old = *ist1;
  *ist1 = (word)device + 0x8000;
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 1);
  set_gate(PF, (word)stubs[PF], CODE64, 0x8E, 1);
  CHECK("an interrupt stack in a device", TRY("ud2", ), UD);
  extern word saved_frame;
  CHECK("... where it should be", saved_frame, (word)device + 0x8000 - sizeof(struct frame));
  CHECK("... of a page fault", (u64)TRY("mov (%%rax), %%al", .a = 1ul << 40) << 32 | last.cr2 >> 32, (u64)PF << 32 | 0x100);
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 0);
  set_gate(PF, (word)stubs[PF], CODE64, 0x8E, 0);
  *ist1 = old;
  volatile u64 *const there = (u64 *)(device + 0x4000);
  for (int i = 0; i < 32; i++) there[i] = gdt[i];
  struct __attribute__((packed)) { u16 limit; u64 base; } small = {255, (word)device + 0x4000}, usual = {255, (word)gdt};
  asm volatile("lgdt %0" : : "m"(small));
  CHECK("a descriptor table in a device", TRY("mov %%eax, %%fs; int3; ud2", .a = DATA), BP);
  void breakpoint(void) { asm volatile("int3"); }
  CHECK("... from level 3", user(breakpoint), BP);
  asm volatile("lgdt %0" : : "m"(usual));
}

void test(void) {
  u32 out[4];
  cpuid(1, 0, out);
  if (out[2] >> 26 & 1) {
    WRITE("cr4", READ("cr4") | 1 << 18);
    has_avx = out[2] >> 28 & 1;
    asm volatile("xsetbv" : : "a"(has_avx ? 7 : 3), "c"(0), "d"(0));
  }
  general();
  floating();
  strings_of_ports();
  delivery();
}
