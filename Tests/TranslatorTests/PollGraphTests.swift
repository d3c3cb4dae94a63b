// SPDX-License-Identifier: Apache-2.0
// Every cycle of translated code has a poll: of guests with all kinds of control flow, translated cold and hot.

import Engine
import GuestMemory
import Host
import Synchronization
import TestSupport
import Testing
import X86

@testable import Translator

@Suite("Polls", .serialized) struct PollGraphTests {
  /// Runs a guest until it halts or is kicked.
  private func run(_ guest: KernelGuest, _ name: String, _ edit: (inout CPUState) -> Void = { _ in }) {
    guest.load(name)
    guest.start(edit)
    let kicker = Kicker(guest.cpu, microseconds: 2000)
    // A kick may be left from the one before.
    TestLimit.watched(name) { for _ in 0..<4 where guest.cpu.run() != .kicked { break } }
    kicker.stop()
  }

  @Test("Loops, calls, returns, jump tables, many blocks", arguments: [false, true]) func guests(isHot: Bool) throws {
    let guest = try KernelGuest()
    guest.translation.lock.withLock { _ in guest.translation.cache.hotCode.isEverything = isHot }
    var links = 0
    for name in [
      "loop_self", "loop_indirect", "loop_indirect_pair", "loop_call_ret", "loop_recursion", "loop_ret",
      "loop_rep_stos",
      "loop_rep_scas", "loop_loop", "loop_adc", "loop_cli", "loop_jcc", "loop_pause", "many_blocks", "deep",
      "recursion",
      "retpoline",
    ] {
      run(guest, name) { $0.registers[4] = 0xF00000 }
      let graph = PollGraph(guest.translation.cache)
      #expect(graph.problem == nil, "\(name)")
      #expect(graph.blocks > 0 && graph.instructions > 10 * graph.blocks)
      links = max(links, graph.links)
    }
    #expect(links >= 20, "there were no links between blocks to look at")
  }

  @Test("A backward edge that enters behind the poll is found") func withoutPoll() throws {
    let guest = try KernelGuest()
    run(guest, "loop_jcc")
    let cache = guest.translation.cache
    #expect(PollGraph(cache).problem == nil)
    var changed = 0
    cache.forEachLiveBlock { block in
      for number in block.firstEdge..<block.firstEdge + block.edgeCount {
        let edge = cache.edge(UInt32(number))
        guard edge.kind == .backward, edge.target >= 0 else { continue }
        let target = cache[edge.target]
        let place = unsafe cache.code.writable + Int(edge.end) - 4
        let distance = unsafe place.loadUnaligned(as: Int32.self)
        unsafe place.storeBytes(
          of: distance + Int32(target.plainOffset) - Int32(target.pollOffset), as: Int32.self)
        #expect(PollGraph(cache).problem?.contains("a loop without a poll") == true)
        unsafe place.storeBytes(of: distance, as: Int32.self)
        changed += 1
      }
    }
    #expect(changed > 0 && PollGraph(cache).problem == nil)
  }

  @Test("An entry without a poll is found") func entryWithoutPoll() throws {
    let guest = try KernelGuest()
    run(guest, "loop_jcc")
    let cache = guest.translation.cache
    var first: Block?
    cache.forEachLiveBlock { first = first ?? $0 }
    let block = try #require(first)
    // NOPs over everything before the plain entry.
    for offset in Int(block.hot)..<Int(block.hot) + Int(block.plainOffset) {
      unsafe cache.code.writable.storeBytes(of: 0x90, toByteOffset: offset, as: UInt8.self)
    }
    #expect(PollGraph(cache).problem?.contains("an entry without a poll") == true)
  }
}
