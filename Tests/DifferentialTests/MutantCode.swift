// SPDX-License-Identifier: Apache-2.0
// The emitted code of a block, decoded with the translator's decoder of guest instructions: what mutants are made from,
// and what the machine that judges them executes. It shares nothing with the checker but the opcode rows.

import X86

@testable import Translator

/// One host instruction.
struct HostStep {
  var place = 0
  var i = Instruction()
  var row: Opcode
  var traits: RowTraits
  var rule: Rule
  /// Bytes of the operand in memory.
  var size = 0
  /// Not as it was emitted, or not where an instruction began.
  var isChanged = false
  var next: Int { place + Int(i.length) }

  /// Of a relative branch.
  var target: Int { next &+ Int(truncatingIfNeeded: Int64(bitPattern: i.immediate)) }
  /// Bytes of an operand of operand size.
  var width: Int { Int(i.operandSize) }
}

/// A block's code as it was emitted, and a few bytes of it changed.
@safe final class MutantCode {
  let block: CheckedBlock
  let edges: [Edge]
  /// The privilege level of the guest's code.
  let level: UInt32
  var isUser: Bool { level == 3 }
  private let memory: UnsafeMutableRawPointer
  private let decoder: Decoder
  private static let table = OpcodeTable.shared
  private static let traits = (0..<OpcodeTable.shared.count).map { RowTraits(OpcodeTable.shared[UInt16($0)]) }
  /// The instructions, in order, and which begins at each byte of the hot and then of the cold half: -1 for none.
  private(set) var steps: [HostStep] = []
  private var starts: [Int32]
  private var changed = 0..<0
  private var saved: [UInt8] = []

  /// - Parameter memory: the code memory, written through while nobody executes it.
  init(_ block: CheckedBlock, memory: UnsafeMutableRawPointer, decoder: Decoder) {
    self.block = block
    unsafe self.memory = memory
    self.decoder = decoder
    level = block.mode & 3
    edges = (0..<block.edgeCount).map { unsafe block.edges![$0] }
    starts = Array(repeating: -1, count: block.hot.count + block.cold.count)
    for half in [block.hot, block.cold] {
      var place = half.lowerBound
      while place < half.upperBound, let step = decode(place) {
        starts[index(place)!] = Int32(steps.count)
        steps.append(step)
        place = step.next
      }
    }
  }

  /// Whether every byte belongs to an instruction.
  var isComplete: Bool { steps.reduce(0) { $0 + Int($1.i.length) } == starts.count }

  private func index(_ place: Int) -> Int? {
    if block.hot.contains(place) { return place - block.hot.lowerBound }
    return block.cold.contains(place) ? place - block.cold.lowerBound + block.hot.count : nil
  }

  func contains(_ place: Int) -> Bool { index(place) != nil }

  /// The number of the emitted instruction that begins at a place.
  func number(at place: Int) -> Int? {
    guard let index = index(place), starts[index] >= 0 else { return nil }
    return Int(starts[index])
  }

  private func decode(_ place: Int) -> HostStep? {
    guard case .complete(let i) = unsafe decoder.decode(memory + place, count: 15, code: .code64) else { return nil }
    let row = MutantCode.table[i.row]
    let traits = MutantCode.traits[Int(i.row)]
    return HostStep(
      place: place, i: i, row: row, traits: traits, rule: i.row == 0 ? .undefined : row.rule,
      size: i.isMemory ? traits.memoryBytes(i) : 0)
  }

  /// The instruction at a place, as the bytes are now.
  func step(at place: Int) -> HostStep? {
    if let number = number(at: place) {
      let step = steps[number]
      if changed.isEmpty || step.next <= changed.lowerBound || step.place >= changed.upperBound { return step }
    }
    guard contains(place), var step = decode(place) else { return nil }
    step.isChanged = true
    return step
  }

  func bytes(_ range: Range<Int>) -> [UInt8] {
    range.map { unsafe memory.load(fromByteOffset: $0, as: UInt8.self) }
  }

  /// Puts other bytes at a place.
  func change(_ bytes: [UInt8], at place: Int) {
    changed = place..<place + bytes.count
    saved = self.bytes(changed)
    write(bytes)
  }

  /// Takes the change back.
  func restore() {
    write(saved)
    changed = 0..<0
  }

  private func write(_ bytes: [UInt8]) {
    for (offset, byte) in bytes.enumerated() {
      unsafe memory.storeBytes(of: byte, toByteOffset: changed.lowerBound + offset, as: UInt8.self)
    }
  }

  /// The edge whose branch's displacement lies in bytes of the instruction.
  func edge(in step: HostStep) -> Edge? {
    edges.first { Int($0.end) > step.place && Int($0.end) - 4 < step.next }
  }
}

/// Where the fields of an encoding are, as offsets in it; -1 for none.
struct HostFields {
  var rex = -1
  /// Bytes of VEX: 0, 2 or 3, and where they begin.
  var vex = -1, vexBytes = 0
  var opcode = 0
  var modRM = -1
  var sib = -1
  var displacement = -1, displacementBytes = 0
  var immediate = -1, immediateBytes = 0

  /// - Parameter bytes: those of one instruction of 64-bit code.
  init(_ bytes: [UInt8], hasModRM: Bool) {
    var at = 0
    while at < bytes.count, [0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x64, 0x65].contains(bytes[at]) { at += 1 }
    if at < bytes.count, bytes[at] & 0xF0 == 0x40 {
      rex = at
      at += 1
    }
    if at < bytes.count, bytes[at] == 0xC4 || bytes[at] == 0xC5 {
      vex = at
      vexBytes = bytes[at] == 0xC4 ? 3 : 2
      at += vexBytes
    } else if at < bytes.count, bytes[at] == 0x0F {
      at += 1
      if at < bytes.count, bytes[at] == 0x38 || bytes[at] == 0x3A { at += 1 }
    }
    opcode = min(at, bytes.count - 1)
    at += 1
    if hasModRM, at < bytes.count {
      modRM = at
      let byte = bytes[at]
      at += 1
      if byte < 0xC0 {
        var base = byte & 7
        if base == 4, at < bytes.count {
          sib = at
          base = bytes[at] & 7
          at += 1
        }
        let count = byte >= 0x80 ? 4 : byte >= 0x40 ? 1 : base == 5 ? 4 : 0
        if count > 0 {
          displacement = at
          displacementBytes = count
          at += count
        }
      }
    }
    if at < bytes.count {
      immediate = at
      immediateBytes = bytes.count - at
    }
  }
}
