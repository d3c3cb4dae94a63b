// SPDX-License-Identifier: Apache-2.0
// The restart of a ring-1 guest: lguest's launcher began again from the start, with the same disks. So does a machine: RAM
// as it was before the first instruction, devices and timer reset, the kernel at its entry point; what was counted goes on.

import Devices
import Engine
import GuestMemory
import Paravirt
import X86

extension RunLoop {
  /// Begins again, if the guest may; else the run ends with a reset.
  func restartLguest() -> Outcome? {
    guard let parts = machine.lguest, let content = parts.beginning.memory else {
      return .power(.reset(.resetControl))
    }
    // First devices, which then store nothing more.
    parts.reset()
    do throws(MemoryError) { try machine.memory.reset(to: content) } catch { return .failed("\(error)") }
    var state = parts.beginning.state
    state.tscOffset = engine.timestampOffset
    engine.state = state
    Firmware.setMemoryTypes(engine)
    lguest?.reset(engine)
    isHalted = false
    statistics.restarts &+= 1
    return nil
  }
}

extension LguestHost {
  /// Whether the kernel has said nothing yet, so that what it ended with may be nothing of lguest's.
  var silence: String? {
    hasCalled ? nil : "the kernel never made lguest's first hypercall, and probably has no CONFIG_LGUEST_GUEST"
  }
}
