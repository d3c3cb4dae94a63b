// SPDX-License-Identifier: Apache-2.0
// Guest memory by linear address, for code that runs in Swift: descriptor tables, task-state segments, stack
// frames and the operands of slowly executed instructions. An access is translated completely, both pages if
// it crosses, before a byte moves. Addresses that are not RAM read as ones and swallow writes.

import CHost
import Synchronization
import X86

/// In whose name memory is accessed.
enum Authority: UInt8 {
  case user
  case supervisor
  /// Descriptor tables and task-state segments: supervisor accesses from any privilege level (SDM volume 3, 4.6).
  case implicit

  /// Rights for `chost_translate`; SMAP treats implicit supervisor accesses differently.
  var rights: UInt32 {
    switch self {
    case .user: UInt32(CHOST_ACCESS_USER)
    case .supervisor: 0
    case .implicit: UInt32(CHOST_ACCESS_IMPLICIT)
    }
  }
}

/// A translated range of linear memory: at most a page long, so at most two physical pieces.
struct LinearSpan {
  let count: Int
  /// Guest-physical address of the first byte.
  let first: UInt64
  /// Bytes in the first page; `count` when the range does not cross.
  let firstCount: Int
  /// Guest-physical address of byte `firstCount`.
  let second: UInt64

  func physical(_ offset: Int) -> UInt64 {
    offset < firstCount
      ? first &+ UInt64(truncatingIfNeeded: offset) : second &+ UInt64(truncatingIfNeeded: offset &- firstCount)
  }
}

/// Instruction bytes as the slow path fetched them.
struct InstructionBytes {
  /// The first sixteen bytes; those from `count` on are zero.
  var low: UInt64 = 0, high: UInt64 = 0
  var count = 0
  /// What fetching byte `count` raises, if it was asked for and could not be had.
  var end: Fault?

  subscript(index: Int) -> UInt8 {
    UInt8(truncatingIfNeeded: (index < 8 ? low : high) >> (UInt64(truncatingIfNeeded: index & 7) &* 8))
  }

  mutating func append(_ byte: UInt8) {
    let shift = UInt64(truncatingIfNeeded: count & 7) &* 8
    if count < 8 { low |= UInt64(byte) << shift } else { high |= UInt64(byte) << shift }
    count &+= 1
  }
}

extension Processor {
  /// The authority of the running code.
  var authority: Authority { privilege == 3 ? .user : .supervisor }

  func authority(at privilege: UInt8) -> Authority { privilege == 3 ? .user : .supervisor }

  // MARK: Translation

  /// Translates `count` bytes (1...4096) with the rights asked.
  func span(
    _ linear: UInt64, count: Int, write: Bool, as authority: Authority, stack: Bool = false
  ) throws(Fault) -> LinearSpan {
    var start = linear
    if page.isLMA {
      let last = linear &+ UInt64(truncatingIfNeeded: count &- 1)
      guard Processor.isCanonical(linear), Processor.isCanonical(last) else {
        throw stack ? .stackFault(0) : .generalProtection()
      }
    } else {
      start &= 0xFFFF_FFFF
    }
    let access = authority.rights | (write ? UInt32(CHOST_ACCESS_WRITE) : 0)
    let first = try translate(start, access)
    let inFirst = 4096 &- Int(truncatingIfNeeded: start & 0xFFF)
    if count <= inFirst { return LinearSpan(count: count, first: first, firstCount: count, second: 0) }
    var next = start &+ UInt64(truncatingIfNeeded: inFirst)
    if !page.isLMA { next &= 0xFFFF_FFFF }
    let second = try translate(next, access)
    return LinearSpan(count: count, first: first, firstCount: inFirst, second: second)
  }

  /// Translates one linear address.
  func translate(_ linear: UInt64, _ access: UInt32) throws(Fault) -> UInt64 {
    var physical: UInt64 = 0
    var code = unsafe chost_translate(page.pointer, linear, access, &physical)
    while code == UInt32(CHOST_TABLE_ABSENT) {
      // Nothing that the guest could be told about.
      waitUntilPresent(physical)
      code = unsafe chost_translate(page.pointer, linear, access, &physical)
    }
    if code != 0 { throw .pageFault(linear, code: code & 0x7FFF_FFFF) }
    if page[\.late_pages] != 0 { try checkPresence(of: physical, access) }
    return physical
  }

  private func pageFlags(_ physical: UInt64) -> UnsafeMutablePointer<Atomic<UInt8>>? {
    // SAFETY: there is a flag byte for every page of RAM.
    unsafe UnsafeMutablePointer(bitPattern: UInt(page[\.page_flags] &+ physical >> 12))
  }

  /// Waits for a page of RAM, if it has gone away.
  func waitUntilPresent(_ physical: UInt64) {
    while let observer = state.codeObserver, let flags = unsafe pageFlags(physical),
      unsafe flags.pointee.load(ordering: .acquiring) & UInt8(CHOST_PAGE_ABSENT) != 0
    { observer.waitForPage(physical) }
  }

  /// An absent page: user code leaves for the machine, which may let another task run; so does other code of a guest
  /// that takes part in this at every level. Everybody else waits here.
  private func checkPresence(of physical: UInt64, _ access: UInt32) throws(Fault) {
    guard isRAM(physical), let flags = unsafe pageFlags(physical) else { return }
    let value = unsafe flags.pointee.load(ordering: .acquiring)
    let isUser = access & UInt32(CHOST_ACCESS_USER) != 0
    if value & UInt8(CHOST_PAGE_ABSENT) != 0 {
      // Not what the processor does for itself: a task switch would be half done.
      let isOwn = isUser || state.everyLevelLeavesForPages && access & UInt32(CHOST_ACCESS_IMPLICIT) == 0
      if isOwn && !state.waitsForPages { throw .pageAbsent(physical) }
      state.codeObserver?.waitForPage(physical)
    } else if isUser && value & UInt8(CHOST_PAGE_USED) == 0 {
      unsafe _ = flags.pointee.bitwiseOr(UInt8(CHOST_PAGE_USED), ordering: .relaxed)
    }
  }

  // MARK: Spans

  func load<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ type: T.Type, _ span: LinearSpan, at offset: Int = 0
  ) -> T {
    let size = MemoryLayout<T>.size
    if offset &+ size <= span.firstCount || offset >= span.firstCount {
      return physicalLoad(type, span.physical(offset))
    }
    var value: T = 0
    for index in 0..<size {
      let byte = physicalLoad(UInt8.self, span.physical(offset &+ index))
      value |= T(truncatingIfNeeded: byte) << T(truncatingIfNeeded: index &* 8)
    }
    return value
  }

  func store<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ value: T, _ span: LinearSpan, at offset: Int = 0
  ) {
    let size = MemoryLayout<T>.size
    if offset &+ size <= span.firstCount || offset >= span.firstCount {
      physicalStore(value, span.physical(offset))
      return
    }
    for index in 0..<size {
      let byte = UInt8(truncatingIfNeeded: value >> T(truncatingIfNeeded: index &* 8))
      physicalStore(byte, span.physical(offset &+ index))
    }
  }

  /// `load` with the size in bytes: 1, 2, 4 or 8.
  func load(_ span: LinearSpan, at offset: Int = 0, size: UInt8) -> UInt64 {
    switch size {
    case 1: UInt64(load(UInt8.self, span, at: offset))
    case 2: UInt64(load(UInt16.self, span, at: offset))
    case 4: UInt64(load(UInt32.self, span, at: offset))
    default: load(UInt64.self, span, at: offset)
    }
  }

  func store(_ value: UInt64, _ span: LinearSpan, at offset: Int = 0, size: UInt8) {
    switch size {
    case 1: store(UInt8(truncatingIfNeeded: value), span, at: offset)
    case 2: store(UInt16(truncatingIfNeeded: value), span, at: offset)
    case 4: store(UInt32(truncatingIfNeeded: value), span, at: offset)
    default: store(value, span, at: offset)
    }
  }

  // MARK: Single accesses

  func read<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ type: T.Type, at linear: UInt64, as authority: Authority
  ) throws(Fault) -> T {
    load(type, try span(linear, count: MemoryLayout<T>.size, write: false, as: authority))
  }

  func write<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(
    _ value: T, at linear: UInt64, as authority: Authority
  ) throws(Fault) {
    store(value, try span(linear, count: MemoryLayout<T>.size, write: true, as: authority))
  }

  /// Sets bits of one byte in memory atomically: accessed and busy bits of descriptors.
  func setBits(_ bits: UInt8, at linear: UInt64, as authority: Authority) throws(Fault) {
    let physical = try span(linear, count: 1, write: true, as: authority).first
    guard state.device.missing == nil, let host = unsafe host(physical) else { return }
    // SAFETY: `host` points at one byte of guest RAM, and Atomic<UInt8> has the layout of UInt8.
    unsafe _ = host.assumingMemoryBound(to: Atomic<UInt8>.self).pointee.bitwiseOr(
      bits, ordering: .sequentiallyConsistent)
    written(physical, 1)
  }

  func clearBits(_ bits: UInt8, at linear: UInt64, as authority: Authority) throws(Fault) {
    let physical = try span(linear, count: 1, write: true, as: authority).first
    guard state.device.missing == nil, let host = unsafe host(physical) else { return }
    // SAFETY: as above.
    unsafe _ = host.assumingMemoryBound(to: Atomic<UInt8>.self).pointee.bitwiseAnd(
      ~bits, ordering: .sequentiallyConsistent)
    written(physical, 1)
  }

  // MARK: Physical memory

  func isRAM(_ physical: UInt64) -> Bool {
    physical < page[\.ram_low_end] || (physical >= 1 << 32 && physical < page[\.ram_high_end])
  }

  /// Loads bytes of one page.
  func physicalLoad<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(_ type: T.Type, _ physical: UInt64) -> T {
    guard let host = unsafe host(physical) ?? keptPage(physical) else {
      return T(truncatingIfNeeded: state.device.load(physical, size: MemoryLayout<T>.size))
    }
    // SAFETY: the bytes are in one page of guest RAM, or in the machine's.
    return unsafe host.loadUnaligned(as: T.self)
  }

  /// Stores bytes of one page.
  func physicalStore<T: FixedWidthInteger & UnsignedInteger & BitwiseCopyable>(_ value: T, _ physical: UInt64) {
    guard let host = unsafe host(physical) else {
      return state.device.store(UInt64(truncatingIfNeeded: value), physical, size: MemoryLayout<T>.size)
    }
    // An instruction that waits for a device will run again.
    if state.device.missing != nil { return }
    // SAFETY: the bytes are in one page of guest RAM.
    unsafe host.storeBytes(of: value, as: T.self)
    written(physical, MemoryLayout<T>.size)
  }

  private func host(_ physical: UInt64) -> UnsafeMutableRawPointer? {
    guard isRAM(physical) else { return nil }
    // It was there when it was translated, but may have gone away while this vCPU waited for another one.
    if page[\.late_pages] != 0 { waitUntilPresent(physical) }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(page[\.ram] &+ physical))
  }

  /// The machine's own page, which is only read.
  private func keptPage(_ physical: UInt64) -> UnsafeMutableRawPointer? {
    guard physical & ~4095 == UInt64(CHOST_KEPT_PHYSICAL), page[\.kept_page] != 0 else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(page[\.kept_page] &+ physical & 4095))
  }

  /// Logs a store: the page is dirty, and code translated from it is stale.
  private func written(_ physical: UInt64, _ count: Int) {
    guard page[\.page_flags] != 0, let flags = unsafe pageFlags(physical) else { return }
    let old = unsafe flags.pointee.load(ordering: .sequentiallyConsistent)
    if old & UInt8(CHOST_PAGE_DIRTY) == 0 {
      unsafe _ = flags.pointee.bitwiseOr(UInt8(CHOST_PAGE_DIRTY), ordering: .relaxed)
    }
    if old & UInt8(CHOST_PAGE_CODE) != 0 { state.codeObserver?.codeWritten(physical: physical, count: count) }
  }

  // MARK: Instruction fetch

  /// Fetches up to fifteen bytes at RIP. Never throws: a short result says in `end` what the next byte raises.
  func fetch(at rip: UInt64) -> InstructionBytes {
    var bytes = InstructionBytes()
    let access = UInt32(CHOST_ACCESS_FETCH) | authority.rights
    let code = page[.cs]
    var physical: UInt64 = 0
    while bytes.count < Instruction.maximumLength {
      let offset = rip &+ UInt64(truncatingIfNeeded: bytes.count)
      var linear = offset
      if page.isLongMode {
        guard Processor.isCanonical(linear) else {
          bytes.end = .generalProtection()
          return bytes
        }
      } else {
        guard offset <= UInt64(code.limit) else {
          bytes.end = .generalProtection()
          return bytes
        }
        linear = (code.base &+ offset) & 0xFFFF_FFFF
      }
      if bytes.count == 0 || linear & 0xFFF == 0 {
        do throws(Fault) { physical = try translate(linear, access) } catch {
          bytes.end = error
          return bytes
        }
        // No code is fetched from devices, least of all bytes that may belong to no instruction.
        guard isRAM(physical) else {
          bytes.end = .invalidOpcode
          return bytes
        }
      }
      bytes.append(physicalLoad(UInt8.self, physical))
      physical &+= 1
    }
    return bytes
  }
}
