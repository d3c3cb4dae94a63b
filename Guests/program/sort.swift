// SPDX-License-Identifier: Apache-2.0
// A guest in Embedded Swift that makes the same hypercalls as sort.c, typed.

@_extern(c, "program_call") private func programCall(_ number: UInt, _ first: UInt, _ second: UInt) -> UInt
@_extern(c, "expect")
private func expect(_ name: UnsafePointer<UInt8>, _ value: UInt, _ expected: UInt, _ why: UnsafePointer<UInt8>?)

/// The host program's hypercalls.
enum HostProgram {
  /// Why the host program refused.
  enum Failure: Error { case refused(code: Int) }

  /// Has the host sort integers in place; the guest's memory is mapped one to one.
  static func sort(_ numbers: UnsafeMutableBufferPointer<UInt32>) throws(Failure) {
    let result = Int(bitPattern: programCall(0x1000, UInt(bitPattern: numbers.baseAddress), UInt(numbers.count)))
    guard result == numbers.count else { throw .refused(code: result) }
  }

  static func sum(_ first: UInt, _ second: UInt) -> UInt { programCall(0x1001, first, second) }
}

private func check(_ name: StaticString, _ value: UInt, _ expected: UInt) {
  expect(name.utf8Start, value, expected, nil)
}

@c public func test() {
  withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 10) { numbers in
    var next: UInt32 = 7
    for index in numbers.indices {
      next = next &* 1_103_515_245 &+ 12345
      numbers[index] = next >> 16
    }
    do throws(HostProgram.Failure) {
      try HostProgram.sort(numbers)
      check("numbers sorted", UInt(numbers.count), 10)
    } catch { check("numbers sorted", 0, 10) }
    var descents: UInt = 0
    for index in 1..<numbers.count where numbers[index - 1] > numbers[index] { descents += 1 }
    check("descents", descents, 0)
  }
  do throws(HostProgram.Failure) {
    try HostProgram.sort(UnsafeMutableBufferPointer(start: UnsafeMutablePointer(bitPattern: 1 << 40), count: 10))
    check("an address that is not RAM", 0, 14)
  } catch {
    if case .refused(let code) = error { check("an address that is not RAM", UInt(bitPattern: -code), 14) }
  }
  check("40 + 2", HostProgram.sum(40, 2), 42)
  check("a number that nobody answers", programCall(0x1FFF, 0, 0), UInt(bitPattern: -1000))
}
