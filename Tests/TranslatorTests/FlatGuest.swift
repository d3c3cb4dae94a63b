// SPDX-License-Identifier: Apache-2.0
// A minimal guest for engine tests: RAM, identity page tables, a flat 64-bit CPU state, one translated vCPU.

import CHost
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

/// A vCPU in 64-bit mode with memory identity-mapped by 2 MiB pages (the first 1 GiB).
final class FlatGuest {
  let memory: GuestMemory
  let translation: Translation
  let cpu: TranslatedCPU

  // One for all tests, which run on one thread at a time; never freed.
  private static let signalStackBytes = 256 << 10
  private nonisolated(unsafe) static let signalStack = UnsafeMutableRawPointer.allocate(
    byteCount: signalStackBytes, alignment: 4096)

  /// - Parameters:
  ///   - singleInstruction: Every instruction is a block of its own.
  ///   - isAMD: CPUID names AMD, not Intel.
  ///   - softFaultLimit: Unexpected host faults that end the run: the first, unless a test makes them.
  init(
    megabytes: UInt64 = 16, singleInstruction: Bool = false, isAMD: Bool = false, softFaultLimit: Int = 1
  ) throws {
    memory = try GuestMemory(byteCount: megabytes << 20)
    var options = TranslationOptions(cpuid: [.testProcessor(isAMD: isAMD)], supports: { _ in true })
    options.singleInstruction = singleInstruction
    options.softFaultLimit = softFaultLimit
    translation = try Translation(memory: memory, options: options)
    cpu = try translation.makeCPU(0)
    unsafe _ = chost_prepare_thread(FlatGuest.signalStack, UInt64(FlatGuest.signalStackBytes))
    try memory.store(UInt64(0x2003), at: GuestPhysical(0x1000))
    try memory.store(UInt64(0x3003), at: GuestPhysical(0x2000))
    for index in UInt64(0)..<512 {
      try memory.store(index << 21 | 0x83, at: GuestPhysical(0x3000 + index * 8))
    }
    var state = CPUState()
    state.cs = .flatCode64
    state.ds = .flatData
    state.es = .flatData
    state.ss = .flatData
    state.fs = .flatData
    state.gs = .flatData
    state.cr0 = 0x8000_0033
    state.cr3 = 0x1000
    state.cr4 = 0x620
    state.efer = 0x500
    state.rip = 0x10000
    state.registers[4] = 0x80000
    cpu.state = state
  }

  /// Places code at 0x10000, that of Tests/GuestCode by its name.
  func load(_ name: String) throws { try load(GuestProgram(name).bytes) }

  func load(_ code: [UInt8]) throws { try memory.copy(from: code, to: GuestPhysical(0x10000)) }
}
