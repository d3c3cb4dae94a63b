// SPDX-License-Identifier: Apache-2.0
// What translated code may do with each place of the vCPU page: the host's addresses in it, the bounds of RAM and the
// tables are neither read nor written by what comes from a guest's instruction, and what the engine relies on is stored
// in one form only. Derived from the structure itself.

import CHost

/// What four bytes of the vCPU page are to translated code.
struct PagePlace: Equatable {
  let rawValue: UInt8

  static let forbidden = PagePlace(rawValue: 0)
  static let readable = PagePlace(rawValue: 1)
  /// Read and written: guest registers and other values that nothing relies on.
  static let state = PagePlace(rawValue: 2)
  /// Eight bytes whose value is followed: what groups keep, and words of scratch.
  static let kept = PagePlace(rawValue: 3)
  /// The address of the guest's page: written on the way in, of known alignment.
  static let pageAddress = PagePlace(rawValue: 4)
  /// Constants for Swift and CHost.
  static let exitInfo = PagePlace(rawValue: 5), exitData = PagePlace(rawValue: 6), string = PagePlace(rawValue: 7)
  /// RFLAGS: some bits are set and cleared.
  static let systemFlags = PagePlace(rawValue: 8)
  /// As `readable` and `state`, for code of level 0; for other code as `forbidden`.
  static let kernelReadable = PagePlace(rawValue: 9), kernelState = PagePlace(rawValue: 10)

  var isKernels: Bool { self == .kernelReadable || self == .kernelState }
}

/// The vCPU page, by displacement from ENV.
@safe struct PagePlaces {
  let exitInfo: Int, exitData: Int, string: Int, pageAddress: Int, systemFlags: Int, xcr0: Int
  let groups: Int, scratch: Int, stack: Int, shadowTop: Int, environment: Int, attention: Int, flags: Int
  /// The displacements of what usual forms name have seven bits.
  let areNear: Bool
  private let places: UnsafeMutablePointer<UInt8>
  /// Displacements that `places` has something about: from -CHOST_ENV to here.
  private static let end = Int(CHOST_TABLES)

  init() {
    func at(_ path: PartialKeyPath<chost_cpu>) -> Int {
      // Every path below is a stored field's.
      (MemoryLayout<chost_cpu>.offset(of: path) ?? 0) - Int(CHOST_ENV)
    }
    exitInfo = at(\.exit_info)
    exitData = at(\.exit_data)
    string = at(\.string_operation)
    pageAddress = at(\.page_va)
    systemFlags = at(\.system_flags)
    xcr0 = at(\.xcr0)
    groups = at(\.groups)
    scratch = at(\.scratch)
    stack = at(\.stack)
    shadowTop = at(\.shadow_top)
    environment = at(\.x87_environment)
    attention = at(\.attention)
    flags = at(\.flags)
    areNear = [exitInfo, exitData, pageAddress, attention, flags].allSatisfy { 0..<128 ~= $0 }
    let size = (PagePlaces.end + Int(CHOST_ENV)) / 4
    unsafe places = .allocate(capacity: size)
    unsafe places.initialize(repeating: PagePlace.forbidden.rawValue, count: size)
    func mark(_ displacement: Int, _ bytes: Int, _ place: PagePlace) {
      for granule in (displacement + Int(CHOST_ENV)) / 4..<(displacement + Int(CHOST_ENV) + bytes + 3) / 4 {
        unsafe places[granule] = place.rawValue
      }
    }
    // Guest registers without a host register of their own.
    for number in [9, 10, 11, 14, 15] { mark(at(\.gpr) + number * 8, 8, .state) }
    mark(flags, 8, .state)
    mark(pageAddress, 8, .pageAddress)
    mark(attention, 4, .readable)
    mark(at(\.interrupt_waiting), 4, .readable)
    mark(at(\.tsc_offset), 8, .readable)
    mark(systemFlags, 4, .systemFlags)
    mark(scratch, 16, .kept)
    mark(at(\.linear), 8, .state)
    mark(exitInfo, 4, .exitInfo)
    mark(exitData, 4, .exitData)
    let segment = MemoryLayout<chost_segment>.stride
    for number in 0..<6 {
      // Bases, and selectors with the padding behind them.
      let start = at(\.segments) + number * segment
      mark(start, 8, number >= 4 ? .state : .readable)
      mark(start + (MemoryLayout<chost_segment>.offset(of: \.selector) ?? 0), 4, .readable)
    }
    mark(at(\.cr2), 8, .kernelReadable)
    mark(at(\.cr3), 8, .kernelReadable)
    mark(at(\.kernel_gs_base), 8, .kernelState)
    mark(xcr0, 8, .readable)
    mark(at(\.tsc_aux), 8, .readable)
    mark(string, 4, .string)
    mark(groups, 8 * Int(CHOST_GROUPS), .kept)
    mark(at(\.read_bound), 6 * 8, .readable)
    mark(at(\.write_bound), 6 * 8, .readable)
    mark(at(\.pauses), 8, .state)
    mark(at(\.count_simple), 8, .state)
  }

  func deallocate() { unsafe places.deallocate() }

  /// What is at a displacement.
  @inline(__always)
  subscript(_ displacement: Int) -> PagePlace {
    let position = displacement &+ Int(CHOST_ENV)
    guard position >= 0, position < PagePlaces.end &+ Int(CHOST_ENV) else { return .forbidden }
    // SAFETY: inside the table.
    return PagePlace(rawValue: unsafe places[position >> 2])
  }

  /// Whether `size` bytes may be read as they are.
  @inline(__always)
  func isReadable(_ displacement: Int, _ size: Int) -> Bool {
    guard size <= 8 else { return false }
    return self[displacement] != .forbidden && self[displacement &+ size &- 1] != .forbidden
  }

  /// The number among the values of a `CheckedState` of what is kept at a displacement, or -1.
  @inline(__always)
  func kept(_ displacement: Int) -> Int {
    let group = displacement &- groups
    if group >= 0 && group < 8 &* Int(CHOST_GROUPS) {
      return group & 7 == 0 ? CheckedState.groups &+ group >> 3 : -1
    }
    let word = displacement &- scratch
    return word == 0 || word == 8 ? CheckedState.scratch &+ word >> 3 : -1
  }
}

/// What a displacement from ENV that a check names is.
struct CheckedSlot {
  enum Kind { case none, stack, site, region }
  var kind = Kind.none
  var isWritable = false
  /// The largest operand of a site.
  var most = 0

  /// The largest operand of each 64 sites (CHOST_CLASSES).
  private static func most(_ number: Int) -> Int {
    switch number >> 6 {
    case 0..<8: 8
    case 8, 9: 16
    case 10, 11: 32
    case 12, 13: 64
    case 14: 128
    default: 256
    }
  }

  /// - Parameters:
  ///   - displacement: from ENV.
  ///   - stack: that of this privilege's stack entry.
  ///   - slots: that of this privilege's slots.
  @inline(__always)
  init(_ displacement: Int, stack: Int, slots: Int) {
    if displacement == stack {
      kind = .stack
      isWritable = true
      return
    }
    let position = displacement &- slots
    guard position >= 0, position < Int(CHOST_SLOT_BYTES), position % Int(CHOST_SLOT_SIZE) == 0 else { return }
    let number = position / Int(CHOST_SLOT_SIZE)
    if number < 2 &* Int(CHOST_SITES) {
      kind = .site
      isWritable = number >= Int(CHOST_SITES)
      most = CheckedSlot.most(number % Int(CHOST_SITES))
    } else {
      kind = .region
      isWritable = number >= 2 &* Int(CHOST_SITES) &+ Int(CHOST_REGIONS)
    }
  }
}
