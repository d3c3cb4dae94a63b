// SPDX-License-Identifier: Apache-2.0
// The corners of decoding that a disassembler does not show: what each field of `Instruction` holds, what is #UD,
// and where the bytes run out.

import Testing

@testable import X86

@Suite struct DecoderTests {
  let decoder = Decoder(), formatter = InstructionFormatter()

  private func decode(_ bytes: [UInt8], _ code: CodeSize = .code64) -> Instruction {
    guard case .complete(let i) = decoder.decode(bytes.span, code: code) else {
      Issue.record("\(bytes.hex) is incomplete")
      return Instruction()
    }
    if i.isValid { #expect(Int(i.length) == bytes.count, "\(bytes.hex)") }
    return i
  }

  private func text(_ bytes: [UInt8], _ code: CodeSize = .code64) -> String { formatter.text(decode(bytes, code)) }

  @Test(
    "text",
    arguments: [
      ([0x48, 0x03, 0x44, 0x8B, 0x10], "add rax, qword [rbx+rcx*4+0x10]"),
      ([0x8B, 0x05, 0xFC, 0xFF, 0xFF, 0xFF], "mov eax, dword [rip-0x4]"),
      ([0x8B, 0x04, 0x25, 0xFC, 0xFF, 0xFF, 0xFF], "mov eax, dword [0xfffffffffffffffc]"),
      ([0x43, 0x8A, 0x64, 0xA5, 0x00], "mov spl, byte [r13+r12*4]"),
      ([0x8A, 0x24, 0x24], "mov ah, byte [rsp]"),
      ([0x90], "nop"), ([0xF3, 0x90], "pause"), ([0x41, 0x90], "xchg r8d, eax"), ([0x48, 0x90], "nop"),
      ([0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 0x88], "mov rax, 0x8807060504030201"),
      ([0x66, 0x0F, 0xC8], "bswap ax"), ([0x49, 0x0F, 0xC8], "bswap r8"),
      ([0x66, 0xF2, 0x0F, 0x38, 0xF1, 0xC1], "crc32 eax, cx"),
      ([0x66, 0x0F, 0x38, 0xF0, 0x03], "movbe ax, word [rbx]"),
      ([0xF3, 0x0F, 0xBC, 0xC1], "tzcnt eax, ecx"), ([0x66, 0xF3, 0x0F, 0xB8, 0xC1], "popcnt ax, cx"),
      ([0xC4, 0xE2, 0xF3, 0xF6, 0xC3], "mulx rax, rcx, rbx"),
      ([0xC4, 0xE2, 0x75, 0x92, 0x04, 0x90], "vgatherdps ymm0, [rax+ymm2*4], ymm1"),
      ([0xC5, 0xF8, 0x77], "vzeroupper"), ([0xC5, 0xFC, 0x77], "vzeroall"),
      ([0x66, 0x48, 0x0F, 0x6E, 0xC0], "movq xmm0, rax"), ([0x4C, 0x0F, 0x6F, 0xC9], "movq mm1, mm1"),
      ([0x44, 0x0F, 0x20, 0xC0], "mov rax, cr8"), ([0x0F, 0x01, 0xC1], "vmcall"), ([0x0F, 0x01, 0xD9], "vmmcall"),
      ([0xF3, 0x48, 0xAB], "rep stosq"), ([0xF3, 0x0F, 0x1E, 0xFA], "endbr64"), ([0x6A, 0xFF], "push -0x1"),
      ([0x66, 0xE8, 1, 0, 0, 0], "call $+0x7"), ([0x64, 0xA1, 1, 0, 0, 0, 0, 0, 0, 0], "mov eax, fs:[0x1]"),
    ] as [([UInt8], String)])
  func text64(bytes: [UInt8], expected: String) {
    #expect(text(bytes) == expected)
  }

  @Test("fields: operand and address sizes, segments, immediates")
  func fields() {
    #expect(decode([0x50]).operandSize == 8)
    #expect(decode([0x66, 0x50]).operandSize == 2)
    #expect(decode([0x50], .code32).operandSize == 4)
    #expect(decode([0x66, 0xFF, 0xD0]).operandSize == 8)
    #expect(decode([0x66, 0xE8, 1, 2], .code32).operandSize == 2)
    #expect(decode([0xC3], .code16).operandSize == 2)
    #expect(decode([0x89, 0x45, 0x00]).segment == 2)
    #expect(decode([0x89, 0x04, 0x24]).segment == 2)
    #expect(decode([0x41, 0x89, 0x45, 0x00]).segment == 3)
    #expect(decode([0x64, 0x89, 0x45, 0x00]).segment == 4)
    #expect(decode([0x3E, 0x89, 0x45, 0x00]).segment == 2)
    #expect(decode([0x3E, 0x89, 0x45, 0x00], .code32).segment == 3)
    #expect(decode([0x64, 0x2E, 0x8B, 0x00]).segment == 4)
    #expect(decode([0x89, 0x04, 0x2B], .code32).segment == 3)
    let word = decode([0x8B, 0x42, 0xFE], .code16)
    #expect(word.base == 5 && word.index == 6 && word.displacement == -2 && word.segment == 2 && word.addressSize == 2)
    let far = decode([0xEA, 1, 2, 3, 4, 5, 6], .code32)
    #expect(far.immediate == 0x0403_0201 && far.immediate2 == 0x0605 && far.immediateBytes == 6)
    let enter = decode([0xC8, 0x00, 0x80, 3])
    #expect(enter.immediate == 0x8000 && enter.immediate2 == 3 && enter.operandSize == 8)
    #expect(decode([0x48, 0x05, 0, 0, 0, 0x80]).immediate == 0xFFFF_FFFF_8000_0000)
    #expect(decode([0x67, 0xA1, 0, 0, 0, 0x80]).immediate == 0x8000_0000)
    // REX counts only right before the opcode.
    #expect(decode([0x48, 0x66, 0x03, 0xC0]).operandSize == 2)
    // In 32-bit mode VEX extends no register.
    let vex = decode([0xC4, 0xC1, 0x30, 0x58, 0xC1], .code32)
    #expect(vex.vvvv == 1 && vex.rm == 1)
  }

  @Test(
    "#UD",
    arguments: [
      [0xF0, 0x01, 0xC0], [0xF0, 0x8B, 0x00], [0xF0, 0x39, 0x00], [0x06], [0x82, 0xC0], [0x0F, 0x0F],
      [0xC5, 0xF0, 0x28],
      [0x66, 0xC5], [0x48, 0xC5], [0x8E, 0xC8], [0x8D, 0xC0], [0xC4, 0xE2, 0x79, 0x16, 0xC1], [0x62], [0xFF, 0xF8],
      [0xC4, 0xE2, 0x75, 0x92, 0x00], [0xC4, 0xE2, 0x7D, 0x92, 0x04, 0x90], [0xF3, 0x0F, 0x38, 0xF0],
      [0x0F, 0xC7, 0xC8], [0x8F, 0xC8], [0xC4, 0xE4],
    ] as [[UInt8]])
  func undefined(bytes: [UInt8]) {
    var padded = bytes
    while padded.count < 15 { padded.append(0) }
    guard case .complete(let i) = decoder.decode(padded.span, code: .code64) else {
      Issue.record("\(bytes.hex) is incomplete")
      return
    }
    #expect(!i.isValid, "\(bytes.hex) is \(formatter.text(i))")
    #expect(OpcodeTable.shared[i.row].rule == .undefined)
  }

  @Test("LOCK where it may stand")
  func lock() {
    for bytes in [
      [0xF0, 0x01, 0x00], [0xF0, 0x0F, 0xC7, 0x08], [0xF0, 0x0F, 0xB1, 0x00], [0xF0, 0x87, 0x00], [0xF0, 0xFE, 0x00],
      [0xF0, 0x0F, 0xBA, 0x28, 0x01],
    ] as [[UInt8]] {
      #expect(decode(bytes).isValid, "\(bytes.hex)")
    }
    #expect(decode([0xF0, 0x82, 0x00, 0x01], .code32).isValid)
  }

  @Test("15 bytes are an instruction, 16 are not")
  func length() {
    let prefixes = [UInt8](repeating: 0x66, count: 14)
    #expect(decode(prefixes + [0x90]).length == 15)
    let long = prefixes + [0x66, 0x90]
    guard case .tooLong = decoder.decode(long.span, code: .code64) else {
      Issue.record("16 bytes accepted")
      return
    }
    guard case .needsMore = decoder.decode(prefixes.span, code: .code64) else {
      Issue.record("14 prefixes are complete")
      return
    }
  }

  @Test("masks of flag effects")
  func flags() {
    typealias F = ArithmeticFlags
    #expect(F.all == 0xF5)
    #expect(FlagEffect.condition.reads(condition: 0x7F) == F.zf | F.sf | F.of)
    #expect(FlagEffect.condition.reads(condition: 0x92) == F.cf)
    #expect(FlagEffect.increment.writes == F.all & ~F.cf)
    #expect(FlagEffect.shift.writes == 0 && FlagEffect.shift.writesMaybe == F.all)
    #expect(FlagEffect.arithCarry.reads(condition: 0) == F.cf)
    #expect(FlagEffect.bitTest.undefined == F.all & ~(F.zf | F.cf))
  }

  @Test(
    "flags that an instruction overwrites whatever it is given",
    arguments: [
      ([0xC1, 0xE0, 0x03], ArithmeticFlags.all),  // SHL EAX,3
      ([0xC1, 0xE0, 0x20], 0),  // SHL EAX,32: by none
      ([0x48, 0xC1, 0xE0, 0x20], ArithmeticFlags.all),  // SHL RAX,32
      ([0x48, 0xC1, 0xF8, 0x40], 0),  // SAR RAX,64
      ([0x48, 0xC0, 0xE0, 0x20], 0),  // SHL AL,32
      ([0xD3, 0xE0], 0),  // SHL EAX,CL
      ([0xD1, 0xE0], ArithmeticFlags.all),  // SHL EAX,1
      ([0x0F, 0xA4, 0xC8, 0x05], ArithmeticFlags.all),  // SHLD EAX,ECX,5
      ([0xC1, 0xC0, 0x07], ArithmeticFlags.cf | ArithmeticFlags.of),  // ROL EAX,7
      ([0xC1, 0xD0, 0x07], 0),  // RCL EAX,7
      ([0xF3, 0xA6], 0),  // REPE CMPSB
      ([0xA6], ArithmeticFlags.all),  // CMPSB
    ] as [([UInt8], UInt8)])
  func overwritten(bytes: [UInt8], flags: UInt8) {
    let i = decode(bytes)
    #expect(OpcodeTable.shared[i.row].overwrites(i) == flags)
  }
}
