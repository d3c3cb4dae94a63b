// SPDX-License-Identifier: Apache-2.0
// A vCPU's registers as people read them in a post-mortem: a few lines in the order of the kernel's own.

import X86

extension CPUState {
  /// Lines of registers, without a line break at the end.
  var text: String {
    let names = [
      "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15",
    ]
    let general = zip(names, registers).map { "\($0) \(CPUState.hex($1))" }
    var lines = ["RIP \(CPUState.hex(rip)) RFLAGS \(CPUState.hex(rflags, 8)) CPL \(cs.selector & 3)"]
    for row in stride(from: 0, to: general.count, by: 4) {
      lines.append(general[row..<min(row + 4, general.count)].joined(separator: " "))
    }
    lines.append(
      "CR0 \(CPUState.hex(cr0, 8)) CR2 \(CPUState.hex(cr2)) CR3 \(CPUState.hex(cr3)) CR4 \(CPUState.hex(cr4, 8)) "
        + "EFER \(CPUState.hex(efer, 4))")
    let segments = [("CS", cs), ("SS", ss), ("DS", ds), ("ES", es), ("FS", fs), ("GS", gs), ("TR", tr), ("LDTR", ldtr)]
    let texts = segments.map { name, segment in
      "\(name) \(CPUState.hex(UInt64(segment.selector), 4)):\(CPUState.hex(segment.base)) "
        + "\(CPUState.hex(UInt64(segment.attributes), 5))"
    }
    for row in stride(from: 0, to: texts.count, by: 4) { lines.append(texts[row..<row + 4].joined(separator: " ")) }
    lines.append(
      "GDT \(CPUState.hex(gdtr.base)) \(CPUState.hex(UInt64(gdtr.limit), 4)) "
        + "IDT \(CPUState.hex(idtr.base)) \(CPUState.hex(UInt64(idtr.limit), 4)) kernel GS \(CPUState.hex(kernelGSBase))"
    )
    return lines.joined(separator: "\n")
  }

  private static func hex(_ value: UInt64, _ digits: Int = 16) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }
}
