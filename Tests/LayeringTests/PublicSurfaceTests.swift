// SPDX-License-Identifier: Apache-2.0
// The library's surface: every public declaration of the module Lguest stands in docs/library.md, and nothing else does,
// so that a new one is a decision and a changed one is seen.

import Foundation
import Testing

@Suite("The library's surface") struct PublicSurfaceTests {
  @Test("docs/library.md lists the public declarations") func listing() throws {
    let page = try String(contentsOf: LayeringTests.root.appending(path: "docs/library.md"), encoding: .utf8)
    let block = try #require(page.firstMatch(of: /```swift\n(?s)(.*?)```/)?.1)
    let listed = block.split(separator: "\n").map(String.init)
    let found = try LayeringTests.sources(["swift"]).filter { $0.module == "Lguest" }.flatMap(Self.declarations)
    #expect(found.count > 80)
    #expect(found.filter { !listed.contains($0) } == [], "public, and not in docs/library.md")
    #expect(listed.filter { !found.contains($0) } == [], "in docs/library.md, and not public")
    #expect(listed.count == found.count)
  }

  @Test("each public declaration has a comment") func comments() throws {
    for source in try LayeringTests.sources(["swift"]) where source.module == "Lguest" {
      let lines = source.lines
      for (number, line) in lines.enumerated() where Self.isDeclaration(line) && !line.contains("var description") {
        let before = lines[..<number].last { !$0.trimmingCharacters(in: .whitespaces).hasPrefix("@") } ?? ""
        let text = before.trimmingCharacters(in: .whitespaces)
        #expect(text.hasPrefix("///"), "\(source.path):\(number + 1): \(line)")
      }
    }
  }

  private static func isDeclaration(_ line: Substring) -> Bool {
    line.firstMatch(of: /^ *public (?!import)/) != nil
  }

  /// The public declarations of a file, each as one line that begins with the types around it.
  private static func declarations(_ source: LayeringTests.Source) -> [String] {
    let type =
      /^ *(?:public |package |private |fileprivate |final |indirect )*(?:class|struct|enum|protocol|extension) ([\w.]+)/
    var (around, found): ([(indent: Int, name: String, lists: Bool)], [String]) = ([], [])
    let lines = source.lines
    for (number, line) in lines.enumerated() where !line.allSatisfy({ $0 == " " }) {
      let indent = line.prefix { $0 == " " }.count
      around.removeAll { $0.indent >= indent }
      // The cases of a public enumeration and the requirements of a public protocol are public too.
      let isInside = around.last.map { $0.lists && indent == $0.indent + 2 } == true
      let isMember =
        isInside && line.contains(/^ *(?:case |init\(|var |func )/) && (!line.contains("{") || line.hasSuffix(" get }"))
      if isDeclaration(line) || isMember {
        // A list that goes on in the next line belongs to it.
        var (text, next) = (line.trimmingCharacters(in: .whitespaces), number + 1)
        while text.count(where: { $0 == "(" }) > text.count(where: { $0 == ")" }), next < lines.count {
          let more = lines[next].trimmingCharacters(in: .whitespaces)
          text += (text.hasSuffix("(") || more.hasPrefix(")") ? "" : " ") + more
          next += 1
        }
        if let value = text.firstMatch(of: /^[^=]*\b(?:var|let) [^=]*?(?= = )/) { text = String(value.0) }
        if text.hasSuffix(" {") { text.removeLast(2) }
        if next == number + 1, !text.contains("{ case "), let body = text.firstRange(of: " {") {
          text = String(text[..<body.lowerBound])
        }
        let place = around.isEmpty ? "" : around.map(\.name).joined(separator: ".") + ": "
        found.append(place + (isDeclaration(line) ? String(text.dropFirst("public ".count)) : text))
      }
      if let name = line.firstMatch(of: type)?.1 {
        let lists = isDeclaration(line) && line.contains(/(?:enum|protocol) \w/) && !line.hasSuffix("}")
        around.append((indent, String(name), lists))
      }
    }
    return found
  }
}
