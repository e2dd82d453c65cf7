//! Tumbling windows: aligned to the epoch, or to the days of a time zone.
//!
//! What must always hold: every moment is in exactly one window, and windows follow each other without a gap; in a zone a day has the 23
//! to 25 hours that its clocks gave it.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

const MS_PER_DAY: i64 = 86_400_000;

/// A way to cut time into windows.
#[derive(Clone, Debug, PartialEq)]
pub enum Windows {
    /// Of equal length, the first begins at the epoch.
    Fixed {
        /// Length, ms.
        size_ms: i64,
    },
    /// Whole days of a zone, counted from 1970-01-01 there.
    Days {
        /// Days per window.
        days: i64,
        /// The zone.
        zone: TimeZone,
    },
}

impl Windows {
    /// The start of the window that a moment is in. Moments before the epoch are in windows before it.
    pub fn start_of(&self, ms: i64) -> i64 {
        match self {
            Windows::Fixed { size_ms } => ms - ms.rem_euclid(*size_ms),
            Windows::Days { days, zone } => {
                let Some(day) = day_number(ms, zone) else { return ms - ms.rem_euclid(MS_PER_DAY) };
                day_start(day - day.rem_euclid(*days), zone)
            }
        }
    }

    /// The end (exclusive) of the window that begins at `start`.
    pub fn end_of(&self, start: i64) -> i64 {
        match self {
            Windows::Fixed { size_ms } => start.saturating_add(*size_ms),
            Windows::Days { days, zone } => match day_number(start, zone) {
                Some(day) => day_start(day + days, zone),
                None => start.saturating_add(days * MS_PER_DAY),
            },
        }
    }

    /// The usual length, ms.
    pub fn size_ms(&self) -> i64 {
        match self {
            Windows::Fixed { size_ms } => *size_ms,
            Windows::Days { days, .. } => days * MS_PER_DAY,
        }
    }

    /// The zone's name, where there is one.
    pub fn zone(&self) -> Option<&str> {
        match self {
            Windows::Fixed { .. } => None,
            Windows::Days { zone, .. } => zone.iana_name(),
        }
    }
}

/// Days between 1970-01-01 and the moment's date in the zone; `None` beyond the years that calendars know.
fn day_number(ms: i64, zone: &TimeZone) -> Option<i64> {
    let date = Timestamp::from_millisecond(ms).ok()?.to_zoned(zone.clone()).date();
    let since = date.since(Date::constant(1970, 1, 1)).ok()?;
    Some(i64::from(since.get_days()))
}

/// The first moment of a day in the zone (after a gap at midnight, where there is one).
fn day_start(day: i64, zone: &TimeZone) -> i64 {
    let start = i32::try_from(day)
        .ok()
        .and_then(|day| Date::constant(1970, 1, 1).checked_add(jiff::Span::new().days(day)).ok())
        .and_then(|date| date.to_zoned(zone.clone()).ok());
    start.map_or(day.saturating_mul(MS_PER_DAY), |start| start.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::time::{format_timestamp, parse_timestamp},
        *,
    };

    fn days(zone: &str) -> Windows {
        Windows::Days { days: 1, zone: TimeZone::get(zone).unwrap() }
    }

    #[test]
    fn days_begin_at_midnight_of_their_zone() {
        let cases = [
            (
                "Asia/Seoul",
                "2026-11-23T14:59:59.999Z",
                "2026-11-22T15:00:00.000Z",
                "2026-11-23T15:00:00.000Z",
            ),
            ("Asia/Seoul", "2026-11-23T15:00:00Z", "2026-11-23T15:00:00.000Z", "2026-11-24T15:00:00.000Z"),
            // 23 hours in spring, 25 in autumn.
            ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00.000Z", "2026-03-29T22:00:00.000Z"),
            ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00.000Z", "2026-10-25T23:00:00.000Z"),
            // Midnight itself is skipped.
            (
                "America/Sao_Paulo",
                "2018-11-04T12:00:00Z",
                "2018-11-04T03:00:00.000Z",
                "2018-11-05T02:00:00.000Z",
            ),
        ];
        for (zone, at, start, end) in cases {
            let windows = days(zone);
            let found = windows.start_of(parse_timestamp(at).unwrap());
            assert_eq!(format_timestamp(found), start, "{zone} {at}");
            assert_eq!(format_timestamp(windows.end_of(found)), end, "{zone} {at}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_in_one_window(ms in -2_000_000_000_000_i64..4_000_000_000_000, zone in proptest::sample::select(vec!["Asia/Seoul", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia"]), count in 1..8_i64) {
            for windows in [
                Windows::Fixed { size_ms: count * 61_000 },
                Windows::Days { days: count, zone: TimeZone::get(zone).unwrap() },
            ] {
                let start = windows.start_of(ms);
                let end = windows.end_of(start);
                prop_assert!(start <= ms && ms < end, "{windows:?}: {start} {ms} {end}");
                prop_assert_eq!(windows.start_of(end), end);
                prop_assert_eq!(windows.start_of(end - 1), start);
            }
        }
    }
}
