// SPDX-License-Identifier: Apache-2.0
// Instructions of level 1 that trap and that lguest's host answers: VMCALL of guests that make KVM's hypercalls, and what
// kernels execute though only level 0 may.

import Engine
import X86

extension LguestHost {
  /// INT 1Fh and NOP, which have VMCALL's three bytes.
  private static var replacement: [UInt8] { [0xCD, LguestCall.vector, 0x90] }

  /// #UD of level 1: VMCALL, of guests that make KVM's hypercalls, is replaced by what this interface has, and executed
  /// again, or performed (Matias Zabaljauregui, "lguest: use KVM hypercalls", 2009); nil: it is no VMCALL, or #UD it is.
  mutating func takeHypercallInstruction(_ engine: some CPUEngine) -> LguestEffect? {
    let place = engine.linearInstructionPointer
    let code = engine.read(linear: place, count: HypercallOpcode.byteCount, as: .code)
    guard HypercallOpcode(code: code) == .vmcall else { return nil }
    switch hypercallPolicy {
    case .fault, .native: return nil
    case .patch:
      // The kernel may have made its own code read-only by now.
      if engine.write(linear: place, LguestHost.replacement, as: .debugger) == nil {
        engine.refetchCode()
        instructionCounts.rewritten &+= 1
        return LguestEffect.none
      }
      fallthrough
    case .emulate:
      instructionCounts.emulated &+= 1
      engine.skip(byteCount: HypercallOpcode.byteCount)
      return performHypercall(engine)
    }
  }

  /// VMCALL that the processor has executed. RIP is past it.
  public mutating func takeNativeHypercall(_ engine: some CPUEngine) -> LguestEffect {
    if engine.currentPrivilegeLevel == 1 { return performHypercall(engine) }
    var state = engine.state
    state.rip = (state.rip &- UInt64(HypercallOpcode.byteCount)) & 0xFFFF_FFFF
    engine.state = state
    return forward(Trap(vector: Vector.invalidOpcode, kind: .exception), engine)
  }

  /// Instructions that level 1 may not execute and that kernels do: CLI, whose work is done elsewhere; a read of CR4,
  /// which is 0; debug registers, without which a single step of a program's would end the kernel; ports, where nothing
  /// is; and model-specific registers, which are 0, before there is a handler that could say so: Linux 2.6.27 looks at one of
  /// an Intel processor's of family 6 before it has any.
  func emulate(_ engine: some CPUEngine) -> Bool {
    let code = engine.read(linear: engine.linearInstructionPointer, count: 8, as: .code)
    guard let first = code.first else { return false }
    if first == 0xFA {
      engine.skip(byteCount: 1)
      return true
    }
    if code.count >= 3, first == 0x0F, code[1] == 0x20, code[2] & 0x38 == 0x20 {
      engine[register: code[2] & 7] = 0
      engine.skip(byteCount: 3)
      return true
    }
    if code.count >= 3, first == 0x0F, code[1] == 0x21 || code[1] == 0x23 {
      moveDebugRegister(code[2] >> 3 & 7, general: code[2] & 7, isLoad: code[1] == 0x21, engine)
      engine.skip(byteCount: 3)
      return true
    }
    if code.count >= 2, first == 0x0F, code[1] == 0x30 || code[1] == 0x32, tables.gate(Vector.generalProtection) == nil
    {
      if code[1] == 0x32 { (engine[register: GPR.rax], engine[register: GPR.rdx]) = (0, 0) }
      engine.skip(byteCount: 2)
      return true
    }
    let prefix = first == 0x66 ? 1 : 0
    guard code.count > prefix else { return false }
    let opcode = code[prefix]
    guard [0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF].contains(opcode) else { return false }
    // The port is DX, or a byte behind the opcode, which may lie in a page that is not there.
    guard opcode & 8 != 0 || code.count > prefix + 1 else { return false }
    let size = opcode & 1 == 0 ? 1 : prefix == 1 ? 2 : 4
    let port =
      opcode & 8 == 0
      ? UInt16(code[prefix + 1]) : UInt16(truncatingIfNeeded: engine[register: GPR.rdx])
    // Of other bits of RAX nothing changes, but those of the upper half.
    let mask: UInt64 = size == 4 ? 0xFFFF_FFFF : (1 << UInt64(size * 8)) - 1
    let rax = engine[register: GPR.rax]
    if opcode & 2 == 0 {
      let value = hasPorts ? (port == 0x64 ? 1 : services.readPort(port, size)) : nil
      engine[register: GPR.rax] = rax & ~mask & 0xFFFF_FFFF | UInt64(value ?? .max) & mask
    } else if hasPorts {
      services.writePort(port, size, UInt32(truncatingIfNeeded: rax & mask))
    }
    engine.skip(byteCount: prefix + (opcode & 8 == 0 ? 2 : 1))
    return true
  }

  /// MOV to and from debug registers; 4 and 5 are 6 and 7 (SDM volume 3, 17.2.2). They are the processor's own, but for
  /// general detection, which would be of no use to a guest whose accesses all come here.
  private func moveDebugRegister(_ number: UInt8, general: UInt8, isLoad: Bool, _ engine: some CPUEngine) {
    var state = engine.state
    let value = engine[register: general] & 0xFFFF_FFFF
    let paths: [WritableKeyPath<CPUState, UInt64>] = [\.dr0, \.dr1, \.dr2, \.dr3, \.dr6, \.dr7, \.dr6, \.dr7]
    let path = paths[Int(number & 7)]
    if isLoad {
      engine[register: general] = state[keyPath: path] & 0xFFFF_FFFF
      return
    }
    switch path {
    case \.dr6: state.dr6 = value & 0xE00F | 0xFFFF_0FF0
    case \.dr7: state.dr7 = value & 0xFFFF_03FF | 0x400
    default: state[keyPath: path] = value
    }
    engine.state = state
  }

  /// Whether the guest knows devices by ports.
  private var hasPorts: Bool { era == .linux4_0 }
}
