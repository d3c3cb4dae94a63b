// SPDX-License-Identifier: Apache-2.0
// What is attached to a machine of `lguest run`: disks and networks, each as one word.

import ArgumentParser
import Lguest
import SystemPackage

/// The options that attach devices.
struct DeviceOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "A disk, a raw image that is locked while the machine has it; :ro lets the guest only read it. Any number; for --abi lguest.",
      valueName: "file[:ro]"),
    completion: .file(), transform: DeviceOptions.disk)
  var disk: [VirtualMachine.Configuration.Disk] = []

  @Option(
    help: ArgumentHelp(
      "A network card, by the Unix socket that carries its frames, as passt and QEMU have it: one to connect to, or one to wait at. Any number; for --abi lguest.",
      valueName: "socket:path|listen:path"),
    transform: DeviceOptions.network)
  var net: [VirtualMachine.Configuration.Network] = []

  static func disk(_ text: String) throws -> VirtualMachine.Configuration.Disk {
    let isReadOnly = text.hasSuffix(":ro")
    let file = isReadOnly ? String(text.dropLast(3)) : text
    guard !file.isEmpty else { throw ValidationError("--disk needs a file name") }
    return VirtualMachine.Configuration.Disk(file: FilePath(file), isReadOnly: isReadOnly)
  }

  private static func network(_ text: String) throws -> VirtualMachine.Configuration.Network {
    for (start, make) in [
      ("socket:", VirtualMachine.Configuration.Network.socket),
      ("listen:", VirtualMachine.Configuration.Network.listen),
    ] where text.hasPrefix(start) && text.count > start.count {
      return make(FilePath(String(text.dropFirst(start.count))))
    }
    throw ValidationError("give socket:PATH to connect, or listen:PATH to wait")
  }

  /// Puts into a configuration what the machine needs to know.
  func apply(to configuration: inout VirtualMachine.Configuration) {
    (configuration.disks, configuration.networks) = (disk, net)
  }
}
