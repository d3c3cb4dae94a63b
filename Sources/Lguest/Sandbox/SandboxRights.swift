// SPDX-License-Identifier: Apache-2.0
// What each kind of thread may still ask of the kernel once it is confined: one table, a row for a system call and
// those who may make it. docs/threat-model.md has it as prose, and a test compares the two.

import Host

extension Sandbox {
  /// What a thread is for, which decides what it may do.
  public enum Kind: String, Sendable, CaseIterable {
    /// Runs vCPUs, and what a program has added: its console, logger and hypercalls.
    case vcpu
    /// Sleeps until a device has something to do.
    case timers
    /// Takes pages of memory away and brings them back.
    case store
    /// Reads and writes a disk's file.
    case disk
    /// Carries frames between a network card and a socket.
    case network
    /// Stops a machine when a time limit passes, and ends the process if that does not help.
    case watchdog
    /// Has built the machine, waits for its end, and gathers what is left.
    case machine
    /// Owns stdin, stdout and the terminal.
    case console
    /// Waits for signals.
    case signals
    /// Answers at the control socket, and writes the machine to a file that somebody has opened.
    case control
    /// No thread, but the process that names files (NameKeeper).
    case names

    /// All but the process.
    package static let threads = allCases.filter { $0 != .names }
    package static let count = allCases.count
    fileprivate static let memory: [Kind] = [.vcpu, .store, .disk, .network, .machine, .control]
  }

  /// A row of the table.
  struct Right {
    let rule: SystemCallFilter.Rule
    let kinds: [Kind]
    /// What for, as words that follow the call's name.
    let reason: String

    init(
      _ call: SystemCall, _ kinds: [Kind], _ reason: String, _ conditions: [SystemCallFilter.Condition] = []
    ) {
      rule = SystemCallFilter.Rule(call, conditions)
      self.kinds = kinds
      self.reason = reason
    }
  }

  /// Everything that is allowed. Threads share memory, so whoever has taken one over has the rights of all of them in
  /// reach: no row may open, execute, connect to or signal anything outside, or make memory executable.
  static let rights: [Right] = {
    let everyone = Kind.threads
    return [
      Right(.futex, everyone, "locks and sleeping", [.oneOf(1, Argument.futexOperations, ignoring: 0x180)]),
      Right(.gettid, everyone, "a lock notes whose it is"),
      Right(.write, everyone, "the console, messages, answers", []),
      Right(.read, everyone, "input, and answers of the process that names files"),
      Right(
        .pread, Kind.memory,
        "the host's count of time waited; disks; pages that have gone away, and which are a guest's own"),
      Right(.clockGettime, everyone, "time, where the kernel's page for it cannot tell"),
      Right(
        .clockNanosleep, [.vcpu, .watchdog, .console, .control], "waiting for a reader, a limit or a vCPU"),
      Right(.restart, everyone, "a wait goes on after the process was stopped"),
      Right(.poll, [.console, .control, .network], "waiting for descriptors"),

      Right(
        .mmap, everyone, "malloc takes memory, never executable and never a file's",
        [.without(2, Argument.execute), .with(3, Argument.anonymous)]),
      Right(.munmap, everyone, "malloc gives it back"),
      Right(.mprotect, everyone, "malloc's heaps grow, never executable", [.without(2, Argument.execute)]),
      Right(.mremap, everyone, "a large array grows", [.equals(3, Argument.mayMove)]),
      Right(.madvise, everyone, "malloc and threads that end give memory back", [.oneOf(2, Argument.advice)]),
      Right(.brk, everyone, "malloc takes memory"),
      Right(.getrandom, everyone, "seeds of hash tables"),

      Right(.pwrite, [.store, .disk, .control], "pages that go away, disks, and the file of a saved machine"),
      Right(.fallocate, Kind.memory, "a page that comes or goes leaves a hole where it was"),
      Right(.ftruncate, [.control], "the length of a saved machine's file"),
      Right(.lseek, [.control], "where guest memory has data"),
      Right(.fdatasync, [.disk], "what a guest has flushed is on the disk before it is told"),
      Right(.fsync, [.control], "a saved machine is on the disk before anybody is told"),

      Right(.sigprocmask, everyone, "a thread that ends, and one that gives the terminal back, are not interrupted"),
      Right(.sigreturn, everyone, "faults of guest instructions, and stopping and continuing, are signals"),
      Right(.sigaltstack, [.vcpu], "the stack of those signals goes with the thread"),
      Right(.sigtimedwait, [.signals], "the signals that end, stop and continue a run"),
      Right(
        .tgkill, [.signals], "Ctrl-Z stops the process itself, and only by SIGSTOP",
        [.oneOf(0, [UInt32(bitPattern: LocalSocket.process)]), .oneOf(2, [Argument.stop])]),
      Right(.getpid, [.signals, .control], "its own number, for the call before and for lguest ps"),

      Right(
        .ioctl, everyone, "the terminal is read and given back, and nothing else",
        [.oneOf(1, Argument.terminalRequests)]),
      Right(.writev, everyone, "last words, of malloc's and of ours"),
      Right(.close, everyone, "what is no longer needed"),
      Right(.shutdown, [.watchdog, .console], "the control socket and the process that names files are done with"),
      Right(.accept4, [.control, .network], "somebody asks, or connects a network"),
      Right(.recvmsg, [.control], "requests, and the file that a machine is to be saved to"),
      Right(.sendto, [.control, .network], "answers and frames, on a connection that is there", [.equals(4, 0)]),
      Right(
        .getsockopt, [.control], "who asks",
        [.oneOf(1, [Argument.socketLevel]), .oneOf(2, [Argument.peerCredentials])]),
      Right(.geteuid, [.control], "only this user and root are answered"),

      Right(.exit, everyone, "a thread ends"),
      Right(.exitGroup, everyone, "the process ends"),

      Right(.read, [.names], "which job is to be done"),
      Right(.linkat, [.names], "a file that had no name gets one beside the last"),
      Right(.renameat, [.names], "and replaces what had that name"),
      Right(.unlinkat, [.names], "the control socket, and what was left over"),
      Right(.write, [.names], "whether it went well"),
      Right(.exitGroup, [.names], "the run has ended"),
    ]
  }()

  /// The rules of a kind, as the kernel takes them. A refusal tells the kind's place among all.
  package static func filter(of kind: Kind) -> SystemCallFilter {
    let number = Kind.allCases.firstIndex(of: kind) ?? 0
    return SystemCallFilter(rights.filter { $0.kinds.contains(kind) }.map(\.rule), data: UInt16(number))
  }

  /// Values of the kernel's headers.
  enum Argument {
    /// Waiting, waking, and locks that lend priority; the ignored bits say that the word is private to the process, and
    /// which clock (linux/futex.h).
    static let futexOperations: [UInt32] = [0, 1, 6, 7, 8, 9, 10, 13]
    static let execute: UInt32 = 4  // PROT_EXEC
    static let anonymous: UInt32 = 0x20  // MAP_ANONYMOUS
    static let mayMove: UInt64 = 1  // MREMAP_MAYMOVE
    /// MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE: others may harm the host if root asks.
    static let advice: [UInt32] = [4, 8, 14, 15]
    /// TCGETS, TCSETS, TCSETSW, TCSETSF, and what newer C libraries use instead: not TIOCSTI, which types for the user.
    static let terminalRequests: [UInt32] = [
      0x5401, 0x5402, 0x5403, 0x5404, 0x802C_542A, 0x402C_542B, 0x402C_542C, 0x402C_542D,
    ]
    static let stop: UInt32 = 19  // SIGSTOP
    static let socketLevel: UInt32 = 1  // SOL_SOCKET
    static let peerCredentials: UInt32 = 17  // SO_PEERCRED
  }
}
