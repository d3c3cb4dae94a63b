// SPDX-License-Identifier: Apache-2.0
// A kernel report for programs: the object `lguest inspect --json` prints, by the one encoder.

import Boot
import SystemPackage

extension KernelReport {
  /// Opens a file and reports on it.
  package init(of path: FilePath) throws(ConfigurationError) {
    do throws(BootError) {
      self.init(try KernelImage(path))
    } catch {
      throw ConfigurationError(error)
    }
  }

  /// Whether this build has a way to start it.
  package var isBootable: Bool { defaultEntryPoint != nil }

  package var json: JSON {
    .object([
      ("schemaVersion", 1),
      ("file", .string(file)),
      ("bootable", .bool(isBootable)),
      ("format", .string(format)),
      ("byteCount", .integer(Int64(byteCount))),
      ("version", version.map(JSON.string) ?? .null),
      ("entryPoints", .array(entryPoints.map { .string($0.rawValue) })),
      ("defaultEntryPoint", defaultEntryPoint.map { .string($0.rawValue) } ?? .null),
      ("bootProtocol", bootProtocol.map(JSON.string) ?? .null),
      ("compression", compression.map { .string($0.rawValue) } ?? .null),
      ("flags", flags.map { .array($0.map(JSON.string)) } ?? .null),
      ("relocatable", isRelocatable.map(JSON.bool) ?? .null),
      ("loadAddress", .unsigned(loadAddress)),
      ("memoryByteCount", .unsigned(memoryByteCount)),
      ("commandLineMax", commandLineMax.map { .integer(Int64($0)) } ?? .null),
      ("initrdAddressMax", initrdAddressMax.map(JSON.unsigned) ?? .null),
      ("entryAddress", entryAddress.map(JSON.unsigned) ?? .null),
      ("pvhEntryAddress", pvhEntryAddress.map(JSON.unsigned) ?? .null),
      ("multibootFlags", multibootFlags.map { .unsigned(UInt64($0)) } ?? .null),
      ("lguest", hasLguestEntry.map(JSON.bool) ?? .null),
      ("lguestDefault", .bool(isLguestGuest)),
    ])
  }
}

extension ConfigurationError {
  /// What the boot loaders found, in the form every other refusal has.
  init(_ error: BootError) {
    self.init(error.problem, remedy: error.remedy.isEmpty ? nil : error.remedy)
  }
}
