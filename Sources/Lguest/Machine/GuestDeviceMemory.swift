// SPDX-License-Identifier: Apache-2.0
// Guest RAM for devices: what they store is seen by translated code as the guest's own stores are.

import Devices
import GuestMemory
import Synchronization

/// Guest RAM for devices.
struct GuestDeviceMemory: DeviceMemory {
  let memory: GuestMemory

  func contains(_ address: UInt64, count: Int) -> Bool { memory.contains(GuestPhysical(address), count: count) }
  func bytes(at address: UInt64, count: Int) -> [UInt8]? {
    do throws(MemoryError) { return try memory.bytes(at: GuestPhysical(address), count: count) } catch { return nil }
  }
  func store(_ bytes: [UInt8], at address: UInt64) -> Bool {
    do throws(MemoryError) { try memory.copy(from: bytes, to: GuestPhysical(address)) } catch { return false }
    return true
  }
  func loadShort(at address: UInt64) -> UInt16? { load(at: address) }
  func storeShort(_ value: UInt16, at address: UInt64) -> Bool { store(value, at: address) }
  func loadWord(at address: UInt64) -> UInt32? { load(at: address) }
  func storeWord(_ value: UInt32, at address: UInt64) -> Bool { store(value, at: address) }

  private func load<T: FixedWidthInteger & BitwiseCopyable>(at address: UInt64) -> T? {
    do throws(MemoryError) { return try memory.load(T.self, at: GuestPhysical(address)) } catch { return nil }
  }
  /// After everything that was stored before.
  private func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) -> Bool {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    do throws(MemoryError) { try memory.store(value, at: GuestPhysical(address)) } catch { return false }
    return true
  }
}
