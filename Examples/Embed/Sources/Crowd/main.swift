// SPDX-License-Identifier: Apache-2.0
// A crowd of machines in one process: starts as many as are asked for, looks at what they cost while they sleep, has each
// answer a line, and stops them. Ends with status 1 if they cost more than they may.
//
//   swift run --package-path Examples/Embed -c release Crowd KERNEL [COUNT]
//
// KERNEL is a guest of lguest's interface that says "ready", sleeps, and answers lines with themselves: `scripts/build-guests
// DIRECTORY` makes DIRECTORY/lguest/idle.

import Foundation
import Lguest
import Synchronization

/// What one machine wrote.
final class Console: Sendable {
  private let bytes = Mutex<[UInt8]>([])
  func append(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }
  var text: String { bytes.withLock { String(decoding: $0, as: UTF8.self) } }
}

/// Calls `body` with each line of a file, however long the host says that it is.
func forEachLine(of path: String, _ body: (Substring) -> Void) {
  guard let file = unsafe fopen(path, "r") else { fatalError("\(path) cannot be read") }
  defer { unsafe _ = fclose(file) }
  var bytes = [CChar](repeating: 0, count: 4096)
  while unsafe fgets(&bytes, Int32(bytes.count), file) != nil {
    let line = String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    body(line.dropLast())
  }
}

/// What this process uses, as /proc tells it; memory in KiB.
struct Usage {
  var resident = 0, pageTables = 0, threads = 0, descriptors = 0, mappings = 0, guestMemory = 0

  init() throws {
    forEachLine(of: "/proc/self/status") { line in
      let words = line.split(whereSeparator: \.isWhitespace)
      guard words.count > 1, let value = Int(words[1]) else { return }
      switch words[0] {
      case "VmRSS:": resident = value
      case "VmPTE:": pageTables = value
      case "Threads:": threads = value
      default: break
      }
    }
    descriptors = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
    var isGuestMemory = false
    forEachLine(of: "/proc/self/smaps") { line in
      let words = line.split(separator: " ")
      guard words.count > 1 else { return }
      if words[0].contains("-") {
        mappings += 1
        isGuestMemory = line.contains("memfd:lguest-memory")
      } else if isGuestMemory, words[0] == "Rss:" {
        guestMemory += Int(words[1]) ?? 0
      }
    }
  }
}

/// Processor time that this process has used, in ms.
var processorTime: Int { Int(clock()) * 1000 / Int(CLOCKS_PER_SEC) }

func wait(for what: String, until isSo: () -> Bool) {
  let end = ContinuousClock.now + .seconds(240)
  while !isSo() {
    guard ContinuousClock.now < end else { fatalError("\(what): not in four minutes") }
    usleep(2000)
  }
}

let arguments = CommandLine.arguments.dropFirst()
guard let kernel = arguments.first else { fatalError("usage: Crowd KERNEL [COUNT]") }
let count = arguments.dropFirst().first.flatMap { Int($0) } ?? 100

let before = try Usage()
let begin = ContinuousClock.now
let group = try VirtualMachineGroup()
var crowd: [(machine: VirtualMachine, console: Console)] = []
for _ in 0..<count {
  let console = Console()
  var configuration = VirtualMachine.Configuration(kernel: .init(kernel))
  configuration.abi = .lguest
  configuration.memorySize = 32 << 20
  configuration.consoleOutput = { console.append($0) }
  let machine = VirtualMachine(configuration: configuration)
  try group.start(machine)
  crowd.append((machine, console))
}
wait(for: "ready") { crowd.allSatisfy { $0.console.text == "ready\n" } }
print("\(count) machines are ready after \(ContinuousClock.now - begin)")

usleep(200_000)
let startOfSleep = processorTime
sleep(1)
let timeAsleep = processorTime - startOfSleep
let after = try Usage()
let threads = after.threads - before.threads
let descriptors = after.descriptors - before.descriptors
let guestMemory = after.guestMemory - before.guestMemory
let pageTables = after.pageTables - before.pageTables
let cost = (after.resident - before.resident + pageTables - guestMemory) / count
print("asleep they use \(timeAsleep) ms of processor time a second, \(threads) threads and \(descriptors) descriptors")
print("each: \((after.mappings - before.mappings) / count) mappings, \(guestMemory / count) KiB of RAM,")
print("  and beside it \(cost) KiB (VmRSS + VmPTE - RAM), \(pageTables / count) of them page tables")

let question = ContinuousClock.now
for (number, member) in crowd.enumerated() {
  member.machine.consoleInput.put(Array("number \(number)\n".utf8))
}
wait(for: "answers") {
  crowd.enumerated().allSatisfy { number, member in member.console.text == "ready\nnumber \(number)\n" }
}
print("all have answered within \(ContinuousClock.now - question)")

group.requestStop(.interrupted(.interrupt))
group.wait()
let processors = ProcessInfo.processInfo.activeProcessorCount
if timeAsleep > 50 || cost >= 1024 || threads > processors + 2 || descriptors > processors {
  print("that is more than they may cost")
  exit(1)
}
