// SPDX-License-Identifier: Apache-2.0
// What a person asks for: a value with defaults, checked as a whole before anything is opened for the guest.

import Boot
import Host
public import Logging
public import SystemPackage

/// Something that stops a run before its first guest instruction: what is wrong, and what to do about it.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
  /// What is wrong, without a full stop.
  public let problem: String
  /// What to do about it, if that is known.
  public let remedy: String?

  package init(_ problem: String, remedy: String? = nil) {
    self.problem = problem
    self.remedy = remedy
  }

  /// For causes found while the machine is being put together, described in one line.
  package static func cannotStart(_ problem: String) -> ConfigurationError { ConfigurationError(problem) }

  /// One line.
  public var description: String { remedy.map { "\(problem); \($0)" } ?? problem }
}

extension VirtualMachine {
  /// Everything a machine is made from.
  public struct Configuration: Sendable {
    /// Which CPU engine executes the guest.
    package enum Engine: String, Sendable, CaseIterable { case translator }

    /// Which devices the machine has.
    public enum MachineKind: String, Sendable, CaseIterable {
      /// The least with which stock kernels are calm.
      case pc
      /// The same, and the devices conformance suites talk to: debug exit, scratch ports and memory, interrupt wires.
      case testdev
    }

    /// The vendor the guest's CPUID names.
    public enum CPUVendor: String, Sendable, CaseIterable { case intel, amd }

    /// What becomes of the hypercall instruction that the CPU's vendor does not have: it works as well, the machine
    /// performs it each time, the machine replaces it in guest memory, or it raises #UD in the guest.
    public enum ForeignHypercall: String, Sendable, CaseIterable { case native, emulate, patch, fault }

    /// Which of KVM's hypercall interfaces the guest meets: today's, that of August 2007 (no registration, no call that
    /// exists) or that of February 2007 (a page registered by MSR, calls that the program answers).
    public enum KVMAPI: String, Sendable, CaseIterable {
      case modern, refactored
      case year2007 = "2007"
    }

    /// Which interface the guest meets: a PC under KVM, or lguest's, for a 32-bit kernel that runs at level 1. `auto` is
    /// lguest's for kernels that say that they are made for it alone, by an ELF note, and else a PC's: a Linux kernel with
    /// lguest's guest side boots as a PC's too.
    public enum ABI: String, Sendable, CaseIterable { case auto, kvm, lguest }

    /// How a kernel starts the processors but the first.
    public enum ProcessorStart: String, Sendable, CaseIterable {
      /// By INIT and start-up IPIs, in real mode.
      case ipi
      /// Through the multiprocessor wakeup mailbox of ACPI, in 64-bit mode. For 64-bit kernels.
      case mailbox
    }

    /// The kernel's command line.
    public enum CommandLine: Sendable, Equatable {
      /// The default line with this text behind it.
      case appending(String)
      /// This text and nothing else.
      case complete(String)

      /// A serial console, and panics and reboots that end the machine at once.
      package static let defaultText = "console=ttyS0 panic=-1 reboot=a,panic_warm"
      /// The same for a guest of lguest's interface, which has no serial port.
      package static let lguestText = "console=hvc0 panic=-1"

      /// The whole line.
      package func text(for abi: ABI) -> String {
        let start = abi == .lguest ? CommandLine.lguestText : CommandLine.defaultText
        return switch self {
        case .appending(""): start
        case .appending(let more): start + " " + more
        case .complete(let text): text
        }
      }

      /// What a multiboot kernel gets: its file's name as the first word, as such loaders have it, and none of the
      /// defaults, which are Linux's.
      func multibootText(kernel: FilePath) -> String {
        switch self {
        case .appending(""): kernel.string
        case .appending(let more): kernel.string + " " + more
        case .complete(let text): text
        }
      }
    }

    /// What the machine goes on from; nil starts a kernel.
    package internal(set) var saved: SaveFile?
    /// A bzImage, an ELF vmlinux or a multiboot kernel. Of a saved machine, its path in those days.
    public var kernel: FilePath
    /// The initial RAM disk, if there is one.
    public var initrd: FilePath?
    /// The kernel's command line.
    public var commandLine = CommandLine.appending("")
    /// Guest RAM in bytes; host memory is used only for what the guest touches.
    public var memorySize: UInt64 = 1 << 30
    /// vCPUs, 1...64.
    public var cpuCount = 1
    /// How the kernel starts the vCPUs but the first.
    public var processorStart = ProcessorStart.ipi
    /// Host threads to run the vCPUs on, at most; nil is as many as the process may use processors.
    public var hostThreadCount: Int?
    /// How long a page of RAM takes to come back that a program used and that went away; nil: none goes away. What it
    /// shows is asynchronous page faults; nothing is gained by it.
    public var slowMemory: Duration?
    /// Whose processor CPUID names.
    public var cpuVendor = CPUVendor.intel
    /// What becomes of the other vendor's hypercall instruction; with lguest's interface, of KVM's, which it replaces by
    /// its own. nil: it works as well; with lguest's interface it is replaced.
    public var foreignHypercall: ForeignHypercall?
    /// Which of KVM's interfaces the guest finds.
    public var kvmAPI = KVMAPI.modern
    /// What KVM offers: EAX of CPUID leaf 0x40000001. What is not offered does not work.
    public var kvmFeatures = Configuration.standardFeatures
    /// What the guest is told to expect: EDX of the same leaf.
    public var kvmHints = Configuration.standardHints
    /// Hypercalls of the program's own, by number. KVM's own numbers cannot be replaced, but for the interface of 2007,
    /// which had none.
    public var hypercalls: [UInt64: HypercallHandler] = [:]
    /// A named level (`x86-64-v2`, `x86-64-v3`); nil is the highest the host has.
    public var cpuModel: String?
    /// What the CPU has besides: of `cpuFeatureNames`.
    public var cpuFeatures: Set<String> = []
    /// From `start` until user space begins; nil is no limit.
    public var bootTimeout: Duration? = .seconds(120)
    /// From `start` until the end; nil is no limit.
    public var timeout: Duration?
    /// What the time limits and `RunResult.Times` count from.
    public var start = ContinuousClock.now
    /// The guest may end the run with a status by writing to port 0xF4.
    public var debugExit = false
    /// What hardware there is.
    public var machine = MachineKind.pc
    /// Which interface the guest meets.
    public var abi = ABI.auto
    /// Whether a guest of lguest's interface that restarts is booted again in the same run, its memory as at the start;
    /// else that ends the run, as a PC's reset always does.
    public var restartsGuest = true
    /// How the kernel is entered.
    public var entry = EntryPoint.auto
    package var engine = Engine.translator
    /// Whether what exits cost is measured (`Statistics.lines`).
    public var collectStatistics = false
    package var inspection = EngineInspection()
    /// Confines the machine's threads once it is built; nil leaves them as they are. A machine of its own for each run.
    ///
    /// What a program adds to a machine runs on those threads too: `consoleOutput`, `logger` and `hypercalls` may then
    /// use what is open and take memory, and little else; docs/threat-model.md has the table.
    public var sandbox: Sandbox?
    /// Told of what is unusual about the guest; nil is silence.
    public var logger: Logger?
    /// Disks, in the order in which the guest meets them; for guests of lguest's interface.
    public var disks: [Disk] = []
    /// Network cards, likewise.
    public var networks: [Network] = []
    /// Told of each socket that the machine has made in the file system (`Network.listen`): whoever is told removes it.
    /// nil: the machine does, if it still may.
    package var didListen: (@Sendable (FilePath) -> Void)?
    /// Takes what the guest writes to its serial port, a byte at a time, on a vCPU's thread. It may block, and the
    /// guest then waits; it must return once the run has been asked to stop.
    public var consoleOutput: (@Sendable (UInt8) -> Void)?

    /// Everything else has a default.
    public init(kernel: FilePath) { self.kernel = kernel }

    /// The least RAM a 64-bit kernel can begin to unpack itself in. Most want more.
    public static let minimumMemory: UInt64 = 16 << 20
    /// The engine's tables, and APIC IDs that every kernel can address.
    public static let maximumCPUCount = 64
    /// Linux's COMMAND_LINE_SIZE on x86, with the terminating zero.
    package static let commandLineSize = 2048
    /// What `cpuModel` may name.
    public static let cpuModels = ["x86-64-v2", "x86-64-v3"]
    /// Features that are left out unless asked for: `smap` makes a kernel's accesses to user memory slower, `pcid`
    /// (with INVPCID) gains nothing, since translations are not kept for each context.
    public static let cpuFeatureNames = ["smap", "pcid"]

    /// As many vCPUs as this process may use processors, by affinity and control group, 1...64.
    package static var hostCPUCount: Int { min(max(HostCapacity.current().cpus, 1), maximumCPUCount) }

    /// Checks every field, touching files no more than to see that they can be read.
    package func validate() throws(ConfigurationError) {
      try validateValues()
      try Configuration.checkMemory(memorySize)
      if abi == .lguest { try checkLguestMemory() }
      try validateDevices()
      if let saved { try validate(against: saved) } else { try validateFiles() }
    }

    /// Checks whatever depends neither on files nor on this host.
    package func validateValues() throws(ConfigurationError) {
      try validateMemory()
      try validateKVM()
      try validateRun()
      try validateDeviceCount()
      if abi == .lguest { try checkLguestCPUs() }
      guard (1...Configuration.maximumCPUCount).contains(cpuCount) else {
        throw ConfigurationError(
          "\(cpuCount) CPUs were asked for", remedy: "ask for 1 to \(Configuration.maximumCPUCount)")
      }
      if let cpuModel, !Configuration.cpuModels.contains(cpuModel) {
        throw ConfigurationError(
          "unknown CPU model '\(cpuModel)'", remedy: "choose one of \(Configuration.cpuModels.joined(separator: ", "))")
      }
      if let unknown = cpuFeatures.subtracting(Configuration.cpuFeatureNames).sorted().first {
        throw ConfigurationError(
          "unknown CPU feature '\(unknown)'",
          remedy: "choose of \(Configuration.cpuFeatureNames.joined(separator: ", "))")
      }
      let text = commandLine.text(for: abi)
      guard text.utf8.count < Configuration.commandLineSize else {
        throw ConfigurationError(
          "the kernel command line has \(text.utf8.count) bytes",
          remedy: "keep it under \(Configuration.commandLineSize), all that Linux reads")
      }
      guard !text.utf8.contains(0), !text.utf8.contains(UInt8(ascii: "\n")) else {
        throw ConfigurationError("the kernel command line contains a line break or a zero byte", remedy: "remove it")
      }
    }

    /// What may also be said of a saved machine's run.
    private func validateRun() throws(ConfigurationError) {
      if let hostThreadCount, hostThreadCount < 1 {
        throw ConfigurationError("\(hostThreadCount) host threads were asked for", remedy: "ask for 1 at least")
      }
      if let slowMemory { try Configuration.checkSlowMemory(slowMemory) }
    }

    private func validateMemory() throws(ConfigurationError) {
      let asked = ByteSize.text(memorySize)
      guard memorySize >= Configuration.minimumMemory else {
        throw ConfigurationError(
          "\(asked) of memory is too small for a kernel",
          remedy: "give at least \(ByteSize.text(Configuration.minimumMemory)), or 1G to be comfortable")
      }
      guard memorySize.isMultiple(of: 4096) else {
        throw ConfigurationError(
          "\(asked) of memory is not a whole number of 4K pages", remedy: "round it to a megabyte")
      }
    }

    /// Whether this host can have a guest with so many bytes of RAM.
    static func checkMemory(_ byteCount: UInt64) throws(ConfigurationError) {
      let asked = ByteSize.text(byteCount)
      if let host = HostReport.memoryTotal(), byteCount > host {
        throw ConfigurationError(
          "\(asked) of memory is more than this host's \(host >> 20)M", remedy: "ask for less")
      }
      // Memory is sparse, so what other processes use now is no obstacle; a limit on this one is.
      let capacity = HostCapacity.current()
      if capacity.memoryLimitedBy != "the host", byteCount > capacity.memory {
        throw ConfigurationError(
          "\(asked) of memory is more than the \(capacity.memory >> 20)M that \(capacity.memoryLimitedBy) leaves",
          remedy: "ask for less or raise the limit")
      }
    }

    private func validateFiles() throws(ConfigurationError) {
      try Configuration.checkReadable(kernel, "kernel", "give the path of a bzImage (vmlinuz) or an ELF vmlinux")
      guard let initrd else { return }
      let size = try Configuration.checkReadable(initrd, "initrd", "give the path of an initramfs image")
      guard size < memorySize else {
        throw ConfigurationError(
          "initrd '\(initrd)' (\(size >> 20)M) does not fit in \(ByteSize.text(memorySize)) of memory",
          remedy: "give the machine more memory or use a smaller initrd")
      }
    }

    /// The size of a readable, non-empty regular file.
    @discardableResult
    static func checkReadable(
      _ path: FilePath, _ role: String, _ remedy: String
    ) throws(ConfigurationError) -> UInt64 {
      switch HostProbe.fileKind(path) {
      case .regular(byteCount: 0): throw ConfigurationError("\(role) '\(path)' is empty", remedy: remedy)
      case .regular(let byteCount): return byteCount
      case .directory: throw ConfigurationError("\(role) '\(path)' is a directory", remedy: remedy)
      case .other: throw ConfigurationError("\(role) '\(path)' is not an ordinary file", remedy: remedy)
      case .unreadable(let reason):
        throw ConfigurationError("cannot read \(role) '\(path)': \(reason)", remedy: remedy)
      }
    }
  }
}
