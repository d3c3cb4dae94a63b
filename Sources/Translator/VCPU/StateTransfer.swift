// SPDX-License-Identifier: Apache-2.0
// `CPUState` in and out of the vCPU page, at a stopped boundary: what boot protocols fill in, tests compare and
// snapshots store.

import CHost
import Host
public import X86

extension TranslatedCPU {
  /// Bytes of an XSAVE image that `CPUState` holds.
  private static let imageBytes = 832

  private var image: UnsafeMutablePointer<UInt8> {
    unsafe (UnsafeMutableRawPointer(page.pointer) + Int(CHOST_ENV) + Int(CHOST_FPU)).assumingMemoryBound(to: UInt8.self)
  }

  public var state: CPUState {
    get {
      var s = processor.registers
      for index in 0..<TranslatedCPU.imageBytes { s.xsave[index] = unsafe image[index] }
      // FXSAVE has no header: x87 and SSE state are there, and another host may look at it.
      if page[\.uses_xsave] == 0 { s.xsave[XSAVEImage.components] |= 3 }
      s.interruptShadow = processor.state.interruptShadow != .none
      s.nmiBlocked = processor.state.nmiBlocked
      s.pendingInterrupt = pendingInterrupt
      s.pendingNMI = pendingNMI
      return s
    }
    set {
      let s = newValue
      for number in UInt8(0)..<16 { self[register: number] = s[register: number] }
      page[\.rip] = s.rip
      page.rflags = s.rflags
      set(.es, s.es)
      set(.cs, s.cs)
      set(.ss, s.ss)
      set(.ds, s.ds)
      set(.fs, s.fs)
      set(.gs, s.gs)
      set(.ldtr, s.ldtr)
      set(.tr, s.tr)
      page[\.gdtr] = chost_table(base: s.gdtr.base, limit: s.gdtr.limit, pad: (0, 0, 0))
      page[\.idtr] = chost_table(base: s.idtr.base, limit: s.idtr.limit, pad: (0, 0, 0))
      page[\.cr0] = s.cr0
      page[\.cr2] = s.cr2
      page[\.cr3] = s.cr3
      page[\.cr4] = s.cr4
      page[\.cr8] = s.cr8
      page[\.dr] = (s.dr0, s.dr1, s.dr2, s.dr3, 0, 0, s.dr6, s.dr7)
      page[\.efer] = s.efer
      page[\.star] = s.star
      page[\.lstar] = s.lstar
      page[\.cstar] = s.cstar
      page[\.sfmask] = s.sfmask
      page[\.kernel_gs_base] = s.kernelGSBase
      page[\.sysenter_cs] = s.sysenterCS
      page[\.sysenter_esp] = s.sysenterESP
      page[\.sysenter_eip] = s.sysenterEIP
      page[\.tsc_aux] = s.tscAux
      page[\.pat] = s.pat
      page[\.xcr0] = s.xcr0 & XSAVEImage.allComponents
      page[\.tsc_offset] = s.tscOffset
      for index in 0..<min(TranslatedCPU.imageBytes, s.xsave.count) { unsafe image[index] = s.xsave[index] }
      makeImageLoadable()
      processor.state.interruptShadow = s.interruptShadow ? .sti : .none
      processor.state.nmiBlocked = s.nmiBlocked
      pendingInterrupt = s.pendingInterrupt
      pendingNMI = s.pendingNMI
      slow = nil
      dropDeviceAccess()
      debuggerRequest.reset()
      processor.state.pendingDebug = 0
      processor.state.isRepeating = false
      processor.state.completion = .none
      page.updateMode()
      if s.cr0 & CR0.pg != 0 && s.cr4 & CR4.pae != 0 && !page.isLMA {
        // What MOV CR3 would have refused does not translate.
        do throws(Fault) { try processor.loadPDPTEs(s.cr3) } catch { page[\.pdpte] = (0, 0, 0, 0) }
      }
      busy { unsafe chost_flush_all(page.pointer) }
    }
  }

  /// Entering translated code loads the image, and nothing there may be answered with an exception: no bits of MXCSR
  /// and of the header that the host does not know (SDM volume 1, 13.8.1), no compacted format.
  private func makeImageLoadable() {
    let start = unsafe UnsafeMutableRawPointer(image)
    let mxcsr = unsafe start.load(fromByteOffset: XSAVEImage.mxcsr, as: UInt32.self) & HostCPU.mxcsrMask
    unsafe start.storeBytes(of: mxcsr, toByteOffset: XSAVEImage.mxcsr, as: UInt32.self)
    let components =
      unsafe start.load(fromByteOffset: XSAVEImage.components, as: UInt64.self) & XSAVEImage.allComponents
    unsafe start.storeBytes(of: components, toByteOffset: XSAVEImage.components, as: UInt64.self)
    for offset in XSAVEImage.header..<XSAVEImage.headerEnd { unsafe image[offset] = 0 }
  }

  private func set(_ register: SegmentRegister, _ s: Segment) {
    page[register] = chost_segment(
      base: s.base, limit: s.limit, attributes: s.attributes, selector: s.selector, pad: (0, 0, 0))
  }
}

extension Processor {
  /// What the vCPU page holds of the state, but for the XSAVE image.
  var registers: CPUState {
    var s = CPUState()
    for number in 0..<16 { s.registers[number] = page[register: UInt8(number)] }
    s.rip = page[\.rip]
    s.rflags = page.rflags
    s.es = segment(.es)
    s.cs = segment(.cs)
    s.ss = segment(.ss)
    s.ds = segment(.ds)
    s.fs = segment(.fs)
    s.gs = segment(.gs)
    s.ldtr = segment(.ldtr)
    s.tr = segment(.tr)
    s.gdtr = DescriptorTable(base: page[\.gdtr].base, limit: page[\.gdtr].limit)
    s.idtr = DescriptorTable(base: page[\.idtr].base, limit: page[\.idtr].limit)
    s.cr0 = page[\.cr0]
    s.cr2 = page[\.cr2]
    s.cr3 = page[\.cr3]
    s.cr4 = page[\.cr4]
    s.cr8 = page[\.cr8]
    let dr = page[\.dr]
    s.dr0 = dr.0
    s.dr1 = dr.1
    s.dr2 = dr.2
    s.dr3 = dr.3
    s.dr6 = dr.6
    s.dr7 = dr.7
    s.efer = page[\.efer]
    s.star = page[\.star]
    s.lstar = page[\.lstar]
    s.cstar = page[\.cstar]
    s.sfmask = page[\.sfmask]
    s.kernelGSBase = page[\.kernel_gs_base]
    s.sysenterCS = page[\.sysenter_cs]
    s.sysenterESP = page[\.sysenter_esp]
    s.sysenterEIP = page[\.sysenter_eip]
    s.tscAux = page[\.tsc_aux]
    s.pat = page[\.pat]
    s.xcr0 = page[\.xcr0]
    s.tscOffset = page[\.tsc_offset]
    return s
  }

  private func segment(_ register: SegmentRegister) -> Segment {
    let s = page[register]
    return Segment(selector: s.selector, base: s.base, limit: s.limit, attributes: s.attributes)
  }
}
