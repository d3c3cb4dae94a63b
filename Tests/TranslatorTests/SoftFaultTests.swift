// SPDX-License-Identifier: Apache-2.0
// Host faults where none is expected. Blocks are sabotaged in place: a displacement of an emitted access is changed, so
// that it goes where nothing may be.

import CHost
import Engine
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Translator

@Suite("Unexpected host faults", .serialized) struct SoftFaultTests {
  /// In the guests' own code.
  static let displacement: Int32 = 0x0012_3456
  static let wrong: Int32 = 0x4012_3456

  private static func long(_ value: Int32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: UInt32(bitPattern: value) >> UInt32($0 * 8)) }
  }

  /// Adds wrong displacements to the accesses of live blocks that have `displacement`; how many.
  private static func sabotage(_ guest: FlatGuest) -> Int {
    let cache = guest.translation.cache
    let right = long(displacement), wrong = long(wrong)
    var count = 0
    for index in 0..<Int32(cache.blockCount) {
      let block = cache[index]
      guard block.isLive else { continue }
      let start = unsafe (cache.code.writable + Int(block.hot)).assumingMemoryBound(to: UInt8.self)
      for offset in 0..<Int(block.hotCount) - 4 {
        let address = cache.codeStart + UInt64(block.hot) + UInt64(offset)
        guard cache.faultingInstruction(at: address) != nil else { continue }
        for position in offset..<min(offset + 12, Int(block.hotCount) - 4)
        where (0..<4).allSatisfy({ unsafe start[position + $0] == right[$0] }) {
          for byte in 0..<4 { unsafe start[position + byte] = wrong[byte] }
          count += 1
          break
        }
      }
    }
    return count
  }

  /// Where the accesses of `body` go, at RBX plus the displacement.
  static let target: UInt64 = 0x20_0000

  private func guest(_ name: String, limit: Int = SoftFaults.limit) throws -> FlatGuest {
    let guest = try FlatGuest(softFaultLimit: limit)
    try guest.load(name)
    return guest
  }

  private func run(_ guest: FlatGuest) -> VCPUExit {
    guest.cpu.state.rip = 0x10000
    guest.cpu.state.registers[3] = SoftFaultTests.target &- UInt64(SoftFaultTests.displacement)
    guest.cpu.state.registers[4] = 0x80000
    return guest.cpu.run()
  }

  @Test("cost a block its optimizations, and the guest nothing")
  func survived() throws {
    let guest = try guest("soft_group")
    try guest.memory.store(UInt64(0x1122_3344_5566_7788), at: .init(SoftFaultTests.target))
    #expect(run(guest) == .halt)
    #expect(SoftFaultTests.sabotage(guest) == 1)
    guest.cpu.state.registers[0] = 5
    guest.cpu.state.registers[1] = 0x5566_7788
    try guest.memory.store(UInt64(0), at: .init(SoftFaultTests.target + 8))
    #expect(run(guest) == .halt)
    let state = guest.cpu.state
    #expect(state.registers[0] == 0x1122_3344_5566_7788 && state.registers[2] == state.registers[0])
    // Equal: ZF and PF.
    #expect(state.registers[6] & 0x8D5 == 0x44 && state.registers[4] == 0x80000 - 8)
    #expect(try guest.memory.load(UInt64.self, at: .init(SoftFaultTests.target + 8)) == state.registers[0])
    #expect(guest.translation.counters.softFaults == 1)
    #expect(guest.translation.counters.firstSoftFault?.contains("unexpected place") == true)
    // The new block has no such access to sabotage, or makes it as it should.
    #expect(run(guest) == .halt)
    #expect(guest.translation.counters.softFaults == 1)
  }

  @Test("restore what the access had lent: a byte of AH beside RDI")
  func lentRegister() throws {
    // MOV [RBX+d],AH with RDI of its own; the address is in RDI on the host.
    let guest = try guest("soft_high_byte")
    guest.cpu.state.registers[0] = 0xAB00
    guest.cpu.state.registers[7] = 0x7777
    #expect(run(guest) == .halt)
    let cache = guest.translation.cache
    // The address is computed in front of the access: make the LEA wrong instead.
    var patched = 0
    let right = SoftFaultTests.long(SoftFaultTests.displacement), wrong = SoftFaultTests.long(SoftFaultTests.wrong)
    for index in 0..<Int32(cache.blockCount) where cache[index].isLive {
      let start = unsafe (cache.code.writable + Int(cache[index].hot)).assumingMemoryBound(to: UInt8.self)
      var last: Int?
      for position in 0..<Int(cache[index].hotCount) - 4
      where (0..<4).allSatisfy({ unsafe start[position + $0] == right[$0] }) { last = position }
      guard let last else { continue }
      for byte in 0..<4 { unsafe start[last + byte] = wrong[byte] }
      patched += 1
    }
    #expect(patched == 1)
    try guest.memory.store(UInt8(0), at: .init(SoftFaultTests.target))
    #expect(run(guest) == .halt)
    #expect(try guest.memory.load(UInt8.self, at: .init(SoftFaultTests.target)) == 0xAB)
    #expect(guest.cpu.state.registers[7] == 0x7777 && guest.translation.counters.softFaults == 1)
  }

  @Test("end the run when they are too many, or come back to a place")
  func limits() throws {
    let once = try guest("soft_load", limit: 1)
    #expect(run(once) == .halt)
    #expect(SoftFaultTests.sabotage(once) == 1)
    if case .failed = run(once) {} else { Issue.record("the first fault was to end it") }

    let twice = try guest("soft_load")
    #expect(run(twice) == .halt)
    #expect(SoftFaultTests.sabotage(twice) == 1)
    #expect(run(twice) == .halt)
    // Once more, in the block that replaced it: whatever its access looks like, noted by hand.
    let goesOn = twice.translation.lock.withLock { _ in
      twice.translation.cache.distrust(0x10000, "again", limit: SoftFaults.limit)
    }
    #expect(!goesOn && twice.translation.counters.softFaults == 2)
  }
}
