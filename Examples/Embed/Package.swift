// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
// A package of its own that uses swift-lguest as a library. Outside this repository the dependency is a URL.
import PackageDescription

let package = Package(
  name: "Embed",
  dependencies: [.package(name: "swift-lguest", path: "../..")],
  targets: ["Embed", "Hypercalls", "Crowd"].map { name in
    .executableTarget(
      name: name, dependencies: [.product(name: "Lguest", package: "swift-lguest")],
      swiftSettings: [.swiftLanguageMode(.v6), .strictMemorySafety()])
  }
)
