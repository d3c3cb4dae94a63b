// SPDX-License-Identifier: Apache-2.0
// The shadow stacks: while translated code runs, the host's RSP is in one of them, so that a guest's CALL and RET can
// be the host's own and the return predictor works. A frame is 16 bytes: the host address behind the call, and above
// it the guest's return address; RET compares the latter with what it popped from the guest's stack and takes
// the former only if they agree. Supervisor and user code have a stack each; both lie between guard pages, and nothing
// else is near.
//
// A frame is right as long as the linear addresses of its page mean what they meant: MOV CR3, INVLPG and a change of
// mode empty the stack (jump_cache.c). Overflow starts again at the top (fault.c); the top holds a frame that no return
// address matches: it is not canonical, and nobody can guess it.

import CHost
import Host

/// The memory of a vCPU's two shadow stacks, and inaccessible memory behind them where empty slots lead.
final class ShadowStacks: Sendable {
  /// Bytes of one: 4,096 calls deep.
  static let byteCount = 64 << 10
  private static let guardBytes = Int(CHOST_SHADOW_GUARD)
  private let region: Mapping

  init() throws(HostError) {
    region = try .reserveAlone(
      byteCount: 3 * ShadowStacks.guardBytes + 2 * ShadowStacks.byteCount + Int(CHOST_SLOT_GUARD))
    for number in 0..<2 {
      try region.protect(at: ShadowStacks.offset(number), byteCount: ShadowStacks.byteCount, [.read, .write])
    }
  }

  private static func offset(_ number: Int) -> Int { guardBytes + number * (byteCount + guardBytes) }

  /// Tells the vCPU page where they are, and writes the frames at the tops.
  func install(in page: VCPUPage) {
    let base = unsafe UInt64(UInt(bitPattern: region.base))
    let bottom = (base + UInt64(ShadowStacks.offset(0)), base + UInt64(ShadowStacks.offset(1)))
    let size = UInt64(ShadowStacks.byteCount) - 64
    page[\.slot_guard] = base + UInt64(ShadowStacks.offset(2))
    page[\.shadow_bottom] = bottom
    page[\.shadow_top] = (bottom.0 + size, bottom.1 + size)
    page[\.shadow] = page[\.shadow_top]
    // Bits 63 and 62 differ.
    let unmatched = UInt64.random(in: 0..<1 << 62) | 1 << 63
    for number in 0..<2 {
      let frame = unsafe region.base + ShadowStacks.offset(number) + ShadowStacks.byteCount - 64
      for position in stride(from: 0, to: 64, by: 16) {
        unsafe frame.storeBytes(of: page[\.stub_underflow], toByteOffset: position, as: UInt64.self)
        unsafe frame.storeBytes(of: unmatched, toByteOffset: position + 8, as: UInt64.self)
      }
    }
  }
}
