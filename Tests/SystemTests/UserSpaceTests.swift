// SPDX-License-Identifier: Apache-2.0
// An ordinary Debian user space in a guest: every check of Guests/userspace-init has to say `ok`.

import Foundation
import Testing

extension SystemTests {
  @Suite("User space", .serialized)
  struct UserSpaceTests {
    static let names = [
      "bash", "coreutils", "signals", "stress", "parallel", "codegen", "compat32", "openssl", "openssl-plain", "xz",
      "luajit", "python",
    ]

    /// Boots an archive of scripts/make-userspace and compares what its checks said.
    private func check(
      _ archive: String?, _ checks: String, memory: String, limit: Int, atLeast count: Int,
      kernel: String? = Guest.kernel,
      _ more: String...
    ) throws {
      let result = try Guest.run(
        [
          "run", "--kernel", #require(kernel), "--initrd", #require(archive), "--memory", memory,
          "--append", "quiet lguest.checks=\(checks)", "--timeout", "\(limit)s",
        ] + more, limit: Double(limit) + 10, expecting: 0)
      // A serial line ends in CR LF, which is one Character.
      let lines = result.output.split(whereSeparator: \.isNewline)
      let failed = lines.filter { $0.hasPrefix("FAIL ") }
      #expect(failed.isEmpty, "\(failed.joined(separator: "; "))\n\(result.output.suffix(4000))")
      #expect(lines.filter { $0.hasPrefix("ok ") }.count >= count)
      #expect(lines.contains("complaints 0"))
      #expect(lines.contains("end checks"))
    }

    @Test("the small one", .enabled(if: Guest.canBoot && Guest.userSpace != nil, "no user space in the cache"))
    func small() throws {
      try check(Guest.userSpace, "small", memory: "1G", limit: 240, atLeast: UserSpaceTests.names.count)
    }

    @Test(
      "the small one on a CPU without AVX and BMI",
      .enabled(if: Guest.canBoot && Guest.userSpace != nil, "no user space in the cache"))
    func smallOnLowerModel() throws {
      try check(
        Guest.userSpace, "small", memory: "1G", limit: 240, atLeast: UserSpaceTests.names.count, "--cpu-model",
        "x86-64-v2")
    }

    // All of it on both kernels takes a minute or two.
    @Test(
      "that of i386",
      .enabled(if: Guest.initrd386 != nil && Guest.userSpace386 != nil, "no i386 user space in the cache"),
      arguments: Guest.isLong ? ["686-pae", "686"] : ["686-pae"])
    func i386(flavour: String) throws {
      try check(
        Guest.userSpace386, Guest.isLong ? "i386" : "bash,luajit,python", memory: "800M", limit: 240,
        atLeast: Guest.isLong ? 7 : 3, kernel: Guest.kernel386(flavour))
    }

    @Test(
      "the full one: gcc, gdb, a 32-bit busybox, bulk data, Python's own tests", .enabled(if: Guest.isLong),
      .enabled(if: Guest.canBoot && Guest.fullUserSpace != nil, "no full user space in the cache"),
      arguments: ["full", "python"])
    func full(checks: String) throws {
      try check(Guest.fullUserSpace, checks, memory: "3G", limit: 3600, atLeast: 18)
    }
  }
}
