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
  /// Strings of the handlers, never freed.
  @safe private struct Words {
    let lineBegin = unsafe Words.kept("\r\nlguest: ")
    let lineEnd = unsafe Words.kept("\n")
    let jsonBegin: UnsafePointer<CChar>
    let jsonEnd: UnsafePointer<CChar>
    let who = unsafe Words.kept("internal error: lguest \(VirtualMachine.version) (\(VirtualMachine.commit)) ")
    let trapped = unsafe Words.kept(
      "trapped; please report the command line, the kernel's version and, from a run with SWIFT_BACKTRACE=enable=yes, "
        + "the backtrace")
    let call = unsafe Words.kept("made the system call ")
    let foreignCall = unsafe Words.kept("'by the numbers of another architecture'")
    let thread = unsafe Words.kept(" in its thread '")
    let forbidden = unsafe Words.kept(
      "', which its sandbox forbids; please report the command line and the kernel's version")
    /// By what the filter says about itself.
    let kinds: UnsafeMutablePointer<UnsafePointer<CChar>>

    init(_ engine: VirtualMachine.Configuration.Engine) {
      let result = RunResult(ending: .internal, engine: engine, detail: "(what happened)")
      let json = (result.json.text() + "\n").split(separator: "(what happened)", maxSplits: 1)
      unsafe jsonBegin = Words.kept(String(json[0]))
      unsafe jsonEnd = Words.kept(String(json[1]))
      unsafe kinds = .allocate(capacity: Sandbox.Kind.count)
      for (number, kind) in Sandbox.Kind.allCases.enumerated() {
        unsafe (kinds + number).initialize(to: Words.kept(kind.rawValue))
      }
    }

    private static func kept(_ text: String) -> UnsafePointer<CChar> { unsafe UnsafePointer(strdup(text)) }
  }

  nonisolated(unsafe) private static var words: UnsafeMutablePointer<Words>?
  nonisolated(unsafe) private static var files: RunFiles?
  private static let hasBegun = Atomic(false)

  /// Handles the signals that a trap of ours and a refused system call raise. Translated code installs its own handlers
  /// later and passes on what is not its own.
  static func install(_ files: RunFiles, engine: VirtualMachine.Configuration.Engine) {
    let words = UnsafeMutablePointer<Words>.allocate(capacity: 1)
    unsafe words.initialize(to: Words(engine))
    unsafe (self.words, self.files) = (words, files)
    hasBegun.store(false, ordering: .relaxed)
    Refusals.handle { number, kind, isForeign in CrashHandler.refuse(number, kind, isForeign != 0) }
    // Someone who asked the runtime for a backtrace gets that instead.
    if System.isBacktraceWanted { return }
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in unsafe CrashHandler.end(nil, nil) }
    action.sa_flags = Int32(bitPattern: UInt32(SA_ONSTACK)) | Int32(bitPattern: UInt32(SA_RESETHAND))
    for signal in [SIGILL, SIGTRAP, SIGABRT, SIGSEGV, SIGBUS, SIGFPE] { _ = unsafe sigaction(signal, &action, nil) }
  }

  private static func refuse(_ number: Int32, _ kind: UInt32, _ isForeign: Bool) {
    guard let words = unsafe words?.pointee, kind < UInt32(Sandbox.Kind.count) else { return unsafe end(nil, nil) }
    unsafe end(isForeign ? words.foreignCall : Refusals.name(of: number), words.kinds[Int(kind)])
  }

  /// - Parameters:
  ///   - call: The system call that was refused; nil after a trap.
  ///   - kind: Of the thread that made it.
  private static func end(_ call: UnsafePointer<CChar>?, _ kind: UnsafePointer<CChar>?) {
    guard !hasBegun.exchange(true, ordering: .acquiringAndReleasing) else { letOthersFinish() }
    Terminal.restore()
    if let words = unsafe words?.pointee {
      unsafe write(words.lineBegin, STDERR_FILENO)
      unsafe write(words, call, kind, STDERR_FILENO)
      unsafe write(words.lineEnd, STDERR_FILENO)
      if let files = unsafe files, let file = files.claim() {
        unsafe write(words.jsonBegin, file.rawValue)
        unsafe write(words, call, kind, file.rawValue)
        unsafe write(words.jsonEnd, file.rawValue)
        _ = files.publish()
      }
    }
    _exit(Ending.internal.exitStatus)
  }

  private static func write(
    _ words: Words, _ call: UnsafePointer<CChar>?, _ kind: UnsafePointer<CChar>?, _ file: Int32
  ) {
    unsafe write(words.who, file)
    guard let call = unsafe call, let kind = unsafe kind else { return unsafe write(words.trapped, file) }
    unsafe write(words.call, file)
    unsafe write(call, file)
    unsafe write(words.thread, file)
    unsafe write(kind, file)
    unsafe write(words.forbidden, file)
  }

  private static func write(_ text: UnsafePointer<CChar>, _ file: Int32) {
    _ = unsafe Glibc.write(file, text, strlen(text))
  }

  /// Another thread is at it; or this one, and it came back here.
  private static func letOthersFinish() -> Never {
    let limit = HostClock.after(nanoseconds: 200_000_000)
    while HostClock.monotonic < limit {}
    _exit(Ending.internal.exitStatus)
  }
}
