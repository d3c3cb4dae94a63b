// SPDX-License-Identifier: Apache-2.0
// The disks and networks of a machine: what a person asks for, as values. Which guests can have them is checked here too.

public import SystemPackage

extension VirtualMachine.Configuration {
  /// A disk: a file of the host's.
  public struct Disk: Sendable, Equatable {
    /// A raw image, a regular file. Sectors have 512 bytes; what the file has beyond the last whole one is not shown. It
    /// is locked: a disk that is written has one machine, one that is only read may have several.
    public var file: FilePath
    /// Whether the guest may only read it.
    public var isReadOnly: Bool

    /// A disk that may be written unless it is said otherwise.
    public init(file: FilePath, isReadOnly: Bool = false) { (self.file, self.isReadOnly) = (file, isReadOnly) }
  }

  /// A network card, by what its cable leads to: a Unix stream socket that carries frames, each behind its length in 4
  /// bytes, big-endian, as passt and QEMU's `-netdev stream` have it. Frames for a peer that is behind, or has gone, are
  /// lost.
  public enum Network: Sendable, Equatable {
    /// Somebody waits for connections there; the machine connects before it starts.
    case socket(FilePath)
    /// The machine waits there, also while it runs, for one peer after the other.
    case listen(FilePath)

    /// Where a socket is made, if one is.
    package var waitingPlace: FilePath? { if case .listen(let path) = self { path } else { nil } }
  }

  /// Interrupts of a guest of lguest's interface but for the timer's.
  private static let lguestInterrupts = 31

  /// Whether the devices have interrupts enough: one for each queue, and besides these devices there are the console,
  /// with two, and the source of random numbers.
  func validateDeviceCount() throws(ConfigurationError) {
    let count = disks.count + 2 * networks.count + 3
    guard count <= Self.lguestInterrupts else {
      throw ConfigurationError(
        "\(disks.count) disks and \(networks.count) networks need \(count) interrupts, and a guest has \(Self.lguestInterrupts)",
        remedy: "ask for fewer")
    }
  }

  /// Whether this kind of guest can have them, and the files are there.
  func validateDevices() throws(ConfigurationError) {
    if abi != .lguest {
      if !disks.isEmpty { throw ConfigurationError("disks are for --abi lguest only so far", remedy: "leave them out") }
      if !networks.isEmpty {
        throw ConfigurationError("networks are for --abi lguest only so far", remedy: "leave them out")
      }
    }
    for disk in disks {
      let size = try Self.checkReadable(disk.file, "disk", "give the path of a raw disk image")
      guard size >= 512 else {
        throw ConfigurationError(
          "disk '\(disk.file)' has \(size) bytes, and a sector has 512", remedy: "give the path of a raw disk image")
      }
    }
  }
}
