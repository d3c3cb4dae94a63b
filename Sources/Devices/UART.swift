// SPDX-License-Identifier: Apache-2.0
// The serial port: the guest's console, and therefore the device everybody looks at first.

public import Saving
import Synchronization

/// A 16550A (National PC16550D). Its transmitter is infinitely fast; its receiver never overruns, because the host
/// offers no more than there is room for.
///
/// Registers are accessed by vCPU threads, `receive` is called by the thread that reads the host's input. Output is handed
/// over byte by byte, on the thread of the vCPU that wrote it: whoever reads it batches, and may make the guest wait.
public final class UART: Device {
  private enum ReadRegister: UInt64 {
    case receiveBuffer = 0, interruptEnable, interruptIdentification, lineControl, modemControl, lineStatus
    case modemStatus, scratch
  }
  private enum WriteRegister: UInt64 {
    case transmitHolding = 0, interruptEnable, fifoControl, lineControl, modemControl, lineStatus, modemStatus, scratch
  }
  private enum InterruptEnable {
    static let received: UInt8 = 1 << 0, transmitterEmpty: UInt8 = 1 << 1, lineStatus: UInt8 = 1 << 2
    static let modemStatus: UInt8 = 1 << 3
    static let all = received | transmitterEmpty | lineStatus | modemStatus
  }
  /// IIR values in order of priority.
  private enum Identification: UInt8 {
    case lineStatus = 0x06, received = 0x04, receiveTimeout = 0x0C, transmitterEmpty = 0x02, modemStatus = 0x00
    case none = 0x01
  }
  private enum LineStatus {
    static let dataReady: UInt8 = 1 << 0, overrun: UInt8 = 1 << 1, transmitterIdle: UInt8 = 0x60
  }
  private static let loopback: UInt8 = 1 << 4
  /// OUT2, which on a PC connects the chip's interrupt to the bus.
  private static let interruptGate: UInt8 = 1 << 3
  /// A driver that only sends looks at the line status once or twice a byte; one that looks so often waits for input.
  private static let listeningPolls: UInt8 = 16
  private static let divisorLatch: UInt8 = 1 << 7
  private static let fifoControlBits: UInt8 = 0xC9, modemControlBits: UInt8 = 0x1F
  private static let fifoSize = 16
  /// CTS, DSR and DCD: somebody is always listening.
  private static let connected: UInt8 = 0xB0
  /// Bytes of host input that may wait for the guest.
  public static let receiveLimit = 1024

  private struct State {
    var received: [UInt8] = []
    var interruptEnable: UInt8 = 0
    var fifoControl: UInt8 = 0
    var lineControl: UInt8 = 0
    var modemControl: UInt8 = 0
    var modemDeltas: UInt8 = 0
    var scratch: UInt8 = 0
    var divisor: UInt16 = 1
    var overran = false
    var transmitterInterrupt = false
    var isAsserting = false
    /// How many of the received bytes the guest has been told of, and so may discard unread.
    var shown = 0
    /// Reads of the line status since the last byte was sent, at most `listeningPolls`.
    var polls: UInt8 = 0

    var isListening: Bool {
      guard modemControl & UART.loopback == 0 else { return false }
      return polls >= UART.listeningPolls
        || (interruptEnable & InterruptEnable.received != 0 && modemControl & UART.interruptGate != 0)
    }

    /// The guest looks at what has arrived: at most 16 bytes are in the FIFO, the rest is still on the wire.
    mutating func show() { shown = min(received.count, UART.fifoSize) }

    var hasFIFO: Bool { fifoControl & 1 != 0 }
    /// 1, 4, 8 or 14 bytes.
    var trigger: Int { hasFIFO ? [1, 4, 8, 14][Int(fifoControl >> 6)] : 1 }

    var modemLevels: UInt8 {
      guard modemControl & UART.loopback != 0 else { return UART.connected }
      // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
      return (modemControl & 1) << 5 | (modemControl & 2) << 3 | (modemControl & 4) << 4 | (modemControl & 8) << 4
    }

    var interrupt: Identification {
      if interruptEnable & InterruptEnable.lineStatus != 0, overran { return .lineStatus }
      if interruptEnable & InterruptEnable.received != 0, !received.isEmpty {
        // Nothing more is on its way, so the four-character timeout has always passed already.
        return received.count >= trigger ? .received : .receiveTimeout
      }
      if interruptEnable & InterruptEnable.transmitterEmpty != 0, transmitterInterrupt { return .transmitterEmpty }
      if interruptEnable & InterruptEnable.modemStatus != 0, modemDeltas != 0 { return .modemStatus }
      return .none
    }

    var lineStatus: UInt8 {
      (received.isEmpty ? 0 : LineStatus.dataReady) | (overran ? LineStatus.overrun : 0) | LineStatus.transmitterIdle
    }
  }

  private let state = Mutex(State())
  /// Keeps the bytes of several vCPUs in one order.
  private let wire = Mutex<Void>(())
  private let line: InterruptLine
  private let send: @Sendable (UInt8) -> Void
  private let hasRoom: @Sendable () -> Void

  /// - Parameters:
  ///   - line: IRQ 4 for COM1; a level.
  ///   - send: Takes a byte of output; never called twice at a time. If it blocks, so does the guest.
  ///   - hasRoom: Called when the guest has made room after `receiveCapacity` was 0, or begins to listen.
  public init(
    line: InterruptLine, send: @escaping @Sendable (UInt8) -> Void, hasRoom: @escaping @Sendable () -> Void = {}
  ) {
    self.line = line
    self.send = send
    self.hasRoom = hasRoom
  }

  // MARK: The host's side

  /// How many bytes `receive` would take now. At 0, stop reading the host's input until `hasRoom` is called.
  public var receiveCapacity: Int { state.withLock { Self.receiveLimit - $0.received.count } }

  /// Whether the guest waits for input, by interrupt or by polling. What arrives before is lost when its driver
  /// initialises the port, so a patient host holds it back until `hasRoom` is called.
  public var isListening: Bool { state.withLock { $0.isListening } }

  /// Gives the guest input, and returns how many bytes there was room for.
  @discardableResult
  public func receive(_ bytes: some Collection<UInt8>) -> Int {
    state.withLock { state in
      let taken = bytes.prefix(max(0, Self.receiveLimit - state.received.count))
      state.received.append(contentsOf: taken)
      drive(&state)
      return taken.count
    }
  }

  private func transmit(_ byte: UInt8) { wire.withLock { _ in send(byte) } }

  private func drive(_ state: inout State) {
    let isAsserting = state.interrupt != .none
    guard isAsserting != state.isAsserting else { return }
    state.isAsserting = isAsserting
    line.set(isAsserting)
  }

  // MARK: The guest's side

  public func read(offset: UInt64, size: UInt8) -> UInt64 {
    guard let register = ReadRegister(rawValue: offset) else { return .max }
    let (byte, madeRoom) = state.withLock { state in
      let wasFull = state.received.count >= Self.receiveLimit
      let wasListening = state.isListening
      let byte = read(register, &state)
      drive(&state)
      let hasRoomAgain = wasFull && state.received.count < Self.receiveLimit
      return (byte, hasRoomAgain || (!wasListening && state.isListening))
    }
    if madeRoom { hasRoom() }
    return UInt64(byte)
  }

  private func read(_ register: ReadRegister, _ state: inout State) -> UInt8 {
    let isDivisor = state.lineControl & Self.divisorLatch != 0
    switch register {
    case .receiveBuffer:
      if isDivisor { return UInt8(truncatingIfNeeded: state.divisor) }
      if state.shown > 0 { state.shown -= 1 }
      return state.received.isEmpty ? 0 : state.received.removeFirst()
    case .interruptEnable:
      return isDivisor ? UInt8(truncatingIfNeeded: state.divisor >> 8) : state.interruptEnable
    case .interruptIdentification:
      let interrupt = state.interrupt
      if interrupt == .received || interrupt == .receiveTimeout { state.show() }
      // Reading it is what answers the transmitter's interrupt.
      if interrupt == .transmitterEmpty { state.transmitterInterrupt = false }
      return interrupt.rawValue | (state.hasFIFO ? 0xC0 : 0)
    case .lineControl: return state.lineControl
    case .modemControl: return state.modemControl
    case .lineStatus:
      defer { state.overran = false }
      state.show()
      if state.polls < Self.listeningPolls { state.polls += 1 }
      return state.lineStatus
    case .modemStatus:
      defer { state.modemDeltas = 0 }
      return state.modemLevels | state.modemDeltas
    case .scratch: return state.scratch
    }
  }

  public func write(offset: UInt64, size: UInt8, value: UInt64) {
    guard let register = WriteRegister(rawValue: offset) else { return }
    let byte = UInt8(truncatingIfNeeded: value)
    let (sent, beganToListen) = state.withLock { state in
      let wasListening = state.isListening
      let sent = write(register, byte, &state)
      drive(&state)
      return (sent, !wasListening && state.isListening)
    }
    if sent { transmit(byte) }
    if beganToListen { hasRoom() }
  }

  /// Returns whether the byte goes out on the wire.
  private func write(_ register: WriteRegister, _ byte: UInt8, _ state: inout State) -> Bool {
    let isDivisor = state.lineControl & Self.divisorLatch != 0
    switch register {
    case .transmitHolding where isDivisor: state.divisor = state.divisor & 0xFF00 | UInt16(byte)
    case .interruptEnable where isDivisor: state.divisor = state.divisor & 0x00FF | UInt16(byte) << 8
    case .transmitHolding:
      state.transmitterInterrupt = true
      state.polls = 0
      guard state.modemControl & Self.loopback != 0 else { return true }
      // The receiver is its own sender here, and only here can it overrun.
      if state.received.count < (state.hasFIFO ? Self.fifoSize : 1) {
        state.received.append(byte)
        state.show()
      } else {
        state.overran = true
      }
    case .interruptEnable:
      let old = state.interruptEnable
      state.interruptEnable = byte & InterruptEnable.all
      // The transmitter is empty, so enabling its interrupt raises it; Linux tests for exactly this.
      if byte & ~old & InterruptEnable.transmitterEmpty != 0 { state.transmitterInterrupt = true }
    case .fifoControl:
      if (byte ^ state.fifoControl) & 1 != 0 || byte & 2 != 0 {
        // Input that the guest has not been told of has not arrived yet.
        state.received.removeFirst(min(state.shown, state.received.count))
        state.shown = 0
      }
      state.fifoControl = byte & Self.fifoControlBits
    case .lineControl: state.lineControl = byte
    case .modemControl:
      let before = state.modemLevels
      state.modemControl = byte & Self.modemControlBits
      noteModemChange(from: before, &state)
    case .lineStatus, .modemStatus: break
    case .scratch: state.scratch = byte
    }
    return false
  }

  /// MSR bits 0-3: CTS, DSR and DCD changed, RI fell.
  private func noteModemChange(from before: UInt8, _ state: inout State) {
    let now = state.modemLevels
    let changed = before ^ now
    state.modemDeltas |= changed >> 4 & 0b1011 | (before & ~now) >> 4 & 0b0100
  }
}

extension UART: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    try state.withLock { state throws(SavedStateError) in
      try archive.transfer(&state.received, "input", limit: UART.receiveLimit)
      try archive.transfer(&state.interruptEnable, "interrupt enable", bits: InterruptEnable.all)
      try archive.transfer(&state.fifoControl, "FIFO control", bits: UART.fifoControlBits)
      try archive.transfer(&state.lineControl, "line control")
      try archive.transfer(&state.modemControl, "modem control", bits: UART.modemControlBits)
      try archive.transfer(&state.modemDeltas, "modem changes", bits: 0x0F)
      try archive.transfer(&state.scratch, "scratch register")
      try archive.transfer(&state.divisor, "divisor")
      try archive.transfer(&state.overran, "overrun")
      try archive.transfer(&state.transmitterInterrupt, "transmitter's interrupt")
      try archive.transfer(&state.isAsserting, "interrupt")
      try archive.require(state.isAsserting == (state.interrupt != .none), "interrupt")
      try archive.transfer(&state.shown, "input shown", in: 0...min(state.received.count, UART.fifoSize))
      try archive.transfer(&state.polls, "polls", in: 0...UART.listeningPolls)
    }
  }
}
