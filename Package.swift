// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// A module is a layer and `dependencies:` is the import law; Tests/LayeringTests enforces it.
import PackageDescription

// scripts/build and scripts/test name the commit being built; a plain `swift build` says "unknown".
let commit = Context.environment["LGUEST_COMMIT"] ?? "unknown"
let settings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]
// Of the collections one module, not their umbrella: they take a minute to build.
let deque = Target.Dependency.product(name: "DequeModule", package: "swift-collections")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")

func layer(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
  .testTarget(name: name, dependencies: dependencies + ["TestSupport"], swiftSettings: settings)
}

// The fuzz targets reach what only a build for tests shows (`@testable`): a test target, but for libFuzzer's executable,
// which scripts/fuzz builds with LGUEST_FUZZ=1 in a directory of its own.
let fuzzed: [Target.Dependency] = [
  "Lguest", "Boot", "Translator", "Paravirt", "Devices", "GuestMemory", "Host", "CHost", "Saving", "Engine", "X86",
  "TestSupport", "ScriptedEngine", logging, system,
  .product(name: "ArgumentParser", package: "swift-argument-parser"),
]
let fuzzing: [Target] =
  Context.environment["LGUEST_FUZZ"] == "1"
  ? [
    .target(
      name: "FuzzTargets", dependencies: fuzzed, path: "Tests/FuzzTargets", exclude: ["Cases"],
      // Code of an executable is linked into tests only.
      swiftSettings: settings + [.define("LGUEST_WITHOUT_COMMAND")]),
    .target(name: "CFuzzer", path: "Tests/CFuzzer"),
    .executableTarget(
      name: "FuzzDriver", dependencies: ["FuzzTargets", "CFuzzer"], path: "Tests/FuzzDriver", swiftSettings: settings),
  ]
  : [
    .testTarget(
      name: "FuzzTargets", dependencies: fuzzed + ["LguestCommand"], path: "Tests/FuzzTargets", exclude: ["Cases"],
      swiftSettings: settings),
    tests("FuzzTests", ["FuzzTargets"]),
  ]

let package = Package(
  name: "swift-lguest",
  products: [
    .library(name: "Lguest", targets: ["Lguest"]),
    .executable(name: "lguest", targets: ["LguestCommand"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
  ],
  targets: [
    .target(
      name: "CHost",
      cSettings: [
        .define("LGUEST_COMMIT", to: "\"\(commit)\""),
        .enableWarning("all"),
        .enableWarning("extra"),
        .treatAllWarnings(as: .error),
      ]),
    layer("Saving", []),
    layer("X86", []),
    layer("Host", ["CHost", "X86", system]),
    layer("GuestMemory", ["Host"]),
    layer("Engine", ["X86", "Saving", "Host"]),
    layer("Translator", ["Engine", "X86", "GuestMemory", "Host", "CHost", "Saving"]),
    layer("Devices", ["Saving"]),
    layer("Paravirt", ["Engine", "X86", "Saving"]),
    layer("Boot", ["X86", "GuestMemory", "Host", system]),
    layer(
      "Lguest",
      [
        "Engine", "X86", "GuestMemory", "Host", "Translator", "Paravirt", "Devices", "Boot", "Saving", logging, deque,
        system,
      ]),
    layer("BuiltInGuests", ["Lguest", "Boot", "Paravirt", "X86", "Host", system]),
    .executableTarget(
      name: "LguestCommand",
      dependencies: [
        "BuiltInGuests", "Lguest", "Boot", "Host", logging, system,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),
    .target(
      name: "TestSupport", dependencies: ["GuestCode"], path: "Tests/TestSupport", swiftSettings: settings),
    .target(
      name: "ScriptedEngine", dependencies: ["Engine", "Host", "Saving", "X86"], path: "Tests/ScriptedEngine",
      swiftSettings: settings),
    tests("LayeringTests", []),
    tests(
      "LguestTests",
      [
        "Lguest", "Translator", "Devices", "Paravirt", "Host", "Saving", "GuestMemory", "Engine", "X86",
        "ScriptedEngine", logging, system,
      ]),
    .target(name: "CTracer", path: "Tests/CTracer"),
    tests("SystemTests", ["CTracer", "Host", system]),
    tests("HostTests", ["Host", system]),
    tests("GuestMemoryTests", ["GuestMemory", "Host", system]),
    .target(name: "GuestCode", path: "Tests/GuestCode"),
    tests("TranslatorTests", ["Translator", "Saving", "Engine", "X86", "GuestMemory", "Host", "CHost"]),
    tests("X86ModelTests", ["X86"]),
    tests("ParavirtTests", ["Paravirt", "Saving", "Engine", "X86", "ScriptedEngine"]),
    tests("CHostTests", ["CHost"]),
    tests("X86Tests", ["X86"]),
    tests("DevicesTests", ["Devices", "Saving"]),
    .target(
      name: "CNative", path: "Tests/CNative",
      cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror", "-mfsgsbase"])]),
    tests("DifferentialTests", ["Translator", "Engine", "X86", "GuestMemory", "Host", "CHost", "CNative"]),
    tests("BootTests", ["Boot", "Lguest", "X86", "GuestMemory", "Host", system]),
  ] + fuzzing
)
