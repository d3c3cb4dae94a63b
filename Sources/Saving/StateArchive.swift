// SPDX-License-Identifier: Apache-2.0
// State as bytes, in both directions by one description: whoever has state names each field once, and the archive
// either writes it down or replaces it. What comes out of a file is checked here for being there and being a value of
// its type; whoever describes a field says what else it must be, by the rule that the guest's own writes of it obey.
// A refusal names the field.

/// Why bytes are not the state they should be.
public enum SavedStateError: Error, Sendable, Equatable, CustomStringConvertible {
  /// They end before the field that is named.
  case truncated(String)
  /// There are more than the state has.
  case excess(byteCount: Int)
  /// A field, which is named, holds what it cannot hold.
  case invalid(String)

  public var description: String {
    switch self {
    case .truncated(let field): "it ends before its \(field)"
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

/// Where a field lies in the bytes of an archive.
public struct SavedField: Sendable, Equatable {
  /// What messages call it, with the parts it is in.
  public var name: String
  /// Offset of its first byte.
  public var offset: Int
  /// Bytes of one element: of an integer all it has.
  public var elementSize: Int
  /// 1 for what is not a list.
  public var count: Int
}

/// Fields in a row: integers little-endian in their own size, everything else made of those.
public struct StateArchive: Sendable {
  /// What has been written, or what is being read.
  public private(set) var bytes: [UInt8]
  /// Whether fields are replaced by what was saved.
  public let isRestoring: Bool
  /// The moment of saving or of restoring, in nanoseconds of the host's monotonic clock.
  public let now: UInt64
  /// Every field so far, if they are listed: for those who want to know what is where.
  public private(set) var fields: [SavedField]?
  private var position = 0
  /// The names of the parts that are being transferred.
  private var path: [String] = []

  /// An archive to be written.
  public init(savingAt now: UInt64) {
    bytes = []
    isRestoring = false
    self.now = now
  }

  /// An archive to be read.
  ///
  /// - Parameter listsFields: Whether `fields` is kept.
  public init(restoring bytes: [UInt8], at now: UInt64, listsFields: Bool = false) {
    self.bytes = bytes
    isRestoring = true
    self.now = now
    fields = listsFields ? [] : nil
  }

  /// Everything must have been read.
  public func finish() throws(SavedStateError) {
    if isRestoring, position < bytes.count { throw .excess(byteCount: bytes.count - position) }
  }

  // MARK: Rules

  /// Refuses what was read unless it can be. `what` names the field, and perhaps its value.
  public func require(_ condition: Bool, _ what: @autoclosure () -> String) throws(SavedStateError) {
    if isRestoring, !condition { throw .invalid(full(what())) }
  }

  /// Refuses what was read of a field unless it can be, and says what it was.
  public func require<T: FixedWidthInteger>(
    _ condition: Bool, _ name: @autoclosure () -> String, _ value: T
  ) throws(SavedStateError) {
    try require(condition, "\(name()) 0x\(String(T.Magnitude(truncatingIfNeeded: value), radix: 16))")
  }

  /// Fields that messages call by a common name before their own: "vCPU 1".
  public mutating func part<Result>(
    _ name: String, _ body: (inout StateArchive) throws(SavedStateError) -> Result
  ) throws(SavedStateError) -> Result {
    path.append(name)
    defer { path.removeLast() }
    return try body(&self)
  }

  private func full(_ name: String) -> String { (path + [name]).joined(separator: " ") }

  // MARK: Bytes

  // These are not generic: what is would be slow in a module that does not see its callers.

  private mutating func put(_ value: UInt64, byteCount: Int) {
    for index in 0..<byteCount { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(index * 8))) }
  }

  /// The next integer; the caller has seen that it is there.
  private mutating func take(byteCount: Int) -> UInt64 {
    var result: UInt64 = 0
    for index in 0..<byteCount { result |= UInt64(bytes[position + index]) << UInt64(index * 8) }
    position += byteCount
    return result
  }

  private mutating func move<T: FixedWidthInteger>(_ value: inout T) {
    let byteCount = T.bitWidth / 8
    if isRestoring {
      value = T(truncatingIfNeeded: take(byteCount: byteCount))
    } else {
      put(UInt64(truncatingIfNeeded: value), byteCount: byteCount)
    }
  }

  /// Notes a field, and sees that all of it is there.
  private mutating func begin(_ name: String, elementSize: Int, count: Int = 1) throws(SavedStateError) {
    guard isRestoring else { return }
    guard (bytes.count - position) / elementSize >= count else { throw .truncated(full(name)) }
    guard fields != nil else { return }
    let field = SavedField(name: full(name), offset: position, elementSize: elementSize, count: count)
    fields?.append(field)
  }

  // MARK: Fields

  public mutating func transfer<T: FixedWidthInteger>(_ value: inout T, _ name: String) throws(SavedStateError) {
    try begin(name, elementSize: T.bitWidth / 8)
    move(&value)
  }

  /// A field of which only some bits can be set.
  public mutating func transfer<T: FixedWidthInteger>(
    _ value: inout T, _ name: String, bits: T
  ) throws(SavedStateError) {
    try transfer(&value, name)
    try require(value & ~bits == 0, name, value)
  }

  public mutating func transfer<T: FixedWidthInteger>(
    _ value: inout T, _ name: String, in range: ClosedRange<T>
  ) throws(SavedStateError) {
    try transfer(&value, name)
    try require(range.contains(value), name, value)
  }

  public mutating func transfer(_ value: inout Bool, _ name: String) throws(SavedStateError) {
    var byte: UInt8 = value ? 1 : 0
    try transfer(&byte, name, in: 0...1)
    value = byte == 1
  }

  /// Enumerations, by their raw values. Option sets have every value: `transfer(_:_:within:)` is theirs.
  public mutating func transfer<T: RawRepresentable>(_ value: inout T, _ name: String) throws(SavedStateError)
  where T.RawValue: FixedWidthInteger {
    var raw = value.rawValue
    try transfer(&raw, name)
    guard let new = T(rawValue: raw) else { return try require(false, name, raw) }
    value = new
  }

  /// Option sets.
  public mutating func transfer<T: OptionSet>(
    _ value: inout T, _ name: String, within all: T
  ) throws(SavedStateError) where T.RawValue: FixedWidthInteger {
    var raw = value.rawValue
    try transfer(&raw, name, bits: all.rawValue)
    value = T(rawValue: raw)
  }

  public mutating func transfer<T: FixedWidthInteger>(_ value: inout T?, _ name: String) throws(SavedStateError) {
    var isThere = value != nil
    try transfer(&isThere, "\(name)'s presence")
    var content = value ?? 0
    try transfer(&content, name)
    value = isThere ? content : nil
  }

  /// A list of at most `limit` integers.
  public mutating func transfer<T: FixedWidthInteger>(
    _ values: inout [T], _ name: String, limit: Int
  ) throws(SavedStateError) {
    var count = UInt32(truncatingIfNeeded: values.count)
    try transfer(&count, "\(name)'s length")
    try require(count <= limit, "\(name)'s length", count)
    try begin(name, elementSize: T.bitWidth / 8, count: Int(count))
    if isRestoring { values = [T](repeating: 0, count: Int(count)) }
    for index in values.indices { move(&values[index]) }
  }

  /// A list of at most `limit` bytes.
  public mutating func transfer(_ values: inout [UInt8], _ name: String, limit: Int) throws(SavedStateError) {
    var count = UInt32(truncatingIfNeeded: values.count)
    try transfer(&count, "\(name)'s length")
    try require(count <= limit, "\(name)'s length", count)
    if isRestoring { values = [UInt8](repeating: 0, count: Int(count)) }
    try transfer(bytes: &values, name)
  }

  public mutating func transfer<let count: Int, T: FixedWidthInteger>(
    _ values: inout InlineArray<count, T>, _ name: String
  ) throws(SavedStateError) {
    try begin(name, elementSize: T.bitWidth / 8, count: count)
    for index in 0..<count { move(&values[index]) }
  }

  /// As many bytes as there are.
  public mutating func transfer(bytes values: inout [UInt8], _ name: String) throws(SavedStateError) {
    try begin(name, elementSize: 1, count: values.count)
    guard isRestoring else { return bytes += values }
    values = Array(bytes[position..<position + values.count])
    position += values.count
  }

  /// Many words, quickly: a guest does not run before those of its file are read.
  public mutating func transfer(words: inout [UInt32], _ name: String, limit: Int) throws(SavedStateError) {
    guard isRestoring else {
      bytes.reserveCapacity(bytes.count + 4 + words.count * 4)
      return try transfer(&words, name, limit: limit)
    }
    var count: UInt32 = 0
    try transfer(&count, "\(name)'s length")
    try require(count <= limit, "\(name)'s length", count)
    try begin(name, elementSize: 4, count: Int(count))
    let begin = position
    words = [UInt32](repeating: 0, count: Int(count))
    for index in words.indices {
      let place = begin + index * 4
      words[index] =
        UInt32(bytes[place]) | UInt32(bytes[place + 1]) << 8 | UInt32(bytes[place + 2]) << 16 | UInt32(bytes[place + 3])
        << 24
    }
    position = begin + Int(count) * 4
  }

  /// A text of at most `limit` bytes.
  public mutating func transfer(_ text: inout String, _ name: String, limit: Int) throws(SavedStateError) {
    var bytes = Array(text.utf8)
    try transfer(&bytes, name, limit: limit)
    text = String(decoding: bytes, as: UTF8.self)
  }

  /// A moment of the monotonic clock, saved as its distance from now, since that clock means nothing elsewhere. What
  /// was further in the past than the new host is old becomes its beginning.
  public mutating func transfer(instant: inout UInt64, _ name: String) throws(SavedStateError) {
    var distance = Int64(bitPattern: instant &- now)
    try transfer(&distance, name)
    guard isRestoring else { return }
    let (sum, overflow) = now.addingReportingOverflow(UInt64(max(distance, 0)))
    instant = distance < 0 ? now - min(distance.magnitude, now) : overflow ? .max : sum
  }

  public mutating func transfer(instant: inout UInt64?, _ name: String) throws(SavedStateError) {
    var isThere = instant != nil
    try transfer(&isThere, "\(name)'s presence")
    var moment = instant ?? now
    try transfer(instant: &moment, name)
    instant = isThere ? moment : nil
  }
}
