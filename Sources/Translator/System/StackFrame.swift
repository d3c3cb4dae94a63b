// SPDX-License-Identifier: Apache-2.0
// The frames that interrupts and inter-privilege calls push. A frame is built on a stack that need not be the
// current one, is checked as a whole before a byte of it is written, and becomes the stack only on commit.

import CHost
import X86

/// A stack that is being pushed to.
struct StackFrame {
  /// The stack segment, loaded or about to be.
  var segment: chost_segment
  var pointer: UInt64
  var mask: UInt64
  var authority: Authority
  /// 64-bit mode: no segmentation.
  var long: Bool
  /// Whether descriptor types are checked (protected mode).
  var typed: Bool
  /// Error code of #SS.
  var code: UInt32 = 0
  /// Translated bytes below the starting pointer; nil where a 16-bit stack wraps around inside the frame.
  var memory: LinearSpan?
  /// Bytes of `memory` not yet pushed.
  var left = 0
}

extension Processor {
  /// The current stack.
  func currentFrame(_ authority: Authority? = nil) -> StackFrame {
    StackFrame(
      segment: page[.ss], pointer: stackPointer, mask: stackMask, authority: authority ?? self.authority,
      long: page.isLongMode, typed: usesDescriptors)
  }

  /// Checks that `count` elements of `size` bytes can be pushed.
  func reserve(_ frame: inout StackFrame, _ count: Int, size: UInt8) throws(Fault) {
    let bytes = count &* Int(size)
    let bottom = (frame.pointer &- UInt64(truncatingIfNeeded: bytes)) & frame.mask
    if bottom < frame.pointer || frame.mask == .max {
      let linear = try Processor.linear(
        frame.segment, register: .ss, bottom, size: bytes, write: true, long: frame.long, typed: frame.typed,
        code: frame.code)
      frame.memory = try spanForStack(linear, bytes, frame)
      frame.left = bytes
    } else {
      var pointer = frame.pointer
      for _ in 0..<count {
        pointer = (pointer &- UInt64(size)) & frame.mask
        let linear = try Processor.linear(
          frame.segment, register: .ss, pointer, size: Int(size), write: true, long: frame.long, typed: frame.typed,
          code: frame.code)
        _ = try spanForStack(linear, Int(size), frame)
      }
    }
  }

  private func spanForStack(_ linear: UInt64, _ count: Int, _ frame: StackFrame) throws(Fault) -> LinearSpan {
    try span(linear, count: count, write: true, as: frame.authority, stack: true)
  }

  /// Pushes one element of a reserved frame.
  func push(_ value: UInt64, size: UInt8, _ frame: inout StackFrame) throws(Fault) {
    frame.pointer = (frame.pointer &- UInt64(size)) & frame.mask
    if let memory = frame.memory {
      frame.left &-= Int(size)
      store(value, memory, at: frame.left, size: size)
    } else {
      let linear = try Processor.linear(
        frame.segment, register: .ss, frame.pointer, size: Int(size), write: true, long: frame.long,
        typed: frame.typed, code: frame.code)
      store(value, try spanForStack(linear, Int(size), frame), size: size)
    }
  }

  // MARK: Stacks in the TSS

  /// The 64-bit stack pointer at `offset` of the TSS.
  func longStackPointer(tssOffset offset: UInt32) throws(Fault) -> UInt64 {
    let task = page[.tr]
    guard !task.isUnusable, offset &+ 7 <= task.limit else { throw SelectorFault.invalidTSS(task.selector) }
    let pointer = try read(UInt64.self, at: task.base &+ UInt64(offset), as: .implicit)
    guard Processor.isCanonical(pointer) else { throw .stackFault(0) }
    return pointer
  }

  /// SS and ESP of a privilege level, from a 16- or 32-bit TSS.
  func taskStack(_ privilege: UInt8) throws(Fault) -> (selector: UInt16, pointer: UInt64) {
    let task = page[.tr]
    let level = UInt32(privilege)
    if task.type & 8 != 0 {
      guard !task.isUnusable, level &* 8 &+ 4 &+ 5 <= task.limit else { throw SelectorFault.invalidTSS(task.selector) }
      let address = task.base &+ UInt64(level &* 8 &+ 4)
      let pointer = try read(UInt32.self, at: address, as: .implicit)
      return (try read(UInt16.self, at: address &+ 4, as: .implicit), UInt64(pointer))
    }
    guard !task.isUnusable, level &* 4 &+ 2 &+ 3 <= task.limit else { throw SelectorFault.invalidTSS(task.selector) }
    let address = task.base &+ UInt64(level &* 4 &+ 2)
    let pointer = try read(UInt16.self, at: address, as: .implicit)
    return (try read(UInt16.self, at: address &+ 2, as: .implicit), UInt64(pointer))
  }

  /// A frame on the stack that the TSS holds for an inner privilege level, in IA-32e mode: SS is null there.
  func longFrame(privilege: UInt8, pointer: UInt64) -> StackFrame {
    StackFrame(
      segment: .unusable(selector: UInt16(privilege), dpl: privilege), pointer: pointer, mask: .max,
      authority: authority(at: privilege), long: true, typed: true)
  }

  /// The same in legacy protected mode, with the checks of the SS in the TSS.
  func innerFrame(privilege: UInt8) throws(Fault) -> StackFrame {
    let (selector, pointer) = try taskStack(privilege)
    let segment = try stackSegment(selector, privilege: privilege, or: .invalidTSS)
    let mask: UInt64 = segment.attributes & 0x4000 != 0 ? 0xFFFF_FFFF : 0xFFFF
    return StackFrame(
      segment: segment, pointer: pointer & mask, mask: mask, authority: authority(at: privilege), long: false,
      typed: true, code: UInt32(selector & 0xFFFC))
  }

  /// Makes a frame's stack the current one.
  func adopt(_ frame: StackFrame) {
    page[.ss] = frame.segment
    setStackPointer(frame.pointer, mask: frame.mask)
  }
}
