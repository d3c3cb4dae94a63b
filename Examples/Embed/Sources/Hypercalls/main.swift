// SPDX-License-Identifier: Apache-2.0
// A program with hypercalls of its own: a guest has it sort an array in guest memory and add two numbers. The guests'
// side is Guests/program, in C and in Embedded Swift; scripts/build-guests makes `sort-c` and `sort-swift` of them.
//
//     Hypercalls GUEST          the sort guests
//     Hypercalls GUEST 2007     `old-32` and `old-64`, which make the calls as guests of February 2007 did

import Lguest
import Synchronization

/// The numbers that host and guests agree on (Guests/program/hypercall.h).
enum Call {
  static let sort: UInt64 = 0x1000
  static let sum: UInt64 = 0x1001
}

final class Console: Sendable {
  private let bytes = Mutex<[UInt8]>([])
  func append(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
  var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
}

let words = CommandLine.arguments.dropFirst()
guard let guest = words.first else { fatalError("usage: Hypercalls GUEST [2007]") }

var configuration = VirtualMachine.Configuration(kernel: .init(guest))
configuration.memorySize = 64 << 20
configuration.timeout = .seconds(60)
configuration.debugExit = true  // how these guests end
if words.last == "2007" { configuration.kvmAPI = .year2007 }
let console = Console()
configuration.consoleOutput = { console.append($0) }

// Argument types are those of the closure: RBX is the address, RCX the count. In 2007 other registers held them; the
// handlers need not know.
configuration.addHypercall(Call.sort) { (call, address: UInt64, count: UInt64) throws(HypercallFailure) -> UInt64 in
  guard count <= 1 << 20 else { throw .tooBig }
  let numbers = try call.load(UInt32.self, at: address, count: count)
  try call.store(numbers.sorted(), at: address)
  return count
}
configuration.addHypercall(Call.sum) { (_, first: UInt64, second: UInt64) in first &+ second }

do {
  let result = try VirtualMachine(configuration: configuration).run()
  print(console.text, terminator: "")
  let calls = result.statistics.hypercalls.sorted { $0.key < $1.key }
  for (number, count) in calls { print("hypercall 0x\(String(number, radix: 16)): \(count)") }
} catch {
  print("it did not start: \(error)")
}
