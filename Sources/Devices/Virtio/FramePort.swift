// SPDX-License-Identifier: Apache-2.0
// The host's side of a network card: Ethernet frames out of the guest and into it, one by one, by whatever a thread of the
// host moves them. Cards of every kind have one, virtio's and others.

/// Where frames leave the guest and arrive.
public protocol FramePort: AnyObject, Sendable {
  /// Whether the guest takes frames.
  var reception: FrameReception { get }
  /// The next frame that the guest sends, empty if it was none; nil if there is none now.
  func takeFrame() -> [UInt8]?
  /// Hands a frame to the guest; false: it is lost.
  @discardableResult
  func deliver(_ frame: [UInt8]) -> Bool
}

/// Cards of which a guest drives one at most, with one cable.
public final class FramePorts: FramePort {
  private let ports: [any FramePort]
  public init(_ ports: [any FramePort]) { self.ports = ports }

  /// The one that is driven, and what it takes.
  private var driven: (port: any FramePort, reception: FrameReception)? {
    for port in ports {
      let reception = port.reception
      if case .off = reception { continue }
      return (port, reception)
    }
    return nil
  }

  public var reception: FrameReception { driven?.reception ?? .off }
  public func takeFrame() -> [UInt8]? {
    for port in ports { if let frame = port.takeFrame() { return frame } }
    return nil
  }
  @discardableResult
  public func deliver(_ frame: [UInt8]) -> Bool { driven?.port.deliver(frame) ?? false }
}

/// What becomes of a frame for a guest.
public enum FrameReception: Sendable {
  /// No driver is there: frames are lost.
  case off
  /// There is no buffer for one now; the guest says when there is.
  case full
  case ready
}

/// What a frame is.
public enum EthernetFrame {
  /// A header at least, and what an IP packet of 64 KiB makes at most, with VLAN tags.
  public static let sizes = 14...65562
  /// Random addresses of stations: administered locally, of one station (IEEE 802, 8.2).
  public static func localAddress(_ random: [UInt8]) -> [UInt8] {
    var address = Array((random + [UInt8](repeating: 0, count: 6)).prefix(6))
    address[0] = address[0] & 0xFC | 0x02
    return address
  }
}
