// SPDX-License-Identifier: Apache-2.0
// A machine inside a program: boots a kernel, keeps what its console says, prints how it ended.
//
//   swift run --package-path Examples/Embed -c release Embed KERNEL [INITRD]

import Lguest
import Synchronization

/// What the guest wrote. The machine writes on its own thread, so a lock is in between.
final class Transcript: Sendable {
  private let bytes = Mutex<[UInt8]>([])

  func append(_ byte: UInt8) { bytes.withLock { $0.append(byte) } }

  var lines: [Substring] {
    let text = bytes.withLock { String(decoding: $0, as: UTF8.self) }
    return text.split(whereSeparator: \.isNewline)
  }
}

let arguments = CommandLine.arguments.dropFirst()
guard let kernel = arguments.first else { fatalError("usage: Embed KERNEL [INITRD]") }

let transcript = Transcript()
var configuration = VirtualMachine.Configuration(kernel: .init(kernel))
configuration.initrd = arguments.dropFirst().first.map { .init($0) }
configuration.memorySize = 512 << 20
configuration.timeout = .seconds(120)
configuration.consoleOutput = { transcript.append($0) }

let machine = VirtualMachine(configuration: configuration)
do {
  let result = try machine.run()
  print("the guest wrote \(transcript.lines.count) lines, the last of them:")
  for line in transcript.lines.suffix(3) { print("  " + line) }
  print("it ended with \(result.ending.cause.rawValue) after \(result.times.end)")
} catch {
  print("it did not start: \(error)")
}
