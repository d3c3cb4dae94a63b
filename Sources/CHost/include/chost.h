// SPDX-License-Identifier: Apache-2.0
// The vCPU page: everything translated code, the light helpers and Swift share about one vCPU.
//
// Translated code addresses it from one host register, ENV (R11), which points CHOST_ENV bytes into the
// page so that the hottest slots are reachable with an 8-bit displacement. The page *is* the guest's
// state: entering and leaving translated code copies nothing but the registers that live in host ones.
#ifndef CHOST_H
#define CHOST_H

#include <stddef.h>
#include <stdint.h>

enum { CHOST_ENV = 128 };

// Segment register numbers, in the manual's encoding order; LDTR and TR follow.
enum { CHOST_ES, CHOST_CS, CHOST_SS, CHOST_DS, CHOST_FS, CHOST_GS, CHOST_LDTR, CHOST_TR, CHOST_SEGMENTS };

// A segment register with its hidden part. `attributes` has the layout of a VMX access-rights word
// (Intel SDM volume 3, section 25.4.1): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
// `limit` is in bytes, already scaled by the granularity bit.
typedef struct chost_segment {
  uint64_t base;
  uint32_t limit;
  uint32_t attributes;
  uint16_t selector;
  uint16_t pad[3];
} chost_segment;

typedef struct chost_table { // GDTR or IDTR
  uint64_t base;
  uint16_t limit;
  uint16_t pad[3];
} chost_table;

// Software TLB: per privilege (0 supervisor, 1 user) a read and a write table. A hit is
// linear - tag <= 4096 - size; host address = linear + addend.
typedef struct chost_tlb_entry {
  uint64_t tag, addend;
} chost_tlb_entry;

enum { CHOST_LIGHT_HYPERCALLS = 16 };
enum { CHOST_GROUPS = 8, CHOST_SLOT_GUARD = 8192 };

typedef struct chost_cpu {
  // ENV-128 ... ENV-1: guest RAX RCX RDX RBX RSP RBP RSI RDI R8..R15. While translated code runs, only
  // the registers without a host register (see RegisterMap.swift) are current here.
  uint64_t gpr[16];
  // ENV+0 ... ENV+127
  uint64_t flags;             // arithmetic flags: AL = OF, AH = SF ZF 0 AF 0 PF 1 CF (LAHF's layout)
  uint64_t page_va;           // linear address of the guest page being executed
  uint32_t attention;         // non-zero: leave at the next poll (set by any thread)
  uint32_t interrupt_waiting; // non-zero: leave as soon as interrupts are unmasked
  uint64_t tsc_offset;        // guest TSC = host TSC + offset
  uint32_t system_flags;      // RFLAGS without the six arithmetic flags and bit 1: TF IF DF IOPL NT RF VM AC ID
  uint32_t mode;              // CHOST_MODE_* word of the current state, part of every block's key
  uint64_t scratch[4];        // temporaries of translated code, dead between instructions
  uint64_t linear;            // linear address of the access that left (CHOST_EXIT_MEMORY)
  uint32_t exit_info;         // CHOST_INFO_* of the exit
  uint32_t exit_data;         // edge number (CHOST_EXIT_LINK)
  chost_tlb_entry stack[2];   // by privilege: the page of the stack, writable; purged with the software TLB
  uint32_t fault_trap;        // host trap number, from the signal
  uint32_t fault_code;        // host error code
  // ENV+128 ...: not hot
  chost_segment segments[CHOST_SEGMENTS];
  chost_table gdtr, idtr;
  uint64_t cr0, cr2, cr3, cr4, cr8;
  uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base;
  uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
  uint64_t xcr0, tsc_aux, pat, apic_base;
  uint64_t dr[8];
  uint64_t pdpte[4];          // PAE paging: loaded by MOV CR3 (SDM 4.4.1)
  // What the page walk may touch. Guest-physical address g of RAM is at ram + g.
  uint64_t ram;               // host address of guest-physical 0
  uint64_t ram_low_end;       // RAM is [0, ram_low_end) and [4 GiB, ram_high_end)
  uint64_t ram_high_end;
  uint64_t page_flags;        // host address of a byte per guest page (CHOST_PAGE_*)
  uint64_t physical_mask;     // valid bits of a guest-physical address, (1 << MAXPHYADDR) - 1
  uint64_t block_table;       // host address of chost_block_slot[block_mask + 1]
  uint64_t block_mask;
  uint64_t code_base, code_end; // executable range of the code cache
  uint64_t captured_flags;    // EFLAGS at the last full exit, in the layout of `flags`
  uint64_t stub_tlb_miss, stub_jump_miss, stub_string, stub_light; // host addresses; trampolines in the code cache jump through them
  uint64_t string_operation;  // argument of stub_string
  // The shadow stacks of return addresses, supervisor's and user's (ShadowStack.swift): where RSP was when it was left,
  // its empty position, and its lowest usable address, below which lies a guard page.
  uint64_t shadow[2], shadow_top[2], shadow_bottom[2];
  uint64_t stub_return;       // where a light way out goes back to
  uint64_t stub_underflow;    // host address that a return from an empty shadow stack would go to
  uint32_t uses_xsave;        // the full exit saves vector state with XSAVE (else FXSAVE)
  uint32_t no_light;          // the light helpers of system.c decline everything: for comparing against
  // Counters, for --stats; counted by the light helpers.
  uint64_t count_tlb_fill, count_tlb_flush, count_lookup, count_lookup_miss;
  uint64_t code_chunks;       // host address of a word per guest page: bit c, 64-byte chunk c may hold code
  uint64_t rip;               // guest RIP whenever translated code is not running
  uint64_t host_rsp;          // stack to leave to
  uint64_t exit_stub;         // host address of the full exit
  uint64_t fault_pc;          // host address of a faulting instruction (CHOST_EXIT_FAULT)
  uint64_t stub_slot_miss, stub_group_miss;
  uint64_t slot_guard;        // host address of CHOST_SLOT_GUARD inaccessible bytes: where an empty stack entry leads
  uint64_t groups[CHOST_GROUPS]; // addends and host addresses that the checks of groups found, for the rest of their block
  uint64_t count_slot_fill;
  // The first offset behind what may be read of and written to ES CS SS DS FS GS; 0 where Swift must look. Outside 64-bit
  // mode only; computed with `mode`, for FS, GS and writes through CS always, for the others while CHOST_MODE_SEGMENTED
  // is set.
  uint64_t read_bound[6], write_bound[6];
  uint64_t pauses;            // PAUSE instructions until the next exit, where they are counted
  // Hypercalls that need nothing but an answer: bit n, number n is answered with light_hypercall_result[n]; counted.
  uint32_t light_hypercalls;
  int32_t light_hypercall_result[CHOST_LIGHT_HYPERCALLS];
  uint64_t count_hypercall[CHOST_LIGHT_HYPERCALLS];
  uint64_t address_cut;       // bits that guest-physical addresses lose on their way out: bit 20 while the A20 gate is closed
  // Page | 1 of the last store that was served beside code: it may not have happened yet. 0 at a safe point.
  uint64_t store_beside;
  uint64_t late_pages;        // not 0: pages may be absent or are to be told as used (CHOST_PAGE_ABSENT, CHOST_PAGE_USED)
  uint64_t straddle_table;    // host address of chost_straddle_slot[CHOST_STRADDLES]
  uint64_t count_simple;      // instructions of blocks in the simple form that were begun
  uint64_t stub_branch_miss, stub_call_miss;
  uint32_t x87_environment[8]; // FNSTENV and FLDENV, around state images
  uint32_t space;             // CHOST_SPACE_*: where linear addresses are looked up
  uint64_t kept_root;         // of CHOST_SPACE_NARROW: the page directory
  uint64_t kept_pdpte[4];     // of CHOST_SPACE_WIDE: the top entries
  // Of every kept space: the page at this linear address is the machine's, in no guest's RAM, at this host address (0: none).
  // What is above it is nobody's.
  uint64_t kept_linear, kept_page;
  // Traps of a guest whose gates the machine keeps: vectors that go to the machine first, a bit each; and where in RAM its
  // own interrupt flag is (bit 9 of a word) and the address of a page fault is stored, each plus 1; 0: nowhere.
  uint64_t machine_vectors[4];
  uint64_t virtual_flag, fault_address;
} chost_cpu;

// Displacements from ENV of the fields that emitted code names: what Swift's `Slot` is made of.
#define CHOST_AT(field) (int)offsetof(chost_cpu, field) - CHOST_ENV
enum {
  CHOST_AT_FLAGS = CHOST_AT(flags), CHOST_AT_PAGE_VA = CHOST_AT(page_va), CHOST_AT_ATTENTION = CHOST_AT(attention),
  CHOST_AT_INTERRUPT_WAITING = CHOST_AT(interrupt_waiting), CHOST_AT_TSC_OFFSET = CHOST_AT(tsc_offset),
  CHOST_AT_SYSTEM_FLAGS = CHOST_AT(system_flags), CHOST_AT_SCRATCH0 = CHOST_AT(scratch[0]),
  CHOST_AT_SCRATCH1 = CHOST_AT(scratch[1]), CHOST_AT_LINEAR = CHOST_AT(linear),
  CHOST_AT_EXIT_INFO = CHOST_AT(exit_info), CHOST_AT_EXIT_DATA = CHOST_AT(exit_data),
  CHOST_AT_STACK = CHOST_AT(stack), CHOST_AT_SEGMENTS = CHOST_AT(segments), CHOST_AT_CR2 = CHOST_AT(cr2),
  CHOST_AT_CR3 = CHOST_AT(cr3), CHOST_AT_KERNEL_GS_BASE = CHOST_AT(kernel_gs_base), CHOST_AT_XCR0 = CHOST_AT(xcr0),
  CHOST_AT_TSC_AUX = CHOST_AT(tsc_aux), CHOST_AT_STUB_TLB_MISS = CHOST_AT(stub_tlb_miss),
  CHOST_AT_STUB_JUMP_MISS = CHOST_AT(stub_jump_miss), CHOST_AT_STUB_STRING = CHOST_AT(stub_string),
  CHOST_AT_STUB_LIGHT = CHOST_AT(stub_light), CHOST_AT_STRING_OPERATION = CHOST_AT(string_operation),
  CHOST_AT_EXIT_STUB = CHOST_AT(exit_stub), CHOST_AT_STUB_SLOT_MISS = CHOST_AT(stub_slot_miss),
  CHOST_AT_STUB_GROUP_MISS = CHOST_AT(stub_group_miss), CHOST_AT_GROUPS = CHOST_AT(groups),
  CHOST_AT_SHADOW_TOP = CHOST_AT(shadow_top), CHOST_AT_READ_BOUND = CHOST_AT(read_bound),
  CHOST_AT_WRITE_BOUND = CHOST_AT(write_bound), CHOST_AT_PAUSES = CHOST_AT(pauses),
  CHOST_AT_COUNT_SIMPLE = CHOST_AT(count_simple), CHOST_AT_STUB_BRANCH_MISS = CHOST_AT(stub_branch_miss),
  CHOST_AT_STUB_CALL_MISS = CHOST_AT(stub_call_miss), CHOST_AT_X87_ENVIRONMENT = CHOST_AT(x87_environment),
  CHOST_SEGMENT_SELECTOR = offsetof(chost_segment, selector), // of an entry of `segments`
};

// Address spaces: by control registers, or kept by the machine.
enum {
  CHOST_SPACE_REGISTERS,
  CHOST_SPACE_IDENTITY,
  CHOST_SPACE_NARROW, // 32-bit paging
  CHOST_SPACE_WIDE,   // PAE paging
};

// Mode word: everything a translation depends on besides the bytes.
enum {
  CHOST_MODE_CPL = 3,
  CHOST_MODE_LONG = 1 << 2,        // 64-bit code (EFER.LMA and CS.L)
  CHOST_MODE_CODE32 = 1 << 3,      // CS.D
  CHOST_MODE_STACK32 = 1 << 4,     // SS.B
  CHOST_MODE_PROTECTED = 1 << 5,   // CR0.PE
  CHOST_MODE_VM86 = 1 << 6,
  CHOST_MODE_SEGMENTED = 1 << 7,   // some of CS DS ES SS is not flat: addresses need base and limit
  CHOST_MODE_TS = 1 << 8,          // CR0.TS
  CHOST_MODE_EM = 1 << 9,          // CR0.EM
  CHOST_MODE_MP = 1 << 10,         // CR0.MP
  CHOST_MODE_OSFXSR = 1 << 11,     // CR4.OSFXSR
  CHOST_MODE_AVX = 1 << 12,        // CR4.OSXSAVE and XCR0.AVX
  CHOST_MODE_OSXSAVE = 1 << 13,    // CR4.OSXSAVE
  CHOST_MODE_TSD = 1 << 14,        // CR4.TSD
  CHOST_MODE_FSGSBASE = 1 << 15,   // CR4.FSGSBASE
  CHOST_MODE_UMIP = 1 << 16,       // CR4.UMIP
  CHOST_MODE_ALIGN = 1 << 17,      // CR0.AM, EFLAGS.AC and CPL 3: alignment is checked
  CHOST_MODE_STEP = 1 << 18,       // TF or an armed breakpoint: one instruction a block
  CHOST_MODE_LMA = 1 << 19,        // EFER.LMA (with LONG clear: compatibility mode)
  CHOST_MODE_SPLIT = 1 << 20,      // a block's own: every access has a check of its own; never in `mode`
  CHOST_MODE_BITS = 21,
};

// Exit information word.
enum {
  CHOST_INFO_OFFSET = 0x1fff,      // offset of the guest instruction from page_va
  CHOST_INFO_WRITE = 1 << 13,
  CHOST_INFO_USER = 1 << 14,       // the access used the user tables
  CHOST_INFO_FLAGS_SAVED = 1 << 15, // `flags` is current: do not capture EFLAGS
  CHOST_INFO_SIZE_SHIFT = 16,      // bytes accessed; 255: larger than that
  CHOST_INFO_REASON_SHIFT = 24,
};

enum {
  CHOST_EXIT_NONE,
  CHOST_EXIT_MEMORY,      // an access that the software TLB cannot serve; run the instruction slowly
  CHOST_EXIT_LOOKUP,      // no block for `rip`
  CHOST_EXIT_LINK,        // edge `exit_data` of a block is not linked yet
  CHOST_EXIT_ATTENTION,   // the poll word was set
  CHOST_EXIT_INSTRUCTION, // the instruction at `rip` is executed by Swift
  CHOST_EXIT_FAULT,       // the host CPU raised an exception at `fault_pc`
  CHOST_EXIT_STEP,        // end of a one-instruction block
  CHOST_EXIT_RETURN,      // edge `exit_data`, from a call to the block behind it at `linear`, is not linked yet
  CHOST_EXIT_REPEAT,      // the string instruction at `rip` has elements left: like CHOST_EXIT_ATTENTION
};

// fault_trap of a page fault, and of one where empty stack entries lead: no exception of the host's has the latter number.
enum { CHOST_TRAP_PAGE = 14, CHOST_TRAP_SLOT = 255 };

enum { CHOST_SHADOW_GUARD = 4096 };
// What walks find where the machine's page is: beyond every guest-physical address.
#define CHOST_KEPT_PHYSICAL (1ull << 60)

// Page flags. ABSENT: the page's bytes are in a slow store and not in RAM, which reads as zeros there: whoever wants them
// brings them in first. It is set only while no vCPU executes or uses its tables, and then these are flushed. USED: by
// code of level 3, since somebody cleared the flag.
enum { CHOST_PAGE_CODE = 1, CHOST_PAGE_DIRTY = 2, CHOST_PAGE_ABSENT = 4, CHOST_PAGE_USED = 8 };

// Access rights asked of a translation; the low bits are the #PF error code's.
enum { CHOST_ACCESS_WRITE = 2, CHOST_ACCESS_USER = 4, CHOST_ACCESS_FETCH = 16 };
// A supervisor access the processor makes on its own (descriptor tables, TSS, IDT): EFLAGS.AC does not lift SMAP.
enum { CHOST_ACCESS_IMPLICIT = 1 << 8 };

enum { CHOST_TLB_ENTRIES = 4096, CHOST_JUMP_ENTRIES = 4096 };
// An entry of a jump cache is found by the upper bits of the lower half of the address times this (2^32 divided by the
// golden ratio, negative as an int): functions at the same offset of their pages would evict each other else.
enum { CHOST_JUMP_FACTOR = 0x9E3779B1 - 0x100000000, CHOST_JUMP_SHIFT = 20 };

// Offsets from ENV of the big tables behind the struct.
enum {
  CHOST_TABLES = 2048 - CHOST_ENV,
  CHOST_TLB_BYTES = CHOST_TLB_ENTRIES * 16,
  CHOST_TLB_READ = CHOST_TABLES,                       // + privilege * 2 * CHOST_TLB_BYTES
  CHOST_TLB_WRITE = CHOST_TLB_READ + CHOST_TLB_BYTES,
  CHOST_JUMP_TAGS = CHOST_TABLES + 4 * CHOST_TLB_BYTES, // + privilege * 2 * 8 * CHOST_JUMP_ENTRIES
  CHOST_JUMP_TARGETS = CHOST_JUMP_TAGS + 8 * CHOST_JUMP_ENTRIES,
  CHOST_PRIVATE = CHOST_JUMP_TAGS + 4 * 8 * CHOST_JUMP_ENTRIES, // fill lists and filters, private to the light helpers
  CHOST_BOUNCE = CHOST_PRIVATE + 32768,                 // operand copies of slow accesses
  CHOST_FPU = CHOST_BOUNCE + 4096,                      // XSAVE image, 64-byte aligned, standard format
  // Slots: entries that belong to a place in the code, so that no index is computed. Per privilege: sites that read,
  // sites that write, regions that are read, regions that are written.
  CHOST_SLOTS = CHOST_FPU + 4096,
  CHOST_SITES = 1024, CHOST_REGIONS = 1024,
  CHOST_SLOTS_PER_PRIVILEGE = 2 * CHOST_SITES + 2 * CHOST_REGIONS,
  CHOST_SLOT_SIZE = 32,
  CHOST_SLOT_BYTES = CHOST_SLOTS_PER_PRIVILEGE * CHOST_SLOT_SIZE,
  CHOST_PAGE_BYTES = CHOST_SLOTS + 2 * CHOST_SLOT_BYTES + CHOST_ENV, // size of the whole vCPU page
};

// A site's slot is a hit if linear - tag < bound; host address = linear + value. It grows over pages that follow each
// other in the host's memory as they do in the guest's. `bound` allows for operands of the site's class, which its
// number tells, whoever shares the slot. A region's is a hit if its start is the tag; value is its host address.
typedef struct chost_slot {
  uint64_t tag, value, bound, unused;
} chost_slot;
enum { CHOST_SLOT_VALUE = offsetof(chost_slot, value), CHOST_SLOT_BOUND = offsetof(chost_slot, bound) };

// Of sites that read, and of those that write: the first number beyond each class, and its largest operand.
#define CHOST_CLASSES {512, 640, 768, 896, 960, 1024}, {8, 16, 32, 64, 128, 256}

// What a miss of a slot is asked, in a 64-bit word: the exit information word, the slot's displacement from ENV, and for
// a region how far into it the access is.
enum { CHOST_REQUEST_SLOT_SHIFT = 32, CHOST_REQUEST_OFFSET_SHIFT = 52 };

// One slot of the block table (open addressing, linear probing). Key: guest-physical address
// << CHOST_MODE_BITS | mode; 0 is empty, 1 is deleted.
typedef struct chost_block_slot {
  uint64_t key;
  uint64_t entry; // host address of the indirect entry
} chost_block_slot;

// Where a block is found that straddles two pages: what it is depends on the second one too. Direct-mapped, so that a
// slot may lose its block to another; the cache's own lists know it still. Key: as in the block table, 0 is empty.
typedef struct chost_straddle_slot {
  uint64_t key;
  uint64_t value; // number of the second page << CHOST_CODE_BITS | the entry's offset in the code: one word, never torn
} chost_straddle_slot;

enum { CHOST_STRADDLES = 1 << 14, CHOST_CODE_BITS = 28 };

// --- world.S: entering translated code. Returns after a full exit; exit_info says why.
void chost_enter(chost_cpu *cpu, uint64_t host_pc);
// Fills in the stub addresses of a new vCPU page.
void chost_set_stubs(chost_cpu *cpu);

// --- tlb.c, slots.c: misses of translated code. General registers only, as in all that it calls.
typedef struct chost_fill_result {
  uint64_t addend;
  uint64_t failed; // non-zero: leave with CHOST_EXIT_MEMORY
} chost_fill_result;

// Serves a TLB miss of translated code. `info` is the exit information word.
chost_fill_result chost_tlb_fill(chost_cpu *cpu, uint64_t linear, uint32_t info);
// Serves a miss of a slot, and fills it where an entry may stay. The result's addend is, for a region, its host address.
chost_fill_result chost_slot_fill(chost_cpu *cpu, uint64_t linear, uint64_t request);
// The same for the check of a group of accesses, with or without a slot; they must lie in one page.
chost_fill_result chost_group_fill(chost_cpu *cpu, uint64_t linear, uint64_t request);
// How often each site's slot held another page: 2 * CHOST_SITES for the supervisor, and as many for the user.
uint16_t *chost_site_misses(chost_cpu *cpu);
// Translates a linear address with the rights asked, setting accessed and dirty bits. Returns 0 and
// *physical; or the #PF error code with bit 31 set; or CHOST_TABLE_ABSENT and in *physical an address in the table that
// has to be brought in first. Whether the page itself is absent, and non-canonical addresses, are the caller's business.
enum { CHOST_TABLE_ABSENT = 1 << 30 };
uint32_t chost_translate(chost_cpu *cpu, uint64_t linear, uint32_t access, uint64_t *physical);
// The same without side effects on the page tables (for debuggers and tracing).
uint32_t chost_probe(chost_cpu *cpu, uint64_t linear, uint32_t access, uint64_t *physical);

// --- flush.c: translations have changed.
void chost_flush_all(chost_cpu *cpu);                 // CR0/CR4 paging bits, EFER, A20...: everything
void chost_flush_nonglobal(chost_cpu *cpu);           // MOV CR3
void chost_flush_page(chost_cpu *cpu, uint64_t linear); // INVLPG
void chost_flush_jump_cache(chost_cpu *cpu);          // blocks were discarded
// Drops the write entries that map a guest page which now holds translated code, under every alias.
void chost_protect_page(chost_cpu *cpu, uint64_t physical);
// Of a new vCPU page, which is zeros: makes empty what zeros are not. Most of the tables stay untouched, and cost no memory.
void chost_reset_tables(chost_cpu *cpu);

// --- lookup.c
// Finds the block for a linear address in the current mode: its entry, or 0. Fills the jump cache.
uint64_t chost_lookup(chost_cpu *cpu, uint64_t linear);
// The block table. Finding needs no lock; inserting and removing are serialised by the caller, who also
// keeps the table at most three quarters full (deleted slots included).
uint64_t chost_block_find(const chost_block_slot *table, uint64_t mask, uint64_t key);
void chost_block_insert(chost_block_slot *table, uint64_t mask, uint64_t key, uint64_t entry);
int chost_block_remove(chost_block_slot *table, uint64_t mask, uint64_t key); // 1 when it was there
// The same for blocks that straddle into the guest page `second`; `offset` is their entry's in the code.
void chost_straddle_insert(chost_straddle_slot *table, uint64_t key, uint64_t second, uint64_t offset);
void chost_straddle_remove(chost_straddle_slot *table, uint64_t key, uint64_t second);

// --- mode.c
// Makes translated code leave at its next poll. Any thread.
void chost_set_attention(chost_cpu *cpu);
// Recomputes `mode` from the architectural state. The jump cache of a privilege holds targets of one mode
// word; a change flushes it here, and whoever writes `mode` otherwise writes only words computed here for
// the same privilege, or goes through chost_lookup, which checks again.
void chost_update_mode(chost_cpu *cpu);

// --- system.c, system32.c: light forms of system instructions. They return the host address to continue at, or one of these.
enum {
  CHOST_LIGHT_DECLINED = 0, // nothing has changed: Swift executes the instruction
  CHOST_LIGHT_CONTINUE = 1, // done: the next instruction follows
  CHOST_LIGHT_LOOKUP = 2,   // done: leave with CHOST_EXIT_LOOKUP for `linear`
};
// The order in which stub_light numbers them.
enum {
  CHOST_LIGHT_SYSCALL, CHOST_LIGHT_SYSRET, CHOST_LIGHT_IRET, CHOST_LIGHT_POPF, CHOST_LIGHT_CR3, CHOST_LIGHT_INVLPG,
  CHOST_LIGHT_WRMSR, CHOST_LIGHT_SYSENTER, CHOST_LIGHT_SYSEXIT, CHOST_LIGHT_INT, CHOST_LIGHT_SEGMENT,
  CHOST_LIGHT_HYPERCALL,
};
uint64_t chost_light_syscall(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_sysret(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_iret(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_popf(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_cr3(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_invlpg(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_wrmsr(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_sysenter(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_sysexit(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_int(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_segment(chost_cpu *cpu, uint32_t info);
uint64_t chost_light_hypercall(chost_cpu *cpu, uint32_t info);
// #PF for an access that chost_tlb_fill refused.
uint64_t chost_light_page_fault(chost_cpu *cpu, uint64_t linear, uint32_t info);

// --- string.c: MOVS STOS LODS SCAS CMPS, REP forms in page-bounded chunks. Returns 0 when the instruction is
// complete, 1 when an element needs the slow path (state is exact at an element boundary), 2 when it
// should be resumed after a poll.
enum { CHOST_STRING_MOVS, CHOST_STRING_STOS, CHOST_STRING_LODS, CHOST_STRING_SCAS, CHOST_STRING_CMPS };
// `operation`: kind | log2(size) << 4 | log2(address size) << 8 | rep << 12 (1 REP/REPE, 2 REPNE) | source segment << 16 | user << 24
uint32_t chost_string(chost_cpu *cpu, uint32_t operation);

// --- fault.c: host signals raised by translated code become CHOST_EXIT_FAULT.
// Registers one executable range; at most CHOST_MAX_RANGES at a time. Returns 0, or -1 when full.
enum { CHOST_MAX_RANGES = 2048 };
int chost_register_code(uint64_t start, uint64_t end);
void chost_unregister_code(uint64_t start);
int chost_install_fault_handlers(void);      // once per process; chains to earlier handlers. 0 or errno
// The alternate signal stack of the calling thread; NULL takes it away. 0 or errno.
int chost_prepare_thread(void *stack, uint64_t size);

// --- cpuid.c
uint64_t chost_read_tsc(void);
void chost_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
uint64_t chost_xgetbv0(void);
uint32_t chost_mxcsr_mask(void); // the bits that MXCSR has; loading others is #GP

#endif
