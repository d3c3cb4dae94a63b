// SPDX-License-Identifier: Apache-2.0
// The run loop against a scripted engine: what becomes of every exit, and of what is due between two of them.

import Devices
import Engine
import Paravirt
import ScriptedEngine
import Testing
import X86

@testable import Lguest

private let apic: UInt64 = 0xFEE0_0000

@Suite("Run loop, exit by exit") struct ExitTests {
  @Test("a port is read from its device, or from nobody: all ones") func portRead() throws {
    let scripted = try ScriptedMachine()
    // The serial port's line status: the transmitter is empty.
    #expect(scripted.loop.handle(.portRead(port: 0x3FD, size: 1)) == nil)
    #expect(scripted.loop.handle(.portRead(port: 0x1234, size: 2)) == nil)
    #expect(scripted.cpu.events == [.completedRead(0x60), .completedRead(0xFFFF)])
    #expect(scripted.loop.statistics[.portRead] == 2)
    #expect(scripted.machine.platform.ports.unclaimedByAddress[0x1234] == 1)
  }

  @Test("a port is written: the console, the power switch, and nobody") func portWrite() throws {
    let scripted = try ScriptedMachine { $0.debugExit = true }
    for byte in "hi\n".utf8 {
      #expect(scripted.loop.handle(.portWrite(port: 0x3F8, size: 1, value: UInt32(byte))) == nil)
    }
    #expect(scripted.console == "hi\n")
    #expect(scripted.loop.handle(.portWrite(port: 0x1234, size: 4, value: 7)) == nil)
    #expect(scripted.machine.platform.ports.unclaimedByAddress[0x1234] == 1)
    // PM1a_CNT: SLP_EN and the type of S5.
    #expect(scripted.loop.handle(.portWrite(port: 0x604, size: 2, value: 0x3400)) == .power(.powerOff))
    #expect(scripted.cpu.events.isEmpty && scripted.loop.statistics[.portWrite] == 5)
    let other = try ScriptedMachine { $0.debugExit = true }
    #expect(other.loop.handle(.portWrite(port: 0xF4, size: 1, value: 9)) == .power(.debugExit(9)))
    let third = try ScriptedMachine()
    #expect(third.loop.handle(.portWrite(port: 0xF4, size: 1, value: 9)) == nil)
    #expect(third.loop.handle(.portWrite(port: 0xCF9, size: 1, value: 6)) == .power(.reset(.resetControl)))
  }

  @Test("a panic's last line ends the run") func panic() throws {
    let scripted = try ScriptedMachine()
    let text = "[    1.0] Kernel panic - not syncing: no\r\n[    1.1] ---[ end Kernel panic - not syncing: no ]---\r\n"
    let outcomes = text.utf8.map { scripted.loop.handle(.portWrite(port: 0x3F8, size: 1, value: UInt32($0))) }
    #expect(outcomes.last == .panicked && outcomes.dropLast().allSatisfy { $0 == nil })
  }

  @Test("an address is read from the vCPU's own APIC, from a device, or from nobody") func mmioRead() throws {
    let scripted = try ScriptedMachine(cpus: 2)
    #expect(scripted.loops[1].handle(.mmioRead(address: apic + 0x20, size: 4)) == nil)
    #expect(scripted.cpus[1].events == [.completedRead(1 << 24)])
    #expect(scripted.loop.handle(.mmioRead(address: apic + 0x20, size: 4)) == nil)
    // The IOAPIC's index register.
    #expect(scripted.loop.handle(.mmioWrite(address: 0xFEC0_0000, size: 4, value: 1)) == nil)
    #expect(scripted.loop.handle(.mmioRead(address: 0xFEC0_0000, size: 4)) == nil)
    #expect(scripted.loop.handle(.mmioRead(address: 0xD000_0000, size: 8)) == nil)
    #expect(scripted.cpu.events == [.completedRead(0), .completedRead(1), .completedRead(.max)])
    #expect(scripted.machine.platform.mmio.unclaimedByAddress[0xD000_0000] == 1)
  }

  @Test("the APIC's task priority and CR8 are one register") func taskPriority() throws {
    let scripted = try ScriptedMachine()
    #expect(scripted.loop.handle(.mmioWrite(address: apic + 0x80, size: 4, value: 0x50)) == nil)
    #expect(scripted.cpu.taskPriority == 5)
    scripted.cpu.taskPriority = 9
    scripted.cpu.hasWrittenTaskPriority = true
    scripted.loop.noteTaskPriority()
    #expect(scripted.machine.platform.interrupts.localAPICs[0].taskPriority == 9)
    // Not written: the APIC's own stays, with its subclass.
    #expect(scripted.loop.handle(.mmioWrite(address: apic + 0x80, size: 4, value: 0x57)) == nil)
    scripted.loop.noteTaskPriority()
    #expect(scripted.machine.platform.interrupts.localAPICs[0].read(offset: 0x80, size: 4) == 0x57)
  }

  @Test("model-specific registers: the APIC's, KVM's, and those that nobody has") func registers() throws {
    let scripted = try ScriptedMachine()
    #expect(scripted.loop.handle(.msrRead(index: 0x1B)) == nil)
    #expect(scripted.loop.handle(.msrWrite(index: 0x4B56_4D01, value: 0x1001)) == nil)
    #expect(scripted.loop.handle(.msrRead(index: 0x4B56_4D01)) == nil)
    #expect(
      scripted.cpu.events == [.completedRead(0xFEE0_0900), .completedWrite, .completedRead(0x1001)])
    scripted.cpu.events = []
    #expect(scripted.loop.handle(.msrRead(index: 0x1234)) == nil)
    #expect(scripted.loop.handle(.msrWrite(index: 0x1234, value: 0)) == nil)
    // Reserved bits of the base register, and those of KVM's asynchronous page faults.
    #expect(scripted.loop.handle(.msrWrite(index: 0x1B, value: 1)) == nil)
    #expect(scripted.loop.handle(.msrWrite(index: 0x4B56_4D02, value: 0x30)) == nil)
    #expect(scripted.cpu.events == Array(repeating: .raised(.generalProtection()), count: 4))
    #expect(scripted.loop.statistics.unknown["MSR 0x1234"] == 2)
    scripted.cpu.events = []
    #expect(scripted.loop.handle(.msrWrite(index: 0x1B, value: 0xFEE0_0100)) == nil)
    #expect(scripted.cpu.events == [.completedWrite] && !scripted.cpu.isAPICEnabled)
  }

  @Test("a hypercall is answered in RAX and counted") func hypercall() throws {
    let scripted = try ScriptedMachine(cpus: 2)
    scripted.cpu.registers[0] = 4711
    #expect(scripted.loop.handle(.hypercall) == nil)
    #expect(scripted.cpu.registers[0] == UInt64(bitPattern: -1000))
    // KICK_CPU: flags in RBX, APIC ID in RCX.
    (scripted.cpu.registers[0], scripted.cpu.registers[1]) = (5, 1)
    #expect(scripted.loop.handle(.hypercall) == nil)
    #expect(scripted.cpu.registers[0] == 0 && scripted.machine.doorbells[1].takeEndOfHalt())
    scripted.cpu.currentPrivilegeLevel = 3
    scripted.cpu.registers[0] = 5
    #expect(scripted.loop.handle(.hypercall) == nil)
    #expect(scripted.cpu.registers[0] == UInt64(bitPattern: -1) && !scripted.machine.doorbells[1].takeEndOfHalt())
    #expect(scripted.loop.statistics.hypercalls == [4711: 1, 5: 2] && scripted.loop.statistics.kicks == 1)
  }

  @Test("the other vendor's hypercall is performed, replaced or refused") func foreign() throws {
    func scripted(_ policy: VirtualMachine.Configuration.ForeignHypercall) throws -> ScriptedMachine {
      let scripted = try ScriptedMachine { $0.foreignHypercall = policy }
      scripted.cpu.code = HypercallOpcode.vmmcall.bytes
      scripted.cpu.registers[0] = 4711
      #expect(scripted.loop.handle(.foreignHypercall) == nil)
      return scripted
    }
    let emulated = try scripted(.emulate)
    #expect(emulated.cpu.events == [.skipped(3)] && emulated.cpu.registers[0] == UInt64(bitPattern: -1000))
    #expect(emulated.loop.statistics.hypercallsEmulated == 1)
    let patched = try scripted(.patch)
    #expect(patched.cpu.events == [.stored(0x1002, [0xC1], .data), .refetched])
    #expect(patched.cpu.code == HypercallOpcode.vmcall.bytes)
    #expect(patched.cpu.registers[0] == 4711 && patched.loop.statistics.hypercallsPatched == 1)
    // Another vCPU's change is fetched, and counts nowhere.
    #expect(patched.loop.handle(.foreignHypercall) == nil)
    #expect(patched.cpu.events.suffix(2) == [.refetched, .refetched])
    #expect(patched.loop.statistics.hypercallsPatched == 1)
    patched.cpu.code = [0x0F, 0x0B, 0x90]
    #expect(patched.loop.handle(.foreignHypercall) == nil)
    #expect(patched.cpu.events.last == .raised(.invalidOpcode) && patched.loop.statistics.hypercallsRefused == 1)
  }

  @Test("what ends the run, and what is nothing") func others() throws {
    let scripted = try ScriptedMachine()
    #expect(scripted.loop.handle(.shutdown) == .tripleFault)
    #expect(scripted.loop.handle(.failed("why")) == .failed("why"))
    // No machine takes traps yet.
    guard case .failed? = scripted.loop.handle(.trap(Trap(vector: 14, kind: .exception))) else {
      Issue.record("a trap that nobody takes")
      return
    }
    for exit in [VCPUExit.interruptWindow, .kicked, .stepped, .breakpoint] {
      #expect(scripted.loop.handle(exit) == nil)
    }
    #expect(scripted.cpu.events.isEmpty && !scripted.loop.isHalted)
    #expect(scripted.loop.handle(.halt) == nil)
    #expect(scripted.loop.isHalted && scripted.loop.statistics[.debug] == 2)
  }

  @Test("a vCPU that spins makes room if another waits for a thread") func spinning() throws {
    for count in [1, 2] {
      let scripted = try ScriptedMachine(cpus: count)
      // On a thread that has taken it.
      scripted.machine.scheduler.begin { [loop = scripted.loop, machine = scripted.machine] cpu, _ in
        #expect(cpu == 0 && loop.handle(.spinning) == nil)
        #expect(machine.doorbells[0].isPreempted == (count == 2))
        machine.end(.stopped)
        return .ended(.stopped)
      }
      scripted.machine.threads.work(0)
    }
  }

  @Test("an absent page is told to a guest that takes part, and is waited for by any other") func absentPage() throws {
    let scripted = try ScriptedMachine { $0.slowMemory = .milliseconds(1) }
    let area: UInt64 = 0x2000
    #expect(scripted.loop.handle(.pageAbsent(address: 0x5000)) == nil && scripted.cpu.events.isEmpty)
    // Enabled, with an interrupt for pages that have come.
    for (index, value) in [(UInt32(6), UInt64(0xF3)), (2, area | 0b1001)] {
      #expect(scripted.loop.handle(.msrWrite(index: 0x4B56_4D00 + index, value: value)) == nil)
    }
    scripted.cpu.currentPrivilegeLevel = 3
    scripted.cpu.canAcceptInterrupt = true
    scripted.cpu.events = []
    #expect(scripted.loop.handle(.pageAbsent(address: 0x5000)) == nil)
    guard case .raised(let exception)? = scripted.cpu.events.first else {
      Issue.record("\(scripted.cpu.events)")
      return
    }
    #expect(exception == .pageFault(exception.address, code: 0) && exception.address != 0)
    #expect(scripted.loop.statistics.pagesNotPresent == 1)
    // Not in the kernel.
    scripted.cpu.currentPrivilegeLevel = 0
    #expect(scripted.loop.handle(.pageAbsent(address: 0x5000)) == nil && scripted.cpu.events.count == 1)
  }
}

@Suite("Run loop, between exits") struct RunTests {
  @Test("an interrupt is injected when the guest accepts it, and else a window is asked for") func interrupt() throws {
    let scripted = try ScriptedMachine()
    let local = scripted.machine.platform.interrupts.localAPICs[0]
    local.write(offset: 0xF0, size: 4, value: 0x1FF)
    #expect(local.receive(vector: 0x40))
    scripted.cpu.script = [.interruptWindow, .shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault))
    #expect(scripted.cpu.events == [.wantsWindow(true)])
    scripted.cpu.canAcceptInterrupt = true
    scripted.cpu.script = [.shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault))
    #expect(scripted.cpu.events == [.wantsWindow(true), .injected(0x40), .wantsWindow(false)])
    #expect(scripted.loop.statistics.interrupts == 1)
  }

  @Test("an NMI is injected whatever the guest accepts") func nmi() throws {
    let scripted = try ScriptedMachine()
    let message = InterruptMessage(commandRegister: 4 << 8, target: 0, from: 0)
    #expect(scripted.machine.platform.interrupts.localAPICs[0].receive(message))
    scripted.cpu.script = [.shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault))
    #expect(scripted.cpu.events == [.injectedNMI])
  }

  @Test("a halted vCPU sleeps, and an interrupt that it accepts goes on with it") func halt() throws {
    let scripted = try ScriptedMachine()
    scripted.cpu.script = [.halt]
    #expect(scripted.loop.run(on: nil) == .halted)
    let local = scripted.machine.platform.interrupts.localAPICs[0]
    local.write(offset: 0xF0, size: 4, value: 0x1FF)
    #expect(local.receive(vector: 0x40))
    // Interrupts are off: it goes on sleeping.
    #expect(scripted.loop.run(on: nil) == .halted && scripted.cpu.events.isEmpty)
    scripted.cpu.canAcceptInterrupt = true
    scripted.cpu.script = [.shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault))
    #expect(scripted.cpu.events == [.injected(0x40)])
  }

  @Test("a start-up interrupt starts a vCPU where it says, after INIT has reset it") func startup() throws {
    let scripted = try ScriptedMachine(cpus: 2)
    let (cpu, loop) = (scripted.cpus[1], scripted.loops[1])
    #expect(loop.run(on: nil) == .halted)
    cpu.state.registers[3] = 7
    let local = scripted.machine.platform.interrupts.localAPICs[1]
    #expect(local.receive(InterruptMessage(commandRegister: 5 << 8 | 1 << 14, target: 1, from: 0)))
    #expect(loop.run(on: nil) == .halted)
    #expect(cpu.state == CPUState().initialized(signature: cpu.signature))
    #expect(local.receive(InterruptMessage(commandRegister: 6 << 8 | 0x9A, target: 1, from: 0)))
    cpu.script = [.shutdown]
    #expect(loop.run(on: nil) == .ended(.tripleFault))
    #expect(cpu.state.cs.base == 0x9A000 && cpu.state.rip == 0)
  }

  @Test("INIT of the first processor is a reset") func initOfFirst() throws {
    let scripted = try ScriptedMachine()
    let message = InterruptMessage(commandRegister: 5 << 8 | 1 << 14, target: 0, from: 0)
    #expect(scripted.machine.platform.interrupts.localAPICs[0].receive(message))
    #expect(scripted.loop.run(on: nil) == .ended(.power(.reset(.systemControlPortA))))
  }

  @Test("a vCPU makes room between two instructions, not in the middle of one") func preemption() throws {
    let scripted = try ScriptedMachine()
    scripted.machine.doorbells[0].preempt()
    scripted.cpu.isAtBoundary = false
    scripted.cpu.script = [.kicked, .shutdown]
    // It is kicked so that it comes back soon.
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault) && scripted.cpu.kicks == 2)
    scripted.cpu.isAtBoundary = true
    scripted.cpu.script = [.shutdown]
    #expect(scripted.loop.run(on: nil) == .preempted && scripted.cpu.script.count == 1)
  }

  @Test("a vCPU that is stopped executes nothing more") func stopped() throws {
    let scripted = try ScriptedMachine()
    scripted.machine.end(.stopped)
    scripted.cpu.script = [.shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.stopped) && scripted.cpu.script.count == 1)
  }

  @Test("the beginning of user space is told once") func userSpace() throws {
    let scripted = try ScriptedMachine()
    scripted.cpu.hasMetUserCode = true
    scripted.cpu.script = [.kicked, .kicked, .shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault) && scripted.loop.isInUserSpace)
    #expect(scripted.userSpaceCount == 1)
  }

  @Test("a guest that moves its time-stamp counter moves its clock") func timestamp() throws {
    let scripted = try ScriptedMachine()
    scripted.cpu.timestampOffset = 1000
    scripted.cpu.script = [.kicked, .shutdown]
    #expect(scripted.loop.run(on: nil) == .ended(.tripleFault) && scripted.loop.registers.timestampOffset == 1000)
  }
}
