// SPDX-License-Identifier: Apache-2.0
// Threads with a name, a stack of known size and no asynchronous signals. vCPUs are threads, never tasks: they
// block, they spin, and signals that ask them to stop must reach exactly one place.

import CHost
import Glibc
import Synchronization

/// A running thread.
public final class HostThread: Sendable {
  private final class Body: Sendable {
    let name: String
    let run: @Sendable () -> Void
    init(name: String, run: @escaping @Sendable () -> Void) {
      self.name = name
      self.run = run
    }
  }

  private let handle: UInt
  private let joined = Mutex(false)

  /// Starts a thread. All signals but those an instruction raises are blocked in it.
  ///
  /// - Parameters:
  ///   - name: For ps and gdb; 15 bytes are kept.
  ///   - stackBytes: Address space for the stack; memory is taken as it is used.
  public init(
    name: String, stackBytes: Int = 8 << 20, _ body: @escaping @Sendable () -> Void
  ) throws(HostError) {
    var thread: UInt = 0
    let context = unsafe Unmanaged.passRetained(Body(name: name, run: body))
    let result = unsafe chost_thread_start(
      &thread, UInt64(stackBytes),
      { context in
        let body = unsafe Unmanaged<Body>.fromOpaque(context!).takeRetainedValue()
        unsafe chost_thread_name(body.name)
        body.run()
        return nil
      }, context.toOpaque())
    if result < 0 { unsafe context.release() }
    try checked(result, "start", "thread \(name)")
    handle = thread
  }

  deinit {
    if !joined.withLock({ $0 }) { _ = pthread_detach(handle) }
  }

  /// Whether the caller is this thread.
  public var isCurrent: Bool { pthread_self() == handle }

  /// Waits for the thread to end; further calls do nothing. A thread never joined cleans up after itself.
  public func join() {
    let isFirst = joined.withLock { done in
      defer { done = true }
      return !done
    }
    if isFirst { _ = chost_thread_join(handle) }
  }
}
