// SPDX-License-Identifier: Apache-2.0
// Threads made fit to run translated code: what the guest's instructions raise arrives as signals, and those need a stack
// of their own, because RSP is the guest's meanwhile.

import CHost
import Host

enum PreparedThread {
  /// Room for a signal frame with every vector and tile register, several times over; taken as it is used.
  private static let signalStackBytes = 256 << 10

  /// Runs `body` on the calling thread, with a signal stack.
  ///
  /// - Throws: `HostError` if there is no memory for the stack, and `body` has not been called then; or what `body`
  ///   throws.
  static func run(_ body: () throws(HostError) -> Void) throws(HostError) {
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
