// SPDX-License-Identifier: Apache-2.0
// What the guests of the tour have in common: they speak on the serial port, survive exceptions they provoke, and end
// the run with 1 if something is not as they say.

import X86

/// A guest under construction: code, with texts and numbers for its console.
struct TourGuest {
  var a = GuestAssembler()
  private let printText: GuestAssembler.Label
  private let printDigits: GuestAssembler.Label
  private let printNumber: GuestAssembler.Label
  private let undefined: GuestAssembler.Label
  private let protection: GuestAssembler.Label
  private let surprise: GuestAssembler.Label
  private var texts: [(label: GuestAssembler.Label, text: String)] = []

  /// Guest-physical addresses that the chapters use.
  enum Place {
    static let interruptTable = BuiltInGuest.data
    static let interruptTablePointer = BuiltInGuest.data + 0x1000
    static let scratch = BuiltInGuest.data + 0x2000
    static let clock = BuiltInGuest.data + 0x3000
    static let page2007 = BuiltInGuest.data + 0x4000
  }

  /// Begins with a stack.
  init() {
    printText = a.label()
    printDigits = a.label()
    printNumber = a.label()
    undefined = a.label()
    protection = a.label()
    surprise = a.label()
    a.mov(.rsp, BuiltInGuest.stackTop)
  }

  // MARK: Speaking; no register changes

  private static let saved: [GuestRegister] = [.rax, .rcx, .rdx, .rbx, .rsi]

  private mutating func keepingRegisters(_ body: (inout TourGuest) -> Void) {
    for register in TourGuest.saved { a.push(register) }
    body(&self)
    for register in TourGuest.saved.reversed() { a.pop(register) }
  }

  mutating func say(_ text: String) {
    let label = a.label()
    texts.append((label, text))
    sayText { $0.lea(.rsi, label) }
  }

  /// The text whose address `body` puts into RSI, up to a zero.
  mutating func sayText(_ body: (inout GuestAssembler) -> Void) {
    keepingRegisters { guest in
      body(&guest.a)
      guest.a.call(guest.printText)
    }
  }

  /// A register in hexadecimal, with this many digits.
  mutating func sayHex(_ register: GuestRegister, digits: Int) {
    keepingRegisters { guest in
      guest.a.mov(.rsi, register)
      guest.a.mov(.rcx, UInt64(4 * digits))
      guest.a.call(guest.printDigits)
    }
  }

  /// A register in decimal, as a signed number.
  mutating func sayNumber(_ register: GuestRegister) {
    keepingRegisters { guest in
      guest.a.mov(.rax, register)
      guest.a.call(guest.printNumber)
    }
  }

  /// The bytes of the code at a label, in hexadecimal.
  mutating func sayBytes(at label: GuestAssembler.Label, count: Int) {
    keepingRegisters { guest in
      for index in 0..<count {
        if index > 0 { guest.say(" ") }
        guest.a.lea(.rbx, label)
        guest.a.load8(.rbx, .rbx, UInt32(index))
        guest.sayHex(.rbx, digits: 2)
      }
    }
  }

  // MARK: Checking

  /// Ends the run unless the register holds the value, sign-extended.
  mutating func expect(_ register: GuestRegister, _ value: Int32) {
    a.cmp(register, value)
    a.jump(.notEqual, surprise)
  }

  /// Ends the run unless the code at a label has these bytes.
  mutating func expect(bytes: [UInt8], at label: GuestAssembler.Label) {
    for (index, byte) in bytes.enumerated() {
      a.lea(.rbx, label)
      a.load8(.rbx, .rbx, UInt32(index))
      expect(.rbx, Int32(byte))
    }
  }

  /// Runs code that may raise #UD or #GP; R15 is the vector afterwards, or 0.
  mutating func trying(_ body: (inout GuestAssembler) -> Void) {
    let after = a.label()
    a.lea(.r14, after)
    a.mov(.r15, 0)
    body(&a)
    a.place(after)
  }

  /// Makes `trying` possible: an interrupt table with gates for the two exceptions.
  mutating func catchExceptions() {
    a.mov(.rdi, Place.interruptTable)
    for (vector, handler) in [(UInt32(6), undefined), (13, protection)] {
      // Offset 15...0, selector 0x10, type 0x8E, offset 31...16 (SDM volume 3, 6.14.1).
      a.lea(.rax, handler)
      a.mov(.rbx, .rax)
      a.and(.rbx, 0xFFFF)
      a.shr(.rax, 16)
      a.shl(.rax, 48)
      a.or(.rbx, .rax)
      a.mov(.rax, 0x8E00_0010_0000)
      a.or(.rbx, .rax)
      a.store(.rbx, .rdi, 16 * vector)
      a.mov(.rax, 0)
      a.store(.rax, .rdi, 16 * vector + 8)
    }
    a.mov(.rbx, Place.interruptTablePointer)
    a.mov(.rax, Place.interruptTable << 16 | 0xFFF)
    a.store(.rax, .rbx)
    a.mov(.rax, Place.interruptTable >> 48)
    a.store(.rax, .rbx, 8)
    a.lidt(.rbx)
  }

  // MARK: The end

  /// The whole guest: what was written, its end, and the routines behind it.
  mutating func finish() -> [UInt8] {
    let end = a.label()
    a.mov(.rax, 0)
    a.place(end)
    a.mov(.rdx, 0xF4)
    a.outByte()
    a.halt()
    a.place(surprise)
    say("  This is not what was expected. The tour ends here.\n")
    a.mov(.rax, 1)
    a.jmp(end)
    appendHandlers()
    appendText()
    appendDigits()
    appendNumber()
    for (label, text) in texts {
      a.place(label)
      a.data(Array(text.utf8) + [0])
    }
    return a.code
  }

  /// Both go on where `trying` says: they replace the RIP that the exception pushed.
  private mutating func appendHandlers() {
    for (handler, vector, frame) in [(undefined, UInt64(6), Int32(8)), (protection, 13, 16)] {
      a.place(handler)
      a.mov(.r15, vector)
      a.add(.rsp, frame)
      a.push(.r14)
      a.iretq()
    }
  }

  /// The text at RSI, up to a zero.
  private mutating func appendText() {
    a.place(printText)
    let (next, end) = (a.here(), a.label())
    a.load8(.rax, .rsi)
    a.cmp(.rax, 0)
    a.jump(.equal, end)
    a.mov(.rdx, 0x3F8)
    a.outByte()
    a.add(.rsi, 1)
    a.jmp(next)
    a.place(end)
    a.ret()
  }

  /// The low RCX bits of RSI in hexadecimal, the highest digit first.
  private mutating func appendDigits() {
    a.place(printDigits)
    let (next, isDigit) = (a.here(), a.label())
    a.sub(.rcx, 4)
    a.mov(.rax, .rsi)
    a.shiftRight(.rax)
    a.and(.rax, 15)
    a.add(.rax, 0x30)
    a.cmp(.rax, 0x3A)
    a.jump(.less, isDigit)
    a.add(.rax, 0x27)
    a.place(isDigit)
    a.mov(.rdx, 0x3F8)
    a.outByte()
    a.cmp(.rcx, 0)
    a.jump(.notEqual, next)
    a.ret()
  }

  /// RAX as a signed decimal number: its digits are pushed, lowest first, with a zero under them.
  private mutating func appendNumber() {
    a.place(printNumber)
    let (isPositive, next, write, end) = (a.label(), a.label(), a.label(), a.label())
    a.cmp(.rax, 0)
    a.jump(.notLess, isPositive)
    a.negate(.rax)
    a.push(.rax)
    a.mov(.rax, 0x2D)
    a.mov(.rdx, 0x3F8)
    a.outByte()
    a.pop(.rax)
    a.place(isPositive)
    a.mov(.rcx, 10)
    a.mov(.rsi, 0)
    a.push(.rsi)
    a.place(next)
    a.mov(.rdx, 0)
    a.divide(.rcx)
    a.add(.rdx, 0x30)
    a.push(.rdx)
    a.cmp(.rax, 0)
    a.jump(.notEqual, next)
    a.place(write)
    a.pop(.rax)
    a.cmp(.rax, 0)
    a.jump(.equal, end)
    a.mov(.rdx, 0x3F8)
    a.outByte()
    a.jmp(write)
    a.place(end)
    a.ret()
  }
}
