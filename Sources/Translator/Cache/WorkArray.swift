// SPDX-License-Identifier: Apache-2.0
// Arrays in which each block is made anew. Their elements lie outside of the structs that use them: a struct that
// cannot be copied and holds an inline array is moved as a whole, to and fro, for each call of a method that borrows it,
// which was 1.4 KB an instruction and half a microsecond a block.

/// A fixed number of elements, whose copies share them.
@safe struct WorkArray<Element: BitwiseCopyable> {
  private let base: UnsafeMutablePointer<Element>
  let count: Int

  init(repeating element: Element, count: Int) {
    unsafe base = .allocate(capacity: count)
    unsafe base.initialize(repeating: element, count: count)
    self.count = count
  }

  func deallocate() { unsafe base.deallocate() }

  /// - Parameter position: 0..<count.
  subscript(_ position: Int) -> Element {
    @inline(__always) get {
      precondition(position >= 0 && position < count)
      return unsafe base[position]
    }
    @inline(__always) nonmutating _modify {
      precondition(position >= 0 && position < count)
      yield unsafe &base[position]
    }
  }
}
