// SPDX-License-Identifier: Apache-2.0
// What the ring-1 guests of the tour have in common: they speak by NOTIFY, which is the early console of lguest's interface,
// and do not power off if something is not as they say.

import Boot
import Paravirt
import X86

/// A ring-1 guest under construction: 32-bit code, with texts and numbers for its console. EAX is what is spoken of and
/// compared; but for EAX and the flags, speaking and comparing change nothing.
struct Ring1TourGuest {
  /// Where parts of struct lguest_data are.
  enum Data {
    private static let layout = LguestDataLayout.from3_1
    private static func place(_ offset: UInt64) -> UInt32 { Ring1Code.data + UInt32(offset) }

    static let irqEnabled = place(LguestDataLayout.irqEnabled)
    static let blockedInterrupts = place(LguestDataLayout.blockedInterrupts)
    static let irqPending = place(layout.irqPending ?? 0)
    static let timestampKilohertz = place(layout.timestampKilohertz)
    static let reserveMemory = place(layout.reserveMemory)
    static func status(_ slot: Int) -> UInt32 { place(layout.status + UInt64(slot)) }
    static func call(_ slot: Int) -> UInt32 { place(layout.calls + UInt64(slot) * layout.callBytes) }
  }

  /// Words for whatever a guest keeps, behind all that the others have.
  static func word(_ number: Int) -> UInt32 { UInt32(BuiltInGuest.data) + UInt32(number) * 4 }

  private var body: [UInt8] = []
  private var texts: [UInt8] = []
  private let digits: Int, number: Int, surprise: Int

  /// Begins with the routines, and a jump over them.
  init() {
    let buffer = Ring1Code.word(Ring1Code.buffer)
    // EDI: where the next digit goes; ECX: how many; ROL EAX, 4; MOV BL, AL; AND BL, 15; ADD BL, '0'; CMP BL, '9'; JBE;
    // ADD BL, 27h; MOV [EDI], BL; INC EDI; DEC ECX; JNZ to the first; MOV BYTE [EDI], 0
    let writeDigits: [UInt8] =
      [0xBF] + buffer + [
        0xC1, 0xC0, 0x04, 0x88, 0xC3, 0x80, 0xE3, 0x0F, 0x80, 0xC3, 0x30, 0x80, 0xFB, 0x39, 0x76, 0x03, 0x80, 0xC3,
        0x27, 0x88, 0x1F, 0x47, 0x49, 0x75, 0xE7, 0xC6, 0x07, 0x00,
      ]
    // EDI: the text's end; MOV BYTE [EDI], 0; MOV ECX, 10; XOR EDX, EDX; DIV ECX; ADD DL, '0'; DEC EDI; MOV [EDI], DL;
    // TEST EAX, EAX; JNZ to XOR
    let writeNumber: [UInt8] =
      [0xBF] + Ring1Code.word(Ring1Code.buffer + 15) + [
        0xC6, 0x07, 0x00, 0xB9, 0x0A, 0x00, 0x00, 0x00, 0x31, 0xD2, 0xF7, 0xF1, 0x80, 0xC2, 0x30, 0x4F, 0x88, 0x17,
        0x85, 0xC0, 0x75, 0xF2,
      ]
    let end = Ring1Code.call(.notify, [Ring1Code.buffer]) + [0xC3]
    // As above, but the text begins at EDI: MOV EBX, EDI
    let endAtEDI = Ring1Code.call(.notify) + [0xC3]
    digits = 5
    number = digits + writeDigits.count + end.count
    surprise = number + writeNumber.count + 2 + endAtEDI.count
    let complaint = Ring1Code.more
    texts = Array("  This is not what was expected. The tour ends here.\n".utf8) + [0]
    let complain = Ring1Code.call(.notify, [complaint]) + Ring1Code.call(.shutdown, [complaint, 1])
    let routines = writeDigits + end + writeNumber + [0x89, 0xFB] + endAtEDI + complain
    body = [0xE9] + Ring1Code.word(UInt32(routines.count)) + routines
  }

  /// The whole guest, which powers off when it is done.
  var code: [UInt8] {
    Ring1Code.program(body + Ring1Code.call(.shutdown, [Ring1Code.goodbye, 1]), more: texts)
  }

  // MARK: Code

  /// Bytes of instructions.
  mutating func emit(_ bytes: [UInt8]) { body += bytes }

  /// The address of what comes next.
  var here: UInt32 { Ring1Code.bodyAddress + UInt32(body.count) }

  /// MOV EAX, [address]
  mutating func load(_ address: UInt32) { emit([0xA1] + Ring1Code.word(address)) }

  /// MOV [address], EAX
  mutating func store(_ address: UInt32) { emit([0xA3] + Ring1Code.word(address)) }

  /// MOV DWORD [address], value
  mutating func store(_ value: UInt32, at address: UInt32) {
    emit([0xC7, 0x05] + Ring1Code.word(address) + Ring1Code.word(value))
  }

  /// A hypercall by INT 1Fh. EAX, and EBX, ECX and EDX as far as there are arguments, are lost.
  mutating func call(_ call: LguestCall, _ arguments: UInt32...) { emit(Ring1Code.call(call, arguments)) }

  /// Leaves a call in a slot of the ring, to be performed with the next one that is made.
  mutating func queue(_ slot: Int, _ call: LguestCall, _ arguments: UInt32...) {
    for (index, word) in ([Ring1Code.number(call)] + arguments).enumerated() {
      store(word, at: Data.call(slot) + UInt32(index) * 4)
    }
    emit([0xC6, 0x05] + Ring1Code.word(Data.status(slot)) + [0])  // MOV BYTE
  }

  /// Code that a gate leads to: it is jumped over, and begins where this says.
  mutating func handler(_ bytes: [UInt8]) -> UInt32 {
    emit([0xE9] + Ring1Code.word(UInt32(bytes.count)))
    defer { emit(bytes) }
    return here
  }

  /// LOAD_IDT_ENTRY of a gate that level 1 may use.
  mutating func gate(_ vector: UInt32, to handler: UInt32, isInterruptGate: Bool) {
    call(.loadIDTEntry, vector, handler & 0xFFFF, handler & 0xFFFF_0000 | (isInterruptGate ? 0xAE00 : 0xAF00))
  }

  // MARK: Speaking

  private mutating func keepingRegisters(_ body: (inout Ring1TourGuest) -> Void) {
    emit([0x60])  // PUSHAD
    body(&self)
    emit([0x61])  // POPAD
  }

  mutating func say(_ text: String) {
    let address = Ring1Code.more + UInt32(texts.count)
    texts += Array(text.utf8) + [0]
    keepingRegisters { $0.call(.notify, address) }
  }

  /// CALL of a routine.
  private mutating func callRoutine(_ offset: Int) {
    emit([0xE8] + Ring1Code.word(UInt32(bitPattern: Int32(offset - (body.count + 5)))))
  }

  /// EAX in hexadecimal, with this many digits, 1 to 8.
  mutating func sayHex(digits count: Int) {
    keepingRegisters { guest in
      // ROL EAX; MOV ECX
      guest.emit([0xC1, 0xC0, UInt8(32 - 4 * count), 0xB9] + Ring1Code.word(UInt32(count)))
      guest.callRoutine(guest.digits)
    }
  }

  /// EAX in decimal.
  mutating func sayNumber() { keepingRegisters { $0.callRoutine($0.number) } }

  /// The bytes at an address, in hexadecimal.
  mutating func sayBytes(_ address: UInt32, count: Int) {
    for index in 0..<count {
      if index > 0 { say(" ") }
      load(address + UInt32(index))
      sayHex(digits: 2)
    }
  }

  // MARK: Checking

  /// Ends the run unless EAX holds this.
  mutating func expect(_ value: UInt32) {
    emit([0x3D] + Ring1Code.word(value) + [0x0F, 0x85])  // CMP EAX; JNE
    emit(Ring1Code.word(UInt32(bitPattern: Int32(surprise - (body.count + 4)))))
  }

  /// Ends the run unless these bytes are at an address.
  mutating func expect(bytes: [UInt8], at address: UInt32) {
    for (index, byte) in bytes.enumerated() {
      emit([0x0F, 0xB6, 0x05] + Ring1Code.word(address + UInt32(index)))  // MOVZX EAX, BYTE
      expect(UInt32(byte))
    }
  }
}
