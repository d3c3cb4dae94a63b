// SPDX-License-Identifier: Apache-2.0
// The root of the command line: subcommands, version and the one way a subcommand ends with a status.

import ArgumentParser
import Lguest

struct LguestCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "lguest",
    abstract: "Boot stock Linux kernels in an ordinary process: no /dev/kvm, no root.",
    discussion: """
      Examples:
        lguest run --kernel vmlinuz --initrd initrd.img
        lguest run --kernel vmlinuz --append 'rdinit=/bin/sh' --timeout 60s --json result.json
        lguest inspect vmlinuz
        lguest ps
        lguest stat
        lguest save 4711 machine.saved
        lguest restore machine.saved --cpu-vendor amd
        lguest doctor
        lguest tour
        lguest bench hypercall

      Exit status of run: 0 power-off, reset or saved, 69 could not start, 70 internal error, 124 time limit,
      125 wrong command line, 128 + s ended from outside by signal s, 255 guest panic.

      Environment: LGUEST_CACHE_DIR is where the scripts keep downloaded kernels (else XDG_CACHE_HOME/lguest,
      else ~/.cache/lguest). Control sockets are in XDG_RUNTIME_DIR/lguest (else /tmp/lguest-UID). NO_COLOR is respected.
      """,
    version: "lguest \(VirtualMachine.version) (\(VirtualMachine.commit))",
    subcommands: [
      RunCommand.self, PsCommand.self, StatCommand.self, SaveCommand.self, RestoreCommand.self, PauseCommand.self,
      ResumeCommand.self, InspectCommand.self, DoctorCommand.self, TourCommand.self, BenchCommand.self,
    ])
}

/// Thrown by a subcommand that has said everything and wants this exit status.
struct CommandEnding: Error {
  let status: Int32
}
