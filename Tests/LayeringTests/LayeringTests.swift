// SPDX-License-Identifier: Apache-2.0
// The house rules that the compiler does not enforce: who may import whom, where `unsafe` may stand, how a file begins,
// and that the tour leads to what is there.

import Foundation
import Testing

@Suite("House rules") struct LayeringTests {
  static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  /// What a module of ours may import of ours: the `dependencies:` of Package.swift, written down a second time so that
  /// a change there is noticed here.
  private static let law: [String: Set<String>] = [
    "Saving": [],
    "Host": ["CHost", "X86"],
    "GuestMemory": ["Host"],
    "X86": [],
    "Engine": ["X86", "Saving", "Host"],
    "Translator": ["Engine", "X86", "GuestMemory", "Host", "CHost", "Saving"],
    "Devices": ["Saving"],
    "Paravirt": ["Engine", "X86", "Saving"],
    "Boot": ["X86", "GuestMemory", "Host"],
    "Lguest": ["Engine", "X86", "GuestMemory", "Host", "Translator", "Paravirt", "Devices", "Boot", "Saving"],
    "BuiltInGuests": ["Lguest", "Boot", "Paravirt", "X86", "Host"],
    "LguestCommand": ["BuiltInGuests", "Lguest", "Boot", "Host"],
  ]

  /// Modules of others. Foundation is nowhere but in tests.
  private static let foreign: Set<String> = [
    "Glibc", "Synchronization", "SystemPackage", "Logging", "DequeModule", "ArgumentParser",
  ]

  /// The files in which pointers may be handled, and why; everything else is built from what these offer.
  private static let unsafeFiles: [(reason: String, files: Set<String>)] = [
    (
      "guest RAM: every access is checked against its bounds here",
      [
        "GuestMemory/GuestMemory.swift", "GuestMemory/MemoryImage.swift",
      ]
    ),
    ("the machine's own page: every access is checked against its bounds here", ["Engine/MachinePage.swift"]),
    ("pages that go away and come back, by number", ["GuestMemory/PageStore.swift"]),
    ("a bit for each page of RAM, which C sets too", ["GuestMemory/WrittenPages.swift"]),
    (
      "a system call's structure",
      [
        "Host/AddressSpaceLimit.swift", "Host/EventLoop.swift", "Host/FrameSocket.swift", "Host/HostProbe.swift",
        "Host/LocalSocket.swift", "Host/NameKeeper.swift", "Host/OutputOpening.swift", "Host/ReplacementFile.swift",
        "Host/RunQueueDelay.swift",
        "Host/SystemCallFilter.swift",
      ]
    ),
    ("text that C holds", ["Host/Build.swift", "Host/SystemCall.swift"]),
    (
      "bytes for a C function, as long as it runs",
      [
        "Host/ByteSearch.swift", "Host/Checksum.swift", "Host/DiskFile.swift", "Host/HostFile.swift",
        "Host/PageMap.swift",
        "Host/PositionedOutput.swift",
      ]
    ),
    (
      "functions of libraries that are loaded when they are needed",
      [
        "Host/Decompression.swift", "Host/HostLibrary.swift",
      ]
    ),
    ("a word that threads sleep on", ["Host/Futex.swift"]),
    ("what a new thread is given", ["Host/HostThread.swift"]),
    ("mappings: their bounds are here", ["Host/Mapping.swift"]),
    ("a signal handler: what it needs was made before", ["LguestCommand/CrashHandler.swift"]),
    ("signals and standard streams", ["LguestCommand/System.swift"]),
    ("termios", ["LguestCommand/Terminal.swift"]),
    ("tables that are read for every instruction", ["X86/Decoder.swift", "X86/OpcodeTable.swift"]),
    (
      "a block's bytes in the code cache",
      [
        "Translator/Cache/Block.swift", "Translator/Cache/BlockHistogram.swift", "Translator/Cache/HotCode.swift",
        "Translator/Cache/SoftFaults.swift",
      ]
    ),
    (
      "the code cache: entries and stubs that C reads",
      [
        "Translator/Cache/CodeCache+Adding.swift", "Translator/Cache/CodeCache+Forgetting.swift",
        "Translator/Cache/CodeCache+Links.swift", "Translator/Cache/CodeCache.swift",
      ]
    ),
    ("arrays that are made once and used for every block", ["Translator/Cache/WorkArray.swift"]),
    (
      "reads emitted bytes, within the block",
      [
        "Translator/Checker/CheckedBlock.swift", "Translator/Checker/CheckedCode.swift",
        "Translator/Checker/CheckedPaths.swift", "Translator/Checker/PagePlaces.swift",
      ]
    ),
    (
      "values of the checker, many for each block",
      [
        "Translator/Checker/CheckedValue.swift", "Translator/Checker/HostEncodings.swift",
      ]
    ),
    (
      "writes code into the cache's room",
      [
        "Translator/Emitter/BlockBuilder.swift", "Translator/Emitter/BlockTranslator.swift",
        "Translator/Emitter/CodeEmitter.swift",
      ]
    ),
    (
      "the decoded block, in arrays made once",
      [
        "Translator/Emitter/FlagLiveness.swift", "Translator/Emitter/GroupPlanning.swift",
        "Translator/Rules/Branch.swift",
      ]
    ),
    (
      "operands on their way to and from guest memory",
      [
        "Translator/Execution/BounceBuffer.swift", "Translator/Execution/DeviceAccess.swift",
        "Translator/Execution/ExecuteInSwift.swift", "Translator/Execution/NarrowState.swift",
        "Translator/Execution/ScratchCode.swift", "Translator/Execution/VectorMemory.swift",
        "Translator/System/Strings.swift",
      ]
    ),
    (
      "asks the C page walk, and accesses what it found",
      [
        "Translator/System/LinearMemory.swift", "Translator/VCPU/FindingCode.swift",
        "Translator/VCPU/LinearAccess.swift",
      ]
    ),
    (
      "a vCPU's page, which translated code and C share",
      [
        "Translator/System/ControlRegisters.swift", "Translator/System/MemoryTypeRanges.swift",
        "Translator/System/ModelSpecificRegisters.swift", "Translator/VCPU/ShadowStack.swift",
        "Translator/VCPU/StateTransfer.swift", "Translator/VCPU/TranslatedCPU+Engine.swift",
        "Translator/VCPU/TranslatedCPU.swift", "Translator/VCPU/VCPUPage.swift",
      ]
    ),
    ("calls into C: the page pointer of every vCPU", ["Translator/Translation.swift"]),
    ("CPUID of the host", ["Host/HostCPU.swift"]),
    ("a thread's signal stack", ["Translator/VCPU/PreparedThread.swift"]),
  ]

  struct Source {
    let path: String
    let text: String
    var module: String { String(path.prefix { $0 != "/" }) }
    var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }
  }

  static func sources(_ extensions: Set<String>) throws -> [Source] {
    let folder = root.appending(path: "Sources")
    let files = try #require(FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil))
    return try files.compactMap { $0 as? URL }.filter { extensions.contains($0.pathExtension) }.map { file in
      Source(
        path: String(file.path.dropFirst(folder.path.count + 1)), text: try String(contentsOf: file, encoding: .utf8))
    }.sorted { $0.path < $1.path }
  }

  @Test("imports follow the layers") func imports() throws {
    let pattern = /^\s*(?:@\w+\s+)*(?:public |package |internal |private |fileprivate )?import (?:\w+ )?(\w+)/
    for source in try LayeringTests.sources(["swift"]) {
      let allowed = try #require(LayeringTests.law[source.module], "no law for \(source.module)")
      for line in source.lines {
        guard let name = line.firstMatch(of: pattern)?.1 else { continue }
        let isAllowed = allowed.contains(String(name)) || LayeringTests.foreign.contains(String(name))
        #expect(isAllowed, "\(source.path) imports \(name)")
        if name == "ArgumentParser" { #expect(source.module == "LguestCommand", "\(source.path)") }
        // One place chooses the engine.
        if name == "Translator" { #expect(source.path == "Lguest/Machine/MachineParts.swift", "\(source.path)") }
      }
    }
  }

  @Test("whatever a module names it imports") func unusedDependencies() throws {
    let pattern = /^\s*(?:@\w+\s+)*(?:public |package |internal |private |fileprivate )?import (?:\w+ )?(\w+)/
    var used: [String: Set<String>] = [:]
    for source in try LayeringTests.sources(["swift"]) {
      for line in source.lines {
        if let name = line.firstMatch(of: pattern)?.1 { used[source.module, default: []].insert(String(name)) }
      }
    }
    for (module, allowed) in LayeringTests.law {
      #expect(allowed.subtracting(used[module] ?? []).sorted() == [], "\(module) names what it does not import")
    }
  }

  @Test("the manifest's dependencies are the law") func manifest() throws {
    let manifest = try String(contentsOf: LayeringTests.root.appending(path: "Package.swift"), encoding: .utf8)
    for match in manifest.matches(of: /layer\("(\w+)", \[([^\]]*)\]\)/) {
      let names = match.2.matches(of: /"(\w+)"/).map { String($0.1) }
      #expect(LayeringTests.law[String(match.1)] == Set(names), "\(match.1)")
    }
  }

  @Test("pointers stay where they may be handled") func unsafeFiles() throws {
    let word = /\bunsafe\b|\bUnsafe\w*Pointer\b|\bunsafeBitCast\b/
    let allowed = LayeringTests.unsafeFiles.reduce(into: Set<String>()) { $0.formUnion($1.files) }
    var used: Set<String> = []
    for source in try LayeringTests.sources(["swift"]) {
      for line in source.lines {
        let code = line.prefix(upTo: line.firstRange(of: "//")?.lowerBound ?? line.endIndex)
        guard code.firstMatch(of: word) != nil else { continue }
        used.insert(source.path)
        #expect(allowed.contains(source.path), "\(source.path): \(line)")
      }
    }
    #expect(allowed.subtracting(used).sorted() == [], "listed, and handles no pointer any more")
  }

  @Test("every file begins with its licence and a paragraph") func heads() throws {
    for source in try LayeringTests.sources(["swift", "c", "h", "S"]) {
      let lines = source.lines
      #expect(lines.first == "// SPDX-License-Identifier: Apache-2.0", "\(source.path)")
      let second = lines.count > 1 ? String(lines[1]) : ""
      #expect(second.hasPrefix("// ") && second.count > 20, "\(source.path) does not say what it is")
    }
  }

  @Test("each hop of the tour names a file and what stands there") func tour() throws {
    let tour = try String(contentsOf: LayeringTests.root.appending(path: "docs/tour.md"), encoding: .utf8)
    let texts = Dictionary(
      uniqueKeysWithValues: try LayeringTests.sources(["swift", "c", "h", "S"]).map { ($0.path, $0.text) })
    let hops = tour.matches(of: #/(?m)^\d+\. \[`([^`]+)`\]\(\.\./Sources/([^)]+)\) `([^`]+)`: /#)
    #expect(hops.count >= 40 && hops.count == tour.matches(of: #/(?m)^\d+\. /#).count, "a hop in another form")
    for hop in hops {
      #expect(hop.1 == hop.2)
      let text = try #require(texts[String(hop.1)], "\(hop.1) does not exist")
      #expect(text.contains(hop.3), "\(hop.1) has no '\(hop.3)'")
    }
  }

  @Test("every script begins with its licence and is executable") func scripts() throws {
    let folder = LayeringTests.root.appending(path: "scripts")
    for name in try FileManager.default.contentsOfDirectory(atPath: folder.path) {
      let path = folder.appending(path: name).path
      let text = try String(contentsOfFile: path, encoding: .utf8)
      #expect(text.prefix(200).contains("# SPDX-License-Identifier: Apache-2.0"), "\(name)")
      if text.hasPrefix("#!") { #expect(FileManager.default.isExecutableFile(atPath: path), "\(name)") }
      if text.hasPrefix("#!/usr/bin/env bash") { #expect(text.contains("\nset -euo pipefail\n"), "\(name)") }
    }
  }
}
