// SPDX-License-Identifier: Apache-2.0
// How much memory and how many CPUs the host has for us, by its control groups.

import Foundation
import Host
import SystemPackage
import Testing

@Suite("Capacity")
struct CapacityTests {
  @Test("Memory and CPU limits of control groups of both versions")
  func capacity() throws {
    let root = FilePath(NSTemporaryDirectory()).appending("lguest-capacity-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(atPath: root.string) }
    func write(_ path: String, _ text: String) throws {
      let full = root.appending(path)
      try FileManager.default.createDirectory(
        atPath: full.removingLastComponent().string, withIntermediateDirectories: true)
      try text.write(toFile: full.string, atomically: false, encoding: .utf8)
    }
    try write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:  8388608 kB\n")
    #expect(HostCapacity.current(root: root).memory == 8 << 30)
    try write("proc/self/cgroup", "0::/a/b\n")
    try write("sys/fs/cgroup/a/memory.max", "2147483648\n")
    try write("sys/fs/cgroup/a/memory.current", "1073741824\n")
    try write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 536870912\n")
    try write("sys/fs/cgroup/a/b/memory.max", "max\n")
    try write("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")
    let limited = HostCapacity.current(root: root)
    #expect(limited.memory == 1536 << 20)
    #expect(limited.memoryLimitedBy.hasSuffix("sys/fs/cgroup/a"))
    #expect(limited.cpus == 1)
    try write("proc/self/cgroup", "4:memory:/gone/x\n5:cpu,cpuacct:/gone/x\n")
    try write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n")
    try write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    try write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    #expect(HostCapacity.current(root: root).memory == 1 << 20)
    let real = HostCapacity.current()
    #expect(real.cpus >= 1 && real.memory > 1 << 20)
  }
}
