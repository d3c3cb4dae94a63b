// SPDX-License-Identifier: Apache-2.0
// Swift's view of the vCPU page (chost.h): named, typed access to the architectural state that translated code
// and the light helpers share. All pointer arithmetic into the page is here.

import CHost
import X86

/// A segment register number, in the manual's order.
enum SegmentRegister: Int, Sendable, CaseIterable {
  case es, cs, ss, ds, fs, gs, ldtr, tr
}

/// An exception to be delivered to the guest. `Fault` values are thrown by everything that executes a guest
/// instruction before the instruction has any effect.
struct Fault: Error, Equatable {
  var vector: UInt8
  /// Pushed for the vectors that have one.
  var errorCode: UInt32?
  /// The linear address, for #PF.
  var address: UInt64 = 0

  static let divideError = Fault(vector: Vector.divideError)
  static let debug = Fault(vector: Vector.debug)
  static let breakpoint = Fault(vector: Vector.breakpoint)
  static let overflow = Fault(vector: Vector.overflow)
  static let boundRange = Fault(vector: Vector.boundRange)
  static let invalidOpcode = Fault(vector: Vector.invalidOpcode)
  static let deviceNotAvailable = Fault(vector: Vector.deviceNotAvailable)
  static func doubleFault() -> Fault { Fault(vector: Vector.doubleFault, errorCode: 0) }
  static func invalidTSS(_ code: UInt32) -> Fault { Fault(vector: Vector.invalidTSS, errorCode: code) }
  static func segmentNotPresent(_ code: UInt32) -> Fault { Fault(vector: Vector.segmentNotPresent, errorCode: code) }
  static func stackFault(_ code: UInt32) -> Fault { Fault(vector: Vector.stackFault, errorCode: code) }
  static func generalProtection(_ code: UInt32 = 0) -> Fault {
    Fault(vector: Vector.generalProtection, errorCode: code)
  }
  static func pageFault(_ address: UInt64, code: UInt32) -> Fault {
    Fault(vector: Vector.pageFault, errorCode: code, address: address)
  }
  /// No exception: the page at guest-physical `physical` is still on its way.
  static func pageAbsent(_ physical: UInt64) -> Fault { Fault(vector: absence, address: physical) }
  static let absence: UInt8 = 255
  static let floatingPoint = Fault(vector: Vector.floatingPoint)
  static let alignmentCheck = Fault(vector: Vector.alignmentCheck, errorCode: 0)
  static let simdFloatingPoint = Fault(vector: Vector.simdFloatingPoint)

  init(vector: UInt8, errorCode: UInt32? = nil, address: UInt64 = 0) {
    self.vector = vector
    self.errorCode = errorCode
    self.address = address
  }
}

/// The vCPU page.
@safe struct VCPUPage: @unchecked Sendable {
  let pointer: UnsafeMutablePointer<chost_cpu>

  init(_ pointer: UnsafeMutablePointer<chost_cpu>) { unsafe self.pointer = pointer }

  /// What translated code calls ENV.
  var env: UInt64 { unsafe UInt64(UInt(bitPattern: pointer)) &+ UInt64(CHOST_ENV) }

  /// A field of the page.
  @inline(__always)
  subscript<T: BitwiseCopyable>(_ path: WritableKeyPath<chost_cpu, T>) -> T {
    get { unsafe pointer.pointee[keyPath: path] }
    nonmutating set { unsafe pointer.pointee[keyPath: path] = newValue }
  }

  /// RAX RCX RDX RBX RSP RBP RSI RDI R8...R15, by number 0...15 (masked).
  @inline(__always)
  subscript(register number: UInt8) -> UInt64 {
    get {
      unsafe UnsafeRawPointer(pointer).load(fromByteOffset: Int(number & 15) &* 8, as: UInt64.self)
    }
    nonmutating set {
      unsafe UnsafeMutableRawPointer(pointer).storeBytes(
        of: newValue, toByteOffset: Int(number & 15) &* 8, as: UInt64.self)
    }
  }

  /// A segment register with its hidden part.
  subscript(segment: SegmentRegister) -> chost_segment {
    get { unsafe segments[segment.rawValue] }
    nonmutating set { unsafe segments[segment.rawValue] = newValue }
  }

  private var segments: UnsafeMutablePointer<chost_segment> {
    unsafe UnsafeMutableRawPointer(pointer).advanced(by: Int(CHOST_ENV) + Int(CHOST_AT_SEGMENTS))
      .assumingMemoryBound(to: chost_segment.self)
  }

  /// How often `TranslationOptions.constantHypercalls` were answered.
  var constantHypercalls: [(number: UInt64, count: UInt64)] {
    let counts = self[\.count_hypercall]
    return unsafe withUnsafeBytes(of: counts) { bytes in
      unsafe bytes.bindMemory(to: UInt64.self).enumerated().filter { $0.element > 0 }.map {
        (UInt64($0.offset), $0.element)
      }
    }
  }

  /// Chooses the hypercalls that are answered without leaving translated code.
  func setConstantHypercalls(_ answers: [UInt64: Int32]) {
    for (number, answer) in answers where number < UInt64(CHOST_LIGHT_HYPERCALLS) {
      self[\.light_hypercalls] |= 1 << UInt32(number)
      unsafe withUnsafeMutableBytes(of: &pointer.pointee.light_hypercall_result) { results in
        unsafe results.storeBytes(of: answer, toByteOffset: Int(number) * 4, as: Int32.self)
      }
    }
  }

  /// Canonical RFLAGS.
  var rflags: UInt64 {
    get {
      let packed = self[\.flags]
      let status = packed >> 8 & 0xD5 | (packed & 1) << 11
      return status | UInt64(self[\.system_flags]) | 2
    }
    nonmutating set {
      self[\.flags] = VCPUPage.packed(newValue)
      self[\.system_flags] = UInt32(truncatingIfNeeded: newValue & RFLAGS.system)
    }
  }

  /// The arithmetic flags in LAHF layout: AL = OF, AH = the others.
  static func packed(_ rflags: UInt64) -> UInt64 { (rflags & 0xD5 | 2) << 8 | rflags >> 11 & 1 }

  /// CPL.
  var privilege: UInt8 { UInt8(truncatingIfNeeded: self[\.mode] & UInt32(CHOST_MODE_CPL)) }
  var isLongMode: Bool { self[\.mode] & UInt32(CHOST_MODE_LONG) != 0 }
  var isProtected: Bool { self[\.mode] & UInt32(CHOST_MODE_PROTECTED) != 0 }
  /// EFER.LMA.
  var isLMA: Bool { self[\.mode] & UInt32(CHOST_MODE_LMA) != 0 }
  /// EFLAGS.VM.
  var isVM86: Bool { self[\.mode] & UInt32(CHOST_MODE_VM86) != 0 }
  /// Recomputes the mode word; after every change of CR0, CR4, EFER, XCR0, CS, SS, DS, ES, TF, AC, VM, DR7.
  func updateMode() { unsafe chost_update_mode(pointer) }
}

extension chost_segment {
  var dpl: UInt8 { UInt8(truncatingIfNeeded: attributes >> 5 & 3) }
  var isPresent: Bool { attributes & 0x80 != 0 }
  var isUnusable: Bool { attributes & 0x10000 != 0 }
  var type: UInt8 { UInt8(truncatingIfNeeded: attributes & 15) }
  var isCodeOrData: Bool { attributes & 0x10 != 0 }
}

/// Displacements from ENV of the page's fields that translated code uses.
enum Slot {
  static let flags = Int32(CHOST_AT_FLAGS)
  static let pageAddress = Int32(CHOST_AT_PAGE_VA)
  static let attention = Int32(CHOST_AT_ATTENTION)
  static let interruptWaiting = Int32(CHOST_AT_INTERRUPT_WAITING)
  static let tscOffset = Int32(CHOST_AT_TSC_OFFSET)
  static let systemFlags = Int32(CHOST_AT_SYSTEM_FLAGS)
  static let scratch0 = Int32(CHOST_AT_SCRATCH0)
  static let scratch1 = Int32(CHOST_AT_SCRATCH1)
  static let linear = Int32(CHOST_AT_LINEAR)
  static let exitInfo = Int32(CHOST_AT_EXIT_INFO)
  static let exitData = Int32(CHOST_AT_EXIT_DATA)
  /// The supervisor's stack entry; the user's follows.
  static let stack = Int32(CHOST_AT_STACK)
  static let segments = Int32(CHOST_AT_SEGMENTS)
  static let cr2 = Int32(CHOST_AT_CR2)
  static let cr3 = Int32(CHOST_AT_CR3)
  static let kernelGSBase = Int32(CHOST_AT_KERNEL_GS_BASE)
  static let xcr0 = Int32(CHOST_AT_XCR0)
  static let tscAux = Int32(CHOST_AT_TSC_AUX)
  static let tlbMissStub = Int32(CHOST_AT_STUB_TLB_MISS)
  static let jumpMissStub = Int32(CHOST_AT_STUB_JUMP_MISS)
  static let stringStub = Int32(CHOST_AT_STUB_STRING)
  static let lightStub = Int32(CHOST_AT_STUB_LIGHT)
  static let stringOperation = Int32(CHOST_AT_STRING_OPERATION)
  static let exitStub = Int32(CHOST_AT_EXIT_STUB)
  static let slotMissStub = Int32(CHOST_AT_STUB_SLOT_MISS)
  static let groupMissStub = Int32(CHOST_AT_STUB_GROUP_MISS)
  static let groups = Int32(CHOST_AT_GROUPS)
  /// Of the supervisor's stack; the user's follows.
  static let shadowTop = Int32(CHOST_AT_SHADOW_TOP)
  /// Of ES; those of CS, SS, DS, FS and GS follow.
  static let readBounds = Int32(CHOST_AT_READ_BOUND)
  static let writeBounds = Int32(CHOST_AT_WRITE_BOUND)
  static let pauses = Int32(CHOST_AT_PAUSES)
  static let simpleInstructions = Int32(CHOST_AT_COUNT_SIMPLE)
  static let branchMissStub = Int32(CHOST_AT_STUB_BRANCH_MISS)
  static let callMissStub = Int32(CHOST_AT_STUB_CALL_MISS)
  static let x87Environment = Int32(CHOST_AT_X87_ENVIRONMENT)
}
