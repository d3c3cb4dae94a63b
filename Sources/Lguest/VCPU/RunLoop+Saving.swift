// SPDX-License-Identifier: Apache-2.0
// A vCPU in a saved machine, apart from its local APIC: the engine's state, the paravirtual registers, and whether it
// waits.

import Engine
import Paravirt
import Saving

extension RunLoop: SavedState {
  /// Whether the guest agrees to be moved. While the vCPU stands.
  var mayMigrate: Bool { registers.mayMigrate }

  /// Everything about the vCPU but its local APIC. While it stands at a boundary.
  func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    var engine = engine
    try lguest?.transfer(&archive, engine)
    try engine.transfer(&archive)
    var ahead = timestampOffset &- firstTimestampOffset
    try archive.transfer(&ahead, "distance of the time-stamp counter")
    timestampOffset = firstTimestampOffset &+ ahead
    engine.timestampOffset = timestampOffset
    try registers.transfer(&archive)
    engine.everyLevelLeavesForPages = registers.asyncPageFault.isForEveryLevel
    try archive.transfer(&isHalted, "halt")
    try archive.transfer(&isInUserSpace, "user space")
    try doorbell.transfer(&archive)
    guard archive.isRestoring else { return }
    if isInUserSpace { userSpaceBegan() }
    // Pages that were on their way have come, and nobody else will say so.
    if registers.asyncPageFault.hasReady { doorbell.endHalt() }
  }
}
