//! [`Segments`]: rows that belong to a key and a time, kept in segments of time. Under window and session stores.
//!
//! A row has a key, a time (window start, session end) and a second number (sequence number, session start) that
//! tells rows of one key and time apart. Time is cut into segments of max(retention / 2, 60 s) as in Kafka Streams,
//! because *when rows vanish is observable*: a segment goes as a whole, so expiry costs what is expired and nothing
//! is scanned for it.
//!
//! Two sets of rules (conformance README 6.3):
//! * persistent: a write is refused only when its segment is gone; reads by key see a row iff
//!   `time > observed - retention`.
//! * in memory: a write with `time <= observed - retention` is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::streams::record::{ByteKey, Timestamp};

/// Which store's expiry rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// By whole segment.
    Segment,
    /// By row.
    Row,
}

/// How rows of several keys are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Segments in order; within one by key, then time.
    SegmentThenKey,
    /// By time, then key.
    Time,
}

/// Length of a segment for a retention.
pub(super) fn segment_interval(retention_ms: i64) -> i64 {
    (retention_ms / 2).max(60_000)
}

/// A duration as milliseconds, the largest number when it does not fit.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A row of one key.
#[derive(Clone, Debug)]
pub(super) struct Row<V> {
    pub(super) time: Timestamp,
    pub(super) sub: i64,
    pub(super) value: V,
}

impl<V> Row<V> {
    fn id(&self) -> (Timestamp, i64) {
        (self.time, self.sub)
    }
}

struct Segment<V> {
    /// Rows per key, by (time, sub).
    rows: HashMap<ByteKey, SmallVec<[Row<V>; 1]>, foldhash::fast::RandomState>,
    /// (time, key) of every row, where the store lists by time.
    by_time: Option<BTreeSet<(Timestamp, ByteKey)>>,
}

/// Rows in segments of time.
pub(super) struct Segments<V> {
    retention_ms: i64,
    interval_ms: i64,
    expiry: Expiry,
    listing: Listing,
    /// Largest time put so far, -1 before the first.
    observed: Timestamp,
    segments: BTreeMap<i64, Segment<V>>,
    len: usize,
}

impl<V: Clone> Segments<V> {
    pub(super) fn new(retention: Duration, expiry: Expiry, listing: Listing) -> Self {
        let retention_ms = millis(retention);
        Self {
            retention_ms,
            interval_ms: segment_interval(retention_ms),
            expiry,
            listing,
            observed: -1,
            segments: BTreeMap::new(),
            len: 0,
        }
    }

    pub(super) fn observed(&self) -> Timestamp {
        self.observed
    }

    pub(super) fn expiry(&self) -> Expiry {
        self.expiry
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.observed = -1;
        self.len = 0;
    }

    /// The smallest time a read by key sees.
    pub(super) fn visible_from(&self) -> Timestamp {
        self.observed - self.retention_ms + 1
    }

    /// The smallest time an emission scan sees: one more than reads by key in persistent window stores.
    pub(super) fn retained_from(&self) -> Timestamp {
        match self.expiry {
            Expiry::Segment => self.observed - self.retention_ms,
            Expiry::Row => self.visible_from(),
        }
    }

    /// Advances observed time, drops what that expires, and says whether a row of this time is accepted.
    pub(super) fn admit(&mut self, time: Timestamp) -> bool {
        let first_alive = |observed: Timestamp| (observed - self.retention_ms) / self.interval_ms;
        if time > self.observed {
            self.observed = time;
            let alive = first_alive(time);
            while let Some(entry) = self.segments.first_entry()
                && *entry.key() < alive
            {
                self.len -= entry.remove().rows.values().map(SmallVec::len).sum::<usize>();
            }
        }
        match self.expiry {
            Expiry::Segment => time / self.interval_ms >= first_alive(self.observed),
            Expiry::Row => time >= self.visible_from(),
        }
    }

    /// Sets a row.
    pub(super) fn put(&mut self, key: ByteKey, time: Timestamp, sub: i64, value: V) {
        let listing = self.listing;
        let segment = self.segments.entry(time / self.interval_ms).or_insert_with(|| Segment {
            rows: HashMap::default(),
            by_time: (listing == Listing::Time).then(BTreeSet::new),
        });
        if let Some(by_time) = &mut segment.by_time {
            by_time.insert((time, key.clone()));
        }
        let rows = segment.rows.entry(key).or_default();
        let row = Row { time, sub, value };
        // Times mostly grow, so the place is mostly the end.
        if rows.last().is_none_or(|last| last.id() < (time, sub)) {
            rows.push(row);
            self.len += 1;
            return;
        }
        match rows.binary_search_by_key(&(time, sub), Row::id) {
            Ok(at) => rows[at] = row,
            Err(at) => {
                rows.insert(at, row);
                self.len += 1;
            }
        }
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, key: &[u8], time: Timestamp, sub: i64) {
        let Some(segment) = self.segments.get_mut(&(time / self.interval_ms)) else { return };
        let Some(rows) = segment.rows.get_mut(key) else { return };
        let Ok(at) = rows.binary_search_by_key(&(time, sub), Row::id) else { return };
        rows.remove(at);
        self.len -= 1;
        let last_of_time = !rows.iter().any(|row| row.time == time);
        if rows.is_empty() {
            segment.rows.remove(key);
        }
        if let Some(by_time) = &mut segment.by_time
            && last_of_time
        {
            by_time.remove(&(time, ByteKey::new(key)));
        }
    }

    /// One row, if a read by key sees it.
    pub(super) fn get(&self, key: &[u8], time: Timestamp, sub: i64) -> Option<&V> {
        if time < self.visible_from() {
            return None;
        }
        let rows = self.segments.get(&(time / self.interval_ms))?.rows.get(key)?;
        let at = rows.binary_search_by_key(&(time, sub), Row::id).ok()?;
        Some(&rows[at].value)
    }

    /// Rows of a key with `from <= time <= to` that a read by key sees, by (time, sub).
    pub(super) fn of_key(&self, key: &[u8], from: Timestamp, to: Timestamp) -> Vec<Row<V>> {
        let from = from.max(self.visible_from());
        let mut found = Vec::new();
        if from > to {
            return found;
        }
        for (_, segment) in self.segments.range(from / self.interval_ms..=to / self.interval_ms) {
            let Some(rows) = segment.rows.get(key) else { continue };
            let first = rows.partition_point(|row| row.time < from);
            found.extend(rows[first..].iter().take_while(|row| row.time <= to).cloned());
        }
        found
    }

    /// Rows of all keys with `from <= time <= to`, in the store's listing order.
    pub(super) fn list(&self, from: Timestamp, to: Timestamp) -> Vec<(ByteKey, Row<V>)> {
        let mut found = Vec::new();
        if from > to {
            return found;
        }
        for (_, segment) in self.segments.range(from / self.interval_ms..=to / self.interval_ms) {
            match &segment.by_time {
                None => {
                    let mut keys: Vec<&ByteKey> = segment.rows.keys().collect();
                    keys.sort_unstable();
                    for key in keys {
                        let rows = segment.rows[key].iter();
                        let rows = rows.filter(|row| (from..=to).contains(&row.time));
                        found.extend(rows.map(|row| (key.clone(), row.clone())));
                    }
                }
                Some(by_time) => {
                    let range = (from, ByteKey::default())..;
                    for (time, key) in by_time.range(range).take_while(|(time, _)| *time <= to) {
                        let rows = &segment.rows[key];
                        let first = rows.partition_point(|row| row.time < *time);
                        let rows = rows[first..].iter().take_while(|row| row.time == *time);
                        found.extend(rows.map(|row| (key.clone(), row.clone())));
                    }
                }
            }
        }
        found
    }
}
