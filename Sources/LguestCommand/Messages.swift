// SPDX-License-Identifier: Apache-2.0
// Our own lines on stderr: each begins `lguest: `, carries no control characters, and is written whole.

import Lguest
import Logging
import SystemPackage

enum Messages {
  /// Writes one line. Text that came from outside (paths, the guest) cannot break it or drive the terminal.
  static func say(_ line: String) {
    let text = "lguest: " + PlainText.of(line)
    // A terminal in raw mode needs the carriage return; a file does not want it.
    System.write(text + (System.isTerminal(.standardError) && Terminal.isRaw ? "\r\n" : "\n"), to: .standardError)
  }
}

/// Sends the library's log to stderr for `-v`.
struct StandardErrorLog: LogHandler {
  var metadata: Logger.Metadata = [:]
  var logLevel: Logger.Level

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    Messages.say("\(event.message)")
  }

  /// The logger the library gets: warnings always, everything with `-v`.
  static func logger(verbose: Bool) -> Logger {
    Logger(label: "lguest") { _ in StandardErrorLog(logLevel: verbose ? .debug : .warning) }
  }
}
