//! Reading topics from one place to another, outside any group: what checks, reports and repairs need.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{ClientSupplier, ConsumerConfig};
use crate::streams::{
    error::{Result, StreamsError},
    record::{ConsumerRecord, TopicPartition},
};

/// How long the log may be silent before the end is reached.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Hands over every committed record of a topic, up to its last stable offset when the call began, in order within each
/// partition. Returns how many there were; 0 when there is no such topic.
///
/// # Errors
/// Those of the log, `Retriable` when it says nothing for 30 s, and whatever `take` answers.
pub fn read_topic(
    supplier: &dyn ClientSupplier,
    topic: &str,
    take: impl FnMut(ConsumerRecord) -> Result<()>,
) -> Result<u64> {
    let described = supplier.admin()?.describe(&[topic.to_owned()])?;
    let partitions = described.get(topic).map_or(0, |topic| topic.partitions);
    let from = (0..partitions).map(|partition| (TopicPartition::new(topic, partition), 0)).collect();
    read_partitions(supplier, &from, take)
}

/// As [`read_topic`], for some partitions, each from an offset or from the first one kept after it.
pub(crate) fn read_partitions(
    supplier: &dyn ClientSupplier,
    from: &BTreeMap<TopicPartition, i64>,
    mut take: impl FnMut(ConsumerRecord) -> Result<()>,
) -> Result<u64> {
    let mut consumer = supplier.consumer(&ConsumerConfig {
        read_committed: true,
        max_poll_records: 10_000,
        ..ConsumerConfig::default()
    })?;
    let mut ends = HashMap::new();
    let mut assignment = Vec::new();
    for (partition, offset) in from {
        let (first, end) = consumer.watermarks(partition)?;
        let start = first.max(*offset);
        if start < end {
            ends.insert(partition.clone(), end);
            assignment.push((partition.clone(), Some(start)));
        }
    }
    consumer.assign(&assignment)?;
    let mut count = 0;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        let polled = consumer.poll(Duration::from_millis(100))?;
        if !polled.records.is_empty() {
            heard = Instant::now();
        }
        for record in polled.records {
            // A partition that was read to its end as it was at the beginning is done; what came since is newer.
            let partition = TopicPartition::new(record.topic.clone(), record.partition);
            if ends.get(&partition).is_some_and(|end| record.offset < *end) {
                count += 1;
                take(record)?;
            }
        }
        // The position steps over markers of transactions, which never arrive as records.
        let mut open = HashMap::new();
        for (partition, end) in ends {
            if consumer.position(&partition)?.is_none_or(|position| position < end) {
                open.insert(partition, end);
            }
        }
        ends = open;
        if heard.elapsed() > SILENCE_MAX {
            let waited: Vec<String> = ends.keys().map(ToString::to_string).collect();
            return Err(StreamsError::Retriable(format!(
                "{}: no records for {} s",
                waited.join(", "),
                SILENCE_MAX.as_secs()
            )));
        }
    }
    consumer.close();
    Ok(count)
}
