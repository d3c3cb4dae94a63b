// SPDX-License-Identifier: Apache-2.0
// RLIMIT_AS, which counts address space and not memory: guest RAM, code and vCPUs lie alone in much of the former
// (`Mapping.reserveAlone`).

import Glibc
import SystemPackage

/// The limit on this process's address space.
public enum AddressSpaceLimit {
  /// In bytes; nil: there is none.
  public static var current: UInt64? {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0, limit.rlim_cur != rlim_t.max else {
      return nil
    }
    return UInt64(limit.rlim_cur)
  }

  /// What to say when `byteCount` bytes more could not be had because of `error`; nil if no limit can be the reason.
  static func error(_ byteCount: UInt64, _ error: Errno) -> HostError? {
    guard error == .noMemory, let limit = current else { return nil }
    return HostError(
      "reserve", "\(describe(byteCount: byteCount)) of address space",
      reason: "this process may use \(describe(byteCount: limit)) in all (RLIMIT_AS)",
      remedy: "raise the limit (ulimit -v unlimited); reserved addresses cost no memory")
  }
}
