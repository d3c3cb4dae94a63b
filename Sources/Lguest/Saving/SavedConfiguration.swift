// SPDX-License-Identifier: Apache-2.0
// What a saved machine is made of, and what of a new configuration must agree with it: a restored run is configured by
// its file, and only what the guest cannot notice, or must live with, may be chosen anew.

import Host
import Paravirt
import Saving
package import SystemPackage
import X86

/// The section that says what machine it was.
struct SavedConfiguration: SavedState, Equatable {
  static let section = "machine"

  var cpuCount: UInt32 = 1
  var level = CPUModel.Level.v2
  var extras = FeatureSet()
  var additions = FeatureSet()
  var vendor = VirtualMachine.Configuration.CPUVendor.intel
  var foreignHypercall = VirtualMachine.Configuration.ForeignHypercall.native
  var kvmAPI = VirtualMachine.Configuration.KVMAPI.modern
  var machine = VirtualMachine.Configuration.MachineKind.pc
  var debugExit = false
  var features: UInt32 = 0
  var hints: UInt32 = 0
  var timestampKilohertz: UInt32 = 0
  /// The path of the kernel, for people.
  var kernel = ""

  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    let cpuCounts: ClosedRange<UInt32> = 1...UInt32(VirtualMachine.Configuration.maximumCPUCount)
    try archive.transfer(&cpuCount, "number of processors", in: cpuCounts)
    try archive.transfer(named: &level, "CPU model")
    try archive.transfer(&extras, "extra CPU features", within: CPUModel.possibleExtras.subtracting(level.required))
    try archive.transfer(&additions, "added CPU features", within: CPUModel.possibleAdditions)
    try archive.transfer(named: &vendor, "CPU vendor")
    try archive.transfer(named: &foreignHypercall, "hypercall policy")
    try archive.transfer(named: &kvmAPI, "KVM interface")
    try archive.transfer(named: &machine, "kind of machine")
    try archive.transfer(&debugExit, "debug exit")
    try archive.transfer(&features, "KVM features", bits: KVMFeatures.implemented.rawValue)
    try archive.transfer(&hints, "KVM hints", bits: KVMHints.implemented.rawValue)
    try archive.transfer(&timestampKilohertz, "rate of the time-stamp counter", in: 1...UInt32.max)
    try archive.transfer(&kernel, "kernel's path", limit: 4096)
    // It is shown to people, and must not move their cursors.
    if archive.isRestoring { kernel = PlainText.of(kernel) }
  }

  /// The model that the guest saw, of another vendor perhaps.
  func model(_ vendor: CPUModel.Vendor) -> CPUModel {
    CPUModel(level, vendor: vendor, extras: extras, additions: additions)
  }

  /// Goes on at the saved rate if the host's counter runs at it, but for what a measurement is off by.
  func counter(host: TimestampCounter) throws(ConfigurationError) -> TimestampCounter {
    let (old, new) = (UInt64(timestampKilohertz), UInt64(host.kilohertz))
    guard let counter = TimestampCounter(kilohertz: timestampKilohertz),
      (old > new ? old - new : new - old) < old / TimestampCalibration.tolerance
    else {
      throw ConfigurationError(
        "the saved machine's time-stamp counter runs at \(old) kHz and this host's at \(new) kHz",
        remedy: "restore it on a host with the same rate")
    }
    return counter
  }
}

extension StateArchive {
  /// Enumerations whose raw values are names.
  mutating func transfer<T: RawRepresentable>(
    named value: inout T, _ name: String
  ) throws(SavedStateError) where T.RawValue == String {
    var text = value.rawValue
    try transfer(&text, name, limit: 64)
    guard let new = T(rawValue: text) else { return try require(false, name) }
    value = new
  }
}

extension VirtualMachine.Configuration {
  /// The configuration of a saved machine, with its vendor and policies. Time limits, console, counters, host threads,
  /// vendor and the policy for the other vendor's hypercalls may be changed; the rest is as it was.
  ///
  /// - Throws: `ConfigurationError` if the file is not a saved machine, truncated, damaged or newer.
  package init(restoring path: FilePath) throws(ConfigurationError) {
    let file = try SaveFile(path)
    let saved = try file.configuration
    self.init(kernel: FilePath(saved.kernel))
    self.saved = file
    memorySize = file.header.memoryByteCount
    cpuCount = Int(saved.cpuCount)
    cpuModel = saved.level.rawValue
    cpuVendor = saved.vendor
    foreignHypercall = saved.foreignHypercall
    kvmAPI = saved.kvmAPI
    kvmFeatures = saved.features
    kvmHints = saved.hints
    machine = saved.machine
    debugExit = saved.debugExit
    abi = .kvm
    guard try file.lguest != nil else { return }
    abi = .lguest
    // The header has been checked: there is as much.
    memorySize -= LguestLayout.deviceBytes
    restartsGuest = file.hasFirstMemory
  }

  /// RAM with what a guest of lguest's interface has behind it, in bytes.
  var wholeMemorySize: UInt64 { abi == .lguest ? LguestLayout.limit(memorySize) : memorySize }

  /// Checks that nothing was changed that the guest would notice.
  func validate(against file: SaveFile) throws(ConfigurationError) {
    let saved = try file.configuration
    let lguest = try file.lguest
    try validateDisks(lguest?.disks ?? [])
    guard abi == (lguest == nil ? .kvm : .lguest), wholeMemorySize == file.header.memoryByteCount,
      networks.isEmpty, cpuCount == Int(saved.cpuCount), cpuModel == saved.level.rawValue,
      kvmAPI == saved.kvmAPI, kvmFeatures == saved.features, kvmHints == saved.hints, machine == saved.machine
    else {
      throw ConfigurationError(
        "a saved machine keeps its memory, processors, CPU model, devices and interfaces",
        remedy: "change the vendor, the hypercall policy, limits, the console and where disks are only")
    }
  }
}

extension SaveFile {
  var configuration: SavedConfiguration {
    get throws(ConfigurationError) {
      var saved = SavedConfiguration()
      var sections = reading()
      try sections.section(SavedConfiguration.section) { archive throws(SavedStateError) in try saved.transfer(&archive)
      }
      return saved
    }
  }

  var clock: SavedKVMClock {
    get throws(ConfigurationError) {
      var saved = SavedKVMClock()
      var sections = reading()
      try sections.section(Machine.clockSection) { archive throws(SavedStateError) in try saved.transfer(&archive) }
      return saved
    }
  }
}
