// SPDX-License-Identifier: Apache-2.0
// A thread that ends the process when something takes too long that nothing else can end.

import Glibc
import Synchronization

/// Watches one piece of work.
final class Guardian: Sendable {
  private let isOver = Atomic<Bool>(false)
  private let what: String
  private let seconds: Double

  init(_ what: String, seconds: Double) {
    self.what = what
    self.seconds = seconds
    var thread = pthread_t()
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    let error = unsafe pthread_create(
      &thread, nil,
      { context in
        guard let context = unsafe context else { return nil }
        unsafe Unmanaged<Guardian>.fromOpaque(context).takeRetainedValue().watch()
        return nil
      }, context)
    precondition(error == 0, "no thread for a time limit: errno \(error)")
    pthread_detach(thread)
  }

  /// The work is done.
  func end() { isOver.store(true, ordering: .releasing) }

  private func watch() {
    var left = Countdown(seconds)
    while !isOver.load(ordering: .acquiring) {
      if left.isOver {
        print("test hangs: \(what)")
        fflush(nil)
        abort()
      }
      usleep(100_000)
    }
  }
}
