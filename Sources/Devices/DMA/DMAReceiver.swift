// SPDX-License-Identifier: Apache-2.0
// Buffers that a driver of Linux 2.6.23 has bound to a key, for what comes from a device, and the interrupt that tells of
// it. The driver says by a word of the buffer that it is free again, and tells nobody.

public import Saving
import Synchronization

/// The buffers of a key.
public final class DMAReceiver: Sendable {
  private struct Binding {
    var buffers: UInt32 = 0
    var count: UInt32 = 1
    var interrupt: UInt8 = 1
  }

  /// Of a key, at most. Looking for one that is free reads a word of each.
  private static let mostBuffers: UInt32 = 256
  /// Interrupt 0 is the timer's.
  private static let interrupts: ClosedRange<UInt8> = 1...31

  private let binding = Mutex<Binding?>(nil)
  private let host: DMAHost

  public init(_ host: DMAHost) { self.host = host }

  /// Binds buffers in the place of those before; none is the end of it. False, and those before stay, if that cannot be.
  public func bind(_ buffers: UInt32, count: UInt32, interrupt: UInt8) -> Bool {
    let new = Binding(buffers: buffers, count: count, interrupt: interrupt)
    guard count == 0 || isPossible(new) else { return false }
    binding.withLock { $0 = count == 0 ? nil : new }
    return true
  }

  private func isPossible(_ binding: Binding) -> Bool {
    (1...DMAReceiver.mostBuffers).contains(binding.count) && DMAReceiver.interrupts.contains(binding.interrupt)
      && host.memory.contains(UInt64(binding.buffers), count: Int(binding.count) * DMABuffer.byteCount)
  }

  /// Forgets what was bound.
  public func reset() { binding.withLock { $0 = nil } }

  /// Whether there is a buffer for something.
  public var reception: FrameReception {
    binding.withLock { binding in
      if free(&binding) != nil { return .ready }
      return binding == nil ? .off : .full
    }
  }

  /// Puts bytes into the first free buffer, and raises the interrupt; false: they have no room in it, or there is none.
  public func put(_ bytes: [UInt8]) -> Bool {
    let interrupt = binding.withLock { binding -> UInt8? in
      guard let buffer = free(&binding), buffer.fill(bytes, in: host.memory) else { return nil }
      return binding?.interrupt
    }
    if let interrupt { host.raise(interrupt) }
    return interrupt != nil
  }

  /// The first free buffer, for a device that fills it later.
  func takeFree() -> DMABuffer? { binding.withLock { free(&$0) } }

  /// Raises the interrupt of who is bound.
  func raise() { if let interrupt = binding.withLock({ $0?.interrupt }) { host.raise(interrupt) } }

  /// The first buffer that nothing is in. A driver that shows one as free which is none has broken the rules, and is no
  /// longer bound: so it is not looked at again and again.
  private func free(_ binding: inout Binding?) -> DMABuffer? {
    guard let bound = binding else { return nil }
    for number in 0..<UInt64(bound.count) {
      let address = UInt64(bound.buffers) + number * UInt64(DMABuffer.byteCount)
      guard host.memory.loadWord(at: address) == 0 else { continue }
      guard let buffer = DMABuffer(at: address, in: host.memory), buffer.count > 0 else {
        binding = nil
        return nil
      }
      return buffer
    }
    return nil
  }
}

extension DMAReceiver: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try binding.withLock { binding throws(SavedStateError) in
      var isBound = binding != nil
      var new = binding ?? Binding()
      try archive.transfer(&isBound, "binding's presence")
      try archive.transfer(&new.buffers, "buffers")
      try archive.transfer(&new.count, "number of buffers")
      try archive.transfer(&new.interrupt, "interrupt", in: DMAReceiver.interrupts)
      try archive.require(!isBound || isPossible(new), "buffers", new.buffers)
      binding = isBound ? new : nil
    }
  }
}
