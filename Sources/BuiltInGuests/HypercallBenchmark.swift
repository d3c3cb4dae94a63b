// SPDX-License-Identifier: Apache-2.0
// What a hypercall costs, by technique: a built-in guest reads the time-stamp counter around a loop of calls, five
// times, as the benchmark did that argued for patching (Matias Zabaljauregui, "lguest: use KVM hypercalls", 2009),
// whose figures stand beside ours.

import Host
import Lguest
import Paravirt
import Synchronization
import X86

/// Measures one way for a guest to reach its host.
package struct HypercallBenchmark: Sendable {
  /// A way to reach the host.
  package enum Technique: String, Sendable, CaseIterable {
    /// The vendor's own instruction; the answer is always the same, and translated code gives it.
    case native
    /// The same, but the host program answers.
    case program
    /// The other vendor's instruction, performed by the machine each time.
    case emulated
    /// The other vendor's instruction, at sites that were never executed: translated, replaced, translated again,
    /// answered.
    case patchedFirst
    /// The other vendor's instruction from the second time on.
    case patched
    /// A call of the stub that was patched when the guest registered, as in February 2007; the host program answers.
    case stub2007
    /// For comparison: a read of a register of the serial port.
    case port
    /// For comparison: a read of a register of the IOAPIC.
    case mmio
  }

  /// What was measured.
  package struct Measurement: Sendable {
    package let technique: Technique
    /// How many vCPUs did it at once.
    package let cpuCount: Int
    /// TSC ticks for a call, the loop around it included: the average of each of the five runs, over all vCPUs.
    package let cycles: [Double]
    /// Nanoseconds for a call: the median run.
    package let nanoseconds: Double

    /// The run in the middle.
    package var median: Double { cycles.sorted()[cycles.count / 2] }
  }

  /// Runs of a measurement; one more before them, which translates the code, does not count.
  package static let runs = 5

  /// One vCPU, and as many as the host has CPUs, from two to eight.
  package static var usualCPUCounts: [Int] { [1, min(max(HostCapacity.current().cpus, 2), 8)] }

  package let technique: Technique
  /// How many vCPUs do it at once.
  package let cpuCount: Int

  /// - Parameter cpuCount: 1 to what a configuration allows.
  package init(_ technique: Technique, cpuCount: Int = 1) {
    self.technique = technique
    self.cpuCount = cpuCount
  }

  /// Calls in a run: about a millisecond of them, so that most runs escape the host's scheduler.
  private var calls: UInt64 {
    switch technique {
    case .native, .patched: 50_000
    case .patchedFirst: UInt64(HypercallBenchmark.sitesPerRun)
    case .program, .emulated, .stub2007, .port, .mmio: 1_000
    }
  }

  /// Runs the guest.
  ///
  /// - Throws: `ConfigurationError`: what stops any run, or a guest that did not get to its end.
  package func measure() throws(ConfigurationError) -> Measurement {
    let guest = try BuiltInGuest(code: code)
    var configuration = guest.configuration
    configuration.cpuCount = cpuCount
    switch technique {
    case .native, .program, .port, .mmio: break
    case .emulated:
      configuration.cpuVendor = .amd
      configuration.foreignHypercall = .emulate
    case .patchedFirst, .patched:
      configuration.cpuVendor = .amd
      configuration.foreignHypercall = .patch
    case .stub2007: configuration.kvmAPI = .year2007
    }
    let ticks = Ticks()
    configuration.hypercalls[HypercallBenchmark.report] = { call in
      ticks.values.withLock { $0.append(call.arguments[0]) }
      return 0
    }
    configuration.hypercalls[HypercallBenchmark.nothing] = { _ in 0 }
    let calibration = TimestampCalibration()
    let result = try VirtualMachine(configuration: configuration).run()
    guard let counter = calibration.finish() else { throw .cannotStart("the host's time-stamp counter stands still") }
    let values = ticks.values.withLock { $0 }
    guard result.ending == .debugExit(0), values.count == (HypercallBenchmark.runs + 1) * cpuCount else {
      throw .cannotStart("the guest that measures '\(technique.rawValue)' ended with \(result.cause.rawValue)")
    }
    // The vCPUs wait for each other, so that a run's reports come together.
    let cycles = (1...HypercallBenchmark.runs).map { run in
      values[run * cpuCount..<(run + 1) * cpuCount].reduce(0) { $0 + Double($1) } / Double(cpuCount) / Double(calls)
    }
    let median = cycles.sorted()[cycles.count / 2]
    return Measurement(
      technique: technique, cpuCount: cpuCount, cycles: cycles, nanoseconds: median / Double(counter.kilohertz) * 1e6)
  }

  private final class Ticks: Sendable {
    let values = Mutex<[UInt64]>([])
  }

  // MARK: The guest

  /// Hypercalls of this program: the ticks of a run, and nothing.
  private static let report: UInt64 = 0x1000
  private static let nothing: UInt64 = 0x1001
  private static let sitesPerRun = 100
  /// Where the vCPUs wait for each other.
  private static let meetingPoint = BuiltInGuest.data + 0x2000
  /// Sites lie this far apart, so that they are as strangers to each other.
  private static let siteStride = 64

  private var own: HypercallOpcode {
    switch technique {
    case .emulated, .patchedFirst, .patched: .vmmcall
    case .native, .program, .stub2007, .port, .mmio: .vmcall
    }
  }

  private var code: [UInt8] {
    var a = GuestAssembler()
    let (begin, site, end, sleep) = (a.label(), a.label(), a.label(), a.label())
    if technique == .stub2007 { register(&a, stub: site, failed: end) }
    if cpuCount > 1 { a.startProcessors(cpuCount, at: begin) }
    a.place(begin)
    a.becomeProcessor(.r15, stackTop: BuiltInGuest.stackTop)
    a.lea(.rsi, site)
    a.mov(.r10, UInt64(cpuCount))
    a.mov(.r12, UInt64(HypercallBenchmark.runs + 1))
    let run = a.here()
    a.mov(.rdi, HypercallBenchmark.meetingPoint)
    a.meet(cpuCount)
    a.readTimestamp()
    a.mov(.r13, .rax)
    a.mov(.rbp, calls)
    let again = a.here()
    call(&a)
    a.sub(.rbp, 1)
    a.jump(.notEqual, again)
    a.readTimestamp()
    a.sub(.rax, .r13)
    // The first argument, today's and that of 2007.
    a.mov(.rbx, .rax)
    a.mov(.rdi, .rax)
    a.mov(.rax, HypercallBenchmark.report)
    a.hypercall(own)
    a.sub(.r12, 1)
    a.jump(.notEqual, run)
    a.mov(.rdi, HypercallBenchmark.meetingPoint)
    a.meet(cpuCount)
    a.cmp(.r15, 0)
    a.jump(.notEqual, sleep)
    a.mov(.rax, 0)
    a.place(end)
    a.mov(.rdx, 0xF4)
    a.outByte()
    a.place(sleep)
    a.halt()
    a.align(4096)
    a.place(site)
    appendSites(&a)
    return a.code
  }

  /// One call; RBP, RSI, R10, R12, R13 and R15 are taken.
  private func call(_ a: inout GuestAssembler) {
    switch technique {
    case .native, .emulated, .patched:
      a.mov(.rax, KVMHypercall.pollInterrupts.rawValue)
      a.hypercall(.vmcall)
    case .program:
      a.mov(.rax, HypercallBenchmark.nothing)
      a.hypercall(own)
    case .patchedFirst:
      a.call(.rsi)
      a.add(.rsi, Int32(HypercallBenchmark.siteStride))
    case .stub2007:
      a.mov(.rax, HypercallBenchmark.nothing)
      a.call(.rsi)
    case .port:
      a.mov(.rdx, 0x3FF)
      a.inByte()
    case .mmio:
      a.mov(.rbx, 0xFEC0_0000)
      a.load32(.rax, .rbx)
    }
  }

  private func appendSites(_ a: inout GuestAssembler) {
    switch technique {
    case .patchedFirst:
      for _ in 0..<HypercallBenchmark.sitesPerRun * (HypercallBenchmark.runs + 1) {
        a.align(HypercallBenchmark.siteStride)
        a.mov(.rax, KVMHypercall.pollInterrupts.rawValue)
        a.hypercall(.vmcall)
        a.ret()
      }
    case .stub2007:
      // What the guests of that time had there: before it is patched it says that there are no hypercalls.
      a.mov(.rax, 0xFFFF_FFDA)
      a.ret()
    case .native, .program, .emulated, .patched, .port, .mmio: break
    }
  }

  /// Registers by the interface of February 2007; to `failed` with a status in RAX if that is refused.
  private func register(_ a: inout GuestAssembler, stub: GuestAssembler.Label, failed: GuestAssembler.Label) {
    a.mov(.rdi, BuiltInGuest.data)
    a.mov(.rax, 1)
    a.store(.rax, .rdi)  // guest_version 1, host_version 0
    a.mov(.rax, UInt64(UInt32.max) << 32 | 4096)
    a.store(.rax, .rdi, 8)  // size, ret -1
    a.lea(.rax, stub)
    a.store(.rax, .rdi, 16)
    a.mov(.rcx, UInt64(KVMRegistration2007.register))
    a.mov(.rax, BuiltInGuest.data)
    a.mov(.rdx, 0)
    a.wrmsr()
    a.load32(.rax, .rdi, 12)
    a.cmp(.rax, 0)
    a.jump(.notEqual, failed)
  }
}

extension HypercallBenchmark.Technique {
  /// The five runs of 2009 of what is most like it, in cycles: lguest's direct software interrupt, its emulation of the
  /// instruction, and its rewriting into the software interrupt.
  package var figuresOf2009: [Int]? {
    switch self {
    case .native: LguestHypercallBenchmark.Technique.direct.figuresOf2009
    case .emulated: LguestHypercallBenchmark.Technique.emulated.figuresOf2009
    case .patched: LguestHypercallBenchmark.Technique.patched.figuresOf2009
    case .program, .patchedFirst, .stub2007, .port, .mmio: nil
    }
  }
}

extension HypercallBenchmark.Measurement {
  /// `{technique, vcpus, cycles: [...], ns, cycles2009: [...]}`.
  package var json: JSON {
    .object([
      ("technique", .string(technique.rawValue)),
      ("vcpus", .integer(Int64(cpuCount))),
      ("cycles", .array(cycles.map { .double(($0 * 10).rounded() / 10) })),
      ("ns", .double((nanoseconds * 10).rounded() / 10)),
      ("cycles2009", technique.figuresOf2009.map { .array($0.map { .integer(Int64($0)) }) } ?? .null),
    ])
  }
}
