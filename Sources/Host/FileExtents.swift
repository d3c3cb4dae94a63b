// SPDX-License-Identifier: Apache-2.0
// Where a sparse file has data: reading only there is what makes saving and restoring a large, mostly empty guest
// quick.

import Glibc
import SystemPackage

/// The parts of `range` that are not holes, in ascending order; all of it where the file system does not say. Their
/// ends are multiples of the page size if those of `range` are.
func dataExtents(_ descriptor: Int32, _ range: Range<Int>) -> [Range<Int>] {
  let (seekData, seekHole): (Int32, Int32) = (3, 4)  // linux/fs.h
  let mask = hostPageSize - 1
  var extents: [Range<Int>] = []
  var position = range.lowerBound
  while position < range.upperBound {
    let data = lseek(descriptor, position, seekData)
    if data < 0 { return errno == ENXIO ? extents : [range] }
    guard data < range.upperBound else { break }
    let hole = lseek(descriptor, data, seekHole)
    guard hole > data else { return [range] }
    let start = max(data & ~mask, extents.last?.upperBound ?? range.lowerBound)
    let end = min((hole + mask) & ~mask, range.upperBound)
    if start < end { extents.append(start..<end) }
    position = max(hole, end)
  }
  return extents
}

extension HostFile {
  /// The parts of `range` that are not holes.
  public func dataExtents(in range: Range<Int>) -> [Range<Int>] { Host.dataExtents(descriptor.rawValue, range) }
}

extension MemoryFile {
  /// The parts of `range` that something was ever stored to.
  public func dataExtents(in range: Range<Int>) -> [Range<Int>] { Host.dataExtents(descriptor.rawValue, range) }
}
