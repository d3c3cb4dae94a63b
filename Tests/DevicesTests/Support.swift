// SPDX-License-Identifier: Apache-2.0
// Time that stands still until a test moves it, and a place for devices to report to.

import Saving
import Synchronization

@testable import Devices

/// A guest TSC of 3 GHz over settable nanoseconds.
final class FakeTime: Sendable {
  let now = Atomic<UInt64>(1_000_000_000)

  func advance(_ nanoseconds: UInt64) { now.wrappingAdd(nanoseconds, ordering: .relaxed) }
  var nanoseconds: UInt64 { now.load(ordering: .relaxed) }

  var clock: Clock {
    Clock(
      nanoseconds: { self.nanoseconds }, timestampCounter: { self.nanoseconds &* 3 },
      nanosecondsAtTick: { $0 / 3 + ($0 % 3 == 0 ? 0 : 1) })
  }
}

/// Remembers what it was told, from any thread.
final class Log<Element: Sendable>: Sendable {
  private let elements = Mutex<[Element]>([])
  func append(_ element: Element) { elements.withLock { $0.append(element) } }
  var all: [Element] { elements.withLock { $0 } }
}

/// A machine with everything, and fake time.
struct Fixture {
  let time = FakeTime()
  let wall = WallSeconds()
  let power = Log<PowerEvent>()
  let wakes = Log<UInt32>()
  let output = Log<UInt8>()
  let room = Log<Bool>()
  let unclaimed = Log<UInt64>()
  let a20 = Log<Bool>()
  let platform: Platform

  init(
    cpuCount: Int = 1, hasTestDevices: Bool = false,
    devices: (@Sendable ((InterruptPin) -> InterruptLine) -> [PlatformDevice])? = nil
  ) {
    let (time, wall, power, wakes, output, room, unclaimed) = (time, wall, power, wakes, output, room, unclaimed)
    let a20 = a20
    var configuration = PlatformConfiguration(
      cpuCount: cpuCount, memoryBelow4G: 1 << 30, memoryAbove4G: 0,
      clocks: [Clock](repeating: time.clock, count: cpuCount),
      wallTime: { WallTime(seconds: wall.seconds, nanoseconds: UInt32(time.nanoseconds % 1_000_000_000)) },
      serialOutput: { output.append($0) }, power: { power.append($0) }, wake: { wakes.append($0) })
    configuration.hasDebugExit = true
    configuration.hasTestDevices = hasTestDevices
    configuration.a20 = { a20.append($0) }
    configuration.serialHasRoom = { room.append(true) }
    if let devices { configuration.devices = devices }
    configuration.onUnclaimedPort = { port, _, _ in unclaimed.append(port) }
    platform = Platform(configuration)
  }

  var apic: LocalAPIC { platform.interrupts.localAPICs[0] }
  func apic(_ id: Int) -> LocalAPIC { platform.interrupts.localAPICs[id] }

  func inb(_ port: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: platform.ports.read(port, size: 1)) }
  func outb(_ port: UInt64, _ value: UInt8) { platform.ports.write(port, size: 1, value: UInt64(value)) }

  func ioapicWrite(_ register: UInt64, _ value: UInt64) {
    platform.mmio.write(0xFEC0_0000, size: 4, value: register)
    platform.mmio.write(0xFEC0_0010, size: 4, value: value)
  }
  func ioapicRead(_ register: UInt64) -> UInt64 {
    platform.mmio.write(0xFEC0_0000, size: 4, value: register)
    return platform.mmio.read(0xFEC0_0010, size: 4)
  }

  /// Puts an APIC into software-enabled x2APIC mode.
  func enableX2APIC(_ id: Int = 0) {
    _ = apic(id).writeMSR(0x1B, apic(id).base | 0xC00)
    _ = apic(id).writeMSR(0x80F, 0x1FF)
  }
}

/// Civil seconds that a test can set.
final class WallSeconds: Sendable {
  private let value = Atomic<Int64>(1_709_210_096)  // 2024-02-29 12:34:56 UTC
  var seconds: Int64 { value.load(ordering: .relaxed) }
  func advance(_ seconds: Int64) { value.wrappingAdd(seconds, ordering: .relaxed) }
}

extension Fixture {
  /// What each device of the machine writes when it is saved.
  func savedDevices() throws -> [[UInt8]] {
    try platform.savedDevices.map { saved in
      var archive = StateArchive(savingAt: time.nanoseconds)
      var device = saved.device
      try device.transfer(&archive)
      return archive.bytes
    }
  }
}
