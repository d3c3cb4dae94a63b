// SPDX-License-Identifier: Apache-2.0
// What a host thread needs before it may run a vCPU: a signal stack of its own, because exceptions that the host CPU
// raises in translated code arrive as signals while RSP is deep in the engine's own frames.

import CHost
public import Host

/// The calling thread, as a place where vCPUs run.
public enum HostCPU {
  /// Gives the calling thread an alternate signal stack. It stays for the life of the thread; a few pages.
  ///
  /// - Throws: `HostError` if the host refuses.
  public static func prepareThread() throws(HostError) {
    let size = 128 << 10
    let stack = try Mapping.anonymous(byteCount: size)
    let error = unsafe chost_prepare_thread(stack.base, UInt64(stack.byteCount))
    guard error == 0 else { throw HostError("set up", "a signal stack", reason: "sigaltstack failed (\(error))") }
    // The kernel uses the stack until the thread is gone: it is never unmapped.
    unsafe _ = Unmanaged.passRetained(SignalStack(stack))
  }
}

private final class SignalStack {
  let mapping: Mapping
  init(_ mapping: consuming Mapping) { self.mapping = mapping }
}
