// SPDX-License-Identifier: Apache-2.0
// The devices of a machine that have something of the host's behind them, disks, networks and random numbers, with their
// threads. What they need is opened here, before the machine's threads are confined.

import Devices
import Host
import SystemPackage

/// Virtio's devices but for the console, the same disks and networks as Linux 2.6.23 knows them, and the threads that do
/// their work. What is behind a device is opened once: which of the two the guest drives is known when it runs.
struct HostDevices: Sendable {
  private let disks: [(device: VirtioBlock, old: DMABlock, thread: DiskThread, file: DiskFile)]
  private let networks: [(device: VirtioNetwork, old: DMANetwork, thread: NetworkThread)]
  private let entropy: VirtioEntropy
  private let removesSockets: Bool

  /// In the order in which a guest meets them: disks, networks, each as they were asked for, and random numbers.
  var all: [any VirtioDevice] { disks.map(\.device) + networks.map(\.device) + [entropy] }

  /// Those of Linux 2.6.23.
  var oldDisks: [DMABlock] { disks.map(\.old) }
  var oldNetworks: [DMANetwork] { networks.map(\.old) }

  /// Opens what the configuration names.
  ///
  /// - Parameters:
  ///   - page: The first of the pages of Linux 2.6.23's devices, one for each.
  ///   - wantsRoom: Has the guest looked at soon: it may have room for a frame.
  init(
    _ configuration: VirtualMachine.Configuration, _ host: DMAHost, page: UInt64,
    wantsRoom: @escaping @Sendable () -> Void
  ) throws(ConfigurationError) {
    var disks: [(VirtioBlock, DMABlock, DiskThread, DiskFile)] = []
    var networks: [(VirtioNetwork, DMANetwork, NetworkThread)] = []
    var nextPage: UInt32 { UInt32(truncatingIfNeeded: page + 4096 * UInt64(disks.count + networks.count)) }
    do throws(HostError) {
      for disk in configuration.disks {
        let file = try DiskFile(disk.file, isReadOnly: disk.isReadOnly)
        let thread = DiskThread()
        let store = HostDisk(file: file, identity: "lguest-disk\(disks.count)")
        let old = DMABlock(store, host, page: nextPage) { thread.ring() }
        disks.append((VirtioBlock(store) { thread.ring() }, old, thread, file))
      }
      for network in configuration.networks {
        let thread = NetworkThread(try HostDevices.open(network, configuration))
        let address = EthernetFrame.localAddress(HostDevices.randomBytes(6))
        let old = DMANetwork(host, page: nextPage, wake: { thread.ring() }, wantsRoom: wantsRoom)
        networks.append((VirtioNetwork(address: address) { thread.ring() }, old, thread))
      }
    } catch {
      for (_, _, thread) in networks { thread.stop(removing: configuration.didListen == nil) }
      throw ConfigurationError(error)
    }
    if let saved = configuration.saved, let lguest = try saved.lguest {
      for (old, disk) in zip(lguest.disks, disks) { try old.check(disk.3, savedAt: lguest.time) }
    }
    (self.disks, self.networks) = (disks, networks)
    entropy = VirtioEntropy { HostDevices.randomBytes($0) }
    // A caller that has been confined cannot.
    removesSockets = configuration.didListen == nil && configuration.sandbox?.includesCaller != true
  }

  private static func open(
    _ network: VirtualMachine.Configuration.Network, _ configuration: VirtualMachine.Configuration
  ) throws(HostError) -> FrameSocket {
    switch network {
    case .socket(let path): return try FrameSocket(connectingTo: path, longest: EthernetFrame.sizes.upperBound)
    case .listen(let path):
      let socket = try FrameSocket(listeningAt: path, longest: EthernetFrame.sizes.upperBound)
      configuration.didListen?(path)
      return socket
    }
  }

  /// From the host's generator.
  private static func randomBytes(_ count: Int) -> [UInt8] {
    var (generator, bytes) = (SystemRandomNumberGenerator(), [UInt8]())
    while bytes.count < count {
      let word = generator.next()
      bytes += (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) }
    }
    return Array(bytes.prefix(count))
  }

  /// Starts the threads, each with a filter of its own.
  func start(_ sandbox: Sandbox?) throws(HostError) {
    for (number, disk) in disks.enumerated() {
      let (device, old, thread, _) = disk
      try thread.start(number, sandbox) { [unowned thread] in
        device.work(before: { thread.begins }, while: { thread.goesOn })
        old.work(while: { thread.begins })
      }
    }
    for (number, network) in networks.enumerated() {
      try network.thread.start(number, FramePorts([network.device, network.old]), sandbox)
    }
  }

  /// The files behind the disks.
  var diskFiles: [DiskFile] { disks.map(\.file) }

  /// Lets every disk end the request that it is at, and begin none until `resume`.
  func pause() { for disk in disks { disk.thread.pause() } }
  func resume() { for disk in disks { disk.thread.resume() } }

  /// Has every disk look for requests.
  func lookAgain() { for disk in disks { disk.thread.ring() } }

  /// Ends the threads and waits for them.
  func stop() {
    for disk in disks { disk.thread.stop() }
    for network in networks { network.thread.stop(removing: removesSockets) }
  }
}
