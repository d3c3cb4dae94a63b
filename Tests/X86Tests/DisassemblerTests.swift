// SPDX-License-Identifier: Apache-2.0
// The decoder against binutils: lengths and mnemonics of every instruction in some large programs, and lengths of
// random bytes in all three modes. Each kind of accepted disagreement is named in `Disagreement`.

import Foundation
import Testing

@testable import X86

/// One line of objdump.
struct Line {
  var address: UInt64 = 0
  var bytes: [UInt8] = []
  var text: [UInt8] = []

  /// The mnemonic without prefixes.
  var mnemonic: String {
    let words = String(decoding: text, as: UTF8.self).split(separator: " ")
    let first = words.first { !Self.prefixes.contains($0) && !$0.hasPrefix("rex") && !$0.hasPrefix("{") }
    return first.map { String($0) } ?? ""
  }
  private static let prefixes: Set<Substring> = [
    "rep", "repz", "repnz", "lock", "data16", "data32", "addr16", "addr32", "cs", "ds", "es", "ss", "fs", "gs", "bnd",
    "notrack", "xacquire", "xrelease",
  ]
}

/// Runs objdump and reads its lines.
enum Objdump {
  static let path = "/usr/bin/objdump"
  static var isThere: Bool { FileManager.default.isExecutableFile(atPath: path) }

  static func lines(_ arguments: [String], _ body: (Line) -> Void) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = ["-z", "--insn-width=16"] + arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    var line: [UInt8] = []
    while case let data = pipe.fileHandleForReading.availableData, !data.isEmpty {
      for byte in data {
        if byte != 10 {
          line.append(byte)
          continue
        }
        if let parsed = parse(line) { body(parsed) }
        line.removeAll(keepingCapacity: true)
      }
    }
    process.waitUntilExit()
  }

  /// `  401000:\t48 83 ec 08 \tsub    rsp,0x8`.
  private static func parse(_ line: [UInt8]) -> Line? {
    var result = Line()
    var position = 0
    while position < line.count, line[position] == 32 { position += 1 }
    while position < line.count, let digit = digit(line[position]) {
      result.address = result.address << 4 | UInt64(digit)
      position += 1
    }
    guard position + 1 < line.count, line[position] == 58, line[position + 1] == 9 else { return nil }
    position += 2
    while position + 1 < line.count, let high = digit(line[position]), let low = digit(line[position + 1]) {
      result.bytes.append(high << 4 | low)
      position += 3
    }
    while position < line.count, line[position] == 32 || line[position] == 9 { position += 1 }
    guard position < line.count else { return nil }
    result.text = Array(line[position...])
    return result
  }

  private static func digit(_ character: UInt8) -> UInt8? {
    switch character {
    case 48...57: character - 48
    case 97...102: character - 87
    default: nil
    }
  }
}

/// Why objdump and the table may differ.
enum Disagreement {
  /// Names that objdump gives to what a row calls otherwise.
  static func canonical(_ name: String) -> String {
    if let same = aliases[name] { return same }
    for (prefix, count) in [("vcmp", 4), ("cmp", 3), ("vpcmp", 5)] where name.hasPrefix(prefix) {
      for suffix in ["ps", "pd", "ss", "sd"] where name.hasSuffix(suffix) && name.count > count + 2 {
        return prefix + suffix
      }
    }
    if name.hasPrefix("vpclmul") { return "vpclmulqdq" }
    if name.hasPrefix("pclmul") { return "pclmulqdq" }
    return name
  }
  private static let aliases: [String: String] = [
    "movabs": "mov", "sal": "shl", "endbr32": "endbr32", "xlatb": "xlat", "fstsw": "fnstsw", "retw": "ret",
    "movsxd": "movsxd", "fxsave64": "fxsave", "fxrstor64": "fxrstor", "xsave64": "xsave", "xrstor64": "xrstor",
    "xsaveopt64": "xsaveopt", "xsavec64": "xsavec", "xsaves64": "xsaves", "xrstors64": "xrstors", "iretd": "iret",
    "vmovq": "vmovd", "movq": "movd", "pushw": "push", "rdsspq": "nop", "rdsspd": "nop", "pextrq": "pextrd",
  ]
}

@Suite struct DisassemblerTests {
  static let programs = ["/bin/bash", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/bin/python3.11"]
    .filter { FileManager.default.isReadableFile(atPath: $0) }

  @Test("each instruction of a program", arguments: programs)
  func program(path: String) throws {
    guard Objdump.isThere else { return print("skipped: no objdump") }
    let decoder = Decoder(), formatter = InstructionFormatter()
    var count = 0, problems = 0, foreign = 0
    var kinds: [String: Int] = [:]
    try Objdump.lines(["-d", "-M", "intel,intel64", path]) { line in
      count += 1
      guard case .complete(let i) = decoder.decode(line.bytes.span, code: .code64) else {
        problems += 1
        kinds["incomplete: \(line.mnemonic) \(line.bytes.hex)", default: 0] += 1
        return
      }
      // AVX-512 begins with 62 (EVEX), or uses mask registers (VEX k...).
      if line.bytes.prefix(4).contains(0x62) && !i.isValid || (line.mnemonic.hasPrefix("k") && !i.isValid) {
        foreign += 1
        return
      }
      let theirs = Disagreement.canonical(line.mnemonic)
      let ours = Disagreement.canonical(formatter.mnemonic(i))
      var problem = ""
      if !i.isValid {
        if theirs == "(bad)" { return }
        problem = "not in the table"
      } else if Int(i.length) != line.bytes.count {
        problem = "length \(i.length)"
      } else if ours != theirs {
        // String instructions carry their size in our name.
        if ours.dropLast() == theirs[...] { return }
        problem = ours
      } else {
        return
      }
      problems += 1
      kinds["\(problem), objdump: \(line.mnemonic)" + (kinds.count > 50 ? "" : " \(line.bytes.hex)"), default: 0] += 1
    }
    print("\(path): \(count) instructions, \(foreign) of AVX-512, \(problems) disagreements")
    for (kind, number) in kinds.sorted(by: { $0.value > $1.value }).prefix(60) { print("  \(number)\t\(kind)") }
    #expect(problems == 0)
  }

  @Test("random bytes", arguments: [64, 32, 16] as [UInt8])
  func random(bits: UInt8) throws {
    guard Objdump.isThere else { return print("skipped: no objdump") }
    let slots = 60_000
    var random = SplitMix64(state: UInt64(bits))
    var bytes: [UInt8] = []
    bytes.reserveCapacity(slots * 32)
    for _ in 0..<slots {
      var slot = encoding(bits, &random)
      while slot.count < 16 { slot.append(UInt8.random(in: 0...255, using: &random)) }
      bytes += slot.prefix(16)
      bytes += [UInt8](repeating: 0x90, count: 16)
    }
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("X86Tests.\(getpid()).\(bits)")
    try Data(bytes).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    let machine = bits == 64 ? "i386:x86-64" : bits == 32 ? "i386" : "i8086"
    let decoder = Decoder()
    var valid = 0, problems = 0, skipped = 0
    var kinds: [String: (Int, String)] = [:]
    try Objdump.lines(["-D", "-b", "binary", "-m", machine, "-M", "intel,intel64", file.path]) { line in
      guard line.address % 32 == 0 else { return }
      let start = Int(line.address)
      let slot = Array(bytes[start..<start + 16])
      let theirs = line.mnemonic
      let isTheirs = !String(decoding: line.text, as: UTF8.self).contains("(bad)") && theirs != ".byte"
      guard case .complete(let i) = decoder.decode(slot.span, code: CodeSize(bits: bits)) else {
        skipped += 1
        return
      }
      if theirs.isEmpty || Accepted.difference(i, slot, theirs, isTheirs, line) {
        skipped += 1
        return
      }
      if !isTheirs && !i.isValid { return }
      valid += 1
      var problem = ""
      if isTheirs && !i.isValid {
        problem = "only objdump: \(theirs)"
      } else if !isTheirs {
        problem = "only ours: \(InstructionFormatter().mnemonic(i))"
      } else if Int(i.length) != line.bytes.count {
        problem = "length \(i.length) not \(line.bytes.count): \(theirs)"
      } else {
        return
      }
      problems += 1
      kinds[problem, default: (0, slot.hex)].0 += 1
    }
    print("\(bits)-bit random: \(valid) compared, \(skipped) skipped, \(problems) disagreements")
    for (kind, value) in kinds.sorted(by: { $0.value.0 > $1.value.0 }).prefix(400) {
      print("  \(value.0)\t\(kind)\t\(value.1)")
    }
    #expect(problems == 0)
  }

  /// Bytes that are more often an instruction than random ones.
  private func encoding(_ bits: UInt8, _ random: inout SplitMix64) -> [UInt8] {
    var bytes: [UInt8] = []
    let prefixes: [UInt8] = [0x66, 0x66, 0xF2, 0xF3, 0x67, 0xF0, 0x2E, 0x64, 0x65]
    let kind = Int.random(in: 0..<8, using: &random)
    let isVEX = kind < 2
    if !isVEX || random.next() % 16 == 0 {
      while random.next() % 5 < 2 { bytes.append(prefixes[Int(random.next() % UInt64(prefixes.count))]) }
      if bits == 64 && random.next() % 3 == 0 { bytes.append(0x40 | UInt8(random.next() & 15)) }
    }
    switch kind {
    case 0:
      // Map 1...3, mostly vvvv 1111.
      let last = UInt8(truncatingIfNeeded: random.next())
      bytes += [0xC4, (bits == 64 ? UInt8(random.next() & 0xE0) : 0xE0) | UInt8(1 + random.next() % 3)]
      bytes.append(random.next() % 2 == 0 ? last : last | 0x78)
    case 1:
      let last = UInt8(truncatingIfNeeded: random.next())
      bytes += [0xC5, bits == 64 ? last | 0x78 : last | 0xF8]
    case 2, 3, 4: bytes.append(0x0F)
    case 5: bytes += [0x0F, 0x38]
    case 6: bytes += [0x0F, 0x3A]
    default: break
    }
    return bytes
  }
}

/// Differences between objdump and the CPU (or the CPU models here) on random bytes.
enum Accepted {
  static func difference(_ i: Instruction, _ slot: [UInt8], _ theirs: String, _ isTheirs: Bool, _ line: Line) -> Bool {
    false
  }
}

/// A small reproducible generator.
struct SplitMix64: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}
