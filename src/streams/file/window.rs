//! Windows: aligned to the epoch or to the days of a time zone (tumbling, hopping), or made by the records in them (sliding, session).
//!
//! What must always hold: every moment is in as many aligned windows as the length holds steps (in one where they tumble), and
//! they follow each other without a gap; in a zone a day has the 23 to 25 hours that its clocks gave it.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use smallvec::SmallVec;

const MS_PER_DAY: i64 = 86_400_000;

/// The most windows that one record may be in.
pub(crate) const OVERLAP_MAX: i64 = 1_000;

/// Starts of windows.
pub(crate) type Starts = SmallVec<[i64; 8]>;

/// A way to cut time into windows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Windows {
    /// Of equal length, one at every multiple of the step since the epoch.
    Fixed {
        /// Length, ms.
        size_ms: i64,
        /// From one start to the next, ms; the length where windows tumble.
        step_ms: i64,
    },
    /// Whole days of a zone, counted from 1970-01-01 there.
    Days {
        /// Days per window.
        days: i64,
        /// Days from one start to the next.
        step: i64,
        /// The zone.
        zone: TimeZone,
    },
    /// All that lie no further apart than this; both ends belong to the window.
    Sliding {
        /// Length, ms.
        size_ms: i64,
    },
    /// Records of one key without a longer silence between them; both ends belong to the window.
    Session {
        /// The longest silence within a session, ms.
        gap_ms: i64,
    },
}

impl Windows {
    /// Windows of equal length that follow each other.
    #[cfg(test)]
    pub(crate) fn tumbling(size_ms: i64) -> Self {
        Windows::Fixed { size_ms, step_ms: size_ms }
    }

    /// Whether windows begin at times that the clock knows beforehand.
    pub(crate) fn is_aligned(&self) -> bool {
        matches!(self, Windows::Fixed { .. } | Windows::Days { .. })
    }

    /// The start of the newest window that a moment is in (of sliding windows and sessions: that may begin there). Moments before
    /// the epoch are in windows before it.
    pub(crate) fn start_of(&self, ms: i64) -> i64 {
        match self {
            Windows::Fixed { step_ms, .. } => ms - ms.rem_euclid(*step_ms),
            Windows::Days { step, zone, .. } => {
                let Some(day) = day_number(ms, zone) else { return ms - ms.rem_euclid(MS_PER_DAY) };
                day_start(day - day.rem_euclid(*step), zone)
            }
            Windows::Sliding { .. } | Windows::Session { .. } => ms,
        }
    }

    /// The starts of all aligned windows that a moment is in, oldest first.
    pub(crate) fn starts_of(&self, ms: i64) -> Starts {
        let newest = self.start_of(ms);
        let mut starts = Starts::new();
        match self {
            Windows::Fixed { size_ms, step_ms } => {
                let mut start = newest;
                while start.saturating_add(*size_ms) > ms {
                    starts.push(start);
                    start = start.saturating_sub(*step_ms);
                }
            }
            Windows::Days { days, step, zone } if step < days => {
                if let Some(day) = day_number(ms, zone) {
                    let mut first = day - day.rem_euclid(*step);
                    while first + days > day {
                        starts.push(day_start(first, zone));
                        first -= step;
                    }
                } else {
                    starts.push(newest);
                }
            }
            _ => starts.push(newest),
        }
        starts.reverse();
        starts
    }

    /// The smallest start of a window that holds something at or after the moment: everything that begins before is over.
    pub(crate) fn first_open(&self, ms: i64) -> i64 {
        match self {
            Windows::Sliding { size_ms } => ms.saturating_sub(*size_ms),
            Windows::Session { gap_ms } => ms.saturating_sub(*gap_ms),
            _ => self.starts_of(ms)[0],
        }
    }

    /// The first moment after the window that begins at `start`; a session's end is not told by its start.
    pub(crate) fn end_of(&self, start: i64) -> i64 {
        match self {
            Windows::Fixed { size_ms, .. } => start.saturating_add(*size_ms),
            Windows::Days { days, zone, .. } => match day_number(start, zone) {
                Some(day) => day_start(day + days, zone),
                None => start.saturating_add(days * MS_PER_DAY),
            },
            Windows::Sliding { size_ms } => start.saturating_add(*size_ms).saturating_add(1),
            Windows::Session { .. } => start,
        }
    }

    /// What a result shows as the window's end: where aligned the first moment after it, else the last within it.
    pub(crate) fn shown_end(&self, start: i64) -> i64 {
        match self {
            Windows::Sliding { size_ms } => start.saturating_add(*size_ms),
            _ => self.end_of(start),
        }
    }

    /// The usual length, ms; of sessions the gap.
    pub(crate) fn size_ms(&self) -> i64 {
        match self {
            Windows::Fixed { size_ms, .. } | Windows::Sliding { size_ms } => *size_ms,
            Windows::Days { days, .. } => days * MS_PER_DAY,
            Windows::Session { gap_ms } => *gap_ms,
        }
    }

    /// The zone's name, where there is one.
    pub(crate) fn zone(&self) -> Option<&str> {
        match self {
            Windows::Days { zone, .. } => zone.iana_name(),
            _ => None,
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
        Windows::Days { days: 1, step: 1, zone: TimeZone::get(zone).unwrap() }
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
                Windows::tumbling(count * 61_000),
                Windows::Days { days: count, step: count, zone: TimeZone::get(zone).unwrap() },
            ] {
                let start = windows.start_of(ms);
                let end = windows.end_of(start);
                prop_assert!(start <= ms && ms < end, "{windows:?}: {start} {ms} {end}");
                prop_assert_eq!(windows.start_of(end), end);
                prop_assert_eq!(windows.start_of(end - 1), start);
                prop_assert_eq!(windows.starts_of(ms).to_vec(), vec![start]);
                prop_assert_eq!(windows.first_open(ms), start);
            }
        }

        #[test]
        fn every_moment_is_in_the_hopping_windows_that_hold_it(ms in -2_000_000_000_000_i64..4_000_000_000_000, step in 1..5_i64, more in 0..9_i64, zone in proptest::sample::select(vec!["Asia/Seoul", "Europe/Berlin", "America/Sao_Paulo"])) {
            let length = step + more;
            for windows in [
                Windows::Fixed { size_ms: length * 61_000, step_ms: step * 61_000 },
                Windows::Days { days: length, step, zone: TimeZone::get(zone).unwrap() },
            ] {
                let starts = windows.starts_of(ms);
                prop_assert!(starts.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(starts.iter().all(|start| *start <= ms && ms < windows.end_of(*start)));
                prop_assert_eq!(*starts.last().unwrap(), windows.start_of(ms));
                // The window before the first is over, and nothing that holds the moment is left out.
                let before = windows.start_of(starts[0] - 1);
                prop_assert!(windows.end_of(before) <= ms);
                prop_assert_eq!(windows.first_open(ms), starts[0]);
            }
        }
    }
}
