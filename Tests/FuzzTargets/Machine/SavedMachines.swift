// SPDX-License-Identifier: Apache-2.0
// The target of saved machines: a machine's sections with fields of hostile values or other bytes, cut or longer. Each is
// refused in a line that names it, or accepted; of what is accepted some runs, and ends as a guest may.

import Foundation
import Host
import Synchronization

@testable import Lguest
@testable import Saving

/// Sections of saved machines.
enum SavedMachines {
  /// Machines that were saved, one of each kind, and where their state is restored.
  private final class Subjects: @unchecked Sendable {
    private var machines: [ForgeableMachine.Kind: ForgeableMachine] = [:]
    private var standing: [ForgeableMachine.Kind: Place] = [:]

    final class Place {
      let machine: Standing
      var uses = 0
      init(_ machine: consuming Standing) { self.machine = machine }
    }

    func machine(_ kind: ForgeableMachine.Kind) throws -> ForgeableMachine {
      if let machine = machines[kind] { return machine }
      let machine = try ForgeableMachine(kind)
      machines[kind] = machine
      return machine
    }

    func place(_ kind: ForgeableMachine.Kind) throws -> Place {
      if let place = standing[kind], place.uses < 500 {
        place.uses += 1
        return place
      }
      let place = Place(try Standing(try machine(kind).path))
      standing[kind] = place
      return place
    }
  }

  private static let subjects = Subjects()
  private typealias Forgery = ForgeableMachine.Forgery

  static func samples() -> [[UInt8]] {
    (0..<48).map { number in [UInt8(number % 4), 1] + (0..<24).map { UInt8(truncatingIfNeeded: number * 37 + $0 * 11) }
    }
  }

  static func run(_ input: inout FuzzInput) throws {
    let kind = input.choose(ForgeableMachine.Kind.available)
    let mayRun = input.chance(32)
    let machine = try subjects.machine(kind)
    let place = try subjects.place(kind)
    var forgeries: [Forgery] = []
    repeat {
      let section = input.chance(2) ? processors(machine) : input.below(machine.sections.count)
      let (name, bytes, fields) = machine.sections[section]
      guard !bytes.isEmpty, !fields.isEmpty else { continue }
      switch input.byte() % 8 {
      case 0:
        // Cut, or longer.
        let count = input.below(bytes.count + 64)
        let other = count <= bytes.count ? Array(bytes.prefix(count)) : bytes + input.take(count - bytes.count)
        if let line = place.machine.refusal(name, other) { try check(line, machine) }
        _ = place.machine.refusal(name, bytes)
      case 1:
        let offset = input.below(bytes.count)
        let other = Array(input.take(1 + Int(input.byte() & 15)).prefix(bytes.count - offset))
        if !other.isEmpty { forgeries.append(Forgery(section: name, field: "bytes", offset: offset, bytes: other)) }
      default:
        let field = fields[input.below(fields.count)]
        guard field.count > 0 else { continue }
        let offset = field.offset + input.below(field.count) * field.elementSize
        let old = Array(bytes[offset..<offset + field.elementSize])
        forgeries.append(Forgery(section: name, field: field.name, offset: offset, bytes: value(old, &input)))
      }
    } while !input.isOver && forgeries.count < 6
    var isRefused = false
    for section in machine.sections.indices {
      let (name, bytes, _) = machine.sections[section]
      guard forgeries.contains(where: { $0.section == name }) else { continue }
      if let line = place.machine.refusal(name, machine.forged(section, forgeries)) {
        isRefused = true
        try check(line, machine)
        if let line = place.machine.refusal(name, bytes) { throw FuzzFailure("section \(name) as it was: \(line)") }
      }
    }
    guard mayRun, !isRefused else { return }
    try machine.write(forgeries)
    let outcome = machine.run(for: .milliseconds(5))
    try machine.repair(forgeries)
    switch outcome {
    case .refused(let line): try check(line, machine)
    case .ended(let ending, let detail):
      switch ending {
      case .timeout, .tripleFault, .reset, .poweroff, .debugExit, .panic, .killed: break
      default: throw FuzzFailure("\(kind), \(forgeries): \(ending), \(detail ?? "")")
      }
    case .hung: throw FuzzFailure("\(kind), \(forgeries): does not end")
    }
  }

  private static func processors(_ machine: ForgeableMachine) -> Int {
    machine.sections.firstIndex { $0.name == "processors" } ?? 0
  }

  /// Another value of an integer.
  private static func value(_ old: [UInt8], _ input: inout FuzzInput) -> [UInt8] {
    switch input.byte() % 4 {
    case 0:
      var new = old
      let bit = input.below(old.count * 8)
      new[bit / 8] ^= 1 << UInt8(bit % 8)
      return new
    case 1: return old.map { _ in input.byte() }
    default:
      let value = input.value()
      return old.indices.map { UInt8(truncatingIfNeeded: value >> UInt64(8 * min($0, 7))) }
    }
  }

  private static func check(_ line: String, _ machine: ForgeableMachine) throws {
    guard !line.isEmpty, !line.contains("\n"), line.utf8.count < 1000 else {
      throw FuzzFailure("a refusal that is no line: \(line)")
    }
  }
}
