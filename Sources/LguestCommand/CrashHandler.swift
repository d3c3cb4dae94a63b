// SPDX-License-Identifier: Apache-2.0
// The last resort when our own code traps, or asks the kernel for what its sandbox forbids: give the terminal back, say
// one line, leave the `--json` object and end with 70. It runs in a signal handler and does nothing there that is not
// async-signal-safe: every string it needs was made beforehand.

import Glibc
import Host
import Lguest
import Synchronization
import SystemPackage

enum CrashHandler {
  /// A text with a gap for what is only known in the handler.
  @safe private struct Parts {
    var before: UnsafePointer<CChar>
    var after: UnsafePointer<CChar>

    /// - Parameter text: Holds `gap` once at most; without it nothing is put in.
    init(_ text: String) {
      let parts = text.split(separator: CrashHandler.gap, maxSplits: 1, omittingEmptySubsequences: false)
      unsafe before = UnsafePointer(strdup(String(parts[0])))
      unsafe after = UnsafePointer(strdup(parts.count > 1 ? String(parts[1]) : ""))
    }

    func write(_ middle: UnsafePointer<CChar>?, to file: Int32) {
      unsafe CrashHandler.write(before, to: file)
      if let middle = unsafe middle { unsafe CrashHandler.write(middle, to: file) }
      unsafe CrashHandler.write(after, to: file)
    }
  }

  /// What is said, and what the JSON file gets.
  private struct Words {
    var line: Parts
    var json: Parts

    init(_ text: String, _ engine: VirtualMachine.Configuration.Engine) {
      let result = RunResult(ending: .internal, engine: engine, detail: text)
      line = Parts("\r\nlguest: \(text)\n")
      json = Parts(result.json.text() + "\n")
    }
  }

  /// Stands for a system call's name, and means nothing to JSON.
  private static let gap = "(call)"

  // What the handlers read, made by `install`, never freed.
  nonisolated(unsafe) private static var trap: UnsafeMutablePointer<Words>?
  /// By what the filter says about itself: the kind of thread.
  nonisolated(unsafe) private static var refusals: UnsafeMutablePointer<Words>?
  nonisolated(unsafe) private static var foreignCall: UnsafePointer<CChar>?
  nonisolated(unsafe) private static var files: RunFiles?
  private static let hasBegun = Atomic(false)

  /// Handles the signals that a trap of ours and a refused system call raise. Translated code installs its own handlers
  /// later and passes on what is not its own.
  static func install(_ files: RunFiles, engine: VirtualMachine.Configuration.Engine) {
    unsafe self.files = files
    hasBegun.store(false, ordering: .relaxed)
    let version = "lguest \(VirtualMachine.version) (\(VirtualMachine.commit))"
    let kinds = Sandbox.Kind.allCases
    let refusals = UnsafeMutablePointer<Words>.allocate(capacity: kinds.count)
    for (number, kind) in kinds.enumerated() {
      let text =
        "internal error: \(version) made the system call \(gap) in its thread '\(kind.rawValue)', which its sandbox "
        + "forbids; please report the command line and the kernel's version"
      unsafe (refusals + number).initialize(to: Words(text, engine))
    }
    unsafe self.refusals = refusals
    unsafe foreignCall = UnsafePointer(strdup("'by the numbers of another architecture'"))
    Refusals.handle { number, kind, isForeign in CrashHandler.refuse(number, kind, isForeign != 0) }

    // Someone who asked the runtime for a backtrace gets that instead.
    if System.isBacktraceWanted { return }
    let trap = UnsafeMutablePointer<Words>.allocate(capacity: 1)
    let text =
      "internal error: \(version) trapped; please report the command line, the kernel's version and, from a run with "
      + "SWIFT_BACKTRACE=enable=yes, the backtrace"
    unsafe trap.initialize(to: Words(text, engine))
    unsafe self.trap = trap
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in CrashHandler.endAfterTrap() }
    action.sa_flags = Int32(bitPattern: UInt32(SA_ONSTACK)) | Int32(bitPattern: UInt32(SA_RESETHAND))
    for signal in [SIGILL, SIGTRAP, SIGABRT, SIGSEGV, SIGBUS, SIGFPE] { _ = unsafe sigaction(signal, &action, nil) }
  }

  private static func endAfterTrap() {
    if let trap = unsafe trap { unsafe end(trap.pointee, nil) }
    _exit(Ending.internal.exitStatus)
  }

  private static func refuse(_ number: Int32, _ kind: UInt32, _ isForeign: Bool) {
    if let refusals = unsafe refusals, kind < UInt32(Sandbox.Kind.count) {
      unsafe end((refusals + Int(kind)).pointee, isForeign ? foreignCall : Refusals.name(of: number))
    }
    _exit(Ending.internal.exitStatus)
  }

  private static func end(_ words: Words, _ name: UnsafePointer<CChar>?) {
    guard !hasBegun.exchange(true, ordering: .acquiringAndReleasing) else { return letOthersFinish() }
    Terminal.restore()
    unsafe words.line.write(name, to: STDERR_FILENO)
    guard let files = unsafe files, let file = files.claim() else { return }
    unsafe words.json.write(name, to: file.rawValue)
    _ = files.publish()
  }

  private static func write(_ text: UnsafePointer<CChar>, to file: Int32) {
    _ = unsafe Glibc.write(file, text, strlen(text))
  }

  /// Another thread is at it; or this one, and it came back here.
  private static func letOthersFinish() {
    let limit = HostClock.after(nanoseconds: 200_000_000)
    while HostClock.monotonic < limit {}
  }
}
