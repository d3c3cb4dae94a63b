// SPDX-License-Identifier: Apache-2.0
// Asynchronous page faults: when a page of guest RAM is still on its way from a slow store, the guest is told to put
// a task to sleep (by vector 14 with a token in CR2, which reports no fault), runs another, and is told by an
// interrupt, with the same token, when the page has come (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_ASYNC_PF_EN,
// _INT and _ACK; Vitaly Kuznetsov, "KVM: x86: interrupt based APF 'page ready' event delivery", kvm, 2020).

public import Saving
import X86

/// What one vCPU and its guest tell each other about pages on their way: `struct kvm_vcpu_pv_apf_data`, 64 bytes.
///
/// Used by the thread that runs the vCPU, while it is stopped.
public struct KVMAsyncPageFault<Memory: GuestPhysicalWriter>: Sendable {
  /// Offsets of the fields, in bytes.
  private enum Field {
    static var flags: UInt64 { 0 }
    static var token: UInt64 { 4 }
  }
  private enum Enable {
    static var on: UInt64 { 1 }
    static var sendAlways: UInt64 { 1 << 1 }
    static var asExit: UInt64 { 1 << 2 }
    static var byInterrupt: UInt64 { 1 << 3 }
    static var reserved: UInt64 { 3 << 4 }
    static var all: UInt64 { 0x3F }
  }
  /// The most pages a vCPU waits for at once; KVM's ASYNC_PF_PER_VCPU.
  public static var capacity: Int { 64 }
  /// The token that wakes every task that waits for a page.
  public static var everyToken: UInt32 { .max }
  private static var largestVector: UInt64 { 0xFF }
  /// Tokens have 20 bits of counter above 12 of the vCPU's number.
  private static var counterLimit: UInt32 { 0xF_FFFF }

  /// The last value written to the enable register.
  public private(set) var register: UInt64 = 0
  /// The vector of "page ready", as written.
  public private(set) var interrupt: UInt64 = 0
  private let features: KVMFeatures
  private let memory: Memory
  private let cpu: UInt32
  private var counter: UInt32 = 0
  /// Tokens told, whose pages have not come.
  private var waiting: [UInt32] = []
  /// Tokens whose pages have come, first come first.
  private var ready: [UInt32] = []
  /// The guest may have taken the last token since anybody looked.
  private var mayDeliver = false

  /// - Parameter cpu: The vCPU's number, part of its tokens.
  public init(features: KVMFeatures, memory: Memory, cpu: UInt32) {
    self.features = features
    self.memory = memory
    self.cpu = cpu & 0xFFF
    waiting.reserveCapacity(KVMAsyncPageFault.capacity)
    ready.reserveCapacity(KVMAsyncPageFault.capacity + 1)
  }

  /// Whether the guest takes part: it enabled the mechanism, and "ready" by interrupt, the only way there is.
  public var isActive: Bool { register & (Enable.on | Enable.byInterrupt) == Enable.on | Enable.byInterrupt }

  /// Whether code of level 0 takes part too.
  public var isForEveryLevel: Bool { isActive && register & Enable.sendAlways != 0 }

  private var address: UInt64 { register & ~Enable.all }

  // MARK: Registers

  private func accepts(enable value: UInt64) -> Bool {
    value & Enable.reserved == 0
      && (value & Enable.asExit == 0 || features.contains(.asyncPageFaultExit))
      && (value & Enable.byInterrupt == 0 || features.contains(.asyncPageFaultInterrupt))
  }

  /// WRMSR of the enable register at CPL 0; false is #GP(0). Each enabling write wakes every waiting task once.
  public mutating func write(enable value: UInt64) -> Bool {
    guard accepts(enable: value) else { return false }
    // Stored before the address is looked at, as in KVM.
    register = value
    guard isActive else {
      forget()
      return true
    }
    guard memory.contains(address, byteCount: 64) else { return false }
    put(KVMAsyncPageFault.everyToken)
    return true
  }

  /// WRMSR of the interrupt register; false is #GP(0).
  public mutating func write(interrupt value: UInt64) -> Bool {
    guard value <= KVMAsyncPageFault.largestVector else { return false }
    interrupt = value
    return true
  }

  /// WRMSR of the acknowledge register: the guest has taken a token, if bit 0 is set.
  public mutating func acknowledge(_ value: UInt64) {
    if value & 1 != 0 { mayDeliver = true }
  }

  // MARK: Pages

  /// Whether "not present" may be told now; where not, the vCPU waits for the page itself.
  ///
  /// - Parameters:
  ///   - privilegeLevel: Of the code that touched the page.
  ///   - canInterrupt: Whether an interrupt could be delivered: IF is set, no shadow, nothing pending.
  public func canBegin(privilegeLevel: UInt8, canInterrupt: Bool) -> Bool {
    isActive && canInterrupt && waiting.count + ready.count < KVMAsyncPageFault.capacity
      && (privilegeLevel != 0 || register & Enable.sendAlways != 0)
  }

  /// "Not present": returns the token, which is to be CR2 of a #PF with error code 0; nil if the structure is gone.
  public mutating func begin() -> UInt32? {
    guard memory.store(UInt32(1), at: address + Field.flags) else { return nil }
    // Never 0, which means "no token", nor that of every task.
    let limit = KVMAsyncPageFault.counterLimit
    repeat { counter = (counter &+ 1) & limit } while counter == 0 || counter == limit
    let token = counter << 12 | cpu
    waiting.append(token)
    return token
  }

  /// The page of a token has come. Tokens forgotten in the meantime are ignored.
  public mutating func complete(_ token: UInt32) {
    guard let index = waiting.firstIndex(of: token) else { return }
    waiting.remove(at: index)
    put(token)
  }

  private mutating func put(_ token: UInt32) {
    if token == KVMAsyncPageFault.everyToken, ready.contains(token) { return }
    ready.append(token)
    mayDeliver = true
  }

  /// Whether `takeReady` is worth a call.
  public var hasReady: Bool { mayDeliver && !ready.isEmpty }

  /// "Ready": hands the guest the next token, if it has taken the one before.
  ///
  /// - Returns: The vector to send to this vCPU; nil if there is nothing to say, or nothing that may be said: vectors
  ///   below 16 are no interrupts, and their events are dropped.
  public mutating func takeReady() -> UInt8? {
    guard isActive, hasReady else { return nil }
    guard memory.loadWord(at: address + Field.token) == 0 else {
      // The guest says when to look again.
      mayDeliver = false
      return nil
    }
    let token = ready.removeFirst()
    guard interrupt >= 16 else { return nil }
    memory.store(token, at: address + Field.token)
    return UInt8(truncatingIfNeeded: interrupt)
  }

  /// How many pages the guest waits for or has not been told of.
  public var outstanding: Int { waiting.count + ready.count }

  private mutating func forget() {
    waiting.removeAll(keepingCapacity: true)
    ready.removeAll(keepingCapacity: true)
    mayDeliver = false
  }

  /// RESET or INIT: nothing is stored any more, and what was on its way is forgotten.
  public mutating func reset() {
    register = 0
    interrupt = 0
    forget()
  }
}

extension KVMAsyncPageFault: SavedState {
  /// A restored machine has all its pages: what a task waits for has come.
  public mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try archive.transfer(&register, "register")
    try archive.require(accepts(enable: register), "register", register)
    try archive.transfer(&interrupt, "vector", in: 0...KVMAsyncPageFault.largestVector)
    try archive.transfer(&counter, "counter", in: 0...KVMAsyncPageFault.counterLimit)
    try archive.transfer(&waiting, "waiting tokens", limit: isActive ? KVMAsyncPageFault.capacity : 0)
    try archive.require(waiting.allSatisfy(isToken), "waiting tokens")
    try archive.transfer(
      &ready, "ready tokens", limit: isActive ? KVMAsyncPageFault.capacity + 1 - waiting.count : 0)
    try archive.require(
      ready.allSatisfy { isToken($0) || $0 == KVMAsyncPageFault.everyToken }
        && ready.count { $0 == KVMAsyncPageFault.everyToken } <= 1, "ready tokens")
    try archive.transfer(&mayDeliver, "news")
    if archive.isRestoring { for token in waiting { complete(token) } }
  }

  /// Whether `begin` could have made a token.
  private func isToken(_ token: UInt32) -> Bool {
    token & 0xFFF == cpu && token >> 12 != 0 && token >> 12 != KVMAsyncPageFault.counterLimit
  }
}
