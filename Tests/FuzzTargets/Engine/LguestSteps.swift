// SPDX-License-Identifier: Apache-2.0
// Programs of steps under lguest: each changes what the processor reads of a ring-1 guest (the stack of traps, gates,
// descriptors), or uses it, well or badly. Whatever trap a step raises, its handler goes on with the next one, so that
// one program meets many.

import X86

@testable import Paravirt

/// Writes such programs.
enum LguestSteps {
  /// Bytes of a step, and of a handler.
  private static let size: UInt32 = 64, handlerSize: UInt32 = 32
  /// Where a program says which step is next.
  private static let next = UInt32(LguestGuest.data) + 0x6000

  /// How often a vector's handler has run: the address of a word.
  static func count(of vector: UInt8) -> UInt64 { LguestGuest.data + 0x7000 + UInt64(vector) * 4 }

  /// Where a vector's handler is.
  static func handler(of vector: UInt8) -> UInt32 { UInt32(LguestGuest.handlers) + UInt32(vector) * handlerSize }

  /// A handler that goes on with the next step. That of 80h does so at level 1, with data segments that can be used.
  static func handler(_ vector: UInt8, hasCode: Bool) -> [UInt8] {
    var bytes: [UInt8] = hasCode ? [0x83, 0xC4, 0x04] : []
    // MOV EAX, CS:[next]; MOV [ESP], EAX. Of all segments CS alone is sure to be a flat one.
    bytes += [0x2E, 0xA1] + word(next) + [0x89, 0x04, 0x24]
    if vector == 0x80 {
      bytes += [0xC7, 0x44, 0x24, 0x04, 0x61, 0, 0, 0, 0x6A, 0x69, 0x1F, 0x6A, 0x69, 0x07]
    }
    // INC SS:[count]; IRET
    return bytes + [0x36, 0xFF, 0x05] + word(UInt32(count(of: vector))) + [0xCF]
  }

  static func program(_ input: inout FuzzInput, _ era: LguestEra) -> [UInt8] {
    var bytes: [UInt8] = []
    let count = UInt32(6 + input.below(26))
    for number in 1...count {
      let next = UInt32(LguestGuest.code) + number * size
      // MOV dword SS:[next], its address
      var step = [0x36, 0xC7, 0x05] + word(LguestSteps.next) + word(next)
      // A call that there is not ends the guest, at level 1.
      step +=
        number == count
        ? [0xB8, 0x63, 0, 0, 0, 0xCD, LguestCall.vector]
        : number + 1 == count ? [0xCD, 0x80] : LguestSteps.step(&input, era, to: next)
      bytes += step + [UInt8](repeating: 0x90, count: max(Int(size) - step.count, 0))
    }
    return bytes
  }

  // MARK: Steps

  private static func word(_ value: UInt32) -> [UInt8] { LguestExecution.word(value) }

  private static func step(_ input: inout FuzzInput, _ era: LguestEra, to next: UInt32) -> [UInt8] {
    switch input.byte() % 16 {
    case 0, 1: LguestExecution.piece(&input, to: next)
    case 2, 3: setStack(&input, era)
    case 4, 5: setGate(&input, era)
    case 6, 7: setDescriptor(&input, era)
    case 8, 9: loadSegment(&input)
    case 10, 11: popMemory(&input)
    case 12:
      // Through a segment, whatever it was loaded with.
      [input.choose([0x26, 0x3E, 0x64, 0x65]), input.choose([0xA1, 0xA3])]
        + word(input.chance(2) ? UInt32(input.byte()) : input.word())
    case 13: ports(&input)
    case 14: [0xCD, input.choose([3, 4, 0x80, 0x80, 0x20, 13, 14, 6])]
    default:
      // IRET to level 3.
      [0x68] + word(0x7B) + [0x68] + word(UInt32(LguestGuest.stack)) + LguestExecution.flags(&input) + [0x68]
        + word(0x73) + [0x68] + word(next) + [0xCF]
    }
  }

  private static func call(_ call: LguestCall, _ era: LguestEra, _ arguments: UInt32...) -> [UInt8] {
    guard let number = call.number(in: era) else { return [] }
    var bytes: [UInt8] = []
    for (index, value) in arguments.prefix(3).enumerated() {
      bytes += [0xB8 | era.row.convention.registers[index]] + word(value)
    }
    return bytes + [0xB8] + word(number) + [0xCD, LguestCall.vector]
  }

  /// An address of data: in RAM, across its pages, at its end, in the host's page, and where nothing is.
  private static func operand(_ input: inout FuzzInput) -> UInt32 {
    switch input.byte() % 8 {
    case 0: UInt32(LguestGuest.byteCount) &- 8 &+ UInt32(input.byte() & 31)
    case 1: LguestHost.reserved | UInt32(input.word(UInt16.self))
    case 2: input.word()
    case 3: UInt32(LguestGuest.data) | 0xFF8 | UInt32(input.byte() & 15)
    default: UInt32(LguestGuest.data) + UInt32(input.word(UInt16.self) & 0x3FFF)
    }
  }

  /// SET_STACK: the kernel's segment, or another of level 1; a stack that is there, at any place of its page, or is not.
  private static func setStack(_ input: inout FuzzInput, _ era: LguestEra) -> [UInt8] {
    let selector = input.chance(4) ? UInt32(input.byte()) & ~3 | 1 : 0x69
    let top = input.chance(4) ? operand(&input) : UInt32(LguestGuest.stack1) &- UInt32(input.word(UInt16.self) & 0x1FFC)
    return call(.setStack, era, selector, top, UInt32(input.byte() % 3)) + use(&input)
  }

  /// A vector's gate: of any level and kind, absent, or to the handler of another.
  private static func setGate(_ input: inout FuzzInput, _ era: LguestEra) -> [UInt8] {
    let vector = input.choose([3, 4, 0x80, 0x20, 13, 14, 6, 1, input.byte() & 0x3F])
    let handler = handler(of: input.chance(6) ? vector &+ 1 : vector)
    let high = input.choose([0x8E, 0xEE, 0x8F, 0xEF, 0xAE, 0xCF, 0x8E, 0xEE, 0x6E, 0xE5] as [UInt32])
    return call(.loadIDTEntry, era, UInt32(vector), 0x61_0000 | handler & 0xFFFF, handler & ~0xFFFF | high << 8)
      + (input.chance(2) ? [0xCD, vector] : use(&input))
  }

  /// A trap.
  private static func use(_ input: inout FuzzInput) -> [UInt8] {
    input.choose([[], [0xCC], [0xCD, 0x80], [0xCE], [0x0F, 0x0B], [0xF4], [0xA1] + word(operand(&input))])
  }

  /// A descriptor of any level, base, limit and kind, loaded at once.
  private static func setDescriptor(_ input: inout FuzzInput, _ era: LguestEra) -> [UInt8] {
    var index = UInt32(input.chance(8) ? input.byte() & 31 : 17 + input.byte() % 12)
    let kind = input.choose([0xB2, 0xB3, 0xBA, 0xB6, 0xBE, 0x92, 0xF2, 0x32, 0xD2, 0xA9, 0xAC, input.byte()])
    let size = UInt32(input.choose([0xC0, 0x40, 0, 0x4F, 0xCF]))
    let base = input.chance(2) ? input.word(UInt32.self) : 0
    let high = base & 0xFF00_0000 | size << 16 | UInt32(kind) << 8 | base >> 16 & 0xFF
    let low = base << 16 | UInt32(input.word(UInt16.self))
    var change = call(.loadGDTEntry, era, index, low, high)
    if change.isEmpty {
      // Those of threads: the first of three in memory.
      let place = UInt32(LguestGuest.data) + 0x5000
      index = 6
      change = [0xB9] + word(place) + [0x36, 0xC7, 0x01] + word(low) + [0x36, 0xC7, 0x41, 0x04] + word(high)
      change += call(.loadTLS, era, place)
    }
    let selector = UInt8(truncatingIfNeeded: index << 3) | input.byte() & 3
    // MOV AX, selector; MOV DS, ES, FS or GS, AX; and a load through it.
    return change + [0x66, 0xB8, selector, 0, 0x8E, 0xC0 | input.choose([0, 0x18, 0x20, 0x28])]
      + (input.chance(2) ? [input.choose([0x26, 0x64, 0x65]), 0xA0] + word(UInt32(input.byte())) : [])
  }

  /// A segment register from the stack, from memory, and with a far pointer.
  private static func loadSegment(_ input: inout FuzzInput) -> [UInt8] {
    let place = word(operand(&input))
    let loads: [[UInt8]] = [
      [0x1F], [0x07], [0x0F, 0xA1], [0x0F, 0xA9], [0x8E, 0x05 | input.choose([0, 0x18, 0x20, 0x28])] + place,
      [0xC5, 0x1D] + place, [0xC4, 0x1D] + place, [0x0F, 0xB4, 0x1D] + place, [0x0F, 0xB5, 0x1D] + place,
      [0x66, 0x1F], [0x66, 0x0F, 0xA1],
    ]
    // SS too: what comes behind it may have no stack.
    let stack: [[UInt8]] = [[0x17], [0x0F, 0xB2, 0x1D] + place, [0x8E, 0x15] + place, [0x8C, 0xD0, 0x8E, 0xD0]]
    return [0x68] + word(LguestExecution.selector(&input)) + input.choose(input.chance(8) ? stack : loads)
  }

  /// POP m: anywhere, on its own stack, and where nothing is.
  private static func popMemory(_ input: inout FuzzInput) -> [UInt8] {
    let pops: [[UInt8]] = [
      [0x8F, 0x05] + word(operand(&input)), [0x8F, 0x04, 0x24], [0x8F, 0x44, 0x24, input.byte()],
      [0x66, 0x8F, 0x05] + word(operand(&input)), [0x8F, 0x03], [0x64, 0x8F, 0x05] + word(UInt32(input.byte())),
    ]
    return [0x68] + word(input.word()) + input.choose(pops)
  }

  /// Ports, which level 1 has by its host and level 3 not, and what else only level 0 may do.
  private static func ports(_ input: inout FuzzInput) -> [UInt8] {
    let port = input.byte()
    let pieces: [[UInt8]] = [
      [0xE4, port], [0xE5, port], [0xE6, port], [0xE7, port], [0xEC], [0xED], [0xEE], [0xEF], [0x6C], [0xF3, 0x6F],
      [0xFA],
      [0xFB], [0xF4], [0x0F, 0x06], [0x0F, 0x20, 0xE0],
    ]
    return (input.chance(3) ? [0x66] : []) + input.choose(pieces)
  }
}
