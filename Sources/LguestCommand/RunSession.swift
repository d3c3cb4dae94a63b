// SPDX-License-Identifier: Apache-2.0
// One console run, from the outside: five threads, a process and the one way out.
//
//   main      owns stdin, stdout and the terminal: one poll loop
//   machine   runs the VirtualMachine, whose vCPU writes the console into a buffer
//   signals   waits for the signals that end a run and for job control, and passes them on
//   control   answers at the control socket (ControlServer)
//   watchdog  asks the machine to stop when a limit passes, and ends the process if it does not
//   names     a process that gives the JSON file its name and removes the control socket (RunFiles)
//
// Each thread confines itself when it begins (Sandbox), the machine's when it is built; the guest waits for all of
// them.
//
// Whoever comes first to `RunEnd.end` ends the process; everyone else waits there for it.

import Glibc
import Host
import Lguest
import Logging
import Synchronization
import SystemPackage

final class RunSession: Sendable {
  struct Options: Sendable {
    var json: FilePath?
    var printsStatistics = false
    var isConfined = true
    var tty = ConsoleRunOptions.TTY.auto
  }

  /// After a request to stop, the machine has this long before the process ends without it.
  static let grace = Duration.seconds(2)
  /// How long the last console output may wait for its reader.
  static let drainLimit = Duration.seconds(1)

  private let machine: VirtualMachine
  private let options: Options
  private let console: ConsoleBuffer
  private let sandbox: Sandbox?
  private let listener: LocalListener?
  private let files: RunFiles
  private let end: RunEnd
  private let wakeReader: FileDescriptor
  private let wakeWriter: FileDescriptor
  /// What `VirtualMachine.run` came to.
  private let outcome = Mutex<RunResult?>(nil)

  /// The signals that a run takes care of. Those that were ignored when it was started stay so.
  static let signals = (EndingSignal.all.map(\.number) + [SIGTSTP, SIGCONT]).filter { !System.isIgnored($0) }

  init(_ configuration: VirtualMachine.Configuration, _ options: Options) {
    var configuration = configuration
    self.options = options
    guard let (reader, writer) = System.makePipe() else {
      Messages.say("cannot make a pipe; raise the limit on open files (ulimit -n)")
      System.exit(Ending.cannotStart.exitStatus)
    }
    (wakeReader, wakeWriter) = (reader, writer)
    console = ConsoleBuffer { _ = System.writeSome([0], to: writer) }
    let console = console
    configuration.consoleOutput = { console.put($0) }
    sandbox = RunSession.sandbox(options)
    configuration.sandbox = sandbox
    if let json = options.json, let problem = OutputFile.problem(json) {
      Messages.say("--json: \(problem); name a file in a directory you can write")
      System.exit(Ending.cannotStart.exitStatus)
    }
    listener = RunSession.listener(configuration)
    System.ignoreEndsOfChildren()
    do throws(HostError) {
      let files = try RunFiles(
        json: options.json, socket: listener?.path, networks: configuration.networks.compactMap(\.waitingPlace),
        isConfined: sandbox != nil)
      configuration.didListen = { files.didListen($0) }
      self.files = files
    } catch {
      listener?.close()
      Messages.say("\(error)")
      System.exit(Ending.cannotStart.exitStatus)
    }
    machine = VirtualMachine(configuration: configuration)
    end = RunEnd(files, printsStatistics: options.printsStatistics)
  }

  /// The control socket. A run that cannot be asked is a run all the same.
  private static func listener(_ configuration: VirtualMachine.Configuration) -> LocalListener? {
    do throws(HostError) { return try ControlServer.listen() } catch {
      configuration.logger?.debug("no control socket: \(error)")
      return nil
    }
  }

  /// The confinement of a run, as far as it is wanted and the host offers it. What it lacks is said.
  private static func sandbox(_ options: Options) -> Sandbox? {
    guard options.isConfined else {
      Messages.say("--no-sandbox: system calls are not filtered, so that a fault of the engine has all your rights")
      return nil
    }
    guard !System.isBacktraceWanted else {
      Messages.say("SWIFT_BACKTRACE asks for backtraces, which start a program: going on without a sandbox")
      return nil
    }
    let sandbox = Sandbox(includingCaller: true)
    if let problem = sandbox.filterProblem {
      let rest = sandbox.landlockVersion == nil ? "without a sandbox" : "with Landlock alone"
      Messages.say("this host does not filter system calls (\(problem)): going on \(rest)")
    }
    return sandbox
  }

  /// Runs to the end of the process.
  func run() -> Never {
    CrashHandler.install(files, engine: machine.configuration.engine)
    borrowTerminal()
    // Before the first of these threads can have confined itself.
    sandbox?.announce(3)
    if let listener { end.answer(for: machine, at: listener) }
    start("lguest-signals", passSignalsOn)
    start("lguest-watch", watch)
    start("lguest-machine", runMachine)
    sandbox?.confine(.console)
    let result = converse()
    console.close()
    end.end(result)
  }

  private func start(_ name: String, _ body: @escaping @Sendable () -> Void) {
    do throws(HostError) { _ = try HostThread(name: name, body) } catch { end.end(failure(error.description)) }
  }

  private func failure(_ detail: String) -> RunResult { machine.result(.cannotStart, detail: detail) }

  private func borrowTerminal() {
    let hasTerminal = System.isTerminal(.standardInput) && System.isTerminal(.standardOutput)
    switch options.tty {
    case .never: return
    case .auto: guard hasTerminal, System.isForeground(.standardInput) else { return }
    case .always:
      guard hasTerminal else {
        end.end(failure("--tty always, but stdin and stdout are not both terminals; use --tty auto"))
      }
    }
    if !Terminal.makeRaw() { end.end(failure("the terminal cannot be put into raw mode; use --tty never")) }
  }

  // MARK: The other threads

  private func runMachine() {
    let result: RunResult
    do {
      result = try machine.run()
    } catch {
      // A stop that came while the machine was still being put together is an ending like any other.
      let ending = machine.stopRequested ?? .cannotStart
      result = machine.result(ending, detail: ending == .cannotStart ? error.description : nil)
    }
    outcome.withLock { $0 = result }
    _ = System.writeSome([0], to: wakeWriter)
  }

  private func passSignalsOn() {
    sandbox?.confine(.signals)
    while true {
      let number = System.nextSignal(RunSession.signals)
      switch number {
      case SIGTSTP:
        let wasRaw = Terminal.isRaw
        Terminal.restore()
        System.stopForJobControl()
        if wasRaw { _ = Terminal.makeRaw() }
      case SIGCONT: if Terminal.isRaw { _ = Terminal.makeRaw() }
      default:
        guard let signal = EndingSignal.all.first(where: { $0.number == number }) else { continue }
        machine.requestStop(.interrupted(signal.interruption))
      }
    }
  }

  private func watch() {
    sandbox?.confine(.watchdog)
    var deadline: ContinuousClock.Instant?
    while true {
      let next = machine.enforceTimeLimits()
      let now = ContinuousClock.now
      if let ending = machine.stopRequested {
        let limit = deadline ?? now + RunSession.grace
        deadline = limit
        if now >= limit {
          end.end(machine.result(ending, detail: "the machine did not stop in time and was abandoned"), isStuck: true)
        }
      }
      let tick = Duration.milliseconds(200)
      System.sleep(next.map { min($0 - now, tick) } ?? tick)
    }
  }

  // MARK: The conversation

  /// Carries bytes between the machine and the standard descriptors until the machine has ended.
  private func converse() -> RunResult {
    var failure: Errno?
    var result = converse(&failure)
    // Who reads no more wants no more.
    if let failure, failure != .brokenPipe {
      result.lose("cannot write the console to stdout: \(failure); what it lacks is lost")
    }
    // The signal that a process dies of there is blocked, and the guest may have ended by itself in the meantime.
    if failure == .fileTooLarge, result.ending.exitStatus == 0, result.ending != .saved {
      result.ending = .interrupted(EndingSignal.fileSize.interruption)
    }
    return result
  }

  /// - Parameter failure: Becomes why stdout could not be written.
  private func converse(_ failure: inout Errno?) -> RunResult {
    var input: InputState = .open
    var escape = EscapeKey()
    var lastByte: UInt8?
    var pending: ArraySlice<UInt8> = []
    // Output is looked at again a millisecond after the last was found, so that a burst costs one wake-up.
    var isBusy = false
    var drainDeadline: ContinuousClock.Instant?
    var outputIsBroken = !System.isOutputOpen

    while true {
      if outputIsBroken {
        machine.requestStop(.interrupted(.hangUp))
        console.close()
        pending = []
      }
      let result = outcome.withLock { $0 }
      if pending.isEmpty { pending = console.take()[...] }
      isBusy = !pending.isEmpty
      if let result, pending.isEmpty { return result }
      if result != nil || machine.stopRequested != nil {
        // From here on a reader that does not read must not hold up the end.
        let limit = drainDeadline ?? .now + RunSession.drainLimit
        drainDeadline = limit
        if ContinuousClock.now >= limit {
          console.close()
          if let result { return result }
        }
      }

      let hasRoom = machine.consoleInput.room >= 256
      var watches = [System.Watch(wakeReader, .input)]
      if !outputIsBroken { watches.append(System.Watch(.standardOutput, pending.isEmpty ? .hangUp : .output)) }
      if input == .open, hasRoom { watches.append(System.Watch(.standardInput, .input)) }
      let isWaitingForRoom = input == .open && !hasRoom
      let patience: Int32 = pending.isEmpty ? (isBusy || isWaitingForRoom ? 10 : -1) : 100
      watches = System.wait(watches, milliseconds: patience)

      for watch in watches where watch.isReady || watch.isBroken {
        switch watch.file {
        case wakeReader: while System.readSome(512, from: wakeReader)?.count == 512 {}
        case .standardOutput:
          if !watch.isBroken { failure = write(&pending) }
          outputIsBroken = watch.isBroken || failure != nil
        default:
          guard let typed = System.readSome(256, from: .standardInput) else { continue }
          input = take(typed, &escape, &lastByte)
        }
      }
      if isBusy, pending.isEmpty, outcome.withLock({ $0 == nil }) { System.sleep(.milliseconds(1)) }
    }
  }

  private enum InputState { case open, ended }

  /// Passes on what was typed.
  private func take(_ typed: [UInt8], _ escape: inout EscapeKey, _ lastByte: inout UInt8?) -> InputState {
    guard !typed.isEmpty else {
      // A serial line has no end of file. Ctrl-D is what one is to a terminal; behind an unfinished line it takes two.
      let endOfTransmission: UInt8 = 0x04
      let isLineStart = lastByte == nil || lastByte == UInt8(ascii: "\n")
      machine.consoleInput.put([UInt8](repeating: endOfTransmission, count: isLineStart ? 1 : 2))
      return .ended
    }
    lastByte = typed.last
    guard Terminal.isRaw else {
      machine.consoleInput.put(typed)
      return .open
    }
    let (bytes, ends) = escape.filter(typed)
    machine.consoleInput.put(bytes)
    if ends { machine.requestStop(.interrupted(.interrupt)) }
    return ends ? .ended : .open
  }

  /// Writes some of what is pending; returns why it cannot. A pipe that is ready takes this much at once.
  private func write(_ pending: inout ArraySlice<UInt8>) -> Errno? {
    guard !pending.isEmpty else { return nil }
    switch System.writeSome(pending.prefix(4096), to: .standardOutput) {
    case .wrote(let count): pending = pending.dropFirst(count)
    case .wouldBlock: break
    case .failed(let error):
      // Blocked, the signal that says so reaches nobody.
      if error == .fileTooLarge { machine.requestStop(.interrupted(EndingSignal.fileSize.interruption)) }
      return error
    }
    return nil
  }
}
