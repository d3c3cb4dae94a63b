// SPDX-License-Identifier: Apache-2.0
// The vCPU page as the machine that judges mutants has it: what each place is to a guest, said here a second time and
// not as the checker says it. What a place holds that is an address of the host's is a secret; what a guest could not
// write by any instruction of its own must not be written.

import CHost

/// What may be stored to eight bytes of the vCPU page.
enum MutantPlace: UInt8 {
  /// The engine's or the kernel's own: nothing.
  case engine
  /// The guest's own, or of no consequence: all but an address of the host's.
  case guest
  /// By code of level 0; other code must not know of it.
  case kernel
  /// Nothing, and other code than that of level 0 must not know of it.
  case kernelOnly
  /// Anything: nobody reads it before it is written again.
  case scratch
  /// The address of the guest's page: the start of one.
  case pageAddress
  /// The words that say why code is left.
  case exit
  /// What the string helper is told, in the lower half.
  case string
  /// RFLAGS, in the lower half: DF, and IF and AC at level 0. In the upper half is the mode.
  case flags
}

/// The page's layout, by displacement from ENV.
enum MutantPage {
  static let granules = Int(CHOST_TABLES + CHOST_ENV) / 8

  private static func at(_ path: PartialKeyPath<chost_cpu>) -> Int {
    MemoryLayout<chost_cpu>.offset(of: path)! - Int(CHOST_ENV)
  }

  static let pageAddress = at(\.page_va)
  static let exitInfo = at(\.exit_info)
  static let string = at(\.string_operation)
  static let flags = at(\.system_flags)
  static let stack = at(\.stack)
  static let shadowTop = at(\.shadow_top)
  static let attention = at(\.attention)
  static let xcr0 = at(\.xcr0)
  static let groups = at(\.groups)

  static func granule(_ displacement: Int) -> Int { (displacement + Int(CHOST_ENV)) >> 3 }

  static let places: [MutantPlace] = {
    var places = [MutantPlace](repeating: .engine, count: granules)
    func mark(_ displacement: Int, _ bytes: Int, _ place: MutantPlace) {
      for number in granule(displacement)..<granule(displacement + bytes + 7) { places[number] = place }
    }
    mark(at(\.gpr), 128, .guest)
    mark(at(\.flags), 8, .guest)
    mark(pageAddress, 8, .pageAddress)
    mark(flags, 8, .flags)
    mark(at(\.scratch), 32, .scratch)
    mark(at(\.linear), 8, .guest)
    mark(exitInfo, 8, .exit)
    mark(string, 8, .string)
    mark(groups, 64, .scratch)
    mark(at(\.x87_environment), 32, .scratch)
    // FSBASE and GSBASE: the guest's table says whether WRFSBASE is there, and the kernel's is not the program's.
    for number in [4, 5] { mark(at(\.segments) + number * MemoryLayout<chost_segment>.stride, 8, .guest) }
    mark(at(\.kernel_gs_base), 8, .kernel)
    for path in [\chost_cpu.cr2, \.cr3] { mark(at(path), 8, .kernelOnly) }
    mark(at(\.pauses), 8, .scratch)
    mark(at(\.count_simple), 8, .scratch)
    return places
  }()

  /// Addresses of the host's, and what was left from other blocks.
  static let secrets: [Bool] = {
    var secrets = [Bool](repeating: false, count: granules)
    func mark(_ displacement: Int, _ bytes: Int = 8) {
      for number in granule(displacement)..<granule(displacement + bytes + 7) { secrets[number] = true }
    }
    mark(at(\.scratch), 32)
    mark(groups, 64)
    for path in [
      \chost_cpu.ram, \.page_flags, \.block_table, \.code_base, \.code_end, \.stub_tlb_miss, \.stub_jump_miss,
      \.stub_string, \.stub_light, \.stub_return, \.stub_underflow, \.code_chunks, \.host_rsp, \.exit_stub, \.fault_pc,
      \.stub_slot_miss, \.stub_group_miss, \.slot_guard, \.straddle_table,
    ] { mark(at(path)) }
    for path in [\chost_cpu.shadow, \.shadow_top, \.shadow_bottom] { mark(at(path), 16) }
    return secrets
  }()
}

/// An entry of the tables that lie behind the page's places.
enum MutantEntry {
  case none
  /// An entry of the software TLB, the stack's page, or a slot; `field` counts from its tag.
  case tlb(isUser: Bool, isWritable: Bool, index: Int, field: Int)
  case stack(isUser: Bool, field: Int)
  case site(isUser: Bool, isWritable: Bool, most: Int, field: Int)
  case region(isUser: Bool, isWritable: Bool, field: Int)
  /// An entry of a jump cache.
  case jump(isUser: Bool, index: Int, isTarget: Bool)

  /// What lies at a displacement from ENV that is a multiple of eight.
  init(_ displacement: Int) {
    self = .none
    let stack = displacement - MutantPage.stack
    if stack >= 0 && stack < 32 {
      self = .stack(isUser: stack >= 16, field: stack >> 3 & 1)
      return
    }
    let tlb = displacement - Int(CHOST_TLB_READ), bytes = Int(CHOST_TLB_BYTES)
    if tlb >= 0 && tlb < 4 * bytes {
      let table = tlb / bytes
      self = .tlb(isUser: table >= 2, isWritable: table & 1 == 1, index: tlb % bytes >> 4, field: tlb >> 3 & 1)
      return
    }
    let jump = displacement - Int(CHOST_JUMP_TAGS), entries = Int(CHOST_JUMP_ENTRIES)
    if jump >= 0 && jump < 4 * 8 * entries {
      let number = jump >> 3
      self = .jump(isUser: number >= 2 * entries, index: number % entries, isTarget: number / entries & 1 == 1)
      return
    }
    let slot = displacement - Int(CHOST_SLOTS), slots = Int(CHOST_SLOT_BYTES)
    if slot >= 0 && slot < 2 * slots {
      let isUser = slot >= slots
      let number = slot % slots / Int(CHOST_SLOT_SIZE), field = slot >> 3 & 3
      let sites = Int(CHOST_SITES)
      if number < 2 * sites {
        let most = MutantEntry.most(number % sites)
        self = .site(isUser: isUser, isWritable: number >= sites, most: most, field: field)
      } else {
        self = .region(isUser: isUser, isWritable: number >= 2 * sites + Int(CHOST_REGIONS), field: field)
      }
    }
  }

  /// The largest operand of a site: CHOST_CLASSES.
  static func most(_ number: Int) -> Int {
    let ends = [512, 640, 768, 896, 960, 1024], sizes = [8, 16, 32, 64, 128, 256]
    return sizes[ends.firstIndex { number < $0 } ?? 5]
  }
}
