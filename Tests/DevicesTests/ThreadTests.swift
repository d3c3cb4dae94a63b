// SPDX-License-Identifier: Apache-2.0
// Many threads on one machine at once: the lock order holds (nothing hangs) and no interrupt is lost.

import Dispatch
import Testing

@testable import Devices

@Suite struct ThreadTests {
  // The limit counts the wait for a thread of the concurrency runtime too, which may be minutes long.
  @Test("four vCPU threads, IPIs, pins, EOIs and register traffic", .timeLimit(.minutes(10)))
  func storm() {
    let machine = Fixture(cpuCount: 4)
    for id in 0..<4 { machine.enableX2APIC(id) }
    machine.ioapicWrite(0x10 + 18, 0x8059)
    machine.platform.ioapic.set(pin: 9, true)
    DispatchQueue.concurrentPerform(iterations: 4) { id in
      let apic = machine.apic(id)
      for step in 0..<2_000 {
        _ = apic.writeMSR(0x830, UInt64((id + 1) % 4) << 32 | UInt64(0x60 + id))
        machine.platform.pic.set(irq: 4, step & 1 == 0)
        machine.platform.ioapic.set(pin: 10 + id, step & 1 == 0)
        machine.platform.serial.receive([UInt8(truncatingIfNeeded: step)])
        machine.outb(0x3F9, UInt8(step & 3))
        _ = machine.inb(0x3F8)
        machine.outb(0x21, UInt8(truncatingIfNeeded: step))
        // At most two: pin 9 asks APIC 0 again at every EOI.
        for _ in 0..<2 where apic.acknowledge() != nil { apic.endOfInterrupt() }
      }
    }
    machine.outb(0x21, 0xFF)
    // Whatever happened, the level on pin 9 is either requested, in service, or asked for again by EOI.
    var seen = false
    for _ in 0..<1_000 where !seen {
      seen = machine.apic.acknowledge() == 0x59
      machine.apic.endOfInterrupt()
    }
    #expect(seen)
  }
}
