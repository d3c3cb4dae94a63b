// SPDX-License-Identifier: Apache-2.0
// What mutants are made of: blocks that the translator really emits, of the differential tests' programs, of every row
// of the opcode table, and of what kernels do, in several modes, cold and hot, in the full and in the simple form.
// Nothing of it is executed.

import CHost
import GuestMemory
import X86

@testable import Translator

/// Guest code that is translated.
enum MutantProgram: CaseIterable { case sequence, limits, rows, kernel }

/// A mode and a way of translating.
struct MutantFlavour {
  var name: String
  var mode: UInt32
  var isHot = false
  var form = BlockForm.full

  var code: CodeSize { BlockTranslator.codeSize(mode) }

  private static func word(_ bits: Int...) -> UInt32 {
    bits.reduce(
      UInt32(CHOST_MODE_PROTECTED) | UInt32(CHOST_MODE_OSFXSR) | UInt32(CHOST_MODE_AVX) | UInt32(CHOST_MODE_OSXSAVE)
    ) { $0 | UInt32($1) }
  }

  static let all: [MutantFlavour] = {
    let long = word(Int(CHOST_MODE_LONG), Int(CHOST_MODE_LMA), Int(CHOST_MODE_FSGSBASE))
    let flat = word(Int(CHOST_MODE_CODE32), Int(CHOST_MODE_STACK32))
    let segmented = flat | UInt32(CHOST_MODE_SEGMENTED)
    return [
      MutantFlavour(name: "64 bits, level 0", mode: long),
      MutantFlavour(name: "64 bits, level 3, hot", mode: long | 3, isHot: true),
      MutantFlavour(name: "64 bits, level 3", mode: long | 3),
      MutantFlavour(name: "64 bits, level 0, hot", mode: long, isHot: true),
      MutantFlavour(name: "64 bits, simple", mode: long | 3, form: .simple),
      MutantFlavour(name: "64 bits, stepped", mode: long | UInt32(CHOST_MODE_STEP)),
      MutantFlavour(name: "32 bits, level 3, hot", mode: flat | 3, isHot: true),
      MutantFlavour(name: "32 bits, level 0", mode: flat),
      MutantFlavour(name: "32 bits, simple", mode: flat | 3, form: .simple),
      MutantFlavour(name: "32 bits of IA-32e mode", mode: flat | UInt32(CHOST_MODE_LMA) | 3, isHot: true),
      MutantFlavour(name: "32 bits, segmented", mode: segmented | 3, isHot: true),
      MutantFlavour(name: "16 bits", mode: word(Int(CHOST_MODE_SEGMENTED)) | 3),
    ]
  }()
}

/// Translates such programs into a cache of its own.
@safe final class MutantSources {
  let cache: CodeCache
  private let memory: GuestMemory
  private var random: Random
  private let table = OpcodeTable.shared
  private static let base: UInt64 = 0x10_0000
  private static let pages: UInt64 = 16

  init(seed: UInt64) throws {
    memory = try GuestMemory(byteCount: 4 << 20)
    let translator = BlockTranslator(supports: { _ in true }, countsPauses: true, acceptedHypercalls: [.vmcall])
    cache = try CodeCache(memory: memory, translator: translator)
    random = Random(seed: seed)
  }

  /// Forgets all blocks and translates some more.
  func translate(_ flavour: MutantFlavour, _ program: MutantProgram) throws {
    cache.flush()
    cache.hotCode.isEverything = flavour.isHot
    cache.refusedForms = flavour.form == .full ? [] : [.full]
    let filler = [UInt8](repeating: 0xF4, count: Int(MutantSources.pages) << 12)
    try memory.copy(from: filler, to: GuestPhysical(MutantSources.base))
    for page in 0..<MutantSources.pages { cache.markCode(MutantSources.base + page << 12) }
    for (offset, bytes) in pieces(flavour, program) {
      try memory.copy(from: bytes, to: GuestPhysical(MutantSources.base + offset))
      translate(offset, bytes.count, flavour.mode)
    }
  }

  private func translate(_ start: UInt64, _ count: Int, _ mode: UInt32) {
    var place = MutantSources.base + start
    let end = place + UInt64(count)
    while place < end {
      var made = cache.make(place, secondPage: Block.noPage, mode: mode)
      if case .needsSecondPage = made { made = cache.make(place, secondPage: place & ~4095 + 4096, mode: mode) }
      guard case .block(let number) = made else { break }
      place += max(UInt64(cache[number].length), 1)
    }
  }

  // MARK: Programs

  /// Pieces of code, by their offset.
  private func pieces(_ flavour: MutantFlavour, _ program: MutantProgram) -> [(UInt64, [UInt8])] {
    let is64 = flavour.code == .code64
    switch program {
    case .sequence where flavour.code != .code16:
      var writer = ProgramWriter(seed: random.next(), is32: !is64)
      return writer.write().pieces.map { ($0.address - Arena.codeBase, $0.bytes) }
    case .limits where flavour.code != .code16:
      var writer = LimitWriter(seed: random.next(), is32: !is64)
      return [(UInt64(random.below(0x3000)), writer.write().bytes)]
    case .kernel where is64:
      let bytes = (0..<6).flatMap { _ in random.pick(MutantSources.kernel) }
      return [(UInt64(random.below(0x3000)), bytes + [0xF4])]
    default:
      return [(UInt64(random.below(0x3000)), rows(flavour.code))]
    }
  }

  private func rows(_ code: CodeSize) -> [UInt8] {
    var bytes: [UInt8] = []
    for _ in 0..<8 {
      let row = table[UInt16(1 + random.below(table.count - 1))]
      let encoding = code == .code64 ? random.encode(row) : random.encodeLegacy(row, is16: code == .code16)
      if encoding.length <= 15 { bytes += encoding.bytes }
    }
    return bytes + [0xF4]
  }

  /// What kernels do and the other programs do not.
  private static let kernel: [[UInt8]] = [
    [0x55, 0x48, 0x89, 0xE5, 0x41, 0x57, 0x41, 0x56, 0x53, 0x48, 0x83, 0xEC, 0x18],  // a prologue
    [0x48, 0x83, 0xC4, 0x18, 0x5B, 0x41, 0x5E, 0x41, 0x5F, 0x5D, 0xC3],  // and its epilogue
    [0x0F, 0x01, 0xF8, 0x65, 0x48, 0x89, 0x24, 0x25, 0x14, 0, 0, 0],  // SWAPGS; MOV GS:[20],RSP
    [0x65, 0x48, 0x8B, 0x04, 0x25, 0x28, 0, 0, 0, 0x65, 0x48, 0x2B, 0x04, 0x25, 0x30, 0, 0, 0],
    [0x9C, 0x58, 0xFA, 0x50, 0x9D],  // PUSHF; POP RAX; CLI; PUSH RAX; POPF
    [0xFB, 0x90, 0xFC, 0xFD, 0xFC],  // STI; NOP; CLD; STD; CLD
    [0x0F, 0x01, 0xCB, 0x48, 0x8B, 0x03, 0x48, 0x89, 0x01, 0x0F, 0x01, 0xCA],  // STAC; copies; CLAC
    [0x0F, 0x20, 0xD0, 0x0F, 0x22, 0xD8],  // MOV RAX,CR2; MOV CR3,RAX
    [0x0F, 0x01, 0x3B], [0x0F, 0x30], [0x48, 0xCF], [0x48, 0x0F, 0x07], [0x0F, 0x05], [0x0F, 0x01, 0xC1],
    [0xF3, 0x0F, 0xAE, 0xC8, 0xF3, 0x48, 0x0F, 0xAE, 0xD0],  // RDGSBASE; WRFSBASE
    [0xF3, 0x48, 0xA5, 0xF3, 0xAA, 0xA5, 0xAB, 0xAC, 0xF2, 0xAE],  // strings
    [0xF0, 0x48, 0x0F, 0xAB, 0x03, 0x0F, 0xA3, 0x4B, 0x10],  // LOCK BTS [RBX],RAX; BT [RBX+16],ECX
    [0xF0, 0x48, 0x0F, 0xC7, 0x0B, 0xF0, 0x48, 0x0F, 0xB1, 0x0B],  // LOCK CMPXCHG16B; LOCK CMPXCHG
    [0xE8, 0x20, 0, 0, 0, 0x85, 0xC0, 0x75, 0x08], [0xFF, 0xD0], [0xFF, 0x14, 0xC5, 0, 0, 0x10, 0],
    [0xFF, 0xE0], [0xFF, 0x24, 0xC5, 0, 0, 0x10, 0], [0xFF, 0x53, 0x18], [0xFF, 0x73, 0x08], [0xC2, 0x10, 0],
    [0x0F, 0xAE, 0x03, 0x0F, 0xAE, 0x0B],  // FXSAVE; FXRSTOR
    [0x48, 0x0F, 0xAE, 0x23, 0x48, 0x0F, 0xAE, 0x2B],  // XSAVE64; XRSTOR64
    [0x0F, 0xAE, 0x53, 0x08, 0x0F, 0xAE, 0x5B, 0x08, 0xD9, 0x6B, 0x04, 0xD9, 0x7B, 0x04],  // MXCSR, FCW
    [0xDD, 0x03, 0xDC, 0x43, 0x08, 0xDB, 0x7B, 0x10, 0xDF, 0xE0],  // x87
    [0x0F, 0x28, 0x03, 0x66, 0x0F, 0x7F, 0x43, 0x10, 0xC5, 0xFE, 0x6F, 0x43, 0x20, 0xC5, 0xFE, 0x7F, 0x43, 0x40],
    [0x66, 0x83, 0x43, 0x06, 0x01, 0x66, 0x89, 0x4B, 0x0A, 0x66, 0x41, 0x50],  // operands of 16 bits
    [0x8A, 0x63, 0x01, 0x88, 0x7B, 0x02, 0x40, 0x8A, 0x73, 0x03],  // AH, BH, SIL
    [0x48, 0x8B, 0x05, 0x10, 1, 0, 0, 0x48, 0x03, 0x05, 0x18, 1, 0, 0, 0x48, 0x89, 0x05, 0x20, 1, 0, 0],
    [0x4C, 0x8B, 0x5B, 0x10, 0x4D, 0x89, 0x5B, 0x08, 0x4F, 0x8D, 0x1C, 0xB3, 0x4B, 0x8B, 0x04, 0xF3],  // R11, R14
    [0xF3, 0x90, 0x0F, 0x31, 0x0F, 0x01, 0xF9, 0xD7, 0xE3, 0x04, 0xE2, 0xFC],  // PAUSE, RDTSC, XLAT, loops
    [0x8E, 0xD8, 0x0F, 0xA0, 0x0F, 0xA1, 0x8C, 0xD8],  // segment registers
    [0x48, 0xA1, 0x10, 0, 0x20, 0, 0, 0, 0, 0, 0xA2, 0x18, 0, 0x20, 0, 0, 0, 0, 0],  // MOV RAX,[abs64] and back
  ]
}
