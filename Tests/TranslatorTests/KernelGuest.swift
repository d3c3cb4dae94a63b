// SPDX-License-Identifier: Apache-2.0
// A guest with what a kernel has: page tables with 4 KiB pages, GDT, TSS, and an IDT whose handlers halt, so that a
// test sees every exception with its frame. Its code comes from Tests/GuestCode by name.

import CHost
import Engine
import GuestMemory
import TestSupport
import Testing
import X86

@testable import Translator

/// An exception or interrupt as its handler finds it.
struct Delivered: Equatable {
  var vector: UInt8
  var error: UInt64 = 0
  var rip: UInt64
  var cs: UInt64 = KernelGuest.kernelCode
  var rflags: UInt64 = 2
  var rsp: UInt64 = KernelGuest.stack
  var ss: UInt64 = KernelGuest.kernelData

  static let withCode: Set<UInt8> = [8, 10, 11, 12, 13, 14, 17]
}

@safe final class KernelGuest: TestKernel {
  /// Physical and linear address of a page that is not RAM.
  static let device: UInt64 = 0xFE00_0000
  static let moreDescriptors: [UInt64] = []
  static func isUser(page: UInt64) -> Bool { true }
  static func isUser(region: UInt64) -> Bool { true }

  let memory: GuestMemory
  let translation: Translation
  let cpu: TranslatedCPU
  /// What CPUState was when the guest last started.
  private(set) var initial = CPUState()
  private let signalStack: UnsafeMutableRawPointer

  init(
    megabytes: UInt64 = 16, fetchDelay: UInt64? = nil, edit: (inout TranslationOptions) -> Void = { _ in }
  ) throws {
    memory = try GuestMemory(byteCount: megabytes << 20, fetchDelay: fetchDelay)
    var options = TranslationOptions(cpuid: [KernelGuest.cpuid, KernelGuest.cpuid], supports: { _ in true })
    edit(&options)
    translation = try Translation(memory: memory, options: options)
    cpu = try translation.makeCPU(0)
    let bytes = 256 << 10
    unsafe signalStack = .allocate(byteCount: bytes, alignment: 4096)
    unsafe _ = chost_prepare_thread(signalStack, UInt64(bytes))
    try makeKernelTables()
    start()
  }

  deinit {
    _ = chost_prepare_thread(nil, 0)
    unsafe signalStack.deallocate()
  }

  // MARK: Memory

  func poke<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) {
    do { try memory.store(value, at: GuestPhysical(address)) } catch { Issue.record("poke at \(address): \(error)") }
  }

  func peek<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type = T.self, at address: UInt64) -> T {
    do { return try memory.load(type, at: GuestPhysical(address)) } catch {
      Issue.record("peek at \(address): \(error)")
      return 0
    }
  }

  func load(_ bytes: [UInt8], at address: UInt64 = KernelGuest.code) {
    do { try memory.copy(from: bytes, to: GuestPhysical(address)) } catch { Issue.record("load: \(error)") }
  }

  /// Loads a guest from Tests/GuestCode.
  func load(_ name: String, at address: UInt64 = KernelGuest.code) { load(GuestProgram(name).bytes, at: address) }

  /// Where a mark of a loaded guest is.
  static func mark(_ mark: String, in name: String, at address: UInt64 = KernelGuest.code) -> UInt64 {
    address &+ UInt64(GuestProgram(name).offset(of: mark))
  }

  // MARK: Tables

  func setGate(_ vector: UInt8, privilege: UInt64 = 0, stack: UInt64 = 0, trap: Bool = false) {
    let entry = KernelGuest.idt + UInt64(vector) * 16
    poke(
      KernelGuest.gate(vector, to: KernelGuest.kernelCode, privilege: privilege, stack: stack, trap: trap), at: entry)
    poke(UInt64(0), at: entry + 8)
  }

  /// Sets the entry of one of the first 512 pages; the TLB is not told.
  func setPage(_ linear: UInt64, _ entry: UInt64) { poke(entry, at: KernelGuest.table + (linear >> 12) * 8) }

  // MARK: Running

  /// Puts the vCPU at its code.
  func start(user: Bool = false, _ edit: (inout CPUState) -> Void = { _ in }) {
    initial = KernelGuest.longState(user: user)
    edit(&initial)
    cpu.state = initial
  }

  /// Runs to the HLT of a handler and returns what it was called for; nil if the guest halted elsewhere.
  func exception() -> Delivered? {
    let exit = cpu.run()
    guard exit == .halt else {
      Issue.record("exit \(exit) at \(String(cpu.state.rip, radix: 16))")
      return nil
    }
    return frame()
  }

  /// What is on the stack of the handler that has just halted.
  func frame() -> Delivered? {
    let rip = cpu.state.rip &- 1
    guard rip >= KernelGuest.handlers, rip < KernelGuest.handlers + 0x1000 else { return nil }
    let vector = UInt8((rip - KernelGuest.handlers) / 16)
    var at = cpu[register: 4]
    var result = Delivered(vector: vector, rip: 0)
    if Delivered.withCode.contains(vector) {
      result.error = peek(at: at)
      at += 8
    }
    result.rip = peek(at: at)
    result.cs = peek(at: at + 8)
    result.rflags = peek(at: at + 16)
    result.rsp = peek(at: at + 24)
    result.ss = peek(at: at + 32)
    return result
  }
}
