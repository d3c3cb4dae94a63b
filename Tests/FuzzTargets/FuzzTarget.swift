// SPDX-License-Identifier: Apache-2.0
// The fuzz targets by name. A target takes one input of bytes, does one thing with it and throws when the outcome is
// wrong; a crash or a hang is wrong as well. A new one is a row of `all`.

/// What is wrong, in a line.
public struct FuzzFailure: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

/// Something that bytes from strangers are fed to.
public struct FuzzTarget: Sendable, CustomStringConvertible {
  public let name: String
  /// What is fed to what, in a line.
  public let feeds: String
  /// Bytes of the longest input.
  public let longest: Int
  /// Whether inputs are best made by coverage: the code that they reach is Swift.
  public let followsCoverage: Bool
  /// Good inputs, to be changed.
  public let samples: @Sendable () -> [[UInt8]]
  /// What good inputs are made of.
  public let words: [[UInt8]]
  private let body: @Sendable (inout FuzzInput) throws -> Void

  public var description: String { name }

  init(
    _ name: String, _ feeds: String, longest: Int = 4096, followsCoverage: Bool = true, words: [[UInt8]] = [],
    samples: @escaping @Sendable () -> [[UInt8]] = { [] }, _ body: @escaping @Sendable (inout FuzzInput) throws -> Void
  ) {
    self.name = name
    self.feeds = feeds
    self.longest = longest
    self.followsCoverage = followsCoverage
    self.words = words
    self.samples = samples
    self.body = body
  }

  /// Does it once.
  ///
  /// - Throws: `FuzzFailure`: the outcome is wrong. Whatever else is thrown is as wrong.
  public func run(_ bytes: [UInt8]) throws {
    var input = FuzzInput(bytes)
    try body(&input)
  }

  public static let all: [FuzzTarget] = [
    FuzzTarget(
      "ring3-64", "64-bit programs of privilege level 3, over a kernel's tables", followsCoverage: false,
      Ring3.run64),
    FuzzTarget(
      "ring3-32", "32- and 16-bit programs of privilege level 3, flat and segmented, and of virtual-8086 mode",
      followsCoverage: false, Ring3.run32),
    FuzzTarget(
      "system-instructions", "kernel code in every mode, rich in system instructions", followsCoverage: false,
      Ring0.systemInstructions),
    FuzzTarget(
      "system-execute", "single system instructions, straight to the code that executes them", longest: 8192,
      SystemExecution.run),
    FuzzTarget(
      "page-tables", "page tables in every format under code that uses and changes them", longest: 8192,
      PageTables.run),
    FuzzTarget(
      "descriptor-tables", "GDT, LDT, IDT and TSS under code that uses and changes them", longest: 8192,
      DescriptorTables.run),
    FuzzTarget(
      "self-modifying", "code that several vCPUs change while they execute it", followsCoverage: false,
      SelfModifying.run),
    FuzzTarget("msrs", "reads and writes of model-specific registers", ModelSpecificRegisters.run),
    FuzzTarget("ports-mmio", "accesses to every device of the machine, time going by", PortsAndMemory.run),
    FuzzTarget(
      "virtio-page", "drivers of virtio devices on lguest's page of descriptors: rings, status, kicks",
      LguestBusDrivers.run),
    FuzzTarget(
      "virtio-pci", "drivers of virtio devices on PCI: configuration space, regions, rings", LguestPCIDrivers.run),
    FuzzTarget("dma", "drivers of Linux 2.6.23's devices: buffers bound and sent, requests", DMADrivers.run),
    FuzzTarget("frame-streams", "what the peer of a network sends", FrameStreams.run),
    FuzzTarget("hypercalls", "KVM's hypercalls, registers and shared memory", Hypercalls.run),
    FuzzTarget(
      "lguest-calls", "lguest's hypercalls, made and left in the ring, over tables that change", longest: 8192,
      LguestCalls.run),
    FuzzTarget(
      "lguest-execute", "code of levels 1 and 3 under lguest, with light helpers and without", longest: 8192,
      followsCoverage: false, LguestExecution.run),
    FuzzTarget(
      "lguest-steps",
      "stacks of traps, gates and segments under lguest, changed and used, with light helpers and without",
      longest: 8192, followsCoverage: false
    ) { (input: inout FuzzInput) throws in
      var coverage = LguestExecution.Coverage()
      try LguestExecution.runSteps(&input, patience: LguestGuest.patience, &coverage)
    },
    FuzzTarget(
      "kernel-images", "bzImage, ELF, multiboot and PVH kernels, loaded in every way", longest: 16384,
      words: KernelImages.words, samples: KernelImages.samples, KernelImages.run),
    FuzzTarget(
      "initrd", "initial RAM disks of any parts in any room, and archives made in memory", words: InitialRAMDisks.words,
      samples: InitialRAMDisks.samples, InitialRAMDisks.run),
    FuzzTarget(
      "saved-machines", "files of saved machines, whose sums are repaired", longest: 16384,
      samples: SavedMachines.samples,
      SavedMachines.run),
    FuzzTarget(
      "control-requests", "lines over the control socket", words: ControlRequests.words,
      samples: ControlRequests.samples, ControlRequests.run),
    FuzzTarget(
      "command-lines", "command lines of lguest and of kernels", longest: 1024, words: CommandLines.words,
      samples: CommandLines.samples, CommandLines.run),
    FuzzTarget(
      "json", "JSON from strangers, read and written again", longest: 2048, words: JSONText.words,
      samples: JSONText.samples, JSONText.run),
  ]
}
