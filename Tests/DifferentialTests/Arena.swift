// SPDX-License-Identifier: Apache-2.0
// The memory that both sides see at the same linear addresses with the same contents: mapped into this process for
// the native run, and through scattered guest pages for the translated one.

import CNative
import Glibc
import GuestMemory
import Host

/// What a page of the arena is like.
enum PageKind {
  case ram, absent, readOnly, device
  /// RAM that also holds translated code: stores take the slow path.
  case code
}

/// One stretch of linear addresses.
struct Window {
  let base: UInt64
  let kinds: [PageKind]
  var size: UInt64 { UInt64(kinds.count) << 12 }
  func kind(_ address: UInt64) -> PageKind? {
    address >= base && address - base < size ? kinds[Int((address - base) >> 12)] : nil
  }
}

@safe final class Arena {
  let memory: GuestMemory

  /// The guest's own tables and stacks, at this linear address only (not mapped natively).
  static let system: UInt64 = 0x7000_0000
  static let systemPages: UInt64 = 16
  static let codeBase: UInt64 = 0x3000_0000
  static let codePages = 8
  static let low = Window(
    base: 0x2000_0000,
    kinds: [.ram, .ram, .ram, .absent, .ram, .readOnly, .ram, .absent, .ram, .code, .ram, .absent, .device, .absent])
  static let high = Window(base: 0x1_1000_0000, kinds: low.kinds)
  /// 2 GiB below `high`, so that displacements reach from one to the other.
  static let opposite = Window(base: 0x9000_0000, kinds: [.ram, .ram, .ram])
  /// Both sides of 4 GiB.
  static let border = Window(base: 0xFFFF_F000, kinds: [.ram, .ram])
  static let windows = [low, opposite, high, border]
  /// Guest-physical address of the first device page; no RAM there.
  static let deviceBase: UInt64 = 0xD000_0000

  private var nextPage: UInt64 = 0x100
  private var physical: [UInt64: UInt64] = [:]
  /// What the devices hold, by guest-physical address.
  var deviceBytes: [UInt64: UInt8] = [:]
  /// Guest page of the root table.
  let root: UInt64

  init() throws {
    memory = try GuestMemory(byteCount: 64 << 20)
    root = 0x1000
    nextPage = 2
    // Natively.
    for window in Arena.windows {
      for (index, kind) in window.kinds.enumerated() where kind != .absent {
        let address = window.base + UInt64(index) << 12
        try Arena.check(cnative_map(address, 4096, 0))
      }
    }
    try Arena.check(cnative_map(Arena.codeBase, UInt64(Arena.codePages) << 12, 1))
    // In the guest, out of order.
    var frames = Array(0x400..<0x500 as Range<UInt64>)
    var random = Random(seed: 1)
    frames.shuffle(using: &random)
    var device = Arena.deviceBase
    for window in Arena.windows {
      for (index, kind) in window.kinds.enumerated() {
        let address = window.base + UInt64(index) << 12
        switch kind {
        case .absent: break
        case .device:
          try map(address, device, flags: 7)
          device += 4096
        case .readOnly: try map(address, frames.removeLast() << 12, flags: 5)
        default: try map(address, frames.removeLast() << 12, flags: 7)
        }
        if kind != .absent { fill(address, &random) }
        if kind == .readOnly { try Arena.check(cnative_protect_read_only(address, 4096)) }
      }
    }
    for page in 0..<Arena.codePages {
      try map(Arena.codeBase + UInt64(page) << 12, frames.removeLast() << 12, flags: 7)
    }
    for page in 0..<Arena.systemPages { try map(Arena.system + page << 12, 0x600_000 + page << 12, flags: 7) }
  }

  private static func check(_ error: Int32) throws {
    guard error == 0 else { throw HostError("map", "the arena", reason: "errno \(error)") }
  }

  private func map(_ linear: UInt64, _ frame: UInt64, flags: UInt64) throws {
    var table = root
    for level in [39, 30, 21] as [UInt64] {
      let slot = GuestPhysical(table + (linear >> level & 511) * 8)
      var entry = try memory.load(UInt64.self, at: slot)
      if entry == 0 {
        entry = nextPage << 12 | 7
        nextPage += 1
        try memory.store(entry, at: slot)
      }
      table = entry & ~0xFFF
    }
    try memory.store(frame | flags, at: GuestPhysical(table + (linear >> 12 & 511) * 8))
    physical[linear] = frame
  }

  /// The guest-physical address behind a linear one.
  func physical(_ linear: UInt64) -> UInt64? { physical[linear & ~0xFFF].map { $0 | linear & 0xFFF } }

  func kind(_ linear: UInt64) -> PageKind? {
    for window in Arena.windows { if let kind = window.kind(linear) { return kind } }
    return nil
  }

  /// Whether an access at an address may touch what only the guest has.
  static func isSystem(_ address: UInt64) -> Bool {
    address &+ 64 >= system && address < system + systemPages << 12
  }

  // MARK: Contents

  /// The native view of an address. Only for mapped ones.
  func native(_ linear: UInt64) -> UnsafeMutableRawPointer { unsafe UnsafeMutableRawPointer(bitPattern: UInt(linear))! }

  /// The guest's view of an address that is RAM.
  private func guest(_ linear: UInt64) -> UnsafeMutableRawPointer {
    unsafe memory.baseAddress + Int(physical[linear & ~0xFFF]! | linear & 0xFFF)
  }

  private func fill(_ page: UInt64, _ random: inout Random) {
    for offset in stride(from: UInt64(0), to: 4096, by: 8) {
      unsafe native(page + offset).storeBytes(of: random.lane(), as: UInt64.self)
    }
    synchronize(page: page)
  }

  /// Makes the guest's page equal to the native one.
  func synchronize(page: UInt64) {
    let frame = physical[page]!
    if kind(page) == .device {
      for offset in UInt64(0)..<4096 {
        deviceBytes[frame + offset] = unsafe native(page + offset).load(as: UInt8.self)
      }
    } else {
      unsafe guest(page).copyMemory(from: native(page), byteCount: 4096)
    }
  }

  /// Makes one byte of the guest's memory equal to the native one.
  func synchronize(byte linear: UInt64) {
    guard let kind = kind(linear), kind != .absent else { return }
    let value = unsafe native(linear).load(as: UInt8.self)
    if kind == .device {
      deviceBytes[physical(linear)!] = value
    } else {
      unsafe guest(linear).storeBytes(of: value, as: UInt8.self)
    }
  }

  /// A byte of one side's memory; nil where there is none.
  func byte(_ linear: UInt64, native: Bool) -> UInt8? {
    guard let kind = kind(linear), kind != .absent else { return nil }
    if native { return unsafe self.native(linear).load(as: UInt8.self) }
    if kind == .device { return deviceBytes[physical(linear)!] }
    return unsafe guest(linear).load(as: UInt8.self)
  }

  /// Puts a byte back that the native side has stored.
  func restoreNative(_ byte: UInt8, at linear: UInt64) {
    guard let kind = kind(linear), kind != .absent, kind != .readOnly else { return }
    unsafe native(linear).storeBytes(of: byte, as: UInt8.self)
  }

  /// The first difference between the views of one page.
  func difference(page: UInt64) -> String? {
    guard let kind = kind(page), kind != .absent, let frame = physical[page] else { return nil }
    if kind != .device, unsafe memcmp(native(page), guest(page), 4096) == 0 { return nil }
    for offset in UInt64(0)..<4096 {
      let host = unsafe native(page + offset).load(as: UInt8.self)
      let guest = kind == .device ? deviceBytes[frame + offset]! : unsafe guest(page + offset).load(as: UInt8.self)
      if host != guest { return "memory \(hex(page + offset)): native \(hex(host)) translated \(hex(guest))" }
    }
    return nil
  }

  /// Stores bytes on the native side only.
  func storeNative(_ bytes: [UInt8], at linear: UInt64) {
    for (index, byte) in bytes.enumerated() {
      unsafe native(linear + UInt64(index)).storeBytes(of: byte, as: UInt8.self)
    }
  }

  /// Stores the same bytes on both sides (through guest memory, so that code made of them is discarded).
  func store(_ bytes: [UInt8], at linear: UInt64) throws {
    storeNative(bytes, at: linear)
    let first = min(bytes.count, Int(4096 - linear & 0xFFF))
    try memory.copy(from: Array(bytes[..<first]), to: GuestPhysical(physical(linear)!))
    if first < bytes.count {
      try memory.copy(from: Array(bytes[first...]), to: GuestPhysical(physical(linear + UInt64(first))!))
    }
  }
}

func hex<T: BinaryInteger>(_ value: T) -> String { "0x" + String(value, radix: 16) }
