// SPDX-License-Identifier: Apache-2.0
// Exceptions: what an instruction raises instead of completing, and their vectors (SDM volume 3, chapter 6).

/// Vectors of exceptions and of the NMI (SDM volume 3, table 6-1).
public enum Vector {
  /// #DE.
  @inlinable public static var divideError: UInt8 { 0 }
  /// #DB.
  @inlinable public static var debug: UInt8 { 1 }
  /// NMI.
  @inlinable public static var nmi: UInt8 { 2 }
  /// #BP.
  @inlinable public static var breakpoint: UInt8 { 3 }
  /// #OF.
  @inlinable public static var overflow: UInt8 { 4 }
  /// #BR.
  @inlinable public static var boundRange: UInt8 { 5 }
  /// #UD.
  @inlinable public static var invalidOpcode: UInt8 { 6 }
  /// #NM.
  @inlinable public static var deviceNotAvailable: UInt8 { 7 }
  /// #DF.
  @inlinable public static var doubleFault: UInt8 { 8 }
  /// #TS.
  @inlinable public static var invalidTSS: UInt8 { 10 }
  /// #NP.
  @inlinable public static var segmentNotPresent: UInt8 { 11 }
  /// #SS.
  @inlinable public static var stackFault: UInt8 { 12 }
  /// #GP.
  @inlinable public static var generalProtection: UInt8 { 13 }
  /// #PF.
  @inlinable public static var pageFault: UInt8 { 14 }
  /// #MF.
  @inlinable public static var floatingPoint: UInt8 { 16 }
  /// #AC.
  @inlinable public static var alignmentCheck: UInt8 { 17 }
  /// #MC.
  @inlinable public static var machineCheck: UInt8 { 18 }
  /// #XM.
  @inlinable public static var simdFloatingPoint: UInt8 { 19 }
}

/// An exception, with all that its handler learns of it.
public struct Exception: Sendable, Hashable {
  /// 0...31.
  public var vector: UInt8
  /// Pushed for the vectors that have one.
  public var errorCode: UInt32?
  /// What CR2 holds, for a page fault.
  public var address: UInt64

  /// An exception; `address` means something for a page fault alone.
  public init(vector: UInt8, errorCode: UInt32? = nil, address: UInt64 = 0) {
    self.vector = vector
    self.errorCode = errorCode
    self.address = address
  }

  /// #UD.
  public static let invalidOpcode = Exception(vector: Vector.invalidOpcode)
  /// #GP with an error code, 0 for most.
  public static func generalProtection(_ code: UInt32 = 0) -> Exception {
    Exception(vector: Vector.generalProtection, errorCode: code)
  }
  /// #PF.
  public static func pageFault(_ address: UInt64, code: UInt32) -> Exception {
    Exception(vector: Vector.pageFault, errorCode: code, address: address)
  }
}
