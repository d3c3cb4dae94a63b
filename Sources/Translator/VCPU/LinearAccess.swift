// SPDX-License-Identifier: Apache-2.0
// Guest memory by linear address, for the machine and for a debugger: what the running code could read and store, or
// whatever is mapped.

import CHost
public import Engine
public import X86

extension TranslatedCPU {
  /// Bytes of one call at most.
  private static let longestAccess = 4096

  public func read(linear address: UInt64, count: Int, as access: LinearAccess) -> [UInt8] {
    busy {
      var bytes: [UInt8] = []
      var physical: UInt64 = 0
      while bytes.count < min(count, TranslatedCPU.longestAccess) {
        let linear = offset(address, by: bytes.count)
        if bytes.isEmpty || linear & 0xFFF == 0 {
          do throws(Fault) { physical = try place(linear, write: false, as: access) } catch { break }
        }
        bytes.append(processor.physicalLoad(UInt8.self, physical))
        physical &+= 1
      }
      return bytes
    }
  }

  public func write(linear address: UInt64, _ bytes: [UInt8], as access: LinearAccess) -> Exception? {
    busy {
      let bytes = bytes.prefix(TranslatedCPU.longestAccess)
      let inFirst = 4096 &- Int(address & 0xFFF)
      do throws(Fault) {
        // Both pages before any byte.
        let first = try place(offset(address, by: 0), write: true, as: access)
        let second = bytes.count > inFirst ? try place(offset(address, by: inFirst), write: true, as: access) : 0
        for (index, byte) in bytes.enumerated() {
          let physical = index < inFirst ? first &+ UInt64(index) : second &+ UInt64(index &- inFirst)
          processor.physicalStore(byte, physical)
        }
        return nil
      } catch { return Exception(vector: error.vector, errorCode: error.errorCode, address: error.address) }
    }
  }

  public func refetchCode() {
    busy {
      let first = linearIP
      unsafe chost_flush_page(page.pointer, first)
      unsafe chost_flush_page(page.pointer, first &+ UInt64(Instruction.maximumLength - 1))
    }
  }

  private func offset(_ address: UInt64, by count: Int) -> UInt64 {
    let linear = address &+ UInt64(count)
    return page.isLMA ? linear : linear & 0xFFFF_FFFF
  }

  /// The place in RAM of a linear address.
  ///
  /// - Throws: What the access raises; #GP(0) also where there is no RAM.
  private func place(_ linear: UInt64, write: Bool, as access: LinearAccess) throws(Fault) -> UInt64 {
    guard !page.isLMA || Processor.isCanonical(linear) else { throw .generalProtection() }
    let rights = processor.authority.rights
    // Nobody can be told here that a page is still on its way.
    processor.state.waitsForPages = true
    defer { processor.state.waitsForPages = false }
    let physical =
      switch access {
      case .debugger: try mapped(linear)
      case .code where !write: try processor.translate(linear, rights | UInt32(CHOST_ACCESS_FETCH))
      case .code, .data: try processor.translate(linear, rights | (write ? UInt32(CHOST_ACCESS_WRITE) : 0))
      }
    guard processor.isRAM(physical) else { throw .generalProtection() }
    return physical
  }

  /// Where a linear address leads to, whoever may go there; accessed bits stay as they are.
  private func mapped(_ linear: UInt64) throws(Fault) -> UInt64 {
    var code: UInt32 = 0
    // Pages of the kernel, and with SMAP those of user code too.
    for rights in [0, UInt32(CHOST_ACCESS_USER)] {
      var physical: UInt64 = 0
      code = unsafe chost_probe(page.pointer, linear, rights, &physical)
      while code == UInt32(CHOST_TABLE_ABSENT) {
        processor.waitUntilPresent(physical)
        code = unsafe chost_probe(page.pointer, linear, rights, &physical)
      }
      if code == 0 { return physical }
    }
    throw .pageFault(linear, code: code & 0x7FFF_FFFF)
  }
}
