// SPDX-License-Identifier: Apache-2.0
// The kernel of a ring-1 guest in RAM, and where the vCPU begins: known before the machine is wired, and again when the
// guest restarts.

import Boot
import GuestMemory
import Paravirt
import X86

/// How a ring-1 guest begins.
struct LguestBeginning: Sendable {
  /// The vCPU at the kernel's first instruction.
  let state: CPUState
  /// What the host must know of where that is.
  let start: LguestStart
  /// What RAM holds then; nil: a restart ends the run.
  let memory: MemoryContent?
}

extension LguestBeginning {
  /// Loads a kernel.
  init(
    _ configuration: VirtualMachine.Configuration, loadedInto memory: GuestMemory
  ) throws(ConfigurationError) {
    do throws(BootError) {
      let kernel = try LguestBoot.load(
        KernelImage(configuration.kernel), initrd: configuration.initrd.map { InitialRAMDisk($0) },
        commandLine: configuration.commandLine.text(for: .lguest), byteCount: configuration.memorySize, into: memory)
      state = LguestHost.firstState(entry: kernel.entry)
      start = LguestStart(memorySize: configuration.memorySize, room: kernel.room, pageOffset: kernel.pageOffset)
    } catch { throw ConfigurationError(error) }
    do throws(MemoryError) { self.memory = configuration.restartsGuest ? try memory.content() : nil } catch {
      throw .cannotStart("\(error)")
    }
  }
}
