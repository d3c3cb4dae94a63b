// SPDX-License-Identifier: Apache-2.0
// `lguest tour`: built-in guests meet the paravirtual interfaces, one after the other, and say what they see.

import ArgumentParser
import BuiltInGuests
import Lguest
import SystemPackage

struct TourCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tour", abstract: "Show every hypercall mechanism with small guests of our own; needs no kernel.")

  func run() throws {
    let chapters: [any TourChapter] = GuidedTour.allCases + LguestTour.allCases
    for (index, chapter) in chapters.enumerated() {
      let command = "lguest run" + (chapter.options.isEmpty ? "" : " " + chapter.options)
      try say("\(index + 1) of \(chapters.count): \(chapter.title)\n  (a machine as by: \(command))")
      do {
        let (text, isGood) = try chapter.run()
        try say(text)
        guard isGood else {
          Messages.say("the guest did not see what it should have; this is a bug in lguest \(VirtualMachine.version)")
          throw CommandEnding(status: Ending.internal.exitStatus)
        }
      } catch let error as ConfigurationError {
        Messages.say("\(error)")
        throw CommandEnding(status: Ending.cannotStart.exitStatus)
      }
    }
    try say(
      "That was all. `lguest bench hypercall`, with --abi lguest too, and `lguest bench switch` say what these cost.")
  }

  private func say(_ text: String) throws { try CommandOutput.write(text) }
}
