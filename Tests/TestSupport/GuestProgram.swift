// SPDX-License-Identifier: Apache-2.0
// Test guests: machine code that the assembler made of Tests/GuestCode, by name.

import GuestCode

/// A test guest's code, and the places in it that have names.
public struct GuestProgram {
  /// What GUEST and END enclose.
  public private(set) var bytes: [UInt8]
  private let name: String

  /// - Parameter name: As in Tests/GuestCode/*.S; one that is not there is a mistake of the test's, and ends it.
  public init(_ name: String) {
    let start = unsafe GuestProgram.find(name)
    unsafe bytes = Array(UnsafeBufferPointer(start: start, count: GuestProgram.find(name + ".end") - start))
    self.name = name
  }

  /// The code of all pieces of one name.
  public static func list(_ name: String) -> [[UInt8]] {
    var pieces: [[UInt8]] = []
    while let start = unsafe guest_code_find(name, UInt32(pieces.count)),
      let end = unsafe guest_code_find(name + ".end", UInt32(pieces.count))
    { unsafe pieces.append(Array(UnsafeBufferPointer(start: start, count: end - start))) }
    if pieces.isEmpty { fatalError("Tests/GuestCode has no \(name)") }
    return pieces
  }

  /// Where a MARK is, in bytes from the start.
  public func offset(of mark: String) -> Int {
    unsafe GuestProgram.find(mark) - GuestProgram.find(name)
  }

  /// Stores a parameter: the `index`th word of 32 bits behind a mark.
  public mutating func store(_ value: UInt32, at mark: String, index: Int = 0) {
    let place = offset(of: mark) + index * 4
    for byte in 0..<4 { bytes[place + byte] = UInt8(truncatingIfNeeded: value >> UInt32(8 * byte)) }
  }

  private static func find(_ name: String) -> UnsafePointer<UInt8> {
    guard let place = unsafe guest_code_find(name, 0) else { fatalError("Tests/GuestCode has no \(name)") }
    if unsafe guest_code_find(name, 1) != nil { fatalError("Tests/GuestCode has \(name) twice") }
    return unsafe place
  }
}
