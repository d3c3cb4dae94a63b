// SPDX-License-Identifier: Apache-2.0
// The gate that made the AT compatible with programs that rely on addresses wrapping at 1 MiB: while it is closed,
// address bit 20 leaves the processor as 0. It is open at the start, as firmware leaves it.
//
// Two ports lead to it, the keyboard controller's output port and port 0x92. Some chipsets join them with an OR; here
// they are one line: whichever was written last counts, and both show it, so that a program may use either for both
// ways.

public import Saving
import Synchronization

/// The A20 gate of a machine.
public final class A20Gate: Sendable {
  private let state = Mutex<Bool>(true)
  private let changed: @Sendable (Bool) -> Void

  /// - Parameter changed: Told of each change, on the thread of the vCPU that made it.
  public init(changed: @escaping @Sendable (Bool) -> Void) { self.changed = changed }

  public var isOpen: Bool {
    get { state.withLock { $0 } }
    set {
      state.withLock { state in
        guard state != newValue else { return }
        state = newValue
        changed(newValue)
      }
    }
  }
}

extension A20Gate: SavedState {
  public func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var isOpen = isOpen
    try archive.transfer(&isOpen, "gate")
    self.isOpen = isOpen
  }
}
