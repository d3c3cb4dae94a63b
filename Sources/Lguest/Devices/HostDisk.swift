// SPDX-License-Identifier: Apache-2.0
// A disk of a machine on the host: the file behind it, and the thread that waits for the file, so that no vCPU does.

import Devices
import Host
import Synchronization

/// A disk image as a medium.
struct HostDisk: BlockStore {
  let file: DiskFile
  let identity: String

  var sectorCount: UInt64 { file.byteCount / 512 }
  var isReadOnly: Bool { file.isReadOnly }
  func read(at offset: UInt64, count: Int) -> [UInt8]? { file.bytes(at: offset, count: count) }
  func write(_ bytes: [UInt8], at offset: UInt64) -> Bool { file.write(bytes, at: offset) }
  func flush() -> Bool { file.flush() }
}

/// The thread of a disk. Rung before `start`, it begins with work.
final class DiskThread: Sendable {
  private let thread = DeadlineThread()
  private let isStopping = Atomic(false)
  private let isStanding = Atomic(false)
  /// Of whoever may touch the guest's memory.
  private let turn = Mutex<Void>(())

  /// Whether another piece of work may begin, and whether one that has begun goes on.
  var begins: Bool { goesOn && !isStanding.load(ordering: .sequentiallyConsistent) }
  var goesOn: Bool { !isStopping.load(ordering: .relaxed) }

  /// Lets the piece of work end that is being done, and none begin.
  func pause() {
    isStanding.store(true, ordering: .sequentiallyConsistent)
    turn.withLock { _ in }
  }

  /// Lets work go on.
  func resume() {
    isStanding.store(false, ordering: .sequentiallyConsistent)
    ring()
  }

  /// Has `work` called soon. Any thread.
  func ring() { thread.ring() }

  /// - Parameters:
  ///   - number: The disk's, for the thread's name.
  ///   - work: Does what there is to do while `begins` and `goesOn` say so.
  func start(_ number: Int, _ sandbox: Sandbox?, _ work: @escaping @Sendable () -> Void) throws(HostError) {
    sandbox?.announce()
    do throws(HostError) {
      try thread.start(name: "lguest-disk\(number)", begin: { sandbox?.confine(.disk) }) { [self] in
        turn.withLock { _ in work() }
        return .max
      }
    } catch {
      sandbox?.retract(1)
      throw error
    }
  }

  /// Ends the thread after the piece of work that it is at, and waits for it.
  func stop() {
    isStopping.store(true, ordering: .relaxed)
    thread.stop()
  }
}
