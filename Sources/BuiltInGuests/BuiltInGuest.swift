// SPDX-License-Identifier: Apache-2.0
// A guest that needs no file: code made in memory, with an ELF header around it, in a memory file that the loader reads
// as it reads a kernel's. It begins in 64-bit mode with the first 4 GiB mapped one to one.

import Boot
import Host
import Lguest
import Synchronization
import SystemPackage

/// A program that is a whole guest. The memory file lives as long as this.
final class BuiltInGuest: Sendable {
  /// Where the code is loaded and begins, in guest-physical memory.
  static let origin: UInt64 = 0x10_0000
  /// Where guests may put their stack, growing downwards, and from where on their data.
  static let stackTop: UInt64 = 0x20_0000
  static let data: UInt64 = 0x20_0000

  private let file: MemoryFile

  /// - Parameter isLong: 64-bit code; else 32-bit code for lguest's interface.
  /// - Throws: `ConfigurationError` if the host gives no memory file.
  init(code: [UInt8], isLong: Bool = true) throws(ConfigurationError) {
    let image = BuiltInGuest.executable(code, isLong: isLong)
    do throws(HostError) { file = try MemoryFile(name: "lguest-built-in", byteCount: image.count) } catch {
      throw ConfigurationError(error)
    }
    do { _ = try file.descriptor.writeAll(toAbsoluteOffset: 0, image) } catch {
      throw ConfigurationError(HostError("write", "a built-in guest", errno: error as? Errno ?? .ioError))
    }
  }

  /// What to give as the kernel.
  var kernel: FilePath { FilePath("/proc/self/fd/\(file.descriptor.rawValue)") }

  /// A configuration that every built-in guest starts from: little memory, an exit status, a time limit.
  var configuration: VirtualMachine.Configuration {
    var configuration = VirtualMachine.Configuration(kernel: kernel)
    configuration.entry = .linux64
    configuration.memorySize = 32 << 20
    configuration.cpuCount = 1
    configuration.debugExit = true
    configuration.bootTimeout = nil
    configuration.timeout = .seconds(60)
    return configuration
  }

  /// The same for one of lguest's interface, which ends by SHUTDOWN.
  var ring1Configuration: VirtualMachine.Configuration {
    var configuration = configuration
    configuration.abi = .lguest
    configuration.entry = .auto
    configuration.debugExit = false
    return configuration
  }

  /// An ELF executable of one segment (System V ABI, AMD64 and Intel386 supplements; ELF-64 object file format; Tool Interface
  /// Standard, ELF 1.2). The two classes differ in the size of addresses and in where a segment's flags are.
  private static func executable(_ code: [UInt8], isLong: Bool) -> [UInt8] {
    let (headerSize, entrySize): (UInt64, UInt64) = isLong ? (64, 56) : (52, 32)
    let address = isLong ? 8 : 4
    var bytes: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, isLong ? 2 : 1, 1, 1] + [UInt8](repeating: 0, count: 9)
    func put(_ value: UInt64, _ count: Int) {
      for index in 0..<count { bytes.append(UInt8(value >> (8 * index) & 0xFF)) }
    }
    put(2, 2)  // ET_EXEC
    put(isLong ? 62 : 3, 2)  // EM_X86_64, EM_386
    put(1, 4)
    for value in [origin, headerSize, 0] { put(value, address) }  // entry, program headers, no sections
    put(0, 4)
    for value in [headerSize, entrySize, 1, 0, 0, 0] { put(value, 2) }
    let flags: UInt64 = 7  // readable, writable, executable
    put(1, 4)  // PT_LOAD
    if isLong { put(flags, 4) }
    let size = UInt64(code.count)
    for value in [headerSize + entrySize, origin, origin, size, size] { put(value, address) }
    if !isLong { put(flags, 4) }
    put(1, address)
    return bytes + code
  }
}

/// What a guest has written on its console.
final class ConsoleText: Sendable {
  private let all = Mutex<[UInt8]>([])

  var bytes: [UInt8] { all.withLock { $0 } }
  var text: String { String(decoding: bytes, as: UTF8.self) }

  /// Takes a byte of it.
  func put(_ byte: UInt8) { all.withLock { $0.append(byte) } }
}
