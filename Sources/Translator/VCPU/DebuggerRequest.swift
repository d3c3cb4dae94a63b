// SPDX-License-Identifier: Apache-2.0
// A debugger's requests: single steps and breakpoints that the guest does not know of. While there are any, every
// instruction is a block of its own.

/// What a debugger asks for, and how far it has been told.
final class DebuggerRequest {
  var isSingleStepping = false
  var breakpoints: Set<UInt64> = []
  /// An instruction has begun, and nobody has heard of its end.
  private var hasBegun = false
  /// The breakpoint at RIP has been told of: the instruction may run.
  private var hasTold = false

  /// An instruction is about to begin.
  func beginStep() {
    hasBegun = isSingleStepping
    hasTold = false
  }

  /// It has not begun.
  func forgetStep() { hasBegun = false }

  /// No instruction is half done: whether one has ended since the last time.
  func endStep() -> Bool {
    defer { hasBegun = false }
    return hasBegun
  }

  /// Whether the instruction at an address must wait until the debugger has been told.
  func stops(at address: UInt64) -> Bool {
    guard !hasTold, breakpoints.contains(address) else { return false }
    hasTold = true
    return true
  }
}

extension TranslatedCPU {
  public var isSingleStepping: Bool {
    get { debugger?.isSingleStepping ?? false }
    set { change { $0.isSingleStepping = newValue } }
  }

  public var breakpoints: Set<UInt64> {
    get { debugger?.breakpoints ?? [] }
    set { change { $0.breakpoints = newValue } }
  }

  private func change(_ body: (DebuggerRequest) -> Void) {
    let request = debugger ?? DebuggerRequest()
    body(request)
    debugger = request.isSingleStepping || !request.breakpoints.isEmpty ? request : nil
  }
}
