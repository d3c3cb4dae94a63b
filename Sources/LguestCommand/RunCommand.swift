// SPDX-License-Identifier: Apache-2.0
// `lguest run`: the options of a run, refused when they make no sense, turned into a configuration.

import ArgumentParser
import Boot
import Lguest
import SystemPackage

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Boot a kernel; its serial console is stdin and stdout.",
    discussion: """
      On a terminal, Ctrl-A x ends the run and Ctrl-A a sends a Ctrl-A. Nothing but the guest's console \
      goes to stdout; lguest's own lines go to stderr. End of input \
      reaches the guest as Ctrl-D.
      """)

  @Option(
    help: ArgumentHelp("A bzImage (vmlinuz), an ELF vmlinux or a multiboot kernel.", valueName: "file"),
    completion: .file())
  var kernel: String

  @Option(help: ArgumentHelp("An initramfs or initrd image.", valueName: "file"), completion: .file())
  var initrd: String?

  @Option(
    help: ArgumentHelp(
      "Add to the kernel command line, which is '\(VirtualMachine.Configuration.CommandLine.defaultText)'.",
      valueName: "string"))
  var append: String?

  @Option(help: ArgumentHelp("Replace the kernel command line.", valueName: "string"))
  var cmdline: String?

  @Option(
    help: ArgumentHelp(
      "Guest memory; K, M and G are binary. (default: 1G, of lguest's interface 256M)", valueName: "size"),
    transform: ByteSize.parse)
  var memory: UInt64?

  @Option(
    help: ArgumentHelp(
      "vCPUs, 1 to \(VirtualMachine.Configuration.maximumCPUCount). (default: as many as this process may use)",
      valueName: "count"))
  var cpus: Int?

  @Option(help: "How the kernel starts the vCPUs but the first: by IPIs, or through ACPI's wakeup mailbox.")
  var processorStart = VirtualMachine.Configuration.ProcessorStart.ipi

  @Option(
    help: "The interface the guest meets: a PC under KVM or lguest's; auto is lguest's for kernels made for it alone.")
  var abi = VirtualMachine.Configuration.ABI.auto

  @Flag(help: "End the run when a guest of lguest's interface restarts, instead of booting it again.")
  var noReboot = false

  @OptionGroup var devices: DeviceOptions

  @OptionGroup var console: ConsoleRunOptions

  @Option(help: "The machine; testdev is a pc with the devices that conformance suites talk to.")
  var machine = VirtualMachine.Configuration.MachineKind.pc

  @Flag(help: "Let the guest end the run with status (code << 1) | 1 by writing code to port 0xf4.")
  var debugExit = false

  @Option(help: "How to enter the kernel; auto chooses by its content and unpacks it on the host where it can.")
  var entry = EntryPoint.auto

  @Option(
    help: ArgumentHelp(
      "The CPU model, \(VirtualMachine.Configuration.cpuModels.joined(separator: " or ")). (default: the highest the host has)",
      valueName: "name"),
    transform: RunCommand.cpuModel)
  var cpuModel: String?

  @Option(
    help: ArgumentHelp(
      "Features to add to the CPU model, separated by commas, of \(VirtualMachine.Configuration.cpuFeatureNames.joined(separator: ", ")).",
      valueName: "names"),
    transform: RunCommand.cpuFeatures)
  var cpuFeatures: Set<String> = []

  @Option(help: "The vendor that the guest's CPUID names, and whose hypercall instruction is the CPU's own.")
  var cpuVendor = VirtualMachine.Configuration.CPUVendor.intel

  @Option(
    help: ArgumentHelp(
      "The other vendor's hypercall instruction, with --abi lguest KVM's: works as well (native), is performed by the machine each time, is replaced in guest memory, or raises #UD in the guest. (default: native, with --abi lguest patch)",
      valueName: "policy"))
  var hypercallInsn: VirtualMachine.Configuration.ForeignHypercall?

  @Option(
    help: ArgumentHelp(
      "KVM's hypercall interface: today's, or that of August 2007 (refactored) or February 2007 (2007).",
      valueName: "version"))
  var kvmApi = VirtualMachine.Configuration.KVMAPI.modern

  @Option(
    help: ArgumentHelp(
      "What KVM offers the guest: \(VirtualMachine.Configuration.kvmFeatureNames.joined(separator: ", ")); a name with no- before it takes away; or a number with 0x, default, all, none. (default: default)",
      valueName: "list"),
    transform: { try RunCommand.checked($0, VirtualMachine.Configuration.features) })
  var kvmFeatures = VirtualMachine.Configuration.standardFeatures

  @Option(
    help: ArgumentHelp(
      "What KVM tells the guest to expect: \(VirtualMachine.Configuration.kvmHintNames.joined(separator: ", ")); or a number with 0x, all, none. (default: none)",
      valueName: "list"),
    transform: { try RunCommand.checked($0, VirtualMachine.Configuration.hints) })
  var kvmHints = VirtualMachine.Configuration.standardHints

  @Option(help: ArgumentHelp("The CPU engine; there is one: translator.", valueName: "name"))
  var engine = VirtualMachine.Configuration.Engine.translator

  @OptionGroup(title: "Looking into the engine") var inspection: InspectionOptions

  private static func checked(
    _ text: String, _ parse: (String) throws(ConfigurationError) -> UInt32
  ) throws -> UInt32 {
    do throws(ConfigurationError) { return try parse(text) } catch { throw ValidationError(error.description) }
  }

  private static func cpuModel(_ name: String) throws -> String {
    let names = VirtualMachine.Configuration.cpuModels
    guard names.contains(name) else {
      throw ValidationError("unknown CPU model '\(name)': choose \(names.joined(separator: " or "))")
    }
    return name
  }

  private static func cpuFeatures(_ names: String) throws -> Set<String> {
    let known = VirtualMachine.Configuration.cpuFeatureNames
    let features = names.split(separator: ",", omittingEmptySubsequences: false).map { String($0) }
    if let name = features.first(where: { !known.contains($0) }) {
      throw ValidationError("unknown CPU feature '\(name)': choose of \(known.joined(separator: ", "))")
    }
    return Set(features)
  }

  func validate() throws {
    if append != nil && cmdline != nil {
      throw ValidationError("--append adds to the default command line and --cmdline replaces it: give one of them")
    }
    for (name, value) in [("--kernel", kernel), ("--initrd", initrd)] where value?.isEmpty == true {
      throw ValidationError("\(name) needs a file name")
    }
    do { try configuration.validateValues() } catch { throw ValidationError(error.description) }
  }

  private var configuration: VirtualMachine.Configuration {
    var configuration = VirtualMachine.Configuration(kernel: FilePath(kernel))
    let abi = VirtualMachine.Configuration.interface(abi, of: FilePath(kernel))
    configuration.initrd = initrd.map { FilePath($0) }
    configuration.commandLine = cmdline.map { .complete($0) } ?? .appending(append ?? "")
    configuration.memorySize = memory ?? (abi == .lguest ? 256 << 20 : 1 << 30)
    configuration.cpuCount = cpus ?? (abi == .lguest ? 1 : VirtualMachine.Configuration.hostCPUCount)
    configuration.processorStart = processorStart
    configuration.debugExit = debugExit
    configuration.machine = machine
    configuration.entry = entry
    configuration.engine = engine
    configuration.abi = abi
    configuration.restartsGuest = !noReboot
    configuration.cpuModel = cpuModel
    configuration.cpuFeatures = cpuFeatures
    configuration.cpuVendor = cpuVendor
    configuration.foreignHypercall = hypercallInsn
    configuration.kvmAPI = kvmApi
    configuration.kvmFeatures = kvmFeatures
    configuration.kvmHints = kvmHints
    configuration.inspection = inspection.value
    devices.apply(to: &configuration)
    console.apply(to: &configuration)
    return configuration
  }

  func run() throws {
    if inspection.unchecked { Messages.say("--unchecked: translated code is not checked before it runs") }
    RunSession(configuration, console.session).run()
  }
}

extension VirtualMachine.Configuration.Engine: ExpressibleByArgument {}
extension VirtualMachine.Configuration.ABI: ExpressibleByArgument {}
extension VirtualMachine.Configuration.MachineKind: ExpressibleByArgument {}
extension VirtualMachine.Configuration.ProcessorStart: ExpressibleByArgument {}
extension VirtualMachine.Configuration.CPUVendor: ExpressibleByArgument {}
extension VirtualMachine.Configuration.ForeignHypercall: ExpressibleByArgument {}
extension VirtualMachine.Configuration.KVMAPI: ExpressibleByArgument {}
extension EntryPoint: ExpressibleByArgument {}

/// Options for those who work on the engine or profile a guest.
struct InspectionOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp("Write a line per instruction executed; each runs alone, slowly.", valueName: "file"),
    completion: .file())
  var trace: String?

  @Flag(help: "Write /tmp/perf-PID.map at the end, for perf report.")
  var perfMap = false

  @Option(
    help: ArgumentHelp("Write at the end how often each block of guest code ran.", valueName: "file"),
    completion: .file())
  var histogram: String?

  @Flag(help: "Keep arithmetic flags exact also where no instruction reads them.")
  var exactFlags = false

  @Flag(
    help: "Run translated code that was not checked, to measure what the check costs. Not for guests you do not trust.")
  var unchecked = false

  @Flag(help: "Make every instruction a block of its own.")
  var singleInstruction = false

  func validate() throws {
    for (name, value) in [("--trace", trace), ("--histogram", histogram)] where value?.isEmpty == true {
      throw ValidationError("\(name) needs a file name")
    }
  }

  var value: EngineInspection {
    var value = EngineInspection()
    value.trace = trace.map { FilePath($0) }
    if perfMap { value.perfMap = FilePath("/tmp/perf-\(System.processID).map") }
    value.histogram = histogram.map { FilePath($0) }
    value.exactFlags = exactFlags
    value.singleInstruction = singleInstruction
    value.isUnchecked = unchecked
    return value
  }
}
