// SPDX-License-Identifier: Apache-2.0
// Guests of lguest's interface that the tests run: the project's own, in the layout of an era, and real kernels that are
// given.

import Foundation
import Testing

/// How they are started.
enum Ring1Guest {
  /// A run of the project's own guest.
  ///
  /// - Parameter era: 23: Linux 2.6.23, 24: 2.6.24, 25: 2.6.25 to 2.6.29, 30: 2.6.30, 31: 2.6.31 to 2.6.34, 35: 2.6.35 to
  ///   3.0, 311: 3.1 to 3.19, 40: 4.0 to 4.13.
  static func arguments(_ era: String = "40", _ more: [String] = []) throws -> [String] {
    let kernel = "\(try #require(Guest.guests))/lguest/ring1-\(era)"
    return ["run", "--abi", "lguest", "--kernel", kernel, "--memory", "32M", "--timeout", "30s"] + more
  }

  /// One that waits, and has said so.
  static func startWaiting(_ more: [String] = [], name: String) throws -> Guest.Running {
    let run = try Guest.Running(try arguments("40", ["--cmdline", "wait"] + more), limit: 40, name: name)
    #expect(run.waitForOutput("waiting", seconds: 20))
    return run
  }

  /// Real kernels.
  static let kernels: [String] = {
    guard let folder = ProcessInfo.processInfo.environment["LGUEST_KERNELS"] else { return [] }
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    return names.sorted().filter { $0.hasSuffix(".vmlinux") || $0.hasSuffix(".bzImage") }.map { "\(folder)/\($0)" }
  }()

  static let missing = Comment(
    rawValue: "LGUEST_KERNELS names a folder of kernels built with CONFIG_LGUEST_GUEST: \(kernels.count) given")
}
