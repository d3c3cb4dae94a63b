// SPDX-License-Identifier: Apache-2.0
// Instructions that Swift executes and whose operands, stack or tables are a device's. Such an instruction runs until
// it needs a value that only the machine has; then everything it did is undone, the machine is asked, and it runs
// again with the answer. Its stores to devices are collected and leave one by one once it is complete.

import CHost
import Engine
import X86

/// What one instruction has read from devices and wants to store to them.
struct DeviceAccess {
  struct Piece: Equatable {
    var address: UInt64
    var size: UInt8
    var value: UInt64 = 0
  }

  private(set) var isActive = false
  private var answers: [UInt64] = []
  private var position = 0
  /// The read that has no answer yet; from then on the instruction's effects are void.
  private(set) var missing: Piece?
  private(set) var writes: [Piece] = []

  /// An instruction begins, or begins again.
  mutating func begin() {
    isActive = true
    position = 0
    missing = nil
    writes.removeAll(keepingCapacity: true)
  }

  /// The instruction is complete, or has faulted: its answers are used up.
  mutating func finish() {
    isActive = false
    missing = nil
    answers.removeAll(keepingCapacity: true)
  }

  /// The instruction was undone, to begin again.
  mutating func suspend() {
    isActive = false
    missing = nil
    writes.removeAll(keepingCapacity: true)
  }

  mutating func answer(_ value: UInt64) { answers.append(value) }

  mutating func dropWrites() { writes.removeAll(keepingCapacity: true) }

  var hasWrites: Bool { !writes.isEmpty }

  mutating func nextWrite() -> Piece? { writes.isEmpty ? nil : writes.removeFirst() }

  /// Loads `size` bytes, in naturally aligned pieces.
  mutating func load(_ address: UInt64, size: Int) -> UInt64 {
    guard isActive else { return .max }
    var value: UInt64 = 0
    var done = 0
    while done < size {
      let piece = DeviceAccess.piece(address &+ UInt64(done), size - done)
      guard missing == nil else { return .max }
      guard position < answers.count else {
        missing = piece
        return .max
      }
      let bits = UInt64(piece.size) &* 8
      let part = bits == 64 ? answers[position] : answers[position] & ((1 << bits) &- 1)
      value |= part << UInt64(done &* 8)
      position += 1
      done += Int(piece.size)
    }
    return value
  }

  mutating func store(_ value: UInt64, _ address: UInt64, size: Int) {
    guard isActive, missing == nil else { return }
    var done = 0
    while done < size {
      var piece = DeviceAccess.piece(address &+ UInt64(done), size - done)
      let bits = UInt64(piece.size) &* 8
      let part = value >> UInt64(done &* 8)
      piece.value = bits == 64 ? part : part & ((1 << bits) &- 1)
      writes.append(piece)
      done += Int(piece.size)
    }
  }

  /// The largest naturally aligned piece at an address.
  private static func piece(_ address: UInt64, _ left: Int) -> Piece {
    var size = left >= 8 ? 8 : (left >= 4 ? 4 : (left >= 2 ? 2 : 1))
    while address & UInt64(size - 1) != 0 { size >>= 1 }
    return Piece(address: address, size: UInt8(size))
  }
}

extension TranslatedCPU {
  /// Executes an instruction by Swift's rules, as often as devices have to be asked first: an exit of `mmioRead` means
  /// that nothing has happened yet.
  func executeWithDevices(_ body: () throws(Fault) -> SystemOutcome) throws(Fault) -> SystemOutcome {
    let state = processor.state
    let before = unsafe page.pointer.pointee
    let shadow = state.interruptShadow
    let debug = state.pendingDebug
    let nmiBlocked = state.nmiBlocked
    state.device.begin()
    let outcome: Result<SystemOutcome, Fault>
    do throws(Fault) { outcome = .success(try body()) } catch {
      outcome = .failure(error)
    }
    guard let missing = state.device.missing else {
      if case .failure = outcome { state.device.dropWrites() }
      state.device.finish()
      return try outcome.get()
    }
    state.device.suspend()
    unsafe page.pointer.pointee = before
    // A kick may have come in between; a look for one costs nothing.
    unsafe chost_set_attention(page.pointer)
    state.interruptShadow = shadow
    state.pendingDebug = debug
    state.nmiBlocked = nmiBlocked
    state.completion = .none
    isRestarting = true
    return .exit(.mmioRead(address: missing.address, size: missing.size))
  }

  /// Delivers an event, as often as devices have to be asked first: tables and stacks may lie in one.
  func deliver(_ event: Event) -> VCPUExit? {
    if processor.isMachines(event) { return .trap(Trap(event, at: page[\.rip])) }
    let outcome: SystemOutcome
    do throws(Fault) {
      outcome = try executeWithDevices { () throws(Fault) in
        switch processor.deliver(event) {
        case .delivered: .done
        case .shutdown: .shutdown
        case .trap(let trap): .exit(.trap(trap))
        }
      }
    } catch {
      preconditionFailure("deliveries do not throw")
    }
    if isRestarting { undelivered = event }
    switch outcome {
    case .done: return nil
    case .shutdown: return .shutdown
    case .exit(let exit): return exit
    }
  }

  /// The next store of a complete instruction to a device.
  func pendingDeviceWrite() -> VCPUExit? {
    guard let piece = processor.state.device.nextWrite() else { return nil }
    return .mmioWrite(address: piece.address, size: piece.size, value: piece.value)
  }

  /// Forgets an instruction that waits for a device: the state has been replaced.
  func dropDeviceAccess() {
    isRestarting = false
    undelivered = nil
    processor.state.device = DeviceAccess()
  }
}
