// SPDX-License-Identifier: Apache-2.0
// A vCPU page and 16 MiB of RAM with nothing around them, so that the C helpers can be tested alone: page tables
// are written by hand, and the tables of the software TLB are read as translated code reads them.

import CHost

@safe final class BareVCPU {
  static let ramSize: UInt64 = 16 << 20
  static let blockMask: UInt64 = 1023

  let cpu: UnsafeMutablePointer<chost_cpu>
  let ram: UnsafeMutableRawPointer
  let flags: UnsafeMutablePointer<UInt8>
  let blocks: UnsafeMutablePointer<chost_block_slot>
  let straddles: UnsafeMutablePointer<chost_straddle_slot>
  private let page: UnsafeMutableRawPointer

  init() {
    let pageSize = Int(CHOST_PAGE_BYTES)
    unsafe page = .allocate(byteCount: pageSize, alignment: 4096)
    unsafe page.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
    unsafe cpu = page.bindMemory(to: chost_cpu.self, capacity: 1)
    unsafe ram = .allocate(byteCount: Int(Self.ramSize), alignment: 4096)
    unsafe ram.initializeMemory(as: UInt8.self, repeating: 0, count: Int(Self.ramSize))
    unsafe flags = .allocate(capacity: Int(Self.ramSize >> 12))
    unsafe flags.initialize(repeating: 0, count: Int(Self.ramSize >> 12))
    unsafe blocks = .allocate(capacity: Int(Self.blockMask) + 1)
    unsafe blocks.initialize(repeating: chost_block_slot(), count: Int(Self.blockMask) + 1)
    unsafe straddles = .allocate(capacity: Int(CHOST_STRADDLES))
    unsafe straddles.initialize(repeating: chost_straddle_slot(), count: Int(CHOST_STRADDLES))
    self[\.ram] = unsafe UInt64(UInt(bitPattern: ram))
    self[\.ram_low_end] = Self.ramSize
    self[\.ram_high_end] = 1 << 32
    self[\.page_flags] = unsafe UInt64(UInt(bitPattern: flags))
    self[\.physical_mask] = (1 << 40) - 1
    self[\.block_table] = unsafe UInt64(UInt(bitPattern: blocks))
    self[\.block_mask] = Self.blockMask
    self[\.straddle_table] = unsafe UInt64(UInt(bitPattern: straddles))
    unsafe chost_reset_tables(cpu)
  }

  deinit {
    unsafe page.deallocate()
    unsafe ram.deallocate()
    unsafe flags.deallocate()
    unsafe blocks.deallocate()
    unsafe straddles.deallocate()
  }

  subscript<T: BitwiseCopyable>(_ path: WritableKeyPath<chost_cpu, T>) -> T {
    get { unsafe cpu.pointee[keyPath: path] }
    set { unsafe cpu.pointee[keyPath: path] = newValue }
  }

  /// A value in guest-physical memory.
  func load<T: BitwiseCopyable>(_ address: UInt64, as type: T.Type = T.self) -> T {
    unsafe ram.load(fromByteOffset: Int(address), as: type)
  }

  func store<T: BitwiseCopyable>(_ value: T, at address: UInt64) {
    unsafe ram.storeBytes(of: value, toByteOffset: Int(address), as: T.self)
  }

  func pageFlags(_ physical: UInt64) -> UInt8 { unsafe flags[Int(physical >> 12)] }
  func setPageFlags(_ value: UInt8, _ physical: UInt64) { unsafe flags[Int(physical >> 12)] = value }

  /// 64-bit mode: CR0.PG, WP and PE, CR4.PGE and PAE, EFER.NXE, LMA and LME; the PML4 is at 0x1000.
  func enterLongMode() {
    self[\.cr0] = 0x8001_0001
    self[\.cr4] = 0xA0
    self[\.efer] = 0xD00
    self[\.cr3] = 0x1000
    self[\.mode] = UInt32(CHOST_MODE_LONG | CHOST_MODE_LMA | CHOST_MODE_PROTECTED)
  }

  /// Maps a page in 4-level tables at 0x1000, 0x2000, 0x3000 and 0x4000, which all addresses share.
  func map(_ linear: UInt64, _ entry: UInt64) {
    store(0x2007 as UInt64, at: 0x1000 + (linear >> 39 & 511) * 8)
    store(0x3007 as UInt64, at: 0x2000 + (linear >> 30 & 511) * 8)
    store(0x4007 as UInt64, at: 0x3000 + (linear >> 21 & 511) * 8)
    store(entry, at: leaf(linear))
  }

  /// The physical address of the page-table entry that `map` writes.
  func leaf(_ linear: UInt64) -> UInt64 { 0x4000 + (linear >> 12 & 511) * 8 }

  /// The physical address, or nil and the error code.
  func translate(_ linear: UInt64, _ access: Access = .read) -> (physical: UInt64?, code: UInt32) {
    var physical: UInt64 = 0
    let code = unsafe chost_translate(cpu, linear, access.rawValue, &physical)
    return (code == 0 ? physical : nil, code & ~(1 << 31))
  }

  /// The error code of an access that must fail; nil when it succeeds.
  func fault(_ linear: UInt64, _ access: Access = .read) -> UInt32? {
    let (physical, code) = translate(linear, access)
    return physical == nil ? code : nil
  }

  /// What a miss in translated code does. The host address, as an offset into RAM, or nil.
  @discardableResult
  func fill(_ linear: UInt64, size: UInt32 = 1, write: Bool = false, user: Bool = false) -> UInt64? {
    let information =
      size << UInt32(CHOST_INFO_SIZE_SHIFT) | (write ? UInt32(CHOST_INFO_WRITE) : 0)
      | (user ? UInt32(CHOST_INFO_USER) : 0)
    let result = unsafe chost_tlb_fill(cpu, linear, information)
    return result.failed == 0 ? linear &+ result.addend &- self[\.ram] : nil
  }

  /// The check that translated code makes.
  func hits(_ linear: UInt64, size: UInt64 = 1, write: Bool = false, user: Bool = false) -> Bool {
    let table =
      Int(CHOST_ENV) + Int(CHOST_TLB_READ) + (user ? 2 : 0) * Int(CHOST_TLB_BYTES)
      + (write ? Int(CHOST_TLB_BYTES) : 0)
    let index = Int(linear >> 12 & UInt64(CHOST_TLB_ENTRIES - 1))
    let tag = unsafe page.load(fromByteOffset: table + index * 16, as: UInt64.self)
    return linear &- tag <= 4096 - size
  }

  /// The host address that an indirect jump finds in the jump cache.
  func jumpTarget(_ linear: UInt64, user: Bool = false) -> UInt64? {
    let tags = Int(CHOST_ENV) + Int(CHOST_JUMP_TAGS) + (user ? 16 : 0) * Int(CHOST_JUMP_ENTRIES)
    let product = UInt32(truncatingIfNeeded: linear) &* UInt32(bitPattern: Int32(CHOST_JUMP_FACTOR))
    let slot = tags + Int(product >> UInt32(CHOST_JUMP_SHIFT)) * 8
    guard unsafe page.load(fromByteOffset: slot, as: UInt64.self) == linear else { return nil }
    return unsafe page.load(fromByteOffset: slot + 8 * Int(CHOST_JUMP_ENTRIES), as: UInt64.self)
  }

  func insertBlock(physical: UInt64, _ entry: UInt64) {
    unsafe chost_block_insert(blocks, Self.blockMask, key(physical), entry)
  }

  private func key(_ physical: UInt64) -> UInt64 { physical << UInt64(CHOST_MODE_BITS) | UInt64(self[\.mode]) }

  /// The same for a block that goes on in the page at `second`; its entry is at an offset in the code.
  func insertStraddler(physical: UInt64, second: UInt64, offset: UInt64) {
    unsafe chost_straddle_insert(straddles, key(physical), second, offset)
  }

  func removeStraddler(physical: UInt64, second: UInt64) {
    unsafe chost_straddle_remove(straddles, key(physical), second)
  }

  func lookup(_ linear: UInt64) -> UInt64 { unsafe chost_lookup(cpu, linear) }
  func loadCR3() { unsafe chost_flush_nonglobal(cpu) }
  func invalidate(_ linear: UInt64) { unsafe chost_flush_page(cpu, linear) }
  func flushAll() { unsafe chost_flush_all(cpu) }
  func protect(_ physical: UInt64) { unsafe chost_protect_page(cpu, physical) }

  func string(_ kind: Int, size: UInt32, rep: UInt32 = 0) -> UInt32 {
    let operands = size << 4 | 3 << 8 | rep << 12 | UInt32(CHOST_DS) << 16
    return unsafe chost_string(cpu, UInt32(kind) | operands)
  }
}

/// Access rights, as `CHOST_ACCESS_*`.
struct Access: OptionSet {
  let rawValue: UInt32
  static let read: Access = []
  static let write = Access(rawValue: UInt32(CHOST_ACCESS_WRITE))
  static let user = Access(rawValue: UInt32(CHOST_ACCESS_USER))
  static let fetch = Access(rawValue: UInt32(CHOST_ACCESS_FETCH))
  static let implicit = Access(rawValue: UInt32(CHOST_ACCESS_IMPLICIT))
}
