// SPDX-License-Identifier: Apache-2.0
// What each kind of thread may do once it is confined, and machines whose threads are.

import Foundation
import Host
import Synchronization
import SystemPackage
import Testing

@testable import Lguest

@Suite("Sandbox") struct SandboxTests {
  private func allows(_ kind: Sandbox.Kind, _ call: FilterInterpreter.Call) -> Bool {
    FilterInterpreter.run(Sandbox.filter(of: kind), call) == .allow
  }

  @Test("a refusal says which kind of thread it was", arguments: Sandbox.Kind.allCases)
  func data(kind: Sandbox.Kind) throws {
    let number = try #require(Sandbox.Kind.allCases.firstIndex(of: kind))
    #expect(FilterInterpreter.run(Sandbox.filter(of: kind), .init(59)) == .trap(UInt32(number)))
  }

  @Test("a vCPU's thread has 25 calls at most") func count() {
    #expect(Sandbox.rights.filter { $0.kinds.contains(.vcpu) }.count <= 25)
  }

  @Test(
    "no thread opens, executes, connects, maps code, makes threads or signals others", arguments: Sandbox.Kind.allCases)
  func never(kind: Sandbox.Kind) throws {
    let never = """
      open openat creat openat2 open_by_handle_at execve execveat socket socketpair connect bind listen accept
      sendmsg sendmmsg clone fork vfork clone3 kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
      pidfd_open pidfd_getfd ptrace process_vm_readv process_vm_writev pkey_mprotect shmat memfd_create
      io_uring_setup bpf seccomp prctl rt_sigaction chmod fchmod chown mount unshare setns chroot pivot_root
      userfaultfd perf_event_open keyctl setuid setresuid setgid capset personality arch_prctl dup2 fcntl
      symlink mknod mkdir truncate sendfile splice
      """.split(whereSeparator: \.isWhitespace).map(String.init)
    for name in never + (kind == .names ? [] : SandboxTests.naming) {
      let number = try #require((0..<500).first { SystemCall.name(of: $0) == name }, "\(name)")
      #expect(!allows(kind, .init(UInt32(number))), "\(name)")
    }
  }

  /// What changes names of files: for the process that has nothing else.
  private static let naming = ["link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"]

  @Test("arguments decide where it matters", arguments: Sandbox.Kind.threads) func arguments(kind: Sandbox.Kind) {
    let (read, write, execute, anonymous, shared): (UInt64, UInt64, UInt64, UInt64, UInt64) = (1, 2, 4, 0x20, 1)
    #expect(allows(kind, .init(.mmap, 0, 4096, read | write, 2 | anonymous, .max, 0)))
    #expect(!allows(kind, .init(.mmap, 0, 4096, read | execute, 2 | anonymous, .max, 0)))
    #expect(!allows(kind, .init(.mmap, 0, 4096, read, shared, 3, 0)))
    #expect(allows(kind, .init(.mprotect, 0x1000, 4096, read | write)))
    #expect(!allows(kind, .init(.mprotect, 0x1000, 4096, read | execute)))
    #expect(!allows(kind, .init(.mprotect, 0x1000, 4096, execute | 1 << 40)))
    // MREMAP_FIXED.
    #expect(allows(kind, .init(.mremap, 0, 0, 0, 1)) && !allows(kind, .init(.mremap, 0, 0, 0, 3)))
    // MADV_HWPOISON.
    #expect(allows(kind, .init(.madvise, 0, 4096, 4)) && !allows(kind, .init(.madvise, 0, 4096, 100)))
    // TCSETS, TIOCSTI, TIOCLINUX.
    #expect(allows(kind, .init(.ioctl, 0, 0x5402)))
    #expect(!allows(kind, .init(.ioctl, 0, 0x5412)) && !allows(kind, .init(.ioctl, 0, 0x541C)))
    // FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, FUTEX_CMP_REQUEUE_PI.
    #expect(allows(kind, .init(.futex, 0, 0x89)) && !allows(kind, .init(.futex, 0, 12)))
    let me = UInt64(getpid()), stop = UInt64(SIGSTOP)
    #expect(allows(kind, .init(.tgkill, me, 1, stop)) == (kind == .signals))
    #expect(!allows(kind, .init(.tgkill, me, 1, UInt64(SIGKILL))) && !allows(kind, .init(.tgkill, 1, 1, stop)))
    // An address in sendto(2) names somebody new.
    #expect(allows(kind, .init(.sendto, 3, 0x1000, 5, 0, 0, 0)) == [.control, .network].contains(kind))
    #expect(!allows(kind, .init(.sendto, 3, 0x1000, 5, 0, 0x2000, 16)))
  }

  @Test("docs/threat-model.md has every call of every kind, and no other") func documented() throws {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let page = try String(contentsOf: root.appending(path: "docs/threat-model.md"), encoding: .utf8)
    for kind in Sandbox.Kind.allCases {
      let row = try #require(page.split(separator: "\n").first { $0.hasPrefix("| `\(kind.rawValue)` |") }, "\(kind)")
      let named = Set(row.matches(of: /`([a-z0-9_]+)`/).map { String($0.1) }.dropFirst())
      let everybody = try #require(page.split(separator: "\n").first { $0.hasPrefix("| every thread |") })
      let common = Set(everybody.matches(of: /`([a-z0-9_]+)`/).map { String($0.1) })
      let rights = Set(Sandbox.rights.filter { $0.kinds.contains(kind) }.map(\.rule.call.name))
      #expect((kind == .names ? named : named.union(common)) == rights, "\(kind)")
    }
  }

  private func configuration(_ file: FilePath) -> VirtualMachine.Configuration {
    var configuration = VirtualMachine.Configuration(kernel: file)
    configuration.memorySize = 64 << 20
    configuration.timeout = .seconds(60)
    configuration.debugExit = true
    configuration.sandbox = Sandbox()
    return configuration
  }

  @Test("a machine's threads are confined, and the program's are not", arguments: [1, 3]) func machine(cpus: Int) throws
  {
    // The number of this process's threads that have more filters than the caller, while the guest prints.
    let confined = Mutex<[String]>([])
    let bytes = Mutex<[UInt8]>([])
    let isSeen = Atomic(false)
    let result = try TinyGuest.echo.withFile { file in
      var configuration = configuration(file)
      configuration.cpuCount = cpus
      configuration.slowMemory = .milliseconds(1)
      configuration.consoleOutput = { byte in bytes.withLock { $0.append(byte) } }
      let machine = VirtualMachine(configuration: configuration)
      machine.consoleInput.put([UInt8(ascii: "x")])
      let beside = Thread {
        let deadline = Date() + 30
        while bytes.withLock({ $0.isEmpty }), Date() < deadline { Thread.sleep(forTimeInterval: 0.001) }
        confined.withLock { $0 = SandboxTests.filteredThreads() }
        machine.consoleInput.put([UInt8(ascii: "q")])
        isSeen.store(true, ordering: .releasing)
      }
      beside.start()
      return try machine.run()
    }
    #expect(result.ending == .poweroff && bytes.withLock { String(decoding: $0, as: UTF8.self) } == "x")
    let names = Set(confined.withLock { $0 })
    let isOffered = HostProbe.filterProblem() == nil
    let threads = (0..<min(cpus, HostCapacity.current().cpus)).map { "lguest-vcpu\($0)" }
    let expected = Set(threads + ["lguest-timers", "lguest-store", "lguest-watchdog"])
    // Other tests' machines may run beside this one, and are not confined.
    if isOffered { #expect(expected.isSubset(of: names), "\(names)") }
    // The caller may still open files.
    #expect(HostFile.text("/proc/self/stat") != nil)
  }

  /// The names of this process's threads that filter system calls.
  private static func filteredThreads() -> [String] {
    var names: [String] = []
    for task in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? [] {
      let status = HostFile.text(FilePath("/proc/self/task/\(task)/status")) ?? ""
      func field(_ name: String) -> String {
        status.split(separator: "\n").first { $0.hasPrefix(name + ":") }.map {
          $0.dropFirst(name.count + 1).trimmingCharacters(in: .whitespaces)
        } ?? ""
      }
      if field("Seccomp") == "2", field("NoNewPrivs") == "1" { names.append(field("Name")) }
    }
    return names
  }

  @Test("the guest waits for threads that were announced") func announced() throws {
    let sink = Atomic(0)
    try TinyGuest.goodbye.withFile { file in
      var configuration = configuration(file)
      let sandbox = Sandbox()
      configuration.sandbox = sandbox
      configuration.consoleOutput = { _ in sink.add(1, ordering: .relaxed) }
      sandbox.announce()
      let before = Atomic(-1)
      let late = Thread {
        Thread.sleep(forTimeInterval: 0.3)
        before.store(sink.load(ordering: .relaxed), ordering: .relaxed)
        sandbox.confine(.console)
      }
      late.start()
      let result = try VirtualMachine(configuration: configuration).run()
      #expect(result.ending == .poweroff && sink.load(ordering: .relaxed) == 3)
      #expect(before.load(ordering: .relaxed) == 0)
    }
  }
}
