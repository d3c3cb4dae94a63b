// SPDX-License-Identifier: Apache-2.0
// The displacements that emitted code uses are the C struct's.

import CHost
import Testing

@testable import Translator

@Suite struct VCPUPageTests {
  @Test func slotsMatchTheStruct() {
    func displacement<T>(_ path: PartialKeyPath<chost_cpu>, _ type: T.Type = T.self) -> Int32 {
      Int32(MemoryLayout<chost_cpu>.offset(of: path)!) - Int32(CHOST_ENV)
    }
    let pairs: [(Int32, PartialKeyPath<chost_cpu>)] = [
      (Slot.flags, \.flags), (Slot.pageAddress, \.page_va), (Slot.attention, \.attention),
      (Slot.interruptWaiting, \.interrupt_waiting), (Slot.tscOffset, \.tsc_offset), (Slot.systemFlags, \.system_flags),
      (Slot.scratch0, \.scratch), (Slot.exitInfo, \.exit_info), (Slot.exitData, \.exit_data),
      (Slot.exitStub, \.exit_stub),
      (Slot.segments, \.segments), (Slot.cr2, \.cr2), (Slot.cr3, \.cr3), (Slot.kernelGSBase, \.kernel_gs_base),
      (Slot.xcr0, \.xcr0), (Slot.tscAux, \.tsc_aux), (Slot.tlbMissStub, \.stub_tlb_miss),
      (Slot.jumpMissStub, \.stub_jump_miss), (Slot.branchMissStub, \.stub_branch_miss),
      (Slot.callMissStub, \.stub_call_miss), (Slot.x87Environment, \.x87_environment),
      (Slot.stringStub, \.stub_string), (Slot.lightStub, \.stub_light), (Slot.shadowTop, \.shadow_top),
      (Slot.readBounds, \.read_bound),
      (Slot.writeBounds, \.write_bound), (Slot.pauses, \.pauses), (Slot.linear, \.linear),
      (Slot.stringOperation, \.string_operation),
      (Slot.stack, \.stack), (Slot.slotMissStub, \.stub_slot_miss), (Slot.groupMissStub, \.stub_group_miss),
      (Slot.groups, \.groups),
    ]
    for (slot, path) in pairs { #expect(slot == displacement(path, Int.self)) }
    #expect(MemoryLayout<chost_segment>.stride == 24)
    #expect(MemoryLayout<chost_segment>.offset(of: \.selector) == 16)
  }
}
