// SPDX-License-Identifier: Apache-2.0
// Mappings: one file twice, reservations, and that both go with their owners.

import Host
import SystemPackage
import Testing

@Suite("Mappings")
struct MappingTests {
  @Test("What is written through one half of a double mapping is seen in the other")
  func dualMapping() throws {
    let dual = try DualMapping(byteCount: 5000)
    #expect(dual.byteCount == 8192)
    unsafe dual.writable.storeBytes(of: 0xC3, toByteOffset: 8191, as: UInt8.self)
    unsafe #expect(dual.executable.load(fromByteOffset: 8191, as: UInt8.self) == 0xC3)
    let maps = try #require(HostFile.text("/proc/self/maps"))
    #expect(!maps.contains("rwxs"))
    #expect(throws: HostError.self) { try DualMapping(byteCount: Int.max / 2) }
  }

  @Test("A mapping is unmapped with its owner")
  func unmaps() throws {
    // Not with Foundation, which reads only the first 4 KiB of a file that tells no size.
    func lines() throws -> [Substring] {
      try #require(HostFile.text("/proc/self/maps")).split(separator: "\n").filter { $0.contains("lguest-once") }
    }
    do {
      let file = try MemoryFile(name: "lguest-once", byteCount: 1 << 20)
      let reserved = try Mapping.reserve(byteCount: 1 << 30)
      try reserved.place(file, fileOffset: 4096, at: 8192, byteCount: 4096, [.read, .write])
      unsafe reserved.base.storeBytes(of: 7, toByteOffset: 8192, as: UInt8.self)
      let whole = try Mapping.shared(file, byteCount: 1 << 20, .read)
      unsafe #expect(whole.base.load(fromByteOffset: 4096, as: UInt8.self) == 7)
      let seen = try lines()
      #expect(seen.count == 2, "\(seen)")
    }
    #expect(try lines() == [])
  }
}
