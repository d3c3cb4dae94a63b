// SPDX-License-Identifier: Apache-2.0
// The target of code that changes: up to three vCPUs at the same time execute and change the same pages, through their
// addresses and through an alias, while now and then the page tables point elsewhere.

import GuestMemory
import Host
import Synchronization
import TestSupport
import X86

@testable import Translator

/// Several vCPUs over one program.
enum SelfModifying {
  static func run(_ input: inout FuzzInput) throws {
    let count = 1 + input.below(3)
    let refusals = Refusals()
    let isSmall = input.chance(4)
    let guest = try EngineGuest(cpus: count) {
      $0.refused = { refusals.note($0) }
      $0.pausesToExit = 256
      if isSmall { $0.codeBytes = 128 << 10 }
    }
    // Code at 10000, once more at 30000 for those who write, and 32 KiB higher with other bytes.
    for page in UInt64(0)..<4 {
      try guest.poke(0x1_0000 + page << 12 | 7, at: EngineGuest.table + (0x30 + page) * 8)
    }
    let (user, seed) = (input.chance(2), input.seed())
    var states: [CPUState] = []
    for _ in 0..<count {
      var state = EngineGuest.long(user: user)
      EngineGuest.setRegisters(&state, &input)
      state.rflags &= 0x8D5
      state.rflags |= 2
      state.dr7 = 0x400
      state.registers[4] = EngineGuest.stack &- UInt64(states.count) * 0x4000
      for number in [3, 6, 7] where input.chance(2) {
        state.registers[number] = EngineGuest.code &+ UInt64(input.word(UInt16.self) & 0x1FFF)
      }
      state.rip = EngineGuest.code &+ UInt64(input.byte()) * (input.chance(4) ? 16 : 0)
      states.append(state)
    }
    let taste = ProgramWriter.Taste(is64: true, system: 24, changes: 4)
    while !input.isOver {
      let place = EngineGuest.code + UInt64(input.below(32)) * 0x100
      try guest.load(ProgramWriter.program(&input, count: 0x180, taste), at: place)
    }
    let outcome = Mutex<(any Error)?>(nil)
    let team = Team(guest)
    let kicking = try Kicking(guest.cpus)
    defer { kicking.stop() }
    var threads: [HostThread] = []
    for (number, state) in states.enumerated() {
      threads.append(
        try HostThread(name: "vcpu") {
          do { try onPreparedThread { try team.run(number, state, seed) } } catch { outcome.withLock { $0 = error } }
        })
    }
    for thread in threads { thread.join() }
    if let error = outcome.withLock({ $0 }) { throw error }
    try guest.check(refusals)
    if let problem = PollGraph(guest.translation.cache).problem { throw FuzzFailure(problem) }
  }

  /// The guest, for the threads of its vCPUs.
  private final class Team: @unchecked Sendable {
    private let guest: EngineGuest
    init(_ guest: EngineGuest) { self.guest = guest }

    func run(_ number: Int, _ state: CPUState, _ seed: UInt64) throws {
      var random = SeededGenerator(seed: seed &+ UInt64(number))
      let end = HostClock.after(nanoseconds: 1_000_000_000)
      for _ in 0..<4 where HostClock.monotonic < end {
        guest.cpus[number].state = state
        try guest.run(number, &random, exits: 6)
        try guest.settle(number, &random)
      }
    }
  }
}
