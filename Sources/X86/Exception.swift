// SPDX-License-Identifier: Apache-2.0
// Exceptions: what an instruction raises instead of completing (SDM volume 3, chapter 6).

/// An exception, with all that its handler learns of it.
public struct Exception: Sendable, Hashable {
  /// 0...31.
  public var vector: UInt8
  /// Pushed for the vectors that have one.
  public var errorCode: UInt32?
  /// What CR2 holds, for a page fault.
  public var address: UInt64

  public init(vector: UInt8, errorCode: UInt32? = nil, address: UInt64 = 0) {
    self.vector = vector
    self.errorCode = errorCode
    self.address = address
  }

  /// #UD.
  public static let invalidOpcode = Exception(vector: 6)
  /// #GP with an error code, 0 for most.
  public static func generalProtection(_ code: UInt32 = 0) -> Exception { Exception(vector: 13, errorCode: code) }
  /// #PF.
  public static func pageFault(_ address: UInt64, code: UInt32) -> Exception {
    Exception(vector: 14, errorCode: code, address: address)
  }
}
