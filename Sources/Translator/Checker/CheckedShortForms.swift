// SPDX-License-Identifier: Apache-2.0
// Code in its usual forms, judged at once: a block's entries, the flags on their way to and from the vCPU page, a check of
// the software TLB, a look into the jump cache, and cold code where a branch leads to it, which is exits and the misses of
// checks. Every block has some, and to follow each instruction by instruction, with a copy of what is known, would be half
// of all the work. Code that differs in one byte is no such form, and is followed.

import CHost

extension CheckPass {
  /// Whether the block begins with its three entries as most do: with the flags in the page and in EFLAGS. Then `next` is
  /// behind them, where nothing is known.
  mutating func enters() -> Bool {
    let start = block.hot.lowerBound, poll = block.pollEntry
    // LEA T1, [T0 - offset]; MOV [page address], T1.
    guard knowsForms, text.word32(start) & 0xFF_FFFF == 0xB7_8D4D, Int(text.int32(start &+ 3)) == 0 &- block.offset,
      text.word32(start &+ 7) == 0x73_894D | page.pageAddress << 24
    else { return false }
    let end: Int, stub: Int
    if poll == start &+ 11 {
      // CMP [attention], 0; JNE.
      guard text.word(poll) & 0xFF_FFFF_FFFF_FFFF == 0x85_0F00_007B_8341 | UInt64(page.attention) << 24 else {
        return false
      }
      end = poll &+ 11
      stub = end &+ Int(text.int32(end &- 4))
    } else {
      // MOV T1, RAX; MOV EAX, [flags]; ADD AL, 127; SAHF; MOV RAX, T1. MOV T1, RCX; MOV ECX, [attention]; JRCXZ over
      // MOV RCX, T1 and JMP; MOV RCX, T1.
      guard poll == start &+ 23, page.flags == 0, text.word(start &+ 11) == 0x7F04_038B_41C6_8949,
        text.word32(start &+ 19) == 0xF089_4C9E,
        text.word(poll) == 0xE300_4B8B_41CE_8949 | UInt64(page.attention) << 48,
        text.word(poll &+ 7) & 0xFFFF_FFFF_FFFF == 0xE9F1_894C_08E3,
        text.word32(poll &+ 17) & 0xFF_FFFF == 0xF1_894C
      else { return false }
      end = poll &+ 20
      stub = poll &+ 17 &+ Int(text.int32(poll &+ 13))
    }
    forget()
    guard end == block.plainEntry, end < block.hot.upperBound, block.cold.contains(stub),
      !isPatched(start, end, but: -1), exits(at: stub)
    else { return false }
    next = end
    return true
  }

  /// Whether the code at `target` in the cold half is an exit: the instructions that store its reason and, of an edge, its
  /// number, and the jump.
  mutating func exits(at target: Int) -> Bool {
    guard knowsForms else { return false }
    var at = target
    // MOV [ENV + displacement], immediate.
    let store = 0x43_C741
    var number: Int?
    if text.word32(at) == store | page.exitData << 24 {
      number = text.word32(at &+ 4)
      at &+= 8
    }
    let end = at &+ 13
    guard text.word32(at) == store | page.exitInfo << 24, text[at &+ 8] == 0xE9, end <= block.cold.upperBound,
      end &+ Int(text.int32(at &+ 9)) == block.stubs.exit, !isPatched(target, end, but: -1)
    else { return false }
    let known = (next, state[CheckedState.exit])
    next = end
    state[CheckedState.exit] = CheckedValue(
      head: UInt64(text.word32(at &+ 4)) | 1 << 32, offset: number.map { $0 &+ 1 } ?? known.1.offset)
    leave(to: block.stubs.exit)
    (next, state[CheckedState.exit]) = known
    return true
  }

  /// Goes on behind what follows MOV of RAX to the scratch register `scratch`, if it saves the flags in the page or loads
  /// them from there, and moves RAX back: nothing but the flags has changed.
  mutating func passFlagMoves(_ scratch: Int) {
    guard knowsForms, page.flags == 0, !state[Role.rax].isSecret else { return }
    // MOV RAX, scratch.
    let back: UInt64 = scratch == Role.t1 ? 0xF0_894C : 0xE8_894C
    let bytes = text.word(next), last = UInt64(text.word32(next &+ 6))
    let end: Int
    let isLoad: Bool
    if bytes == 0x4C03_8941_C090_0F9F && last >> 8 == back {
      // LAHF; SETO AL; MOV [flags], EAX.
      end = next &+ 10
      isLoad = false
    } else if bytes & 0xFFFF_FFFF_FFFF == 0x9E7F_0403_8B41 && last & 0xFF_FFFF == back {
      // MOV EAX, [flags]; ADD AL, 127; SAHF.
      end = next &+ 9
      isLoad = true
    } else {
      return
    }
    guard end <= stop, !isPatched(next, end, but: -1) else { return }
    if isLoad { loseFlags() }
    next = end
  }

  /// Whether what follows IMUL T1D, T0D compares T0 with the tag in the jump cache: SHR T1D; CMP T0, [tag]. Then `next` is
  /// behind it.
  mutating func probesJumpCache() -> Bool {
    let value = state[Role.t0], end = next &+ 12
    guard knowsForms, text.word32(next) == 0xEE_C141 | Int(CHOST_JUMP_SHIFT) << 24,
      text.word32(next &+ 4) == 0xF3BC_3B4F, Int(text.int32(next &+ 8)) == Int(CHOST_JUMP_TAGS) &+ jumpCache,
      end <= stop, !isPatched(next, end, but: -1)
    else { return false }
    state[Role.t1] = value.turned(.jumpIndex)
    state[CheckedState.flags] = CheckedValue(.jumpTag, value.id, value.offset, more: 5)
    next = end
    return true
  }

  /// Whether what follows MOV T1D, T0D in the hot half checks T0, a linear address, by the table, and its miss has the usual
  /// form. Then `next` is behind all of it, where the miss comes back to.
  mutating func checksTable() -> Bool {
    let linear = state[Role.t0]
    guard knowsForms, linear.isSum, !isCold, next &+ 48 <= block.hot.upperBound else { return false }
    // SHR T1D, 8; AND T1D, immediate.
    guard text.word(next) & 0xFF_FFFF_FFFF_FFFF == 0xE6_8141_08EE_C141,
      Int(text.int32(next &+ 7)) == (Int(CHOST_TLB_ENTRIES) &- 1) << 4
    else { return false }
    var at = next &+ 11
    // MOV T2, T0 if T0 is to survive; SUB, CMP immediate and JA with that register.
    let keepsT0 = text.word32(at) & 0xFF_FFFF == 0xFD_894D
    if keepsT0 { at &+= 3 }
    let subtract = keepsT0 ? 0x33AC_2B4F : 0x33BC_2B4F
    let compare = keepsT0 ? 0xFD_8149 : 0xFF_8149
    let tag = Int(text.int32(at &+ 4)), bound = Int(text.int32(at &+ 11))
    guard text.word32(at) == subtract, let isWritable = table(tag), text.word32(at &+ 8) & 0xFF_FFFF == compare,
      bound >= 0, bound < 4096, text.word32(at &+ 15) & 0xFFFF == 0x870F
    else { return false }
    // MOV T1, [the addend].
    let load = at &+ 21, end = load &+ 8
    guard text.word32(load) == 0x33B4_8B4F, Int(text.int32(load &+ 4)) == tag &+ 8, end <= stop else { return false }
    let target = load &+ Int(text.int32(at &+ 17))
    guard block.cold.contains(target) else { return false }

    let known = (next, state[Role.t1], state[Role.t2], state[CheckedState.flags])
    next = load
    state[Role.t1] = linear.turned(.entry)
    state[keepsT0 ? Role.t2 : Role.t0] = linear.turned(.distance, extra: tag)
    guard let miss = misses(at: target) else {
      (next, state[Role.t1], state[Role.t2], state[CheckedState.flags]) = known
      state[Role.t0] = linear
      return false
    }
    next = end
    state[Role.t1] = CheckedValue(
      .addend, linear.id, linear.offset, more: isWritable ? CheckedValue.writable : 0, extra: 4096 &- bound)
    join(miss)
    return true
  }

  /// What is known after a miss: T0 and T1 alone are other than at the branch to it.
  struct Miss {
    var place: Int
    var address: CheckedValue
    var answer: CheckedValue
  }

  /// What the code at `target` in the cold half does, if it is a miss that comes back behind the load of T1 that stands at
  /// `next`: T0 becomes the linear address again, T1 the request, the helper is called.
  mutating func misses(at target: Int) -> Miss? {
    let load = loadedT1
    guard knowsForms, load != 0, !isCold, !isPushed else { return nil }
    let back = next &+ load
    var at = target
    guard let linear = missedAddress(&at), at < block.cold.upperBound else { return nil }
    // Of a group first, that the operand lies in one page: MOV T1D, T0D; AND T1D, 4095; CMP T1D, immediate; JA.
    var crossing = 0
    if text.word32(at) & 0xFF_FFFF == 0xFE_8945 {
      guard text.word(at &+ 3) & 0xFF_FFFF_FFFF_FFFF == 0x0F_FFE6_8141, text.word32(at &+ 10) & 0xFF_FFFF == 0xFE_8141,
        text.word32(at &+ 17) & 0xFFFF == 0x870F
      else { return nil }
      at &+= 23
      crossing = at &+ Int(text.int32(at &- 4))
    }
    if at >= block.cold.upperBound { return nil }
    // MOV T1, immediate.
    let request: Int
    switch text.word32(at) & 0xFFFF {
    case 0xBE41:
      request = text.word32(at &+ 2)
      at &+= 6
    case 0xBE49:
      request = text.int64(at &+ 2)
      at &+= 10
    default: return nil
    }
    // CALL; JMP.
    let end = at &+ 10
    guard text[at] == 0xE8, text[at &+ 5] == 0xE9, end &+ Int(text.int32(at &+ 6)) == back,
      end <= block.cold.upperBound, !isPatched(target, end, but: -1)
    else { return nil }
    let helper = at &+ 5 &+ Int(text.int32(at &+ 1))
    if helper == block.stubs.groupMiss {
      guard crossing == end, splits(at: end) else { return nil }
    } else if crossing != 0 || helper != block.stubs.tlbMiss && helper != block.stubs.slotMiss {
      return nil
    }
    hideSecrets()
    let known = (state[Role.t0], state[Role.t1], state[Role.t2], state[CheckedState.flags], state[CheckedState.exit])
    state[Role.t0] = linear
    state[Role.t1] = CheckedValue(.sum, 0, request)
    miss(helper)
    let answer = state[Role.t1]
    (state[Role.t0], state[Role.t1], state[Role.t2], state[CheckedState.flags], state[CheckedState.exit]) = known
    return Miss(place: back, address: linear, answer: answer)
  }

  /// The length of MOV T1, [ENV + displacement] or [ENV + T1 + displacement] at `next`, or 0.
  private var loadedT1: Int {
    let word = text.word32(next)
    switch word & 0xFF_FFFF {
    case 0x73_8B4D: return 4
    case 0xB3_8B4D: return 7
    default: return word == 0x33B4_8B4F ? 8 : 0
    }
  }

  /// T0 after the instructions at `at` that make of it the linear address that was missed, and sets `at` to their end:
  /// ADD T0, [the tag that was subtracted]; LEA T0, [T0 + displacement].
  private func missedAddress(_ at: inout Int) -> CheckedValue? {
    var linear = state[Role.t0]
    if linear.isKind(.distance) {
      if table(linear.extra) == nil {
        guard displacement(of: 0x7B_034D, &at) == linear.extra else { return nil }
      } else {
        // [ENV + T1 + displacement].
        guard text.word32(at) == 0x33BC_034F, Int(text.int32(at &+ 4)) == linear.extra, state[Role.t1].isKind(.entry),
          state[Role.t1].isOf(linear)
        else { return nil }
        at &+= 8
      }
      linear = linear.turned(.sum)
    }
    guard linear.isSum else { return nil }
    guard let displacement = addedToT0(&at) else { return linear }
    return CheckedValue(.sum, linear.id, linear.offset &+ displacement)
  }

  /// The displacement of LEA T0, [T0 + displacement] at `at`, which is set to its end.
  private func addedToT0(_ at: inout Int) -> Int? {
    if text.word32(at) & 0xFF_FFFF == 0x3F_8D4D {
      at &+= 3
      return 0
    }
    return displacement(of: 0x7F_8D4D, &at)
  }

  /// The displacement of the instruction at `at`, which is set to its end, if that is `form`: REX, opcode and ModRM with a
  /// displacement of one byte, or the same with four.
  @inline(__always)
  private func displacement(of form: Int, _ at: inout Int) -> Int? {
    let word = text.word32(at)
    if word & 0xFF_FFFF == form {
      at &+= 4
      return Int(Int8(truncatingIfNeeded: word >> 24))
    }
    if word & 0xFF_FFFF == form &+ 0x40_0000 {
      at &+= 7
      return Int(text.int32(at &- 4))
    }
    return nil
  }

  /// Whether the code at `target` in the cold half goes on with the same instruction in another block: an edge with T0 the
  /// instruction's address, and its exit.
  private mutating func splits(at target: Int) -> Bool {
    var at = target
    // MOV T0, [page address].
    guard displacement(of: 0x7B_8B4D, &at) == page.pageAddress else { return false }
    guard let offset = addedToT0(&at), at < block.cold.upperBound else { return false }
    // NOPs, and JMP to what follows.
    let word = text.word32(at)
    if word & 0xFF == 0x90 {
      at &+= 1
    } else if word & 0xFFFF == 0x9066 {
      at &+= 2
    } else if word & 0xFF_FFFF == 0x00_1F0F {
      at &+= 3
    }
    guard text.word(at) & 0xFF_FFFF_FFFF == 0xE9 else { return false }
    let edge = at &+ 5
    guard edge <= block.cold.upperBound else { return false }
    // MOV [linear], T0.
    at = edge
    guard let linear = displacement(of: 0x7B_894D, &at), page[linear] == .state, !isPatched(target, at, but: edge),
      exits(at: at)
    else { return false }
    let known = (next, state[Role.t0])
    next = edge
    state[Role.t0] = CheckedValue(.sum, CheckPass.pageID, offset)
    checkEdge(edge)
    accessPage(linear, 8, write: true)
    (next, state[Role.t0]) = known
    return true
  }
}
