// SPDX-License-Identifier: Apache-2.0
// The other vCPUs of a built-in guest: start-up IPIs bring them through a few instructions of real mode into the 64-bit
// code that the first vCPU runs already (SDM volume 3, 9.4.4).

extension GuestAssembler {
  /// What the other vCPUs begin with, in guest-physical memory: the start-up vector is its page.
  private enum Trampoline {
    static let page: UInt64 = 0x8000
    /// Behind the code: the address of the page tables, three descriptors, and what LGDT reads.
    static let tables: UInt32 = 0x80, descriptors: UInt32 = 0x90, pointer: UInt32 = 0xA8

    /// Paging is switched on together with protection; then a far jump, whose address follows, leads to 64-bit code.
    static let code: [UInt8] = [
      0xFA, 0x31, 0xC0, 0x8E, 0xD8,  // cli; xor %ax, %ax; mov %ax, %ds
      0x0F, 0x20, 0xE0, 0x66, 0x83, 0xC8, 0x20, 0x0F, 0x22, 0xE0,  // CR4 |= PAE
      0x66, 0xA1, 0x80, 0x80, 0x0F, 0x22, 0xD8,  // CR3 = tables
      0x66, 0xB9, 0x80, 0x00, 0x00, 0xC0, 0x0F, 0x32, 0x80, 0xCC, 0x01, 0x0F, 0x30,  // EFER |= LME
      0x66, 0x0F, 0x01, 0x16, 0xA8, 0x80,  // lgdt pointer
      0x0F, 0x20, 0xC0, 0x66, 0x0D, 0x01, 0x00, 0x00, 0x80, 0x0F, 0x22, 0xC0,  // CR0 |= PG | PE
      0x66, 0xEA,  // ljmp
    ]
  }

  private mutating func put(_ value: UInt64, at offset: UInt32) {
    mov(.rax, value)
    store(.rax, .rdi, offset)
  }

  /// Starts vCPUs 1 to `count` - 1 at a label, in 64-bit mode with the page tables of this one and without a stack.
  /// RAX, RBX and RDI are lost.
  mutating func startProcessors(_ count: Int, at entry: Label) {
    mov(.rdi, Trampoline.page)
    for (index, start) in stride(from: 0, to: Trampoline.code.count, by: 8).enumerated() {
      let piece = Trampoline.code[start..<min(start + 8, Trampoline.code.count)]
      put(piece.reversed().reduce(0) { $0 << 8 | UInt64($1) }, at: UInt32(8 * index))
    }
    let target = UInt32(Trampoline.code.count)
    put(0x08 << 32, at: target)
    lea(.rax, entry)
    store32(.rax, .rdi, target)
    readControl3()
    store(.rax, .rdi, Trampoline.tables)
    // Null, 64-bit code, data.
    for (index, descriptor) in [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF as UInt64].enumerated() {
      put(descriptor, at: Trampoline.descriptors + UInt32(8 * index))
    }
    put((Trampoline.page + UInt64(Trampoline.descriptors)) << 16 | 0x17, at: Trampoline.pointer)
    mov(.rbx, 0xFEE0_0300)  // the interrupt command register
    for id in 1..<max(count, 1) {
      mov(.rax, UInt64(id) << 24)
      store32(.rax, .rbx, 0x10)
      for command in [0x4500, 0x4600 | Trampoline.page >> 12] {  // INIT, start-up
        mov(.rax, command)
        store32(.rax, .rbx)
      }
    }
  }

  /// Puts this vCPU's APIC ID into a register and a stack of 4 KiB under it. RAX and RBX are lost.
  mutating func becomeProcessor(_ id: GuestRegister, stackTop: UInt64) {
    mov(.rbx, 0xFEE0_0020)
    load32(.rax, .rbx)
    shr(.rax, 24)
    mov(id, .rax)
    shl(.rax, 12)
    mov(.rsp, stackTop)
    sub(.rsp, .rax)
  }

  /// Waits until `count` vCPUs more have come here: RDI is the address of their number, which begins at 0, and R10 of
  /// each vCPU what it must reach, `count` the first time. RAX is lost.
  mutating func meet(_ count: Int) {
    let (wait, over) = (label(), label())
    mov(.rax, 1)
    exchangeAdd(.rax, .rdi)
    place(wait)
    load(.rax, .rdi)
    cmp(.rax, .r10)
    jump(.notBelow, over)
    pause()
    jmp(wait)
    place(over)
    add(.r10, Int32(count))
  }
}
