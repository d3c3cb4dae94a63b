// SPDX-License-Identifier: Apache-2.0
// A machine whose vCPUs run, as other threads may handle it: stop them all at a boundary, let them go on, and write
// down what the machine is while they stand still.

import Devices
import Engine
import GuestMemory
import Host
import Paravirt
import Saving
import Synchronization
public import SystemPackage

/// Why a machine cannot be paused, resumed or saved, in one line.
public struct MoveError: Error, Sendable, Equatable, CustomStringConvertible {
  /// The line.
  public let description: String
  init(_ description: String) { self.description = description }

  fileprivate static func converting<Result>(
    _ body: () throws(HostError) -> Result
  ) throws(MoveError) -> Result {
    do throws(HostError) { return try body() } catch { throw MoveError(ConfigurationError(error).description) }
  }
}

extension Machine {
  static let clockSection = "clock"

  /// What is transferred as one section.
  typealias Part = (name: String, transfer: (inout StateArchive) throws(SavedStateError) -> Void)

  /// Everything but RAM, in the order of the file. No vCPU runs.
  func parts(_ loops: [RunLoop]) -> [Part] {
    let processors: Part = (
      "processors",
      { archive throws(SavedStateError) in
        for loop in loops {
          try archive.part("vCPU \(loop.number)") { archive throws(SavedStateError) in try loop.transfer(&archive) }
        }
      }
    )
    let ring1: [Part] =
      lguest.map { lguest in
        [("lguest", { archive throws(SavedStateError) in try lguest.transfer(&archive) })]
      } ?? []
    return [processors] + ring1
      + platform.savedDevices.map { saved in
        (
          saved.name,
          { archive throws(SavedStateError) in
            var device = saved.device
            try device.transfer(&archive)
          }
        )
      }
  }

  /// Puts back what was saved, before the first vCPU runs.
  func restore(_ file: SaveFile, _ loops: [RunLoop]) throws(ConfigurationError) {
    var sections = file.reading()
    try standStill { () throws(ConfigurationError) in
      for part in parts(loops) { try sections.section(part.name, part.transfer) }
    }
    // The APIC's base register says it.
    for (cpu, apic) in zip(cpus, platform.interrupts.localAPICs) { cpu.isAPICEnabled = apic.isEnabled }
    rearmAll()
    lguest?.lookAgain()
    // The guest is told with the first update of its time structures, before it executes anything.
    clock.guestWasStopped()
  }
}

/// A machine and the loops of its vCPUs.
final class RunningMachine: Sendable {
  private let machine: Machine
  private let loops: [RunLoop]
  private let isPaused = Mutex<Bool>(false)

  /// How long all vCPUs may take to come to a boundary: long, because one may wait for the console's reader.
  private static let patience: UInt64 = 10_000_000_000

  init(_ machine: Machine, _ loops: [RunLoop]) {
    self.machine = machine
    self.loops = loops
  }

  /// Stops every vCPU between two instructions.
  func pause() throws(MoveError) { try isPaused.withLock { paused throws(MoveError) in try pause(&paused) } }

  /// Lets the vCPUs go on. The guest's clocks have not stood still, and it is told that it has.
  func resume() { isPaused.withLock { resume(&$0) } }

  private func pause(_ isPaused: inout Bool) throws(MoveError) {
    guard !isPaused else { return }
    guard machine.scheduler.pause(until: HostClock.after(nanoseconds: RunningMachine.patience)) else {
      machine.scheduler.resume()
      throw MoveError("a vCPU does not come to a stop; does anybody read the console?")
    }
    if machine.scheduler.ending != nil { throw MoveError("the run has ended") }
    // Those of its disks go on with what it had asked for until then.
    machine.lguest?.pause()
    isPaused = true
  }

  private func resume(_ isPaused: inout Bool) {
    guard isPaused else { return }
    isPaused = false
    machine.lguest?.resume()
    machine.clock.guestWasStopped()
    machine.scheduler.resume()
  }

  /// Writes the machine to an empty file; afterwards its vCPUs stand still, unless that fails.
  ///
  /// - Returns: Whether they stood still before.
  func save(to file: PositionedOutput, _ configuration: VirtualMachine.Configuration) throws(MoveError) -> Bool {
    try isPaused.withLock { paused throws(MoveError) in
      let wasPaused = paused
      try pause(&paused)
      do throws(MoveError) { try write(to: file, configuration) } catch {
        if !wasPaused { resume(&paused) }
        throw error
      }
      return wasPaused
    }
  }

  private func write(to file: PositionedOutput, _ configuration: VirtualMachine.Configuration) throws(MoveError) {
    if machine.lguest?.hasNetwork == true { throw MoveError("a machine with a network cannot be saved") }
    guard loops.allSatisfy({ $0.mayMigrate }) else {
      throw MoveError("the guest does not agree to be moved (MSR 0x4b564d08)")
    }
    do throws(ConfigurationError) {
      // What is typed may end up in memory. Timers do not, and the threads of a group wait for them.
      try machine.console.standStill { () throws(ConfigurationError) in
        let sections = try machine.timers.standStill { () throws(ConfigurationError) in
          try self.sections(configuration, path: FilePath(file.description))
        }
        do throws(HostError) { try SaveFile.write(machine.memory, sections, to: file) } catch {
          throw ConfigurationError(error)
        }
      }
    } catch { throw MoveError(error.description) }
  }
}

extension RunningMachine {
  /// Everything but RAM, as it stands.
  private func sections(
    _ configuration: VirtualMachine.Configuration, path: FilePath
  ) throws(ConfigurationError) -> SavedSections {
    var sections = SavedSections(saving: path)
    var saved = machine.saved(configuration)
    try sections.section(SavedConfiguration.section) { archive throws(SavedStateError) in try saved.transfer(&archive) }
    var clock = machine.clock.saved
    try sections.section(Machine.clockSection) { archive throws(SavedStateError) in try clock.transfer(&archive) }
    if let lguest = machine.lguest { try lguest.save(to: &sections, memoryByteCount: machine.memory.byteCount) }
    for part in machine.parts(loops) { try sections.section(part.name, part.transfer) }
    return sections
  }
}

extension VirtualMachine {
  /// A machine that goes on where it was saved.
  ///
  /// - Parameters:
  ///   - path: What `save` wrote. It must not be changed while the machine runs: its pages are the machine's RAM.
  ///   - adjust: May change limits, console, vendor and the hypercall policy, and must name the machine's disks, which
  ///     are not in the file.
  /// - Throws: `ConfigurationError` if the file is not a saved machine, truncated, damaged or newer. RAM is checked by
  ///   `run`.
  public static func restore(
    _ path: FilePath, adjust: (inout Configuration) -> Void = { _ in }
  ) throws(ConfigurationError) -> VirtualMachine {
    var configuration = try Configuration(restoring: path)
    adjust(&configuration)
    return VirtualMachine(configuration: configuration)
  }

  /// Stops every vCPU between two instructions; pausing what is paused does nothing. Time limits go on. Not for
  /// handlers of hypercalls, for which a vCPU waits.
  ///
  /// - Throws: `MoveError`: the guest does not run, or a vCPU does not stop within ten seconds.
  public func pause() throws(MoveError) { try running().pause() }

  /// Lets a paused machine go on. Its clocks have gone on all the while; the guest learns from kvmclock that it was
  /// stopped, so that its watchdogs keep calm.
  public func resume() throws(MoveError) { try running().resume() }

  /// Writes the whole machine to a file, which appears when it is complete, readable by this user only.
  ///
  /// - Parameter keeping: Whether the machine goes on; else it ends as `saved`.
  /// - Throws: `MoveError`: the guest does not run, or the file cannot be written. The machine then goes on.
  public func save(to path: FilePath, keeping: Bool = false) throws(MoveError) {
    let running = try running()
    let file = try MoveError.converting { () throws(HostError) in try ReplacementFile(path) }
    let wasPaused = try running.save(to: file.output, configuration)
    do throws(MoveError) {
      try MoveError.converting { () throws(HostError) in try file.commit() }
    } catch {
      if !wasPaused { running.resume() }
      throw error
    }
    if keeping { running.resume() } else { requestStop(.saved) }
  }

  /// Writes the machine to an empty file, and leaves its vCPUs standing.
  ///
  /// - Returns: Whether they stood still before.
  func saveAndPause(to file: PositionedOutput) throws(MoveError) -> Bool { try running().save(to: file, configuration) }
}
