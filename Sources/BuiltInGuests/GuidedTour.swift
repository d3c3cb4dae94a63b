// SPDX-License-Identifier: Apache-2.0
// `lguest tour`: a few machines, each with a built-in guest that meets one mechanism of KVM's paravirtual interfaces and
// says on its console what it saw. LguestTour.swift has those of lguest's interface.

import Lguest
import Paravirt
import X86

/// A chapter of the tour: a machine and its guest.
package protocol TourChapter: Sendable {
  /// What it is about.
  var title: String { get }
  /// The options of `lguest run` that make such a machine.
  var options: String { get }
  /// Runs the chapter's machine.
  ///
  /// - Returns: What the guest wrote and the host counted, and whether everything was as expected.
  /// - Throws: `ConfigurationError`: what stops any run.
  func run() throws(ConfigurationError) -> (text: String, isGood: Bool)
}

/// The chapters about KVM's interfaces.
package enum GuidedTour: CaseIterable, TourChapter {
  case greeting, clock, ownHypercall, emulated, patched, fault, intel2007, amd2007, refactored

  package var title: String {
    switch self {
    case .greeting: "A guest finds out where it is, and calls"
    case .clock: "kvmclock: the time without a call"
    case .ownHypercall: "A hypercall that the host program adds"
    case .emulated: "The other vendor's instruction, performed by the machine"
    case .patched: "The other vendor's instruction, replaced in guest memory"
    case .fault: "The other vendor's instruction, as hardware has it"
    case .intel2007: "February 2007: a page, a register and a stub"
    case .amd2007: "The same guest on an AMD processor"
    case .refactored: "August 2007: the same guest after the refactoring"
    }
  }

  package var options: String {
    switch self {
    case .greeting, .clock, .ownHypercall: ""
    case .emulated: "--cpu-vendor amd --hypercall-insn emulate"
    case .patched: "--cpu-vendor amd --hypercall-insn patch"
    case .fault: "--cpu-vendor amd --hypercall-insn fault"
    case .intel2007: "--kvm-api 2007"
    case .amd2007: "--cpu-vendor amd --kvm-api 2007"
    case .refactored: "--kvm-api refactored"
    }
  }

  package func run() throws(ConfigurationError) -> (text: String, isGood: Bool) {
    let guest = try BuiltInGuest(code: code)
    var configuration = guest.configuration
    switch self {
    case .greeting, .clock, .ownHypercall: break
    case .emulated: (configuration.cpuVendor, configuration.foreignHypercall) = (.amd, .emulate)
    case .patched: (configuration.cpuVendor, configuration.foreignHypercall) = (.amd, .patch)
    case .fault: (configuration.cpuVendor, configuration.foreignHypercall) = (.amd, .fault)
    case .intel2007: configuration.kvmAPI = .year2007
    case .amd2007: (configuration.cpuVendor, configuration.kvmAPI) = (.amd, .year2007)
    case .refactored: configuration.kvmAPI = .refactored
    }
    configuration.hypercalls[GuidedTour.greet] = GuidedTour.answerGreeting
    configuration.hypercalls[GuidedTour.add] = { $0.arguments[0] &+ $0.arguments[1] }
    let console = ConsoleText()
    configuration.consoleOutput = { console.put($0) }
    let result = try VirtualMachine(configuration: configuration).run()
    return (console.text, result.ending == .debugExit(0))
  }

  // MARK: The host program's hypercalls

  /// Greets: RBX is the address of a name and RCX its length. The greeting is stored over it; RAX is its length.
  private static let greet: UInt64 = 0x1000
  /// Adds its first two arguments.
  private static let add: UInt64 = 0x1001

  private static let answerGreeting: VirtualMachine.HypercallHandler = { call in
    guard let name = call.bytes(at: call.arguments[0], count: Int(min(call.arguments[1], 64))) else { return .max }
    let greeting = Array("Good day, \(String(decoding: name, as: UTF8.self))!".utf8)
    return call.store(greeting + [0], at: call.arguments[0]) ? UInt64(greeting.count) : .max
  }

  // MARK: The guests

  private var code: [UInt8] {
    var guest = TourGuest()
    switch self {
    case .greeting: GuidedTour.greeting(&guest)
    case .clock: GuidedTour.clock(&guest)
    case .ownHypercall: GuidedTour.ownHypercall(&guest)
    case .emulated: GuidedTour.foreign(&guest, becomes: .vmcall)
    case .patched: GuidedTour.foreign(&guest, becomes: .vmmcall)
    case .fault: GuidedTour.fault(&guest)
    case .intel2007: GuidedTour.register(&guest, native: .vmcall)
    case .amd2007: GuidedTour.register(&guest, native: .vmmcall)
    case .refactored: GuidedTour.refactored(&guest)
    }
    return guest.finish()
  }

  private static func greeting(_ g: inout TourGuest) {
    g.say("  CPUID leaf 0x40000000 names the hypervisor: \"")
    g.a.mov(.rax, 0x4000_0000)
    g.a.cpuid()
    g.a.mov(.rdi, TourGuest.Place.scratch)
    for (index, register) in [GuestRegister.rbx, .rcx, .rdx].enumerated() {
      g.a.store32(register, .rdi, UInt32(4 * index))
    }
    g.sayText(at: TourGuest.Place.scratch)
    g.say("\".\n  Leaf 0x40000001 says what it offers: 0x")
    g.a.mov(.rax, 0x4000_0001)
    g.a.cpuid()
    g.sayHex(.rax, digits: 8)
    g.say(
      ".\n  A hypercall is one instruction: number in RAX, result in RAX. Number 1, which does\n  nothing, answers ")
    g.a.mov(.rax, KVMHypercall.pollInterrupts.rawValue)
    g.a.hypercall(.vmcall)
    g.sayNumber(.rax)
    g.expect(.rax, 0)
    g.say(". Number 99, which nobody has, answers ")
    g.a.mov(.rax, 99)
    g.a.hypercall(.vmcall)
    g.sayNumber(.rax)
    g.expect(.rax, -1000)
    g.say(" (KVM_ENOSYS).\n")
  }

  private static func clock(_ g: inout TourGuest) {
    g.say("  I write an address to the register 0x4b564d01. From now on the host keeps there a moment\n")
    g.say("  in TSC ticks and in nanoseconds, and the rate between them; the rest is arithmetic.\n")
    g.a.mov(.rcx, 0x4B56_4D01)
    g.a.mov(.rax, TourGuest.Place.clock | 1)
    g.a.mov(.rdx, 0)
    g.a.wrmsr()
    g.say("  The structure's version is ")
    g.a.mov(.rdi, TourGuest.Place.clock)
    g.a.load32(.rax, .rdi)
    g.sayNumber(.rax)
    g.a.mov(.rbx, .rax)
    g.a.and(.rbx, 1)
    g.expect(.rbx, 0)
    g.say(" (even: nobody is writing), its multiplier 0x")
    g.a.load32(.rax, .rdi, 24)
    g.sayHex(.rax, digits: 8)
    g.say(".\n  It is ")
    g.readClock()
    g.a.mov(.r12, .rax)
    g.sayNumber(.rax)
    g.say(" ns since this machine began. And now, after writing this line, it is\n  ")
    g.readClock()
    g.sayNumber(.rax)
    g.say(" ns. No call was made for it.\n")
    g.a.cmp(.r12, .rax)
    g.a.mov(.rbx, 0)
    let later = g.a.label()
    g.a.jump(.below, later)
    g.expect(.rbx, 1)
    g.a.place(later)
  }

  private static func ownHypercall(_ g: inout TourGuest) {
    g.say("  The program around this machine has added a hypercall, number 0x1000: it takes the address and\n")
    g.say("  the length of a name and stores a greeting there. I put \"newcomer\" in my memory and call.\n")
    g.a.mov(.rbx, TourGuest.Place.scratch)
    g.a.mov(.rax, Array("newcomer".utf8).reversed().reduce(0) { $0 << 8 | UInt64($1) })
    g.a.store(.rax, .rbx)
    g.a.mov(.rcx, 8)
    g.a.mov(.rax, greet)
    g.a.hypercall(.vmcall)
    g.say("  RAX is ")
    g.sayNumber(.rax)
    g.expect(.rax, 19)
    g.say(", and my memory says: \"")
    g.sayText(at: TourGuest.Place.scratch)
    g.say("\"\n")
  }

  private static func foreign(_ g: inout TourGuest, becomes native: HypercallOpcode) {
    let (start, site) = (g.a.label(), g.a.label())
    g.say(
      "  This processor is an AMD: VMMCALL (0f 01 d9) is its own, and VMCALL is Intel's.\n  I execute VMCALL. Before, its bytes are "
    )
    g.sayBytes(at: site, count: 3)
    g.a.jmp(start)
    g.a.align(16)
    g.a.place(site)
    g.a.hypercall(.vmcall)
    g.a.ret()
    g.a.place(start)
    g.a.mov(.rax, 99)
    g.a.call(site)
    g.say("; the answer is ")
    g.sayNumber(.rax)
    g.expect(.rax, -1000)
    g.say("; after, they are ")
    g.sayBytes(at: site, count: 3)
    g.expect(bytes: native.bytes, at: site)
    g.say(".\n")
    if native == .vmmcall {
      g.say("  The instruction raised #UD to the machine, which replaced it in my memory and had me execute it\n")
      g.say("  again. The next call costs what any costs: ")
    } else {
      g.say("  The instruction raised #UD to the machine, which read it and did the call for me. It will do so\n")
      g.say("  each time: ")
    }
    g.a.mov(.rax, KVMHypercall.pollInterrupts.rawValue)
    g.a.call(site)
    g.sayNumber(.rax)
    g.expect(.rax, 0)
    g.say(".\n")
  }

  private static func fault(_ g: inout TourGuest) {
    g.catchExceptions()
    g.say("  This processor is an AMD again, and nobody helps with Intel's VMCALL. I execute it.\n  ")
    g.trying { $0.hypercall(.vmcall) }
    g.say("Exception ")
    g.sayNumber(.r15)
    g.expect(.r15, 6)
    g.say(" came: #UD, no such instruction. My own VMMCALL answers ")
    g.a.mov(.rax, KVMHypercall.pollInterrupts.rawValue)
    g.a.hypercall(.vmmcall)
    g.sayNumber(.rax)
    g.expect(.rax, 0)
    g.say(".\n")
  }

  private static func register(_ g: inout TourGuest, native: HypercallOpcode) {
    let (start, stub) = (g.a.label(), g.a.label())
    g.catchExceptions()
    g.a.jmp(start)
    g.a.align(16)
    g.a.place(stub)
    g.a.mov(.rax, 0xFFFF_FFDA)
    g.a.ret()
    g.a.place(start)
    g.say("  I have a stub, six bytes that return -38, \"no such call\": ")
    g.sayBytes(at: stub, count: 6)
    g.say(".\n  I write its address into a page, and the page's address to the register 0x87655678.\n")
    g.registration(stub)
    g.trying { $0.wrmsr() }
    g.expect(.r15, 0)
    g.a.mov(.rdi, TourGuest.Place.page2007)
    g.a.load32(.rax, .rdi, 12)
    g.say("  The host's result is ")
    g.sayNumber(.rax)
    g.expect(.rax, 0)
    g.a.load32(.rax, .rdi, 4)
    g.say(", its version ")
    g.sayNumber(.rax)
    g.expect(.rax, 1)
    g.say(". The stub is now ")
    g.sayBytes(at: stub, count: 6)
    g.expect(bytes: native.bytes + [0xC3], at: stub)
    g.say(
      ":\n  \(native == .vmcall ? "VMCALL" : "VMMCALL") and a return. I never name the instruction myself, I call the stub.\n"
    )
    g.say("  Number 0x1001 with 40 in RDI and 2 in RSI is answered by the host program: ")
    g.a.mov(.rax, add)
    g.a.mov(.rdi, 40)
    g.a.mov(.rsi, 2)
    g.a.call(stub)
    g.sayNumber(.rax)
    g.expect(.rax, 42)
    g.say(".\n")
  }

  private static func refactored(_ g: inout TourGuest) {
    g.catchExceptions()
    let stub = g.a.here()
    g.say("  I write the address of a page to the register 0x87655678, as in February.\n  ")
    g.registration(stub)
    g.trying { $0.wrmsr() }
    g.say("Exception ")
    g.sayNumber(.r15)
    g.expect(.r15, 13)
    g.say(" came: #GP, the register is gone. Guests execute VMCALL themselves now; where it is the\n")
    g.say("  wrong one it is replaced. No call exists yet; number 0 answers ")
    g.a.mov(.rax, 0)
    g.a.hypercall(.vmcall)
    g.sayNumber(.rax)
    g.expect(.rax, -1000)
    g.say(".\n")
  }
}

extension TourGuest {
  /// The text in memory, up to a zero.
  mutating func sayText(at address: UInt64) { sayText { $0.mov(.rsi, address) } }

  /// Nanoseconds of kvmclock to RAX; RBX, RCX, RDX and RDI are lost. The machine has one vCPU and a constant moment, so
  /// the version need not be looked at again.
  mutating func readClock() {
    let (left, scaled) = (a.label(), a.label())
    a.mov(.rdi, Place.clock)
    a.readTimestamp()
    a.load(.rbx, .rdi, 8)
    a.sub(.rax, .rbx)
    a.load8(.rcx, .rdi, 28)
    a.cmp(.rcx, 0x80)
    a.jump(.below, left)
    // A negative shift, as a byte.
    a.negate(.rcx)
    a.and(.rcx, 0xFF)
    a.shiftRight(.rax)
    a.jmp(scaled)
    a.place(left)
    a.shiftLeft(.rax)
    a.place(scaled)
    a.load32(.rbx, .rdi, 24)
    a.multiply(.rbx)
    a.shr(.rax, 32)
    a.shl(.rdx, 32)
    a.or(.rax, .rdx)
    a.load(.rbx, .rdi, 16)
    a.add(.rax, .rbx)
  }

  /// Fills the page of February 2007 and gets ready for WRMSR.
  mutating func registration(_ stub: GuestAssembler.Label) {
    a.mov(.rdi, Place.page2007)
    a.mov(.rax, UInt64(UInt32.max) << 32 | UInt64(KVMRegistration2007.version))
    a.store(.rax, .rdi)
    a.mov(.rax, UInt64(UInt32.max) << 32 | 4096)
    a.store(.rax, .rdi, 8)
    a.lea(.rax, stub)
    a.store(.rax, .rdi, 16)
    a.mov(.rcx, UInt64(KVMRegistration2007.register))
    a.mov(.rax, Place.page2007)
    a.mov(.rdx, 0)
  }
}
