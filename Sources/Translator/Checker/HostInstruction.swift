// SPDX-License-Identifier: Apache-2.0
// Host bytes to what the checker judges. Stricter than a processor: prefixes in the one order in which they are emitted,
// no segment and no 32-bit address, no operand without a base register.

import CHost

/// A decoded host instruction.
struct HostInstruction {
  var encoding = HostEncoding()
  var opcode: UInt8 = 0
  var modRM: UInt8 = 0
  /// REX.W or VEX.W; VEX.L; REX (of any kind); 66; LOCK.
  var isWide = false
  var is256 = false
  var hasREX = false
  var has66 = false
  var isLocked = false
  var isMemory = false
  /// Registers; `rm` is the opcode's too. Of the operand in memory: -1 for none.
  var reg = 0
  var rm = 0
  var vvvv = 0
  var base = -1
  var index = -1
  var scale = 0
  var displacement = 0
  var immediate = 0

  var digit: UInt8 {
    @inline(__always) get { modRM >> 3 & 7 }
  }

  /// Bytes of the operand in memory.
  var size: Int {
    @inline(__always)
    get {
      switch encoding.size {
      case .none: 0
      case .fixed: Int(encoding.bytes)
      case .operandSize: isWide ? 8 : has66 ? 2 : 4
      case .wide: isWide ? 8 : 4
      case .vector: is256 ? Int(encoding.bytes) &* 2 : Int(encoding.bytes)
      case .doubled: isWide ? 16 : 8
      }
    }
  }
}

extension CheckPass {
  /// Decodes the instruction at `place`, and sets `next`. Returns false if there is none that may be judged.
  @inline(__always)
  mutating func decode(_ i: inout HostInstruction) -> Bool {
    var at = place
    var byte = text[at]
    at &+= 1
    var prefix = 0
    if byte & 0xFC == 0xF0 || byte == 0x66 {
      if byte == 0xF0 {
        i.isLocked = true
        byte = text[at]
        at &+= 1
      }
      if byte == 0x66 {
        i.has66 = true
        prefix = 1
        byte = text[at]
        at &+= 1
      }
      if byte == 0xF3 || byte == 0xF2 {
        prefix = byte == 0xF3 ? 2 : 3
        byte = text[at]
        at &+= 1
      }
    }
    // REX.RXB, or VEX's.
    var extend = 0
    if byte & 0xF0 == 0x40 {
      i.hasREX = true
      i.isWide = byte & 8 != 0
      extend = Int(byte & 7)
      byte = text[at]
      at &+= 1
    }
    var map = 0
    if byte == 0x0F {
      map = 1
      byte = text[at]
      at &+= 1
      if byte == 0x38 || byte == 0x3A {
        map = byte == 0x38 ? 2 : 3
        byte = text[at]
        at &+= 1
      }
    } else if byte & 0xFE == 0xC4 {
      if i.hasREX || i.isLocked || prefix != 0 { return false }
      map = 4
      var last = text[at]
      at &+= 1
      extend = Int(~last >> 5) & 4
      if byte == 0xC4 {
        extend = Int(~last >> 5)
        let number = Int(last & 31)
        if number == 0 || number > 3 { return false }
        map = 3 &+ number
        last = text[at]
        at &+= 1
        i.isWide = last & 0x80 != 0
      }
      i.is256 = last & 4 != 0
      i.vvvv = Int(~last >> 3) & 15
      prefix = Int(last & 3)
      byte = text[at]
      at &+= 1
    }
    i.opcode = byte
    var number = encodings.cell(map, prefix, byte)
    if number & HostEncodings.groupFlag != 0 { number = encodings.entry(number, text[at]) }
    i.encoding = encodings[number]
    if i.encoding.excluded != 0 {
      let state =
        (i.is256 ? HostEncoding.l1 : HostEncoding.l0) | (i.isWide ? HostEncoding.w1 : HostEncoding.w0)
      while i.encoding.excluded & state != 0 { i.encoding = encodings[i.encoding.next] }
    }
    if i.encoding.action == .refuse { return false }

    if i.encoding.has(HostEncoding.hasModRM) {
      let modRM = text[at]
      at &+= 1
      i.modRM = modRM
      i.reg = Int(modRM >> 3) & 7 | (extend & 4) << 1
      let low = Int(modRM & 7)
      if modRM >= 0xC0 {
        i.rm = low | (extend & 1) << 3
      } else {
        i.isMemory = true
        i.base = low | (extend & 1) << 3
        if low == 4 {
          let sib = text[at]
          at &+= 1
          i.base = Int(sib & 7) | (extend & 1) << 3
          let index = Int(sib >> 3) & 7 | (extend & 2) << 2
          if index != 4 { i.index = index }
          i.scale = Int(sib >> 6)
        }
        if modRM < 0x40 {
          if i.base & 7 == 5 {
            // No base, or RIP: for LEA alone.
            i.base = -1
            if low == 5 || i.encoding.action != .lea { return false }
            i.displacement = text.int32(at)
            at &+= 4
          }
        } else if modRM < 0x80 {
          i.displacement = Int(Int8(bitPattern: text[at]))
          at &+= 1
        } else {
          i.displacement = text.int32(at)
          at &+= 4
        }
      }
    } else {
      i.rm = Int(byte & 7) | (extend & 1) << 3
    }
    switch i.encoding.immediate {
    case .none: break
    case .byte:
      i.immediate = Int(Int8(bitPattern: text[at]))
      at &+= 1
    case .word: at &+= 2
    case .long:
      i.immediate = text.int32(at)
      at &+= 4
    case .operandSize, .operandSizeOr8:
      if i.isWide && i.encoding.immediate == .operandSizeOr8 {
        i.immediate = text.int64(at)
        at &+= 8
      } else if i.has66 && !i.isWide {
        at &+= 2
      } else {
        i.immediate = text.int32(at)
        at &+= 4
      }
    }
    next = at
    if i.isLocked && !(i.isMemory && i.encoding.has(HostEncoding.lockable)) { return false }
    return i.vvvv == 0 || i.encoding.has(HostEncoding.usesVvvv)
  }

  /// JECXZ and LOOP that count in ECX: 67 before one of four bytes. Returns whether this is one.
  mutating func decodeNarrowLoop(_ i: inout HostInstruction) -> Bool {
    guard text[place] == 0x67, text[place &+ 1] & 0xFC == 0xE0 else { return false }
    i.encoding = HostEncoding()
    i.encoding.action = .loop
    i.opcode = text[place &+ 1]
    i.immediate = Int(Int8(bitPattern: text[place &+ 2]))
    next = place &+ 3
    return true
  }

  // MARK: Memory

  /// Judges the operand in memory.
  @inline(__always)
  mutating func access(_ i: HostInstruction, _ size: Int, write: Bool) {
    if i.base == Role.env && i.index < 0 { return accessPage(i.displacement, size, write: write) }
    if i.base < 0 || i.base == Role.env || i.base == Role.rsp || size == 0 { return refuse(.address) }
    let base = state[i.base]
    if i.index < 0 {
      guard base.isKind(.host) else { return refuse(.unchecked) }
      // Windows and displacements are small.
      let from = i.displacement &- base.offset
      guard from >= 0, from &+ size <= base.extra else { return refuse(.outside) }
      if write && !base.isWritable { return refuse(.readOnly) }
      return
    }
    let addend = state[i.index]
    guard i.scale == 0, base.isSum, addend.isKind(.addend), base.id == addend.id else { return refuse(.unchecked) }
    let (sum, overflow) = base.offset.addingReportingOverflow(i.displacement)
    let (from, overflowToo) = sum.subtractingReportingOverflow(addend.offset)
    guard !overflow, !overflowToo, from >= 0, from <= addend.extra, from &+ size <= addend.extra else {
      return refuse(.outside)
    }
    if write && !addend.isWritable { return refuse(.readOnly) }
  }

  /// The same for `size` bytes of the vCPU page.
  mutating func accessPage(_ displacement: Int, _ size: Int, write: Bool) {
    if block.isScratch && displacement == Int(CHOST_BOUNCE) && size <= 1024 { return }
    if block.counter != 0 && displacement == block.counter && size == 8 { return }
    guard page.isReadable(displacement, size) else { return refuse(.place) }
    let last = displacement &+ size &- 1
    if !write {
      for place in [displacement, last] where page[place] == .kept {
        let kept = page.kept(place & ~7)
        if kept >= 0 && state[kept].isSecret { refuse(.secret) }
      }
      return
    }
    switch (page[displacement], page[last]) {
    case (.state, .state): break
    case (.kept, .kept):
      // In scratch words alone, and what is there is unknown then.
      let first = displacement & ~7
      guard first == last & ~7, first >= page.scratch, first < page.scratch &+ 16 else { return refuse(.place) }
      let kept = page.kept(first)
      if kept < 0 { return refuse(.place) }
      lose(kept, from: state[kept])
    default: refuse(.place)
    }
  }

  // MARK: Effects

  /// An operand in memory and registers, of whose new values nothing is known.
  @inline(__always)
  mutating func general(_ i: HostInstruction) {
    let encoding = i.encoding
    if i.isMemory { access(i, i.size, write: encoding.has(HostEncoding.memoryWritten)) }
    if encoding.traits & (HostEncoding.regIsGeneral | HostEncoding.rmIsGeneral) != 0 {
      // Sources first: they may be the target.
      if !i.isMemory && encoding.has(HostEncoding.rmIsGeneral) {
        field(i, i.rm, isByte: encoding.has(HostEncoding.rmIsByte), written: encoding.has(HostEncoding.rmWritten))
      }
      if encoding.has(HostEncoding.vvvvIsGeneral) {
        field(i, i.vvvv, isByte: false, written: encoding.has(HostEncoding.vvvvWritten))
      }
      if encoding.has(HostEncoding.regIsGeneral) {
        field(i, i.reg, isByte: encoding.has(HostEncoding.regIsByte), written: encoding.has(HostEncoding.regWritten))
      }
    }
    if encoding.has(HostEncoding.plusIsGeneral) {
      field(i, i.rm, isByte: encoding.has(HostEncoding.plusIsByte), written: encoding.has(HostEncoding.plusWritten))
    }
    if encoding.hidden != 0 {
      // Not each of them is written for sure.
      for register in 0..<3 where encoding.hidden >> UInt8(register) & 1 != 0 { lose(register, from: state[register]) }
    }
    if encoding.has(HostEncoding.flagsWritten) { loseFlags() }
  }

  /// A general register as an operand.
  @inline(__always)
  private mutating func field(
    _ i: HostInstruction, _ number: Int, isByte: Bool, written: Bool
  ) {
    var register = number
    // AH CH DH BH.
    if isByte && !i.hasREX && number >= 4 { register = number & 3 }
    if Role.isReserved(register) { return refuse(.reserved) }
    // What is written in part is read as well.
    let isRead = !written || i.encoding.readsWritten || isByte || i.has66 && i.encoding.size == .operandSize
    if isRead && i.encoding.spreads && state[register].isSecret { return refuse(.secret) }
    if written { lose(register) }
  }
}
