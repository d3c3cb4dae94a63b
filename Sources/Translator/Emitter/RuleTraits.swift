// SPDX-License-Identifier: Apache-2.0
// Rules: what the translator knows about each of them besides the code that it emits. One table for everybody who asks,
// without a default: a new rule does not compile before it stands here.

import X86

/// Properties of a rule.
struct RuleTraits: OptionSet {
  let rawValue: UInt16

  /// Its instruction is the last of a block.
  static let endsBlock = RuleTraits(rawValue: 1 << 0)
  /// What it emits does not go on to the next instruction, in a block that is not stepped.
  static let goesElsewhere = RuleTraits(rawValue: 1 << 1)
  /// Swift executes it, always or often: every flag is exact before it.
  static let leavesForSwift = RuleTraits(rawValue: 1 << 2)
  /// When Swift executes it, the host does, on a copy of its operand.
  static let runsOnCopy = RuleTraits(rawValue: 1 << 3)
  /// The host may raise an exception in the guest's place, whatever the row says.
  static let mayRaise = RuleTraits(rawValue: 1 << 4)
  /// Its ModRM operand goes through `BlockBuilder.access`, and may share a check with others.
  static let groups = RuleTraits(rawValue: 1 << 5)
  /// It notes what it writes to the scratch registers.
  static let notesScratch = RuleTraits(rawValue: 1 << 6)
  /// It writes no general register, or those alone that its row names.
  static let writesNone = RuleTraits(rawValue: 1 << 7), writesNamed = RuleTraits(rawValue: 1 << 8)
  /// It compares addresses whatever its operands are, and EFLAGS is in the way.
  static let compares = RuleTraits(rawValue: 1 << 9)
  /// It can stand in a block that has the flags in the page throughout.
  static let worksWithoutFlags = RuleTraits(rawValue: 1 << 10)
}

extension Rule {
  /// What the translator knows about it.
  var traits: RuleTraits {
    switch self {
    case .copy: [.runsOnCopy, .groups, .notesScratch, .writesNamed, .worksWithoutFlags]
    case .nop: [.notesScratch, .writesNone, .worksWithoutFlags]
    case .lea: [.notesScratch, .writesNamed, .worksWithoutFlags]
    case .x87, .mmx, .sse, .avx:
      [.runsOnCopy, .mayRaise, .groups, .notesScratch, .writesNamed, .worksWithoutFlags]
    case .wait: [.runsOnCopy, .mayRaise, .writesNone]
    case .undefined: [.endsBlock, .leavesForSwift]
    case .jump: [.endsBlock, .goesElsewhere, .notesScratch, .writesNone, .worksWithoutFlags]
    case .jumpIndirect:
      [.endsBlock, .goesElsewhere, .groups, .notesScratch, .writesNone, .compares, .worksWithoutFlags]
    case .call: [.endsBlock, .goesElsewhere, .notesScratch, .compares, .worksWithoutFlags]
    case .callIndirect: [.endsBlock, .goesElsewhere, .groups, .notesScratch, .compares, .worksWithoutFlags]
    case .ret: [.endsBlock, .goesElsewhere, .notesScratch, .compares, .worksWithoutFlags]
    case .jcc: [.endsBlock, .notesScratch]
    case .loop: [.endsBlock, .goesElsewhere]
    case .push: [.groups, .notesScratch, .compares, .worksWithoutFlags]
    case .pop: [.notesScratch, .compares, .worksWithoutFlags]
    case .pushFlags: [.leavesForSwift]
    case .popFlags, .popSegment: [.endsBlock, .leavesForSwift]
    case .enter, .leave, .pushAll, .popAll, .pushSegment: []
    case .movs, .stos, .lods, .scas, .cmps, .ins, .outs: []
    case .incDec32: [.runsOnCopy, .writesNamed]
    case .moffs: [.groups]
    case .bitMemory: [.runsOnCopy, .writesNamed]
    case .gather, .maskMove, .xlat: []
    case .cmpxchgWide: [.runsOnCopy, .mayRaise, .writesNamed]
    case .saveState: [.runsOnCopy, .writesNone]
    case .restoreState: [.runsOnCopy, .mayRaise, .writesNone]
    case .movSegment, .rdfsbase: [.writesNamed]
    case .decimal, .bound, .arpl: []
    case .cpuid, .syscall, .sysret, .hypercall, .system: [.endsBlock, .leavesForSwift]
    case .rdtsc, .rdtscp, .swapgs, .wrfsbase, .stac, .clac: []
    case .cli, .sti, .cld, .std, .pause: [.writesNone]
    }
  }
}
