// SPDX-License-Identifier: Apache-2.0
// The checker itself: what it must refuse. That it accepts what the translator emits, the other tests show.

import CHost
import Testing
import X86

@testable import Translator

@Suite struct CheckerTests {
  private static let exit = 0x1000
  private static let start = 0x10000
  private let checker = BlockChecker()

  /// Hot code of level 0 at 0x10000 that ends with a jump to the exit, checked.
  private func check(_ bytes: [UInt8]) -> CheckProblem? {
    var code = [UInt8](repeating: 0xCC, count: CheckerTests.start)
    // An exit needs a reason.
    code += bytes + CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    let distance = UInt32(truncatingIfNeeded: CheckerTests.exit - code.count - 5)
    code += [0xE9] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> UInt32($0 * 8)) }
    let end = code.count
    code += [UInt8](repeating: 0xCC, count: 24)
    var stubs = CheckedStubs()
    stubs.exit = CheckerTests.exit
    stubs.tlbMiss = 0x1010
    stubs.jumpMiss = 0x1020
    stubs.branchMiss = 0x1028
    stubs.callMiss = 0x1030
    return unsafe code.withUnsafeBytes { bytes in
      let block = unsafe CheckedBlock(
        text: CheckedText(bytes.baseAddress!), hot: CheckerTests.start..<end, cold: 0x20000..<0x20000,
        mode: UInt32(CHOST_MODE_LONG), stubs: stubs)
      return checker.check(block).problem
    }
  }

  @Test("registers and the vCPU page are allowed") func allowed() {
    #expect(check([0x48, 0x01, 0xD8]) == nil)
    #expect(check([0x49, 0x8B, 0x43, 0x10]) == nil)  // MOV RAX,[R11+16]
  }

  @Test(
    "what reaches memory or the kernel is refused",
    arguments: [
      [0x48, 0x8B, 0x03],  // MOV RAX,[RBX]
      [0x4A, 0x8B, 0x04, 0x33],  // MOV RAX,[RBX+R14]
      [0x48, 0x8B, 0x05, 0, 0, 0, 0],  // MOV RAX,[RIP]
      [0x64, 0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0],  // MOV RAX,FS:[0]
      [0x49, 0x8B, 0x83, 0, 0, 0, 0x7F],  // MOV RAX,[R11+0x7F000000]
      [0x4B, 0x8B, 0x04, 0x33],  // MOV RAX,[R11+R14]
      [0x0F, 0x05], [0xCD, 0x80], [0x0F, 0x34], [0xCC], [0xF4], [0xFA], [0x0F, 0x01, 0xC1],
      [0xA4], [0xF3, 0xAA], [0xD7], [0xC9], [0x8F, 0x00], [0xFF, 0x33], [0xFF, 0xE0], [0xFF, 0xD0],
      [0xEB, 0x70], [0xE9, 0, 0, 1, 0], [0x74, 0x70], [0xE8, 0, 0, 1, 0],
      [0x4C, 0x89, 0xDB, 0x4D, 0x31, 0xDB],  // XOR R11,R11
      [0x48, 0x89, 0xDC],  // MOV RSP,RBX
      [0xF3, 0x48, 0x0F, 0xAE, 0xD0],  // WRFSBASE RAX
      [0x9D],
      [0x66, 0xEB, 0], [0x66, 0x75, 0], [0x66, 0xE2, 0], [0x66, 0x0F, 0x85, 0, 0, 0, 0],  // to the next instruction
    ] as [[UInt8]])
  func refused(_ bytes: [UInt8]) {
    #expect(check(bytes) != nil)
  }

  /// LEA R15,[RBX+16] and a check of 8 bytes for reading (without a cold half: JA to the exit).
  private var proof: [UInt8] {
    var code = CheckerTests.emit { code in
      code.lea(RegisterMap.t0, HostMemory(3, 16))
      code.mov32(RegisterMap.t1, RegisterMap.t0)
      code.shiftRight32(RegisterMap.t1, 8)
      code.alu(.and, RegisterMap.t1, immediate: (Int32(CHOST_TLB_ENTRIES) &- 1) &<< 4, w: false)
      code.alu(.sub, RegisterMap.t0, HostMemory(RegisterMap.env, index: RegisterMap.t1, Int32(CHOST_TLB_READ)))
      code.alu(.cmp, RegisterMap.t0, immediate: 4096 - 8)
    }
    let end = 0x10000 + code.count + 6
    let distance = UInt32(truncatingIfNeeded: 0x1020 &- end)
    code += [0x0F, 0x87] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> UInt32($0 * 8)) }
    return code
      + CheckerTests.emit {
        $0.load(RegisterMap.t1, HostMemory(RegisterMap.env, index: RegisterMap.t1, Int32(CHOST_TLB_READ) + 8))
      }
  }

  private static func emit(_ body: (inout CodeEmitter) -> Void) -> [UInt8] {
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 16)
    defer { unsafe memory.deallocate() }
    var code = unsafe CodeEmitter(writable: memory, executable: 0x10000, capacity: 256)
    body(&code)
    return unsafe [UInt8](UnsafeRawBufferPointer(start: memory, count: code.count))
  }

  private func load(_ memory: HostMemory) -> [UInt8] { CheckerTests.emit { $0.load(0, memory) } }
  private func store(_ memory: HostMemory) -> [UInt8] { CheckerTests.emit { $0.store(memory, 0) } }

  @Test("a checked access is allowed as it was checked, and not otherwise") func checkedAccess() {
    let t1 = RegisterMap.t1
    #expect(check(proof + load(HostMemory(3, index: t1, 16))) == nil)
    #expect(check(proof + load(HostMemory(3, index: t1, 17))) != nil)
    #expect(check(proof + load(HostMemory(3, index: t1, 8))) != nil)
    #expect(check(proof + load(HostMemory(1, index: t1, 16))) != nil)
    #expect(check(proof + load(HostMemory(3, index: t1, scale: 1, 16))) != nil)
    #expect(check(proof + store(HostMemory(3, index: t1, 16))) != nil)
    // RBX changes in between.
    #expect(check(proof + [0x48, 0xFF, 0xC3] + load(HostMemory(3, index: t1, 16))) != nil)
    // Without the jump the comparison proves nothing.
    #expect(check(Array(proof.dropLast(8 + 6)) + load(HostMemory(3, index: t1, 16))) != nil)
  }

  /// A check of [RBX + 16] through the slot at a displacement from ENV; JA or JAE to the exit.
  private func slotProof(_ slot: Int32, bound: Bool) -> [UInt8] {
    var code = CheckerTests.emit { code in
      code.lea(RegisterMap.t0, HostMemory(3, 16))
      code.alu(.sub, RegisterMap.t0, .env(slot))
      if bound {
        code.alu(.cmp, RegisterMap.t0, .env(slot + 16))
      } else {
        code.alu(.cmp, RegisterMap.t0, immediate: 4096 - 8)
      }
    }
    let distance = UInt32(truncatingIfNeeded: 0x1020 &- (0x10000 + code.count + 6))
    code += [0x0F, bound ? 0x83 : 0x87] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> UInt32($0 * 8)) }
    return code + CheckerTests.emit { $0.load(RegisterMap.t1, .env(slot + 8)) }
  }

  @Test("slots allow what their kind allows") func slots() {
    let t1 = RegisterMap.t1
    let stack = slotProof(Slot.stack, bound: false)
    #expect(check(stack + load(HostMemory(3, index: t1, 16))) == nil)
    #expect(check(stack + store(HostMemory(3, index: t1, 16))) == nil)
    #expect(check(stack + load(HostMemory(3, index: t1, 17))) != nil)
    // Sites of the class of 8 bytes, for reading and for writing.
    let reads = slotProof(Int32(CHOST_SLOTS), bound: true)
    #expect(check(reads + load(HostMemory(3, index: t1, 16))) == nil)
    #expect(check(reads + load(HostMemory(3, index: t1, 20))) != nil)
    #expect(check(reads + store(HostMemory(3, index: t1, 16))) != nil)
    let writes = slotProof(Int32(CHOST_SLOTS) + Int32(CHOST_SITES) * Int32(CHOST_SLOT_SIZE), bound: true)
    #expect(check(writes + store(HostMemory(3, index: t1, 16))) == nil)
    // A site's bound is not a constant, and neither is a region a site.
    #expect(check(slotProof(Int32(CHOST_SLOTS), bound: false) + load(HostMemory(3, index: t1, 16))) != nil)
    let region = Int32(CHOST_SLOTS) + 2 * Int32(CHOST_SITES) * Int32(CHOST_SLOT_SIZE)
    #expect(check(slotProof(region, bound: true) + load(HostMemory(3, index: t1, 16))) != nil)
  }

  @Test("a state image is saved only when the pointers have just been cleared") func images() {
    // LEA R15,[RBX+16] and a check of 512 bytes for writing.
    let proof = CheckerTests.emit { code in
      code.lea(RegisterMap.t0, HostMemory(3, 16))
      code.mov(RegisterMap.t1, immediate: UInt64(CHOST_EXIT_MEMORY) << 24 | 255 << 16 | UInt64(CHOST_INFO_WRITE))
    }
    let distance = UInt32(truncatingIfNeeded: 0x1010 - (0x10000 + proof.count + 5))
    let call = [0xE8] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> UInt32($0 * 8)) }
    let lea: [UInt8] = [0x4F, 0x8D, 0x3C, 0x37]  // LEA R15,[R15+R14]
    let fxsave: [UInt8] = [0x41, 0x0F, 0xAE, 0x07]
    func environment(_ digit: UInt8) -> [UInt8] {
      CheckerTests.emit { code in
        let memory = HostMemory.env(Slot.x87Environment)
        code.rex(w: false, reg: 0, memory: memory)
        code.byte(0xD9)
        code.modRM(reg: digit, memory: memory)
      }
    }
    func zero(_ offset: Int32) -> [UInt8] {
      CheckerTests.emit { $0.storeImmediate32(.env(Slot.x87Environment + offset), 0) }
    }
    let clearing = environment(6) + zero(12) + zero(20) + environment(4)
    let start = proof + call + lea
    #expect(check(start + clearing + fxsave) == nil)
    #expect(check(start + fxsave) == .pointers)
    #expect(check(start + clearing + [0x90] + fxsave) == .pointers)
    #expect(check(start + clearing + [0xD9, 0xE8] + fxsave) == .pointers)  // FLD1
    #expect(check(start + environment(6) + zero(12) + environment(4) + fxsave) != nil)
    #expect(check(start + environment(6) + zero(20) + zero(12) + environment(4) + fxsave) != nil)
    #expect(check(start + environment(4) + fxsave) == .instruction)
  }

  @Test(
    "no address of the host's reaches the guest's registers",
    arguments: [
      [0x4C, 0x89, 0xF0],  // MOV RAX,R14
      [0x4D, 0x89, 0x73, 0xC8],  // MOV [R11-56],R14
      [0x4C, 0x01, 0xF0],  // ADD RAX,R14
      [0x4C, 0x87, 0xF0],  // XCHG RAX,R14
      [0x49, 0x8D, 0x46, 0x10],  // LEA RAX,[R14+16]
      [0x45, 0x0F, 0xB7, 0xF6, 0x4C, 0x89, 0xF0],  // MOVZX R14D,R14W; MOV RAX,R14
      [0x41, 0x80, 0xC6, 1, 0x4C, 0x89, 0xF0],  // ADD R14B,1; MOV RAX,R14
      [0x49, 0x8B, 0x83, 0x70, 3, 0, 0],  // MOV RAX,[R11+880], of a group
      [0x41, 0x8B, 0x43, 0x28],  // MOV EAX,[R11+40], of scratch
    ] as [[UInt8]])
  func secrets(_ bytes: [UInt8]) {
    #expect(check(bytes) == .secret)
    #expect(check([0x41, 0xBE, 1, 0, 0, 0, 0x4C, 0x89, 0xF0]) == nil)  // MOV R14D,1; MOV RAX,R14
    #expect(check(proof + [0x4C, 0x89, 0xF0]) == .secret)
  }

  @Test("blocks do not write slots") func tables() {
    #expect(check(store(.env(Slot.stack + 8))) != nil)
    #expect(check(store(.env(Int32(CHOST_SLOTS) + 16))) != nil)
    #expect(check(store(.env(Int32(CHOST_TLB_READ)))) != nil)
    #expect(check(store(.env(Slot.groups))) == nil)
  }

  /// A cold half at 0x10080 with an edge that is not linked yet: two NOPs; MOV T1D, 0xB8000000; JMP over a byte to the
  /// stub. From the last byte of the MOV on it is MOV EAX; ADD AL, AL; the stub, as long as nobody links the edge.
  @Test("nothing goes where an edge will be patched", arguments: [0, 7]) func edges(entry: Int) {
    let hot = CheckerTests.start, cold = hot + 0x80
    func relative(_ target: Int, from end: Int) -> [UInt8] {
      (0..<4).map { UInt8(truncatingIfNeeded: (target - end) >> ($0 * 8)) }
    }
    var code = [UInt8](repeating: 0xCC, count: hot)
    code += [0x0F, 0x85] + relative(cold + entry, from: hot + 6)
    code += [0x0F, 0x84] + relative(cold, from: hot + 12)
    let exit = CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    code += exit
    code += [0xE9] + relative(CheckerTests.exit, from: code.count + 5)
    let end = code.count
    code += [UInt8](repeating: 0xCC, count: cold - end)
    code += [0x90, 0x90, 0x41, 0xBE, 0, 0, 0, 0xB8, 0xE9, 1, 0, 0, 0, 0xC0]
    let stub = code.count
    code += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitData), 7) }
    let reason = UInt32(CHOST_EXIT_LINK) << UInt32(CHOST_INFO_REASON_SHIFT)
    code += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), reason) }
    code += [0xE9] + relative(CheckerTests.exit, from: code.count + 5)
    let last = code.count
    code += [UInt8](repeating: 0xCC, count: 24)
    var stubs = CheckedStubs()
    stubs.exit = CheckerTests.exit
    let edge = Edge(end: UInt32(stub - 1), stub: UInt32(stub))
    for checker in [checker, BlockChecker(isStepwise: true)] {
      let problem = unsafe code.withUnsafeBytes { bytes in
        unsafe withUnsafePointer(to: edge) { edge in
          var block = unsafe CheckedBlock(
            text: CheckedText(bytes.baseAddress!), hot: hot..<end, cold: cold..<last, mode: UInt32(CHOST_MODE_LONG),
            stubs: stubs)
          unsafe block.edges = edge
          block.firstEdge = 7
          block.edgeCount = 1
          return checker.check(block).problem
        }
      }
      #expect(problem == (entry == 0 ? nil : .middle))
    }
  }
}
