// SPDX-License-Identifier: Apache-2.0
// The host's processor as the machine needs to know it: CPUID and the time-stamp counter for building the guest's, and
// threads made fit to run translated code.

import CHost
import Host
import Synchronization
public import X86

/// The processor under us.
public enum HostCPU {
  /// What CPUID and XGETBV tell.
  public static var cpuid: HostCPUID {
    let hasXGETBV = query(1, 0).2 >> 27 & 1 != 0
    return HostCPUID(xcr0: hasXGETBV ? chost_xgetbv0() : 0) { query($0, $1) }
  }

  /// Executes CPUID: EAX, EBX, ECX, EDX.
  public static func query(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> (UInt32, UInt32, UInt32, UInt32) {
    var out = InlineArray<4, UInt32>(repeating: 0)
    var span = out.mutableSpan
    unsafe span.withUnsafeMutableBufferPointer { unsafe chost_cpuid(leaf, subleaf, $0.baseAddress) }
    return (out[0], out[1], out[2], out[3])
  }

  /// The bits that MXCSR has: an image with others cannot be loaded.
  static let mxcsrMask = chost_mxcsr_mask()

  /// The time-stamp counter now.
  public static var timestampCounter: UInt64 { chost_read_tsc() }

  /// Room for a signal frame with every vector and tile register, several times over; taken as it is used.
  private static let signalStackBytes = 256 << 10

  /// Runs `body` on a thread that may execute translated code: what the guest's instructions raise arrives as signals,
  /// and those need a stack of their own, because RSP is the guest's affair then.
  ///
  /// - Throws: `HostError` if there is no memory for the stack, and `body` has not been called then; or what `body`
  ///   throws.
  public static func withPreparedThread(_ body: () throws(HostError) -> Void) throws(HostError) {
    let stack = try Mapping.anonymous(byteCount: signalStackBytes)
    let error = unsafe chost_prepare_thread(stack.base, UInt64(stack.byteCount))
    guard error == 0 else { throw HostError("prepare", "the vCPU's thread", reason: "sigaltstack failed (\(error))") }
    var failure: HostError?
    do throws(HostError) { try body() } catch { failure = error }
    _ = chost_prepare_thread(nil, 0)
    // The mapping must outlive the call above.
    _ = stack.byteCount
    if let failure { throw failure }
  }
}
