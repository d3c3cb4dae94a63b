// SPDX-License-Identifier: Apache-2.0
// Saved machines to be forged: a guest that is worth it in three modes, its file taken apart into fields, hostile
// values for each, and the same file with some of them and with the sums repaired.

import Foundation
import Host
import SystemPackage
import TestSupport

@testable import Lguest
@testable import Saving

/// A machine that was saved, and what its file consists of.
final class ForgeableMachine {
  /// The guest of Tests/GuestCode/saved.S in one of its modes, or that of Guests/lguest at level 1 or 3.
  enum Kind: Int, CaseIterable, CustomStringConvertible {
    case user64, userPAE, real, lguest
    var cpus: Int { self == .user64 ? 3 : 1 }
    var description: String { ["64-bit user mode", "32-bit user mode with PAE", "real mode", "lguest"][rawValue] }
    var isUser: Bool { self != .real }

    /// Where guests are that were built beforehand.
    private static let guests = ProcessInfo.processInfo.environment["LGUEST_TEST_GUESTS"]
    fileprivate static var lguestKernel: FilePath? { guests.map { FilePath("\($0)/lguest/ring1-40") } }
    /// Those that can be saved here.
    static let available = allCases.filter { $0 != .lguest || guests != nil }
  }

  /// A change of one element of a field.
  struct Forgery: CustomStringConvertible {
    var section: String
    var field: String
    var offset: Int
    var bytes: [UInt8]
    var description: String {
      "section \(section), \(field) at \(offset): "
        + bytes.reversed().map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
    }
  }

  let kind: Kind
  let path: FilePath
  let header: SaveFileHeader
  /// By section, what was saved and where its fields are.
  private(set) var sections: [(name: String, bytes: [UInt8], fields: [SavedField])] = []
  private let handle: FileHandle

  /// Saves a machine to a file, which must be removed afterwards.
  init(_ kind: Kind) throws {
    self.kind = kind
    path = FilePath(FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString).saved").path)
    try ForgeableMachine.save(kind, to: path)
    let file = try SaveFile(path)
    header = file.header
    handle = try FileHandle(forUpdating: URL(filePath: path.string))
    let standing = try Standing(path)
    for section in file.sections {
      let fields = try standing.fields(of: section)
      sections.append((section.name, section.bytes, fields))
    }
  }

  deinit { try? FileManager.default.removeItem(atPath: path.string) }

  // MARK: Saving

  private static func guest(_ kind: Kind) -> TinyGuest {
    var program = GuestProgram("saved")
    for (index, value) in [UInt32(kind.cpus), UInt32(kind.rawValue)].enumerated() {
      program.store(value, at: "saved_parameters", index: index)
    }
    return TinyGuest(code: program.bytes)
  }

  private static func save(_ kind: Kind, to path: FilePath) throws {
    let sink = Moving.Sink()
    let result = try guest(kind).withFile { file in
      var configuration = Moving.configuration(file, cpus: kind.cpus, sink)
      configuration.memorySize = VirtualMachine.Configuration.minimumMemory
      configuration.foreignHypercall = .emulate
      configuration.machine = .testdev
      if kind == .lguest, let kernel = Kind.lguestKernel {
        configuration = lguestConfiguration(kernel, sink)
      }
      return try Moving.run(VirtualMachine(configuration: configuration), after: 4, sink) { machine in
        do {
          for _ in 0..<200 {
            try machine.save(to: path, keeping: true)
            if try isInMode(kind, path) { break }
            Thread.sleep(forTimeInterval: 0.001)
          }
          machine.requestStop(.saved)
        } catch { machine.requestStop(.internal) }
      }
    }
    guard result.ending == .saved, try isInMode(kind, path) else {
      throw MoveError("no \(kind) in 200 attempts: \(result.ending) \(result.detail ?? "")")
    }
  }

  private static func lguestConfiguration(_ kernel: FilePath, _ sink: Moving.Sink) -> VirtualMachine.Configuration {
    var configuration = VirtualMachine.Configuration(kernel: kernel)
    configuration.abi = .lguest
    configuration.memorySize = VirtualMachine.Configuration.minimumMemory
    configuration.commandLine = .complete("for-ever")
    configuration.timeout = .seconds(100)
    configuration.consoleOutput = { sink.put($0) }
    return configuration
  }

  /// Whether the first vCPU stands in the program.
  private static func isInMode(_ kind: Kind, _ path: FilePath) throws -> Bool {
    // Its host's part comes first, and any moment will do.
    if kind == .lguest { return true }
    guard let bytes = try SaveFile(path).sections.first(where: { $0.name == "processors" })?.bytes else { return false }
    // Behind 16 registers, RIP and RFLAGS stand ES, CS and SS: selector, base, limit and attributes.
    let attributes = 18 * 8 + 2 * 18 + 14
    return bytes[attributes] >> 5 & 3 == (kind.isUser ? 3 : 0)
  }

  // MARK: Forging

  /// Values that a field might be forged to hold.
  ///
  /// - Parameter isThorough: Whether every bit of every element is changed, or some.
  func forgeries(
    of field: SavedField, in section: Int, isThorough: Bool, _ random: inout some RandomNumberGenerator
  ) -> [Forgery] {
    let (name, bytes, _) = sections[section]
    var elements = Array(0..<field.count)
    let most = isThorough ? 4096 : 16
    if elements.count > most { elements = Array(elements.shuffled(using: &random).prefix(most)) }
    var all: [Forgery] = []
    for element in elements {
      let begin = field.offset + element * field.elementSize
      let old = Array(bytes[begin..<begin + field.elementSize])
      for new in ForgeableMachine.hostile(old, bits: isThorough ? 64 : 8, &random) where new != old {
        all.append(Forgery(section: name, field: field.name, offset: begin, bytes: new))
      }
    }
    return all
  }

  /// Values instead of an integer: the corners, each bit changed, anything.
  private static func hostile(
    _ old: [UInt8], bits count: Int, _ random: inout some RandomNumberGenerator
  ) -> [[UInt8]] {
    let zero = [UInt8](repeating: 0, count: old.count)
    func changed(_ bit: Int, _ value: [UInt8]) -> [UInt8] {
      var value = value
      value[bit >> 3] ^= 1 << UInt8(bit & 7)
      return value
    }
    let bits = Array(0..<old.count * 8).shuffled(using: &random).prefix(count)
    var values = [zero, zero.map { ~$0 }, changed(0, zero), changed(old.count * 8 - 1, zero)]
    values += bits.map { changed($0, old) }
    values.append(old.map { _ in UInt8.random(in: 0...255, using: &random) })
    // Not canonical, and just so.
    if old.count == 8 { values += [[0, 0, 0, 0, 0, 0x80, 0, 0], [0, 0, 0, 0, 0, 0x80, 0xFF, 0xFF]] }
    return Array(Set(values)).sorted { $0.lexicographicallyPrecedes($1) }
  }

  /// A section with a few changes.
  func forged(_ section: Int, _ forgeries: [Forgery]) -> [UInt8] {
    var bytes = sections[section].bytes
    for forgery in forgeries where forgery.section == sections[section].name {
      bytes.replaceSubrange(forgery.offset..<forgery.offset + forgery.bytes.count, with: forgery.bytes)
    }
    return bytes
  }

  /// Changes the file, sums and all.
  func write(_ forgeries: [Forgery]) throws {
    var header = header
    for section in sections.indices where forgeries.contains(where: { $0.section == sections[section].name }) {
      let bytes = forged(section, forgeries)
      guard let entry = header.entries.firstIndex(where: { $0.name == sections[section].name }) else { continue }
      header.entries[entry].checksum = Checksum.crc32c(bytes)
      try write(bytes, at: header.entries[entry].offset)
    }
    try write(header.encoded(), at: 0)
  }

  /// Undoes changes.
  func repair(_ forgeries: [Forgery]) throws {
    for section in sections where forgeries.contains(where: { $0.section == section.name }) {
      guard let entry = header.entries.first(where: { $0.name == section.name }) else { continue }
      try write(section.bytes, at: entry.offset)
    }
    try write(header.encoded(), at: 0)
  }

  func write(_ bytes: [UInt8], at offset: UInt64) throws {
    try handle.seek(toOffset: offset)
    try handle.write(contentsOf: bytes)
  }

  // MARK: Restoring

  /// What became of a file.
  enum Outcome: Equatable {
    case refused(String)
    case ended(Ending, detail: String?)
    /// It did not end within a long time.
    case hung
  }

  /// Restores the file as it is now and runs it for a short while.
  func run(for time: Duration = .milliseconds(15)) -> Outcome {
    let machine: VirtualMachine
    do {
      machine = try VirtualMachine.restore(path) {
        $0.bootTimeout = nil
        $0.consoleOutput = { _ in }
      }
    } catch { return .refused("\(error)") }
    let result = Slot()
    Thread {
      do {
        let end = try machine.run()
        result.put(.ended(end.ending, detail: end.detail))
      } catch { result.put(.refused("\(error)")) }
    }.start()
    let deadline = ContinuousClock.now + .seconds(60)
    var end: ContinuousClock.Instant?
    while ContinuousClock.now < deadline {
      if let outcome = result.take(within: 0.002) { return outcome }
      if end == nil, machine.times.guestStart != nil { end = .now + time }
      if let end, ContinuousClock.now > end { machine.requestStop(.timeout) }
    }
    return .hung
  }

  private final class Slot: @unchecked Sendable {
    private let condition = NSCondition()
    private var value: Outcome?
    func put(_ outcome: Outcome) {
      condition.withLock { value = outcome }
      condition.broadcast()
    }
    func take(within seconds: Double) -> Outcome? {
      condition.withLock {
        if value == nil { _ = condition.wait(until: Date() + seconds) }
        return value
      }
    }
  }
}
