// SPDX-License-Identifier: Apache-2.0
// The table of causes and statuses, against the one that is documented.

import SystemPackage
import Testing

@testable import Lguest

@Suite struct EndingTests {
  @Test(
    "causes and statuses are the documented ones",
    arguments: [
      (Ending.poweroff, "poweroff", Int32(0)), (.reset, "reset", 0), (.saved, "saved", 0),
      (.exit(7), "exit", 7), (.signal(9), "signal", 137),
      (.bootTimeout, "boot-timeout", 124), (.timeout, "timeout", 124), (.usage, "usage", 125),
      (.commandNotExecutable, "exec", 126), (.commandNotFound, "exec", 127), (.cannotStart, "cannot-start", 69),
      (.internal, "internal", 70), (.panic, "panic", 255), (.tripleFault, "triple-fault", 255),
      (.interrupted(.interrupt), "interrupted", 130), (.interrupted(.terminate), "interrupted", 143),
      (.interrupted(.hangUp), "interrupted", 129), (.debugExit(0), "debug-exit", 1), (.debugExit(3), "debug-exit", 7),
      (.debugExit(255), "debug-exit", 255),
    ])
  func table(ending: Ending, cause: String, status: Int32) {
    #expect(ending.cause.rawValue == cause)
    #expect(ending.exitStatus == status)
  }

  @Test("the first reason to stop counts") func firstStop() {
    let machine = VirtualMachine(configuration: .init(kernel: "/nowhere"))
    #expect(machine.requestStop(.timeout))
    #expect(!machine.requestStop(.interrupted(.terminate)))
    #expect(machine.stopRequested == .timeout)
  }

  @Test("time limits") func limits() {
    let start = ContinuousClock.now
    let limits = TimeLimits(start: start, bootTimeout: .seconds(10), timeout: .seconds(20))
    #expect(limits.verdict(at: start, userSpaceBegan: false) == .next(start + .seconds(10)))
    #expect(limits.verdict(at: start + .seconds(10), userSpaceBegan: false) == .ended(.bootTimeout))
    #expect(limits.verdict(at: start + .seconds(10), userSpaceBegan: true) == .next(start + .seconds(20)))
    #expect(limits.verdict(at: start + .seconds(20), userSpaceBegan: true) == .ended(.timeout))
    #expect(limits.verdict(at: start + .seconds(99), userSpaceBegan: false) == .ended(.bootTimeout))
    let none = TimeLimits(start: start, bootTimeout: nil, timeout: nil)
    #expect(none.verdict(at: start + .seconds(1_000_000), userSpaceBegan: false) == .unlimited)
  }

  @Test("reaching user space ends the boot limit") func userSpace() {
    var configuration = VirtualMachine.Configuration(kernel: "/nowhere")
    configuration.bootTimeout = .milliseconds(1)
    let machine = VirtualMachine(configuration: configuration)
    machine.markUserSpace()
    #expect(machine.enforceTimeLimits(now: .now + .seconds(1)) == nil)
    #expect(machine.stopRequested == nil)
  }
}
