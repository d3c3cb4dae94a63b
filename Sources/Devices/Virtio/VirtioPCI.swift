// SPDX-License-Identifier: Apache-2.0
// A virtio device as a PCI function (Virtual I/O Device specification 1.0, 4.1): 152 bytes of configuration space whose
// capabilities say where in its one memory region the common configuration, the notifications, the interrupt status and
// the device's own configuration are, and a window in configuration space through which the region is reached as well.

public import Saving
import Synchronization

/// A PCI function with one memory region.
public final class VirtioPCI: Sendable {
  private static let version1: UInt64 = 1 << 32
  private static let queueSize: UInt16 = 256
  // Places in the region.
  private static let notify = 0x38, interruptPlace = 0x3A, device = 0x3C
  // Places in configuration space.
  private static let bar0 = 0x10, line = 0x3C
  private static let windowBar = 0x88, windowOffset = 0x8C, windowLength = 0x90, windowData = 0x94
  /// Bytes of configuration space.
  public static let configurationBytes = 152
  /// Those of them that a driver may write, but for the region's address: command, cache line, latency, line, window.
  private static let writable = [0x04, 0x05, 0x0C, 0x0D, line, windowBar] + Array(windowOffset..<windowData)

  private struct Queue {
    var size = VirtioPCI.queueSize
    var isEnabled = false
    /// Descriptors, available and used, each in two words.
    var places = [UInt32](repeating: 0, count: 6)
    func address(_ part: Int) -> UInt64 { UInt64(places[part * 2]) | UInt64(places[part * 2 + 1]) << 32 }
  }

  private struct State {
    var space: [UInt8]
    /// The base address register of the region, a word of `space`.
    var base: UInt32 {
      get { (0..<4).reduce(0) { $0 | UInt32(space[VirtioPCI.bar0 + $1]) << UInt32($1 * 8) } }
      set {
        for index in 0..<4 { space[VirtioPCI.bar0 + index] = UInt8(truncatingIfNeeded: newValue >> UInt32(index * 8)) }
      }
    }
    var deviceSelect: UInt32 = 0, driverSelect: UInt32 = 0
    var driverFeatures: [UInt32] = [0, 0]
    var status: UInt8 = 0
    var queueSelect: UInt16 = 0
    var queues: [Queue]
    /// Why the line was raised, until somebody reads it (4.1.4.5).
    var interrupts: UInt8 = 0
  }

  /// Bits of the interrupt status.
  private enum Interrupt { static let queue: UInt8 = 1, configuration: UInt8 = 2 }
  /// DEVICE_NEEDS_RESET (2.1).
  private static let needsReset: UInt8 = 0x40

  /// Class and subclass of a device type, as PCI has them.
  private static func classCode(_ type: UInt8) -> (UInt8, UInt8) {
    switch type {
    case 1: (0x02, 0x00)
    case 2: (0x01, 0x80)
    case 3: (0x07, 0x00)
    default: (0xFF, 0x00)
    }
  }

  private let deviceOnIt: any VirtioDevice
  private let memory: any DeviceMemory
  private let raise: @Sendable () -> Void
  private let first: State
  private let state: Mutex<State>
  /// Where its memory region is, and its size, a power of two.
  public let region: UInt64
  public let regionBytes: UInt64

  /// - Parameters:
  ///   - line: The interrupt line that configuration space names.
  ///   - region: Where the memory region is, a multiple of its size, below 4 GiB.
  ///   - raise: Raises the line. Any thread.
  public init(
    _ device: any VirtioDevice, _ memory: any DeviceMemory, line: UInt8, region: UInt64,
    raise: @escaping @Sendable () -> Void
  ) {
    (deviceOnIt, self.memory, self.raise, self.region) = (device, memory, raise, region)
    let bytes = VirtioPCI.device + device.configuration.count
    regionBytes = UInt64(bytes).nextPowerOfTwo
    var space = [UInt8](repeating: 0, count: VirtioPCI.configurationBytes)
    func put(_ offset: Int, _ bytes: [UInt8]) { space.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
    put(0x00, [0xF4, 0x1A, 0x40 + device.deviceType, 0x10])
    space[0x06] = 0x10  // there is a list of capabilities
    space[0x08] = 1
    let (mainClass, subclass) = VirtioPCI.classCode(device.deviceType)
    put(0x0A, [subclass, mainClass])
    put(0x2C, [0xF4, 0x1A, 0x40, 0x00])
    space[0x34] = 0x40
    put(VirtioPCI.line, [line, 1])
    let own = device.configuration.count
    // Kind of region, place and length of each; the last but one is the window's.
    put(0x40, VirtioPCI.capability(next: 0x50, length: 16, kind: 1, offset: 0, bytes: VirtioPCI.notify))
    put(0x50, VirtioPCI.capability(next: 0x64, length: 20, kind: 2, offset: VirtioPCI.notify, bytes: 2))
    put(0x64, VirtioPCI.capability(next: 0x84, length: 16, kind: 3, offset: VirtioPCI.interruptPlace, bytes: 1))
    put(0x74, VirtioPCI.capability(next: 0, length: 16, kind: 4, offset: VirtioPCI.device, bytes: own))
    put(0x84, VirtioPCI.capability(next: own > 0 ? 0x74 : 0, length: 20, kind: 5, offset: 0, bytes: 0))
    var first = State(space: space, queues: Array(repeating: Queue(), count: device.queues.count))
    first.base = UInt32(truncatingIfNeeded: region)
    self.first = first
    state = Mutex(first)
  }

  /// As after power-on.
  public func reset() {
    for queue in deviceOnIt.queues { queue.set(nil) }
    state.withLock { $0 = first }
  }

  private static func capability(next: UInt8, length: UInt8, kind: UInt8, offset: Int, bytes: Int) -> [UInt8] {
    [0x09, next, length, kind, 0, 0, 0, 0]
      + [offset, bytes].flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
  }

  // MARK: Configuration space

  /// Reads 1, 2 or 4 bytes; what lies beyond is all ones.
  public func readSpace(_ offset: Int, size: Int) -> UInt32 {
    guard offset >= 0, offset + size <= VirtioPCI.configurationBytes else { return .max }
    if offset == VirtioPCI.windowData, let (place, size) = window { return readRegion(place, size: size) }
    return state.withLock { state in
      (0..<size).reduce(0) { $0 | UInt32(state.space[offset + $1]) << UInt32($1 * 8) }
    }
  }

  /// Writes 1, 2 or 4 bytes; what may not be written stays as it is.
  public func writeSpace(_ offset: Int, size: Int, value: UInt32) {
    guard offset >= 0, offset + size <= VirtioPCI.configurationBytes else { return }
    if offset == VirtioPCI.windowData {
      if let (place, size) = window { writeRegion(place, size: size, value: value) }
      return
    }
    state.withLock { state in
      // Bits below the size are 0, so that a driver finds it by writing ones; the region does not move for it.
      if offset == VirtioPCI.bar0, size == 4 { state.base = value == .max ? sizeWord : addressWord }
      for index in 0..<size where VirtioPCI.writable.contains(offset + index) {
        state.space[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(index * 8))
      }
    }
  }

  /// What the region's base address register shows: its place, or once a driver has asked, its size.
  private var addressWord: UInt32 { UInt32(truncatingIfNeeded: region) }
  private var sizeWord: UInt32 { UInt32(truncatingIfNeeded: 0 &- regionBytes) }

  /// What the window shows; nil if that is nothing.
  private var window: (place: Int, size: Int)? {
    state.withLock { state in
      func word(_ offset: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(state.space[offset + $1]) << UInt32($1 * 8) }
      }
      let (place, size) = (word(VirtioPCI.windowOffset), word(VirtioPCI.windowLength))
      guard state.space[VirtioPCI.windowBar] == 0, [1, 2, 4].contains(size), place % size == 0,
        UInt64(place) + UInt64(size) <= regionBytes
      else { return nil }
      return (Int(place), Int(size))
    }
  }

  // MARK: The memory region

  /// Reads 1, 2 or 4 bytes of the region.
  public func readRegion(_ offset: Int, size: Int) -> UInt32 {
    let own = deviceOnIt.configuration
    if offset >= VirtioPCI.device {
      let start = offset - VirtioPCI.device
      guard start + size <= own.count else { return 0 }
      return (0..<size).reduce(0) { $0 | UInt32(own[start + $1]) << UInt32($1 * 8) }
    }
    let features = deviceOnIt.features | VirtioPCI.version1
    return state.withLock { state in
      let number = Int(state.queueSelect)
      let queue = state.queues.indices.contains(number) ? state.queues[number] : nil
      switch offset {
      case VirtioPCI.interruptPlace:
        defer { state.interrupts = 0 }
        return UInt32(state.interrupts)
      case 0: return state.deviceSelect
      case 4:
        return state.deviceSelect < 2 ? UInt32(truncatingIfNeeded: features >> UInt64(state.deviceSelect * 32)) : 0
      case 8: return state.driverSelect
      case 12: return state.driverSelect < 2 ? state.driverFeatures[Int(state.driverSelect)] : 0
      case 16, 26: return 0xFFFF  // no message-signalled interrupts
      case 18: return UInt32(state.queues.count)
      case 20: return UInt32(state.status)
      case 22: return UInt32(state.queueSelect)
      case 24: return UInt32(queue?.size ?? 0)
      case 28: return queue?.isEnabled == true ? 1 : 0
      case 32, 36, 40, 44, 48, 52: return queue?.places[(offset - 32) / 4] ?? 0
      default: return 0
      }
    }
  }

  /// Writes 1, 2 or 4 bytes of the region.
  public func writeRegion(_ offset: Int, size: Int, value: UInt32) {
    if offset >= VirtioPCI.device {
      let start = offset - VirtioPCI.device
      if start + size <= deviceOnIt.configuration.count {
        deviceOnIt.writeConfiguration(offset: start, size: size, value: value)
      }
      return
    }
    if offset == VirtioPCI.notify {
      let number = Int(value & 0xFFFF)
      if number < deviceOnIt.queues.count { deviceOnIt.kick(number) }
      return
    }
    let (isReset, started) = state.withLock { state -> (Bool, (Int, Queue)?) in
      let number = Int(state.queueSelect)
      let exists = state.queues.indices.contains(number)
      switch offset {
      case 0: state.deviceSelect = value
      case 8: state.driverSelect = value
      case 12: if state.driverSelect < 2 { state.driverFeatures[Int(state.driverSelect)] = value }
      case 20:
        let status = UInt8(truncatingIfNeeded: value)
        state.status = status == 0 ? 0 : status | state.status & VirtioPCI.needsReset
        guard status == 0 else { break }
        (state.driverFeatures, state.queueSelect, state.interrupts) = ([0, 0], 0, 0)
        for index in state.queues.indices { state.queues[index] = Queue() }
        return (true, nil)
      case 22: state.queueSelect = UInt16(truncatingIfNeeded: value)
      case 24:
        let size = UInt16(truncatingIfNeeded: value)
        if exists, VirtioPCI.isQueueSize(size) { state.queues[number].size = size }
      case 28:
        guard exists, value & 1 == 1, !state.queues[number].isEnabled else { break }
        state.queues[number].isEnabled = true
        return (false, (number, state.queues[number]))
      case 32, 36, 40, 44, 48, 52:
        if exists, !state.queues[number].isEnabled { state.queues[number].places[(offset - 32) / 4] = value }
      default: break
      }
      return (false, nil)
    }
    if isReset { for queue in deviceOnIt.queues { queue.set(nil) } }
    if let (number, queue) = started { deviceOnIt.queues[number].set(virtQueue(queue)) }
  }

  /// The device's end of a queue that the driver has enabled.
  private func virtQueue(_ queue: Queue) -> VirtQueue {
    VirtQueue(
      memory, size: queue.size, descriptors: queue.address(0), available: queue.address(1), used: queue.address(2),
      mostBytes: deviceOnIt.mostBytes, notify: { [weak self] in self?.tell($0) })
  }

  /// Notes what has happened, and raises the line.
  private func tell(_ event: VirtQueue.Event) {
    state.withLock { state in
      switch event {
      case .used: state.interrupts |= Interrupt.queue
      case .broken:
        // A driver that has not begun has nothing to reset.
        if state.status != 0 { state.status |= VirtioPCI.needsReset }
        state.interrupts |= Interrupt.configuration
      }
    }
    raise()
  }
}

extension VirtioPCI: SavedState {
  private static func isQueueSize(_ size: UInt16) -> Bool { size > 0 && size <= queueSize && size & (size - 1) == 0 }

  /// The function's registers, and its device's queues. While nobody serves them.
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var new = state.withLock { $0 }
    var own = VirtioPCI.writable.map { new.space[$0] }
    try archive.transfer(bytes: &own, "configuration space")
    for (place, byte) in zip(VirtioPCI.writable, own) { new.space[place] = byte }
    var base = new.base
    try archive.transfer(&base, "base address")
    try archive.require(base == addressWord || base == sizeWord, "base address", base)
    new.base = base
    try archive.transfer(&new.deviceSelect, "device feature select")
    try archive.transfer(&new.driverSelect, "driver feature select")
    try archive.transfer(&new.driverFeatures[0], "driver features")
    try archive.transfer(&new.driverFeatures[1], "upper driver features")
    try archive.transfer(&new.status, "device status")
    try archive.transfer(&new.queueSelect, "queue select")
    try archive.transfer(&new.interrupts, "interrupt status", bits: Interrupt.queue | Interrupt.configuration)
    for number in new.queues.indices {
      try archive.part("queue \(number)") { archive throws(SavedStateError) in
        var queue = new.queues[number]
        try archive.transfer(&queue.size, "size")
        try archive.require(VirtioPCI.isQueueSize(queue.size), "size", queue.size)
        try archive.transfer(&queue.isEnabled, "enable")
        for index in queue.places.indices { try archive.transfer(&queue.places[index], "address, word \(index)") }
        new.queues[number] = queue
        try deviceOnIt.queues[number].transfer(&archive) { queue.isEnabled ? virtQueue(queue) : nil }
      }
    }
    if archive.isRestoring { state.withLock { [new] in $0 = new } }
  }
}

extension UInt64 {
  /// The least power of two that is not less.
  fileprivate var nextPowerOfTwo: UInt64 { self <= 1 ? 1 : 1 << UInt64(64 - (self - 1).leadingZeroBitCount) }
}
