// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written beside its name and renamed.

import Host
import Lguest
import SystemPackage

enum OutputFile {
  /// Writes a JSON value and a line end.
  @discardableResult
  static func write(_ json: JSON, to path: FilePath) -> Bool { write(json.text() + "\n", to: path) }

  /// Writes a text. A failure is one line on stderr: the run's own status matters more.
  @discardableResult
  static func write(_ text: String, to path: FilePath) -> Bool {
    let bytes = Array(text.utf8)
    do {
      // A pipe or device the user named is written to; renaming over it would replace it.
      if System.kind(path) == .other {
        let file = try FileDescriptor.openForWriting(path)
        try file.closeAfter { _ = try file.writeAll(bytes) }
        return true
      }
      let temporary = FilePath("\(path.string).\(System.processID).tmp")
      System.remove(temporary)
      let file = try FileDescriptor.open(
        temporary, .writeOnly, options: [.create, .exclusiveCreate, .closeOnExec],
        permissions: FilePermissions(rawValue: 0o644))
      do {
        try file.closeAfter { _ = try file.writeAll(bytes) }
        try System.rename(temporary, to: path)
      } catch {
        System.remove(temporary)
        throw error
      }
      return true
    } catch let error as HostError {
      Messages.say("\(error)")
      return false
    } catch {
      Messages.say("cannot write '\(path)': \(error); the directory must exist and be writable")
      return false
    }
  }

  /// Why a file could not be written there, found out before the run rather than after it.
  static func problem(_ path: FilePath) -> String? {
    var directory = path.removingLastComponent()
    if directory.isEmpty { directory = "." }
    switch System.kind(path) {
    case .directory: return "'\(path)' is a directory"
    case .other: return System.isWritable(path) ? nil : "'\(path)' is not writable"
    case .absent, .regular: break
    }
    guard System.kind(directory) == .directory else { return "there is no directory '\(directory)'" }
    return System.isWritable(directory) ? nil : "the directory '\(directory)' is not writable"
  }
}
