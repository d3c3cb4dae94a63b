// SPDX-License-Identifier: Apache-2.0
// A kernel report for programs: opened by path, with this version's verdict, as the object `inspect --json` prints.

public import SystemPackage

extension KernelReport {
  /// Opens and examines a kernel.
  public init(of path: FilePath) throws(ConfigurationError) {
    try VirtualMachine.Configuration(kernel: path).validate()
    do throws(BootError) { self.init(try KernelImage(path)) } catch { throw ConfigurationError(error) }
  }

  /// Whether this version can start it.
  public var isBootable: Bool { defaultEntryPoint.map { $0 != .multiboot } ?? false }

  public var json: JSON {
    func text(_ value: String?) -> JSON { value.map(JSON.string) ?? .null }
    func number(_ value: UInt64?) -> JSON { value.map(JSON.unsigned) ?? .null }
    return .object([
      ("schemaVersion", 1),
      ("file", .string(file)),
      ("format", .string(format)),
      ("bytes", .integer(Int64(byteCount))),
      ("version", text(version)),
      ("bootable", .bool(isBootable)),
      ("entryPoints", .array(entryPoints.map { .string($0.rawValue) })),
      ("defaultEntryPoint", text(defaultEntryPoint?.rawValue)),
      ("bootProtocol", text(bootProtocol)),
      ("compression", text(compression?.rawValue)),
      ("flags", flags.map { .array($0.map(JSON.string)) } ?? .null),
      ("relocatable", isRelocatable.map(JSON.bool) ?? .null),
      ("loadAddress", .unsigned(loadAddress)),
      ("memoryBytes", .unsigned(memoryByteCount)),
      ("commandLineMax", commandLineMax.map { .integer(Int64($0)) } ?? .null),
      ("initrdAddressMax", number(initrdAddressMax)),
      ("entryAddress", number(entryAddress)),
      ("pvhEntryAddress", number(pvhEntryAddress)),
    ])
  }
}

extension ConfigurationError {
  init(_ error: BootError) { self.init(error.problem, remedy: error.remedy.isEmpty ? nil : error.remedy) }
}
