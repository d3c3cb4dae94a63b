// SPDX-License-Identifier: Apache-2.0
// libFuzzer's loop around the target that LGUEST_FUZZ_TARGET names: inputs by coverage of the code that they reach. A
// failure that is not a crash becomes one, so that libFuzzer keeps its input. scripts/fuzz --coverage builds and runs it.

import CFuzzer
import FuzzTargets
import Glibc

/// Says what is wrong and ends the process.
func fail(_ text: String) -> Never {
  print(text)
  fflush(nil)
  abort()
}

let name = unsafe getenv("LGUEST_FUZZ_TARGET").map { unsafe String(cString: $0) } ?? ""
guard let found = FuzzTarget.all.first(where: { $0.name == name }) else { fail("no target '\(name)'") }
let target = found
// Samples are inputs like others: a new corpus begins with them.
if CommandLine.arguments.count == 3, CommandLine.arguments[1] == "--samples" {
  for (number, sample) in target.samples().enumerated() {
    let path = "\(CommandLine.arguments[2])/sample-\(number)"
    guard let file = unsafe fopen(path, "w") else { fail("cannot write \(path)") }
    _ = unsafe fwrite(sample, 1, sample.count, file)
    unsafe fclose(file)
  }
  exit(0)
}
exit(
  unsafe fuzzer_run(CommandLine.argc, CommandLine.unsafeArgv) { bytes, count in
    let input = unsafe Array(UnsafeBufferPointer(start: bytes, count: count).prefix(target.longest))
    do { try target.run(input) } catch { fail("\(target.name): \(error)") }
    return 0
  })
