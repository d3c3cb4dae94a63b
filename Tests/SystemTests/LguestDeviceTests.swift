// SPDX-License-Identifier: Apache-2.0
// Disks and networks of lguest's guests from outside: what is refused, what is locked, which threads there are, and real
// kernels that have their root on a disk and talk to each other.

import Foundation
import TestSupport
import Testing

extension SystemTests {
  @Suite(
    "Disks and networks", .serialized,
    .enabled(if: Guest.hasExecutable && Guest.guests != nil, "the guests are not built; run scripts/test"))
  struct LguestDeviceTests {
    private func arguments(_ more: [String]) throws -> [String] { try Ring1Guest.arguments("40", more) }

    /// A file of so many bytes, for as long as `body` runs.
    private func withImage(_ size: Int, _ body: (String) throws -> Void) throws {
      let path = Guest.temporaryPath()
      try Data(count: size).write(to: URL(filePath: path))
      defer { try? FileManager.default.removeItem(atPath: path) }
      try body(path)
    }

    @Test("refusals are one line, and leave no socket") func refusals() throws {
      let plain = ["run", "--kernel", "\(try #require(Guest.guests))/hello", "--timeout", "5s"]
      let socket = Guest.temporaryPath()
      try withImage(100) { short in
        for (arguments, status, text) in [
          (try arguments(["--disk", "/nowhere"]), 69, "cannot read disk '/nowhere'"),
          (try arguments(["--disk", "/"]), 69, "disk '/' is a directory"),
          (try arguments(["--disk", "/dev/null:ro"]), 69, "is not an ordinary file"),
          (try arguments(["--disk", short]), 69, "has 100 bytes, and a sector has 512"),
          (try arguments(["--disk", ":ro"]), 125, "--disk needs a file name"),
          (
            try arguments(["--net", "listen:\(socket)", "--net", "socket:/nowhere"]), 69,
            "cannot connect to socket /nowhere: No such file or directory; start what is to wait there first"
          ),
          (try arguments(["--net", "listen:\(short)"]), 69, "a file is there that is no socket; remove it or give"),
          (try arguments(["--net", "tap0"]), 125, "give socket:PATH to connect, or listen:PATH to wait"),
          (try arguments((0..<29).flatMap { _ in ["--disk", "/nowhere"] }), 125, "need 32 interrupts"),
          (plain + ["--disk", "/nowhere"], 69, "disks are for --abi lguest only so far"),
          (plain + ["--net", "listen:\(socket)"], 69, "networks are for --abi lguest only so far"),
        ] as [([String], Int32, String)] {
          let result = try Guest.run(arguments, limit: 20, expecting: status)
          #expect(result.errorLines.contains { $0.contains(text) } && result.output.isEmpty, "\(result)")
          if status == 69 { #expect(result.errorLines.count == 1, "\(result)") }
        }
      }
      #expect(!FileManager.default.fileExists(atPath: socket))
    }

    @Test("a disk has one machine, each device a thread with a filter, and a socket goes with its run") func running()
      throws
    {
      let socket = Guest.temporaryPath()
      try withImage(1 << 20) { image in
        let run = try Ring1Guest.startWaiting(["--disk", image, "--net", "listen:\(socket)"], name: "lguest-devices")
        let neighbour = try Guest.run(try arguments(["--net", "listen:\(socket)"]), limit: 20, expecting: 69)
        #expect(
          neighbour.errorLines.count == 1
            && neighbour.errors.contains("somebody waits there already; end that, connect to it or give another path"),
          "\(neighbour)")
        for more in [image, image + ":ro"] {
          let second = try Guest.run(try arguments(["--disk", more]), limit: 20, expecting: 69)
          #expect(second.errorLines.count == 1 && second.errors.contains("another machine uses it"), "\(second)")
        }
        let tasks = "/proc/\(run.process.processIdentifier)/task"
        func status(_ name: String) -> String? {
          (try? FileManager.default.contentsOfDirectory(atPath: tasks))?.compactMap {
            try? String(contentsOfFile: "\(tasks)/\($0)/status", encoding: .utf8)
          }.first { $0.hasPrefix("Name:\t\(name)\n") }
        }
        for name in ["lguest-disk0", "lguest-net0"] {
          let text = try #require(status(name), "no thread \(name)")
          if SandboxCommandTests.isOffered { #expect(text.contains("Seccomp:\t2\n"), "\(name)") }
        }
        #expect(FileManager.default.fileExists(atPath: socket))
        run.send(SIGTERM)
        _ = run.finish(expecting: 143)
        #expect(!FileManager.default.fileExists(atPath: socket))
        // Two that only read may have it together.
        let reader = try Ring1Guest.startWaiting(["--disk", image + ":ro"], name: "lguest-reader")
        _ = try Guest.run(try arguments(["--cmdline", "all", "--disk", image + ":ro"]), limit: 20, expecting: 0)
        reader.send(SIGTERM)
        _ = reader.finish(expecting: 143)
      }
    }

    // MARK: Real kernels

    /// An ext2 image whose /init is a script, made from the test initramfs; needs mke2fs and cpio's archive unpacked by
    /// the 32-bit busybox itself.
    private func makeRoot(_ script: String) throws -> String {
      let path = Guest.temporaryPath()
      let tree = path + ".tree"
      defer { try? FileManager.default.removeItem(atPath: tree) }
      try FileManager.default.createDirectory(atPath: tree, withIntermediateDirectories: true)
      let initrd = try #require(Guest.initrd386)
      let shell = Process()
      shell.executableURL = URL(filePath: "/bin/sh")
      shell.arguments = [
        "-c",
        """
        set -e; cd "$0"; "$(dirname "$1")/busybox/bin/busybox" cpio -i -d <"$1" 2>/dev/null
        cat >init; chmod 755 init; rm -f "$2"
        /sbin/mke2fs -q -t ext2 -b 1024 -d . "$2" 16M
        """, tree, initrd, path,
      ]
      let input = Pipe()
      shell.standardInput = input
      try shell.run()
      input.fileHandleForWriting.write(Data(script.utf8))
      try input.fileHandleForWriting.close()
      shell.waitUntilExit()
      try #require(shell.terminationStatus == 0)
      return path
    }

    private static let head = """
      #!/bin/sh
      export PATH=/bin
      mount -t proc proc /proc; mount -t devtmpfs devtmpfs /dev 2>/dev/null; mount -t sysfs sysfs /sys
      dmesg -n 1

      """

    @Test(
      "RealLguestKernels: the root is on a disk, a second one keeps what is written, and a third cannot be written",
      .enabled(if: !Ring1Guest.kernels.isEmpty, Ring1Guest.missing), arguments: Ring1Guest.kernels)
    func disks(kernel: String) throws {
      let root = try makeRoot(
        LguestDeviceTests.head + """
          echo "fact disks $(cat /sys/block/vda/size) $(cat /sys/block/vdb/size) $(cat /sys/block/vdc/size) $(cat /sys/block/vdc/ro)"
          echo "fact third $(dd if=/dev/vdc bs=512 count=1 2>/dev/null | md5sum | cut -c 1-32)"
          dd if=/dev/urandom of=/root/random bs=64k count=8 2>/dev/null
          for round in 1 2 3; do
            for part in 0 1 2 3 4 5 6 7 8 9; do
              { echo "$round $part"; cat /root/random; } | dd of=/dev/vdb bs=64k seek=$((part * 9)) conv=notrunc 2>/dev/null
            done
            sync
            sum=$(md5sum </dev/vdb | cut -c 1-32)
            echo 3 >/proc/sys/vm/drop_caches
            [ "$sum" = "$(md5sum </dev/vdb | cut -c 1-32)" ] || echo "fact differs $round"
          done
          echo "fact sum $sum"
          for file in 1 2 3 4 5 6 7 8; do dd if=/dev/vdb of=/root/file$file bs=4k skip=$file count=64 2>/dev/null & done
          wait; sync; cat /root/file* | md5sum | sed 's/^/fact files /'
          echo x | dd of=/dev/vdc bs=512 count=1 2>/dev/null && sync && echo "fact written"
          mount -o remount,ro /
          poweroff -f

          """)
      defer { try? FileManager.default.removeItem(atPath: root) }
      try withImage(8 << 20) { second in
        try withImage(1300) { third in
          let result = try Guest.run(
            [
              "run", "--abi", "lguest", "--kernel", kernel, "--memory", "64M", "--disk", root, "--disk", second,
              "--disk",
              "\(third):ro", "--append", "root=/dev/vda rw init=/init", "--timeout", "100s",
            ], limit: 110, expecting: 0)
          #expect(result.fact("disks") == "32768 16384 2 1", "\(result.output.suffix(2000)) \(result.errors)")
          #expect(
            result.fact("differs") == nil && !result.output.contains("fact written") && result.fact("files") != nil)
          let sum = try LguestDeviceTests.md5(second)
          #expect(result.fact("sum") == sum)
          #expect(try Data(contentsOf: URL(filePath: third)) == Data(count: 1300))
        }
      }
    }

    @Test(
      "RealLguestKernels: a kernel that works on two disks goes from process to process",
      .enabled(if: !Ring1Guest.kernels.isEmpty, Ring1Guest.missing), arguments: Ring1Guest.kernels)
    func moves(kernel: String) throws {
      let ticks = 60
      let root = try makeRoot(
        LguestDeviceTests.head + """
          i=0
          while [ $i -lt \(ticks) ]; do
            echo tick $i $(cut -d' ' -f1 /proc/uptime)
            dd if=/dev/urandom of=/root/piece bs=64k count=1 2>/dev/null
            dd if=/root/piece of=/dev/vdb bs=64k seek=$i conv=notrunc 2>/dev/null
            sync; echo 3 >/proc/sys/vm/drop_caches
            [ "$(md5sum </root/piece)" = "$(dd if=/dev/vdb bs=64k skip=$i count=1 2>/dev/null | md5sum)" ] || echo fact differs $i
            i=$((i + 1)); usleep 20000
          done
          echo "fact sum $(md5sum </dev/vdb | cut -c 1-32)"
          echo fact calm $(dmesg | grep -c -E 'WARNING:|BUG:|stalled|Call Trace|I/O error')
          mount -o remount,ro /
          poweroff -f

          """)
      let file = Guest.temporaryPath()
      defer { for path in [root, file] { try? FileManager.default.removeItem(atPath: path) } }
      try withImage(ticks << 16) { second in
        let disks = ["--disk", root, "--disk", second, "--timeout", "100s"]
        var output = ""
        var run = try Guest.Running(
          ["run", "--abi", "lguest", "--kernel", kernel, "--memory", "64M", "--append", "root=/dev/vda rw init=/init"]
            + disks, limit: 110, name: "lguest-moves")
        for _ in 1...3 {
          #expect(run.waitForOutput("tick ", count: 10, seconds: 100))
          _ = try Guest.run(["save", "\(run.process.processIdentifier)", file], expecting: 0)
          output += run.finish(expecting: 0).output
          run = try Guest.Running(["restore", file] + disks, limit: 110, name: "lguest-moves")
        }
        let last = run.finish(expecting: 0)
        output += last.output
        let lines = output.split(whereSeparator: \.isNewline).map(String.init)
        let found = lines.filter { $0.hasPrefix("tick ") }.map { $0.split(separator: " ") }
        #expect(found.map { Int($0[1]) } == Array(0..<ticks), "\(output.suffix(2000)) \(last.errors)")
        let times = found.compactMap { Double($0[2]) }
        #expect(times.count == ticks && zip(times, times.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(last.fact("differs") == nil && !output.contains("fact differs") && last.fact("calm") == "0")
        #expect(try last.fact("sum") == LguestDeviceTests.md5(second))
      }
    }

    private static func md5(_ path: String) throws -> String {
      let process = Process()
      process.executableURL = URL(filePath: "/usr/bin/md5sum")
      process.arguments = [path]
      let output = Pipe()
      process.standardOutput = output
      try process.run()
      let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      return String(text.prefix(32))
    }

    @Test(
      "RealLguestKernels: two guests talk by TCP, and outlive each other",
      .enabled(if: !Ring1Guest.kernels.isEmpty, Ring1Guest.missing), arguments: Ring1Guest.kernels)
    func network(kernel: String) throws {
      let socket = Guest.temporaryPath()
      func root(_ number: Int, _ script: String) throws -> String {
        try makeRoot(
          LguestDeviceTests.head + "ip link set lo up; ip addr add 10.0.0.\(number)/24 dev eth0; ip link set eth0 up\n"
            + script + "poweroff -f\n")
      }
      // A server whose input ends says no more and is left.
      let server = try root(
        1,
        "mkfifo /root/quiet; exec 3<>/root/quiet; echo waiting\n"
          + "nc -l -p 5000 <&3 | md5sum | sed 's/^/fact received /'\n")
      let client = try root(
        2,
        """
        dd if=/dev/urandom of=/root/data bs=64k count=40 2>/dev/null
        ping -c 2 -W 5 10.0.0.1 | sed -n 's/.* \\([0-9]*\\)% packet loss.*/fact lost \\1/p'
        nc 10.0.0.1 5000 </root/data
        md5sum </root/data | sed 's/^/fact sent /'

        """)
      defer { for file in [server, client] { try? FileManager.default.removeItem(atPath: file) } }
      func arguments(_ root: String, _ net: String) -> [String] {
        [
          "run", "--abi", "lguest", "--kernel", kernel, "--memory", "64M", "--disk", root, "--net", net, "--append",
          "root=/dev/vda rw init=/init", "--timeout", "100s",
        ]
      }
      let first = try Guest.Running(arguments(server, "listen:\(socket)"), limit: 110, name: "lguest-server")
      #expect(first.waitForOutput("waiting", seconds: 40))
      let sent = try Guest.run(arguments(client, "socket:\(socket)"), limit: 110, expecting: 0)
      let received = first.finish(expecting: 0)
      #expect(sent.fact("lost") == "0", "\(sent.output.suffix(1500))")
      #expect(
        sent.fact("sent") != nil && received.fact("received") == sent.fact("sent"), "\(received.output.suffix(1500))")
      #expect(received.status == 0 && !FileManager.default.fileExists(atPath: socket))
    }
  }
}
