// SPDX-License-Identifier: Apache-2.0
// The bounce buffer of the vCPU page: operands that translated code cannot reach in place are copied there, and back.

import CHost

extension TranslatedCPU {
  var bounceBuffer: UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(page.pointer) + Int(CHOST_ENV) + Int(CHOST_BOUNCE)
  }

  func bounce(_ offset: Int, _ size: Int) -> UInt64 {
    switch size {
    case 1: UInt64(unsafe bounceBuffer.load(fromByteOffset: offset, as: UInt8.self))
    case 2: UInt64(unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    case 4: UInt64(unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    default: unsafe bounceBuffer.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
    }
  }

  func setBounce(_ offset: Int, _ size: Int, _ value: UInt64) {
    switch size {
    case 1: unsafe bounceBuffer.storeBytes(of: UInt8(truncatingIfNeeded: value), toByteOffset: offset, as: UInt8.self)
    case 2: unsafe bounceBuffer.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: offset, as: UInt16.self)
    case 4: unsafe bounceBuffer.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: offset, as: UInt32.self)
    default: unsafe bounceBuffer.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }
  }
}
