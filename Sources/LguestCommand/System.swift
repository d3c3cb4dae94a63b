// SPDX-License-Identifier: Apache-2.0
// The system calls of the command, each wrapped so that the rest of it needs no pointers: descriptors, polling,
// signals, ways to end. The only file here that may say `unsafe`.

import Glibc
import Lguest
import SystemPackage

enum System {
  // MARK: Ways to end

  static func exit(_ status: Int32) -> Never { Glibc.exit(status) }

  /// Ends at once: no exit handlers, for use while other threads may be stuck.
  static func exitNow(_ status: Int32) -> Never { _exit(status) }

  static var processID: Int32 { getpid() }

  // MARK: Descriptors

  /// Whether stdout was open when the process started.
  static var isOutputOpen: Bool { unsafe !outputWasClosed }
  nonisolated(unsafe) private static var outputWasClosed = false

  /// Lets processes that this one starts go when they end: nobody asks how.
  static func ignoreEndsOfChildren() { _ = signal(SIGCHLD, SIG_IGN) }

  /// Puts /dev/null where a standard descriptor is missing, so that no file we open later can be taken for it. Called
  /// once, before any thread exists.
  static func reserveStandardDescriptors() {
    for number in Int32(0)...2 where fcntl(number, F_GETFD) < 0 {
      if number == 1 { unsafe outputWasClosed = true }
      _ = unsafe open("/dev/null", O_RDWR)  // takes the lowest free number, which is this one
    }
    // A reader that goes away is an error of write(2), not a signal.
    _ = signal(SIGPIPE, SIG_IGN)
  }

  static func isTerminal(_ file: FileDescriptor) -> Bool { isatty(file.rawValue) == 1 }

  /// Whether this process may change the terminal without being stopped for it: it is in the foreground, or the
  /// terminal is not the one that controls it.
  static func isForeground(_ file: FileDescriptor) -> Bool {
    let group = tcgetpgrp(file.rawValue)
    return group == -1 || group == getpgrp()
  }

  /// Writes everything, waiting as long as it takes; gives up at the first error, which it returns.
  @discardableResult
  static func write(_ text: String, to file: FileDescriptor) -> Errno? {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      switch writeSome(bytes, to: file) {
      case .wrote(let count): bytes = bytes.dropFirst(count)
      case .wouldBlock: _ = wait([Watch(file, .output)], milliseconds: 1_000)
      case .failed(let error): return error
      }
    }
    return nil
  }

  enum WriteOutcome {
    case wrote(Int)
    case wouldBlock
    case failed(Errno)
  }

  /// One write(2).
  static func writeSome(_ bytes: ArraySlice<UInt8>, to file: FileDescriptor) -> WriteOutcome {
    // SAFETY: the pointer is the slice's own storage and does not outlive the call.
    let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file.rawValue, $0.baseAddress, $0.count) }
    if count >= 0 { return .wrote(count) }
    switch errno {
    case EINTR: return .wrote(0)
    case EAGAIN: return .wouldBlock
    default: return .failed(Errno(rawValue: errno))
    }
  }

  /// One read(2): nil when there is nothing now, empty at the end of the file or when it cannot be read.
  static func readSome(_ limit: Int, from file: FileDescriptor) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: limit)
    // SAFETY: the pointer is the array's own storage and does not outlive the call.
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe Glibc.read(file.rawValue, $0.baseAddress, $0.count) }
    if count < 0 { return errno == EINTR || errno == EAGAIN ? nil : [] }
    bytes.removeSubrange(count...)
    return bytes
  }

  /// A pipe whose ends are closed on exec and never block.
  static func makePipe() -> (readEnd: FileDescriptor, writeEnd: FileDescriptor)? {
    var ends: [Int32] = [-1, -1]
    // SAFETY: pipe(2) fills two integers.
    guard unsafe ends.withUnsafeMutableBufferPointer({ unsafe pipe($0.baseAddress!) }) == 0 else { return nil }
    for end in ends {
      _ = fcntl(end, F_SETFD, FD_CLOEXEC)
      _ = fcntl(end, F_SETFL, O_NONBLOCK)
    }
    return (FileDescriptor(rawValue: ends[0]), FileDescriptor(rawValue: ends[1]))
  }

  // MARK: Waiting

  /// A descriptor to be watched, and what was seen.
  struct Watch {
    enum Event { case input, output, hangUp }
    let file: FileDescriptor
    let event: Event
    var isReady = false
    /// The other side has gone, or the descriptor is of no use.
    var isBroken = false

    init(_ file: FileDescriptor, _ event: Event) {
      self.file = file
      self.event = event
    }
  }

  /// Waits until something is ready or the time is over (negative: for ever).
  static func wait(_ watches: [Watch], milliseconds: Int32) -> [Watch] {
    var requests = watches.map { watch in
      let events: Int32 =
        switch watch.event {
        case .input: POLLIN
        case .output: POLLOUT
        case .hangUp: 0
        }
      return pollfd(fd: watch.file.rawValue, events: Int16(events), revents: 0)
    }
    // SAFETY: poll(2) reads and fills exactly the array's elements.
    let count = unsafe requests.withUnsafeMutableBufferPointer { requests in
      unsafe poll(requests.baseAddress, nfds_t(requests.count), milliseconds)
    }
    var result = watches
    guard count > 0 else { return result }
    for index in requests.indices {
      let seen = Int32(requests[index].revents)
      result[index].isReady = seen & (POLLIN | POLLOUT | POLLHUP) != 0
      result[index].isBroken = seen & (POLLERR | POLLNVAL) != 0
    }
    return result
  }

  static func sleep(_ duration: Duration) {
    let (seconds, attoseconds) = duration.components
    guard seconds >= 0, attoseconds >= 0 else { return }
    var time = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
    _ = unsafe nanosleep(&time, nil)
  }

  // MARK: Files

  static func rename(_ old: FilePath, to new: FilePath) throws(Errno) {
    guard unsafe Glibc.rename(old.string, new.string) == 0 else { throw Errno(rawValue: errno) }
  }

  /// Whether someone asked Swift's runtime for a backtrace when it traps; that starts a program.
  static var isBacktraceWanted: Bool {
    guard let value = unsafe getenv("SWIFT_BACKTRACE") else { return false }
    let refusals = ["enable=no", "enable=off", "enable=false"]
    return unsafe !String(cString: value).split(separator: ",").contains { refusals.contains(String($0)) }
  }
  static func remove(_ path: FilePath) { _ = unsafe unlink(path.string) }

  enum FileKind { case absent, regular, directory, other }

  static func kind(_ path: FilePath) -> FileKind {
    var status = stat()
    guard unsafe stat(path.string, &status) == 0 else { return .absent }
    switch status.st_mode & S_IFMT {
    case S_IFREG: return .regular
    case S_IFDIR: return .directory
    default: return .other
    }
  }

  static func isWritable(_ path: FilePath) -> Bool { unsafe access(path.string, W_OK) == 0 }

  // MARK: Signals

  /// Keeps these signals from every thread made from now on; `nextSignal` receives them.
  static func block(_ signals: [Int32]) {
    var set = signalSet(signals)
    _ = unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
  }

  /// Whether a signal is ignored, as nohup(1) and shells without job control have it.
  static func isIgnored(_ number: Int32) -> Bool {
    var action = sigaction()
    // SAFETY: sigaction(2) fills the value; functions are compared by their addresses.
    guard unsafe sigaction(number, nil, &action) == 0 else { return false }
    let (handler, ignoring) = unsafe (action.__sigaction_handler.sa_handler, SIG_IGN)
    return unsafe unsafeBitCast(handler, to: Int.self) == unsafeBitCast(ignoring, to: Int.self)
  }

  /// Waits for one of these blocked signals.
  static func nextSignal(_ signals: [Int32]) -> Int32 {
    var set = signalSet(signals)
    var number: Int32 = 0
    while unsafe sigwait(&set, &number) != 0 {}
    return number
  }

  private static func signalSet(_ signals: [Int32]) -> sigset_t {
    var set = sigset_t()
    unsafe sigemptyset(&set)
    for signal in signals { unsafe sigaddset(&set, signal) }
    return set
  }

  /// Stops this process as its terminal's job control would; returns when it is continued.
  static func stopForJobControl() { raise(SIGSTOP) }
}
