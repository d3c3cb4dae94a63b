// SPDX-License-Identifier: Apache-2.0
// Decompression by the host's own libraries, which every Debian system has because dpkg and apt need them: the formats
// Linux kernels are compressed with.

import Glibc

/// What compressed data can be undone here.
public enum Decompression: String, Sendable, CaseIterable {
  case gzip, xz, zstd
  /// The legacy frame format, which Linux uses.
  case lz4

  /// Decompresses one stream at the beginning of `source`; what follows it is ignored, but for zstd, whose stream must
  /// end where `source` does.
  ///
  /// - Returns: How many bytes it put into `target`; nil if the host lacks the library, the data is damaged or there
  ///   is more of it than room.
  public func decode(_ source: [UInt8], into target: UnsafeMutableRawBufferPointer) -> Int? {
    unsafe source.withUnsafeBytes { source in
      guard let input = source.baseAddress, let output = target.baseAddress else { return nil }
      return switch self {
      case .gzip: unsafe Self.gzip(input, source.count, output, target.count)
      case .xz: unsafe Self.xz(input, source.count, output, target.count)
      case .zstd: unsafe Self.zstd(input, source.count, output, target.count)
      case .lz4: unsafe Self.lz4(input, source.count, output, target.count)
      }
    }
  }

  /// Decompresses a stream of exactly `byteCount` bytes into a file that exists only in memory.
  public func decode(_ source: [UInt8], byteCount: Int, description: String) -> HostFile? {
    guard byteCount > 0, let memory = try? MemoryFile(name: "lguest-unpacked", byteCount: byteCount),
      let mapping = try? Mapping.shared(memory, byteCount: byteCount, [.read, .write]),
      unsafe decode(source, into: UnsafeMutableRawBufferPointer(start: mapping.base, count: byteCount)) == byteCount
    else { return nil }
    return try? HostFile(memory, description: description)
  }

  /// Decompresses a stream of at most `room` bytes; nil as above.
  public func decode(_ source: [UInt8], room: Int) -> [UInt8]? {
    guard room > 0 else { return nil }
    var isDone = false
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: room) { target, count in
      let decoded = unsafe decode(source, into: UnsafeMutableRawBufferPointer(target))
      (isDone, count) = (decoded != nil, decoded ?? 0)
    }
    return isDone ? bytes : nil
  }

  private typealias Input = UnsafeRawPointer
  private typealias Output = UnsafeMutableRawPointer

  /// lzma_stream_buffer_decode (liblzma, lzma/container.h).
  private static func xz(_ input: Input, _ count: Int, _ output: Output, _ room: Int) -> Int? {
    typealias Decode =
      @convention(c) (
        UnsafeMutablePointer<UInt64>, UInt32, UnsafeRawPointer?, Input, UnsafeMutablePointer<Int>, Int, Output,
        UnsafeMutablePointer<Int>, Int
      ) -> Int32
    guard let library = HostLibrary("liblzma.so.5"),
      let decode = unsafe library.function("lzma_stream_buffer_decode", as: Decode.self)
    else { return nil }
    var memoryLimit = UInt64(1) << 30
    var read = 0
    var written = 0
    let status = unsafe decode(&memoryLimit, 0, nil, input, &read, count, output, &written, room)
    return status == 0 ? written : nil  // LZMA_OK
  }

  /// inflate (zlib.h) with a gzip header. Its z_stream has 112 bytes: next_in at 0, avail_in at 8, next_out at 24,
  /// avail_out at 32, total_out at 40.
  private static func gzip(_ input: Input, _ count: Int, _ output: Output, _ room: Int) -> Int? {
    typealias Begin = @convention(c) (Output, Int32, UnsafePointer<CChar>, Int32) -> Int32
    typealias Inflate = @convention(c) (Output, Int32) -> Int32
    typealias End = @convention(c) (Output) -> Int32
    guard count <= Int(UInt32.max), room <= Int(UInt32.max), let library = HostLibrary("libz.so.1"),
      let begin = unsafe library.function("inflateInit2_", as: Begin.self),
      let inflate = unsafe library.function("inflate", as: Inflate.self),
      let end = unsafe library.function("inflateEnd", as: End.self)
    else { return nil }
    let stream = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    unsafe stream.initializeMemory(as: UInt8.self, repeating: 0, count: 112)
    defer { unsafe stream.deallocate() }
    unsafe stream.storeBytes(of: input, toByteOffset: 0, as: Input.self)
    unsafe stream.storeBytes(of: UInt32(count), toByteOffset: 8, as: UInt32.self)
    unsafe stream.storeBytes(of: output, toByteOffset: 24, as: Output.self)
    unsafe stream.storeBytes(of: UInt32(room), toByteOffset: 32, as: UInt32.self)
    let gzipWindow: Int32 = 16 + 15
    guard unsafe begin(stream, gzipWindow, "1.2.11", 112) == 0 else { return nil }
    let status = unsafe inflate(stream, 4)  // Z_FINISH
    let written = unsafe stream.load(fromByteOffset: 40, as: UInt.self)
    _ = unsafe end(stream)
    return status == 1 ? Int(written) : nil  // Z_STREAM_END
  }

  /// ZSTD_decompress (zstd.h).
  private static func zstd(_ input: Input, _ count: Int, _ output: Output, _ room: Int) -> Int? {
    typealias Decode = @convention(c) (Output, Int, Input, Int) -> Int
    typealias IsError = @convention(c) (Int) -> UInt32
    guard let library = HostLibrary("libzstd.so.1"),
      let decode = unsafe library.function("ZSTD_decompress", as: Decode.self),
      let isError = unsafe library.function("ZSTD_isError", as: IsError.self)
    else { return nil }
    let written = unsafe decode(output, room, input, count)
    return isError(written) == 0 ? written : nil
  }

  /// LZ4_decompress_safe (lz4.h) for each block: after the magic number, blocks with their compressed size in front.
  private static func lz4(_ input: Input, _ count: Int, _ output: Output, _ room: Int) -> Int? {
    typealias Decode = @convention(c) (Input, Output, Int32, Int32) -> Int32
    guard let library = HostLibrary("liblz4.so.1"),
      let decode = unsafe library.function("LZ4_decompress_safe", as: Decode.self)
    else { return nil }
    let blockRoom = 8 << 20
    var offset = 4
    var written = 0
    // Whatever is too short for a block is not of the stream.
    while count - offset > 4 {
      let size = unsafe Int(input.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
      offset += 4
      guard size <= count - offset else { return nil }
      let wanted = Int32(clamping: min(room - written, blockRoom))
      let got = unsafe decode(input + offset, output + written, Int32(clamping: size), wanted)
      guard got >= 0 else { return nil }
      offset += size
      written += Int(got)
    }
    return written
  }
}
