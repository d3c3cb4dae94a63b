// SPDX-License-Identifier: Apache-2.0
// The paths of a pass: which is followed, which wait for the hot path, and the edges that may be linked to other blocks.
// A path into cold code is followed at once; what it knows where it comes back waits there.

extension CheckPass {
  /// Works out where the current path has to stop next.
  mutating func updateStop() {
    if isCold {
      stop = block.cold.upperBound
      return
    }
    stop = min(block.hot.upperBound, nextEntry)
    var left = waiting
    while left != 0 {
      stop = min(stop, places[left.trailingZeroBitCount & 15])
      left &= left &- 1
    }
    stop = min(stop, miss.place)
  }

  /// The path has come to its stop, or beyond.
  mutating func arrive() {
    clearingNext = 0
    if isCold || place == block.hot.upperBound { return refuse(.end) }
    if place > stop { return refuse(.middle) }
    if place == miss.place {
      join(miss)
      miss = CheckPass.noMiss
    }
    var left = waiting
    while left != 0 {
      let number = left.trailingZeroBitCount
      left &= left &- 1
      guard places[number & 15] == place else { continue }
      join(states[number])
      release(number)
    }
    if place == nextEntry {
      // Whoever comes from outside knows nothing but where the shadow stack is.
      if isPushed { return refuse(.frame) }
      hideSecrets()
      forget()
      nextEntry = nextEntry < block.plainEntry ? block.plainEntry : Int.max
    }
    updateStop()
  }

  @inline(__always)
  mutating func release(_ number: Int) {
    used &= ~(1 << UInt32(truncatingIfNeeded: number))
    waiting &= ~(1 << UInt32(truncatingIfNeeded: number))
  }

  /// A copy of what is known here; its number, or -1.
  mutating func fork() -> Int {
    let number = (~used).trailingZeroBitCount
    guard number < CheckedStates.count else {
      refuse(.size)
      return -1
    }
    used |= 1 << UInt32(truncatingIfNeeded: number)
    states[number].copy(from: state)
    return number
  }

  /// State `number` comes to `target` in the hot half, which the hot path has not passed yet.
  mutating func wait(_ number: Int, at target: Int) {
    guard target >= hotPlace && target < block.hot.upperBound else { return refuse(.branch) }
    places[number & 15] = target
    waiting |= 1 << UInt32(truncatingIfNeeded: number)
    if !isCold { updateStop() }
  }

  /// State `number` goes on at `place`, when the current path has ended.
  mutating func push(_ number: Int, at place: Int) {
    guard pathCount < CheckedStates.count else { return refuse(.size) }
    places[number & 15] = place
    paths[pathCount & 15] = UInt8(truncatingIfNeeded: number)
    pathCount &+= 1
  }

  /// The current path goes on as state `number` at `place`.
  mutating func go(_ number: Int, to place: Int) {
    clearingNext = 0
    steps &+= 1
    if steps > CheckPass.mostSteps { refuse(.size) }
    current = number
    state = states[number]
    next = place
    isCold = block.cold.contains(place)
    updateStop()
  }

  /// A branch that may be taken, to `target`. In cold code both ways are followed, the branch's first. `passing`: the
  /// comparison before it has shown something to who goes on behind it.
  mutating func mayBranch(to target: Int, passing: Bool = false) {
    if !isCold { hotPlace = next }
    if block.cold.contains(target) && !exits(at: target) {
      if let miss = misses(at: target) {
        self.miss = miss
        stop = min(stop, miss.place)
      } else {
        let number = fork()
        if number < 0 { return }
        if passing { state[CheckedState.flags].head |= CheckedValue.passed << 8 }
        push(current, at: next)
        return go(number, to: target)
      }
    }
    if block.hot.contains(target) {
      let number = fork()
      if number >= 0 { wait(number, at: target) }
    } else if !block.cold.contains(target) {
      leave(to: target)
    }
    if passing { state[CheckedState.flags].head |= CheckedValue.passed << 8 }
  }

  /// A jump to `target`. Returns false if no path is left.
  mutating func jump(to target: Int) -> Bool {
    if !isCold { hotPlace = next }
    if block.cold.contains(target) {
      if exits(at: target) { return endPath() }
      go(current, to: target)
      return true
    }
    if block.hot.contains(target) {
      let wasCold = isCold
      isCold = true
      wait(current, at: target)
      isCold = wasCold
      return endPath(isWaiting: true)
    }
    leave(to: target)
    return endPath()
  }

  /// The path is at its end. Returns false if there is no other.
  mutating func endPath(isWaiting: Bool = false) -> Bool {
    if !isCold { hotPlace = next }
    if !isWaiting { release(current) }
    if problem != nil { return false }
    if pathCount > 0 {
      pathCount &-= 1
      let number = Int(paths[pathCount & 15])
      go(number, to: places[number & 15])
      return true
    }
    // The hot path has ended: what waits next begins it anew.
    isCold = false
    updateStop()
    let target = stop
    guard target < block.hot.upperBound else { return false }
    var left = waiting
    while left != 0 {
      let number = left.trailingZeroBitCount
      left &= left &- 1
      guard places[number & 15] == target else { continue }
      waiting &= ~(1 << UInt32(truncatingIfNeeded: number))
      go(number, to: target)
      return true
    }
    // An entry, whose path knows nothing.
    let number = fork()
    if number < 0 { return false }
    go(number, to: target)
    state[CheckedState.stack] = CheckedValue(.sum)
    return true
  }

  /// A second path from here on, which goes on at `target` with what `edit` makes of what is known.
  mutating func also(at target: Int, losing register: Int) {
    guard block.cold.contains(target) else { return refuse(.branch) }
    let number = fork()
    if number < 0 { return }
    push(number, at: target)
    states[number][register] = unknown()
    states[number][CheckedState.flags] = CheckedValue(.sum)
  }

  /// A guest's call of cold code, whose frame is complete: what it does, before where it returns to.
  mutating func enterFrame(_ target: Int) {
    let number = fork()
    if number < 0 { return }
    states[number][CheckedState.stack] = CheckedValue(.sum)
    if !isCold { hotPlace = next }
    returned()
    push(current, at: next)
    go(number, to: target)
  }

  // MARK: Edges

  /// The number of the edge whose branch ends at `next`, or -1. Its target must be what the edge has recorded.
  mutating func edge(to target: Int) -> Int {
    guard let edges = unsafe block.edges else { return -1 }
    for number in 0..<block.edgeCount {
      let edge = unsafe edges[number]
      guard Int(edge.end) == next else { continue }
      // It is patched as a whole, while others execute it.
      guard Int(edge.stub) == target, (next &- 4) & 7 <= 4, number < 64 else {
        refuse(.edge)
        return -1
      }
      seenEdges |= 1 << UInt64(truncatingIfNeeded: number)
      return number
    }
    return -1
  }

  /// Whether bytes from `start` to `end` are patched when an edge is linked, other than those of a branch that ends at
  /// `branch`.
  @inline(__always)
  func isPatched(_ start: Int, _ end: Int, but branch: Int) -> Bool {
    guard let edges = unsafe block.edges else { return false }
    for number in 0..<block.edgeCount {
      let last = Int(unsafe edges[number].end)
      if last > start && last &- 4 < end && last != branch { return true }
    }
    return false
  }

  /// The edge with a number from `edge(to:)`.
  func recordedEdge(_ number: Int) -> Edge {
    guard let edges = unsafe block.edges else { return Edge() }
    return unsafe edges[number]
  }
}
