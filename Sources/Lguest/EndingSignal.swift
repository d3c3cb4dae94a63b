// SPDX-License-Identifier: Apache-2.0
// The signals that end a run: all that end a process which does nothing about them, but those that tell of a fault of
// its own (signal(7)). Each ends a run in the same way, with 128 + its number.

/// A signal that ends a run, by its number on Linux for x86-64.
public struct EndingSignal: Sendable, Hashable {
  /// As signal(7) numbers it on x86-64.
  public let number: Int32
  /// As kill(1) lists it.
  public let name: String

  /// All of them, those for the use of programs included. SIGXFSZ is one: a write beyond the limit on a file's size fails
  /// besides, since the signal is blocked (setrlimit(2)).
  package static let all: [EndingSignal] =
    [
      (1, "SIGHUP"), (2, "SIGINT"), (3, "SIGQUIT"), (10, "SIGUSR1"), (12, "SIGUSR2"), (14, "SIGALRM"), (15, "SIGTERM"),
      (16, "SIGSTKFLT"), (24, "SIGXCPU"), (25, "SIGXFSZ"), (26, "SIGVTALRM"), (27, "SIGPROF"), (29, "SIGIO"),
      (30, "SIGPWR"),
    ].map { EndingSignal(number: $0.0, name: $0.1) }
    // The two below are the C library's.
    + (34...64).map { EndingSignal(number: $0, name: $0 == 34 ? "SIGRTMIN" : "SIGRTMIN+\($0 - 34)") }

  /// The limit on the size of files was met.
  package static let fileSize = all.first { $0.name == "SIGXFSZ" } ?? all[0]

  /// What it means to a run.
  package var interruption: Ending.Interruption {
    switch number {
    case 1: .hangUp
    case 2: .interrupt
    case 15: .terminate
    default: .signal(self)
    }
  }
}
