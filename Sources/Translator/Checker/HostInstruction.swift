// SPDX-License-Identifier: Apache-2.0
// Host bytes to what the checker judges. Stricter than a processor: prefixes in the one order in which they are emitted,
// no segment and no 32-bit address, no operand without a base register.

import CHost

/// A decoded host instruction: its bytes, out of which an operand's parts are made when they are asked for, since most are
/// not.
struct HostInstruction {
  /// Its encoding, by number in `HostEncodings`, and how that is judged.
  var number: UInt16 = 0
  var action = HostAction.refuse
  var opcode: UInt8 = 0
  /// The opcode, if there is none.
  var modRM: UInt8 = 0
  var sib: UInt8 = 0
  /// REX.RXB, or VEX's.
  var extend: UInt8 = 0
  var vvvv: UInt8 = 0
  /// Bytes of the immediate.
  var immediateCount: UInt8 = 0
  /// REX.W or VEX.W; VEX.L; REX (of any kind); 66; LOCK.
  var isWide = false
  var is256 = false
  var hasREX = false
  var has66 = false
  var isLocked = false
  var isMemory = false
  /// A displacement takes the place of the base register.
  var hasNoBase = false
  /// What stands where a displacement and an immediate may.
  var afterOperand: Int32 = 0
  var last = 0

  var digit: UInt8 {
    @inline(__always) get { modRM >> 3 & 7 }
  }
  var reg: Int {
    @inline(__always) get { Int(modRM >> 3 & 7 | (extend & 4) << 1) }
  }
  /// Of the ModRM byte, or of the opcode.
  var rm: Int {
    @inline(__always) get { Int(modRM & 7 | (extend & 1) << 3) }
  }

  // Of the operand in memory. Registers: -1 for none.

  private var hasSIB: Bool {
    @inline(__always) get { isMemory && modRM & 7 == 4 }
  }
  var base: Int {
    @inline(__always)
    get { !isMemory || hasNoBase ? -1 : Int((modRM & 7 == 4 ? sib : modRM) & 7 | (extend & 1) << 3) }
  }
  var index: Int {
    @inline(__always)
    get {
      let index = Int(sib >> 3 & 7 | (extend & 2) << 2)
      return hasSIB && index != 4 ? index : -1
    }
  }
  var scale: UInt8 {
    @inline(__always) get { hasSIB ? sib >> 6 : 0 }
  }
  var displacement: Int {
    @inline(__always)
    get {
      switch modRM >> 6 {
      case 1: Int(Int8(truncatingIfNeeded: afterOperand))
      case 2: Int(afterOperand)
      default: hasNoBase ? Int(afterOperand) : 0
      }
    }
  }

  /// With its sign; 0 for one of two bytes, which nobody asks for.
  var immediate: Int {
    @inline(__always)
    get {
      switch immediateCount {
      case 1: Int(Int8(truncatingIfNeeded: last))
      case 4: Int(Int32(truncatingIfNeeded: last))
      case 8: last
      default: 0
      }
    }
  }
}

extension CheckPass {
  /// What is known of the encoding of the instruction.
  var encoding: HostEncoding {
    @inline(__always) get { encodings[host.number] }
  }

  /// Bytes of the operand in memory.
  var size: Int {
    @inline(__always)
    get {
      switch encoding.size {
      case .none: 0
      case .fixed: Int(encoding.bytes)
      case .operandSize: host.isWide ? 8 : host.has66 ? 2 : 4
      case .wide: host.isWide ? 8 : 4
      case .vector: host.is256 ? Int(encoding.bytes) &* 2 : Int(encoding.bytes)
      case .doubled: host.isWide ? 16 : 8
      }
    }
  }

  /// Decodes the instruction at `place`, and sets `next`. Returns false if there is none that may be judged.
  @inline(__always)
  mutating func decode() -> Bool {
    // Enough for all up to the SIB byte.
    let bytes = text.word(place)
    // Most are an opcode of one byte, with or without a REX prefix: those first, in few steps.
    let hasREX = bytes & 0xF0 == 0x40
    let rest = hasREX ? bytes >> 8 : bytes
    let opcode = UInt8(truncatingIfNeeded: rest)
    let cell = encodings.cell(0, 0, opcode)
    if cell == 0 {
      // Of the others, Jcc with four bytes.
      if bytes & 0xF0FF == 0x800F { return decodeBranch(bytes) }
      return decodeAny()
    }
    let rex = hasREX ? bytes : 0
    host.hasREX = hasREX
    host.isWide = rex & 8 != 0
    host.is256 = false
    host.has66 = false
    host.isLocked = false
    host.vvvv = 0
    host.extend = UInt8(truncatingIfNeeded: rex & 7)
    return decodeOperands(cell, opcode, rest >> 8, at: place &+ (hasREX ? 2 : 1))
  }

  /// Jcc with a displacement of four bytes.
  @inline(__always)
  private mutating func decodeBranch(_ bytes: UInt64) -> Bool {
    let opcode = UInt8(truncatingIfNeeded: bytes >> 8)
    host.number = encodings.cell(1, 0, opcode)
    host.action = encodings[host.number].action
    host.opcode = opcode
    host.immediateCount = 4
    host.last = Int(truncatingIfNeeded: bytes >> 16)
    next = place &+ 6
    return true
  }

  mutating func decodeAny() -> Bool {
    var at = place
    // Eight bytes from `at` on, as far as they are not used up.
    var bytes = text.word(at)
    var byte = UInt8(truncatingIfNeeded: bytes)
    var prefix = 0
    host.isLocked = false
    host.has66 = false
    if byte & 0xFC == 0xF0 || byte == 0x66 {
      if byte == 0xF0 {
        host.isLocked = true
        at &+= 1
        byte = text[at]
      }
      if byte == 0x66 {
        host.has66 = true
        prefix = 1
        at &+= 1
        byte = text[at]
      }
      if byte == 0xF3 || byte == 0xF2 {
        prefix = byte == 0xF3 ? 2 : 3
        at &+= 1
        byte = text[at]
      }
      bytes = text.word(at)
    }
    // REX.RXB, or VEX's.
    let isREX = byte & 0xF0 == 0x40
    let rex = isREX ? byte : 0
    at &+= isREX ? 2 : 1
    bytes = isREX ? bytes >> 8 : bytes
    byte = UInt8(truncatingIfNeeded: bytes)
    bytes >>= 8
    host.hasREX = isREX
    host.isWide = rex & 8 != 0
    host.is256 = false
    host.vvvv = 0
    host.extend = rex & 7
    var map = 0
    if byte == 0x0F {
      map = 1
      byte = UInt8(truncatingIfNeeded: bytes)
      bytes >>= 8
      at &+= 1
      if byte == 0x38 || byte == 0x3A {
        map = byte == 0x38 ? 2 : 3
        byte = UInt8(truncatingIfNeeded: bytes)
        bytes >>= 8
        at &+= 1
      }
    } else if byte & 0xFE == 0xC4 {
      if isREX || host.isLocked || prefix != 0 { return false }
      map = 4
      var last = UInt8(truncatingIfNeeded: bytes)
      bytes >>= 8
      at &+= 2
      host.extend = ~last >> 5 & 4
      if byte == 0xC4 {
        host.extend = ~last >> 5
        let number = Int(last & 31)
        if number == 0 || number > 3 { return false }
        map = 3 &+ number
        last = UInt8(truncatingIfNeeded: bytes)
        bytes >>= 8
        at &+= 1
        host.isWide = last & 0x80 != 0
      }
      host.is256 = last & 4 != 0
      host.vvvv = ~last >> 3 & 15
      prefix = Int(last & 3)
      byte = UInt8(truncatingIfNeeded: bytes)
      bytes >>= 8
    }
    return decodeOperands(encodings.cell(map, prefix, byte), byte, bytes, at: at)
  }

  /// Decodes what follows an opcode: `bytes`, at `at`. Which form an instruction has cannot be foretold in code that is
  /// seen once: what is cheap is computed for every form, not branched over, and bytes are read that may not be the
  /// instruction's. Inlined, so that what the caller has set is known.
  @inline(__always)
  private mutating func decodeOperands(
    _ cell: UInt16, _ opcode: UInt8, _ bytes: UInt64, at start: Int
  ) -> Bool {
    let modRM = UInt8(truncatingIfNeeded: bytes)
    let sib = UInt8(truncatingIfNeeded: bytes >> 8)
    var number = cell
    if number & HostEncodings.groupFlag != 0 { number = encodings.entry(number, modRM) }
    var encoding = encodings[number]
    if encoding.excluded != 0 {
      let state =
        (host.is256 ? HostEncoding.l1 : HostEncoding.l0) | (host.isWide ? HostEncoding.w1 : HostEncoding.w0)
      while encoding.excluded & state != 0 {
        number = UInt16(truncatingIfNeeded: encoding.next)
        encoding = encodings[number]
      }
    }
    host.number = number
    host.action = encoding.action
    if encoding.action == .refuse { return false }

    let hasModRM = encoding.has(HostEncoding.hasModRM)
    let isMemory = hasModRM && modRM < 0xC0
    host.opcode = opcode
    host.modRM = hasModRM ? modRM : opcode
    host.sib = sib
    host.isMemory = isMemory
    host.hasNoBase = false
    let operand = Int(hasModRM ? encodings.operandBytes(modRM) : 0)
    // What would be a displacement.
    host.afterOperand = text.int32(start &+ (operand >> 4))
    var at = start &+ (operand & 15)
    if modRM & 0xC6 == 4 && isMemory {
      // RIP; or no base, for LEA alone.
      if modRM & 1 != 0 { return false }
      if sib & 7 == 5 {
        if encoding.action != .lea { return false }
        host.hasNoBase = true
        at &+= 4
      }
    }
    let count = encoding.immediate.bytes(isWide: host.isWide, has66: host.has66)
    host.immediateCount = UInt8(truncatingIfNeeded: count)
    host.last = text.int64(at)
    next = at &+ count
    if host.isLocked && !(isMemory && encoding.has(HostEncoding.lockable)) { return false }
    return host.vvvv == 0 || encoding.has(HostEncoding.usesVvvv)
  }

  /// JECXZ and LOOP that count in ECX: 67 before one of four bytes. Returns whether this is one.
  mutating func decodeNarrowLoop() -> Bool {
    guard text[place] == 0x67, text[place &+ 1] & 0xFC == 0xE0 else { return false }
    host.number = encodings.narrowLoop
    host.action = .loop
    host.opcode = text[place &+ 1]
    host.isMemory = false
    host.immediateCount = 1
    host.last = Int(text[place &+ 2])
    next = place &+ 3
    return true
  }

  // MARK: Memory

  /// Judges the operand in memory.
  @inline(__always)
  mutating func access(_ size: Int, write: Bool) {
    if host.base == Role.env && host.index < 0 { return accessPage(host.displacement, size, write: write) }
    if host.base < 0 || host.base == Role.env || host.base == Role.rsp || size == 0 { return refuse(.address) }
    // Should the access fault after all, Swift goes on without what is pushed.
    if isPushed { return refuse(.frame) }
    let base = state[host.base]
    if host.index < 0 {
      guard base.isKind(.host) else { return refuse(.unchecked) }
      // Windows and displacements are small.
      let from = host.displacement &- base.offset
      guard from >= 0, from &+ size <= base.extra else { return refuse(.outside) }
      if write && !base.isWritable { return refuse(.readOnly) }
      return
    }
    let addend = state[host.index]
    guard host.scale == 0, base.isSum, addend.isKind(.addend), base.id == addend.id else { return refuse(.unchecked) }
    let from = base.offset &+ host.displacement &- addend.offset
    guard from >= 0, from <= addend.extra, from &+ size <= addend.extra else {
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
    if !isKernel && (page[displacement].isKernels || page[last].isKernels) { return refuse(.place) }
    if !write {
      for place in [displacement, last] where page[place] == .kept {
        let kept = page.kept(place & ~7)
        if kept >= 0 && self.kept(kept).isSecret { refuse(.secret) }
      }
      return
    }
    switch (page[displacement], page[last]) {
    case (.state, .state), (.kernelState, .kernelState): break
    case (.kept, .kept):
      // In scratch words alone, and what is there is unknown then.
      let first = displacement & ~7
      guard first == last & ~7, first >= page.scratch, first < page.scratch &+ 16 else { return refuse(.place) }
      let kept = page.kept(first)
      if kept < 0 { return refuse(.place) }
      // A part of it may stay.
      let isSecret = self.kept(kept).isSecret
      if isSecret && encoding.readsWritten { return refuse(.secret) }
      keep(kept, unknown())
      if isSecret { state[kept].head |= CheckedValue.secretID << 16 }
    default: refuse(.place)
    }
  }

  // MARK: Effects

  /// An operand in memory and registers, of whose new values nothing is known.
  @inline(__always)
  mutating func general() {
    let encoding = encoding
    if host.isMemory { access(size, write: encoding.has(HostEncoding.memoryWritten)) }
    if encoding.traits & (HostEncoding.regIsGeneral | HostEncoding.rmIsGeneral) != 0 {
      // Sources first: they may be the target.
      if !host.isMemory && encoding.has(HostEncoding.rmIsGeneral) {
        field(host.rm, isByte: encoding.has(HostEncoding.rmIsByte), written: encoding.has(HostEncoding.rmWritten))
      }
      if encoding.has(HostEncoding.vvvvIsGeneral) {
        field(Int(host.vvvv), isByte: false, written: encoding.has(HostEncoding.vvvvWritten))
      }
      if encoding.has(HostEncoding.regIsGeneral) {
        field(host.reg, isByte: encoding.has(HostEncoding.regIsByte), written: encoding.has(HostEncoding.regWritten))
      }
    }
    if encoding.has(HostEncoding.plusIsGeneral) {
      field(host.rm, isByte: encoding.has(HostEncoding.plusIsByte), written: encoding.has(HostEncoding.plusWritten))
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
    _ number: Int, isByte: Bool, written: Bool
  ) {
    var register = number
    // AH CH DH BH.
    if isByte && !host.hasREX && number >= 4 { register = number & 3 }
    if Role.isReserved(register) { return refuse(.reserved) }
    // What is written in part is read as well.
    let isRead = !written || encoding.readsWritten || isByte || host.has66 && encoding.narrows
    if isRead && state[register].isSecret { return refuse(.secret) }
    if written { lose(register) }
  }
}
