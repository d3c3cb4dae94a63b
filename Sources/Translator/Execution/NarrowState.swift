// SPDX-License-Identifier: Apache-2.0
// State images outside 64-bit mode. FXSAVE, XSAVE and their inverses handle eight vector registers there and leave the
// others, and their places in the image, alone; the host's own instruction, in 64-bit mode, handles sixteen.

import CHost

extension TranslatedCPU {
  /// XMM8 to XMM15 in an image, and the upper halves of YMM8 to YMM15.
  private static let upper = [288..<416, 704..<832]

  /// Runs `body`, which saves or restores sixteen registers, and undoes what it did to the upper eight: in the image
  /// that a save wrote, or in the vCPU's own after a restore.
  func keepingUpperVectors(
    inBounceBuffer image: UnsafeMutableRawPointer, save: Bool, extended: Bool, _ body: () -> Void
  ) {
    let own = unsafe UnsafeMutableRawPointer(page.pointer) + Int(CHOST_ENV) + Int(CHOST_FPU)
    let target = unsafe save ? image : own
    // FXSAVE's image ends before the second range.
    let ranges = save && !extended ? [TranslatedCPU.upper[0]] : TranslatedCPU.upper
    let kept = ranges.map { range in
      unsafe [UInt8](UnsafeRawBufferPointer(start: target + range.lowerBound, count: range.count))
    }
    body()
    for (range, bytes) in zip(ranges, kept) {
      unsafe UnsafeMutableRawBufferPointer(start: target + range.lowerBound, count: range.count).copyBytes(from: bytes)
    }
    if !save && page[\.uses_xsave] != 0 {
      // The full exit's XSAVE wrote every component's data, and said which are in their initial state.
      let components = unsafe own.load(fromByteOffset: 512, as: UInt64.self)
      unsafe own.storeBytes(of: components | 6, toByteOffset: 512, as: UInt64.self)
    }
  }
}
