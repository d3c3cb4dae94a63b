// SPDX-License-Identifier: Apache-2.0
// Host address space, owned: a region is unmapped exactly when its owner goes away. Guest RAM, page flags and
// the code cache are made of these.

import CHost
import Glibc
import SystemPackage

/// The host's page size, in bytes; x86-64 has one.
public let hostPageSize = 4096

/// A region of this process's address space.
///
/// Contents may be changed by other threads, by guests and through other mappings of the same file.
@safe public struct Mapping: ~Copyable, @unchecked Sendable {
  /// What may be done to a page.
  public struct Access: OptionSet, Sendable {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let read = Access(rawValue: PROT_READ)
    public static let write = Access(rawValue: PROT_WRITE)
    public static let execute = Access(rawValue: PROT_EXEC)
    public static let none: Access = []
  }

  /// The first byte; page-aligned. Valid as long as the mapping lives.
  public let base: UnsafeMutableRawPointer
  /// Size, a multiple of the page size.
  public let byteCount: Int
  /// Inaccessible address space of ours before and behind it, in bytes.
  private let before: Int
  private let behind: Int

  private init(byteCount: Int, _ access: Access, flags: Int32, fd: Int32, offset: Int) throws(HostError) {
    let subject = "\(describe(byteCount: UInt64(clamping: byteCount))) of address space"
    guard byteCount > 0, byteCount <= Int.max - hostPageSize else {
      throw HostError("map", subject, reason: "the size is out of range")
    }
    let rounded = (byteCount + hostPageSize - 1) & ~(hostPageSize - 1)
    // SAFETY: without MAP_FIXED the kernel picks an address nobody uses.
    let result = unsafe mmap(nil, rounded, access.rawValue, flags, fd, offset)
    guard let result = unsafe result, unsafe result != MAP_FAILED else {
      let error = currentErrno
      throw AddressSpaceLimit.error(UInt64(rounded), error) ?? HostError("map", subject, errno: error)
    }
    unsafe self.base = result
    self.byteCount = rounded
    before = 0
    behind = 0
  }

  private init(_ base: UnsafeMutableRawPointer, byteCount: Int, before: Int, behind: Int) {
    unsafe self.base = base
    self.byteCount = byteCount
    self.before = before
    self.behind = behind
  }

  /// The same region, of which only `byteCount` bytes from `offset` on are to be used.
  private consuming func narrowed(from offset: Int, byteCount: Int) -> Mapping {
    let inner = unsafe Mapping(
      base + offset, byteCount: byteCount, before: offset, behind: self.byteCount - offset - byteCount)
    discard self
    return inner
  }

  deinit { unsafe _ = munmap(base - before, before + byteCount + behind) }

  /// Zeroed private memory; pages are taken from the host when first touched.
  public static func anonymous(byteCount: Int, _ access: Access = [.read, .write]) throws(HostError) -> Mapping {
    try Mapping(byteCount: byteCount, access, flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd: -1, offset: 0)
  }

  /// Address space that faults on every access until something is placed in it.
  public static func reserve(byteCount: Int) throws(HostError) -> Mapping {
    try anonymous(byteCount: byteCount, .none)
  }

  /// The same, alone: nothing else of this process lies within 4 GiB and 64 KiB below it or 8 GiB above it, so that an
  /// address that was checked, plus or minus any 32-bit displacement, twice, meets nothing at all. Costs address space
  /// only: not memory, and no part of what the host may overcommit.
  public static func reserveAlone(byteCount: Int) throws(HostError) -> Mapping {
    guard byteCount > 0, byteCount <= Int.max / 2 else {
      throw HostError("reserve", "\(byteCount) bytes of address space", reason: "the size is out of range")
    }
    let rounded = (byteCount + hostPageSize - 1) & ~(hostPageSize - 1)
    return try reserve(byteCount: Guard.below + rounded + Guard.above).narrowed(
      from: Guard.below, byteCount: rounded)
  }

  /// Zeroed private memory, alone as `reserveAlone` says.
  public static func anonymousAlone(byteCount: Int) throws(HostError) -> Mapping {
    let mapping = try reserveAlone(byteCount: byteCount)
    try mapping.protect(at: 0, byteCount: mapping.byteCount, [.read, .write])
    return mapping
  }

  /// What `reserveAlone` keeps free, in bytes.
  public enum Guard {
    public static let below = 4 << 30 + 64 << 10
    public static let above = 8 << 30
  }

  /// A shared mapping of a memory file.
  public static func shared(
    _ file: borrowing MemoryFile, byteCount: Int, _ access: Access
  ) throws(HostError) -> Mapping {
    try Mapping(
      byteCount: byteCount, access, flags: MAP_SHARED | MAP_NORESERVE, fd: file.descriptor.rawValue, offset: 0)
  }

  /// Replaces `[offset, offset + byteCount)` of this region with a shared mapping of a memory file from
  /// `fileOffset` on. All three are multiples of the page size.
  public func place(
    _ file: borrowing MemoryFile, fileOffset: Int, at offset: Int, byteCount: Int, _ access: Access
  ) throws(HostError) {
    precondition(offset >= 0 && byteCount >= 0 && byteCount <= self.byteCount && offset <= self.byteCount - byteCount)
    guard byteCount > 0 else { return }
    // SAFETY: MAP_FIXED replaces only pages this value owns.
    let result = unsafe mmap(
      base + offset, byteCount, access.rawValue, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file.descriptor.rawValue,
      fileOffset)
    guard unsafe result != MAP_FAILED else {
      throw HostError("map", "\(describe(byteCount: UInt64(byteCount))) of memory", errno: currentErrno)
    }
  }

  /// Replaces `[offset, offset + byteCount)` of this region with private copies of a file's pages from `fileOffset` on,
  /// each made when it is first written. All three are multiples of the page size.
  ///
  /// The file must not become shorter as long as the mapping lives: touching what is missing kills the process.
  public func place(
    copyOf file: HostFile, fileOffset: Int, at offset: Int, byteCount: Int, _ access: Access
  ) throws(HostError) {
    precondition(offset >= 0 && byteCount >= 0 && byteCount <= self.byteCount && offset <= self.byteCount - byteCount)
    guard byteCount > 0 else { return }
    // SAFETY: MAP_FIXED replaces only pages this value owns.
    let result = unsafe mmap(
      base + offset, byteCount, access.rawValue, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, file.descriptor.rawValue,
      fileOffset)
    guard unsafe result != MAP_FAILED else { throw HostError("map", file.description, errno: currentErrno) }
  }

  /// Changes what may be done to `[offset, offset + byteCount)`; both are multiples of the page size.
  public func protect(at offset: Int, byteCount: Int, _ access: Access) throws(HostError) {
    precondition(offset >= 0 && byteCount >= 0 && byteCount <= self.byteCount && offset <= self.byteCount - byteCount)
    guard unsafe mprotect(base + offset, byteCount, access.rawValue) == 0 else {
      throw HostError("protect", "\(byteCount) bytes of memory", errno: currentErrno)
    }
  }

  /// Asks for huge pages (or for none). Advice: a kernel without them is not an error.
  public func adviseHugePages(_ wanted: Bool) {
    unsafe _ = madvise(base, byteCount, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)
  }

  /// Keeps the contents out of core dumps.
  public func excludeFromCoreDumps() { unsafe _ = madvise(base, byteCount, MADV_DONTDUMP) }

  /// Gives the pages of private memory in `[offset, offset + byteCount)` back to the host: they read as zero again.
  public func discard(at offset: Int, byteCount: Int) {
    precondition(offset >= 0 && byteCount >= 0 && byteCount <= self.byteCount && offset <= self.byteCount - byteCount)
    unsafe _ = madvise(base + offset, byteCount, MADV_DONTNEED)
  }
}

/// A file that exists only in memory (`memfd_create`): sparse, nameless in the file system, gone with the process.
public struct MemoryFile: ~Copyable, Sendable {
  /// Owned by this value; closed with it.
  public let descriptor: FileDescriptor
  /// Size in bytes.
  public let byteCount: Int

  /// - Parameter name: Shown in /proc/self/maps, for people.
  public init(name: String, byteCount: Int) throws(HostError) {
    let fd = try checked(unsafe chost_memfd(name), "create", "memory file \(name)")
    guard ftruncate(fd, byteCount) == 0 else {
      let error = currentErrno
      _ = Glibc.close(fd)
      throw HostError("size", "memory file \(name) to \(byteCount) bytes", errno: error)
    }
    descriptor = FileDescriptor(rawValue: fd)
    self.byteCount = byteCount
  }

  /// Stores bytes. False if the host has no memory for them; some of them may have been stored then.
  public func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) -> Bool {
    (unsafe try? descriptor.writeAll(toAbsoluteOffset: Int64(offset), bytes)) == bytes.count
  }

  /// Fills a buffer; false if the file ends before, or the host has lost what was in it.
  public func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) -> Bool {
    var done = 0
    while done < buffer.count {
      guard
        let more = unsafe try? descriptor.read(
          fromAbsoluteOffset: Int64(offset + done), into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...])),
        more > 0
      else { return false }
      done += more
    }
    return true
  }

  /// Gives the memory of some pages back to the host: they are zero afterwards, also in mappings. False if it refuses.
  public func discard(at offset: Int, byteCount: Int) -> Bool {
    chost_punch_hole(descriptor.rawValue, UInt64(offset), UInt64(byteCount)) == 0
  }

  deinit { _ = Glibc.close(descriptor.rawValue) }
}

/// One memory file mapped twice, writable and executable, so that no address is ever both. Each lies alone
/// (`Mapping.reserveAlone`).
@safe public final class DualMapping: @unchecked Sendable {
  private let writableMapping: Mapping
  private let executableMapping: Mapping

  /// Size in bytes, a multiple of the page size.
  public var byteCount: Int { writableMapping.byteCount }
  /// Where to store code. Valid as long as this object lives.
  public let writable: UnsafeMutableRawPointer
  /// The same bytes, to be executed. Valid as long as this object lives.
  public let executable: UnsafeRawPointer

  /// Makes a zeroed, sparse double mapping.
  ///
  /// - Parameter byteCount: Rounded up to whole pages.
  /// - Throws: `HostError`; hosts that forbid executable shared memory (SELinux `execmem`, `noexec` tmpfs) do so here.
  public init(byteCount: Int) throws(HostError) {
    let rounded = (max(byteCount, 1) + hostPageSize - 1) & ~(hostPageSize - 1)
    let file = try MemoryFile(name: "lguest-code", byteCount: rounded)
    writableMapping = try .reserveAlone(byteCount: rounded)
    executableMapping = try .reserveAlone(byteCount: rounded)
    try writableMapping.place(file, fileOffset: 0, at: 0, byteCount: rounded, [.read, .write])
    try executableMapping.place(file, fileOffset: 0, at: 0, byteCount: rounded, [.read, .execute])
    unsafe writable = writableMapping.base
    unsafe executable = UnsafeRawPointer(executableMapping.base)
  }
}
