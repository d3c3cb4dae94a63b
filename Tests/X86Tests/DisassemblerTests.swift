// SPDX-License-Identifier: Apache-2.0
// The decoder against binutils: lengths and mnemonics of every instruction in some large programs, and lengths of
// random bytes in all three modes. Each kind of accepted disagreement is named in `Disagreement`.

import Foundation
import TestSupport
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
    // MPX, CLDEMOTE and PREFETCHIT are hints without their feature.
    if name.hasPrefix("bnd") || name == "cldemote" || name.hasPrefix("prefetchit") { return "nop" }
    if name.hasPrefix("vpclmul") { return "vpclmulqdq" }
    if name.hasPrefix("pclmul") { return "pclmulqdq" }
    return name
  }
  private static let aliases: [String: String] = [
    "movabs": "mov", "wbnoinvd": "wbinvd", "fneni(8087": "fneni", "fndisi(8087": "fndisi", "fnsetpm(287": "fnsetpm",
    "sal": "shl", "xlatb": "xlat", "fstsw": "fnstsw", "retw": "ret",
    "fxsave64": "fxsave", "fxrstor64": "fxrstor", "xsave64": "xsave", "xrstor64": "xrstor",
    "xsaveopt64": "xsaveopt", "xsavec64": "xsavec", "xsaves64": "xsaves", "xrstors64": "xrstors", "iretd": "iret",
    "vmovq": "vmovd", "movq": "movd", "pushw": "push", "rdsspq": "nop", "rdsspd": "nop", "pextrq": "pextrd",
  ]
}

@Suite(.enabled(if: Objdump.isThere, "objdump (binutils) is not installed")) struct DisassemblerTests {
  static let programs = ["/bin/bash", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/bin/python3.11"]
    .filter { FileManager.default.isReadableFile(atPath: $0) }

  @Test("each instruction of a program", arguments: programs)
  func program(path: String) throws {
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
        // String instructions carry their size in our name. 66 90 is NOP, which objdump calls XCHG.
        if ours.dropLast() == theirs[...] || (ours == "nop" && theirs == "xchg") { return }
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
    let slots = 60_000
    let seed = TestSeed.of("random bytes of \(bits) bits", fixed: 0)
    var random = SeededGenerator(seed: UInt64(bits) + seed << 8)
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
      } else if let difference = textDifference(i, line) {
        problem = difference
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

  /// What differs in the mnemonic or in the size of the memory operand.
  private func textDifference(_ i: Instruction, _ line: Line) -> String? {
    let formatter = InstructionFormatter()
    let ours = Disagreement.canonical(formatter.mnemonic(i)), theirs = Disagreement.canonical(line.mnemonic)
    // Operand-size suffixes: ours has one for strings, theirs for some where the size is not the usual.
    let isSuffixed = "wdq".contains(theirs.last!) && theirs.dropLast() == ours[...]
    let isNOP = (ours == "nop" && theirs == "xchg") || (ours == "xchg" && theirs == "pause")
    if ours != theirs && ours.dropLast() != theirs[...] && !isSuffixed && !isNOP {
      return "\(ours) is \(line.mnemonic)"
    }
    // VMX instructions are #UD whatever their size, NOP reads nothing, MOVSXD with 66 reads 4 bytes or 2.
    if OpcodeTable.shared[i.row].feature == .vmx || ours == "nop" { return nil }
    if ours == "movsxd" && i.hasOperandSizePrefix { return nil }
    let words = String(decoding: line.text, as: UTF8.self).split { $0 == " " || $0 == "," }
    if i.isMemory, let mark = words.firstIndex(of: "PTR") {
      let theirs = words[mark - 1] == "OWORD" ? "xmmword" : words[mark - 1].lowercased()
      let text = formatter.text(i).split { $0 == " " || $0 == "," }
      let sizes: Set<Substring> = ["byte", "word", "dword", "qword", "tbyte", "xmmword", "ymmword"]
      let ours = text.first { sizes.contains($0) }
      if let ours, ours != theirs { return "\(line.mnemonic): \(ours), not \(theirs)" }
    }
    return nil
  }

  /// Bytes that are more often an instruction than random ones.
  private func encoding(_ bits: UInt8, _ random: inout SeededGenerator) -> [UInt8] {
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
    let seen = slot.prefix(Int(i.length))
    if isTheirs && !i.isValid {
      // objdump prints LOCK before anything; the CPU raises #UD.
      if i.hasLock { return true }
      // 66, F2, F3 or REX before VEX: #UD, which objdump does not know.
      if seen.count > 1, !i.hasVEX, let last = seen.last, last == 0xC4 || last == 0xC5 { return true }
      // The same before an instruction that the manual marks NP, or VEX.pp.
      let hasPrefix = i.repeatPrefix != 0 || i.hasOperandSizePrefix || i.hasVEX
      if hasPrefix && withoutPrefix.contains(theirs) { return true }
      // MOV to CS and segment registers 6 and 7; MOV to and from the 386's test registers.
      if theirs == "mov" && (seen.contains(0x8C) || seen.contains(0x8E) || seen.contains(0x24) || seen.contains(0x26)) {
        return true
      }
      // Outside 64-bit mode VEX.W is #UD here (measured).
      if i.code != .code64 && i.hasVEX && i.vexW && ["vpinsrd", "vpextrd"].contains(theirs) { return true }
      // 64-bit mode only.
      if i.code != .code64 && ["rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "swapgs"].contains(theirs) {
        return true
      }
      // EVEX, XOP, 3DNow!.
      if i.opcode == 0x62 || i.opcode == 0x8F || (i.opcode == 0x0F && !i.hasVEX) { return true }
      // FMA4, which has no operand order in its names.
      if theirs.hasPrefix("vfm") || theirs.hasPrefix("vfnm") {
        return !["132", "213", "231"].contains { theirs.contains($0) }
      }
      return unknown.contains(theirs) || unknownPrefixes.contains { theirs.hasPrefix($0) }
    }
    if !isTheirs && i.isValid { return ours.contains(InstructionFormatter().mnemonic(i)) }
    // FWAIT before an x87 instruction is one line.
    return slot.prefix(16).prefix { $0 != 0x9B }.count < max(Int(i.length), line.bytes.count)
      && (seen.contains(0x9B) && Int(i.length) < line.bytes.count)
  }

  private static let withoutPrefix: Set<String> = [
    "fxsave", "fxsave64", "fxrstor", "fxrstor64", "ldmxcsr", "stmxcsr", "xsave", "xsave64", "xrstor", "xrstor64",
    "xsavec", "xsavec64", "xsaves", "xsaves64", "xrstors", "xrstors64", "xsaveopt", "xsaveopt64", "clflush", "sfence",
    "lfence", "mfence", "vmptrst", "vmptrld", "vmread", "vmwrite", "pmovmskb", "clzero", "xend", "xtest", "enclu",
    "encls", "enclv", "vmfunc", "xgetbv", "xsetbv", "clac", "stac", "serialize", "rdpkru", "wrpkru", "rdpru",
    "monitorx", "mwaitx", "pconfig", "vmlaunch", "vmresume", "vmxoff", "vzeroupper", "vzeroall", "vldmxcsr",
    "vstmxcsr", "invlpgb", "tlbsync", "movnti", "cmpxchg8b", "cmpxchg16b", "femms",
  ]
  /// Extensions that no CPU model here has.
  private static let unknown: Set<String> = [
    // SSE4a, 3DNow!, SMX, RAO-INT, direct stores, CET, SEV-SNP, WRMSRNS, PTWRITE, UINTR, PREFETCHI.
    "extrq", "insertq", "movntss", "movntsd", "femms", "getsec", "movdiri", "movdir64b", "enqcmd", "enqcmds", "aadd",
    "aand", "aor", "axor", "wrssd", "wrssq", "wrussd", "wrussq", "psmash", "pvalidate", "rmpadjust", "rmpupdate",
    "rmpquery", "wrmsrns", "rdmsrlist", "wrmsrlist", "ptwrite", "clui", "stui", "testui", "uiret", "xsusldtrk",
    "xresldtrk", "mcommit", "hreset", "seamcall", "seamret", "seamops", "tdcall", "loadiwkey", "montmul", "vpermil2ps",
    "vpermil2pd", "erets", "eretu", "lkgs", "frstpm(287",
  ]
  private static let unknownPrefixes = [
    // Mask registers, Key Locker, CMPccXADD, newer VNNI, IFMA, NE-CONVERT, AMX, PadLock.
    "k", "aesenc", "aesdec", "encodekey", "cmp", "vpdpb", "vpdpw", "vpmadd52", "vcvtne", "vbcst", "tile", "sttile",
    "ldtile", "tdp", "tcmm", "xcrypt", "xsha", "xstore",
  ]
  /// Encodings that the CPU has and objdump does not list, or lists without this prefix: SALC, aliases of x87
  /// instructions (after FWAIT, too), fences with any rm, F2 before BSF, 66 before WBINVD and VMMCALL, hints.
  private static let ours: Set<String> = [
    "salc", "nop", "wbinvd", "bsf", "bsr", "lfence", "mfence", "sfence", "fxch", "fstp", "fcom", "fcomp", "fwait",
    "vmcall", "vmmcall",
  ]
}
