// SPDX-License-Identifier: Apache-2.0
// Xen's PVH protocol, which ELF kernels of several systems offer: flat protected mode, paging off, EBX holds a
// start-information record (Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h).

import GuestMemory
import X86

enum PVHBoot {
  private static let moduleList = BootLayout.startInfo + 0x40
  private static let memoryMap = BootLayout.startInfo + 0x80

  /// Writes the start information and the descriptor table and returns the CPU at `entry`.
  static func prepare(
    _ memory: GuestMemory, entry: UInt64, initrd: Range<UInt64>?, rsdp: UInt64
  ) throws(BootError) -> CPUState {
    let map = MemoryRange.map(of: memory)
    var info: [UInt8] = []
    info.appendLittle(UInt32(0x336E_C578))  // magic: "xEn3" with the top bit of the E set
    info.appendLittle(UInt32(1))  // version: with a memory map
    info.appendLittle(UInt32(0))  // flags
    info.appendLittle(UInt32(initrd == nil ? 0 : 1))  // modules
    info.appendLittle(initrd == nil ? 0 : moduleList)
    info.appendLittle(BootLayout.commandLine)
    info.appendLittle(rsdp)
    info.appendLittle(memoryMap)
    info.appendLittle(UInt32(map.count))
    info.appendLittle(UInt32(0))
    try memory.place(info, at: BootLayout.startInfo)

    var module: [UInt8] = []
    if let initrd {
      for word in [initrd.lowerBound, initrd.upperBound - initrd.lowerBound, 0, 0] { module.appendLittle(word) }
    }
    try memory.place(module, at: moduleList)

    var entries: [UInt8] = []
    for range in map {
      entries.appendLittle(range.start)
      entries.appendLittle(range.end - range.start)
      entries.appendLittle(range.kind.rawValue)
      entries.appendLittle(UInt32(0))
    }
    try memory.place(entries, at: memoryMap)

    var state = try FlatSegments.install(in: memory, code: .flatCode32)
    state.cr0 = CR0.et | CR0.pe
    state.rip = entry
    state[register: GPR.rbx] = BootLayout.startInfo
    return state
  }
}
