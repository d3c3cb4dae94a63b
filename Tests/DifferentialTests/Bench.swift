// SPDX-License-Identifier: Apache-2.0
// Runs the same bytes from the same state natively and translated. Both sides end with an exception: natively HLT is
// one (#GP), and in the guest every vector has a handler that is a HLT and a stack of its own (IST), so that the
// frame tells RIP, RSP and flags.

import CHost
import CNative
import Engine
import GuestMemory
import Host
import Synchronization
import Testing
import X86

@testable import Translator

/// The two machines.
@safe final class Bench {
  let arena: Arena
  let translation: Translation
  let cpu: TranslatedCPU
  /// The state both start from, and where each ends.
  let input: UnsafeMutablePointer<cnative_state>
  let native: UnsafeMutablePointer<cnative_state>
  let translated: UnsafeMutablePointer<cnative_state>
  /// Devices' accesses in the last translated run.
  var deviceAccesses: [VCPUExit] = []
  private var privilege = -1
  /// By row, the registers that the host's processor wrote in a case, and those among them that the row does not say.
  var writesSeen: [UInt16: UInt16] = [:], unsaidWrites: [UInt16: UInt16] = [:]
  /// Cases compared so far.
  var cases = 0
  private var runs = 0

  private nonisolated(unsafe) static let shared = Result { try Bench() }

  /// Runs a test with the machines, on a thread that can take signals.
  static func use(_ body: (Bench) throws -> Void) throws {
    // SAFETY: the suite is serialized.
    let bench = try unsafe shared.get()
    var failure: (any Error)?
    try PreparedThread.run {
      do { try body(bench) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  static let handlers = Arena.system + 0x2000
  static let stackTop = Arena.system + 0x8000
  static let ldt = Arena.system + 0x3800

  /// What the host's processor has: an instruction of another feature raises #UD on both sides, whatever else is wrong.
  private static let features: FeatureSet = {
    let host = HostCPU.cpuid
    let byEngine = CPUModel.providedByEngine.union(CPUModel.possibleAdditions)
    return Feature.allCases.filter { host.has($0) }.reduce(byEngine) { $0.union(FeatureSet($1)) }
  }()

  private init() throws {
    arena = try Arena()
    // The guest's processor is of the host's vendor: what the engine does by the vendor must agree.
    let vendor = HostVendor.here.name
    let cpuid = CPUIDTable([
      .init(0, subleaf: nil, eax: 13, ebx: vendor.ebx, ecx: vendor.ecx, edx: vendor.edx),
      .init(1, subleaf: nil, eax: 0x106CA, ebx: 0, ecx: 0xFFFF_FFFF & ~(1 << 3), edx: 0x178B_FBFF),
      .init(7, subleaf: 0, eax: 0, ebx: 0x29, ecx: 0, edx: 0),
      .init(0x8000_0000, subleaf: nil, eax: 0x8000_0001, ebx: 0, ecx: 0, edx: 0),
      .init(0x8000_0001, subleaf: nil, eax: 0, ebx: 0, ecx: 0x21, edx: 0x2C10_0800),
    ])
    var options = TranslationOptions(cpuid: [cpuid], supports: { Bench.features.contains($0) })
    options.softFaultLimit = 1
    // PAUSE in its longer form, which is never through.
    options.pausesToExit = .max
    translation = try Translation(memory: arena.memory, options: options)
    cpu = try translation.makeCPU(0)
    func state() -> UnsafeMutablePointer<cnative_state> {
      let raw = UnsafeMutableRawPointer.allocate(byteCount: MemoryLayout<cnative_state>.size, alignment: 64)
      unsafe raw.initializeMemory(as: UInt8.self, repeating: 0, count: MemoryLayout<cnative_state>.size)
      return unsafe raw.assumingMemoryBound(to: cnative_state.self)
    }
    unsafe input = state()
    unsafe native = state()
    unsafe translated = state()
    guard cnative_prepare() == 0 else { throw HostError("install", "signal handlers", reason: "sigaction failed") }
    try makeTables()
    var s = CPUState()
    s.cs = .flatCode64
    s.ds = .flatData
    s.es = .flatData
    s.ss = .flatData
    s.fs = .flatData
    s.gs = .flatData
    s.cr0 = 0x8001_0033
    s.cr3 = arena.root
    s.cr4 = 0x5_0620  // PAE OSFXSR OSXMMEXCPT FSGSBASE OSXSAVE
    s.efer = 0xD00
    s.xcr0 = 7
    s.gdtr = DescriptorTable(base: Arena.system + 0x1000, limit: 0x3F)
    s.idtr = DescriptorTable(base: Arena.system, limit: 0x1FF)
    s.ldtr = Segment(selector: 0x38, base: Bench.ldt, limit: 0x57, attributes: 0x82)
    s.tr = Segment(selector: 0x38, base: Arena.system + 0x3000, limit: 0x67, attributes: 0x8B)
    cpu.state = s
    for page in 0..<Arena.codePages {
      try arena.store([UInt8](repeating: 0xF4, count: 4096), at: Arena.codeBase + UInt64(page) << 12)
    }
  }

  private func makeTables() throws {
    func store(_ value: UInt64, _ linear: UInt64) throws {
      try arena.memory.store(value, at: GuestPhysical(arena.physical(linear)!))
    }
    for vector in UInt64(0)..<32 {
      let handler = Bench.handlers + vector * 16
      try store(
        handler & 0xFFFF | 0x10 << 16 | 1 << 32 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48,
        Arena.system + vector * 16)
      try store(handler >> 32, Arena.system + vector * 16 + 8)
      try store(0xF4F4_F4F4, handler)
    }
    // Null, -, code 0, data 0, 32-bit code 3, data 3, code 3: as Linux's.
    let descriptors: [UInt64] = [
      0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF,
      0x00AF_FB00_0000_FFFF, 0,
    ]
    for (index, value) in descriptors.enumerated() { try store(value, Arena.system + 0x1000 + UInt64(index) * 8) }
    // RSP0 and IST1.
    let top = Bench.stackTop
    let tss = Arena.system + 0x3000
    try store(top << 32, tss)
    try store(top >> 32, tss + 8)
    try store(top << 32, tss + 0x20)
    try store(top >> 32, tss + 0x28)
    try arena.memory.store(UInt32(truncatingIfNeeded: top), at: GuestPhysical(arena.physical(tss + 0x24)!))
    try arena.memory.store(UInt32(0), at: GuestPhysical(arena.physical(tss + 0x28)!))
    try arena.memory.store(UInt32(truncatingIfNeeded: top), at: GuestPhysical(arena.physical(tss + 4)!))
  }

  // MARK: Running

  /// Runs `input` natively into `native`.
  func runNative() {
    unsafe native.update(from: input, count: 1)
    unsafe cnative_run(native)
  }

  private var image: UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(cpu.page.pointer) + Int(CHOST_ENV) + Int(CHOST_FPU)
  }

  private func setPrivilege(_ new: Int) {
    guard new != privilege else { return }
    privilege = new
    let page = cpu.page
    let user = new == 3
    page[.cs] = chost_segment(
      base: 0, limit: 0xFFFF_FFFF, attributes: user ? 0xA0FB : 0xA09B, selector: user ? 0x33 : 0x10, pad: (0, 0, 0))
    page[.ss] = chost_segment(
      base: 0, limit: 0xFFFF_FFFF, attributes: user ? 0xC0F3 : 0xC093, selector: user ? 0x2B : 0x18, pad: (0, 0, 0))
  }

  /// CPL 0.
  func resetPrivilege() {
    setPrivilege(0)
    cpu.page.updateMode()
  }

  /// Runs `input` translated into `translated`. Returns what went wrong, if the engine gave up.
  func runTranslated(privilege: Int) -> String? {
    setPrivilege(privilege)
    return runTranslated()
  }

  /// CS and SS are not what `setPrivilege` left.
  func forgetPrivilege() { privilege = -1 }

  /// The same in the segments that the vCPU has.
  func runTranslated() -> String? {
    let page = cpu.page
    for number in 0..<16 { page[register: UInt8(number)] = unsafe Bench.register(input, number) }
    page.rflags = unsafe input.pointee.rflags | 2
    page[\.rip] = unsafe input.pointee.rip
    var fs = page[.fs]
    fs.base = unsafe input.pointee.fs_base
    page[.fs] = fs
    var gs = page[.gs]
    gs.base = unsafe input.pointee.gs_base
    page[.gs] = gs
    page[\.cr2] = 0
    unsafe image.copyMemory(from: Bench.xsave(input), byteCount: Int(CNATIVE_XSAVE_BYTES))
    page.updateMode()
    runs += 1
    // Now and then from cold tables.
    if runs % 8 == 0 { unsafe chost_flush_all(page.pointer) }
    // Discarding is slow when thousands of blocks have gone by.
    if runs % 512 == 0 {
      translation.lock.withLock { _ in
        translation.cache.flush()
        translation.cache.hotCode.isEverything.toggle()
      }
      unsafe chost_flush_all(page.pointer)
    }
    deviceAccesses.removeAll(keepingCapacity: true)
    loop: while true {
      let exit = cpu.run()
      switch exit {
      case .halt: break loop
      case .mmioRead(let address, let size):
        deviceAccesses.append(exit)
        var value: UInt64 = 0
        for index in UInt64(0)..<UInt64(size) {
          value |= UInt64(arena.deviceBytes[address + index] ?? 0xFF) << (8 * index)
        }
        cpu.completeRead(value)
      case .mmioWrite(let address, let size, let value):
        deviceAccesses.append(exit)
        for index in UInt64(0)..<UInt64(size) {
          arena.deviceBytes[address + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
        }
      // PAUSE, where Swift executes it.
      case .spinning: break
      default: return "the engine says \(exit)"
      }
      if deviceAccesses.count > 2000 { return "endless device accesses" }
    }
    return collect()
  }

  private func collect() -> String? {
    let page = cpu.page
    unsafe translated.pointee.fs_base = page[.fs].base
    unsafe translated.pointee.gs_base = page[.gs].base
    for number in 0..<16 { unsafe Bench.setRegister(translated, number, page[register: UInt8(number)]) }
    unsafe Bench.xsave(translated).copyMemory(from: image, byteCount: Int(CNATIVE_XSAVE_BYTES))
    let rip = page[\.rip]
    unsafe translated.pointee.cr2 = page[\.cr2]
    unsafe translated.pointee.error_code = 0
    guard rip >= Bench.handlers && rip < Bench.handlers + 512 else {
      // HLT at CPL 0, as if it had raised #GP.
      unsafe translated.pointee.vector = 13
      unsafe translated.pointee.rip = rip - 1
      unsafe translated.pointee.rflags = page.rflags
      unsafe translated.pointee.segments.2 = UInt32(page[.ss].selector)
      return nil
    }
    let vector = (rip - Bench.handlers) / 16
    unsafe translated.pointee.vector = vector
    let hasCode = [8, 10, 11, 12, 13, 14, 17, 21].contains(vector)
    let frame = Bench.stackTop - (hasCode ? 48 : 40)
    guard page[register: 4] == frame else { return "vector \(vector): the frame is at \(hex(page[register: 4]))" }
    func slot(_ index: UInt64) -> UInt64 {
      (try? arena.memory.load(UInt64.self, at: GuestPhysical(arena.physical(frame + index * 8)!))) ?? 0
    }
    let skip: UInt64 = hasCode ? 1 : 0
    if hasCode { unsafe translated.pointee.error_code = slot(0) }
    unsafe translated.pointee.rip = slot(skip)
    unsafe translated.pointee.rflags = slot(skip + 2)
    unsafe Bench.setRegister(translated, 4, slot(skip + 3))
    unsafe translated.pointee.segments.2 = UInt32(truncatingIfNeeded: slot(skip + 4))
    privilege = -1
    return nil
  }

  /// Blocks that the checker has judged.
  var blocksChecked: UInt64 { translation.cache.counters.checked }

  /// What the checker refused since the last call.
  func refusal() -> String? {
    defer { translation.cache.refusal = nil }
    return translation.cache.refusal.map { "checker: \($0)" }
  }

  /// Runs `body` while every block is translated in `form`, as if the checker refused the others.
  func using(_ form: BlockForm, _ body: () throws -> Void) rethrows {
    func forget(_ refused: Set<BlockForm>) {
      translation.lock.withLock { _ in
        translation.cache.flush()
        translation.cache.refusedForms = refused
      }
      unsafe chost_flush_all(cpu.page.pointer)
    }
    forget(form == .helper ? [.full, .simple] : [.full])
    defer { forget([]) }
    let before = translation.cache.counters
    try body()
    let after = translation.cache.counters
    // Nobody refuses what is meant to be accepted, and everything else is.
    let (checked, refused) = (after.checked - before.checked, after.refused - before.refused)
    #expect(refused == checked && checked > 0)
    #expect(after.refusedTwice - before.refusedTwice == (form == .helper ? checked : 0))
  }

  // MARK: State

  static func register(_ state: UnsafeMutablePointer<cnative_state>, _ number: Int) -> UInt64 {
    unsafe UnsafeRawPointer(state).load(fromByteOffset: (number & 15) * 8, as: UInt64.self)
  }

  static func setRegister(_ state: UnsafeMutablePointer<cnative_state>, _ number: Int, _ value: UInt64) {
    unsafe UnsafeMutableRawPointer(state).storeBytes(of: value, toByteOffset: (number & 15) * 8, as: UInt64.self)
  }

  static func xsave(_ state: UnsafeMutablePointer<cnative_state>) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(state) + 256
  }

  /// A general register of the input.
  subscript(number: Int) -> UInt64 {
    get { unsafe Bench.register(input, number) }
    set { unsafe Bench.setRegister(input, number, newValue) }
  }

  /// A byte or more of the input's XSAVE image.
  func setImage<T: BitwiseCopyable>(_ offset: Int, _ value: T) {
    unsafe Bench.xsave(input).storeBytes(of: value, toByteOffset: offset, as: T.self)
  }

  func imageWord(_ offset: Int) -> UInt64 { unsafe Bench.xsave(input).load(fromByteOffset: offset, as: UInt64.self) }
}
