// SPDX-License-Identifier: Apache-2.0
// The sections of a saved machine, in both directions: the same calls in the same order write them or read them.

import Host
import Saving
import SystemPackage

/// Named, versioned pieces of state.
struct SavedSections {
  struct Section: Sendable, Equatable {
    var name: String
    var version: UInt32
    var bytes: [UInt8]
  }

  /// Of every section so far.
  static let version: UInt32 = 1
  /// Bytes of a section at most, that of the pages' checksums apart: what 64 vCPUs and 64 KiB of a device need, several
  /// times over.
  static let longest = 1 << 20

  private(set) var all: [Section]
  let isRestoring: Bool
  /// Where the fields of the sections read so far are, if somebody asks for it before.
  var fields: [String: [SavedField]]?
  /// The moment of saving or restoring.
  private let now = HostClock.monotonic
  /// What messages call the file.
  private let path: FilePath

  init(saving path: FilePath) {
    all = []
    isRestoring = false
    self.path = path
  }

  init(restoring sections: [Section], of path: FilePath) {
    all = sections
    isRestoring = true
    self.path = path
  }

  /// Writes or reads a section.
  ///
  /// - Throws: `ConfigurationError`, only while restoring: there is no such section, it is newer, or it makes no sense.
  mutating func section(
    _ name: String, _ body: (inout StateArchive) throws(SavedStateError) -> Void
  ) throws(ConfigurationError) {
    var archive = StateArchive(savingAt: now)
    if isRestoring {
      guard let section = all.first(where: { $0.name == name }) else {
        throw SaveFileProblem.damaged("it has no section \(name)").configurationError(path)
      }
      guard section.version <= SavedSections.version else {
        throw SaveFileProblem.newer(format: section.version).configurationError(path)
      }
      archive = StateArchive(restoring: section.bytes, at: now, listsFields: fields != nil)
    }
    do throws(SavedStateError) {
      try body(&archive)
      try archive.finish()
    } catch { throw SaveFileProblem.damaged("section \(name): \(error)").configurationError(path) }
    fields?[name] = archive.fields
    if !isRestoring { all.append(Section(name: name, version: SavedSections.version, bytes: archive.bytes)) }
  }
}
