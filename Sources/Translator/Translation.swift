// SPDX-License-Identifier: Apache-2.0
// The translation engine of one virtual machine: its RAM, its code cache, its vCPUs, and the lock under which code is
// made and forgotten.

import CHost
public import Engine
import GuestMemory
import Host
import Synchronization
public import X86

/// What the engine of a virtual machine is made with.
public struct TranslationOptions: Sendable {
  /// The CPUID tables, one per vCPU.
  public var cpuid: [CPUIDTable]
  /// Whether the CPU model has a feature; instructions of features it lacks raise #UD.
  public var supports: @Sendable (Feature) -> Bool
  /// Guest TSC minus host TSC at the start.
  public var tscOffset: UInt64 = 0
  /// MAXPHYADDR of the CPU model, 36...46 bits.
  public var physicalAddressBits: Int = 46
  /// The hypercall instruction of the CPU's vendor, and what becomes of the other.
  public var nativeHypercall: HypercallOpcode? = .vmcall
  public var hypercallPolicy = HypercallPolicy.native
  /// Hypercalls of 64-bit code at level 0 that the engine answers by itself, by number (0..<16): those whose answer
  /// depends on nothing. The others are exits.
  public var constantHypercalls: [UInt64: Int32] = [:]
  /// One instruction a block: slow, for comparing against.
  public var singleInstruction = false
  /// The arithmetic flags that a fault pushes are exact even where nothing reads them.
  public var exactFlags = false
  /// System instructions and page faults are served by light helpers where possible; for comparing against.
  public var lightPaths = true
  /// Host bytes of code after which everything is forgotten; nil: what there is.
  public var codeBytes: Int?
  /// Every block counts its executions, for `Translation.blockCounts`. Costs a tenth of the speed or so.
  public var countsBlocks = false
  /// PAUSE instructions after which a vCPU leaves with `VCPUExit.spinning`; nil: it never does.
  public var pausesToExit: UInt32?
  /// Unexpected host faults in translated code (SoftFaults.swift) that end the run; 1: the first does.
  public var softFaultLimit = SoftFaults.limit
  /// Blocks run without having been judged by the checker: for measuring what it costs.
  public var isUnchecked = false
  /// Called with what the checker refuses, once.
  public var refused: (@Sendable (String) -> Void)?
  /// Called with a line per instruction, which runs alone: RIP, registers, flags. Very slow.
  public var trace: (@Sendable (String) -> Void)?

  public init(cpuid: [CPUIDTable], supports: @escaping @Sendable (Feature) -> Bool) {
    self.cpuid = cpuid
    self.supports = supports
  }
}

/// The engine of one virtual machine.
public final class Translation: MachineEngine {
  let memory: GuestMemory
  let cache: CodeCache
  let options: TranslationOptions
  /// Guards the cache. Held for short, and never while waiting for other vCPUs.
  let lock = Mutex<Void>(())
  /// Where the vCPUs stand still for one of them.
  let safePoint = SafePoint()
  private let executions = BlockHistogram()
  private let vcpus = Mutex<[Unowned]>([])

  private struct Unowned: @unchecked Sendable {
    weak var cpu: TranslatedCPU?
  }

  /// Prepares the engine; vCPUs are added with `makeCPU`.
  ///
  /// - Throws: `HostError` if the host refuses memory, executable mappings or signal handlers.
  public init(memory: GuestMemory, options: TranslationOptions) throws(HostError) {
    self.memory = memory
    self.options = options
    let translator = BlockTranslator(
      supports: options.supports, singleInstruction: options.singleInstruction, exactFlags: options.exactFlags,
      countsBlocks: options.countsBlocks, countsPauses: options.pausesToExit != nil,
      acceptedHypercalls: options.hypercallPolicy == .native
        ? HypercallOpcode.allCases : options.nativeHypercall.map { [$0] } ?? [])
    cache = try CodeCache(
      memory: memory, translator: translator, hotLimit: options.codeBytes ?? CodeCache.coldStart,
      isChecked: !options.isUnchecked)
    cache.refused = options.refused
    let error = chost_install_fault_handlers()
    guard error == 0 else {
      throw HostError("install", "fault handlers", reason: "sigaction failed (\(error))")
    }
    memory.setCodeWriteHandler { [weak self] address, count in self?.bytesChanged(address, count: count) }
  }

  /// Adds vCPU `number` (0..<cpuid.count).
  public func makeCPU(_ number: Int) throws(HostError) -> TranslatedCPU {
    guard options.cpuid.indices.contains(number), number < 64 else {
      throw HostError("add", "vCPU \(number)", reason: "the machine has \(options.cpuid.count)")
    }
    let cpu = try TranslatedCPU(translation: self, number: number, cpuid: options.cpuid[number])
    vcpus.withLock { $0.append(Unowned(cpu: cpu)) }
    return cpu
  }

  /// Guest-physical bytes have changed: code made from them is discarded. Any thread.
  func bytesChanged(_ physical: UInt64, count: Int) {
    lock.withLock { _ in cache.bytesChanged(physical, count: count) }
  }

  /// Runs `body` while no vCPU but the caller's executes guest code or uses its tables (SafePoint.swift).
  func alone<Result>(as caller: TranslatedCPU?, _ body: () -> Result) -> Result {
    options.cpuid.count == 1 && caller != nil ? body() : safePoint.alone(self, as: caller, body)
  }

  public static func withPreparedThread(_ body: () throws(HostError) -> Void) throws(HostError) {
    try PreparedThread.run(body)
  }

  // The vCPUs forget how they reached the pages.
  public func evictUsedPages(limit: Int = .max) -> Int {
    alone(as: nil) {
      let count = memory.evictUsedPages(limit: limit)
      if count > 0 { forEachCPU { unsafe chost_flush_all($0.page.pointer) } }
      return count
    }
  }

  /// Whether another vCPU may be storing to a page of code, in a chunk that held none when it looked. To be asked after
  /// a block was added.
  func isStored(beside physical: UInt64, by reader: TranslatedCPU) -> Bool {
    guard options.cpuid.count > 1, physical != Block.noPage else { return false }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    var found = false
    forEachCPU { if $0 !== reader && $0.page[\.store_beside] == physical & ~4095 | 1 { found = true } }
    return found
  }

  /// Forgets a block that may have been translated from bytes that were changing, once they no longer are.
  func retranslate(_ index: Int32, for reader: TranslatedCPU) {
    alone(as: reader) {
      lock.withLock { _ in if index < cache.blockCount, cache[index].isLive { cache.retranslate(index) } }
      forEachCPU { $0.page[\.store_beside] = 0 }
    }
  }

  // Host address, size and name, which is the guest-physical address of the block.
  public var perfMap: String {
    lock.withLock { _ in
      var text = ""
      cache.forEachLiveBlock { block in
        text += String(cache.codeStart &+ UInt64(block.hot), radix: 16) + " " + String(block.hotCount, radix: 16)
        text += " guest-" + String(block.page &+ UInt64(block.offset), radix: 16) + "\n"
      }
      return text
    }
  }

  public var blockCounts: [BlockCount] {
    lock.withLock { _ in collectHistogram() }
    return executions.rows
  }

  /// Adds what the vCPUs have counted since the last time. With the lock held.
  func collectHistogram() {
    if options.countsBlocks { forEachCPU { executions.collect($0.page, cache) } }
  }

  func forEachCPU(_ body: (TranslatedCPU) -> Void) {
    let all = vcpus.withLock { $0 }
    for entry in all { if let cpu = entry.cpu { body(cpu) } }
  }

  public var counters: EngineCounters {
    var result = EngineCounters()
    let c = lock.withLock { _ in cache.counters }
    result.blocks = c.blocks
    result.guestBytes = c.guestBytes
    result.hostBytes = c.hostBytes
    result.links = c.links
    result.discards = c.discards
    result.flushes = c.flushes
    result.ticks = c.ticks
    (result.softFaults, result.firstSoftFault) = lock.withLock { _ in
      (cache.softFaults.count, cache.softFaults.first)
    }
    result.checked = c.checked
    result.refused = c.refused
    result.refusedTwice = c.refusedTwice
    var exits = [UInt64](repeating: 0, count: TranslatedCPU.exitNames.count)
    forEachCPU { cpu in
      result.simpleInstructions &+= cpu.page[\.count_simple]
      result.tlbFills &+= cpu.page[\.count_tlb_fill]
      result.tlbFlushes &+= cpu.page[\.count_tlb_flush]
      result.lookups &+= cpu.page[\.count_lookup]
      result.lookupMisses &+= cpu.page[\.count_lookup_miss]
      for (number, count) in cpu.page.constantHypercalls { result.hypercalls[number, default: 0] &+= count }
      for index in exits.indices { exits[index] &+= cpu.exitCounts[index] }
    }
    result.exits = zip(TranslatedCPU.exitNames, exits).map { (name: $0, count: $1) }
    return result
  }
}
