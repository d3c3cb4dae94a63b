// SPDX-License-Identifier: Apache-2.0
// Real kernels under the interface's configurations: what the kernel says it uses, and what it then does.

import Foundation
import Testing

extension SystemTests {
  @Suite(
    "KVM's interface", .serialized,
    .enabled(if: Guest.canBoot, "no kernel or initramfs in the cache; run scripts/test once without --offline"))
  struct ParavirtTests {
    /// Runs commands in the guest's shell; what they print is in the output.
    private func shell(
      _ kernel: String?, _ script: String, _ more: [String] = [], initrd: String? = Guest.initrd,
      name: String = #function
    ) throws -> (Finished, counters: [String: Any]) {
      let json = Guest.temporaryPath()
      let arguments = try [
        "run", "--kernel", #require(kernel), "--initrd", #require(initrd), "--append", "lguest.do=shell",
        "--memory", "256M", "--timeout", "100s", "--json", json,
      ]
      let result = try Guest.run(
        arguments + more, input: "\n: the first characters may be lost\n" + script + "\npoweroff -f\n", limit: 110,
        expecting: 0, name: name)
      return (result, try #require(Guest.json(json)["counters"] as? [String: Any]))
    }

    private static let evidence = """
      dmesg | grep -E 'kvm|KVM|clocksource' | sed 's/^\\[[^]]*\\] *//;s/^/said /'
      echo "fact clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
      grep HYP /proc/interrupts | sed 's/^ */row /'
      echo "fact unchecked $(dmesg | grep -c -E 'unchecked|WARNING:')"
      """

    @Test("one CPU with all that is offered", arguments: ["intel", "amd"]) func everything(vendor: String) throws {
      let (result, counters) = try shell(
        Guest.kernel, Self.evidence, ["--cpu-vendor", vendor], name: "everything-\(vendor)")
      #expect(result.output.contains("said Hypervisor detected: KVM"))
      #expect(result.output.contains("said kvm-clock: Using msrs 4b564d01 and 4b564d00"))
      #expect(result.output.contains("said Booting paravirtualized kernel on KVM"))
      #expect(result.fact("clock") == "kvm-clock" && result.fact("unchecked") == "0")
      // The event that wakes everybody, as the kernel enabled the mechanism.
      #expect(result.output.contains(/row HYP: +[1-9]/))
      #expect(counters["interruptsEndedInMemory"] as? Int ?? 0 > 50)
    }

    /// Processes that come and go on every CPU.
    private static let load = """
      n=$(grep -c ^processor /proc/cpuinfo)
      for i in $(seq $((n * 2))); do (for j in 1 2 3 4 5 6 7 8; do md5sum /bin/busybox | sort >/dev/null; done) & done; wait

      """

    @Test("8 CPUs on 2 host threads", arguments: ["intel", "amd"]) func crowded(vendor: String) throws {
      let (result, _) = try shell(
        // Until time has been stolen from every CPU.
        Guest.kernel,
        "for round in $(seq 40); do grep -q -E '^cpu[0-9]+( [0-9]+){7} 0 ' /proc/stat || break\n" + Self.load + "done\n"
          + Self.evidence + "\ngrep -E '^cpu[0-9]' /proc/stat",
        ["--cpu-vendor", vendor, "--cpus", "8", "--host-threads", "2"], name: "crowded-\(vendor)")
      for line in [
        "kvm-guest: KVM setup pv remote TLB flush", "kvm-guest: setup PV sched yield",
        "kvm-guest: PV spinlocks enabled",
        "kvm-guest: setup PV IPIs",
      ] {
        #expect(result.output.contains("said \(line)"), "\(line)")
      }
      #expect(result.fact("clock") == "kvm-clock" && result.fact("unchecked") == "0")
      #expect(result.output.contains(/row HYP:( +[1-9]\d*){8}/))
      // The eighth number is stolen time, in hundredths of a second.
      let stolen = result.output.matches(of: /cpu[0-9] (?:\d+ ){7}(\d+)/).compactMap { Int($0.1) }
      #expect(stolen.count == 8 && stolen.allSatisfy { $0 > 0 }, "\(stolen)")
    }

    @Test("CPUs of their own: no spinlocks, flushes or yields for crowded hosts") func realtime() throws {
      let (result, counters) = try shell(
        Guest.kernel,
        Self.load + Self.evidence + "\necho fact idle $(cat /sys/devices/system/cpu/cpuidle/current_driver)",
        ["--kvm-hints", "realtime", "--cpus", "2"], name: "realtime")
      #expect(result.output.contains("said kvm-guest: PV spinlocks disabled with KVM_HINTS_REALTIME hints"))
      #expect(!result.output.contains("PV sched yield") && result.output.contains("said kvm-guest: setup PV IPIs"))
      #expect(result.fact("idle") == "haltpoll" && result.fact("unchecked") == "0")
      #expect(counters["kicks"] as? Int == 0 && counters["tlbFlushesSkipped"] as? Int == 0)
    }

    @Test("i386 on several CPUs") func i386Crowded() throws {
      let kernel = try #require(Guest.kernel386("686-pae"))
      let (result, counters) = try shell(
        kernel, Self.load + Self.evidence,
        ["--kvm-features", "no-msi-ext-dest-id", "--cpus", "4", "--host-threads", "2"],
        initrd: Guest.initrd386, name: "i386Crowded")
      #expect(result.output.contains("said kvm-guest: PV spinlocks enabled"))
      #expect(result.fact("clock") == "kvm-clock" && result.fact("unchecked") == "0")
      #expect(result.output.contains(/row HYP:( +[1-9]\d*){4}/))
      #expect(counters["interruptsEndedInMemory"] as? Int ?? 0 > 50)
    }

    @Test("i386: no x2APIC, 32-bit calls") func i386() throws {
      let kernel = try #require(Guest.kernel386("686-pae"))
      let (result, counters) = try shell(
        kernel, Self.evidence, ["--kvm-features", "default,no-msi-ext-dest-id"], initrd: Guest.initrd386, name: "i386")
      #expect(result.output.contains("said kvm-clock: Using msrs 4b564d01 and 4b564d00"))
      #expect(result.fact("clock") == "kvm-clock" && result.fact("unchecked") == "0")
      #expect(result.output.contains(/row HYP: +[1-9]/))
      #expect(counters["interruptsEndedInMemory"] as? Int ?? 0 > 50)
    }

    @Test("the old clock alone") func oldClock() throws {
      let (result, counters) = try shell(
        Guest.kernel, Self.evidence, ["--kvm-features", "clocksource"], name: "oldClock")
      #expect(result.output.contains("said kvm-clock: Using msrs 12 and 11"))
      #expect(result.fact("clock") == "kvm-clock" && result.fact("unchecked") == "0")
      #expect(!result.output.contains(/row HYP: +[1-9]/))
      #expect(counters["interruptsEndedInMemory"] as? Int == 0)
    }

    @Test("a dedicated CPU polls by itself") func dedicated() throws {
      let (result, _) = try shell(
        Guest.kernel, Self.evidence + "\necho fact idle $(cat /sys/devices/system/cpu/cpuidle/current_driver)",
        ["--kvm-hints", "realtime"], name: "dedicated")
      #expect(result.fact("idle") == "haltpoll" && result.fact("unchecked") == "0")
    }

    @Test("an end of interrupt in memory saves an exit") func fewerExits() throws {
      func exits(_ features: String) throws -> (perInterrupt: Double, ended: Int) {
        let (_, counters) = try shell(Guest.kernel, "sleep 2", ["--kvm-features", features], name: "fewerExits")
        let reasons = try #require(counters["exitsByReason"] as? [String: Int])
        let writes = try #require(reasons["msrWrite"])
        let interrupts = try #require(counters["interrupts"] as? Int)
        let ended = try #require(counters["interruptsEndedInMemory"] as? Int)
        return (Double(writes) / Double(interrupts), ended)
      }
      let (without, with) = (try exits("default,no-pv-eoi"), try exits("default"))
      #expect(without.ended == 0 && with.ended > 50)
      // An interrupt of the timer costs two writes, its end and the next deadline; the first goes.
      #expect(with.perInterrupt < without.perInterrupt - 0.5, "\(with.perInterrupt), \(without.perInterrupt)")
    }

    @Test(
      "a PTP clock made of the hypercall that pairs clocks",
      .enabled(
        if: Guest.module("drivers/ptp/ptp_kvm.ko") != nil && Guest.guests != nil, "no module ptp_kvm beside the kernel")
    )
    func clockPairing() throws {
      let module = try #require(Guest.module("drivers/ptp/ptp_kvm.ko"))
      let initrd = Guest.temporaryPath()
      defer { try? FileManager.default.removeItem(atPath: initrd) }
      // Archives one behind the other are one to the kernel.
      let archive =
        try Data(contentsOf: URL(filePath: #require(Guest.initrd)))
        + Guest.archive(["ptp_kvm.ko": module, "bin/ptp": "\(#require(Guest.guests))/ptp"])
      try archive.write(to: URL(filePath: initrd))
      func now() -> Double { Date().timeIntervalSince1970 * 1e9 }
      let begin = now()
      let (result, counters) = try shell(Guest.kernel, "ptp /ptp_kvm.ko", initrd: initrd, name: "clockPairing")
      let end = now()
      #expect(result.fact("ptp") == "KVM virtual PTP")
      func time(_ name: String) throws -> Int { try #require(Int(result.fact(name) ?? ""), "\(name)") }
      // The host's clock is between the moments before and after the run, and goes on from look to look.
      let (clock, between, precise) = (try time("clock"), try time("between"), try time("precise"))
      #expect(begin < Double(clock) && clock < between && between < precise && Double(precise) < end)
      // The guest's own clock was set by the one on the board, which knows no parts of a second. How far away it is, is
      // the same in both pairs, but for the time that reading took.
      let (own, before, after) = (try time("own"), try time("before"), try time("after"))
      #expect(abs(precise - own) < 1_000_000_000 && before <= after)
      let slack = 10_000_000
      #expect((between - after - slack...between - before + slack).contains(precise - own))
      let calls = try #require(counters["hypercallsByNumber"] as? [String: Int])
      #expect(calls["9"] ?? 0 >= 3)
    }

    @Test("while a page is on its way another task runs") func pages() throws {
      // Who sums up its own memory again and again, most of it untouched in between.
      let script = """
        grep HYP /proc/interrupts | sed 's/^ */before /'
        (i=0; while [ ! -e /tmp/done ]; do echo $i; i=$((i+1)); usleep 300000; done) | awk '
        BEGIN { for (i = 0; i < 20000; i++) a[i] = i * 7 }
        { s = 0; for (i = 0; i < 20000; i++) s += a[i]; if (s != 1399930000) bad++; rounds++ }
        END { print "fact rounds " rounds; print "fact sums " bad + 0 }' &
        right=$(md5sum /bin/busybox) wrong=0
        (i=0; while [ ! -e /tmp/done ]; do i=$((i+1)); done; echo "fact counted $i") &
        first=$(sed -n 's/^ *HYP: *\\([0-9]*\\).*/\\1/p' /proc/interrupts) now=$first i=0
        while [ $i -lt 12 ] || { [ $((now - first)) -lt 25 ] && [ $i -lt 200 ]; }; do
        [ "$(md5sum /bin/busybox)" = "$right" ] || wrong=$((wrong+1)); usleep 200000; i=$((i+1))
        now=$(sed -n 's/^ *HYP: *\\([0-9]*\\).*/\\1/p' /proc/interrupts); done
        touch /tmp/done; wait
        grep HYP /proc/interrupts | sed 's/^ */after /'
        echo "fact wrong $wrong"
        echo "fact bad $(dmesg | grep -c -E 'WARNING:|BUG:|Call Trace')"
        """
      let (result, counters) = try shell(Guest.kernel, script, ["--slow-memory", "2ms", "--cpus", "2"], name: "pages")
      func row(_ name: String) throws -> Int {
        let pattern = try Regex("\(name) HYP: +([0-9]+)")
        return try #require(result.output.firstMatch(of: pattern).flatMap { Int($0.output[1].substring ?? "") })
      }
      #expect(try row("after") - row("before") >= 20)
      let (told, ready) = (counters["pagesNotPresent"] as? Int ?? 0, counters["pagesReady"] as? Int ?? 0)
      #expect(told >= 20 && ready >= told, "\(told) told, \(ready) ready")
      #expect(try #require(Int(result.fact("counted") ?? "")) > 1000)
      // All that went away came back as it was.
      #expect(counters["pagesEvicted"] as? Int ?? 0 > told)
      #expect(try #require(Int(result.fact("rounds") ?? "")) >= 3)
      #expect(result.fact("sums") == "0" && result.fact("wrong") == "0")
      #expect(result.fact("bad") == "0")
    }

    @Test("what is not offered is refused before the guest starts")
    func refused() throws {
      for (option, value, words) in [
        ("--kvm-features", "0x4", "do not exist"), ("--kvm-features", "eoi", "unknown KVM feature 'eoi'"),
        ("--kvm-hints", "soon", "unknown KVM hint 'soon'"),
      ] {
        let result = try Guest.run(["run", "--kernel", "/none", option, value], expecting: 125)
        #expect(result.errors.contains(words), "\(result.errors)")
      }
    }
  }
}
