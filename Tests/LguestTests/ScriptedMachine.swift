// SPDX-License-Identifier: Apache-2.0
// A machine with all its devices and no kernel, whose vCPUs execute scripts: what the run loop does about an exit is
// seen at the engine, at the devices and in what is counted.

import GuestMemory
import Paravirt
import ScriptedEngine
import Synchronization
import SystemPackage
import Testing
import X86

@testable import Lguest

/// Such a machine, and the run loops of its vCPUs.
final class ScriptedMachine {
  let machine: Machine
  let cpus: [ScriptedCPU]
  let loops: [RunLoop]
  private let printed = Output()

  private final class Output: Sendable {
    let bytes = Mutex<[UInt8]>([])
    let userSpaces = Atomic<Int>(0)
  }

  /// How often the beginning of user space was told.
  var userSpaceCount: Int { printed.userSpaces.load(ordering: .relaxed) }

  /// What the guest wrote to its serial port.
  var console: String { printed.bytes.withLock { String(decoding: $0, as: UTF8.self) } }
  var cpu: ScriptedCPU { cpus[0] }
  var loop: RunLoop { loops[0] }

  /// - Parameter cpus: How many, on one thread.
  init(cpus count: Int = 1, _ change: (inout VirtualMachine.Configuration) -> Void = { _ in }) throws {
    var configuration = VirtualMachine.Configuration(kernel: "no kernel")
    configuration.cpuCount = count
    configuration.hostThreadCount = 1
    configuration.consoleOutput = { [printed] byte in printed.bytes.withLock { $0.append(byte) } }
    change(&configuration)
    let cpus = (0..<count).map { _ in ScriptedCPU() }
    let counter = try #require(TimestampCounter(kilohertz: 1_000_000))
    let time = ParavirtTime(timestampOffset: 0)
    let delay = configuration.slowMemory
    let memory = try GuestMemory(byteCount: 2 << 20, fetchDelay: delay.map(SlowMemory.nanoseconds))
    let parts = MachineParts(
      model: CPUModel(.v2, vendor: .intel, extras: []), memory: memory, counter: counter,
      clock: KVMClock(counter: counter, isTimestampConstant: true, source: time), engine: ScriptedEngine(), cpus: cpus,
      slowMemory: delay.map { SlowMemory(memory, delay: $0, cpuCount: count) })
    machine = try Machine(parts, configuration, input: ConsoleInput())
    self.cpus = cpus
    loops = cpus.indices.map { [machine, printed] in
      RunLoop(machine, $0, configuration) { printed.userSpaces.add(1, ordering: .relaxed) }
    }
  }

  deinit { machine.stop() }
}
