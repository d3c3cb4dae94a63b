// SPDX-License-Identifier: Apache-2.0
// How much of the host is ours: memory and CPUs as limited by the machine, the affinity mask and control groups of
// both versions. Asking for more is refused before a guest starts, rather than killed by the kernel afterwards.

import CHost
import SystemPackage

/// What the host offers this process now.
public struct HostCapacity: Sendable, Equatable {
  /// Bytes that can be had without swapping or being killed, and who limits them: "the host" or a control group.
  public var memory: UInt64
  public var memoryLimitedBy: String
  /// At least 1.
  public var cpus: Int
  public var cpusLimitedBy: String

  /// Reads the limits.
  ///
  /// - Parameter root: Where /proc and /sys are; other than `/` only in tests.
  public static func current(root: FilePath = "/") -> HostCapacity {
    var capacity = HostCapacity(
      memory: availableMemory(HostFile.text(root.appending("proc/meminfo")) ?? "") ?? .max, memoryLimitedBy: "the host",
      cpus: max(1, Int(chost_affinity_count())), cpusLimitedBy: "the CPU affinity mask")
    for group in ControlGroup.ofThisProcess(root: root) {
      if let free = group.freeMemory(), free < capacity.memory {
        capacity.memory = free
        capacity.memoryLimitedBy = "control group \(group.directory)"
      }
      if let cpus = group.cpus(), cpus < capacity.cpus {
        capacity.cpus = cpus
        capacity.cpusLimitedBy = "control group \(group.directory)"
      }
    }
    return capacity
  }

  /// The MemAvailable line of /proc/meminfo, in bytes.
  static func availableMemory(_ text: String) -> UInt64? {
    field("MemAvailable:", in: text).flatMap { $0.multipliedReportingOverflow(by: 1024).overflow ? nil : $0 * 1024 }
  }

  /// The number after a name at the start of a line.
  static func field(_ name: String, in text: String) -> UInt64? {
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ", omittingEmptySubsequences: true)
      if words.count >= 2, words[0] == name { return UInt64(words[1]) }
    }
    return nil
  }
}

/// A directory of a control group hierarchy.
struct ControlGroup {
  var directory: FilePath
  var isVersion2: Bool

  /// The groups this process is in and all their ancestors, of both versions.
  static func ofThisProcess(root: FilePath) -> [ControlGroup] {
    let mount = root.appending("sys/fs/cgroup")
    var groups: [ControlGroup] = []
    for line in (HostFile.text(root.appending("proc/self/cgroup")) ?? "").split(separator: "\n") {
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3 else { continue }
      let controllers = fields[1].split(separator: ",")
      let bases: [FilePath]
      if fields[1].isEmpty {
        bases = [mount, mount.appending("unified")]
      } else if controllers.contains("memory") || controllers.contains("cpu") {
        bases = [mount.appending(String(fields[1]))] + controllers.map { mount.appending(String($0)) }
      } else {
        continue
      }
      // Inside a container the path may be the host's and not exist here; its ancestors, at the latest `/`, do.
      let path = fields[2].split(separator: "/").filter { $0 != ".." && $0 != "." }.map(String.init)
      for base in bases {
        for depth in stride(from: path.count, through: 0, by: -1) {
          let directory = path.prefix(depth).reduce(base) { $0.appending($1) }
          groups.append(ControlGroup(directory: directory, isVersion2: fields[1].isEmpty))
        }
      }
    }
    return groups
  }

  private func number(_ name: String) -> Int64? {
    HostFile.text(directory.appending(name)).flatMap { text in
      text.split(whereSeparator: \.isWhitespace).first.flatMap { Int64($0) }
    }
  }

  /// What is left below the memory limit, page cache counted as free; `nil` without a limit.
  func freeMemory() -> UInt64? {
    guard let limit = number(isVersion2 ? "memory.max" : "memory.limit_in_bytes"), limit < 1 << 60 else { return nil }
    let used = number(isVersion2 ? "memory.current" : "memory.usage_in_bytes") ?? 0
    let cache =
      HostFile.text(directory.appending("memory.stat")).flatMap {
        HostCapacity.field(isVersion2 ? "inactive_file" : "total_inactive_file", in: $0)
      } ?? 0
    return UInt64(max(0, limit - max(0, used - Int64(clamping: cache))))
  }

  /// The CPU quota, rounded up to whole CPUs; `nil` without one.
  func cpus() -> Int? {
    let quota: Int64
    let period: Int64
    if isVersion2 {
      let words = (HostFile.text(directory.appending("cpu.max")) ?? "").split(whereSeparator: \.isWhitespace)
      guard words.count == 2, let first = Int64(words[0]), let second = Int64(words[1]) else { return nil }
      (quota, period) = (first, second)
    } else {
      guard let first = number("cpu.cfs_quota_us"), let second = number("cpu.cfs_period_us") else { return nil }
      (quota, period) = (first, second)
    }
    guard quota > 0, period > 0 else { return nil }
    return Int(max(1, (quota + period - 1) / period))
  }
}
