// SPDX-License-Identifier: Apache-2.0
// Why a kernel cannot be started, in one line that says what to do about it. All of these are found before the
// first guest instruction.

import Host

/// A kernel, initial RAM disk or command line that cannot be used.
public struct BootError: Error, Sendable, Equatable, CustomStringConvertible {
  /// The kind of failure, for programs.
  public enum Kind: String, Sendable {
    /// The host refused to open or read a file.
    case host
    case empty, truncated, malformed
    /// Recognised as something else, or not at all.
    case notAKernel
    /// A kernel of another architecture.
    case foreign
    /// A kernel, or something else, inside a compressed file.
    case compressed
    /// The image has no such entry point, or it cannot be used.
    case entryPoint
    case commandLine
    case initrd
    /// The guest has too little memory.
    case memory
  }

  public var kind: Kind
  /// What is wrong, and with what.
  public var problem: String
  /// What to do next; may be empty.
  public var remedy: String

  public init(_ kind: Kind, _ problem: String, remedy: String) {
    self.kind = kind
    self.problem = problem
    self.remedy = remedy
  }

  public init(_ error: HostError) {
    kind = .host
    problem = "cannot \(error.attempt) \(error.subject): \(error.reason)"
    remedy = error.remedy
  }

  /// One line.
  public var description: String { remedy.isEmpty ? problem : "\(problem); \(remedy)" }
}
