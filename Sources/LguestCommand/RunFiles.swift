// SPDX-License-Identifier: Apache-2.0
// What a run leaves in the file system, prepared while it may still open files: the JSON file is open from the start,
// without a name, and sockets are known, the control socket and those that networks wait at. Naming the one and removing
// the others is what the run asks of a process that was made beforehand (NameKeeper).

import Host
import Lguest
import Synchronization
import SystemPackage

/// The JSON file and the sockets of a run.
final class RunFiles: Sendable {
  private enum Target {
    case nothing
    /// A pipe or a device: written to, never replaced.
    case stream(FileDescriptor)
    case file(ReplacementFile)
  }

  /// The control socket's removal, then that of each other socket, then the JSON file.
  private enum Job { static let removeSocket = 0 }

  private let path: FilePath?
  private let target: Target
  private let keeper: NameKeeper
  /// Whoever writes the JSON, a crash included, is the only one.
  private let isClaimed = Atomic(false)
  private let hasSocket: Bool
  /// Where networks may wait, and whether the machine has made a socket there.
  private let networks: Mutex<[(path: FilePath, isMade: Bool)]>
  private let nameJSON: Int

  /// - Parameters:
  ///   - socket: The control socket, to be removed at the end.
  ///   - networks: To be removed at the end, if they are made.
  ///   - isConfined: Whether threads of this process will be confined. There must be one thread still.
  /// - Throws: `HostError`: the file cannot be made, or there is no process to be had.
  init(json: FilePath?, socket: FilePath?, networks: [FilePath] = [], isConfined: Bool) throws(HostError) {
    path = json
    // Without a socket the job is there and never asked for.
    var jobs = [NameKeeper.Job.remove(socket ?? "none")] + networks.map { NameKeeper.Job.remove($0) }
    self.networks = Mutex(networks.map { ($0, false) })
    nameJSON = jobs.count
    switch json.map({ ReplacementFile.isOpenFile($0) ? .other : System.kind($0) }) {
    case nil: target = .nothing
    case .other?:
      target = .stream(try FileDescriptor.openForWriting(json ?? "", options: .append))
    case .absent?, .regular?, .directory?:
      let file = try ReplacementFile(json ?? "", permissions: FilePermissions(rawValue: 0o644))
      target = .file(file)
      jobs.append(.name(file))
    }
    hasSocket = socket != nil
    let mayFilter = isConfined && HostProbe.filterProblem() == nil
    keeper = try NameKeeper(jobs, filter: mayFilter ? Sandbox.filter(of: .names) : nil, isSeparate: isConfined)
  }

  /// Removes the control socket.
  func removeSocket() {
    if hasSocket { _ = keeper.perform(Job.removeSocket) }
  }

  /// The machine has made a socket where a network waits.
  func didListen(_ path: FilePath) {
    networks.withLock { networks in
      for index in networks.indices where networks[index].path == path { networks[index].isMade = true }
    }
  }

  /// Nothing more is to be done, but for the sockets of networks.
  func end() {
    let made = networks.withLock { networks in networks.indices.filter { networks[$0].isMade } }
    for number in made { _ = keeper.perform(Job.removeSocket + 1 + number) }
    keeper.end()
  }

  // MARK: The JSON file

  /// Where the JSON goes, nil if it goes nowhere or somebody has begun to write it; for whoever asks first.
  func claim() -> FileDescriptor? {
    guard !isClaimed.exchange(true, ordering: .acquiringAndReleasing) else { return nil }
    return switch target {
    case .nothing: nil
    case .stream(let file): file
    case .file(let file): file.output.descriptor
    }
  }

  /// Gives the JSON file its name. Safe in a signal handler, as `claim` is.
  func publish() -> Errno? {
    if case .file = target { keeper.perform(nameJSON) } else { nil }
  }

  /// Writes the JSON and gives its file the name. A failure is one line on stderr.
  ///
  /// - Returns: Whether all that was asked for is there.
  func leave(_ json: JSON) -> Bool {
    guard let path, let file = claim() else { return true }
    do {
      try file.writeAll(Array((json.text() + "\n").utf8))
      if let error = publish() { throw error }
      return true
    } catch {
      Messages.say("cannot write '\(path)': \(error); what it lacks is lost")
      return false
    }
  }
}
