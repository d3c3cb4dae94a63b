// SPDX-License-Identifier: Apache-2.0
// The system calls that filters speak of, by their numbers on x86-64, which never change (linux,
// arch/x86/entry/syscalls/syscall_64.tbl).

import CHost

/// A system call that some thread of ours may need.
public enum SystemCall: UInt32, Sendable, CaseIterable {
  case read = 0
  case write = 1
  case close = 3
  case poll = 7
  case lseek = 8
  case mmap = 9
  case mprotect = 10
  case munmap = 11
  case brk = 12
  case sigprocmask = 14
  case sigreturn = 15
  case ioctl = 16
  case pread = 17
  case pwrite = 18
  case writev = 20
  case mremap = 25
  case madvise = 28
  case getpid = 39
  case sendto = 44
  case recvmsg = 47
  case shutdown = 48
  case getsockopt = 55
  case exit = 60
  case fsync = 74
  case fdatasync = 75
  case ftruncate = 77
  case geteuid = 107
  case sigtimedwait = 128
  case sigaltstack = 131
  case gettid = 186
  case futex = 202
  case restart = 219
  case clockGettime = 228
  case clockNanosleep = 230
  case exitGroup = 231
  case tgkill = 234
  case unlinkat = 263
  case renameat = 264
  case linkat = 265
  case fallocate = 285
  case accept4 = 288
  case getrandom = 318

  /// As the kernel calls it.
  public var name: String { SystemCall.name(of: Int32(rawValue)) }

  /// The name of any call, also of those that no thread of ours needs.
  public static func name(of number: Int32) -> String {
    // SAFETY: a string literal of the C target.
    unsafe String(cString: chost_system_call_name(number))
  }
}
