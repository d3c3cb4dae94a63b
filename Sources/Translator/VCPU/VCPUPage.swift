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
    unsafe UnsafeMutableRawPointer(pointer).advanced(by: MemoryLayout<chost_cpu>.offset(of: \.segments)!)
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
      let offset = MemoryLayout<chost_cpu>.offset(of: \.light_hypercall_result)! + Int(number) * 4
      unsafe UnsafeMutableRawPointer(pointer).storeBytes(of: answer, toByteOffset: offset, as: Int32.self)
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

/// Displacements from ENV of the page's slots that translated code uses; chost.h's order, checked by
/// `VCPUPageTests`.
enum Slot {
  static let flags: Int32 = 0
  static let pageAddress: Int32 = 8
  static let attention: Int32 = 16
  static let interruptWaiting: Int32 = 20
  static let tscOffset: Int32 = 24
  static let systemFlags: Int32 = 32
  static let scratch0: Int32 = 40
  static let scratch1: Int32 = 48
  static let linear: Int32 = 72
  static let exitInfo: Int32 = 80
  static let exitData: Int32 = 84
  /// The supervisor's stack entry; the user's follows.
  static let stack: Int32 = 88
  static let segments: Int32 = 128
  static let cr2: Int32 = 128 + 8 * 24 + 2 * 16 + 8
  static let cr3: Int32 = cr2 + 8
  static let kernelGSBase: Int32 = cr2 - 8 + 5 * 8 + 5 * 8
  static let xcr0: Int32 = kernelGSBase + 8 + 3 * 8
  static let tscAux: Int32 = xcr0 + 8
  static let tlbMissStub: Int32 = 672
  static let jumpMissStub: Int32 = 680
  static let stringStub: Int32 = 688
  static let lightStub: Int32 = 696
  static let stringOperation: Int32 = 704
  static let exitStub: Int32 = 840
  static let slotMissStub: Int32 = 856
  static let groupMissStub: Int32 = 864
  static let groups: Int32 = 880
  /// Of the supervisor's stack; the user's follows.
  static let shadowTop: Int32 = 728
  /// Of ES; those of CS, SS, DS, FS and GS follow.
  static let readBounds: Int32 = 952
  static let writeBounds: Int32 = readBounds + 6 * 8
  static let pauses: Int32 = writeBounds + 6 * 8
  static let simpleInstructions: Int32 = pauses + 8 + 4 + 16 * 4 + 4 + 16 * 8 + 4 * 8
  static let branchMissStub: Int32 = simpleInstructions + 8
  static let callMissStub: Int32 = branchMissStub + 8
  static let x87Environment: Int32 = callMissStub + 8
}
