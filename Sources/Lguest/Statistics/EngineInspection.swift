// SPDX-License-Identifier: Apache-2.0
// Ways to look into the engine, for those who work on it or profile a guest. None is on by default; each costs what its
// comment says.

import Host
import Synchronization
package import SystemPackage

/// What to record about the execution of a guest.
package struct EngineInspection: Sendable {
  /// Receives a line per instruction: address, flags, registers. Every instruction runs alone: a boot takes hours.
  package var trace: FilePath?
  /// Receives at the end of the run what is translated then, for `perf report`, which looks for
  /// `/tmp/perf-PID.map`. Costs nothing until then.
  package var perfMap: FilePath?
  /// Receives at the end of the run how often each block of guest code ran. Costs a tenth of the speed or so.
  package var histogram: FilePath?
  /// Whether arithmetic flags are exact in every pushed image, also those that no instruction reads. Costs speed.
  package var exactFlags = false
  /// Whether every instruction is a block of its own, for comparing against. Costs most of the speed.
  package var singleInstruction = false

  /// Blocks run without having been judged by the checker, to measure what it costs. What a guest can reach then rests on
  /// the translator alone.
  package var isUnchecked = false

  package init() {}
}

/// What is written during a run and at its end, opened at its start.
struct InspectionFiles {
  let trace: TraceFile?
  let perfMap: TraceFile?
  let histogram: TraceFile?

  init(_ inspection: EngineInspection) throws(ConfigurationError) {
    trace = if let path = inspection.trace { try TraceFile(path) } else { nil }
    perfMap = if let path = inspection.perfMap { try TraceFile(path) } else { nil }
    histogram = if let path = inspection.histogram { try TraceFile(path) } else { nil }
  }

  /// Writes what is left; returns in one line what could not be written.
  func finish() -> String? { [trace, perfMap, histogram].compactMap { $0?.finish() }.first }
}

/// A text file that is written in large pieces.
final class TraceFile: Sendable {
  private let path: FilePath
  private let file: FileDescriptor

  private struct State {
    var pending: [UInt8] = []
    /// Why the first piece that was lost could not be written.
    var failure: (any Error)?
  }
  private let state = Mutex(State())

  init(_ path: FilePath) throws(ConfigurationError) {
    self.path = path
    do throws(HostError) {
      file = try FileDescriptor.openForWriting(
        path, options: [.create, .truncate], permissions: [.ownerReadWrite, .groupRead])
    } catch {
      throw ConfigurationError(
        "cannot write '\(path)': \(error.reason)",
        remedy: error.remedy.isEmpty ? "name a file in a directory you may write to" : error.remedy)
    }
  }

  deinit {
    _ = finish()
    try? file.close()
  }

  func write(_ text: String) {
    state.withLock { state in
      state.pending.append(contentsOf: text.utf8)
      if state.pending.count > 1 << 16 { drain(&state) }
    }
  }

  /// Writes what is left; returns in one line what could not be written, now or before.
  func finish() -> String? {
    state.withLock { state in
      drain(&state)
      return state.failure.map { "cannot write '\(path)': \($0); what it lacks is lost" }
    }
  }

  // A full disk must not end the guest: what cannot be written is lost.
  private func drain(_ state: inout State) {
    do { try file.writeAll(state.pending) } catch { state.failure = state.failure ?? error }
    state.pending.removeAll(keepingCapacity: true)
  }
}
