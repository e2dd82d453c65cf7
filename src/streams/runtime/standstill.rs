//! [`Standstills`]: sees inputs that have records and give none, so that they are read with a new consumer.
//!
//! Seen with librdkafka after a broker was stopped in a rebalance: nothing is paused, no call hangs, and a partition stays silent. The
//! same of a changelog is seen by its reader.

use std::collections::BTreeMap;

use crate::streams::{
    error::{Result, StreamsError},
    record::{Timestamp, TopicPartition},
};

/// A partition that stands for so long, and was seen to so often, gives this consumer nothing any more. Seen often as well: a clock may
/// jump.
const STANDS_MS: i64 = 30_000;
const SEEN: u32 = 100;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Standstills(BTreeMap<TopicPartition, Standstill>);

/// Where a partition stands, since when, and how often that was seen.
struct Standstill {
    position: i64,
    since: Timestamp,
    seen: u32,
}

impl Standstills {
    /// Partitions are assigned anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// A partition has given something.
    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.0.remove(partition);
    }

    /// A partition has given nothing since its last record was processed, and is `lag` records behind. An error when that is so for long:
    /// rewind, and begin with a new consumer. `client_view` is what the client says of it, for the message.
    pub(super) fn look(
        &mut self,
        partition: &TopicPartition,
        position: i64,
        lag: i64,
        now: Timestamp,
        client_view: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        if lag == 0 {
            self.forget(partition);
            return Ok(());
        }
        let begins = || Standstill { position, since: now, seen: 0 };
        let stands = self.0.entry(partition.clone()).or_insert_with(begins);
        if stands.position != position || now < stands.since {
            *stands = begins();
        }
        stands.seen += 1;
        if now - stands.since < STANDS_MS || stands.seen < SEEN {
            return Ok(());
        }
        let seconds = (now - stands.since) / 1_000;
        let says = client_view().map(|view| format!(" (its client says: {view})")).unwrap_or_default();
        Err(StreamsError::AbortTransaction(format!(
            "{partition} stands at offset {position}, {lag} records from its end, for {seconds} s; it is read with a new consumer{says}"
        )))
    }
}
