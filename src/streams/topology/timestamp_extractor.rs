//! The timestamp extractors Kafka Streams comes with: where a record's event time comes from.
//!
//! A negative result drops the record (counted); an error stops the task.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::TimestampExtractor;
use crate::streams::{error::ProcessingError, record::ConsumerRecord};

/// The record's own timestamp; a negative one stops the task (Kafka's `FailOnInvalidTimestamp`, the default).
pub fn fail_on_invalid_timestamp() -> TimestampExtractor {
    Arc::new(|record, _, _| {
        if record.timestamp < 0 {
            return Err(invalid(record));
        }
        Ok(record.timestamp)
    })
}

/// The record's own timestamp; a record with a negative one is dropped (Kafka's `LogAndSkipOnInvalidTimestamp`).
pub fn log_and_skip_on_invalid_timestamp() -> TimestampExtractor {
    Arc::new(|record, _, _| Ok(record.timestamp))
}

/// The record's own timestamp; in place of a negative one the largest seen in the partition, and where none was seen the task stops
/// (Kafka's `UsePartitionTimeOnInvalidTimestamp`).
pub fn use_partition_time_on_invalid_timestamp() -> TimestampExtractor {
    Arc::new(|record, _, partition_time| match record.timestamp {
        timestamp if timestamp >= 0 => Ok(timestamp),
        _ if partition_time < 0 => Err(invalid(record)),
        _ => Ok(partition_time),
    })
}

/// The wall clock when the record is taken (Kafka's `WallclockTimestampExtractor`). Replaying gives other results.
pub fn wallclock_timestamp() -> TimestampExtractor {
    Arc::new(|_, _, _| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

fn invalid(record: &ConsumerRecord) -> ProcessingError {
    ProcessingError::new(
        "StreamsException",
        format!(
            "record at {}-{} offset {} has an invalid (negative) timestamp {}: choose another timestamp extractor",
            record.topic, record.partition, record.offset, record.timestamp
        ),
    )
}
