// SPDX-License-Identifier: Apache-2.0
// What tests of every module share: time limits that know how busy the host is, waits that end, and seeds that are
// printed.

import Glibc

/// Time limits.
public enum TestLimit {
  /// LGUEST_TEST_LOADED=1: the tests run beside other busy processes.
  public static let isLoaded = environment("LGUEST_TEST_LOADED").map { $0 != "0" } ?? false

  /// A limit of `seconds` on an idle host, on this one.
  public static func scaled(_ seconds: Double) -> Double { isLoaded ? seconds * 4 : seconds }

  /// Waits until a condition holds; false if it does not within `seconds` of an idle host.
  public static func wait(seconds: Double = 60, until condition: () -> Bool) -> Bool {
    var left = Countdown(seconds)
    var pause: UInt32 = 50
    while !condition() {
      if left.isOver { return condition() }
      usleep(pause)
      pause = min(pause * 2, 5000)
    }
    return true
  }

  /// The same for what comes soon: only other threads get the processor in between.
  public static func spin(seconds: Double = 60, until condition: () -> Bool) -> Bool {
    var left = Countdown(seconds)
    var rounds = 0
    while !condition() {
      sched_yield()
      rounds += 1
      if rounds % 256 == 0 && left.isOver { return condition() }
    }
    return true
  }

  /// Does what cannot be interrupted from outside, such as running translated code that may never come back: the process
  /// ends, saying so, if it takes longer than `seconds` of an idle host.
  public static func watched<Result>(
    _ what: String, seconds: Double = 120, _ body: () throws -> Result
  ) rethrows -> Result {
    let guardian = Guardian(what, seconds: seconds)
    defer { guardian.end() }
    return try body()
  }
}

/// Time that passes while the process runs: what it spends stopped, by a person or a debugger, does not count.
struct Countdown {
  private var left: Double
  private var last: Double

  init(_ seconds: Double) {
    left = TestLimit.scaled(seconds)
    last = Countdown.now()
  }

  /// Asked often: of a longer while in between only half a second counts.
  var isOver: Bool {
    mutating get {
      let now = Countdown.now()
      left -= min(now - last, 0.5)
      last = now
      return left <= 0
    }
  }

  /// Seconds of the monotonic clock.
  private static func now() -> Double {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }
}

/// Seeds of random tests. LGUEST_TEST_SEED reproduces a run.
public enum TestSeed {
  /// Whether LGUEST_TEST_SEED says which.
  public static let given = environment("LGUEST_TEST_SEED").flatMap { UInt64($0) }

  /// Another one in each process.
  public static let fresh: UInt64 =
    given
    ?? {
      var time = timespec()
      unsafe clock_gettime(CLOCK_REALTIME, &time)
      return UInt64(time.tv_nsec) & 0xFFFF_FFFF
    }()

  /// The seed of a test, printed with its name.
  ///
  /// - Parameter fixed: For tests that do the same each time, unless LGUEST_TEST_SEED is set.
  public static func of(_ test: String, fixed: UInt64? = nil) -> UInt64 {
    let seed = given ?? fixed ?? fresh
    print("seed of \(test): \(seed)")
    return seed
  }
}

/// SplitMix64: the seed is the reproduction.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
  private var state: UInt64

  public init(seed: UInt64) { state = seed }

  /// With the printed seed of a test, as `TestSeed.of` finds it; `salt` tells its cases apart.
  public init(_ test: String, salt: Int = 0, fixed: UInt64? = nil) {
    let name = salt == 0 ? test : "\(test) (\(salt))"
    state = TestSeed.of(name, fixed: fixed) &+ UInt64(truncatingIfNeeded: salt) &* 0x1_0001
  }

  public mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

/// A variable of the environment, unless it is empty.
private func environment(_ name: String) -> String? {
  guard let value = unsafe getenv(name) else { return nil }
  let text = unsafe String(cString: value)
  return text.isEmpty ? nil : text
}
