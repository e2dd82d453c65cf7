//! [`JoinWindows`]: how far apart in time two records may be to join.

use std::time::Duration;

use crate::streams::error::{Result, StreamsError};

/// A left record joins right records with `left - before <= right <= left + after`; either bound may be negative as long as the
/// window is not empty. Records older than stream time by more than the window and the grace may miss partners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinWindows {
    pub(crate) before_ms: i64,
    pub(crate) after_ms: i64,
    pub(crate) grace_ms: i64,
}

impl JoinWindows {
    /// Up to `difference` apart in either direction; later records wait `grace` longer for each other.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, i64>("left"), builder.stream::<String, i64>("right"));
    /// let windows = JoinWindows::of_time_difference_and_grace(Duration::from_millis(10), Duration::from_secs(60));
    /// left.join(&right, |l, r| Some(l? + r?), windows).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, i64>("left");
    /// # let right = driver.input_topic::<String, i64>("right");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// left.pipe_input(Some("k".into()), Some(100), 1_000)?;
    /// for at in [989, 990, 1_010, 1_011] {
    ///     right.pipe_input(Some("k".into()), Some(at), at)?;
    /// }
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, sum)| sum.unwrap() - 100).collect();
    /// assert_eq!(joined, [990, 1_010]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_time_difference_and_grace(difference: Duration, grace: Duration) -> Self {
        let difference = millis(difference);
        Self { before_ms: difference, after_ms: difference, grace_ms: millis(grace) }
    }

    /// Up to `difference` apart in either direction, no grace.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, i64>("left"), builder.stream::<String, i64>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_millis(10));
    /// left.join(&right, |l, r| Some(l? + r?), windows).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, i64>("left");
    /// # let right = driver.input_topic::<String, i64>("right");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// left.pipe_input(Some("k".into()), Some(100), 1_000)?;
    /// for at in [990, 1_010, 1_011] {
    ///     right.pipe_input(Some("k".into()), Some(at), at)?;
    /// }
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, sum)| sum.unwrap() - 100).collect();
    /// assert_eq!(joined, [990, 1_010]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn of_time_difference_with_no_grace(difference: Duration) -> Self {
        Self::of_time_difference_and_grace(difference, Duration::ZERO)
    }

    /// How much earlier than the left record the right one may be, in milliseconds; negative = how much later it must be.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, i64>("left"), builder.stream::<String, i64>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_millis(10)).before_ms(0);
    /// left.join(&right, |l, r| Some(l? + r?), windows).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, i64>("left");
    /// # let right = driver.input_topic::<String, i64>("right");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// left.pipe_input(Some("k".into()), Some(100), 1_000)?;
    /// for at in [990, 1_000, 1_010] {
    ///     right.pipe_input(Some("k".into()), Some(at), at)?;
    /// }
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, sum)| sum.unwrap() - 100).collect();
    /// assert_eq!(joined, [1_000, 1_010]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn before_ms(mut self, before_ms: i64) -> Self {
        self.before_ms = before_ms;
        self
    }

    /// How much later than the left record the right one may be, in milliseconds; negative = how much earlier it must be.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, i64>("left"), builder.stream::<String, i64>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_millis(10)).after_ms(0);
    /// left.join(&right, |l, r| Some(l? + r?), windows).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, i64>("left");
    /// # let right = driver.input_topic::<String, i64>("right");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// left.pipe_input(Some("k".into()), Some(100), 1_000)?;
    /// for at in [990, 1_000, 1_010] {
    ///     right.pipe_input(Some("k".into()), Some(at), at)?;
    /// }
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, sum)| sum.unwrap() - 100).collect();
    /// assert_eq!(joined, [990, 1_000]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn after_ms(mut self, after_ms: i64) -> Self {
        self.after_ms = after_ms;
        self
    }

    /// Length of the window.
    pub(crate) fn size_ms(self) -> i64 {
        self.before_ms.saturating_add(self.after_ms)
    }

    /// Refuses a window that ends before it starts.
    pub(crate) fn check(self) -> Result<()> {
        if self.size_ms() >= 0 {
            return Ok(());
        }
        Err(StreamsError::Topology(format!(
            "a join window from {} ms before to {} ms after ends before it starts: make before + after at least 0",
            self.before_ms, self.after_ms
        )))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
