// SPDX-License-Identifier: Apache-2.0
// The process that keeps the right to give files their names, and to take them away, when the one that made it gives
// that right up. What it may do is agreed when it is made, as a list of jobs; it is then asked for a job by its number,
// and can be asked for nothing else.

import CHost
import Glibc
public import SystemPackage

/// Gives files their names and removes them: in a process of its own, or at once.
@safe public final class NameKeeper: Sendable {
  /// What may be asked for.
  public enum Job: Sendable {
    /// A file that was written gets its name.
    case name(ReplacementFile)
    /// A file that is no directory goes.
    case remove(FilePath)
  }

  // What a signal handler reads, never freed.
  nonisolated(unsafe) private let jobs: UnsafeMutablePointer<chost_name_job>
  private let count: Int
  /// Our end of the process's socket, -1 without a process.
  private let socket: Int32
  /// The process, nil if jobs are done by this one.
  public let process: Int32?

  /// - Parameters:
  ///   - jobs: At most 255. The directories they are in are opened now.
  ///   - filter: What the process may ask of the kernel; nil leaves that as it is, where a host has no filters.
  ///   - isSeparate: Whether there is to be a process. This one must then have no thread but the caller's.
  public init(_ jobs: [Job], filter: SystemCallFilter?, isSeparate: Bool) throws(HostError) {
    precondition(jobs.count <= 255)
    count = jobs.count
    unsafe self.jobs = .allocate(capacity: jobs.count)
    var kept: [Int32] = []
    for (number, job) in jobs.enumerated() {
      var entry = unsafe chost_name_job()
      let path: FilePath
      switch job {
      case .name(let file):
        path = file.path
        unsafe entry.temporary = UnsafePointer(strdup(file.temporaryName))
        if let link = file.link { unsafe entry.link = UnsafePointer(strdup(link)) }
        kept.append(file.descriptor.rawValue)
      case .remove(let file): path = file
      }
      unsafe entry.name = UnsafePointer(strdup(path.lastComponent?.string ?? ""))
      unsafe entry.directory = try NameKeeper.open(ReplacementFile.directory(of: path))
      unsafe (self.jobs + number).initialize(to: entry)
    }
    guard isSeparate else {
      (process, socket) = (nil, -1)
      return
    }
    (process, socket) = unsafe try NameKeeper.start(self.jobs, jobs.count, kept, filter)
  }

  private static func start(
    _ jobs: UnsafeMutablePointer<chost_name_job>, _ count: Int, _ kept: [Int32], _ filter: SystemCallFilter?
  ) throws(HostError) -> (process: Int32, socket: Int32) {
    var socket: Int32 = -1
    let process = unsafe kept.withUnsafeBufferPointer { kept in
      var keeper = unsafe chost_keeper(
        jobs: jobs, kept: kept.baseAddress, program: nil, job_count: UInt32(count), kept_count: UInt32(kept.count),
        count: 0)
      guard let filter else { return unsafe chost_keeper_start(&keeper, &socket) }
      return unsafe filter.withProgram { program in
        unsafe keeper.program = program
        unsafe keeper.count = UInt16(filter.instructions.count)
        return unsafe chost_keeper_start(&keeper, &socket)
      }
    }
    return (try checked(process, "start", "the process that names files"), socket)
  }

  /// A directory as a place for names, which needs no right to read it.
  private static func open(_ directory: FilePath) throws(HostError) -> Int32 {
    let pathOnly: Int32 = 0o10_000_000  // O_PATH, asm-generic/fcntl.h
    let descriptor = unsafe Glibc.open(directory.string, pathOnly | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw HostError("open", "directory \(directory)", errno: currentErrno) }
    return descriptor
  }

  /// Does a job, by its place in the list, and waits for it. Safe in a signal handler.
  ///
  /// - Returns: What went wrong; nil is success.
  public func perform(_ number: Int) -> Errno? {
    precondition((0..<count).contains(number))
    let result = unsafe socket < 0 ? chost_name_job_do(jobs + number) : chost_keeper_ask(socket, UInt8(number))
    return result == 0 ? nil : Errno(rawValue: -result)
  }

  /// Ends the process, if there is one, and waits for it. Nothing can be asked for afterwards. Without this it ends
  /// with the one that made it.
  public func end() {
    if socket >= 0 { chost_keeper_end(socket) }
  }
}
