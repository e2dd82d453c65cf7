//! [`RecordQueue`]: the records of one input partition of a task, first in, first out.
//!
//! Only the head is decoded and timestamped (Kafka's `RecordQueue`), so that the extractor sees the partition time of what was
//! really taken before it.

use std::collections::VecDeque;

use super::watermark;
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    processor::{DropReason, NodeId},
    record::{ConsumerRecord, Timestamp},
    topology::{DecodedRecord, RecordDecoder, TimestampExtractor},
};

/// The next record of a partition.
pub(super) enum Head {
    /// Ready to be processed.
    Record(Box<ConsumerRecord>, DecodedRecord, Timestamp),
    /// Nothing but dropped records: only its offset matters.
    Corrupted(i64),
    /// A control record: this upstream partition has vouched for this time.
    Watermark { offset: i64, upstream: i32, time: Timestamp },
}

impl Head {
    pub(super) fn timestamp(&self) -> Timestamp {
        match self {
            Head::Record(_, _, timestamp) => *timestamp,
            // Taken before anything else: neither carries event time.
            Head::Corrupted(_) | Head::Watermark { .. } => -1,
        }
    }
}

/// What a queue asks its task about bad records.
pub(super) trait BadRecords {
    /// Bytes could not be read, or the record is dated in the future: `Ok` drops the record, `Err` stops the task.
    fn not_decoded(&self, source: NodeId, record: &ConsumerRecord, error: ProcessingError) -> Result<()>;
    /// Wall clock.
    fn now(&self) -> Timestamp;
    /// Counts a dropped record.
    fn dropped(&self, source: NodeId, reason: DropReason);
}

pub(super) struct RecordQueue {
    pub source: NodeId,
    decoder: RecordDecoder,
    extractor: TimestampExtractor,
    max_future_ms: Option<i64>,
    fifo: VecDeque<ConsumerRecord>,
    head: Option<Head>,
    /// Largest timestamp taken from this partition, -1 before the first.
    pub partition_time: Timestamp,
}

impl RecordQueue {
    pub(super) fn new(
        source: NodeId,
        decoder: RecordDecoder,
        extractor: TimestampExtractor,
        max_future_ms: Option<i64>,
    ) -> Self {
        Self {
            source,
            decoder,
            extractor,
            max_future_ms,
            fifo: VecDeque::new(),
            head: None,
            partition_time: -1,
        }
    }

    /// Records held, the head included.
    pub(super) fn len(&self) -> usize {
        self.fifo.len() + usize::from(self.head.is_some())
    }

    pub(super) fn head_timestamp(&self) -> Option<Timestamp> {
        self.head.as_ref().map(Head::timestamp)
    }

    pub(super) fn add(&mut self, record: ConsumerRecord) {
        self.fifo.push_back(record);
    }

    /// Decodes until there is a head, or nothing is left.
    pub(super) fn update_head(&mut self, bad: &dyn BadRecords) -> Result<()> {
        if self.head.is_some() {
            return Ok(());
        }
        let mut last_corrupted = None;
        while let Some(raw) = self.fifo.pop_front() {
            if let Some((upstream, time)) = watermark::read(&raw) {
                self.head = Some(Head::Watermark { offset: raw.offset, upstream, time });
                return Ok(());
            }
            let decoded = match (self.decoder)(&raw) {
                Ok(decoded) => decoded,
                Err(error) => {
                    bad.not_decoded(self.source, &raw, error)?;
                    bad.dropped(self.source, DropReason::Deserialization);
                    last_corrupted = Some(raw.offset);
                    continue;
                }
            };
            let timestamp = (self.extractor)(&raw, &decoded, self.partition_time)
                .map_err(|error| StreamsError::Fatal(format!("timestamp extractor failed: {error}")))?;
            if timestamp < 0 {
                bad.dropped(self.source, DropReason::InvalidTimestamp);
                last_corrupted = Some(raw.offset);
                continue;
            }
            if let Some(max) = self.max_future_ms
                && timestamp > bad.now().saturating_add(max)
            {
                let error = ProcessingError::new(
                    "FutureTimestamp",
                    format!(
                        "dated {} ms ahead of the wall clock, more than max_future ({max} ms)",
                        timestamp - bad.now()
                    ),
                );
                bad.not_decoded(self.source, &raw, error)?;
                bad.dropped(self.source, DropReason::InvalidTimestamp);
                last_corrupted = Some(raw.offset);
                continue;
            }
            self.head = Some(Head::Record(Box::new(raw), decoded, timestamp));
            return Ok(());
        }
        self.head = last_corrupted.map(Head::Corrupted);
        Ok(())
    }

    /// Keeps of a topic that is the changelog of its own table what the table took: what had no key, could not be read or had no time was
    /// dropped then. Rows get the time they were given then. `time` is the partition time of the replay.
    pub(super) fn retain_rows(&self, records: &mut Vec<ConsumerRecord>, time: &mut Timestamp) {
        records.retain_mut(|record| {
            let Ok(decoded) = (self.decoder)(record) else { return false };
            let Ok(timestamp) = (self.extractor)(record, &decoded, *time) else { return false };
            if timestamp < 0 {
                return false;
            }
            *time = timestamp.max(*time);
            record.timestamp = timestamp;
            decoded.key.is_some()
        });
    }

    /// Takes the head and moves the partition time.
    pub(super) fn take_head(&mut self) -> Option<Head> {
        let head = self.head.take()?;
        self.partition_time = self.partition_time.max(head.timestamp());
        Some(head)
    }

    pub(super) fn clear(&mut self) {
        self.fifo.clear();
        self.head = None;
    }
}
