// SPDX-License-Identifier: Apache-2.0
// What a configuration lets KVM offer its guest, as people write it and as the machine uses it.

import X86

extension VirtualMachine.Configuration {
  /// The words of CPUID leaf 0x40000001 unless somebody says otherwise.
  public static let standardFeatures = X86.KVMFeatures.standard.rawValue
  /// See `standardFeatures`.
  public static let standardHints = X86.KVMHints.standard.rawValue

  /// The names of features and hints, in the order of their bits.
  package static var kvmFeatureNames: [String] { X86.KVMFeatures.names.map(\.name) }
  package static var kvmHintNames: [String] { X86.KVMHints.names.map(\.name) }

  /// Reads a list of features: names, `no-` and a name, hexadecimal numbers, `default`, `all`, `none`, with commas
  /// between.
  ///
  /// - Throws: `ConfigurationError` for what is no name, and for bits that cannot be offered.
  package static func features(_ list: String) throws(ConfigurationError) -> UInt32 {
    try word(list, X86.KVMFeatures.self, "feature")
  }

  /// Reads a list of hints, as `features` reads features.
  package static func hints(_ list: String) throws(ConfigurationError) -> UInt32 {
    try word(list, X86.KVMHints.self, "hint")
  }

  private static func word<Word: KVMWord>(
    _ list: String, _ type: Word.Type, _ role: String
  ) throws(ConfigurationError) -> UInt32 {
    do throws(KVMWordError) { return try Word(list: list).rawValue } catch {
      let names = Word.names.map(\.name).joined(separator: ", ")
      switch error {
      case .unknown(let name):
        throw ConfigurationError(
          "unknown KVM \(role) '\(name)'", remedy: "choose of default, all, none, \(names), or a number with 0x")
      case .notOffered(let bits):
        throw notOffered(bits, role, names)
      }
    }
  }

  private static func notOffered(_ bits: UInt32, _ role: String, _ names: String) -> ConfigurationError {
    ConfigurationError("KVM \(role)s 0x\(String(bits, radix: 16)) do not exist here", remedy: "choose of \(names)")
  }

  /// Checks the two words.
  func validateKVM() throws(ConfigurationError) {
    let features = kvmFeatures & ~X86.KVMFeatures.implemented.rawValue
    let hints = kvmHints & ~X86.KVMHints.implemented.rawValue
    if features != 0 {
      throw Self.notOffered(features, "feature", Self.kvmFeatureNames.joined(separator: ", "))
    }
    if hints != 0 { throw Self.notOffered(hints, "hint", Self.kvmHintNames.joined(separator: ", ")) }
  }

  /// Whether pages may take so long to come back.
  package static func checkSlowMemory(_ delay: Duration) throws(ConfigurationError) {
    guard SlowMemory.delays.contains(delay) else {
      throw ConfigurationError("pages cannot take \(delay) to come back", remedy: "give 0.01ms to 10s")
    }
  }

  var offered: KVMFeatures { KVMFeatures(rawValue: kvmFeatures) }
  var hinted: KVMHints { KVMHints(rawValue: kvmHints) }
}
