// SPDX-License-Identifier: Apache-2.0
// The chapters of `lguest tour` about lguest's interface: ring-1 guests that say what they see, and what the host counted
// of it.

import Boot
import Lguest
import Paravirt
import X86

/// The chapters about lguest's interface.
package enum LguestTour: CaseIterable, TourChapter {
  case registration, softwareInterrupt, ring, rewritten, gates, page, heldInterrupt

  package var title: String {
    switch self {
    case .registration: "lguest: a kernel of level 1 registers, and reads the host's page"
    case .softwareInterrupt: "lguest: a hypercall by INT 1Fh"
    case .ring: "lguest: hypercalls that wait in a ring"
    case .rewritten: "lguest: KVM's VMCALL, replaced by INT 1Fh"
    case .gates: "lguest: a trap that goes to the guest's own handler"
    case .page: "lguest: what a guest that goes on finds in the host's page"
    case .heldInterrupt: "lguest: an interrupt that the guest holds back"
    }
  }

  package var options: String { "--abi lguest" + (self == .rewritten ? " --hypercall-insn patch" : "") }

  package func run() throws(ConfigurationError) -> (text: String, isGood: Bool) {
    if self == .page { return try LguestTour.goOn() }
    let guest = try BuiltInGuest(code: code, isLong: false)
    var configuration = guest.ring1Configuration
    let console = ConsoleText()
    configuration.consoleOutput = { console.put($0) }
    let result = try VirtualMachine(configuration: configuration).run()
    let (counted, isExpected) = judge(result.statistics)
    return (console.text + "  The host counted \(counted).\n", result.ending == .poweroff && isExpected)
  }

  /// What the host counted that the chapter is about, and whether that is what it should be.
  private func judge(_ statistics: Statistics) -> (String, Bool) {
    func calls(_ call: LguestCall) -> UInt64 { statistics.hypercalls[UInt64(Ring1Code.number(call))] ?? 0 }
    switch self {
    case .registration, .page:
      let (registrations, texts) = (calls(.initialize), calls(.notify))
      return (
        "\(registrations) LGUEST_INIT, and \(texts) NOTIFY: each piece of this text is one", registrations == 1
      )
    case .softwareInterrupt:
      let entries = calls(.loadGDTEntry)
      return ("\(entries) LOAD_GDT_ENTRY", entries == 1)
    case .ring:
      let (entries, flushes) = (calls(.loadGDTEntry), calls(.flushAsync))
      return (
        "\(entries) LOAD_GDT_ENTRY, 4 of them from the ring, and \(flushes) FLUSH_ASYNC", (entries, flushes) == (5, 1)
      )
    case .rewritten:
      let (traps, rewrites, flushes) = (statistics.invalidOpcodes, statistics.hypercallsPatched, calls(.flushAsync))
      return ("\(traps) #UD, \(rewrites) replacement and \(flushes) calls", (traps, rewrites, flushes) == (1, 1, 3))
    case .gates:
      let (traps, all) = (statistics[.trap], statistics.hypercallTotal)
      return ("\(traps) traps that came to it, for \(all) hypercalls; none of INT 80h is among them", traps == all)
    case .heldInterrupt:
      return ("\(statistics.interrupts) interrupt delivered", statistics.interrupts == 1)
    }
  }

  // MARK: The guests

  private var code: [UInt8] {
    var guest = Ring1TourGuest()
    switch self {
    case .registration: LguestTour.registration(&guest)
    case .softwareInterrupt: LguestTour.softwareInterrupt(&guest)
    case .ring: LguestTour.ring(&guest)
    case .rewritten: LguestTour.rewritten(&guest)
    case .gates: LguestTour.gates(&guest)
    case .page: LguestTour.changes(&guest)
    case .heldInterrupt: LguestTour.heldInterrupt(&guest)
    }
    return guest.code
  }

  /// A descriptor that the guests ask for: of its table, which is at the start of the host's page, the entry that Linux
  /// leaves free; the upper half of a flat data segment of level 0.
  private static let entry: UInt32 = 20, upperHalf: UInt32 = 0x00CF_9200
  private static func place(_ entry: UInt32) -> UInt32 { LguestHost.reserved + entry * 8 }

  private static func sayDescriptor(_ g: inout Ring1TourGuest, _ entry: UInt32) {
    g.load(place(entry) + 4)
    g.sayHex(digits: 8)
    g.load(place(entry))
    g.sayHex(digits: 8)
  }

  private static func registration(_ g: inout Ring1TourGuest) {
    g.say("  I am a 32-bit kernel. CS is 0x")
    g.emit([0x8C, 0xC8])  // MOV EAX, CS
    g.sayHex(digits: 2)
    g.expect(0x61)
    g.say(": I run at level 1. I have struct lguest_data at 0x")
    g.emit([0xB8] + Ring1Code.word(Ring1Code.data))  // MOV EAX
    g.sayHex(digits: 8)
    g.say(", and my\n  first hypercall, LGUEST_INIT, told the host where. It has written there that the last 0x")
    g.load(Ring1TourGuest.Data.reserveMemory)
    g.sayHex(digits: 8)
    g.expect(0x40_0000)
    g.say("\n  bytes of addresses are not mine, and that the time-stamp counter runs at ")
    g.load(Ring1TourGuest.Data.timestampKilohertz)
    g.sayNumber()
    g.say(" kHz.\n  The host's page is there, from which the processor reads my gates and descriptors: SGDT says\n  0x")
    g.emit([0x0F, 0x01, 0x05] + Ring1Code.word(Ring1TourGuest.word(0)))  // SGDT: two bytes of limit, four of address
    g.load(Ring1TourGuest.word(0) + 2)
    g.sayHex(digits: 8)
    g.expect(LguestHost.reserved)
    g.say(". I may read it. Entry 12, my code segment, is ")
    sayDescriptor(&g, 12)
    g.load(place(12) + 4)
    g.expect(0x00CF_BB00)
    g.say(".\n")
  }

  private static func softwareInterrupt(_ g: inout Ring1TourGuest) {
    g.say("  LOAD_GDT_ENTRY is number 18 in EAX, and EBX, ECX and EDX are an index and the halves of a descriptor:\n")
    g.say("  20, and a data segment of level 0. In the host's page entry 20 is ")
    sayDescriptor(&g, entry)
    g.load(place(entry) + 4)
    g.expect(0)
    g.say(".\n  I execute INT 1Fh (cd 1f). Now it is ")
    g.call(.loadGDTEntry, entry, 0xFFFF, upperHalf)
    g.store(Ring1TourGuest.word(0))
    sayDescriptor(&g, entry)
    g.load(place(entry) + 4)
    g.expect(0x00CF_B300)
    g.say(": the host made level 1 of level 0.\n  EAX is ")
    g.load(Ring1TourGuest.word(0))
    g.sayNumber()
    g.expect(Ring1Code.number(.loadGDTEntry))
    g.say(" as before: there is no result. What is wrong ends the guest.\n")
  }

  private static func ring(_ g: inout Ring1TourGuest) {
    /// Keeps the entry's limit.
    func keep(_ number: Int) {
      g.load(place(entry))
      g.store(Ring1TourGuest.word(number))
    }
    func sayKept(_ number: Int, _ expected: UInt32) {
      g.load(Ring1TourGuest.word(number))
      g.sayNumber()
      g.expect(expected)
    }
    // Nothing is said in between: NOTIFY is a call like any, and would have the ring performed.
    for slot in 0..<3 { g.queue(slot, .loadGDTEntry, entry, UInt32(slot) + 1, upperHalf) }
    keep(0)
    g.call(.flushAsync)
    keep(1)
    g.queue(3, .loadGDTEntry, entry, 4, upperHalf)
    g.call(.loadGDTEntry, entry, 5, upperHalf)
    keep(2)
    g.say("  Calls that can wait are left in 64 slots of struct lguest_data. I left three there, which set\n")
    g.say("  the limit of entry 20 to 1, to 2 and to 3, and looked: it was ")
    sayKept(0, 0)
    g.say(", for the host knew nothing yet.\n  Then I made FLUSH_ASYNC, which does nothing itself, and it was ")
    sayKept(1, 3)
    g.say(": they were performed in order.\n  I left a 4, and made the call for a 5 by INT 1Fh. It was ")
    sayKept(2, 5)
    g.say(": first the ring, then the call that is made.\n  The status of these slots is ")
    g.sayBytes(Ring1TourGuest.Data.status(0), count: 4)
    g.expect(bytes: [0xFF, 0xFF, 0xFF, 0xFF], at: Ring1TourGuest.Data.status(0))
    g.say(": they are free again.\n")
  }

  private static func rewritten(_ g: inout Ring1TourGuest) {
    // XOR EAX, EAX (FLUSH_ASYNC); VMCALL; RET
    let routine = g.handler([0x31, 0xC0] + HypercallOpcode.vmcall.bytes + [0xC3])
    let site = routine + 2
    let call: [UInt8] = [0xBE] + Ring1Code.word(routine) + [0xFF, 0xD6]  // MOV ESI; CALL ESI
    g.say("  I make FLUSH_ASYNC by VMCALL, KVM's instruction, which no processor has at level 1.\n")
    g.say("  Before, its bytes are ")
    g.sayBytes(site, count: 3)
    g.expect(bytes: HypercallOpcode.vmcall.bytes, at: site)
    g.emit(call)
    g.say("; after, they are ")
    g.sayBytes(site, count: 3)
    g.expect(bytes: [0xCD, LguestCall.vector, 0x90], at: site)
    g.say(": INT 1Fh, and a NOP in the third.\n  It raised #UD to the host, which replaced it in my memory and")
    g.say(" had me execute it again.\n  I make the call twice more, and it costs what any costs.\n")
    g.emit(call + call)
  }

  /// How often the guest of `gates` executes INT 80h.
  private static let systemCalls: UInt32 = 1000

  private static func gates(_ g: inout Ring1TourGuest) {
    // INC DWORD; IRET
    let handler = g.handler([0xFF, 0x05] + Ring1Code.word(Ring1TourGuest.word(0)) + [0xCF])
    g.say("  My table of gates is kept by the host. By LOAD_IDT_ENTRY I ask for one for vector 80h, to a handler\n")
    g.say("  of mine that counts. I execute INT 80h ")
    g.emit([0xB8] + Ring1Code.word(systemCalls))  // MOV EAX
    g.sayNumber()
    g.say(" times. ")
    g.gate(0x80, to: handler, isInterruptGate: false)
    // MOV ECX; INT 80h; DEC ECX; JNZ to INT
    g.emit([0xB9] + Ring1Code.word(systemCalls) + [0xCD, 0x80, 0x49, 0x75, 0xFB])
    g.say("The handler has counted ")
    g.load(Ring1TourGuest.word(0))
    g.sayNumber()
    g.expect(systemCalls)
    g.say(".\n")
  }

  private static func heldInterrupt(_ g: inout Ring1TourGuest) {
    let (enabled, pending) = (Ring1TourGuest.Data.irqEnabled, Ring1TourGuest.Data.irqPending)
    let on = UInt32(truncatingIfNeeded: RFLAGS.if)
    // INC DWORD; MOV DWORD; IRET
    let handler = g.handler(
      [0xFF, 0x05] + Ring1Code.word(Ring1TourGuest.word(0)) + [0xC7, 0x05] + Ring1Code.word(enabled)
        + Ring1Code.word(on) + [0xCF])
    g.say("  My interrupt flag is not the processor's, but a word of struct lguest_data. It is 0. I ask for the\n")
    g.say("  timer, interrupt 0 at vector 20h, in a millisecond, and wait until the host says that one is due.\n")
    g.gate(0x20, to: handler, isInterruptGate: true)
    g.store(~1, at: Ring1TourGuest.Data.blockedInterrupts)
    g.store(0, at: enabled)
    g.call(.setClockEvent, 1_000_000)
    // CMP DWORD, 0; JE to CMP
    g.emit([0x83, 0x3D] + Ring1Code.word(pending) + [0x00, 0x74, 0xF7])
    g.load(Ring1TourGuest.word(0))
    g.store(Ring1TourGuest.word(1))
    g.say("  irq_pending is 0x")
    g.load(pending)
    g.sayHex(digits: 3)
    g.expect(on)
    g.say(" now, and my handler has run ")
    g.load(Ring1TourGuest.word(1))
    g.sayNumber()
    g.expect(0)
    g.say(" times. I set the flag, and make SEND_INTERRUPTS.\n")
    g.store(on, at: enabled)
    g.call(.sendInterrupts)
    g.say("  My handler has run ")
    g.load(Ring1TourGuest.word(0))
    g.sayNumber()
    g.expect(1)
    g.say(" time, and irq_pending is ")
    g.load(pending)
    g.sayNumber()
    g.expect(0)
    g.say(".\n")
  }

  // MARK: The host's page

  /// The hypercalls between the stays of `goOn`.
  private static func changes(_ g: inout Ring1TourGuest) {
    g.call(.flushAsync)
    g.call(.loadIDTEntry, 0x50, 0x60_1000, 0x0010_8E00)
    g.call(.loadGDTEntry, entry, 0xFFFF, upperHalf)
    for _ in 0..<3 { g.call(.flushAsync) }
  }

  /// Two guests on one page, stay by stay: what was copied to the page, and decoded for it, before each.
  private static func goOn() throws(ConfigurationError) -> (text: String, isGood: Bool) {
    var text = """
        I leave by a hypercall, and go on. What the processor reads while I run lies in the host's page, and the
        host copies there what has changed since I was here:

      """
    var isGood = true
    try SteppedGuest.onThread { () throws(ConfigurationError) in
      let built = try BuiltInGuest(code: LguestTour.page.code, isLong: false)
      let guest = try SteppedGuest(built.ring1Configuration), other = try SteppedGuest(built.ring1Configuration)
      let place = try SteppedGuest.Place()
      for (what, expected) in stays {
        if what == .otherGuest { isGood = other.step(on: place) && isGood }
        let before = guest.counts
        isGood = guest.step(on: place) && isGood
        let (bytes, entries) = (guest.counts.bytes &- before.bytes, guest.counts.entries &- before.entries)
        text += "  \(what.rawValue): \(bytes) bytes, \(entries) entries decoded\n"
        isGood = isGood && entries == expected && bytes == expected * 8
      }
    }
    return (text, isGood)
  }

  /// What happened before a stay.
  private enum Before: String {
    case beginning = "I begin"
    case nothing = "nothing has changed"
    case gate = "I changed a gate (IDT)"
    case descriptor = "I changed a descriptor (GDT)"
    case otherGuest = "another guest was here"
  }

  /// The stays of `goOn`, with how many entries the host has to decode: 256 gates, 32 descriptors.
  private static let stays: [(Before, entries: UInt64)] = [
    (.beginning, 288), (.nothing, 0), (.nothing, 0), (.gate, 256), (.descriptor, 32), (.nothing, 0), (.otherGuest, 288),
  ]
}
