//! Watermarks: what the inputs of a task have vouched for, and how that travels through repartition topics.
//!
//! An upstream task writes, in its transaction and after the data it covers, one control record into each partition of the
//! repartition topics it feeds: "partition `u` of my inputs has nothing older than `t` to come". The reader's clock for that topic is the
//! minimum over all upstream partitions. So lateness is judged by what was vouched for, never by the fastest partition
//! (streams-semantics part D). Control records carry a header, have neither key nor value, and never reach user code.

use std::sync::Arc;

use bytes::Bytes;

use crate::streams::record::{ConsumerRecord, Header, Headers, ProducerRecord, Timestamp};

const HEADER: &str = "__sluice.watermark";

/// A control record for one partition of a repartition topic.
pub(super) fn record(topic: &Arc<str>, partition: i32, upstream: i32, time: Timestamp) -> ProducerRecord {
    let mut body = upstream.to_be_bytes().to_vec();
    body.extend_from_slice(&time.to_be_bytes());
    ProducerRecord {
        topic: topic.clone(),
        partition: Some(partition),
        key: None,
        value: None,
        timestamp: Some(time.max(0)),
        headers: Headers::from_iter([Header { key: HEADER.to_owned(), value: Some(Bytes::from(body)) }]),
    }
}

/// The upstream partition and time of a control record; `None` for data.
pub(crate) fn read(record: &ConsumerRecord) -> Option<(i32, Timestamp)> {
    if record.value.is_some() || record.key.is_some() {
        return None;
    }
    let body = record.headers.last(HEADER)?.value.as_ref()?;
    let (upstream, time) = body.split_at_checked(4)?;
    Some((i32::from_be_bytes(upstream.try_into().ok()?), Timestamp::from_be_bytes(time.try_into().ok()?)))
}

/// The clock of one input partition.
#[derive(Debug)]
pub(super) enum InputClock {
    /// A topic outside the application: its clock is the partition time; once caught up and silent it follows the wall clock, as far
    /// as its writer has vouched, where it says so.
    External {
        /// Wall time of the last record, or of the start.
        last_activity: Timestamp,
        /// How far the writer was before it was last asked whether the topic holds more; `None` = it does not say
        /// (`StreamsConfig::progress`).
        writer_at: Option<Timestamp>,
    },
    /// A repartition topic this very task writes: read to the end before anything else is, so it never holds the clock back.
    Own,
    /// A repartition topic: what each upstream partition vouched for, -1 = nothing yet.
    Vouched(Vec<Timestamp>),
}

impl InputClock {
    /// What the input vouches for at `now`. `partition_time` is the largest timestamp taken; `caught_up`: nothing is buffered and the
    /// log holds nothing more.
    pub(super) fn time(
        &self,
        partition_time: Timestamp,
        caught_up: bool,
        idle_close_ms: i64,
        now: Timestamp,
    ) -> Timestamp {
        match self {
            InputClock::Own => Timestamp::MAX,
            InputClock::Vouched(times) => times.iter().copied().min().unwrap_or(-1),
            InputClock::External { last_activity, writer_at } => {
                if !caught_up || now - last_activity < idle_close_ms {
                    return partition_time;
                }
                let now = writer_at.map_or(now, |writer_at| now.min(writer_at));
                // Whole seconds: a silent input must not make its readers work at every loop.
                partition_time.max((now - idle_close_ms).div_euclid(1_000) * 1_000)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_upstream_partition_holds_the_clock() {
        let clock = InputClock::Vouched(vec![50, 20, 90]);
        assert_eq!(clock.time(100, true, 10, 1_000_000), 20);
    }

    #[test]
    fn a_silent_input_follows_the_wall_clock_only_when_caught_up() {
        let clock = InputClock::External { last_activity: 10_000, writer_at: None };
        assert_eq!(clock.time(9_000, true, 5_000, 14_999), 9_000);
        assert_eq!(clock.time(9_000, false, 5_000, 60_000), 9_000);
        assert_eq!(clock.time(9_000, true, 5_000, 60_500), 55_000);
    }

    #[test]
    fn silence_counts_as_far_as_the_writer_has_vouched() {
        let at = |writer_at| InputClock::External { last_activity: 10_000, writer_at: Some(writer_at) };
        assert_eq!(at(0).time(9_000, true, 5_000, 60_500), 9_000, "the writer has not said anything");
        assert_eq!(at(30_200).time(9_000, true, 5_000, 60_500), 25_000, "it is held up at 30.2 s");
        assert_eq!(at(99_000).time(9_000, true, 5_000, 60_500), 55_000, "its clock is ahead of ours");
    }

    #[test]
    fn control_records_round_trip_and_data_is_not_taken_for_one() {
        let sent = record(&"t".into(), 2, 7, 1_234);
        let mut received = ConsumerRecord {
            topic: "t".into(),
            partition: 2,
            offset: 0,
            timestamp: 0,
            key: None,
            value: None,
            headers: sent.headers,
        };
        assert_eq!(read(&received), Some((7, 1_234)));
        received.value = Some(Bytes::from_static(b"x"));
        assert_eq!(read(&received), None);
    }
}
