// SPDX-License-Identifier: Apache-2.0
// A large file that appears whole or not at all: written without a name, forced to the disk, given its name. Whoever
// has the old file open or mapped keeps the old file, and a process that dies in the middle leaves nothing, since what
// has no name goes with its last descriptor (open(2), O_TMPFILE).

import Glibc
public import SystemPackage

/// A file being written, readable by this user only unless asked for otherwise.
public final class ReplacementFile: Sendable {
  /// What links lead to, if the name was one.
  public let path: FilePath
  /// Where its content goes.
  public let output: PositionedOutput
  /// A name beside `path`: all the time on a file system that has no nameless files, else for the moment between
  /// linking and renaming, since a link cannot replace a file.
  private let temporary: FilePath
  private let isNameless: Bool
  var descriptor: FileDescriptor { output.descriptor }

  /// Creates an empty file in the directory of `path`.
  ///
  /// - Parameters:
  ///   - path: Links are followed.
  ///   - permissions: Less what the process's mask takes away.
  /// - Throws: `HostError`, also when something else than a regular file has that name, a device or a pipe, or what
  ///   a process has open.
  public convenience init(
    _ path: FilePath, permissions: FilePermissions = FilePermissions(rawValue: 0o600)
  ) throws(HostError) {
    try self.init(path, permissions: permissions, canBeNameless: true)
  }

  /// - Parameter canBeNameless: False only in tests, for what happens on file systems without nameless files.
  init(
    _ path: FilePath, permissions: FilePermissions = FilePermissions(rawValue: 0o600), canBeNameless: Bool
  ) throws(HostError) {
    guard let path = try ReplacementFile.followed(path) else {
      throw HostError(
        "replace", path.string, reason: "it stands for what a process has open", remedy: "name the file itself")
    }
    self.path = path
    var status = stat()
    if unsafe lstat(path.string, &status) == 0, status.st_mode & S_IFMT != S_IFREG {
      throw HostError("replace", path.string, reason: "it is not a regular file", remedy: "name another")
    }
    temporary = FilePath("\(path.string).\(getpid()).tmp")
    // Left by an earlier process of this number.
    unsafe _ = unlink(temporary.string)
    if canBeNameless, let file = ReplacementFile.nameless(in: ReplacementFile.directory(of: path), permissions) {
      (output, isNameless) = (PositionedOutput(owning: file, description: path.string), true)
      return
    }
    isNameless = false
    do {
      let file = try FileDescriptor.open(
        temporary, .readWrite, options: [.create, .exclusiveCreate, .closeOnExec], permissions: permissions)
      output = PositionedOutput(owning: file, description: temporary.string)
    } catch { throw HostError("create", "\(temporary)", errno: error as? Errno ?? .ioError) }
  }

  deinit {
    // Nothing is there once it was renamed.
    unsafe _ = unlink(temporary.string)
  }

  /// Whether a name stands for what a process has open, as /dev/stdout does: such a file is written, never replaced.
  public static func isOpenFile(_ path: FilePath) -> Bool { (try? followed(path)) == .some(nil) }

  /// Where symbolic links lead, whether something is there or not; nil if that is a link of /proc, whose text is for people
  /// (proc(5)).
  private static func followed(_ path: FilePath) throws(HostError) -> FilePath? {
    var found = path
    var target = [CChar](repeating: 0, count: Int(PATH_MAX))
    // As many as Linux follows (path_resolution(7)).
    for _ in 0..<40 {
      let count = unsafe readlink(found.string, &target, target.count)
      if count < 0 { return found }
      if isInProc(directory(of: found)) { return nil }
      guard let text = String(validating: target[..<count], as: UTF8.self) else {
        throw HostError("follow", found.string, reason: "it leads to a name that is no UTF-8", remedy: "name another")
      }
      found = directory(of: found).pushing(FilePath(text))
    }
    throw HostError("open", path.string, errno: .tooManySymbolicLinkLevels)
  }

  private static func isInProc(_ directory: FilePath) -> Bool {
    guard let name = unsafe realpath(directory.string, nil) else { return false }
    defer { unsafe free(name) }
    return unsafe strncmp(name, "/proc/", 6) == 0
  }

  static func directory(of path: FilePath) -> FilePath {
    let directory = path.removingLastComponent()
    return directory.isEmpty ? "." : directory
  }

  /// A file without a name; nil where the file system has none, or where /proc, by which it would get one, is not
  /// there. Any other reason is found again, and told, when a file with a name is opened.
  private static func nameless(in directory: FilePath, _ permissions: FilePermissions) -> FileDescriptor? {
    let temporaryFile: Int32 = 0o20_000_000 | O_DIRECTORY  // O_TMPFILE, asm-generic/fcntl.h
    guard
      let file = try? FileDescriptor.open(
        directory, .readWrite, options: [FileDescriptor.OpenOptions(rawValue: temporaryFile), .closeOnExec],
        permissions: permissions)
    else { return nil }
    if unsafe access(ReplacementFile.link(to: file), F_OK) == 0 { return file }
    try? file.close()
    return nil
  }

  /// What stands for an open file in the file system.
  private static func link(to file: FileDescriptor) -> String { "/proc/self/fd/\(file.rawValue)" }

  /// The name it has, or gets for a moment, in the directory of `path`.
  var temporaryName: String { temporary.lastComponent?.string ?? "" }
  /// By what it can be linked; nil if it has its temporary name.
  var link: String? { isNameless ? ReplacementFile.link(to: descriptor) : nil }

  /// Forces everything to the disk and gives the file its name.
  public func commit() throws(HostError) {
    try output.synchronize()
    if isNameless {
      let link = ReplacementFile.link(to: descriptor)
      guard unsafe linkat(AT_FDCWD, link, AT_FDCWD, temporary.string, AT_SYMLINK_FOLLOW) == 0 else {
        throw HostError("create", "\(temporary)", errno: currentErrno)
      }
    }
    guard unsafe Glibc.rename(temporary.string, path.string) == 0 else {
      throw HostError("rename", "\(temporary) to \(path)", errno: currentErrno)
    }
    // The name is the directory's, and some file systems cannot be asked for that.
    if let opened = try? FileDescriptor.open(ReplacementFile.directory(of: path), .readOnly, options: .closeOnExec) {
      _ = fsync(opened.rawValue)
      try? opened.close()
    }
  }
}
