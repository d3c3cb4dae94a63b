// SPDX-License-Identifier: Apache-2.0
// Ways to look into the engine, for those who work on it or profile a guest. None is on by default; each costs what its
// comment says.

import Host
import Synchronization
public import SystemPackage

/// What to record about the execution of a guest.
public struct EngineInspection: Sendable {
  /// Receives a line per instruction: address, flags, registers. Every instruction runs alone: a boot takes hours.
  public var trace: FilePath?
  /// Receives at the end of the run what is translated then, for `perf report`, which looks for
  /// `/tmp/perf-PID.map`. Costs nothing until then.
  public var perfMap: FilePath?
  /// Receives at the end of the run how often each block of guest code ran. Costs a tenth of the speed or so.
  public var histogram: FilePath?
  /// Whether arithmetic flags are exact in every pushed image, also those that no instruction reads. Costs speed.
  public var exactFlags = false
  /// Whether every instruction is a block of its own, for comparing against. Costs most of the speed.
  public var singleInstruction = false

  /// Blocks run without having been judged by the checker, to measure what it costs. What a guest can reach then rests on
  /// the translator alone.
  public var isUnchecked = false

  public init() {}
}

/// What is written at the end of a run, opened at its start.
struct InspectionFiles {
  let perfMap: TraceFile?
  let histogram: TraceFile?

  init(_ inspection: EngineInspection) throws(ConfigurationError) {
    perfMap = if let path = inspection.perfMap { try TraceFile(path) } else { nil }
    histogram = if let path = inspection.histogram { try TraceFile(path) } else { nil }
  }
}

/// A text file that is written in large pieces.
final class TraceFile: Sendable {
  private let file: FileDescriptor
  private let pending = Mutex<[UInt8]>([])

  init(_ path: FilePath) throws(ConfigurationError) {
    do throws(HostError) {
      file = try FileDescriptor.openWithoutWaiting(
        path, options: [.create, .truncate], permissions: [.ownerReadWrite, .groupRead])
    } catch {
      throw ConfigurationError(
        "cannot write '\(path)': \(error.reason)",
        remedy: error.remedy.isEmpty ? "name a file in a directory you may write to" : error.remedy)
    }
  }

  deinit {
    flush()
    try? file.close()
  }

  func write(_ text: String) {
    pending.withLock { bytes in
      bytes.append(contentsOf: text.utf8)
      if bytes.count > 1 << 16 { drain(&bytes) }
    }
  }

  func flush() { pending.withLock { drain(&$0) } }

  // A full disk must not end the guest: what cannot be written is lost.
  private func drain(_ bytes: inout [UInt8]) {
    _ = try? file.writeAll(bytes)
    bytes.removeAll(keepingCapacity: true)
  }
}
