// SPDX-License-Identifier: Apache-2.0
// A guest small enough to see whole: 16 MiB of RAM on the heap, one vCPU page, descriptor tables at fixed places.
// Tests of the system instructions set it up in the mode they are about and execute one instruction at a time.

import CHost
import Glibc

@testable import Translator
@testable import X86

/// Where things are in the test guest's memory.
enum Place {
  static let gdt: UInt64 = 0x1000, idt: UInt64 = 0x2000, tss: UInt64 = 0x3000, ldt: UInt64 = 0x4000
  static let tss2: UInt64 = 0x5000
  static let pml4: UInt64 = 0x1_0000, pdpt: UInt64 = 0x1_1000, pd: UInt64 = 0x1_2000
  static let kernelStack: UInt64 = 0x20_0000, userStack: UInt64 = 0x30_0000, interruptStack: UInt64 = 0x28_0000
  static let kernelCode: UInt64 = 0x40_0000, userCode: UInt64 = 0x50_0000
  static let handlers: UInt64 = 0x60_0000
  /// 2 MiB that only the supervisor may use, and 2 MiB that are not mapped.
  static let supervisorOnly: UInt64 = 0x80_0000, unmapped: UInt64 = 0xA0_0000
  static let data: UInt64 = 0x70_0000
}

enum Selector {
  static let kernelCode: UInt16 = 0x08, kernelData: UInt16 = 0x10, userCode32: UInt16 = 0x1B, userData: UInt16 = 0x23
  static let userCode64: UInt16 = 0x2B, tss: UInt16 = 0x30, ldt: UInt16 = 0x40, gate: UInt16 = 0x50
  static let absent: UInt16 = 0x60, readOnly: UInt16 = 0x68, executeOnly: UInt16 = 0x70, conforming: UInt16 = 0x78
  static let tss2: UInt16 = 0x80, taskGate: UInt16 = 0x88, unaccessed: UInt16 = 0x90
}

@safe
final class TestGuest {
  static let size = 16 << 20
  let ram: UnsafeMutableRawPointer
  let flags: UnsafeMutablePointer<UInt8>
  let memory: UnsafeMutableRawPointer
  let processor: Processor
  var page: VCPUPage { processor.page }
  var state: ProcessorState { processor.state }

  init(cpuid: CPUIDTable = TestGuest.model) {
    // Zero, and taken as it is used.
    unsafe ram = mmap(nil, Self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    unsafe flags = UnsafeMutablePointer<UInt8>.allocate(capacity: Self.size >> 12)
    unsafe flags.initialize(repeating: 0, count: Self.size >> 12)
    let bytes = Int(CHOST_PAGE_BYTES)
    unsafe memory = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    let cpu = unsafe memory.bindMemory(to: chost_cpu.self, capacity: 1)
    processor = Processor(page: unsafe VCPUPage(cpu), state: ProcessorState(cpuid: cpuid))
    unsafe chost_reset_tables(cpu)
    page[\.ram] = unsafe UInt64(UInt(bitPattern: ram))
    page[\.ram_low_end] = UInt64(Self.size)
    page[\.page_flags] = unsafe UInt64(UInt(bitPattern: flags))
    page[\.physical_mask] = (1 << 40) - 1
    page[\.xcr0] = 1
    page[\.pat] = 0x0007_0406_0007_0406
    page[\.dr.6] = DR6.ones
    page[\.dr.7] = DR7.ones
    page[.ldtr] = .real(selector: 0, attributes: 0x82)
    page[.tr] = .real(selector: 0, attributes: 0x8B)
    page.rflags = 2
  }

  deinit {
    unsafe munmap(ram, Self.size)
    unsafe flags.deallocate()
    unsafe memory.deallocate()
  }

  // MARK: Memory

  func poke<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: UInt64) {
    unsafe ram.storeBytes(of: value, toByteOffset: Int(address), as: T.self)
  }

  func peek<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type = T.self, at address: UInt64) -> T {
    unsafe ram.loadUnaligned(fromByteOffset: Int(address), as: T.self)
  }

  func setGDT(_ selector: UInt16, _ low: UInt64, _ high: UInt64? = nil) {
    poke(low, at: Place.gdt + UInt64(selector & 0xFFF8))
    if let high { poke(high, at: Place.gdt + UInt64(selector & 0xFFF8) + 8) }
  }

  /// A descriptor with everything but the access byte and flags of a TSS, LDT or the like.
  static func system(base: UInt64, limit: UInt64, access: UInt64) -> UInt64 {
    limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | (base >> 24 & 0xFF) << 56
  }

  /// A gate descriptor; `extra` is the IST or the parameter count.
  static func gate(_ selector: UInt16, _ offset: UInt64, access: UInt64, extra: UInt64 = 0) -> UInt64 {
    offset & 0xFFFF | UInt64(selector) << 16 | extra << 32 | access << 40 | (offset >> 16 & 0xFFFF) << 48
  }

  func setLongGate(_ vector: UInt8, access: UInt64 = 0x8E, stack: UInt64 = 0, selector: UInt16 = Selector.kernelCode) {
    let offset = TestGuest.handler(vector)
    poke(TestGuest.gate(selector, offset, access: access, extra: stack), at: Place.idt + UInt64(vector) * 16)
    poke(UInt64(0), at: Place.idt + UInt64(vector) * 16 + 8)
  }

  func setGate(_ vector: UInt8, access: UInt64 = 0x8E, selector: UInt16 = Selector.kernelCode) {
    poke(TestGuest.gate(selector, TestGuest.handler(vector), access: access), at: Place.idt + UInt64(vector) * 8)
  }

  static func handler(_ vector: UInt8) -> UInt64 { Place.handlers + UInt64(vector) * 16 }

  // MARK: Modes

  private func commonDescriptors() {
    setGDT(Selector.userCode32, 0x00CF_FB00_0000_FFFF)
    setGDT(Selector.kernelData, 0x00CF_9300_0000_FFFF)
    setGDT(Selector.userData, 0x00CF_F300_0000_FFFF)
    setGDT(Selector.absent, 0x00CF_1300_0000_FFFF)
    setGDT(Selector.readOnly, 0x00CF_F100_0000_FFFF)
    setGDT(Selector.executeOnly, 0x00CF_F900_0000_FFFF)
    setGDT(Selector.unaccessed, 0x00CF_F200_0000_FFFF)
    var table = chost_table()
    table.base = Place.gdt
    table.limit = 0xFF
    page[\.gdtr] = table
    table.base = Place.idt
    table.limit = 0xFFF
    page[\.idtr] = table
  }

  /// 64-bit mode at level 0 or 3, with identity paging.
  func enterLong(privilege: UInt8 = 0) {
    commonDescriptors()
    setGDT(Selector.kernelCode, 0x00AF_9B00_0000_FFFF)
    setGDT(Selector.userCode64, 0x00AF_FB00_0000_FFFF)
    setGDT(Selector.conforming, 0x00AF_9F00_0000_FFFF)
    setGDT(Selector.tss, TestGuest.system(base: Place.tss, limit: 0x67, access: 0x8B), 0)
    setGDT(Selector.ldt, TestGuest.system(base: Place.ldt, limit: 0x1F, access: 0x82), 0)
    poke(Place.pdpt | 7, at: Place.pml4)
    poke(Place.pd | 7, at: Place.pdpt)
    for index in UInt64(0)..<8 {
      let address = index << 21
      let rights: UInt64 = address == Place.supervisorOnly ? 0x83 : address == Place.unmapped ? 0 : 0x87
      poke(address | rights, at: Place.pd + index * 8)
    }
    poke(Place.kernelStack, at: Place.tss + 4)
    poke(Place.interruptStack, at: Place.tss + 36)
    poke(UInt16(0x68), at: Place.tss + 102)
    page[\.cr0] = CR0.pe | CR0.pg | CR0.et | CR0.wp
    page[\.cr3] = Place.pml4
    page[\.cr4] = CR4.pae | CR4.pge | CR4.osfxsr
    page[\.efer] = EFER.sce | EFER.lme | EFER.lma | EFER.nxe
    page[.tr] = Descriptor(low: peek(at: Place.gdt + UInt64(Selector.tss))).segment(Selector.tss)
    page[.ldtr] = .unusable(selector: 0)
    load(
      code: privilege == 0 ? Selector.kernelCode : Selector.userCode64,
      data: privilege == 0 ? Selector.kernelData : Selector.userData)
    page[\.rip] = privilege == 0 ? Place.kernelCode : Place.userCode
    page[register: GPR.rsp] = privilege == 0 ? Place.kernelStack - 0x1000 : Place.userStack
    page.updateMode()
  }

  /// 32-bit protected mode at level 0 or 3, without paging.
  func enterProtected(privilege: UInt8 = 0) {
    commonDescriptors()
    setGDT(Selector.kernelCode, 0x00CF_9B00_0000_FFFF)
    setGDT(Selector.conforming, 0x00CF_9F00_0000_FFFF)
    setGDT(Selector.tss, TestGuest.system(base: Place.tss, limit: 0xFF, access: 0x8B))
    setGDT(Selector.ldt, TestGuest.system(base: Place.ldt, limit: 0x1F, access: 0x82))
    setGDT(Selector.tss2, TestGuest.system(base: Place.tss2, limit: 0x67, access: 0x89))
    setGDT(Selector.taskGate, TestGuest.gate(Selector.tss2, 0, access: 0xE5))
    poke(UInt32(Place.kernelStack), at: Place.tss + 4)
    poke(UInt32(Selector.kernelData), at: Place.tss + 8)
    poke(UInt16(0x88), at: Place.tss + 102)
    page[\.cr0] = CR0.pe | CR0.et
    page[.tr] = Descriptor(low: peek(at: Place.gdt + UInt64(Selector.tss))).segment(Selector.tss)
    page[.ldtr] = .unusable(selector: 0)
    load(
      code: privilege == 0 ? Selector.kernelCode : Selector.userCode32,
      data: privilege == 0 ? Selector.kernelData : Selector.userData)
    page[\.rip] = privilege == 0 ? Place.kernelCode : Place.userCode
    page[register: GPR.rsp] = privilege == 0 ? Place.kernelStack - 0x1000 : Place.userStack
    page.updateMode()
  }

  /// Virtual-8086 mode, with CR4.VME.
  func enterVirtual8086() {
    enterProtected(privilege: 3)
    page[\.cr4] = CR4.vme
    page.rflags = RFLAGS.vm | 2
    for register in [SegmentRegister.es, .cs, .ss, .ds, .fs, .gs] {
      page[register] = .real(selector: 0x1000, attributes: 0xF3)
    }
    page.updateMode()
  }

  /// Real-address mode.
  func enterReal() {
    for register in [SegmentRegister.es, .ss, .ds, .fs, .gs] { page[register] = .real(selector: 0, attributes: 0x93) }
    page[.cs] = .real(selector: 0, attributes: 0x9B)
    var table = chost_table()
    table.limit = 0x3FF
    page[\.idtr] = table
    page[\.cr0] = CR0.et
    page[\.rip] = 0x800
    page[register: GPR.rsp] = 0x7000
    page.updateMode()
  }

  private func load(code: UInt16, data: UInt16) {
    page[.cs] = Descriptor(low: peek(at: Place.gdt + UInt64(code & 0xFFF8))).segment(code)
    for register in [SegmentRegister.es, .ss, .ds, .fs, .gs] {
      page[register] = Descriptor(low: peek(at: Place.gdt + UInt64(data & 0xFFF8))).segment(data)
    }
  }

  // MARK: Instructions

  var code: CodeSize {
    page.isLongMode ? .code64 : processor.mode(CHOST_MODE_CODE32) ? .code32 : .code16
  }

  /// An instruction of the current mode with its default sizes.
  func instruction(_ opcode: UInt8, length: UInt8 = 1, _ edit: (inout Instruction) -> Void = { _ in }) -> Instruction {
    var instruction = Instruction()
    instruction.row = 1
    instruction.length = length
    instruction.code = code
    instruction.opcode = opcode
    instruction.operandSize = code == .code16 ? 2 : 4
    instruction.addressSize = code == .code16 ? 2 : code == .code32 ? 4 : 8
    edit(&instruction)
    return instruction
  }

  @discardableResult
  func execute(_ instruction: Instruction, map: OpcodeMap = .one) throws(Fault) -> SystemOutcome {
    try processor.execute(instruction, row: TestGuest.row(of: instruction, map))
  }

  /// The row of an instruction that is given by its fields: of its mandatory prefix, if there is one; 0 for none.
  private static func row(of instruction: Instruction, _ map: OpcodeMap) -> Opcode {
    let table = OpcodeTable.shared
    let prefix: MandatoryPrefix =
      switch instruction.repeatPrefix {
      case 0xF3: .pF3
      case 0xF2: .pF2
      default: instruction.hasOperandSizePrefix ? .p66 : .none
      }
    for wanted in [prefix, .any] {
      for number in 1..<UInt16(table.count) {
        let row = table[number]
        let byte = row.form == .plus ? instruction.opcode & ~7 : instruction.opcode
        if row.map == map, row.byte == byte, row.prefix == wanted, matches(row, instruction) { return row }
      }
    }
    return table[0]
  }

  private static func matches(_ row: Opcode, _ instruction: Instruction) -> Bool {
    let field = Int(instruction.modRM >> 3 & 7)
    let extensions: [Form] = [.ext0, .ext1, .ext2, .ext3, .ext4, .ext5, .ext6, .ext7]
    let kinds: [Form] =
      instruction.isMemory
      ? [.mem0, .mem1, .mem2, .mem3, .mem4, .mem5, .mem6, .mem7]
      : [.reg0, .reg1, .reg2, .reg3, .reg4, .reg5, .reg6, .reg7]
    return switch row.form {
    case .plain, .plus, .modRM: true
    case .memory: instruction.isMemory
    case .register: !instruction.isMemory
    case .exact: instruction.modRM == row.exact
    default: extensions[field] == row.form || kinds[field] == row.form
    }
  }

  /// Executes a one-byte-map instruction and returns what it raised.
  func fault(_ instruction: Instruction, map: OpcodeMap = .one) -> Fault? {
    do throws(Fault) {
      _ = try execute(instruction, map: map)
      return nil
    } catch { return error }
  }

  /// 0F-map instruction with a register ModRM.
  func twoByte(
    _ opcode: UInt8, reg: UInt8 = 0, rm: UInt8 = 0, length: UInt8 = 3, _ edit: (inout Instruction) -> Void = { _ in }
  )
    -> Instruction
  {
    instruction(opcode, length: length) {
      $0.hasModRM = true
      $0.modRM = 0xC0 | (reg & 7) << 3 | rm & 7
      $0.reg = reg
      $0.rm = rm
      edit(&$0)
    }
  }

  /// Makes the operand a memory one at an absolute address.
  static func memory(_ instruction: inout Instruction, _ address: UInt64, reg: UInt8 = 0) {
    instruction.hasModRM = true
    instruction.modRM = (reg & 7) << 3 | 5
    instruction.reg = reg
    instruction.base = 0xFF
    instruction.displacement = Int32(truncatingIfNeeded: address)
    instruction.segment = 3
  }

  func setRegister(_ number: UInt8, _ value: UInt64) { page[register: number] = value }
  func register(_ number: UInt8) -> UInt64 { page[register: number] }

  /// A model like the one the machine uses.
  static let model = CPUIDTable([
    .init(0, eax: 0xD, ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69),
    .init(1, eax: 0x106CA, ecx: 1 << 26 | 1 << 28 | 1 << 23, edx: 0x178B_FBFF),
    .init(7, subleaf: 0, ebx: 1 | 1 << 7),
    .init(0xD, subleaf: 0, eax: 7, ebx: 832, ecx: 832),
    .init(0xD, subleaf: 1, eax: 0),
    .init(0x8000_0000, eax: 0x8000_0008),
    .init(0x8000_0001, edx: 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29),
  ])
}
