// SPDX-License-Identifier: Apache-2.0
// The last resort when our own code traps: give the terminal back, say one line, leave the `--json` object and end
// with 70. It runs in a signal handler and does nothing there that is not async-signal-safe: every string it needs
// was made beforehand.

import Glibc
import Lguest
import SystemPackage

enum CrashHandler {
  /// Strings of the handler, made by `install`, never freed.
  nonisolated(unsafe) private static var line: UnsafeMutablePointer<CChar>?
  nonisolated(unsafe) private static var json: UnsafeMutablePointer<CChar>?
  nonisolated(unsafe) private static var jsonPath: UnsafeMutablePointer<CChar>?
  nonisolated(unsafe) private static var temporaryPath: UnsafeMutablePointer<CChar>?

  /// Handles the signals a trap of ours raises. Translated code installs its own handlers later and passes on what is
  /// not its own.
  static func install(json file: FilePath?, engine: VirtualMachine.Configuration.Engine) {
    // Someone who asked the runtime for a backtrace gets that instead.
    if unsafe getenv("SWIFT_BACKTRACE") != nil { return }
    let text =
      "internal error: lguest \(VirtualMachine.version) (\(VirtualMachine.commit)) trapped; please report the command "
      + "line, the kernel's version and, from a run with SWIFT_BACKTRACE=enable=yes, the backtrace"
    unsafe line = strdup("\r\nlguest: \(text)\n")
    if let file {
      let result = RunResult(ending: .internal, engine: engine, detail: text)
      unsafe json = strdup(result.json.text() + "\n")
      unsafe jsonPath = strdup(file.string)
      unsafe temporaryPath = strdup("\(file.string).\(System.processID).tmp")
    }
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in CrashHandler.lastWords() }
    action.sa_flags = Int32(bitPattern: UInt32(SA_ONSTACK)) | Int32(bitPattern: UInt32(SA_RESETHAND))
    for signal in [SIGILL, SIGTRAP, SIGABRT, SIGSEGV, SIGBUS, SIGFPE] { _ = unsafe sigaction(signal, &action, nil) }
  }

  private static func lastWords() {
    Terminal.restore()
    if let line = unsafe line { _ = unsafe write(STDERR_FILENO, line, strlen(line)) }
    if let json = unsafe json, let path = unsafe jsonPath, let temporary = unsafe temporaryPath {
      let file = unsafe open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
      if file >= 0 {
        _ = unsafe write(file, json, strlen(json))
        close(file)
        _ = unsafe rename(temporary, path)
      }
    }
    _exit(Ending.internal.exitStatus)
  }
}
