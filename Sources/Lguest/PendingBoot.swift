// SPDX-License-Identifier: Apache-2.0
// Stand-in for the kernel loader until it lands: the names the command line needs. Delete with its arrival.

import SystemPackage

public enum EntryPoint: String, Sendable, CaseIterable { case linux64, linux32, pvh, multiboot }

public struct KernelReport: Sendable {
  public init(of path: FilePath) throws(ConfigurationError) {
    try VirtualMachine.Configuration(kernel: path).validate()
  }
  public var isBootable: Bool { false }
  public var lines: [String] { [] }
  public var json: JSON { [:] }
}
