// SPDX-License-Identifier: Apache-2.0
// Typed hypercalls of the embedding program: registers become arguments, results and failures become RAX.

import GuestMemory
import SystemPackage
import Testing

@testable import Lguest
@testable import Paravirt

@Suite("Typed hypercalls") struct TypedHypercallTests {
  private let memory: GuestMemory

  init() throws { memory = try GuestMemory(byteCount: 16 << 20) }

  private func call(
    _ arguments: [UInt64], _ add: (inout VirtualMachine.Configuration) -> Void
  ) throws -> UInt64 {
    var configuration = VirtualMachine.Configuration(kernel: "/dev/null")
    add(&configuration)
    let request = HypercallRequest(number: 0x1000, arguments: arguments, isLong: true)
    return try #require(configuration.program(memory)?(request))
  }

  @Test("arguments are cut to their types, in order; missing ones are zero") func arguments() throws {
    let result = try call([0xFFFF_FFFF_FFFF_FFFE, 0x1_0000_0005, 7]) { configuration in
      configuration.addHypercall(0x1000) { (_, a: Int64, b: UInt32, c: UInt64, d: Int32, e: UInt64) in
        a == -2 && b == 5 && c == 7 && d == 0 && e == 0 ? UInt64(1) : 0
      }
    }
    #expect(result == 1)
  }

  @Test("a signed result is sign-extended") func results() throws {
    let signed = try call([]) { $0.addHypercall(0x1000) { (_) in Int32(-5) } }
    let unsigned = try call([]) { $0.addHypercall(0x1000) { (_) in UInt32.max } }
    #expect(signed == 0xFFFF_FFFF_FFFF_FFFB && unsigned == 0xFFFF_FFFF)
  }

  @Test("a failure is its code, negated") func failures() throws {
    let result = try call([]) { configuration in
      configuration.addHypercall(0x1000) { (_) throws(HypercallFailure) -> UInt64 in throw .invalid }
    }
    #expect(result == 0 &- 22)
  }

  @Test("integers in guest memory, and what is not RAM") func accesses() throws {
    let roundTrip: @Sendable (VirtualMachine.Hypercall, UInt64, UInt64) throws(HypercallFailure) -> UInt64 = {
      (call, address, count) throws(HypercallFailure) -> UInt64 in
      let values = try call.load(UInt16.self, at: address, count: count)
      try call.store(values.map { $0 &+ 1 }, at: address)
      return UInt64(values.count)
    }
    try memory.copy(from: [0x34, 0x12, 0xFF, 0xFF], to: GuestPhysical(0x1001))
    #expect(try call([0x1001, 2]) { $0.addHypercall(0x1000, roundTrip) } == 2)
    #expect(try memory.bytes(at: GuestPhysical(0x1001), count: 4) == [0x35, 0x12, 0, 0])
    let end: UInt64 = 16 << 20
    for (address, count) in [(end - 2, 2), (end, 1), (.max, 1), (0, .max), (0, 1 << 63), (1 << 63, 1)]
      as [(UInt64, UInt64)]
    {
      #expect(try call([address, count]) { $0.addHypercall(0x1000, roundTrip) } == 0 &- 14, "\(address), \(count)")
    }
  }
}
