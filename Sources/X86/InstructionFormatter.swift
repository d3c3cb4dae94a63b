// SPDX-License-Identifier: Apache-2.0
// Intel-syntax text of an instruction, for traces and test messages. It follows the rows' operands, so it is right
// where the table is right; it does not try to be an assembler's input.

/// Writes instructions as text: `add rax, [rbx+rcx*4+0x10]`.
public struct InstructionFormatter: Sendable {
  public let table: OpcodeTable

  public init(table: OpcodeTable = .shared) { self.table = table }

  /// The text of an instruction.
  ///
  /// - Parameter address: Where it stands; with it branch targets and RIP-relative operands are absolute.
  public func text(_ i: Instruction, at address: UInt64? = nil) -> String {
    let row = table[i.row]
    var text = ""
    if i.hasLock { text += "lock " }
    if i.repeatPrefix != 0 && row.prefix == .any && i.isValid {
      let isCompare = row.rule == .cmps || row.rule == .scas
      text += i.repeatPrefix == 0xF2 ? "repnz " : isCompare ? "repz " : "rep "
    }
    text += mnemonic(i)
    var separator = " "
    for operand in [row.operand1, row.operand2, row.operand3, row.operand4] where operand != .none {
      text += separator + self.operand(operand, i, address)
      separator = ", "
    }
    return text
  }

  /// The mnemonic, with what the operand size changes in it.
  public func mnemonic(_ i: Instruction) -> String {
    let row = table[i.row]
    let is64 = i.code.bits == 64
    switch row.rule {
    case .movs, .stos, .lods, .scas, .cmps, .ins, .outs:
      return row.name.description + (i.opcode & 1 == 0 ? "b" : Self.letter(i.operandSize))
    case .cmpxchgWide: return i.w ? "cmpxchg16b" : "cmpxchg8b"
    default: break
    }
    if row.map == .one && row.form == .plain {
      switch row.byte {
      case 0x98: return i.operandSize == 2 ? "cbw" : i.operandSize == 4 ? "cwde" : "cdqe"
      case 0x99: return i.operandSize == 2 ? "cwd" : i.operandSize == 4 ? "cdq" : "cqo"
      case 0xE3: return i.addressSize == 2 ? "jcxz" : i.addressSize == 4 ? "jecxz" : "jrcxz"
      case 0xCF: return i.operandSize == 2 ? "iretw" : i.operandSize == 4 ? "iret" : "iretq"
      default: break
      }
    }
    let name = row.name.description
    if is64 && i.w, ["movd", "pextrd", "pinsrd", "vmovd", "vpextrd", "vpinsrd"].contains(name) {
      return String(name.dropLast()) + "q"
    }
    return name
  }

  private static func letter(_ size: UInt8) -> String {
    switch size {
    case 1: "b"
    case 2: "w"
    case 4: "d"
    default: "q"
    }
  }

  private func operand(_ operand: Operand, _ i: Instruction, _ address: UInt64?) -> String {
    let y: UInt8 = i.w && i.code.bits == 64 ? 8 : 4
    let v = i.operandSize
    switch operand {
    case .none: return ""
    case .Eb: return i.isMemory ? memory(i, address, 1) : general(i.rm, 1, i)
    case .Ew: return i.isMemory ? memory(i, address, 2) : general(i.rm, 2, i)
    case .Ed: return i.isMemory ? memory(i, address, 4) : general(i.rm, 4, i)
    case .Eq: return i.isMemory ? memory(i, address, 8) : general(i.rm, 8, i)
    case .Ev, .Ef: return i.isMemory ? memory(i, address, v) : general(i.rm, v, i)
    case .Ey: return i.isMemory ? memory(i, address, y) : general(i.rm, y, i)
    case .Ez: return i.isMemory ? memory(i, address, min(v, 4)) : general(i.rm, min(v, 4), i)
    case .Evw: return i.isMemory ? memory(i, address, 2) : general(i.rm, v, i)
    case .Gb: return general(i.reg, 1, i)
    case .Gw: return general(i.reg, 2, i)
    case .Gd: return general(i.reg, 4, i)
    case .Gv: return general(i.reg, v, i)
    case .Gy: return general(i.reg, y, i)
    case .By: return general(i.vvvv, y, i)
    case .Ry: return general(i.rm, v == 8 ? 8 : y, i)
    case .Rd: return general(i.rm, 4, i)
    case .Zb: return general(i.rm, 1, i)
    case .Zv: return general(i.rm, v, i)
    case .Zq: return general(i.rm, 8, i)
    case .Mb: return memory(i, address, 1)
    case .Mw: return memory(i, address, 2)
    case .Md: return memory(i, address, 4)
    case .Mq: return memory(i, address, 8)
    case .Mo: return memory(i, address, 16)
    case .Mx: return memory(i, address, i.vexL ? 32 : 16)
    case .Mv: return memory(i, address, v)
    case .My: return memory(i, address, y)
    case .Mt: return memory(i, address, 10)
    case .Mdq: return memory(i, address, i.w ? 16 : 8)
    case .M, .Mp, .Ms, .Ma, .Mfx, .Mxsave, .Mfsave, .Mfenv, .Vsibd, .Vsibq: return memory(i, address, 0)
    case .Ib: return hex(i.immediate & 0xFF)
    case .Ibs, .Iz: return signed(Int64(bitPattern: i.immediate))
    case .Iw: return hex(i.immediate & 0xFFFF)
    case .Iv: return hex(i.immediate)
    case .Ib2: return hex(UInt64(i.immediate2))
    case .Ap: return hex(UInt64(i.immediate2)) + ":" + hex(i.immediate & 0xFFFF_FFFF)
    case .Jb, .Jz:
      guard let address else {
        let distance = Int64(bitPattern: i.immediate) &+ Int64(i.length)
        return "$" + (distance < 0 ? "" : "+") + signed(distance)
      }
      let target = address &+ UInt64(i.length) &+ i.immediate
      return hex(v == 2 ? target & 0xFFFF : v == 4 ? target & 0xFFFF_FFFF : target)
    case .Ob, .Ov: return segmentText(i) + "[" + hex(i.immediate) + "]"
    case .AL: return "al"
    case .AX: return "ax"
    case .rAX: return general(0, v, i)
    case .eAX: return general(0, min(v, 4), i)
    case .CL: return "cl"
    case .DX: return "dx"
    case .rDX: return general(2, v, i)
    case .one: return "1"
    case .Sw: return Self.segments[Int(i.reg % 6)]
    case .Cy: return "cr\(i.reg)"
    case .Dy: return "dr\(i.reg)"
    case .ES: return "es"
    case .CS: return "cs"
    case .SS: return "ss"
    case .DS: return "ds"
    case .FS: return "fs"
    case .GS: return "gs"
    case .Vx: return vector(i.reg, i.vexL)
    case .Vo, .Vq, .Vd: return vector(i.reg, false)
    case .Wx: return i.isMemory ? memory(i, address, i.vexL ? 32 : 16) : vector(i.rm, i.vexL)
    case .Wo: return i.isMemory ? memory(i, address, 16) : vector(i.rm, false)
    case .Wq: return i.isMemory ? memory(i, address, 8) : vector(i.rm, false)
    case .Wd: return i.isMemory ? memory(i, address, 4) : vector(i.rm, false)
    case .Ww: return i.isMemory ? memory(i, address, 2) : vector(i.rm, false)
    case .Wb: return i.isMemory ? memory(i, address, 1) : vector(i.rm, false)
    case .Wh: return i.isMemory ? memory(i, address, i.vexL ? 16 : 8) : vector(i.rm, false)
    case .Wf: return i.isMemory ? memory(i, address, i.vexL ? 8 : 4) : vector(i.rm, false)
    case .We: return i.isMemory ? memory(i, address, i.vexL ? 4 : 2) : vector(i.rm, false)
    case .Hx: return vector(i.vvvv, i.vexL)
    case .Ho: return vector(i.vvvv, false)
    case .Lx: return vector(UInt8(truncatingIfNeeded: i.immediate >> 4) & 15, i.vexL)
    case .Ux: return vector(i.rm, i.vexL)
    case .Uo: return vector(i.rm, false)
    case .Pq: return "mm\(i.reg)"
    case .Qq: return i.isMemory ? memory(i, address, 8) : "mm\(i.rm)"
    case .Qd: return i.isMemory ? memory(i, address, 4) : "mm\(i.rm)"
    case .Nq: return "mm\(i.rm)"
    case .ST0: return "st"
    case .STi: return "st(\(i.rm))"
    }
  }

  private static let segments = ["es", "cs", "ss", "ds", "fs", "gs"]
  private static let names = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]

  private func general(_ number: UInt8, _ size: UInt8, _ i: Instruction) -> String {
    if number >= 8 { return "r\(number)" + (size == 8 ? "" : size == 1 ? "b" : Self.letter(size)) }
    if size == 1 {
      if i.isHighByte(number) { return ["ah", "ch", "dh", "bh"][Int(number) - 4] }
      return number < 4 ? ["al", "cl", "dl", "bl"][Int(number)] : Self.names[Int(number)] + "l"
    }
    return (size == 2 ? "" : size == 4 ? "e" : "r") + Self.names[Int(number)]
  }

  private func vector(_ number: UInt8, _ isWide: Bool) -> String { (isWide ? "ymm" : "xmm") + "\(number)" }

  private func segmentText(_ i: Instruction) -> String {
    i.segmentPrefix == 0xFF ? "" : Self.segments[Int(i.segment)] + ":"
  }

  private func memory(_ i: Instruction, _ address: UInt64?, _ size: UInt8) -> String {
    let width =
      switch size {
      case 1: "byte "
      case 2: "word "
      case 4: "dword "
      case 8: "qword "
      case 10: "tbyte "
      case 16: "xmmword "
      case 32: "ymmword "
      default: ""
      }
    var text = width + segmentText(i) + "["
    if i.isRIPRelative {
      if let address {
        return text + hex(address &+ UInt64(i.length) &+ UInt64(bitPattern: Int64(i.displacement))) + "]"
      }
      return text + "rip" + (i.displacement < 0 ? "" : "+") + signed(Int64(i.displacement)) + "]"
    }
    if i.base != 0xFF { text += general(i.base, i.addressSize, i) }
    if i.index != 0xFF {
      if i.base != 0xFF { text += "+" }
      let row = table[i.row]
      text += row.rule == .gather ? vector(i.index, i.vexL) : general(i.index, i.addressSize, i)
      if i.scale != 0 || i.base == 0xFF { text += "*\(1 << i.scale)" }
    }
    if i.base == 0xFF && i.index == 0xFF {
      let value = UInt64(bitPattern: Int64(i.displacement))
      text += hex(i.addressSize == 2 ? value & 0xFFFF : i.addressSize == 4 ? value & 0xFFFF_FFFF : value)
    } else if i.displacement != 0 {
      text += (i.displacement < 0 ? "" : "+") + signed(Int64(i.displacement))
    }
    return text + "]"
  }

  private func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  private func signed(_ value: Int64) -> String { value < 0 ? "-" + hex(value.magnitude) : hex(UInt64(value)) }
}
