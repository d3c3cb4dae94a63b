// SPDX-License-Identifier: Apache-2.0
// An engine that executes a script: exits one by one, and a record of what is asked of it in between. For tests of
// everything that stands on the engine contract.

import Engine
public import Host
import Saving
import Synchronization
import X86

/// A vCPU that runs nothing.
public final class ScriptedCPU: CPUEngine, @unchecked Sendable {
  /// What has been asked of it.
  public enum Event: Equatable, Sendable {
    case completedRead(UInt64)
    case completedWrite
    case raised(Exception)
    case skipped(Int)
    case injected(UInt8)
    case injectedNMI
    case wantsWindow(Bool)
    case stored(UInt64, [UInt8], LinearAccess)
    case refetched
    case flushed
    case flushedPage(UInt64)
    case forwarded(Trap)
    case a20(isOpen: Bool)
  }

  public var events: [Event] = []
  /// What `run` returns, the first first. Behind the last it fails.
  public var script: [VCPUExit] = []
  private let kickCount = Atomic<Int>(0)
  public var kicks: Int { kickCount.load(ordering: .acquiring) }

  public var registers = [UInt64](repeating: 0, count: 16)
  public var currentPrivilegeLevel: UInt8 = 0
  public var isIn64BitMode = true
  public var isLongModeActive = true
  public var isProtected = true
  public var isPaging = true
  public var canAcceptInterrupt = false
  public var isAtBoundary = true
  public var hasMetUserCode = false
  public var state = CPUState()
  public var timestampCounter: UInt64 = 0
  public var timestampOffset: UInt64 = 0
  public var taskPriority: UInt8 = 0
  public var hasWrittenTaskPriority = false
  public var isAPICEnabled = true
  public var everyLevelLeavesForPages = false
  public var addressSpace = AddressSpace.controlRegisters { didSet { addressSpaceCount += 1 } }
  /// How often it was set.
  public private(set) var addressSpaceCount = 0
  public var machinePage: MachinePagePlace?
  public var trapPolicy = TrapPolicy.guest
  public var isSingleStepping = false
  public var breakpoints: Set<UInt64> = []
  public var nativeHypercall: HypercallOpcode? = .vmcall
  public var constantHypercalls: [(number: UInt64, count: UInt64)] = []
  /// The code at RIP, which is at `linearInstructionPointer`.
  public var code: [UInt8] = []
  public let linearInstructionPointer: UInt64 = 0x1000
  public var isCodeWritable = true
  /// What a refused store raises.
  public static let storeFault = Exception.pageFault(0x1000, code: 3)

  public init(script: [VCPUExit] = []) { self.script = script }

  public func run() -> VCPUExit { script.isEmpty ? .failed("the script is over") : script.removeFirst() }
  public func kick() { kickCount.wrappingAdd(1, ordering: .releasing) }
  public func completeRead(_ value: UInt64) { events.append(.completedRead(value)) }
  public func completeWrite() { events.append(.completedWrite) }
  public func raise(_ exception: Exception) { events.append(.raised(exception)) }
  public func skip(byteCount: Int) { events.append(.skipped(byteCount)) }
  public func inject(interrupt vector: UInt8) { events.append(.injected(vector)) }
  public func injectNMI() { events.append(.injectedNMI) }
  public func requestInterruptWindow(_ wanted: Bool) { events.append(.wantsWindow(wanted)) }
  public func refetchCode() { events.append(.refetched) }
  public func flushTLB() { events.append(.flushed) }
  public func flushPage(linear address: UInt64) { events.append(.flushedPage(address)) }
  public func forward(_ trap: Trap) { events.append(.forwarded(trap)) }
  public var isTaskSwitched = false
  public func setA20(isOpen: Bool) { events.append(.a20(isOpen: isOpen)) }
  public func write(register index: UInt32, _ value: UInt64) -> Bool { false }
  public var signature: UInt32 { 0x106CA }

  public var generalRegisters: GeneralRegisters {
    var all = GeneralRegisters()
    for (number, value) in registers.enumerated() { all[UInt8(number)] = value }
    return all
  }

  public subscript(register number: UInt8) -> UInt64 {
    get { registers[Int(number & 15)] }
    set { registers[Int(number & 15)] = newValue }
  }

  public func takeTaskPriorityWrite() -> Bool {
    defer { hasWrittenTaskPriority = false }
    return hasWrittenTaskPriority
  }

  /// Data by address.
  public var data: [UInt64: [UInt8]] = [:]

  /// Code can be read as code, and data as data.
  public func read(linear address: UInt64, count: Int, as access: LinearAccess) -> [UInt8] {
    if access == .data { return Array((data[address] ?? []).prefix(count)) }
    return address == linearInstructionPointer && access == .code ? Array(code.prefix(count)) : []
  }

  public func storeFault(linear address: UInt64, count: Int, as access: LinearAccess) -> Exception? {
    let offset = Int(clamping: address &- linearInstructionPointer)
    // A debugger may do what the guest may not.
    return (isCodeWritable || access == .debugger) && offset <= code.count - count ? nil : ScriptedCPU.storeFault
  }

  public func write(linear address: UInt64, _ bytes: [UInt8], as access: LinearAccess) -> Exception? {
    if let fault = storeFault(linear: address, count: bytes.count, as: access) { return fault }
    events.append(.stored(address, bytes, access))
    let offset = Int(clamping: address &- linearInstructionPointer)
    code.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    return nil
  }

  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    for number in registers.indices { try archive.transfer(&registers[number], "register \(number)") }
  }
}

/// The rest of such an engine.
public final class ScriptedEngine: MachineEngine {
  public init() {}
  public static func withPreparedThread(_ body: () throws(HostError) -> Void) throws(HostError) { try body() }
  public func evictUsedPages(limit: Int) -> Int { 0 }
  public var counters: EngineCounters { EngineCounters() }
  public var perfMap: String { "" }
  public var blockCounts: [BlockCount] { [] }
}
