// SPDX-License-Identifier: Apache-2.0
// The checker itself: what it must refuse. That it accepts what the translator emits, the other tests show.

import CHost
import TestSupport
import Testing
import X86

@testable import Translator

@Suite struct CheckerTests {
  private static let exit = 0x1000
  private static let start = 0x10000
  private let checker = BlockChecker()

  /// Hot code of level 0, or of another mode, at 0x10000 that ends with a jump to the exit, checked.
  private func check(_ bytes: [UInt8], mode: UInt32 = UInt32(CHOST_MODE_LONG)) -> CheckProblem? {
    var code = [UInt8](repeating: 0xCC, count: CheckerTests.start)
    // An exit needs a reason.
    code += bytes + CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    code += [0xE9] + relative(CheckerTests.exit, from: code.count + 5)
    let end = code.count
    code += [UInt8](repeating: 0xCC, count: 24)
    var stubs = CheckedStubs()
    stubs.exit = CheckerTests.exit
    stubs.tlbMiss = 0x1010
    stubs.slotMiss = 0x1018
    stubs.jumpMiss = 0x1020
    stubs.branchMiss = 0x1028
    stubs.callMiss = 0x1030
    stubs.light = 0x1038
    return unsafe code.withUnsafeBytes { bytes in
      let block = unsafe CheckedBlock(
        text: CheckedText(bytes.baseAddress!), hot: CheckerTests.start..<end, cold: 0x20000..<0x20000,
        mode: mode, stubs: stubs)
      return checker.check(block).problem
    }
  }

  @Test("what is the kernel's of level 0 is no other level's", arguments: UInt32(0)...3) func levels(level: UInt32) {
    let mode = UInt32(CHOST_MODE_LONG) | level
    func change(_ operation: ALU, _ bits: Int32) -> CheckProblem? {
      check(CheckerTests.emit { $0.alu32(operation, .env(Slot.systemFlags), immediate: bits) }, mode: mode)
    }
    let refusal: CheckProblem? = level == 0 ? nil : .place
    #expect(change(.or, 0x200) == refusal && change(.and, ~0x200) == refusal)
    #expect(change(.or, 0x4_0000) == refusal && change(.and, ~0x4_0000) == refusal)
    #expect(change(.or, 0x400) == nil && change(.and, ~0x400) == nil)
    #expect(change(.or, 0x3000) == .place && change(.or, 0x2_0000) == .place)
    for place in [Slot.kernelGSBase, Slot.cr2, Slot.cr3] {
      for part in [Int32(0), 4] {
        #expect(check(CheckerTests.emit { $0.load32(0, .env(place + part)) }, mode: mode) == refusal)
      }
      #expect(check(load(.env(place)), mode: mode) == refusal)
      #expect(check(store(.env(place)), mode: mode) == (place == Slot.kernelGSBase ? refusal : .place))
    }
    #expect(check(load(.env(BlockBuilder.segmentBase(5))), mode: mode) == nil)
  }

  @Test("light helpers by level", arguments: UInt32(0)...3, [false, true]) func lightLevels(level: UInt32, isLong: Bool)
  {
    let mode = isLong ? UInt32(CHOST_MODE_LONG | CHOST_MODE_LMA) : UInt32(CHOST_MODE_CODE32 | CHOST_MODE_STACK32)
    for number in 0...Int(CHOST_LIGHT_HYPERCALL) + 1 {
      let code = CheckerTests.emit { code in
        code.mov(RegisterMap.t0, immediate: UInt64(number))
        code.mov(RegisterMap.t1, immediate: UInt64(CHOST_EXIT_INSTRUCTION) << UInt64(CHOST_INFO_REASON_SHIFT))
      }
      let isEverybodys = [
        CHOST_LIGHT_SYSCALL, CHOST_LIGHT_POPF, CHOST_LIGHT_SYSENTER, CHOST_LIGHT_INT, CHOST_LIGHT_SEGMENT,
      ].contains { Int($0) == number }
      let isRight =
        number <= Int(CHOST_LIGHT_HYPERCALL)
        && (level == 0 || isEverybodys || number == Int(CHOST_LIGHT_IRET) && level == 1 && !isLong)
      #expect((check(branch([0xE8], 0x1038, behind: code), mode: mode | level) == nil) == isRight, "\(number)")
    }
  }

  @Test("registers and the vCPU page are allowed") func allowed() {
    for piece in GuestProgram.list("allowed") { #expect(check(piece) == nil, "\(piece)") }
  }

  @Test("what reaches memory or the kernel is refused", arguments: GuestProgram.list("refused"))
  func refused(_ bytes: [UInt8]) {
    #expect(check(bytes) != nil)
  }

  /// LEA R15,[RBX+16] and a check of 8 bytes for reading (without a cold half: JA to the exit).
  private var proof: [UInt8] { proof(behind: []) }

  private func proof(behind prefix: [UInt8]) -> [UInt8] {
    let code =
      prefix
      + CheckerTests.emit { code in
        code.lea(RegisterMap.t0, HostMemory(3, 16))
        code.mov32(RegisterMap.t1, RegisterMap.t0)
        code.shiftRight32(RegisterMap.t1, 8)
        code.alu(.and, RegisterMap.t1, immediate: (Int32(CHOST_TLB_ENTRIES) &- 1) &<< 4, w: false)
        code.alu(.sub, RegisterMap.t0, HostMemory(RegisterMap.env, index: RegisterMap.t1, Int32(CHOST_TLB_READ)))
        code.alu(.cmp, RegisterMap.t0, immediate: 4096 - 8)
      }
    return branch([0x0F, 0x87], 0x1020, behind: code)
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

  @Test("a constant that leaves 64 bits with a displacement is an address like others") func farConstant() {
    for constant in GuestProgram.list("far_constant") {
      #expect(check(proof(behind: constant) + load(HostMemory(3, index: RegisterMap.t1, 16))) == nil)
      #expect(check(proof(behind: constant) + load(HostMemory(3, index: RegisterMap.t1, 24))) != nil)
    }
  }

  /// A check of [RBX + 16] through the slot at a displacement from ENV; JA or JAE to the exit.
  private func slotProof(_ slot: Int32, bound: Bool) -> [UInt8] {
    let code = CheckerTests.emit { code in
      code.lea(RegisterMap.t0, HostMemory(3, 16))
      code.alu(.sub, RegisterMap.t0, .env(slot))
      if bound {
        code.alu(.cmp, RegisterMap.t0, .env(slot + 16))
      } else {
        code.alu(.cmp, RegisterMap.t0, immediate: 4096 - 8)
      }
    }
    return branch([0x0F, bound ? 0x83 : 0x87], 0x1020, behind: code)
      + CheckerTests.emit { $0.load(RegisterMap.t1, .env(slot + 8)) }
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
    let call = [0xE8] + relative(0x1010, from: CheckerTests.start + proof.count + 5)
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

  @Test("no address of the host's reaches the guest's registers", arguments: GuestProgram.list("secret"))
  func secrets(_ bytes: [UInt8]) {
    #expect(check(bytes) == .secret)
    for piece in GuestProgram.list("no_secret") { #expect(check(piece) == nil, "\(piece)") }
    #expect(check(proof + GuestProgram.list("secret")[0]) == .secret)
  }

  @Test("blocks do not write slots") func tables() {
    #expect(check(store(.env(Slot.stack + 8))) != nil)
    #expect(check(store(.env(Int32(CHOST_SLOTS) + 16))) != nil)
    #expect(check(store(.env(Int32(CHOST_TLB_READ)))) != nil)
    #expect(check(store(.env(Slot.groups))) == nil)
  }

  private func relative(_ target: Int, from end: Int) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: (target - end) >> ($0 * 8)) }
  }

  /// Hot code at 0x10000 and cold code at 0x10080 that ends with the stub of the block's one edge, checked by forms and
  /// instruction by instruction. `edge`: offsets of its end, from `hot`, and of its stub, from `cold`.
  private func check(
    hot: [UInt8], cold: [UInt8], edge: (end: Int, stub: Int), kind: EdgeKind = .forward, target: UInt16 = 0
  ) -> Set<CheckProblem?> {
    let start = CheckerTests.start, middle = start + 0x80
    var code = [UInt8](repeating: 0xCC, count: start) + hot
    code += [UInt8](repeating: 0xCC, count: middle - code.count) + cold
    code += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitData), 7) }
    let reason = UInt32(CHOST_EXIT_LINK) << UInt32(CHOST_INFO_REASON_SHIFT)
    code += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), reason) }
    code += [0xE9] + relative(CheckerTests.exit, from: code.count + 5)
    let last = code.count
    code += [UInt8](repeating: 0xCC, count: 24)
    var stubs = CheckedStubs()
    stubs.exit = CheckerTests.exit
    stubs.jumpMiss = 0x1020
    let edge = Edge(end: UInt32(start + edge.end), stub: UInt32(middle + edge.stub), targetOffset: target, kind: kind)
    var problems: Set<CheckProblem?> = []
    for checker in [checker, BlockChecker(isStepwise: true)] {
      let problem = unsafe code.withUnsafeBytes { bytes in
        unsafe withUnsafePointer(to: edge) { edge in
          var block = unsafe CheckedBlock(
            text: CheckedText(bytes.baseAddress!), hot: start..<start + hot.count, cold: middle..<last,
            mode: UInt32(CHOST_MODE_LONG), stubs: stubs)
          unsafe block.edges = edge
          block.firstEdge = 7
          block.edgeCount = 1
          return checker.check(block).problem
        }
      }
      problems.insert(problem)
    }
    return problems
  }

  /// A cold half with an edge that is not linked yet: two NOPs; MOV T1D, 0xB8000000; JMP over a byte to the stub. From the
  /// last byte of the MOV on it is MOV EAX; ADD AL, AL; the stub, as long as nobody links the edge.
  @Test("nothing goes where an edge will be patched", arguments: [0, 7]) func edges(entry: Int) {
    // JNE to one of them, JE to the other, and an exit.
    var hot = [0x0F, 0x85] + relative(0x80 + entry, from: 6) + [0x0F, 0x84] + relative(0x80, from: 12)
    hot += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    hot += [0xE9] + relative(CheckerTests.exit, from: CheckerTests.start + hot.count + 5)
    let cold: [UInt8] = [0x90, 0x90, 0x41, 0xBE, 0, 0, 0, 0xB8, 0xE9, 1, 0, 0, 0, 0xC0]
    #expect(check(hot: hot, cold: cold, edge: (0x80 + 13, 14)) == [entry == 0 ? nil : .middle])
  }

  @Test(
    "what is read without being named, written in part, or told by flags is no way out for a secret",
    arguments: GuestProgram.list("hidden_secret"))
  func hiddenSecrets(_ bytes: [UInt8]) {
    #expect(check(bytes) != nil)
  }

  /// Jcc or CALL from the end of `code` at 0x10000.
  private func branch(_ opcode: [UInt8], _ target: Int, behind code: [UInt8]) -> [UInt8] {
    code + opcode + relative(target, from: CheckerTests.start + code.count + opcode.count + 4)
  }

  @Test("XCHG of RAX and R8 is no NOP", arguments: GuestProgram.list("exchange"))
  func exchange(_ bytes: [UInt8]) {
    // LEA R15,[RAX+16] and what follows it in `proof`.
    let proof = CheckerTests.emit { $0.lea(RegisterMap.t0, HostMemory(0, 16)) } + proof.dropFirst(4)
    let load = CheckerTests.emit { $0.load(3, HostMemory(0, index: RegisterMap.t1, 16)) }
    #expect(check(proof + load) == nil)
    #expect(check(bytes) == nil)
    #expect(check(proof + bytes + load) == .unchecked)
  }

  @Test("a tag is added back with its index") func tagIndex() {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1, table = Int32(CHOST_TLB_READ)
    let load = CheckerTests.emit { $0.load(0, HostMemory(t0, index: t1, 0)) }
    #expect(check(proof + CheckerTests.emit { $0.alu(.add, t0, .env(table)) } + load) == .place)
  }

  @Test("a miss fills what was compared before, and is the reason of an exit") func missed() {
    let t0 = RegisterMap.t0, t1 = RegisterMap.t1, t2 = RegisterMap.t2
    let request = UInt64(CHOST_EXIT_MEMORY) << 24 | 8 << 16
    func displacement(_ slot: Int32) -> UInt64 {
      UInt64(UInt32(bitPattern: slot) & 0xF_FFFF) << UInt64(CHOST_REQUEST_SLOT_SHIFT)
    }
    /// The distance of RBX + 16 from the stack's slot or site 0, a miss of RCX there, and the comparison.
    func stale(_ slot: Int32, isMissed: Bool) -> CheckProblem? {
      var code = CheckerTests.emit { code in
        code.lea(t0, HostMemory(3, 16))
        code.mov(t2, t0)
        code.alu(.sub, t2, .env(slot))
        code.lea(t0, HostMemory(1, 0))
        code.mov(t1, immediate: request | displacement(slot) | (slot == Slot.stack ? UInt64(CHOST_INFO_WRITE) : 0))
      }
      if isMissed { code = branch([0xE8], 0x1018, behind: code) }
      if slot == Slot.stack {
        code += CheckerTests.emit { $0.alu(.cmp, t2, immediate: 4096 - 8) }
        code = branch([0x0F, 0x87], 0x1020, behind: code)
      } else {
        code += CheckerTests.emit { $0.alu(.cmp, t2, .env(slot + 16)) }
        code = branch([0x0F, 0x83], 0x1020, behind: code)
      }
      return check(
        code
          + CheckerTests.emit {
            $0.load(t1, .env(slot + 8))
            $0.load(0, HostMemory(3, index: t1, 16))
          })
    }
    for slot in [Slot.stack, Int32(CHOST_SLOTS)] {
      #expect(stale(slot, isMissed: false) == nil)
      #expect(stale(slot, isMissed: true) != nil)
    }
    // MOV [exit info]; a miss; JMP exit.
    let code = CheckerTests.emit { code in
      code.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000)
      code.lea(t0, HostMemory(1, 0))
      code.mov(t1, immediate: request)
    }
    let missed = branch([0xE8], 0x1010, behind: code)
    #expect(check(branch([0xE9], CheckerTests.exit, behind: missed)) == .exit)
  }

  @Test("RET goes by what was compared, and nothing happens between PUSH and CALL") func frames() {
    // CMP R15,[RSP+8]; JNE jumpMiss.
    let compare = branch([0x0F, 0x85], 0x1020, behind: [0x4C, 0x3B, 0x7C, 0x24, 0x08])
    #expect(check(compare + [0xC3]) != .frame)
    #expect(check(compare + [0x49, 0x89, 0xC7, 0xC3]) == .frame)
    // An access behind PUSH RAX.
    let load = CheckerTests.emit { $0.load(0, HostMemory(3, index: RegisterMap.t1, 16)) }
    #expect(check(proof + [0x50] + load + [0x48, 0x8D, 0x64, 0x24, 0x08]) == .frame)
  }

  /// PUSH RAX; JMP edge, whose stub takes back what was pushed: what is linked there would not.
  @Test("no edge leaves with a word pushed", arguments: [false, true]) func pushedEdge(isPushed: Bool) {
    let hot = [0x0F, 0x1F, 0x40, 0, isPushed ? 0x50 : 0x90, 0x90, 0x90, 0xE9] + relative(0x80, from: 12)
    let pop: [UInt8] = isPushed ? [0x48, 0x8D, 0x64, 0x24, 0x08] : []  // LEA RSP,[RSP+8]
    #expect(check(hot: hot, cold: pop, edge: (12, 0)) == [isPushed ? .frame : nil])
  }

  /// SUB RCX, imm32 in the cold half, and from its third byte on JMP to the edge's stub: what is subtracted is another
  /// number once the edge is linked.
  @Test("the distance of an edge is no other instruction's constant", arguments: [false, true]) func edgeAsConstant(
    isEntered: Bool
  ) {
    var hot = [0x0F, 0x85] + relative(0x80 + (isEntered ? 0 : 2), from: 6) + [0x0F, 0x84] + relative(0x82, from: 12)
    hot += CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    hot += [0xE9] + relative(CheckerTests.exit, from: CheckerTests.start + hot.count + 5)
    let info = CheckerTests.emit { $0.storeImmediate32(.env(Slot.exitInfo), 0x0500_0000) }
    var cold: [UInt8] = [0x48, 0x81, 0xE9] + relative(info.count + 5, from: 0) + info
    cold += [0xE9] + relative(CheckerTests.exit, from: CheckerTests.start + 0x80 + cold.count + 5)
    #expect(check(hot: hot, cold: cold, edge: (0x80 + 7, cold.count)) == [isEntered ? .middle : nil])
  }

  /// A guest's call whose return address is 0x40 in its page, and behind it an edge to 0x80 there; in between the address
  /// of 0x80 is pushed and taken back.
  @Test("an edge behind a call goes where that call returns to", arguments: [false, true]) func edgeAfterCall(
    isPushed: Bool
  ) {
    func push(_ offset: Int32) -> [UInt8] {
      CheckerTests.emit { code in
        code.load(RegisterMap.t2, .env(Slot.pageAddress))
        code.lea(RegisterMap.t2, HostMemory(RegisterMap.t2, offset))
      } + [0x41, 0x55]
    }
    let pop: [UInt8] = [0x48, 0x8D, 0x64, 0x24, 0x08]
    for target: UInt16 in [0x40, 0x80] {
      var hot = branch([0xE8], 0x1020, behind: push(0x40)) + pop
      if isPushed { hot += push(0x80) + pop }
      while (hot.count + 1) & 7 > 4 { hot.append(0x90) }
      let end = hot.count + 5
      hot += [0xE9] + relative(0x80, from: end)
      let isRight = target == 0x40 && !isPushed
      #expect(check(hot: hot, cold: [], edge: (end, 0), kind: .afterCall, target: target) == [isRight ? nil : .edge])
    }
  }
}
