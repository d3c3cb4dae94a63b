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
        let linear = offset(address, by: bytes.count, as: access)
        if bytes.isEmpty || linear & 0xFFF == 0 {
          do throws(Fault) { physical = try place(linear, write: false, as: access) } catch { break }
        }
        bytes.append(processor.physicalLoad(UInt8.self, physical))
        physical &+= 1
      }
      return bytes
    }
  }

  public func storeFault(linear address: UInt64, count: Int, as access: LinearAccess) -> Exception? {
    busy {
      do throws(Fault) {
        _ = try storeSpan(address, count, as: access)
        return nil
      } catch { return Exception(error) }
    }
  }

  public func write(linear address: UInt64, _ bytes: [UInt8], as access: LinearAccess) -> Exception? {
    busy {
      do throws(Fault) {
        let span = try storeSpan(address, bytes.count, as: access)
        for (index, byte) in bytes.enumerated() { processor.store(byte, span, at: index) }
        return nil
      } catch { return Exception(error) }
    }
  }

  public func refetchCode() {
    debugger?.forgetStep()
    busy {
      for count in [0, Instruction.maximumLength - 1] {
        unsafe chost_flush_page(page.pointer, offset(linearIP, by: count, as: .code))
      }
    }
  }

  /// A linear address `count` bytes on: 32 bits of it, but for 64-bit code, and for a debugger in long mode.
  private func offset(_ address: UInt64, by count: Int, as access: LinearAccess) -> UInt64 {
    let linear = address &+ UInt64(count)
    return access == .debugger && page.isLMA || page.isLongMode ? linear : linear & 0xFFFF_FFFF
  }

  /// Where `count` bytes are to be stored: both pages before any byte.
  private func storeSpan(_ address: UInt64, _ count: Int, as access: LinearAccess) throws(Fault) -> LinearSpan {
    guard count <= TranslatedCPU.longestAccess else { throw .generalProtection() }
    let firstCount = 4096 &- Int(address & 0xFFF)
    if count <= 0 { return LinearSpan(count: 0, first: 0, firstCount: 0, second: 0) }
    let first = try place(offset(address, by: 0, as: access), write: true, as: access)
    let second =
      count > firstCount ? try place(offset(address, by: firstCount, as: access), write: true, as: access) : 0
    return LinearSpan(count: count, first: first, firstCount: min(count, firstCount), second: second)
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
      case .debugger: try mapped(linear, write: write)
      case .code where !write: try processor.translate(linear, rights | UInt32(CHOST_ACCESS_FETCH))
      case .code, .data: try processor.translate(linear, rights | (write ? UInt32(CHOST_ACCESS_WRITE) : 0))
      }
    guard processor.isRAM(physical) else { throw .generalProtection() }
    return physical
  }

  /// Where a linear address leads to, whoever may go there; accessed bits stay as they are.
  private func mapped(_ linear: UInt64, write: Bool) throws(Fault) -> UInt64 {
    var refused: UInt32?
    // Pages of the kernel, and with SMAP those of user code too.
    for rights in [0, UInt32(CHOST_ACCESS_USER)] {
      var physical: UInt64 = 0
      var code = unsafe chost_probe(page.pointer, linear, rights, &physical)
      while code == UInt32(CHOST_TABLE_ABSENT) {
        processor.waitUntilPresent(physical)
        code = unsafe chost_probe(page.pointer, linear, rights, &physical)
      }
      if code == 0 { return physical }
      refused = refused ?? code
    }
    throw .pageFault(linear, code: (refused ?? 0) & 0x7FFF_FFFF | (write ? UInt32(CHOST_ACCESS_WRITE) : 0))
  }
}
