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

extension TranslatedCPU {
  /// Guest TSC minus host TSC; moves when the guest writes its TSC.
  public var timestampOffset: UInt64 {
    get { page[\.tsc_offset] }
    set { page[\.tsc_offset] = newValue }
  }

  /// CR8, the task priority as the guest last set or was last told it.
  public var taskPriority: UInt8 {
    get { UInt8(truncatingIfNeeded: page[\.cr8]) & 15 }
    set { page[\.cr8] = UInt64(newValue & 15) }
  }

  /// Whether the guest has written CR8 since this was last asked.
  public func takeTaskPriorityWrite() -> Bool {
    defer { processor.state.taskPriorityWritten = false }
    return processor.state.taskPriorityWritten
  }

  /// Closes the A20 gate, so that address bit 20 is 0 on its way out of the processor (SDM volume 3, 8.7.13.4), or
  /// opens it, before this vCPU's next instruction. Callable from any thread.
  public func setA20(isOpen: Bool) {
    isA20Open.store(isOpen, ordering: .sequentiallyConsistent)
    unsafe chost_set_attention(page.pointer)
  }

  func adoptA20() {
    let cut: UInt64 = isA20Open.load(ordering: .sequentiallyConsistent) ? 0 : 1 << 20
    guard page[\.address_cut] != cut else { return }
    page[\.address_cut] = cut
    unsafe chost_flush_all(page.pointer)
  }

  /// CR0.PG.
  public var isPaging: Bool { page[\.cr0] & CR0.pg != 0 }

  /// Whether the local APIC exists for CPUID: IA32_APIC_BASE.EN, which the machine keeps.
  /// Whether code of every level leaves with `VCPUExit.pageAbsent` where a page is absent, not only that of level 3;
  /// the processor's own accesses to its tables wait all the same.
  public var everyLevelLeavesForPages: Bool {
    get { processor.state.everyLevelLeavesForPages }
    set { processor.state.everyLevelLeavesForPages = newValue }
  }

  public var isAPICEnabled: Bool {
    get { processor.state.isAPICEnabled }
    set { processor.state.isAPICEnabled = newValue }
  }
}
