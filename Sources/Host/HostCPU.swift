// SPDX-License-Identifier: Apache-2.0
// The host's processor as a machine needs to know it: CPUID, for what the guest's may have, and the time-stamp counter.

import CHost
package import X86

/// The processor under us.
package enum HostCPU {
  /// What CPUID and XGETBV tell.
  package static var cpuid: HostCPUID {
    let hasXGETBV = query(1, 0).2 >> 27 & 1 != 0
    return HostCPUID(xcr0: hasXGETBV ? chost_xgetbv0() : 0) { query($0, $1) }
  }

  /// Executes CPUID: EAX, EBX, ECX, EDX.
  package static func query(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> (UInt32, UInt32, UInt32, UInt32) {
    var out = InlineArray<4, UInt32>(repeating: 0)
    var span = out.mutableSpan
    unsafe span.withUnsafeMutableBufferPointer { unsafe chost_cpuid(leaf, subleaf, $0.baseAddress) }
    return (out[0], out[1], out[2], out[3])
  }

  /// The bits that MXCSR has: an image with others cannot be loaded.
  package static let mxcsrMask = chost_mxcsr_mask()

  /// The time-stamp counter now.
  package static var timestampCounter: UInt64 { chost_read_tsc() }
}
