// SPDX-License-Identifier: Apache-2.0
// Shared libraries that a host has or has not: looked for at run time, so that neither a build nor a program that
// embeds us depends on them. Whoever uses one has another way without it.

import Glibc

/// A shared library, loaded for the rest of the process.
@safe public struct HostLibrary: @unchecked Sendable {
  private let handle: UnsafeMutableRawPointer

  /// Looks for a library by its soname, "liblzma.so.5", where the dynamic loader looks.
  public init?(_ name: String) {
    guard let handle = unsafe dlopen(name, RTLD_NOW | RTLD_LOCAL) else { return nil }
    unsafe self.handle = handle
  }

  /// The function of this name; `F` must be its C type.
  @unsafe public func function<F>(_ name: String, as type: F.Type) -> F? {
    guard let symbol = unsafe dlsym(handle, name) else { return nil }
    return unsafe unsafeBitCast(symbol, to: F.self)
  }
}
