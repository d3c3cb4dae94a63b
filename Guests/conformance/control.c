// SPDX-License-Identifier: Apache-2.0
// Control, debug and model-specific registers: which values they take, which they refuse, what they read back.
#include "guest.h"

static void control_registers(void) {
  const word cr0 = READ("cr0"), cr4 = READ("cr4"), cr3 = READ("cr3");
  section("SDM 3, 2.5: control registers");
  CHECK_NOT_TCG("CR0 bit 32", TRY_WRITE("cr0", cr0 | 1ul << 32), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR0 bit 63", TRY_WRITE("cr0", cr0 | 1ul << 63), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR0 NW without CD", TRY_WRITE("cr0", cr0 | 1ul << 29), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR0 PG without PE", TRY_WRITE("cr0", cr0 & ~1ul), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR0 PG off in 64-bit mode", TRY_WRITE("cr0", cr0 & ~(1ul << 31)), GP, "SDM 3, 2.5");
  CHECK("CR0 CD and NW", TRY_WRITE("cr0", cr0 | 3ul << 29), NONE);
  CHECK("CR0 with CD and NW", READ("cr0") >> 29 & 3, 3);
  WRITE("cr0", cr0);
  CHECK("CR0 reserved bits 6 and 17 written", TRY_WRITE("cr0", cr0 | 1 << 6 | 1 << 17), NONE);
  CHECK_NOT_TCG("CR0 reserved bits 6 and 17 read", READ("cr0") & (1 << 6 | 1 << 17), 0, "SDM 3, 2.5: reserved");
  CHECK("CR0 ET cannot be cleared", (TRY_WRITE("cr0", cr0 & ~0x10ul), READ("cr0") & 0x10), 0x10);
  WRITE("cr0", cr0);
  CHECK_NOT_TCG("CR4 PAE off in 64-bit mode", TRY_WRITE("cr4", cr4 & ~0x20ul), GP, "SDM 3, 4.1.2");
  CHECK_NOT_TCG("CR4 bit 31", TRY_WRITE("cr4", cr4 | 1ul << 31), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR4 bit 32", TRY_WRITE("cr4", cr4 | 1ul << 32), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR4 bit 63", TRY_WRITE("cr4", cr4 | 1ul << 63), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR4 bit 15", TRY_WRITE("cr4", cr4 | 1ul << 15), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR4 bit 19", TRY_WRITE("cr4", cr4 | 1ul << 19), GP, "SDM 3, 2.5");
  CHECK("CR4 as it was", READ("cr4"), cr4);
  CHECK_NOT_TCG("CR3 above the physical address", TRY_WRITE("cr3", cr3 | 1ul << 52), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR3 bit 62", TRY_WRITE("cr3", cr3 | 1ul << 62), GP, "SDM 3, 2.5");
  CHECK("CR3 bits that are ignored", (TRY_WRITE("cr3", cr3 | 7), READ("cr3")), cr3 | 7);
  WRITE("cr3", cr3);
  CHECK_NOT_TCG("CR8 of 16", TRY_WRITE("cr8", 16), GP, "SDM 3, 2.5");
  CHECK_NOT_TCG("CR8 with bit 63", TRY_WRITE("cr8", 1ul << 63), GP, "SDM 3, 2.5");
  CHECK("CR8 of 15", (TRY_WRITE("cr8", 15), READ("cr8")), 15);
  WRITE("cr8", 0);
  WRITE("cr2", 0x8000000000000000);
  CHECK("CR2 takes any value", READ("cr2"), 0x8000000000000000);
  CHECK("CR1 is missing", TRY(".byte 0x0F, 0x20, 0xC8", .a = 0), UD);
  CHECK("CR5 is missing", TRY(".byte 0x0F, 0x22, 0xE8", .a = 0), UD);
  CHECK("CR9 is missing", TRY(".byte 0x44, 0x0F, 0x20, 0xC8", .a = 0), UD);
  // LMSW sets PE, MP, EM and TS and clears all but PE (SDM 2, LMSW).
  CHECK("LMSW 0 keeps PE", (TRY("lmsw %%ax", .a = 0), READ("cr0") & 0xF), 1);
  CHECK("LMSW sets TS", (TRY("lmsw %%ax", .a = 0xFFF9), READ("cr0") & 0xFFFF), (cr0 & 0xFFF0) | 9);
  CHECK("CLTS", (TRY("clts"), READ("cr0") & 8), 0);
  WRITE("cr0", cr0);
  word status;
  asm volatile("smsw %0" : "=r"(status));
  CHECK("SMSW gives all of CR0", status, cr0);
}

// A register that takes any value but those with these bits set.
static void model_specific(const char *name, u32 index, u64 good, u64 bad) {
  const u64 old = rdmsr(index);
  print(name);
  print(":\n");
  CHECK("- good value", try_wrmsr(index, good), NONE);
  CHECK("- reads back", rdmsr(index), good);
  CHECK("- bad value", try_wrmsr(index, bad), GP);
  CHECK("- kept", rdmsr(index), good);
  wrmsr(index, old);
}

static void model_specific_registers(void) {
  const u64 canonical = 0xFFFF800000001000, odd = 0x0000800000000000;
  section("SDM 2, WRMSR: addresses are canonical, reserved bits clear; 3, 11.12.4: PAT");
  model_specific("LSTAR", 0xC0000082, canonical, odd);
  model_specific("CSTAR", 0xC0000083, canonical, odd);
  model_specific("FS.base", 0xC0000100, canonical, odd);
  model_specific("GS.base", 0xC0000101, canonical, odd);
  model_specific("kernel GS.base", 0xC0000102, canonical, odd);
  model_specific("SYSENTER_ESP", 0x175, canonical, odd);
  model_specific("SYSENTER_EIP", 0x176, canonical, odd);
  model_specific("PAT", 0x277, 0x0706050401000106, 0x0006000000000002);
  model_specific("PAT, high field", 0x277, 0x0007040600070406, 0x0800000000000000);
  const u64 efer = rdmsr(0xC0000080);
  CHECK("EFER reserved bit 1", try_wrmsr(0xC0000080, efer | 2), GP);
  CHECK("EFER reserved bit 63", try_wrmsr(0xC0000080, efer | 1ull << 63), GP);
  CHECK("EFER LME off under paging", try_wrmsr(0xC0000080, efer & ~0x100ull), GP);
  CHECK("EFER LMA cannot be cleared", (try_wrmsr(0xC0000080, efer & ~0x400ull), rdmsr(0xC0000080)), efer);
  CHECK("EFER SCE off", (try_wrmsr(0xC0000080, efer & ~1ull), TRY("syscall")), UD);
  wrmsr(0xC0000080, efer);
  CHECK("an MSR nobody has, read", try_rdmsr(0xC0DE0000), GP);
  CHECK("an MSR nobody has, written", try_wrmsr(0xC0DE0000, 0), GP);
  wrmsr(0x174, 0x1234);
  CHECK("SYSENTER_CS reads back", rdmsr(0x174), 0x1234);
  wrmsr(0x174, 0);
  wrmsr(0xC0000084, 0xFFFFFFFF);
  CHECK("SFMASK reads back", rdmsr(0xC0000084), 0xFFFFFFFF);
  wrmsr(0xC0000084, 0);
  CHECK("MCG_CAP is read-only", try_wrmsr(0x179, 1), GP);
  CHECK("MCG_STATUS takes 0", try_wrmsr(0x17A, 0), NONE);
  CHECK("STAR takes any value", (wrmsr(0xC0000081, -1ull), rdmsr(0xC0000081)), -1ull);
  wrmsr(0xC0000081, 0);
  const u64 enable = rdmsr(0x1A0);
  CHECK("MISC_ENABLE takes what it was", try_wrmsr(0x1A0, enable), NONE);
  // What TCG lacks or does not check.
#define MSR "SDM 4, table 2-2"
  CHECK_NOT_TCG("PLATFORM_ID is read-only", try_wrmsr(0x17, 0), GP, MSR);
  CHECK_NOT_TCG("PLATFORM_INFO is read-only", try_wrmsr(0xCE, 0), GP, MSR);
  CHECK_NOT_TCG("FEATURE_CONTROL is locked", rdmsr(0x3A) & 1 ? try_wrmsr(0x3A, 5) : GP, GP, MSR);
  CHECK_NOT_TCG("SFMASK above 32 bits", (try_wrmsr(0xC0000084, 1ull << 32), rdmsr(0xC0000084) >> 32), 0, MSR);
  wrmsr(0xC0000084, 0);
  CHECK_NOT_TCG("DEBUGCTL reserved bits", try_wrmsr(0x1D9, 1ull << 40), GP, MSR);
  CHECK_NOT_TCG("TSC_DEADLINE outside its mode", try_wrmsr(0x6E0, 1), NONE, "SDM 3, 11.5.4.1");
  CHECK_NOT_TCG("... stays 0", rdmsr(0x6E0), 0, "SDM 3, 11.5.4.1");
  CHECK_NOT_TCG("KVM's system time where no memory is", try_wrmsr(0x4B564D01, 0xFFFFFFF001), NONE, "KVM: msr.rst");
  CHECK_NOT_TCG("... off", try_wrmsr(0x4B564D01, 0), NONE, "KVM: msr.rst");
  CHECK_NOT_TCG("KVM's registers that are not offered", try_wrmsr(0x4B564DFF, 0), GP, "KVM: msr.rst");
  CHECK("APIC_BASE reserved bits", try_wrmsr(0x1B, rdmsr(0x1B) | 1), GP);
  CHECK("APIC_BASE above the physical address", try_wrmsr(0x1B, rdmsr(0x1B) | 1ull << 60), GP);
}

static void memory_types(void) {
  section("SDM 3, 11.11.2: memory type range registers");
  const u64 capability = rdmsr(0xFE);
  CHECK("MTRRCAP: fixed ranges and some others", (capability >> 8 & 1) << 8 | ((capability & 0xFF) >= 8), 0x101);
#define MTRR "SDM 3, 11.11.2"
  CHECK_NOT_TCG("MTRRCAP is read-only", try_wrmsr(0xFE, capability), GP, MTRR);
  const u64 type = rdmsr(0x2FF), base = rdmsr(0x20E), mask = rdmsr(0x20F), fixed = rdmsr(0x268);
  CHECK("the default type", (try_wrmsr(0x2FF, 0xC06), rdmsr(0x2FF)), 0xC06);
  CHECK_NOT_TCG("... of a reserved type", try_wrmsr(0x2FF, 0xC02), GP, MTRR);
  CHECK_NOT_TCG("... with reserved bits", try_wrmsr(0x2FF, 0x1C06), GP, MTRR);
  CHECK_NOT_TCG("... kept", rdmsr(0x2FF), 0xC06, MTRR);
  wrmsr(0x2FF, type);
  CHECK("a base", (try_wrmsr(0x20E, 0x80000001), rdmsr(0x20E)), 0x80000001);
  CHECK_NOT_TCG("... of a reserved type", try_wrmsr(0x20E, 0x80000003), GP, MTRR);
  CHECK_NOT_TCG("... with reserved bits", try_wrmsr(0x20E, 0x80000100), GP, MTRR);
  CHECK_NOT_TCG("... above the physical address", try_wrmsr(0x20E, 1ull << 60), GP, MTRR);
  CHECK_NOT_TCG("a mask", (try_wrmsr(0x20F, 0xF80000800), rdmsr(0x20F)), 0xF80000800, MTRR);
  CHECK_NOT_TCG("... with reserved bits", try_wrmsr(0x20F, 0xF80000801), GP, MTRR);
  wrmsr(0x20E, base);
  wrmsr(0x20F, mask);
  CHECK("a fixed range", (try_wrmsr(0x268, 0x0606060606060601), rdmsr(0x268)), 0x0606060606060601);
  CHECK_NOT_TCG("... of a reserved type", try_wrmsr(0x268, 0x0706060606060606), GP, MTRR);
  wrmsr(0x268, fixed);
}

static void debug_registers(void) {
  section("SDM 3, 17.2: debug registers");
  CHECK("DR7 bit 10 reads as one", (TRY_WRITE("dr7", 0), READ("dr7")), 0x400);
  CHECK("DR7 with bit 32", TRY_WRITE("dr7", 1ul << 32), GP);
  CHECK("DR6 with bit 32", TRY_WRITE("dr6", 1ul << 32), GP);
  CHECK("DR6 reserved bits", (TRY_WRITE("dr6", 0), READ("dr6")), 0xFFFF0FF0);
  CHECK("DR6 writable bits", (TRY_WRITE("dr6", 0xFFFFFFFF), READ("dr6") & 0xE00F), 0xE00F);
  WRITE("dr6", 0xFFFF0FF0);
  CHECK("DR0 takes any value", (TRY_WRITE("dr0", 0x8000000000000001), READ("dr0")), 0x8000000000000001);
  WRITE("dr0", 0);
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 & ~8ul);
  CHECK("DR4 is DR6 without CR4.DE", TRY(".byte 0x0F, 0x21, 0xE0"), NONE);
  WRITE("cr4", cr4 | 8);
  CHECK("DR4 with CR4.DE", TRY(".byte 0x0F, 0x21, 0xE0"), UD);
  CHECK("DR5 with CR4.DE", TRY(".byte 0x0F, 0x23, 0xE8", .a = 0), UD);
  WRITE("cr4", cr4);
  CHECK("DR8 is missing", TRY(".byte 0x44, 0x0F, 0x21, 0xC0"), UD);
  WRITE("dr7", 0x2400);
  CHECK("DR7.GD", TRY("mov %%dr0, %%rax"), DB);
  CHECK("... says so in DR6", READ("dr6") & 0xE00F, 0x2000);
  CHECK("... is cleared by the exception", READ("dr7"), 0x400);
  WRITE("dr6", 0xFFFF0FF0);
}

static void extended_state(void) {
  section("SDM 1, 13.3 and 13.8: XCR0 and XRSTOR");
  const word cr4 = READ("cr4");
  CHECK("XGETBV without OSXSAVE", TRY("xgetbv", .c = 0), UD);
  CHECK("XSETBV without OSXSAVE", TRY("xsetbv", .a = 1, .c = 0), UD);
  WRITE("cr4", cr4 | 1 << 18);
  u32 out[4];
  cpuid(1, 0, out);
  CHECK("CPUID.OSXSAVE follows CR4", out[2] >> 27 & 1, 1);
  CHECK("XCR0 without x87", TRY("xsetbv", .a = 2, .c = 0), GP);
  CHECK("XCR0 AVX without SSE", TRY("xsetbv", .a = 5, .c = 0), GP);
  CHECK("XCR0 reserved bits", TRY("xsetbv", .a = 3, .c = 0, .d = 0x80000000), GP);
  CHECK("XCR0 bit 8", TRY("xsetbv", .a = 0x103, .c = 0), GP);
  CHECK("XCR7", TRY("xsetbv", .a = 3, .c = 7), GP);
  CHECK("XGETBV of XCR7", TRY("xgetbv", .c = 7), GP);
  CHECK("XCR0 of x87 and SSE", TRY("xsetbv", .a = 3, .c = 0), NONE);
  static u8 area[1024] __attribute__((aligned(64)));
  CHECK("XSAVE", TRY("xsave (%%rbx)", .b = (word)area, .a = 3), NONE);
  CHECK("XSAVE misaligned", TRY("xsave 8(%%rbx)", .b = (word)area, .a = 3), GP);
  CHECK("XRSTOR", TRY("xrstor (%%rbx)", .b = (word)area, .a = 3), NONE);
  area[512] = 0x80;
  CHECK("XRSTOR of what XCR0 lacks", TRY("xrstor (%%rbx)", .b = (word)area, .a = 3), GP);
  area[512] = 3;
  area[520] = 1;
  CHECK_NOT_TCG("XRSTOR with a reserved header", TRY("xrstor (%%rbx)", .b = (word)area, .a = 3), GP, "SDM 1, 13.8.1");
  area[520] = 0;
  area[27] = 0xFF;
  CHECK("XRSTOR of a bad MXCSR", TRY("xrstor (%%rbx)", .b = (word)area, .a = 3), GP);
  WRITE("cr4", cr4);
}

static void levels(void) {
  section("SDM 3, 5.9: privileged instructions; 2.5: CR4.TSD and CR4.UMIP");
  void rdmsr3(void) { asm volatile("rdmsr"); }
  void cr03(void) { asm volatile("mov %%cr0, %%rax" : : : "rax"); }
  void dr73(void) { asm volatile("mov %%dr7, %%rax" : : : "rax"); }
  void hlt3(void) { asm volatile("hlt"); }
  void cli3(void) { asm volatile("cli"); }
  void lgdt3(void) { asm volatile("lgdt 0"); }
  void swapgs3(void) { asm volatile("swapgs"); }
  void sgdt3(void) { asm volatile("sgdt -32(%rsp)"); }
  void sidt3(void) { asm volatile("sidt -32(%rsp)"); }
  void sldt3(void) { asm volatile("sldt %%eax" : : : "rax"); }
  void str3(void) { asm volatile("str %%eax" : : : "rax"); }
  void smsw3(void) { asm volatile("smsw %%eax" : : : "rax"); }
  void rdtsc3(void) { asm volatile("rdtsc" : : : "rax", "rdx"); }
  void out3(void) { asm volatile("out %al, $0xE0"); }
  void int3(void) { asm volatile("int $0x30"); }
  void invd3(void) { asm volatile("invd"); }
  CHECK("RDMSR at level 3", user(rdmsr3), GP);
  CHECK("MOV CR0 at level 3", user(cr03), GP);
  CHECK("MOV DR7 at level 3", user(dr73), GP);
  CHECK("HLT at level 3", user(hlt3), GP);
  CHECK("CLI at level 3", user(cli3), GP);
  CHECK("LGDT at level 3", user(lgdt3), GP);
  CHECK("SWAPGS at level 3", user(swapgs3), GP);
  CHECK("OUT at level 3", user(out3), GP);
  CHECK("INVD at level 3", user(invd3), GP);
  CHECK("INT 30 at level 3", user(int3), GP);
  CHECK("... names the gate", last.error, 0x30 << 3 | 2);
  const word cr4 = READ("cr4");
  CHECK("RDTSC at level 3", user(rdtsc3), NONE);
  WRITE("cr4", cr4 | 4);
  CHECK("RDTSC at level 3 with TSD", user(rdtsc3), GP);
  WRITE("cr4", cr4);
  // User-mode instruction prevention (SDM 3, 2.5, CR4.UMIP).
  void (*const all[])(void) = {sgdt3, sidt3, sldt3, str3, smsw3};
  unsigned without = 0, with = 0;
  for (unsigned i = 0; i < 5; i++) without |= (user(all[i]) == GP) << i;
  u32 out[4];
  cpuid(7, 0, out);
  CHECK("UMIP is offered", out[2] >> 2 & 1, 1);
  if (out[2] >> 2 & 1) {
    WRITE("cr4", cr4 | 1 << 11);
    for (unsigned i = 0; i < 5; i++) with |= (user(all[i]) == GP) << i;
    CHECK("at level 0 they are allowed", TRY("sldt %%eax"), NONE);
    WRITE("cr4", cr4);
  }
  CHECK("SGDT and the like at level 3 without UMIP", without, 0);
  CHECK("SGDT and the like at level 3 with UMIP", with, 31);
}

static void canonical(void) {
  section("SDM 1, 3.3.7.1: canonical addresses");
  const word odd = 0x0000800000000000;
  CHECK("load", TRY("mov (%%rax), %%rax", .a = odd), GP);
  CHECK("load across the boundary", TRY("mov (%%rax), %%rax", .a = 0x00007FFFFFFFFFFC), GP);
  CHECK("store", TRY("mov %%rax, (%%rax)", .a = odd), GP);
  CHECK("load by RBP", TRY_THEN("mov %%rbp, %%r8; mov %%rax, %%rbp; mov (%%rbp), %%rax", "mov %%r8, %%rbp", .a = odd), SS);
  CHECK("vector load", TRY("movups (%%rax), %%xmm0", .a = odd), GP);
  CHECK("x87 load", TRY("fldl (%%rax)", .a = odd), GP);
  CHECK("locked", TRY("lock incl (%%rax)", .a = odd), GP);
  CHECK("CMPXCHG16B", TRY("cmpxchg16b (%%rax)", .a = odd), GP);
  CHECK("MOVS", TRY("movsb", .S = odd, .D = (word)&last), GP);
  CHECK("REP STOS", TRY("rep stosb", .D = odd, .c = 8), GP);
  CHECK("jump", TRY("jmp *%%rax", .a = odd), GP);
  CHECK("call", TRY("call *%%rax", .a = odd), GP);
  CHECK("return", TRY("push %%rax; ret", .a = odd), GP);
  // Its handler needs a stack to come to.
  set_gate(SS, (word)stubs[SS], CODE64, 0x8E, 1);
  CHECK_NOT_TCG("push", TRY("mov %%rax, %%rsp; push %%rax", .a = odd + 0x1000), SS, "SDM 2, PUSH");
  set_gate(SS, (word)stubs[SS], CODE64, 0x8E, 0);
  CHECK("INVLPG does nothing", TRY("invlpg (%%rax)", .a = odd), NONE);
  CHECK("PREFETCH does nothing", TRY("prefetcht0 (%%rax)", .a = odd), NONE);
  CHECK("CLFLUSH", TRY("clflush (%%rax)", .a = odd), GP);
  struct __attribute__((packed)) { u16 limit; u64 base; } pointer = {0xFF, odd};
  CHECK_NOT_TCG("LGDT", TRY("lgdt (%%rax)", .a = (word)&pointer), GP, "SDM 2, LGDT/LIDT");
  CHECK_NOT_TCG("LIDT", TRY("lidt (%%rax)", .a = (word)&pointer), GP, "SDM 2, LGDT/LIDT");
  CHECK_NOT_TCG("IRET", enter(odd, CODE64, 2, (word)other_stack_top, DATA), GP, "SDM 3, 5.8");
  CHECK("SYSRET", TRY("mov $0x2, %%r11; sysretq", .c = odd), GP);
  const word cr4 = READ("cr4");
  WRITE("cr4", cr4 | 1 << 16);
  CHECK("WRFSBASE", TRY("wrfsbase %%rax", .a = odd), GP);
  CHECK("WRGSBASE", TRY("wrgsbase %%rax", .a = odd), GP);
  WRITE("cr4", cr4);
  CHECK("WRFSBASE without CR4.FSGSBASE", TRY("wrfsbase %%rax", .a = 0l), UD);
  gdt[SPARE / 8] = 0x0000820000000067;
  gdt[SPARE / 8 + 1] = 0x00008000;
  CHECK("LLDT with a base that is not canonical", TRY("lldt %%ax", .a = SPARE), GP);
  gdt[SPARE / 8] = 0x0000890000000067;
  CHECK("LTR with such a base", TRY("ltr %%ax", .a = SPARE), GP);
  CHECK("POP to it", TRY("push %%rax; pop (%%rax)", .a = odd), GP);
  CHECK("LODS", TRY("lodsq", .S = odd), GP);
  CHECK("SCAS", TRY("scasb", .D = odd), GP);
  CHECK("CMPS", TRY("cmpsb", .D = odd, .S = (word)&last), GP);
  CHECK("MOVS to it", TRY("movsb", .D = odd, .S = (word)&last), GP);
  CHECK("OUTS", TRY("outsb", .S = odd, .d = 0xE0), GP);
  CHECK("INS", TRY("insb", .D = odd, .d = 0xE0), GP);
  CHECK("XLAT", TRY("mov %%rax, %%rbx; xlat", .a = odd), GP);
  CHECK("MOV by an absolute address", TRY(".byte 0x48, 0xA1, 0, 0, 0, 0, 0, 0x80, 0, 0", ), GP);
  CHECK("BT beyond the boundary", TRY("bt %%rbx, (%%rax)", .a = odd - 8, .b = 64), GP);
  CHECK("MOVAPS", TRY("movaps (%%rax), %%xmm0", .a = odd), GP);
  CHECK("MASKMOVDQU of a chosen byte", TRY("pcmpeqb %%xmm0, %%xmm0; maskmovdqu %%xmm0, %%xmm0", .D = odd), GP);
  CHECK("FXSAVE", TRY("fxsave (%%rax)", .a = odd), GP);
  CHECK("FNSTENV", TRY("fnstenv (%%rax)", .a = odd), GP);
  CHECK("LDMXCSR", TRY("ldmxcsr (%%rax)", .a = odd), GP);
  CHECK("LGDT from there", TRY("lgdt (%%rax)", .a = odd), GP);
  CHECK("SGDT to there", TRY("sgdt (%%rax)", .a = odd), GP);
  CHECK("LAR from there", TRY("lar (%%rax), %%ebx", .a = odd), GP);
  CHECK("far jump from there", TRY("ljmp *(%%rax)", .a = odd), GP);
  CHECK("jump through it", TRY("jmp *(%%rax)", .a = odd), GP);
  CHECK("call through it", TRY("call *(%%rax)", .a = odd), GP);
  CHECK("far return", TRY("push $0x10; push %%rax; rex.w lret", .a = odd), GP);
  struct __attribute__((packed)) { u64 ip; u16 cs; } far = {odd, CODE64};
  CHECK_NOT_TCG("far jump", TRY("rex.w ljmp *(%%rax)", .a = (word)&far), GP, "SDM 2, JMP");
  CHECK_NOT_TCG("far call", TRY("rex.w lcall *(%%rax)", .a = (word)&far), GP, "SDM 2, CALL");
  wrmsr(0xC0000100, odd - 0x1000);
  CHECK("by FS", TRY("mov %%fs:0x1000, %%al", ), GP);
  CHECK("by FS, below", TRY("mov %%fs:0xFFF, %%al", ), PF);
  CHECK("wrapping past the top", TRY("mov %%fs:(%%rax), %%al", .a = -(odd - 0x1000)), NONE);
  wrmsr(0xC0000100, 0);
  CHECK("the first address above the hole", TRY("mov (%%rax), %%al", .a = 0xFFFF800000000000), PF);
  CHECK("the last below it", TRY("mov (%%rax), %%al", .a = odd - 1), PF);
  CHECK("across the top", TRY("mov (%%rax), %%rax", .a = -4ul), PF);
  set_gate(UD, odd, CODE64, 0x8E, 0);
  CHECK_NOT_TCG("a gate's target", TRY("ud2", ) << 8 | last.error, GP << 8 | 1, "SDM 3, 6.12; 2, INT");
  set_gate(UD, (word)stubs[UD], CODE64, 0x8E, 0);
  u64 *const rsp0 = (u64 *)(tss + 4);
  const u64 inner = *rsp0;
  *rsp0 = odd + 0x1000;
  void undefined(void) { asm volatile("ud2"); }
  set_gate(SS, (word)stubs[SS], CODE64, 0x8E, 1);
  CHECK_NOT_TCG("the stack of level 0", user(undefined), SS, "SDM 3, 6.14.2");
  set_gate(SS, (word)stubs[SS], CODE64, 0x8E, 0);
  *rsp0 = inner;
  // A call gate of 64-bit mode (3, 5.8.3.1), with a target that can be reached and one that cannot.
  extern u8 gate64[];
  asm volatile("jmp 1f; gate64: rex.w lret; 1:");
  struct __attribute__((packed)) { u32 ip; u16 cs; } through = {0, SPARE};
  gdt[SPARE / 8] = ((word)gate64 & 0xFFFF) | (u64)CODE64 << 16 | 0x8Cull << 40 | ((word)gate64 >> 16 & 0xFFFF) << 48;
  gdt[SPARE / 8 + 1] = (word)gate64 >> 32;
  CHECK("a call gate", TRY("lcall *(%%rax)", .a = (word)&through), NONE);
  gdt[SPARE / 8 + 1] = 0x00008000;
  CHECK_NOT_TCG("a call gate's target", TRY("lcall *(%%rax)", .a = (word)&through) << 8 | last.error, GP << 8, "SDM 2, CALL");
  gdt[SPARE / 8 + 1] = 0x0000010000000000;
  CHECK_NOT_TCG("a type in its upper half", TRY("lcall *(%%rax)", .a = (word)&through) << 16 | last.error, GP << 16 | SPARE, "SDM 2, CALL");
}

void test(void) {
  control_registers();
  model_specific_registers();
  memory_types();
  debug_registers();
  extended_state();
  levels();
  canonical();
}
