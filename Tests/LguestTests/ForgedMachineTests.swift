// SPDX-License-Identifier: Apache-2.0
// Forged files of saved machines, with the sums repaired: every field of every section, one by one (several at
// once are the fuzz target saved-machines). Each is refused in one line that names file, section and field, or its guest
// runs and ends as a guest may. LGUEST_TEST_SEED reproduces, LGUEST_FUZZ_TRACE says what is tried before it is; a file
// that ends the process stays where the first lines say.

import Foundation
import Host
import SystemPackage
import TestSupport
import Testing

@testable import Lguest
@testable import Saving

@Suite("Forged machines", .serialized, .timeLimit(.minutes(600))) struct ForgedMachineTests {
  typealias Kind = ForgeableMachine.Kind
  typealias Forgery = ForgeableMachine.Forgery

  private static let environment = ProcessInfo.processInfo.environment
  private static let seed: UInt64 =
    environment["LGUEST_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...9_999_999)
  private static let isLong = environment["LGUEST_TEST_LONG"] != nil
  private static let traces = environment["LGUEST_FUZZ_TRACE"] != nil

  private static func trace(_ text: @autoclosure () -> String) {
    guard traces else { return }
    FileHandle.standardError.write(Data((text() + "\n").utf8))
  }

  /// Whether a refusal is as it should be: a line that names the file, the section and a field.
  private static func isProper(_ line: String, _ machine: ForgeableMachine, _ forgeries: [Forgery]) -> Bool {
    guard !line.contains("\n"), line.contains(machine.path.string) || line.contains("saved machine") else {
      return false
    }
    return forgeries.contains {
      line.contains("section \($0.section): impossible ") || line.contains("section \($0.section): it ends before its ")
        || line.contains("section \($0.section): ") && line.contains(" bytes too many")
    }
      // What the file asks of the host.
      || forgeries.contains { $0.section == SavedConfiguration.section || $0.section == Machine.clockSection }
  }

  /// Whether a run came to an end that a guest may come to.
  private static func isProper(_ ending: Ending) -> Bool {
    switch ending {
    case .timeout, .tripleFault, .reset, .poweroff, .debugExit, .panic, .killed: true
    default: false
    }
  }

  /// Runs the file with some changes, and judges what becomes of it.
  ///
  /// - Returns: Whether it ran.
  @discardableResult
  private static func tryOut(_ forgeries: [Forgery], _ machine: ForgeableMachine, seed: UInt64) throws -> Bool {
    trace("\(machine.kind), seed \(seed): \(forgeries)")
    try machine.write(forgeries)
    let begin = ContinuousClock.now
    let outcome = machine.run()
    let text = "\(machine.kind), seed \(seed): \(forgeries)"
    let time = ContinuousClock.now - begin
    if time > .seconds(1) { print("\(text): \(outcome) after \(time)") }
    switch outcome {
    case .refused(let line):
      #expect(isProper(line, machine, forgeries), "\(text): \(line)")
    case .ended(let ending, let detail):
      if !isProper(ending) {
        let kept = FilePath(machine.path.string + ".\(UInt32.random(in: 0...UInt32.max))")
        try FileManager.default.copyItem(atPath: machine.path.string, toPath: kept.string)
        Issue.record("\(text): \(ending), \(detail ?? ""); the file is \(kept)")
      }
    case .hung: Issue.record("\(text): does not end")
    }
    try machine.repair(forgeries)
    if case .ended = outcome { return true }
    return false
  }

  @Test("every field, one by one", arguments: Kind.available) func fields(_ kind: Kind) throws {
    var random = SeededGenerator(seed: ForgedMachineTests.seed &+ UInt64(kind.rawValue))
    print("forged machines, \(kind): seed \(ForgedMachineTests.seed)")
    let machine = try ForgeableMachine(kind)
    print("\(kind): \(machine.path)")
    let standing = try Standing(machine.path)
    var accepted: [[Forgery]] = []
    var (tried, refused, untouched) = (0, 0, 0)
    for section in machine.sections.indices {
      let (name, bytes, fields) = machine.sections[section]
      #expect(standing.refusal(name, bytes) == nil, "\(name) as it was saved")
      // Every byte belongs to a field, whose name is its own.
      #expect(fields.reduce(0) { $0 + $1.elementSize * $1.count } == bytes.count, "\(name)")
      #expect(Set(fields.map(\.name)).count == fields.count, "\(name)")
      for field in fields {
        // What ends before a field is refused by its name.
        if field.count > 0 {
          let line = standing.refusal(name, Array(bytes.prefix(field.offset))) ?? "accepted"
          #expect(line.contains("section \(name): it ends before its \(field.name)"), "\(line)")
        }
        var lives: [Forgery] = []
        for forgery in machine.forgeries(
          of: field, in: section, isThorough: ForgedMachineTests.isLong, &random)
        {
          tried += 1
          ForgedMachineTests.trace("\(forgery)")
          if let line = standing.refusal(name, machine.forged(section, [forgery])) {
            refused += 1
            #expect(ForgedMachineTests.isProper(line, machine, [forgery]), "\(forgery): \(line)")
          } else {
            lives.append(forgery)
          }
        }
        if lives.isEmpty { untouched += 1 } else { accepted.append(lives) }
      }
      let line = standing.refusal(name, bytes + [0]) ?? "accepted"
      #expect(line.contains("section \(name): 1 bytes too many"), "\(line)")
    }
    #expect(tried > 1500 && refused > tried / 10, "\(tried) forgeries, \(refused) refused")
    // What was not refused runs: something of each field, or all of it.
    var ran = 0
    let begin = ContinuousClock.now
    let budget: Duration = ForgedMachineTests.isLong ? .seconds(120) : .milliseconds(800)
    var queue = accepted.map { $0.shuffled(using: &random) }.shuffled(using: &random)
    while !queue.isEmpty, ran < 8 || ContinuousClock.now - begin < budget {
      for index in queue.indices where ran < 8 || ContinuousClock.now - begin < budget {
        if let forgery = queue[index].popLast() {
          if try ForgedMachineTests.tryOut([forgery], machine, seed: ForgedMachineTests.seed) { ran += 1 }
        }
      }
      queue.removeAll { $0.isEmpty }
    }
    #expect(ran >= 8)
    print("\(kind): \(tried) forgeries of one field, \(refused) refused, \(ran) of the others run")
    // As it was, it goes on.
    #expect(machine.run() == .ended(.timeout, detail: nil))
  }

  @Test("the header, field by field", arguments: [Kind.real]) func header(_ kind: Kind) throws {
    var random = SeededGenerator(seed: ForgedMachineTests.seed)
    let machine = try ForgeableMachine(kind)
    let page = machine.header.encoded()
    var archive = StateArchive(restoring: page, at: 0, listsFields: true)
    var copy = SaveFileHeader()
    try copy.transfer(&archive)
    var (tried, refused) = (0, 0)
    for field in try #require(archive.fields) {
      let count = field.elementSize * field.count
      for round in 0..<8 {
        var bytes = page
        for place in field.offset..<field.offset + count {
          bytes[place] =
            switch round {
            case 0: 0
            case 1: 0xFF
            case 2: place == field.offset ? 1 : 0
            case 3: place == field.offset + count - 1 ? 0x7F : 0xFF
            default: bytes[place]
            }
        }
        if round > 3 {
          let bit = Int.random(in: 0..<count * 8, using: &random)
          bytes[field.offset + bit / 8] ^= 1 << UInt8(bit % 8)
        }
        if bytes == page { continue }
        tried += 1
        let sum = Checksum.crc32c(Array(bytes.prefix(4092)))
        for index in 0..<4 { bytes[4092 + index] = UInt8(truncatingIfNeeded: sum >> UInt32(8 * index)) }
        try machine.write(bytes, at: 0)
        switch machine.run() {
        case .refused(let line):
          refused += 1
          #expect(!line.contains("\n") && line.contains(machine.path.string), "\(field.name): \(line)")
        // A section of one byte may as well be elsewhere, where there is the same.
        case .ended(let ending, _) where ForgedMachineTests.isProper(ending) && field.name.hasSuffix("place"): break
        case let other: Issue.record("\(field.name), round \(round): \(other)")
        }
      }
    }
    #expect(tried > 400 && refused > tried * 9 / 10)
  }

  @Test("a file that says it is enormous is refused before anything of that size is made") func enormous() throws {
    let machine = try ForgeableMachine(.real)
    let handle = try FileHandle(forUpdating: URL(filePath: machine.path.string))
    var header = machine.header
    // Holes cost nothing.
    let length: UInt64 = 8 << 40
    try handle.truncate(atOffset: length)
    header.fileByteCount = length
    for change: (inout SaveFileHeader) -> Void in [
      { $0.memoryByteCount = length - 8192 }, { $0.memoryByteCount = 1 << 40 },
      { $0.entries[1].byteCount = 1 << 40 },
      { header in header.entries.indices.forEach { header.entries[$0].byteCount = length - header.entries[$0].offset }
      },
    ] {
      var forged = header
      change(&forged)
      // The sections lie behind RAM, wherever that ends.
      for index in forged.entries.indices where forged.entries[index].offset < forged.memoryByteCount + 4096 {
        forged.entries[index].offset = forged.memoryByteCount + 4096
      }
      try machine.write(forged.encoded(), at: 0)
      guard case .refused(let line) = machine.run() else {
        Issue.record("accepted")
        continue
      }
      #expect(!line.contains("\n") && line.contains(machine.path.string), "\(line)")
    }
  }
}
