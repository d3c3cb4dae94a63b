// SPDX-License-Identifier: Apache-2.0
// The calendar, for the RTC alone: days to dates and back, in the proleptic Gregorian calendar.

import Saving

/// A date and time of day, UTC.
struct CivilTime: Sendable, Equatable {
  var year: Int64
  /// 1...12.
  var month: Int64
  /// 1...31.
  var day: Int64
  var hour: Int64
  var minute: Int64
  var second: Int64

  /// Days since 1970-01-01. Any month and day are accepted; those out of range carry over.
  private static func days(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
    // Years begin in March, so that the leap day is the last one (Hinnant, "chrono-compatible date algorithms").
    let shifted = month <= 2 ? year - 1 : year
    let era = (shifted >= 0 ? shifted : shifted - 399) / 400
    let yearOfEra = shifted - era * 400
    let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
    return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
  }

  var secondsSince1970: Int64 { Self.days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second }

  /// 1 is Sunday, as the RTC counts.
  var weekday: Int64 { (((Self.days(year, month, day) + 4) % 7) + 7) % 7 + 1 }
}

extension CivilTime {
  /// - Parameter seconds: Since 1970; clamped to the years 1...9999.
  init(secondsSince1970 seconds: Int64) {
    let clamped = min(max(seconds, -62_135_596_800), 253_402_300_799)
    let days = clamped >= 0 ? clamped / 86_400 : -((86_399 - clamped) / 86_400)
    let secondOfDay = clamped - days * 86_400
    let shifted = days + 719_468
    let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
    let dayOfEra = shifted - era * 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let march = (5 * dayOfYear + 2) / 153
    let month = march < 10 ? march + 3 : march - 9
    self.init(
      year: yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month: month, day: dayOfYear - (153 * march + 2) / 5 + 1,
      hour: secondOfDay / 3600, minute: secondOfDay / 60 % 60, second: secondOfDay % 60)
  }
}

extension CivilTime: SavedState {
  mutating func transfer(_ archive: inout StateArchive) throws(SavedStateError) {
    // What two digits of each can be set to.
    try archive.transfer(&year, "year", in: -400...25_600)
    try archive.transfer(&month, "month", in: 1...12)
    try archive.transfer(&day, "day", in: 0...512)
    try archive.transfer(&hour, "hour", in: 0...512)
    try archive.transfer(&minute, "minute", in: 0...512)
    try archive.transfer(&second, "second", in: 0...512)
  }
}
