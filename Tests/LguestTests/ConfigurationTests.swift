// SPDX-License-Identifier: Apache-2.0
// What a configuration refuses before anything is opened for the guest.

import Foundation
import SystemPackage
import Testing

@testable import Lguest

@Suite final class ConfigurationTests {
  private let file: FilePath

  init() throws {
    let url = FileManager.default.temporaryDirectory.appending(path: "lguest-\(UUID().uuidString)")
    try Data(repeating: 1, count: 8192).write(to: url)
    file = FilePath(url.path)
  }

  deinit { try? FileManager.default.removeItem(atPath: file.string) }

  private func refusal(_ change: (inout VirtualMachine.Configuration) -> Void) -> String? {
    var configuration = VirtualMachine.Configuration(kernel: file)
    change(&configuration)
    do {
      try configuration.validate()
      return nil
    } catch {
      #expect(!error.description.contains("\n"))
      return error.description
    }
  }

  @Test("the defaults pass") func defaults() {
    #expect(refusal { $0.memorySize = 64 << 20 } == nil)
    let configuration = VirtualMachine.Configuration(kernel: file)
    #expect(configuration.commandLine.text(for: .kvm) == "console=ttyS0 panic=-1 reboot=a,panic_warm")
    #expect(configuration.memorySize == 1 << 30)
    #expect(configuration.bootTimeout == .seconds(120))
    #expect(configuration.timeout == nil)
    #expect(configuration.cpuVendor == .intel)
  }

  @Test("memory") func memory() {
    #expect(refusal { $0.memorySize = 0 }?.contains("too small") == true)
    #expect(refusal { $0.memorySize = 1 << 20 }?.contains("too small") == true)
    #expect(refusal { $0.memorySize = 1 << 60 }?.contains("more than this host") == true)
    #expect(refusal { $0.memorySize = (64 << 20) + 1 }?.contains("pages") == true)
  }

  @Test("files") func files() {
    #expect(refusal { $0.kernel = "/nowhere/at/all" }?.contains("No such file") == true)
    #expect(refusal { $0.kernel = "/" }?.contains("directory") == true)
    #expect(refusal { $0.kernel = "/dev/null" }?.contains("ordinary") == true)
    #expect(refusal { $0.initrd = "/nowhere" }?.contains("initrd") == true)
  }

  @Test("everything else") func others() {
    #expect(refusal { $0.cpuCount = 0 } != nil && refusal { $0.cpuCount = 65 }?.contains("64") == true)
    #expect(refusal { $0.hostThreadCount = 0 } != nil)
    #expect(refusal { $0.cpuModel = "i386" } != nil)
    #expect(refusal { $0.cpuFeatures = ["smap", "sgx"] }?.contains("'sgx'") == true)
    #expect(refusal { $0.commandLine = .appending(String(repeating: "x", count: 3000)) }?.contains("2048") == true)
    #expect(refusal { $0.commandLine = .complete("a\nb") } != nil)
  }

  @Test("the host report has its facts") func report() {
    let report = HostReport()
    #expect(report.usableCPUs >= 1)
    #expect((report.memoryTotal ?? 0) > 0)
    #expect(report.lines.contains { $0.hasPrefix("/dev/kvm") && $0.contains("not used") || $0.contains("absent") })
    #expect(report.engineChoice.hasPrefix("translator"))
  }
}
