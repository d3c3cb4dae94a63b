// SPDX-License-Identifier: Apache-2.0
// Random bytes as guest code in every mode, with damaged page tables and descriptors and random answers to every exit:
// the process must survive, always come back when kicked, and never see a fault that the engine cannot explain. A
// store outside guest RAM would hit the unmapped addresses around it.

import Glibc
import GuestMemory
import Synchronization
import TestSupport
import Testing
import X86

@testable import Translator

/// Kicks a vCPU every half millisecond until it goes away.
final class Kicker: Sendable {
  private let stopped = Atomic<Bool>(false)

  init(_ cpu: TranslatedCPU, microseconds: UInt32 = 500) {
    Thread.start { [self] in
      while !stopped.load(ordering: .relaxed) {
        usleep(microseconds)
        cpu.kick()
      }
    }
  }

  func stop() { stopped.store(true, ordering: .relaxed) }
}

/// A detached POSIX thread: tests must not depend on how many threads the concurrency runtime has to spare.
enum Thread {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  static func start(_ run: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    let body = unsafe Unmanaged.passRetained(Body(run)).toOpaque()
    let error = unsafe pthread_create(
      &thread, nil,
      { argument in
        if let argument = unsafe argument { unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
        return nil
      }, body)
    precondition(error == 0)
    pthread_detach(thread)
  }
}

@Suite("Fuzz: random guest code", .serialized) struct CodeFuzzTests {
  /// How long each mode is tried; LGUEST_FUZZ_SECONDS makes it longer.
  static let seconds: Double = {
    guard let text = unsafe getenv("LGUEST_FUZZ_SECONDS") else { return 1.5 }
    return Double(unsafe String(cString: text)) ?? 1.5
  }()

  enum Mode: String, CaseIterable, Sendable {
    case long, longUser, compatibility, protected32, paged32, real, protected16
  }

  /// Bytes that decode to something often.
  static func code(_ random: inout SplitMix64, count: Int) -> [UInt8] {
    let prefixes: [UInt8] = [0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x48, 0x4C, 0x41, 0x64, 0x65, 0x2E, 0x36]
    let escapes: [[UInt8]] = [
      [0x0F], [0x0F, 0x38], [0x0F, 0x3A], [0xC5, 0xF8], [0xC4, 0xE2, 0x79], [0xC4, 0xE3, 0xFD],
    ]
    var bytes: [UInt8] = []
    while bytes.count < count {
      while random.next() % 3 == 0 { bytes.append(prefixes[Int(random.next() % 12)]) }
      if random.next() % 3 == 0 { bytes += escapes[Int(random.next() % 6)] }
      bytes.append(UInt8(truncatingIfNeeded: random.next()))
      for _ in 0..<(random.next() % 6) {
        bytes.append(random.next() % 3 == 0 ? 0 : UInt8(truncatingIfNeeded: random.next()))
      }
    }
    return Array(bytes.prefix(count))
  }

  static func state(_ mode: Mode, _ random: inout SplitMix64) -> CPUState {
    var state = KernelGuest.startState(user: mode == .longUser)
    switch mode {
    case .long, .longUser: break
    case .compatibility:
      state.cs = Segment(selector: 0x23, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC0FB)
      for path in [\CPUState.ss, \.ds, \.es] {
        state[keyPath: path] = Segment(selector: 0x2B, base: 0, limit: 0xFFFF_FFFF, attributes: 0xC0F3)
      }
    case .protected32, .paged32, .protected16:
      let small = mode == .protected16
      state.efer = 0
      state.cs = Segment(
        selector: 8, base: 0, limit: small ? 0xFFFFF : 0xFFFF_FFFF, attributes: small ? 0x009B : 0xC09B)
      if small { state.ss = Segment(selector: 0x18, base: 0x100, limit: 0x8FFFF, attributes: 0x0093) }
      state.cr4 = mode == .paged32 ? 0x690 : 0x600
      state.cr0 = mode == .paged32 ? 0x8001_0033 : 0x33
      state.cr3 = 0x8000
      state.tr.attributes = 0x8B
    case .real:
      state.efer = 0
      state.cr0 = 0x10
      state.cr4 = 0
      for path in [\CPUState.cs, \.ss, \.ds, \.es, \.fs, \.gs] {
        let selector = UInt16(truncatingIfNeeded: random.next() & 0x1FFF)
        state[keyPath: path] = Segment(selector: selector, base: UInt64(selector) << 4, limit: 0xFFFF, attributes: 0x93)
      }
      state.cs = Segment(selector: 0x1000, base: 0x10000, limit: 0xFFFF, attributes: 0x9B)
      state.rip = 0
      state.idtr = DescriptorTable(base: 0, limit: 0x3FF)
    }
    for number in 0..<16 {
      state.registers[number] =
        switch random.next() % 5 {
        case 0: random.next()
        case 1: UInt64.max &- random.next() % 64
        case 2: random.next() % 64
        default: random.next() % (6 << 20)
        }
    }
    if random.next() % 8 != 0 { state.registers[4] = KernelGuest.stack &+ random.next() % 0x2000 }
    state.rflags =
      random.next() & 0x244CD5 | 2 | (random.next() % 4 == 0 ? 0x200 : 0) | (random.next() % 16 == 0 ? 0x100 : 0)
    if random.next() % 16 == 0 {
      state.dr7 = random.next() & 0xFFFF_03FF | 0x400
      state.dr0 = KernelGuest.code &+ random.next() % 64
      state.dr1 = KernelGuest.stack
      state.dr2 = random.next() % (6 << 20)
    }
    if random.next() % 8 == 0 { state.cr0 |= random.next() & 0xE }
    if random.next() % 8 == 0 { state.cr0 |= 1 << 18 }
    return state
  }

  static func damage(_ guest: KernelGuest, _ random: inout SplitMix64) {
    for _ in 0..<(random.next() % 6) {
      let table = [
        KernelGuest.pml4, KernelGuest.directory, KernelGuest.table, KernelGuest.gdt, KernelGuest.idt, KernelGuest.tss,
      ]
      let base = table[Int(random.next() % 6)]
      guest.poke(random.next(), at: base + random.next() % 64 * 8)
    }
    for _ in 0..<8 {
      let page = random.next() % 512
      let choices: [UInt64] = [7, 5, 3, 1, 0, 0x8000_0000_0000_0007, 0x1F7, 0x87]
      let flags = choices[Int(random.next() % 8)]
      guest.poke((random.next() % 8 == 0 ? random.next() % 2048 : page) << 12 | flags, at: KernelGuest.table + page * 8)
    }
  }

  @Test("Survives", arguments: Mode.allCases) func survive(mode: Mode) throws {
    var seed =
      unsafe getenv("LGUEST_FUZZ_SEED").flatMap { UInt64(unsafe String(cString: $0)) }
      ?? TestSeed.of("random guest code, \(mode.rawValue)", fixed: 0x1234)
    seed &+= UInt64(Mode.allCases.firstIndex(of: mode) ?? 0) << 32
    let end = clock_gettime_nsec() &+ UInt64(Self.seconds * 1e9)
    var iterations = 0
    while clock_gettime_nsec() < end {
      let guest = try KernelGuest(megabytes: 8)
      // Two-level tables for 32-bit paging at 8000.
      for index in UInt64(0)..<1024 { guest.poke(UInt32(index << 22 | 0x87), at: 0x8000 + index * 4) }
      let kicker = Kicker(guest.cpu)
      defer { kicker.stop() }
      for _ in 0..<400 where clock_gettime_nsec() < end {
        var random = SplitMix64(state: seed)
        let count = 32 + Int(random.next() % 200)
        let start = KernelGuest.code + (random.next() % 4 == 0 ? 4096 - random.next() % 32 : 0)
        guest.load(Self.code(&random, count: count), at: start)
        if random.next() % 4 == 0 { Self.damage(guest, &random) }
        guest.start { $0 = Self.state(mode, &random) }
        if mode != .real { guest.cpu.state.rip = start }
        if unsafe getenv("LGUEST_FUZZ_TRACE") != nil { print("seed \(seed)") }
        exits: for _ in 0..<12 {
          if random.next() % 4 == 0 && guest.cpu.canAcceptInterrupt {
            guest.cpu.inject(interrupt: UInt8(random.next() & 0xFF))
          }
          if random.next() % 16 == 0 { guest.cpu.injectNMI() }
          if random.next() % 4 == 0 { guest.cpu.requestInterruptWindow(random.next() % 2 == 0) }
          let exit = guest.cpu.run()
          switch exit {
          case .portRead, .mmioRead: guest.cpu.completeRead(random.next())
          case .msrRead: random.next() % 2 == 0 ? guest.cpu.completeRead(random.next()) : guest.cpu.refuseMSR()
          case .msrWrite: random.next() % 2 == 0 ? guest.cpu.completeWrite() : guest.cpu.refuseMSR()
          case .kicked, .shutdown: break exits
          case .failed(let text):
            Issue.record("seed \(seed) \(mode): \(text)")
            break exits
          default: break
          }
        }
        seed &+= 1
        iterations += 1
      }
      let graph = PollGraph(guest.translation.cache)
      #expect(graph.problem == nil, "before seed \(seed)")
    }
    print("fuzz \(mode.rawValue): \(iterations) guests, next seed \(seed)")
  }
}

/// Monotonic time in nanoseconds.
func clock_gettime_nsec() -> UInt64 {
  var time = timespec()
  unsafe clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
