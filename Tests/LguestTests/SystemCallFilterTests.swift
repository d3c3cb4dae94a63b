// SPDX-License-Identifier: Apache-2.0
// Filters of system calls: the instructions that are made of rules, executed by a small interpreter as the kernel
// would.

import Foundation
import Host
import TestSupport
import Testing

@testable import Lguest

/// Classic BPF over `struct seccomp_data`, as far as filters use it; written from linux/filter.h and
/// Documentation/networking/filter.rst, not from the compiler.
struct FilterInterpreter {
  /// What a thread asks of the kernel.
  struct Call {
    var number: UInt32
    var architecture: UInt32 = 0xC000_003E
    var arguments: [UInt64] = [0, 0, 0, 0, 0, 0]

    init(_ number: UInt32, _ arguments: UInt64..., architecture: UInt32 = 0xC000_003E) {
      self.number = number
      self.architecture = architecture
      for (place, value) in arguments.enumerated() { self.arguments[place] = value }
    }

    init(_ call: SystemCall, _ arguments: UInt64...) {
      self.init(call.rawValue)
      for (place, value) in arguments.enumerated() { self.arguments[place] = value }
    }

    /// A 32-bit word of the structure.
    func word(at offset: UInt32) -> UInt32? {
      let bytes =
        [UInt64(number) | UInt64(architecture) << 32, 0x7F00_1234_5678] + arguments
      guard offset % 4 == 0, offset < 64 else { return nil }
      return UInt32(truncatingIfNeeded: bytes[Int(offset / 8)] >> (offset % 8 == 0 ? 0 : 32))
    }
  }

  enum Answer: Equatable {
    case allow
    case trap(UInt32)
    /// The kernel would refuse the program, or it says something else.
    case nonsense
  }

  static func run(_ filter: SystemCallFilter, _ call: Call) -> Answer {
    var accumulator: UInt32 = 0
    var place = 0
    for _ in 0..<4096 {
      guard filter.instructions.indices.contains(place) else { return .nonsense }
      let instruction = filter.instructions[place]
      let operand = instruction.operand
      place += 1
      func jump(_ holds: Bool) -> Int { place + Int(holds ? instruction.ifTrue : instruction.ifFalse) }
      switch instruction.code {
      case 0x20:
        guard let word = call.word(at: operand) else { return .nonsense }
        accumulator = word
      case 0x54: accumulator &= operand
      case 0x15: place = jump(accumulator == operand)
      case 0x25: place = jump(accumulator > operand)
      case 0x35: place = jump(accumulator >= operand)
      case 0x45: place = jump(accumulator & operand != 0)
      case 0x06:
        switch operand & 0xFFFF_0000 {
        case 0x7FFF_0000: return .allow
        case 0x0003_0000: return .trap(operand & 0xFFFF)
        default: return .nonsense
        }
      default: return .nonsense
      }
    }
    return .nonsense
  }
}

@Suite("Filters of system calls") struct SystemCallFilterTests {
  typealias Call = FilterInterpreter.Call
  typealias Condition = SystemCallFilter.Condition
  typealias Rule = SystemCallFilter.Rule

  @Test("what is listed is allowed, and nothing by other architectures' numbers") func list() {
    let filter = SystemCallFilter([Rule(.read), Rule(.write), Rule(.getrandom)], data: 7)
    for number in UInt32(0)...600 {
      let isListed = [0, 1, 318].contains(number)
      #expect(FilterInterpreter.run(filter, Call(number)) == (isListed ? .allow : .trap(7)))
      // i386, and x32, whose numbers are these with bit 30.
      #expect(FilterInterpreter.run(filter, Call(number, architecture: 0x4000_0003)) == .trap(7))
      #expect(FilterInterpreter.run(filter, Call(number | 0x4000_0000)) == .trap(7))
    }
    #expect(FilterInterpreter.run(filter, Call(.max)) == .trap(7))
    #expect(FilterInterpreter.run(SystemCallFilter([], data: 0), Call(.read)) == .trap(0))
  }

  @Test("conditions") func conditions() {
    func answer(_ conditions: [Condition], _ arguments: UInt64...) -> Bool {
      let filter = SystemCallFilter([Rule(.close), Rule(.mmap, conditions), Rule(.brk)], data: 1)
      // What stands around it does not change it.
      #expect(FilterInterpreter.run(filter, Call(.close)) == .allow)
      #expect(FilterInterpreter.run(filter, Call(.brk)) == .allow)
      var call = Call(.mmap)
      for (place, value) in arguments.enumerated() { call.arguments[place] = value }
      return FilterInterpreter.run(filter, call) == .allow
    }
    #expect(answer([.without(0, 4)], 3) && answer([.without(0, 4)], 4 << 32))
    #expect(!answer([.without(0, 4)], 4) && !answer([.without(0, 4)], .max))
    #expect(answer([.with(1, 0x22)], 0, 0x62) && !answer([.with(1, 0x22)], 0, 0x42) && !answer([.with(1, 0x22)], 0, 0))
    #expect(answer([.oneOf(5, [4, 8])], 0, 0, 0, 0, 0, 8) && !answer([.oneOf(5, [4, 8])], 8, 8, 8, 8, 8, 12))
    #expect(
      answer([.oneOf(0, [9], ignoring: 0x180)], 9 | 0x180) && !answer([.oneOf(0, [9], ignoring: 0x180)], 9 | 0x280))
    #expect(answer([.equals(3, 1)], 0, 0, 0, 1) && !answer([.equals(3, 1)], 0, 0, 0, 1 | 1 << 32))
    #expect(!answer([.equals(3, 1 << 32)], 0, 0, 0, 0) && answer([.equals(3, 1 << 32)], 0, 0, 0, 1 << 32))
    #expect(answer([.without(0, 1), .oneOf(1, [2])], 2, 2) && !answer([.without(0, 1), .oneOf(1, [2])], 1, 2))
    #expect(!answer([.without(0, 1), .oneOf(1, [2])], 2, 1))
  }

  @Test("random rules mean what they say") func random() {
    let seed = TestSeed.of("filters")
    var random = SeededGenerator(seed: seed)
    for _ in 0..<300 {
      let calls = SystemCall.allCases.shuffled(using: &random).prefix(Int.random(in: 1...30, using: &random))
      let rules = calls.map { call in
        Rule(call, (0..<Int.random(in: 0...3, using: &random)).map { _ in condition(&random) })
      }
      let filter = SystemCallFilter(rules, data: 3)
      for rule in rules {
        for _ in 0..<20 {
          var call = Call(rule.call)
          for place in 0...5 { call.arguments[place] = value(&random) }
          let isAllowed = rule.conditions.allSatisfy { holds($0, call.arguments) }
          #expect(FilterInterpreter.run(filter, call) == (isAllowed ? .allow : .trap(3)), "\(rule) \(call)")
        }
      }
    }
  }

  private func value(_ random: inout SeededGenerator) -> UInt64 {
    let interesting: [UInt64] = [0, 1, 2, 3, 4, 0x80, 0xFF, 1 << 31, 0xFFFF_FFFF, 1 << 32, 1 << 32 | 1, .max]
    return interesting.randomElement(using: &random) ?? 0
  }

  private func condition(_ random: inout SeededGenerator) -> Condition {
    func low() -> UInt32 { UInt32(truncatingIfNeeded: value(&random)) }
    let place = Int.random(in: 0...5, using: &random)
    switch Int.random(in: 0...3, using: &random) {
    case 0: return .without(place, low())
    case 1: return .with(place, low())
    case 2: return .oneOf(place, (0...Int.random(in: 0...5, using: &random)).map { _ in low() }, ignoring: low())
    default: return .equals(place, value(&random))
    }
  }

  private func holds(_ condition: Condition, _ arguments: [UInt64]) -> Bool {
    switch condition {
    case .without(let place, let bits): UInt32(truncatingIfNeeded: arguments[place]) & bits == 0
    case .with(let place, let bits): UInt32(truncatingIfNeeded: arguments[place]) & bits == bits
    case .oneOf(let place, let values, let ignored):
      values.contains(UInt32(truncatingIfNeeded: arguments[place]) & ~ignored)
    case .equals(let place, let value): arguments[place] == value
    }
  }

  @Test("numbers are the kernel's") func numbers() throws {
    let names: [SystemCall: String] = [
      .read: "read", .write: "write", .close: "close", .poll: "poll", .lseek: "lseek", .mmap: "mmap",
      .mprotect: "mprotect", .munmap: "munmap", .brk: "brk", .sigprocmask: "rt_sigprocmask",
      .sigreturn: "rt_sigreturn", .ioctl: "ioctl", .pread: "pread64", .pwrite: "pwrite64", .writev: "writev",
      .mremap: "mremap", .madvise: "madvise", .getpid: "getpid", .sendto: "sendto", .recvmsg: "recvmsg",
      .shutdown: "shutdown", .getsockopt: "getsockopt", .exit: "exit", .fsync: "fsync", .fdatasync: "fdatasync",
      .ftruncate: "ftruncate",
      .geteuid: "geteuid", .sigtimedwait: "rt_sigtimedwait", .sigaltstack: "sigaltstack", .gettid: "gettid",
      .futex: "futex", .restart: "restart_syscall", .clockGettime: "clock_gettime",
      .clockNanosleep: "clock_nanosleep", .exitGroup: "exit_group", .tgkill: "tgkill", .unlinkat: "unlinkat",
      .renameat: "renameat", .linkat: "linkat", .fallocate: "fallocate", .accept4: "accept4", .getrandom: "getrandom",
    ]
    for call in SystemCall.allCases { #expect(names[call] == call.name) }
    #expect(SystemCall.name(of: 400) == "of an unknown number" && SystemCall.name(of: -1) == SystemCall.name(of: 400))
    // The whole table, where the kernel's headers are installed.
    let header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    guard let text = try? String(contentsOfFile: header, encoding: .utf8) else { return }
    let lines = text.matches(of: /#define __NR_(\w+) (\d+)/)
    #expect(lines.count > 300)
    for line in lines { #expect(SystemCall.name(of: try #require(Int32(line.2))) == line.1) }
  }
}
