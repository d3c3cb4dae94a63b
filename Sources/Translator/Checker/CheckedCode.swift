// SPDX-License-Identifier: Apache-2.0
// The code cache and its checker: every block is judged when it has been emitted and before anybody can find it. What is
// refused is counted, and told once.

import CHost
import Host

extension CodeCache {
  /// Whether a block that has just been emitted in `form` may run.
  func isAccepted(_ block: Block, _ form: BlockForm) -> Bool {
    guard let checker else { return true }
    counters.checked &+= form == .full ? 1 : 0
    let verdict = checker.check(checkedBlock(block))
    if verdict.problem == nil && (refusedForms.isEmpty || !refusedForms.contains(form)) { return true }
    if form == .full { counters.refused &+= 1 } else { counters.refusedTwice &+= 1 }
    if refusal == nil, let problem = verdict.problem {
      let reason =
        "\(problem.rawValue), at \(String(verdict.place, radix: 16)) in the \(form) form of the block at guest-physical "
        + "0x\(String(block.page | UInt64(block.offset), radix: 16)), mode 0x\(String(block.mode, radix: 16))"
      refusal = reason + code(block)
      refused?(refusal!)
    }
    return false
  }

  /// A block as the checker sees it.
  func checkedBlock(_ block: Block) -> CheckedBlock {
    let hot = Int(block.hot), cold = Int(block.cold)
    var checked = unsafe CheckedBlock(
      text: CheckedText(UnsafeRawPointer(code.writable)), hot: hot..<hot &+ Int(block.hotCount),
      cold: cold..<cold &+ Int(block.coldCount), mode: block.mode, stubs: checkedStubs)
    checked.pollEntry = hot &+ Int(block.pollOffset)
    checked.plainEntry = hot &+ Int(block.plainOffset)
    checked.offset = Int(block.offset)
    unsafe checked.edges = UnsafePointer(edges + Int(block.firstEdge))
    checked.firstEdge = Int(block.firstEdge)
    checked.edgeCount = Int(block.edgeCount)
    if translator.countsBlocks { checked.counter = Int(BlockHistogram.slot(blockCount)) }
    return checked
  }

  /// The code of a block, for a disassembler.
  private func code(_ block: Block) -> String {
    func bytes(_ start: UInt32, _ count: UInt32) -> String {
      let digits = (0..<Int(count)).map { position in
        let byte = unsafe code.writable.load(fromByteOffset: Int(start) + position, as: UInt8.self)
        return (byte < 16 ? "0" : "") + String(byte, radix: 16)
      }
      return "\n" + String(start, radix: 16) + ": " + digits.joined(separator: " ")
    }
    return bytes(block.hot, block.hotCount) + bytes(block.cold, block.coldCount)
  }
}
