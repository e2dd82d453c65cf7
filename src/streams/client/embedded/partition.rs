//! One partition as the broker holds it: the hot tail of its records in memory, and the marks that bound every reader.
//!
//! ```text
//!   start          memory_start              first open transaction        next
//!     |  only in the file  |  in memory, stable      |  in memory, not stable  |
//! ```
//!
//! Always: `start <= next`, `memory_start <= next`; every kept record at or past `memory_start` is in memory; a record
//! of an open transaction and a record not yet written to the file are in memory; `stable_end()` is the first offset
//! of an open transaction, or `next`. Offsets may have gaps (transaction markers, compaction, aborted records) and
//! are never given twice.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::waiter::WaitList;
use crate::streams::record::{ConsumerRecord, Headers, ProducerRecord, Timestamp};

/// Records a segment holds before the next one is begun: the unit in which memory is given back.
const SEGMENT_RECORDS: usize = 1024;

/// A record at its offset.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub offset: i64,
    pub timestamp: Timestamp,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Headers,
}

impl Stored {
    pub(super) fn to_consumer_record(&self, topic: &Arc<str>, partition: i32) -> ConsumerRecord {
        ConsumerRecord {
            topic: topic.clone(),
            partition,
            offset: self.offset,
            timestamp: self.timestamp,
            key: self.key.clone(),
            value: self.value.clone(),
            headers: self.headers.clone(),
        }
    }

    /// Roughly what it costs to keep in memory.
    fn size(&self) -> usize {
        let bytes = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
        std::mem::size_of::<Stored>() + bytes(&self.key) + bytes(&self.value) + 64 * self.headers.len()
    }
}

/// First and last offset of a run, both included.
pub(super) type Run = (i64, i64);

/// Adds an offset to runs that only grow at their end.
pub(super) fn extend_runs(runs: &mut Vec<Run>, offset: i64) {
    match runs.last_mut() {
        Some((_, last)) if *last + 1 == offset => *last = offset,
        _ => runs.push((offset, offset)),
    }
}

#[derive(Default)]
struct Segment {
    /// Sorted by offset, never empty once in the list.
    records: Vec<Stored>,
    bytes: usize,
}

impl Segment {
    fn last_offset(&self) -> i64 {
        self.records.last().map_or(-1, |r| r.offset)
    }
}

/// See the module's picture.
pub(super) struct Partition {
    /// First offset kept.
    pub start: i64,
    /// The offset the next record gets: the high watermark.
    pub next: i64,
    /// Readers below it must look in the file.
    pub memory_start: i64,
    /// Open transactions that wrote here: their serial and first offset here.
    open: Vec<(u64, i64)>,
    /// Committed records not yet in the file.
    unsaved: Vec<Run>,
    segments: VecDeque<Segment>,
    memory_bytes: usize,
    /// Readers waiting for any record, and readers waiting for `stable_end` to move.
    pub append_waiters: WaitList,
    pub stable_waiters: WaitList,
    /// When each earlier compaction ran and how far it reached: tombstones below an old enough one may go.
    pub cleanings: VecDeque<(Timestamp, i64)>,
    /// How far the last compaction reached, and how many records it left there; `None` before the first since the start.
    pub cleaned: Option<(i64, usize)>,
}

impl Partition {
    pub(super) fn new(start: i64, next: i64) -> Self {
        Self {
            start,
            next,
            memory_start: next,
            open: Vec::new(),
            unsaved: Vec::new(),
            segments: VecDeque::new(),
            memory_bytes: 0,
            append_waiters: WaitList::default(),
            stable_waiters: WaitList::default(),
            cleanings: VecDeque::new(),
            cleaned: None,
        }
    }

    /// The last stable offset: nothing at or past it is decided yet.
    pub(super) fn stable_end(&self) -> i64 {
        self.open.iter().map(|(_, first)| *first).min().unwrap_or(self.next)
    }

    /// Where a reader of this isolation must stop.
    pub(super) fn end_for(&self, read_committed: bool) -> i64 {
        if read_committed { self.stable_end() } else { self.next }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Puts a record at the end; `transaction` is the serial of the open transaction it belongs to.
    pub(super) fn append(
        &mut self,
        record: ProducerRecord,
        now: Timestamp,
        transaction: Option<u64>,
        keep_unsaved: bool,
    ) -> i64 {
        let offset = self.next;
        self.next += 1;
        let stored = Stored {
            offset,
            timestamp: record.timestamp.unwrap_or(now),
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        match transaction {
            Some(serial) if !self.open.iter().any(|(s, _)| *s == serial) => self.open.push((serial, offset)),
            Some(_) => {}
            None if keep_unsaved => extend_runs(&mut self.unsaved, offset),
            None => {}
        }
        let size = stored.size();
        self.memory_bytes += size;
        if self.segments.back().is_none_or(|s| s.records.len() >= SEGMENT_RECORDS) {
            self.segments.push_back(Segment::default());
        }
        let segment = self.segments.back_mut().expect("one was pushed when there was none");
        segment.bytes += size;
        segment.records.push(stored);

        self.append_waiters.wake_all();
        if self.open.is_empty() {
            self.stable_waiters.wake_all();
        }
        offset
    }

    /// Decides an open transaction here. Its records stay (commit) or vanish (abort); a marker takes one offset.
    pub(super) fn end_transaction(&mut self, serial: u64, runs: &[Run], commit: bool, keep_unsaved: bool) {
        self.open.retain(|(s, _)| *s != serial);
        if commit {
            if keep_unsaved {
                self.unsaved.extend_from_slice(runs);
            }
        } else {
            for (first, last) in runs {
                self.retain_in(*first, *last + 1, |_| false);
            }
        }
        self.next += 1;
        self.append_waiters.wake_all();
        self.stable_waiters.wake_all();
    }

    /// Index of the first record at or past `offset`: segment, then place in it.
    fn locate(&self, offset: i64) -> (usize, usize) {
        let segment = self.segments.partition_point(|s| s.last_offset() < offset);
        let within =
            self.segments.get(segment).map_or(0, |s| s.records.partition_point(|r| r.offset < offset));
        (segment, within)
    }

    /// Records in memory from `offset` up to but without `end`, in order.
    pub(super) fn memory_range(&self, offset: i64, end: i64) -> impl Iterator<Item = &Stored> {
        let (segment, within) = self.locate(offset.max(self.start));
        self.segments
            .range(segment.min(self.segments.len())..)
            .enumerate()
            .flat_map(move |(i, s)| &s.records[if i == 0 { within } else { 0 }..])
            .take_while(move |r| r.offset < end)
    }

    /// Takes what is to be written to the file: the records of all unsaved runs.
    pub(super) fn take_unsaved(&mut self) -> Vec<Stored> {
        let mut runs = std::mem::take(&mut self.unsaved);
        runs.sort_unstable();
        let mut records = Vec::new();
        for (first, last) in runs {
            records.extend(self.memory_range(first, last + 1).cloned());
        }
        records
    }

    pub(super) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Gives the oldest segment back when the file has all of it; returns the bytes freed.
    pub(super) fn evict_oldest(&mut self) -> usize {
        let unsaved = self.unsaved.iter().map(|(first, _)| *first).min().unwrap_or(self.next);
        let needed_from = unsaved.min(self.stable_end());
        // The newest segment stays: it is being written to and read from.
        if self.segments.len() < 2 || self.segments[0].last_offset() >= needed_from {
            return 0;
        }
        let Some(segment) = self.segments.pop_front() else { return 0 };
        self.memory_start = segment.last_offset() + 1;
        self.memory_bytes -= segment.bytes;
        segment.bytes
    }

    /// Forgets records below `before`.
    pub(super) fn advance_start(&mut self, before: i64) {
        self.start = self.start.max(before.min(self.next));
        let start = self.start;
        while self.segments.front().is_some_and(|s| s.last_offset() < start) {
            if let Some(segment) = self.segments.pop_front() {
                self.memory_bytes -= segment.bytes;
            }
        }
        self.memory_start = self.memory_start.max(start);
        self.retain_in(i64::MIN, start, |_| false);
    }

    /// Keeps, among records of `[from, to)` in memory, those that `keep` says.
    pub(super) fn retain_in(&mut self, from: i64, to: i64, mut keep: impl FnMut(&Stored) -> bool) {
        let (first, _) = self.locate(from);
        for segment in self.segments.range_mut(first.min(self.segments.len())..) {
            if segment.records.first().is_some_and(|r| r.offset >= to) {
                break;
            }
            let mut freed = 0;
            segment.records.retain(|r| {
                let stays = r.offset < from || r.offset >= to || keep(r);
                if !stays {
                    freed += r.size();
                }
                stays
            });
            segment.bytes -= freed;
            self.memory_bytes -= freed;
        }
        self.segments.retain(|s| !s.records.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str) -> ProducerRecord {
        ProducerRecord {
            topic: "t".into(),
            partition: None,
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            timestamp: Some(0),
            headers: Headers::EMPTY,
        }
    }

    fn offsets(partition: &Partition, from: i64, end: i64) -> Vec<i64> {
        partition.memory_range(from, end).map(|r| r.offset).collect()
    }

    #[test]
    fn an_aborted_transaction_leaves_a_gap_and_the_others() {
        let mut p = Partition::new(0, 0);
        assert_eq!(p.append(record("a"), 0, None, true), 0);
        assert_eq!(p.append(record("b"), 0, Some(7), true), 1);
        assert_eq!(p.append(record("c"), 0, None, true), 2);
        assert_eq!((p.stable_end(), p.next), (1, 3));
        p.end_transaction(7, &[(1, 1)], false, true);
        assert_eq!((p.stable_end(), p.next), (4, 4), "the marker takes offset 3");
        assert_eq!(offsets(&p, 0, 4), [0, 2]);
        assert_eq!(p.take_unsaved().iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn memory_is_given_back_only_below_what_is_unsaved_or_open() {
        let mut p = Partition::new(0, 0);
        for _ in 0..3 * SEGMENT_RECORDS {
            p.append(record("x"), 0, None, true);
        }
        assert_eq!(p.evict_oldest(), 0, "nothing is saved yet");
        p.take_unsaved();
        assert!(p.evict_oldest() > 0);
        assert_eq!(p.memory_start, SEGMENT_RECORDS as i64);
        assert_eq!(offsets(&p, 0, i64::MAX).first(), Some(&(SEGMENT_RECORDS as i64)));
        assert!(p.evict_oldest() > 0);
        assert_eq!(p.evict_oldest(), 0, "the newest segment stays");
    }

    #[test]
    fn advancing_the_start_cuts_inside_a_segment() {
        let mut p = Partition::new(0, 0);
        for _ in 0..10 {
            p.append(record("x"), 0, None, false);
        }
        p.advance_start(4);
        assert_eq!(offsets(&p, 0, 7), [4, 5, 6]);
        p.advance_start(99);
        assert_eq!((p.start, p.next, p.memory_bytes() > 0), (10, 10, false));
    }
}
