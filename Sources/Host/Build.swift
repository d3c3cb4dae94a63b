// SPDX-License-Identifier: Apache-2.0
// What this build is called: the version people quote and the commit it was made from.

import CHost

/// Version and commit of this build.
public enum Build {
  public static let version = "0.1.0"

  /// The short commit name given to the package manifest, or `unknown`.
  public static var commit: String {
    // SAFETY: `chost_commit` returns a string literal of the C target.
    unsafe String(cString: chost_commit())
  }
}
