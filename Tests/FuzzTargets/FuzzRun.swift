// SPDX-License-Identifier: Apache-2.0
// A run of random inputs through one target: made from a seed, out of samples, words and noise. The input that is being
// tried lies in a file, which stays when the process ends there; one that takes too long ends the process.

import Glibc
import Host
import Synchronization
import SystemPackage
import TestSupport

/// Feeds a target for a while.
public struct FuzzRun {
  /// What came of a run.
  public struct Outcome {
    public var inputs = 0
    public var seconds = 0.0
    /// What the slowest input took.
    public var slowest = 0.0
    /// What was wrong with the last input, and where it lies.
    public var failure: String?
    public var file: FilePath?
  }

  /// An input may take this long on an idle host, in seconds: locked accesses across cache lines take the host up to two
  /// each.
  private static let patience = 120.0

  private let target: FuzzTarget
  private var random: SeededGenerator
  private let samples: [[UInt8]]
  private let file: FilePath

  /// - Parameter folder: Where the current input lies.
  public init(_ target: FuzzTarget, seed: UInt64, in folder: FilePath) {
    self.target = target
    // The same seed gives other inputs to each target.
    let salt = target.name.utf8.reduce(UInt64(0xCBF2_9CE4_8422_2325)) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
    random = SeededGenerator(seed: seed ^ salt)
    samples = target.samples()
    file = folder.appending("\(target.name)-\(seed)-\(getpid())")
  }

  public mutating func run(seconds: Double) throws -> Outcome {
    let descriptor = try FileDescriptor.open(
      file, .readWrite, options: [.create, .truncate], permissions: .ownerReadWrite)
    defer { try? descriptor.close() }
    var outcome = Outcome()
    let watch = try Watch("\(target.name), whose input is \(file)")
    defer { watch.stop() }
    let begin = HostClock.monotonic
    let end = begin &+ UInt64(seconds * 1e9)
    while HostClock.monotonic < end {
      let input = next()
      try descriptor.writeAll(toAbsoluteOffset: 0, input)
      guard ftruncate(descriptor.rawValue, off_t(input.count)) == 0 else { throw Errno(rawValue: errno) }
      watch.begin()
      let start = HostClock.monotonic
      defer { outcome.slowest = max(outcome.slowest, Double(HostClock.monotonic &- start) / 1e9) }
      do { try target.run(input) } catch {
        outcome.failure = "\(error)"
        outcome.file = file
        break
      }
      outcome.inputs += 1
      if HostClock.monotonic &- start > FuzzRun.slow { try keepSlow(input) }
    }
    outcome.seconds = Double(HostClock.monotonic &- begin) / 1e9
    if outcome.failure == nil { _ = unsafe unlink(file.string) }
    return outcome
  }

  /// One that takes this long is kept, though it may be the host that was slow.
  private static let slow: UInt64 = 3_000_000_000

  private func keepSlow(_ input: [UInt8]) throws {
    let copy = try FileDescriptor.open(
      FilePath(file.string + "-slow"), .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    defer { try? copy.close() }
    try copy.writeAll(input)
  }

  // MARK: Inputs

  private mutating func below(_ limit: Int) -> Int { limit < 2 ? 0 : Int.random(in: 0..<limit, using: &random) }

  private mutating func next() -> [UInt8] {
    guard !samples.isEmpty, below(8) != 0 else { return noise(1 + below(below(2) == 0 ? 256 : target.longest)) }
    var bytes = samples[below(samples.count)]
    for _ in 0..<(1 << below(5)) { change(&bytes) }
    return Array(bytes.prefix(target.longest))
  }

  private mutating func noise(_ count: Int) -> [UInt8] {
    if !target.words.isEmpty, below(2) == 0 {
      var bytes: [UInt8] = []
      while bytes.count < min(count, 200) {
        bytes += below(4) == 0 ? [byte()] : target.words[below(target.words.count)]
      }
      return bytes
    }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count + 8)
    while bytes.count < count { unsafe withUnsafeBytes(of: random.next()) { unsafe bytes.append(contentsOf: $0) } }
    return Array(bytes.prefix(count))
  }

  private mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: random.next()) }

  private mutating func change(_ bytes: inout [UInt8]) {
    let at = below(bytes.count + 1)
    let isInside = at < bytes.count
    switch below(9) {
    case 0 where isInside: bytes[at] ^= 1 << UInt8(below(8))
    case 1 where isInside: bytes[at] = byte()
    case 2, 3:
      // A number that is one too many somewhere.
      let values: [UInt64] = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, .max, .max - 1]
      let value = values[below(values.count)]
      for index in 0..<(1 << below(4)) where at + index < bytes.count {
        bytes[at + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
      }
    case 4: bytes.removeSubrange(at..<min(at + 1 + below(16), bytes.count))
    case 5: bytes.insert(contentsOf: noise(1 + below(8)), at: at)
    case 6 where !target.words.isEmpty: bytes.insert(contentsOf: target.words[below(target.words.count)], at: at)
    case 7:
      let piece = bytes[at..<min(at + 1 + below(64), bytes.count)]
      bytes.insert(contentsOf: piece, at: below(bytes.count + 1))
    default:
      let other = samples[below(samples.count)]
      bytes = Array(bytes.prefix(at)) + other.suffix(below(other.count + 1))
    }
  }

  // MARK: Time

  /// Ends the process when an input takes too long.
  private final class Watch: Sendable {
    private let shared: Shared

    private final class Shared: Sendable {
      let number = Atomic<Int>(0)
      let isOver = Atomic<Bool>(false)
    }

    init(_ what: String) throws(HostError) {
      let shared = Shared()
      self.shared = shared
      _ = try HostThread(name: "fuzz-watch") {
        var (last, ticks) = (-1, 0.0)
        // What the process spends stopped does not count.
        while !shared.isOver.load(ordering: .acquiring) {
          HostClock.sleep(until: HostClock.after(nanoseconds: 100_000_000))
          let number = shared.number.load(ordering: .acquiring)
          ticks = number == last ? ticks + 0.1 : 0
          last = number
          if ticks > TestLimit.scaled(patience) {
            print("fuzz: does not end: \(what)")
            fflush(nil)
            abort()
          }
        }
      }
    }

    func begin() { shared.number.wrappingAdd(1, ordering: .releasing) }
    func stop() { shared.isOver.store(true, ordering: .releasing) }
  }
}
