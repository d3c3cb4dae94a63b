// SPDX-License-Identifier: Apache-2.0
// What this host offers a machine, and which engine would run and why: the facts behind `lguest doctor`.

import Host
import SystemPackage

/// Facts about the host.
package struct HostReport: Sendable {
  package var cpuVendor = "unknown"
  package var cpuModel = "unknown"
  /// CPU features that matter to the translator, and whether the host has them.
  package var features: [(name: String, isPresent: Bool)] = []
  /// The highest named CPU level the host can give a guest; nil below x86-64-v2.
  package var cpuLevel: String?
  package var hasInvariantTSC = false
  package var usableCPUs = 1
  package var memoryTotal: UInt64?
  package var memoryAvailable: UInt64?
  package var kvm = HostProbe.KVM.absent
  /// The limit on address space, in bytes; nil when there is none.
  package var addressSpaceLimit: UInt64?
  /// Why code memory cannot be made; nil when it can.
  package var codeMemoryProblem: String?
  /// The value of the vm.memfd_noexec sysctl, where the kernel has it.
  package var memfdNoexec: String?
  package var kernelRelease: String?
  /// Why system calls cannot be filtered; nil when they can.
  package var filterProblem: String?
  /// The version of Landlock's interface; nil where there is none.
  package var landlockVersion: Int?

  /// Looks at the host.
  package init() {
    let cpuinfo = HostFile.text("/proc/cpuinfo") ?? ""
    let flags = Set((HostReport.field("flags", in: cpuinfo) ?? "").split(separator: " ").map(String.init))
    cpuVendor = HostReport.field("vendor_id", in: cpuinfo) ?? cpuVendor
    cpuModel = HostReport.field("model name", in: cpuinfo) ?? cpuModel
    features = HostReport.relevantFeatures.map { ($0.name, flags.contains($0.flag)) }
    hasInvariantTSC = flags.isSuperset(of: ["constant_tsc", "nonstop_tsc"])
    if flags.isSuperset(of: HostReport.levelTwo) {
      cpuLevel = flags.isSuperset(of: HostReport.levelThree) ? "x86-64-v3" : "x86-64-v2"
    }
    usableCPUs = HostCapacity.current().cpus
    memoryTotal = HostReport.memoryTotal()
    memoryAvailable = HostReport.memory("MemAvailable")
    kvm = HostProbe.kvm()
    addressSpaceLimit = AddressSpaceLimit.current
    codeMemoryProblem = HostProbe.codeMemoryProblem()
    filterProblem = HostProbe.filterProblem()
    landlockVersion = HostProbe.landlockVersion()
    memfdNoexec = HostFile.text("/proc/sys/vm/memfd_noexec").map(HostReport.trimmed)
    kernelRelease = HostFile.text("/proc/sys/kernel/osrelease").map(HostReport.trimmed)
  }

  // Names of /proc/cpuinfo; the levels are those of the x86-64 psABI.
  private static let relevantFeatures: [(name: String, flag: String)] = [
    ("SSE4.2", "sse4_2"), ("AVX", "avx"), ("AVX2", "avx2"), ("FMA", "fma"), ("BMI1", "bmi1"), ("BMI2", "bmi2"),
    ("AES", "aes"), ("PCLMULQDQ", "pclmulqdq"), ("XSAVE", "xsave"), ("CMPXCHG16B", "cx16"), ("FSGSBASE", "fsgsbase"),
    ("ERMS", "erms"), ("RDTSCP", "rdtscp"),
  ]
  private static let levelTwo: Set<String> = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
  private static let levelThree: Set<String> = levelTwo.union([
    "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
  ])

  /// What a machine with one vCPU and the usual memory reserves, about, in bytes: RAM, code twice, the vCPU and its
  /// stacks, each alone.
  static let addressSpaceNeeded = UInt64(5 * (Mapping.Guard.below + Mapping.Guard.above) + 4 << 30)

  /// What stands in the way of running a guest here; empty when nothing does.
  package var problems: [ConfigurationError] {
    var problems: [ConfigurationError] = []
    if cpuLevel == nil {
      problems.append(
        ConfigurationError("this CPU is below x86-64-v2", remedy: "use a machine with SSE4.2, POPCNT and CMPXCHG16B"))
    }
    if let limit = addressSpaceLimit, limit < HostReport.addressSpaceNeeded {
      problems.append(
        ConfigurationError(
          "this process may use \(describe(byteCount: limit)) of address space (RLIMIT_AS), and a machine with one vCPU "
            + "reserves \(describe(byteCount: HostReport.addressSpaceNeeded))",
          remedy: "raise the limit (ulimit -v unlimited); reserved addresses cost no memory"))
    }
    if let codeMemoryProblem {
      problems.append(
        ConfigurationError(
          "executable memory is refused (\(codeMemoryProblem))",
          remedy: "allow executable memfds (sysctl vm.memfd_noexec=0 or 1, or the sandbox's own setting)"))
    }
    return problems
  }

  /// Which engine would run, and why.
  package var engineChoice: String {
    let kvmText =
      switch kvm {
      case .absent: "/dev/kvm is not there, and is not needed"
      case .refused(let reason): "/dev/kvm is there but cannot be opened (\(reason)), and is not needed"
      case .usable: "/dev/kvm is usable but not used: no engine for it is written yet"
      }
    return "translator: the only engine of this version; \(kvmText)"
  }

  /// The whole report as text, a fact to a line.
  package var lines: [String] {
    let present = features.filter(\.isPresent).map(\.name).joined(separator: " ")
    let absent = features.filter { !$0.isPresent }.map(\.name).joined(separator: " ")
    var lines = [
      "CPU             \(cpuModel) (\(cpuVendor))",
      "CPU level       \(cpuLevel ?? "below x86-64-v2")",
      "features        \(present)",
    ]
    if !absent.isEmpty { lines.append("missing         \(absent)") }
    lines += [
      "invariant TSC   \(hasInvariantTSC ? "yes" : "no")",
      "usable CPUs     \(usableCPUs)",
      "memory          \(HostReport.megabytes(memoryTotal)), \(HostReport.megabytes(memoryAvailable)) available",
      "kernel          \(kernelRelease ?? "unknown")",
      "/dev/kvm        \(kvmWords.text)",
      "address space   \(addressSpaceLimit.map { "\(describe(byteCount: $0)) (RLIMIT_AS)" } ?? "no limit")",
      "code memory     \(codeMemoryProblem ?? "ok") (vm.memfd_noexec \(memfdNoexec ?? "not known to this kernel"))",
      "sandbox         \(sandboxText)",
      "engine          \(engineChoice)",
    ]
    lines += problems.map { "problem         \($0)" }
    if problems.isEmpty { lines.append("ready           yes") }
    return lines
  }

  package var json: JSON {
    .object([
      ("schemaVersion", 1),
      ("version", .string(VirtualMachine.version)),
      ("commit", .string(VirtualMachine.commit)),
      (
        "cpu",
        .object([
          ("vendor", .string(cpuVendor)),
          ("model", .string(cpuModel)),
          ("level", cpuLevel.map(JSON.string) ?? .null),
          ("features", .object(features.map { ($0.name, .bool($0.isPresent)) })),
          ("invariantTSC", .bool(hasInvariantTSC)),
          ("usable", .integer(Int64(usableCPUs))),
        ])
      ),
      (
        "memory",
        .object([
          ("totalBytes", memoryTotal.map(JSON.unsigned) ?? .null),
          ("availableBytes", memoryAvailable.map(JSON.unsigned) ?? .null),
        ])
      ),
      ("addressSpaceLimitBytes", addressSpaceLimit.map(JSON.unsigned) ?? .null),
      ("kernelRelease", kernelRelease.map(JSON.string) ?? .null),
      (
        "kvm",
        .object([("state", .string(kvmWords.state)), ("detail", .string(kvmWords.text)), ("used", false)])
      ),
      (
        "codeMemory",
        .object([
          ("ok", .bool(codeMemoryProblem == nil)),
          ("problem", codeMemoryProblem.map(JSON.string) ?? .null),
          ("memfdNoexec", memfdNoexec.map(JSON.string) ?? .null),
        ])
      ),
      (
        "sandbox",
        .object([
          ("systemCallFilter", .bool(filterProblem == nil)),
          ("systemCallFilterProblem", filterProblem.map(JSON.string) ?? .null),
          ("landlockABI", landlockVersion.map { .integer(Int64($0)) } ?? .null),
        ])
      ),
      ("engine", .object([("name", "translator"), ("why", .string(engineChoice))])),
      ("ready", .bool(problems.isEmpty)),
      ("problems", .array(problems.map { .string($0.description) })),
    ])
  }

  private var sandboxText: String {
    let filter = filterProblem.map { "system calls cannot be filtered (\($0))" } ?? "system calls are filtered"
    return filter + ", " + (landlockVersion.map { "files closed by Landlock (ABI \($0))" } ?? "no Landlock")
  }

  private var kvmWords: (state: String, text: String) {
    switch kvm {
    case .absent: ("absent", "absent")
    case .refused(let reason): ("refused", "present, cannot be opened: \(reason); not used")
    case .usable(let version): ("usable", "usable (API \(version)); not used")
    }
  }

  /// Physical memory in bytes, or nil when /proc does not say.
  static func memoryTotal() -> UInt64? { memory("MemTotal") }

  private static func memory(_ name: String) -> UInt64? {
    guard let text = HostFile.text("/proc/meminfo"), let value = field(name, in: text) else { return nil }
    return value.split(separator: " ").first.flatMap { UInt64($0) }.map { $0 << 10 }
  }

  /// The value of the first `name : value` line.
  private static func field(_ name: String, in text: String) -> String? {
    for line in text.split(separator: "\n") {
      guard let colon = line.firstIndex(of: ":"), trimmed(String(line[..<colon])) == name else { continue }
      return trimmed(String(line[line.index(after: colon)...]))
    }
    return nil
  }

  private static func trimmed(_ text: String) -> String {
    var text = Substring(text)
    while let first = text.first, first.isWhitespace { text.removeFirst() }
    while let last = text.last, last.isWhitespace { text.removeLast() }
    return String(text)
  }

  private static func megabytes(_ bytes: UInt64?) -> String { bytes.map { "\($0 >> 20)M" } ?? "unknown" }
}
