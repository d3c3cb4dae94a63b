// SPDX-License-Identifier: Apache-2.0
// How a run can end: the table of causes and exit statuses that scripts rely on. This file is the only place where
// a cause is spelled or a status number stands.

/// Why a run ended, as the word that `--json` carries.
public enum Cause: String, Sendable, CaseIterable {
  case poweroff, reset, exit, signal, timeout, usage, exec, panic, killed, interrupted, saved
  case bootTimeout = "boot-timeout"
  case cannotStart = "cannot-start"
  case `internal` = "internal"
  case tripleFault = "triple-fault"
  case debugExit = "debug-exit"
}

/// How a run ended, with what the exit status depends on.
public enum Ending: Sendable, Hashable {
  /// The guest powered itself off.
  case poweroff
  /// The guest asked for a reset, and it was not the end of a panic.
  case reset
  /// The machine was saved to a file and goes on elsewhere.
  case saved
  /// The guest command exited with this status, or died of this signal.
  case exit(UInt8)
  case signal(UInt8)
  case bootTimeout
  case timeout
  /// The command line is wrong.
  case usage
  case commandNotExecutable
  case commandNotFound
  /// Found before the first guest instruction.
  case cannotStart
  /// Our bug.
  case `internal`
  case panic
  /// A ring-1 guest of lguest did what it may not.
  case killed
  case tripleFault
  case interrupted(Interruption)
  /// `--debug-exit`: the low eight bits the guest wrote to the port.
  case debugExit(UInt8)

  /// Who ended the run from outside.
  public enum Interruption: Sendable, Hashable {
    /// SIGINT, or Ctrl-A x.
    case interrupt
    case terminate
    /// SIGHUP, or the console's reader went away.
    case hangUp
    /// Another signal that ends a process.
    case signal(EndingSignal)
  }

  /// The ending's kind, as JSON names it.
  public var cause: Cause {
    switch self {
    case .poweroff: .poweroff
    case .reset: .reset
    case .saved: .saved
    case .exit: .exit
    case .signal: .signal
    case .bootTimeout: .bootTimeout
    case .timeout: .timeout
    case .usage: .usage
    case .commandNotExecutable, .commandNotFound: .exec
    case .cannotStart: .cannotStart
    case .internal: .internal
    case .panic: .panic
    case .killed: .killed
    case .tripleFault: .tripleFault
    case .interrupted: .interrupted
    case .debugExit: .debugExit
    }
  }

  /// What the process should exit with. A wait status holds eight bits: a debug-exit code above 127 loses its top bit.
  public var exitStatus: Int32 {
    switch self {
    case .poweroff, .reset, .saved: 0
    case .exit(let status): Int32(status)
    case .signal(let number): (128 + Int32(number)) & 0xFF
    case .bootTimeout, .timeout: 124
    case .usage: 125
    case .commandNotExecutable: 126
    case .commandNotFound: 127
    case .cannotStart: 69
    case .internal: 70
    case .panic, .killed, .tripleFault: 255
    case .interrupted(.interrupt): 130
    case .interrupted(.terminate): 143
    case .interrupted(.hangUp): 129
    case .interrupted(.signal(let signal)): 128 + signal.number
    case .debugExit(let code): (Int32(code) << 1 | 1) & 0xFF
    }
  }

  /// One line about an ending that a person should be told of; nil when the guest ended as it wished.
  public var summary: String? {
    switch self {
    case .poweroff, .reset, .exit, .debugExit, .usage: nil
    case .saved: "the machine was saved"
    case .signal(let number): "the command was killed by signal \(number)"
    case .bootTimeout: "user space did not begin within the boot time limit"
    case .timeout: "the time limit passed"
    case .commandNotExecutable: "the command is not executable in the guest"
    case .commandNotFound: "the command was not found in the guest"
    case .cannotStart: "the machine could not be started"
    case .internal: "internal error"
    case .panic: "the guest kernel panicked"
    case .killed: "the guest was killed"
    case .tripleFault: "the guest CPU shut down after a triple fault"
    case .interrupted(.interrupt): "interrupted"
    case .interrupted(.terminate): "terminated"
    case .interrupted(.hangUp): "hung up"
    case .interrupted(.signal(let signal)): "ended by \(signal.name)"
    }
  }
}
