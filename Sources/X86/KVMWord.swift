// SPDX-License-Identifier: Apache-2.0
// How people write the words of KVM's CPUID leaf: a list of names, a number, or what is usual with something added or
// taken away. The names are those of Linux's kvm_para.h (KVM_FEATURE_..., KVM_HINTS_...) in lower case.

/// Why a list of features was refused.
public enum KVMWordError: Error, Sendable, Equatable {
  /// Neither a name nor a number.
  case unknown(String)
  /// Bits that mean nothing here, or are not implemented.
  case notOffered(UInt32)
}

/// One of the two words: each bit has a name.
public protocol KVMWord: OptionSet, Sendable where RawValue == UInt32 {
  /// In the order of the bits.
  static var names: [(name: String, bit: Self)] { get }
  /// What may be offered.
  static var implemented: Self { get }
  /// What is offered unless somebody says otherwise.
  static var standard: Self { get }
}

extension KVMWord {
  /// Reads a list, separated by commas, of names, `no-` and a name, hexadecimal numbers with `0x`, `default`, `all` and
  /// `none`. Items add up from the left; a list that begins with `no-` takes away from the default.
  public init(list text: String) throws(KVMWordError) {
    let items = text.split(separator: ",", omittingEmptySubsequences: false)
    var word: Self = items.first?.hasPrefix("no-") == true ? .standard : []
    for item in items {
      switch item {
      case "default": word.formUnion(.standard)
      case "all": word.formUnion(.implemented)
      case "none": word = []
      case _ where item.hasPrefix("no-"): word.subtract(try Self.bit(item.dropFirst(3)))
      case _ where item.hasPrefix("0x"):
        guard let value = UInt32(item.dropFirst(2), radix: 16) else { throw .unknown(String(item)) }
        word.formUnion(Self(rawValue: value))
      default: word.formUnion(try Self.bit(item))
      }
    }
    let others = word.rawValue & ~Self.implemented.rawValue
    guard others == 0 else { throw .notOffered(others) }
    self = word
  }

  private static func bit(_ name: Substring) throws(KVMWordError) -> Self {
    for known in names where known.name == name { return known.bit }
    throw .unknown(String(name))
  }
}

extension KVMFeatures: KVMWord {
  public static var names: [(name: String, bit: KVMFeatures)] {
    [
      ("clocksource", .clockSource), ("nop-io-delay", .noIODelay), ("clocksource2", .clockSource2),
      ("async-pf", .asyncPageFault), ("steal-time", .stealTime), ("pv-eoi", .endOfInterrupt), ("pv-unhalt", .unhalt),
      ("pv-tlb-flush", .tlbFlush), ("async-pf-vmexit", .asyncPageFaultExit), ("pv-send-ipi", .sendIPI),
      ("poll-control", .pollControl), ("pv-sched-yield", .schedYield), ("async-pf-int", .asyncPageFaultInterrupt),
      ("msi-ext-dest-id", .extendedDestinationID), ("hc-map-gpa-range", .mapGuestRange),
      ("migration-control", .migrationControl), ("clocksource-stable-bit", .stableClock),
    ]
  }
}

extension KVMHints: KVMWord {
  public static var names: [(name: String, bit: KVMHints)] { [("realtime", .realtime)] }
}
