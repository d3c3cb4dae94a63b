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

@safe final class KernelGuest {
  static let pml4: UInt64 = 0x1000, pdpt: UInt64 = 0x2000, directory: UInt64 = 0x3000, table: UInt64 = 0x4000
  static let gdt: UInt64 = 0x5000, idt: UInt64 = 0x6000, tss: UInt64 = 0x7000
  static let code: UInt64 = 0x10000, data: UInt64 = 0x20000
  static let stack: UInt64 = 0x80000, stack0: UInt64 = 0x90000, interruptStack: UInt64 = 0xA0000
  static let handlers: UInt64 = 0xB0000
  /// Physical and linear address of a page that is not RAM.
  static let device: UInt64 = 0xFE00_0000
  static let kernelCode32: UInt64 = 0x08, kernelCode: UInt64 = 0x10, kernelData: UInt64 = 0x18
  static let userCode32: UInt64 = 0x23, userData: UInt64 = 0x2B, userCode: UInt64 = 0x33, task: UInt64 = 0x40

  let memory: GuestMemory
  let translation: Translation
  let cpu: TranslatedCPU
  /// What CPUState was when the guest last started.
  private(set) var initial = CPUState()
  private let signalStack: UnsafeMutableRawPointer

  static let cpuid = CPUIDTable([
    .init(0, subleaf: nil, eax: 7, ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69),
    .init(1, subleaf: nil, eax: 0x106CA, ebx: 0, ecx: 0xFFFF_FFFF & ~(1 << 3 | 1 << 17), edx: 0x178B_FBFF),
    .init(7, subleaf: 0, eax: 0, ebx: 0x0010_00A9, ecx: 4, edx: 0),
    .init(0x8000_0000, subleaf: nil, eax: 0x8000_0001, ebx: 0, ecx: 0, edx: 0),
    .init(0x8000_0001, subleaf: nil, eax: 0, ebx: 0, ecx: 0x21, edx: 0x2C10_0800),
  ])

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
    makeTables()
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

  private func makeTables() {
    poke(KernelGuest.pdpt | 7, at: KernelGuest.pml4)
    poke(KernelGuest.directory | 7, at: KernelGuest.pdpt)
    poke(0xC000_0000 | 0x87, at: KernelGuest.pdpt + 24)
    poke(KernelGuest.table | 7, at: KernelGuest.directory)
    for index in UInt64(1)..<512 { poke(index << 21 | 0x87, at: KernelGuest.directory + index * 8) }
    for page in UInt64(0)..<512 { poke(page << 12 | 7, at: KernelGuest.table + page * 8) }
    let descriptors: [UInt64] = [
      0, 0x00CF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF,
      0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_1300_0000_FFFF,
      KernelGuest.tss << 16 | 0x0000_8B00_0000_0067, 0,
      0x0000_9B00_0000_FFFF, 0x0000_9300_0000_FFFF,  // 50 58: 16-bit code and data
      0x0040_9700_0000_0FFF, 0x0040_9302_0000_00FF,  // 60: expand-down, 68: 256 bytes at 20000
      0x00CF_9100_0000_FFFF, 0x00CF_F900_0000_FFFF,  // 70: read-only, 78: execute-only, DPL 3
    ]
    for (index, value) in descriptors.enumerated() { poke(value, at: KernelGuest.gdt + UInt64(index) * 8) }
    poke(KernelGuest.stack0, at: KernelGuest.tss + 4)
    poke(KernelGuest.interruptStack, at: KernelGuest.tss + 36)
    poke(UInt16(0x68), at: KernelGuest.tss + 102)
    for vector in UInt64(0)..<256 {
      setGate(UInt8(vector), privilege: [3, 4, 0x80].contains(vector) ? 3 : 0)
      poke(UInt8(0xF4), at: KernelGuest.handlers + vector * 16)
    }
  }

  func setGate(_ vector: UInt8, privilege: UInt64 = 0, stack: UInt64 = 0, trap: Bool = false) {
    let target = KernelGuest.handlers + UInt64(vector) * 16
    let access = 0x8E | privilege << 5 | (trap ? 1 : 0)
    let low = target & 0xFFFF | KernelGuest.kernelCode << 16 | stack << 32 | access << 40 | (target >> 16) << 48
    poke(low, at: KernelGuest.idt + UInt64(vector) * 16)
    poke(UInt64(0), at: KernelGuest.idt + UInt64(vector) * 16 + 8)
  }

  /// Sets the entry of one of the first 512 pages; the TLB is not told.
  func setPage(_ linear: UInt64, _ entry: UInt64) { poke(entry, at: KernelGuest.table + (linear >> 12) * 8) }

  // MARK: Running

  /// State before the first instruction: 64-bit mode, level 0 or 3, everything a kernel enables.
  static func startState(user: Bool = false) -> CPUState {
    var state = CPUState()
    func segment(_ selector: UInt64, _ attributes: UInt32) -> Segment {
      Segment(selector: UInt16(selector), base: 0, limit: 0xFFFF_FFFF, attributes: attributes)
    }
    state.cs = user ? segment(userCode, 0xA0FB) : segment(kernelCode, 0xA09B)
    let data = user ? segment(userData, 0xC0F3) : segment(kernelData, 0xC093)
    state.ds = data
    state.es = data
    state.ss = data
    state.fs = data
    state.gs = data
    state.tr = Segment(selector: UInt16(task), base: tss, limit: 0x67, attributes: 0x8B)
    state.ldtr = .unusable
    state.gdtr = DescriptorTable(base: gdt, limit: 0x7F)
    state.idtr = DescriptorTable(base: idt, limit: 0xFFF)
    state.cr0 = 0x8001_0033
    state.cr3 = pml4
    state.cr4 = 0x4_06B0
    state.efer = 0xD01
    state.xcr0 = 7
    state.star = 0x0020_0010_0000_0000
    state.lstar = handlers + 0x1000
    state.rip = code
    state.registers[4] = stack
    return state
  }

  /// Puts the vCPU at its code.
  func start(user: Bool = false, _ edit: (inout CPUState) -> Void = { _ in }) {
    initial = KernelGuest.startState(user: user)
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
