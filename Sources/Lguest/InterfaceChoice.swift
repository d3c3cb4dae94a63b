// SPDX-License-Identifier: Apache-2.0
// The interface that a guest meets, chosen by its kernel, and what a guest of lguest's cannot have.

import Boot
package import SystemPackage

extension VirtualMachine.Configuration {
  /// What a kernel without high memory maps, with room to spare.
  static let maximumLguestMemory: UInt64 = 800 << 20

  /// What an interface stands for with a kernel. A file that cannot be read is found to be so later.
  package static func interface(_ abi: ABI, of kernel: FilePath) -> ABI {
    guard abi == .auto else { return abi }
    let isLguestGuest = (try? KernelImage.isLguestGuest(kernel)) ?? false
    return isLguestGuest ? .lguest : .kvm
  }

  /// The same with the interface that its kernel decides.
  func resolved() -> VirtualMachine.Configuration {
    var configuration = self
    if saved == nil { configuration.abi = VirtualMachine.Configuration.interface(abi, of: kernel) }
    return configuration
  }

  func checkLguestMemory() throws(ConfigurationError) {
    let most = VirtualMachine.Configuration.maximumLguestMemory
    guard memorySize <= most else {
      throw ConfigurationError(
        "\(ByteSize.text(memorySize)) of memory is more than a guest of lguest's interface can use",
        remedy: "ask for at most \(ByteSize.text(most))")
    }
  }

  func checkLguestCPUs() throws(ConfigurationError) {
    guard cpuCount <= 1 else {
      throw ConfigurationError(
        "\(cpuCount) CPUs were asked for, and a guest of lguest's interface has one", remedy: "ask for 1")
    }
  }
}
