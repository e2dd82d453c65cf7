//! The window specifications: [`TimeWindows`], [`SlidingWindows`], [`SessionWindows`], [`UnlimitedWindows`], and when results are
//! forwarded: [`EmitStrategy`].
//!
//! Grace is part of each constructor, as in Kafka since 4.0: how late a record may be is a decision, not a default.

use std::time::Duration;

use super::windowed::Window;
use crate::streams::record::Timestamp;

/// When a windowed aggregation forwards results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EmitStrategy {
    /// At each update (through the record cache, where there is one).
    #[default]
    OnWindowUpdate,
    /// Once, when the window is closed: its end is `grace` behind stream time.
    OnWindowClose,
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Tumbling or hopping windows: `[start, start + size)`, aligned to the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWindows {
    pub(crate) size_ms: i64,
    pub(crate) advance_ms: i64,
    pub(crate) grace_ms: i64,
}

impl TimeWindows {
    /// Tumbling windows of a size (> 0), accepting records until `grace` behind stream time.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = TimeWindows::of_size_and_grace(Duration::from_millis(10), Duration::from_millis(5));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [8, 14, 9, 15, 9] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@0", 1), ("k@10", 1), ("k@0", 2), ("k@10", 2)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_size_and_grace(size: Duration, grace: Duration) -> Self {
        Self { size_ms: millis(size), advance_ms: millis(size), grace_ms: millis(grace) }
    }

    /// Tumbling windows that accept no record behind their end.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = TimeWindows::of_size_with_no_grace(Duration::from_millis(10));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [8, 10, 9] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@0", 1), ("k@10", 1)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_size_with_no_grace(size: Duration) -> Self {
        Self::of_size_and_grace(size, Duration::ZERO)
    }

    /// Makes the windows overlap: one starts every `advance` (> 0, at most the size).
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = TimeWindows::of_size_with_no_grace(Duration::from_millis(10)).advance_by(Duration::from_millis(5));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [7] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@0", 1), ("k@5", 1)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn advance_by(mut self, advance: Duration) -> Self {
        self.advance_ms = millis(advance);
        self
    }
}

/// Windows of a length that start anywhere: `[t - d, t]` for each record, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindows {
    pub(crate) difference_ms: i64,
    pub(crate) grace_ms: i64,
}

impl SlidingWindows {
    /// Records at most `difference` apart are in one window.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SlidingWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = SlidingWindows::of_time_difference_and_grace(Duration::from_millis(10), Duration::from_millis(50));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [20, 25] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@10", 1), ("k@21", 1), ("k@15", 2)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_time_difference_and_grace(difference: Duration, grace: Duration) -> Self {
        Self { difference_ms: millis(difference), grace_ms: millis(grace) }
    }

    /// As above, accepting no record behind a window's end.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SlidingWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = SlidingWindows::of_time_difference_with_no_grace(Duration::from_millis(10));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [20, 50] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@10", 1), ("k@40", 1)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_time_difference_with_no_grace(difference: Duration) -> Self {
        Self::of_time_difference_and_grace(difference, Duration::ZERO)
    }
}

/// Sessions: records of a key that are at most `gap` apart, from the first to the last, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionWindows {
    pub(crate) gap_ms: i64,
    pub(crate) grace_ms: i64,
}

impl SessionWindows {
    /// A session ends after `gap` without a record.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = SessionWindows::of_inactivity_gap_and_grace(Duration::from_millis(10), Duration::from_millis(50));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by_session(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [0, 30, 12] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n)).collect();
    /// assert_eq!(counts, [("k@0", Some(1)), ("k@30", Some(1)), ("k@12", Some(1))].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_inactivity_gap_and_grace(gap: Duration, grace: Duration) -> Self {
        Self { gap_ms: millis(gap), grace_ms: millis(grace) }
    }

    /// As above, accepting no record behind a session's end and gap.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let windows = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_millis(10));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by_session(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [0, 30, 12] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n)).collect();
    /// assert_eq!(counts, [("k@0", Some(1)), ("k@30", Some(1))].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_inactivity_gap_with_no_grace(gap: Duration) -> Self {
        Self::of_inactivity_gap_and_grace(gap, Duration::ZERO)
    }
}

/// One window from a start to the end of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UnlimitedWindows {
    pub(crate) start_ms: i64,
}

impl UnlimitedWindows {
    /// The window that starts at the epoch.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, UnlimitedWindows}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let windows = UnlimitedWindows::of();
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [0, 1_000_000] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@0", 1), ("k@0", 2)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of() -> Self {
        Self::default()
    }

    /// The window that starts at `start` (>= 0).
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, UnlimitedWindows}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let windows = UnlimitedWindows::of().start_on(100);
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(windows).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [99, 100, 1_000_000] {
    ///     input.pipe_input(Some("k".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("k@100", 1), ("k@100", 2)].map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn start_on(mut self, start: Timestamp) -> Self {
        self.start_ms = start;
        self
    }
}

/// What windows a time aggregation may be given; see [`KGroupedStream::windowed_by`](super::KGroupedStream::windowed_by).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Tumbling, hopping.
    Time(TimeWindows),
    /// Sliding.
    Sliding(SlidingWindows),
    /// Unlimited.
    Unlimited(UnlimitedWindows),
}

impl From<TimeWindows> for Windows {
    fn from(windows: TimeWindows) -> Self {
        Windows::Time(windows)
    }
}

impl From<SlidingWindows> for Windows {
    fn from(windows: SlidingWindows) -> Self {
        Windows::Sliding(windows)
    }
}

impl From<UnlimitedWindows> for Windows {
    fn from(windows: UnlimitedWindows) -> Self {
        Windows::Unlimited(windows)
    }
}

impl Windows {
    /// From a window's start to its `end` as it appears in keys.
    pub(crate) fn size_ms(&self) -> i64 {
        match self {
            Windows::Time(windows) => windows.size_ms,
            Windows::Sliding(windows) => windows.difference_ms,
            Windows::Unlimited(_) => i64::MAX,
        }
    }

    pub(crate) fn grace_ms(&self) -> i64 {
        match self {
            Windows::Time(windows) => windows.grace_ms,
            Windows::Sliding(windows) => windows.grace_ms,
            Windows::Unlimited(_) => 0,
        }
    }

    /// The least a store must keep.
    pub(crate) fn retention_ms(&self) -> i64 {
        match self {
            Windows::Sliding(windows) => {
                windows.difference_ms.saturating_mul(2).saturating_add(windows.grace_ms)
            }
            _ => self.size_ms().saturating_add(self.grace_ms()),
        }
    }

    /// Windows a record at `timestamp` falls into, by start. Not for sliding windows: those are made by the records.
    pub(crate) fn windows_for(&self, timestamp: Timestamp) -> Vec<Window> {
        match self {
            Windows::Time(windows) => {
                let advance = windows.advance_ms;
                let mut start = (timestamp - windows.size_ms + advance).max(0) / advance * advance;
                let mut found = Vec::with_capacity(1);
                while start <= timestamp {
                    found.push(Window { start, end: start.saturating_add(windows.size_ms) });
                    start += advance;
                }
                found
            }
            Windows::Unlimited(windows) if timestamp >= windows.start_ms => {
                vec![Window { start: windows.start_ms, end: Timestamp::MAX }]
            }
            Windows::Unlimited(_) | Windows::Sliding(_) => Vec::new(),
        }
    }

    /// Why a specification cannot be used.
    pub(crate) fn mistake(&self) -> Option<String> {
        match self {
            Windows::Time(w) if w.size_ms <= 0 => {
                Some(format!("window size must be above zero, not {} ms", w.size_ms))
            }
            Windows::Time(w) if w.advance_ms <= 0 || w.advance_ms > w.size_ms => Some(format!(
                "windows of {} ms must advance by more than zero and at most their size, not {} ms",
                w.size_ms, w.advance_ms
            )),
            Windows::Unlimited(w) if w.start_ms < 0 => {
                Some(format!("a window cannot start before the epoch ({} ms)", w.start_ms))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopping_windows_overlap_and_never_start_before_the_epoch() {
        let windows = Windows::from(
            TimeWindows::of_size_with_no_grace(Duration::from_millis(10))
                .advance_by(Duration::from_millis(4)),
        );
        let starts = |at| windows.windows_for(at).iter().map(|w| w.start).collect::<Vec<_>>();
        assert_eq!(starts(3), [0]);
        assert_eq!(starts(9), [0, 4, 8]);
        assert_eq!(starts(12), [4, 8, 12]);
    }
}
