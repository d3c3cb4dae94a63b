// SPDX-License-Identifier: Apache-2.0
// A machine whose vCPUs never run, to hand it sections of saved machines.

import GuestMemory
import Paravirt
import SystemPackage

@testable import Lguest
@testable import Saving

/// A machine made from a file whose vCPUs never run: what its state is replaced by is accepted or refused.
struct Standing: ~Copyable {
  private let machine: Machine
  private let loops: [RunLoop]
  private let path: FilePath

  init(_ path: FilePath) throws {
    let configuration = try VirtualMachine.Configuration(restoring: path)
    try configuration.validate()
    let machine = try Machine(MachineParts(configuration), configuration, input: ConsoleInput())
    (self.path, self.machine) = (path, machine)
    loops = machine.cpus.indices.map { RunLoop(machine, $0, configuration) {} }
  }

  deinit { machine.stop() }

  /// Replaces the state of a section.
  ///
  /// - Returns: why it was refused, in the line that people see.
  func refusal(_ name: String, _ bytes: [UInt8]) -> String? {
    do throws(ConfigurationError) {
      _ = try transfer(SavedSections.Section(name: name, version: SavedSections.version, bytes: bytes), lists: false)
      return nil
    } catch { return error.description }
  }

  func fields(of section: SavedSections.Section) throws -> [SavedField] { try transfer(section, lists: true) }

  private func transfer(_ section: SavedSections.Section, lists: Bool) throws(ConfigurationError) -> [SavedField] {
    var sections = SavedSections(restoring: [section], of: path)
    if lists { sections.fields = [:] }
    switch section.name {
    case SavedConfiguration.section:
      var saved = SavedConfiguration()
      try sections.section(section.name) { archive throws(SavedStateError) in try saved.transfer(&archive) }
    case Machine.clockSection:
      var saved = machine.clock.saved
      try sections.section(section.name) { archive throws(SavedStateError) in try saved.transfer(&archive) }
    case SavedLguest.section:
      var saved = SavedLguest()
      try sections.section(section.name) { archive throws(SavedStateError) in try saved.transfer(&archive) }
    case SavedFirstMemory.section:
      var saved = SavedFirstMemory()
      try sections.section(section.name) { archive throws(SavedStateError) in
        try saved.transfer(&archive, memoryByteCount: machine.memory.byteCount)
      }
    default:
      for part in machine.parts(loops) where part.name == section.name {
        try machine.standStill { () throws(ConfigurationError) in try sections.section(part.name, part.transfer) }
      }
    }
    return sections.fields?[section.name] ?? []
  }
}
