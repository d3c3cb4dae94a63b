// SPDX-License-Identifier: Apache-2.0
// A debugger's requests: single steps and breakpoints that the guest does not know of. While there are any, every
// instruction is a block of its own.

/// What a debugger asks for, and how far it has been told.
final class DebuggerRequest {
  var isSingleStepping = false
  var breakpoints: Set<UInt64> = []
  /// An instruction has begun, and nobody has heard of its end.
  private var hasBegun = false
  /// The breakpoint that was told of last, until its instruction begins.
  private var told: UInt64?
  /// What that was when the instruction began.
  private var toldBefore: UInt64?

  var isEmpty: Bool { !isSingleStepping && breakpoints.isEmpty }

  /// An instruction is about to begin.
  func beginStep() {
    hasBegun = isSingleStepping
    toldBefore = told
    told = nil
  }

  /// It has had no effect, and begins again.
  func forgetStep() {
    hasBegun = false
    told = toldBefore
  }

  /// No instruction is half done: whether one has ended since the last time, and the debugger wants to know.
  func endStep() -> Bool {
    defer { hasBegun = false }
    return hasBegun && isSingleStepping
  }

  /// Whether the instruction at an address must wait until the debugger has been told.
  func stops(at address: UInt64) -> Bool {
    guard told != address, breakpoints.contains(address) else { return false }
    told = address
    return true
  }

  /// The state has been replaced.
  func reset() {
    hasBegun = false
    told = nil
    toldBefore = nil
  }
}

extension TranslatedCPU {
  /// The requests, if there are any.
  var debugger: DebuggerRequest? { debuggerRequest.isEmpty ? nil : debuggerRequest }

  public var isSingleStepping: Bool {
    get { debuggerRequest.isSingleStepping }
    set { debuggerRequest.isSingleStepping = newValue }
  }

  public var breakpoints: Set<UInt64> {
    get { debuggerRequest.breakpoints }
    set { debuggerRequest.breakpoints = newValue }
  }
}
