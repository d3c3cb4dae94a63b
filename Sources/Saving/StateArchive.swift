// SPDX-License-Identifier: Apache-2.0
// State as bytes, in both directions by one description: whoever has state names each field once, and the archive
// either writes it down or replaces it. What comes out of a file is checked here for being there and being a value of
// its type; whoever describes a field checks what else he relies on.

/// Why bytes are not the state they should be.
public enum SavedStateError: Error, Sendable, Equatable, CustomStringConvertible {
  /// There are fewer than the state has.
  case truncated
  /// There are more.
  case excess(byteCount: Int)
  /// A field holds what it cannot hold.
  case invalid(String)

  public var description: String {
    switch self {
    case .truncated: "it ends too early"
    case .excess(let byteCount): "\(byteCount) bytes too many"
    case .invalid(let what): "impossible \(what)"
    }
  }
}

/// Something whose whole state can be saved and put back.
public protocol SavedState {
  /// Hands every field to the archive, always in the same order.
  ///
  /// - Throws: `SavedStateError`, only while restoring; the state is then partly replaced and of no use.
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError)
}

/// Fields in a row: integers little-endian in their own size, everything else made of those.
public struct StateArchive: Sendable {
  /// What has been written, or what is being read.
  public private(set) var bytes: [UInt8]
  /// Whether fields are replaced by what was saved.
  public let isRestoring: Bool
  /// The moment of saving or of restoring, in nanoseconds of the host's monotonic clock.
  public let now: UInt64
  private var position = 0

  /// An archive to be written.
  public init(savingAt now: UInt64) {
    bytes = []
    isRestoring = false
    self.now = now
  }

  /// An archive to be read.
  public init(restoring bytes: [UInt8], at now: UInt64) {
    self.bytes = bytes
    isRestoring = true
    self.now = now
  }

  /// Everything must have been read.
  public func finish() throws(SavedStateError) {
    if isRestoring, position < bytes.count { throw .excess(byteCount: bytes.count - position) }
  }

  /// Refuses what was read unless it can be.
  public func require(_ condition: Bool, _ what: @autoclosure () -> String) throws(SavedStateError) {
    if isRestoring, !condition { throw .invalid(what()) }
  }

  // MARK: Fields

  public mutating func transfer<T: FixedWidthInteger>(_ value: inout T) throws(SavedStateError) {
    let count = T.bitWidth / 8
    guard isRestoring else {
      for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> T(truncatingIfNeeded: index * 8))) }
      return
    }
    guard bytes.count - position >= count else { throw .truncated }
    var result: T = 0
    for index in 0..<count {
      result |= T(truncatingIfNeeded: bytes[position + index]) << T(truncatingIfNeeded: index * 8)
    }
    position += count
    value = result
  }

  public mutating func transfer(_ value: inout Bool) throws(SavedStateError) {
    var byte: UInt8 = value ? 1 : 0
    try transfer(&byte)
    try require(byte <= 1, "truth value \(byte)")
    value = byte == 1
  }

  /// Enumerations and option sets, by their raw values.
  public mutating func transfer<T: RawRepresentable>(_ value: inout T) throws(SavedStateError)
  where T.RawValue: FixedWidthInteger {
    var raw = value.rawValue
    try transfer(&raw)
    guard let new = T(rawValue: raw) else { throw .invalid("\(T.self) \(raw)") }
    value = new
  }

  public mutating func transfer<T: FixedWidthInteger>(_ value: inout T?) throws(SavedStateError) {
    var isThere = value != nil
    try transfer(&isThere)
    var content = value ?? 0
    try transfer(&content)
    value = isThere ? content : nil
  }

  /// A list of at most `limit` integers.
  public mutating func transfer<T: FixedWidthInteger>(_ values: inout [T], limit: Int) throws(SavedStateError) {
    var count = UInt32(truncatingIfNeeded: values.count)
    try transfer(&count)
    try require(count <= limit, "length \(count)")
    if isRestoring { values = [T](repeating: 0, count: Int(count)) }
    for index in values.indices { try transfer(&values[index]) }
  }

  public mutating func transfer<let count: Int, T: FixedWidthInteger>(
    _ values: inout InlineArray<count, T>
  ) throws(SavedStateError) {
    for index in 0..<count { try transfer(&values[index]) }
  }

  /// Many words, quickly: a guest does not run before those of its file are read.
  public mutating func transfer(words: inout [UInt32], limit: Int) throws(SavedStateError) {
    guard isRestoring else {
      bytes.reserveCapacity(bytes.count + 4 + words.count * 4)
      return try transfer(&words, limit: limit)
    }
    var count: UInt32 = 0
    try transfer(&count)
    try require(count <= limit, "length \(count)")
    let (begin, end) = (position, position + Int(count) * 4)
    guard end <= bytes.count else { throw .truncated }
    words = [UInt32](repeating: 0, count: Int(count))
    for index in words.indices {
      let place = begin + index * 4
      words[index] =
        UInt32(bytes[place]) | UInt32(bytes[place + 1]) << 8 | UInt32(bytes[place + 2]) << 16 | UInt32(bytes[place + 3])
        << 24
    }
    position = end
  }

  /// A text of at most `limit` bytes.
  public mutating func transfer(_ text: inout String, limit: Int) throws(SavedStateError) {
    var bytes = Array(text.utf8)
    try transfer(&bytes, limit: limit)
    text = String(decoding: bytes, as: UTF8.self)
  }

  /// A moment of the monotonic clock, saved as its distance from now, since that clock means nothing elsewhere. What
  /// was further in the past than the new host is old becomes its beginning.
  public mutating func transfer(instant: inout UInt64) throws(SavedStateError) {
    var distance = Int64(bitPattern: instant &- now)
    try transfer(&distance)
    guard isRestoring else { return }
    let (sum, overflow) = now.addingReportingOverflow(UInt64(max(distance, 0)))
    instant = distance < 0 ? now - min(distance.magnitude, now) : overflow ? .max : sum
  }

  public mutating func transfer(instant: inout UInt64?) throws(SavedStateError) {
    var isThere = instant != nil
    try transfer(&isThere)
    var moment = instant ?? now
    try transfer(instant: &moment)
    instant = isThere ? moment : nil
  }
}
