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
//!   Persistent window stores listed by time (emission on close) keep one millisecond more: `time >= observed - retention`.
//! * in memory: a write with `time <= observed - retention` is refused.
//!
//! Where watermarks are on, `observed` in these rules is the watermark when that is less.
//!
//! With a state file the segments are a write buffer over it, as a key-value table is: changed rows are unsaved until
//! a save that took them is durable. Where a segment is not all in memory, the rows of a key are loaded when the key is first touched (never,
//! where the key is known to have none in the file), and a listing loads the rest. Over the budget the oldest segments are let go first.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(super) use super::segment::Row;
use super::{
    ValueAndTimestamp,
    changed::Changed,
    memory::{RowSize, Share},
    segment::{Missing, Segment, Slot},
    sqlite::{SqlRow, SqlTable, StoreMeta, StoreSnapshot, TableSnapshot, Unsaved},
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, Timestamp},
    serdes::AnySerde,
};

/// What a row takes besides its content: key, slot, table, lists.
const ROW_BYTES: u64 = 250;
/// Pieces in which a segment is loaded that is listed piece by piece.
const PIECES: i64 = 16;
/// The budget is looked at when this part of it has been loaded since the last time: letting go costs a walk over rows that stay, too.
const LOADED_SHARE: u64 = 32;

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

/// No segment is shorter.
pub(super) const SEGMENT_INTERVAL_MIN_MS: i64 = 60_000;

/// Length of a segment for a retention.
pub(super) fn segment_interval(retention_ms: i64) -> i64 {
    (retention_ms / 2).max(SEGMENT_INTERVAL_MIN_MS)
}

/// A duration as milliseconds, the largest number when it does not fit.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Segment, key, time, sub.
type RowId = (i64, ByteKey, Timestamp, i64);

/// What segments with a state file keep besides their rows.
struct Durable {
    table: Arc<SqlTable>,
    /// Number of the next save. A row is unsaved iff its `save` is larger than `durable`.
    next_save: u32,
    /// The last save known to be durable.
    durable: u32,
    /// Rows changed since the last snapshot.
    changed: Changed<RowId>,
    /// Rows that the snapshot being saved removes.
    removing: Vec<RowId>,
    /// Segments expired since the last snapshot.
    expired: bool,
    /// Rows of the store in file and memory, approximate.
    rows: u64,
    share: Share,
}

/// Rows in segments of time.
pub(super) struct Segments {
    retention_ms: i64,
    interval_ms: i64,
    expiry: Expiry,
    listing: Listing,
    /// Whether a row exactly as old as the retention is still seen.
    inclusive: bool,
    /// Largest time put so far, -1 before the first.
    observed: Timestamp,
    /// Rows expire by this where it is less than `observed`; `None` = by `observed` alone.
    watermark: Option<Timestamp>,
    segments: BTreeMap<i64, Segment>,
    /// Slots in memory.
    len: usize,
    /// Rows and keys loaded from the file since the budget was last looked at for their sake.
    loads: usize,
    row_size: RowSize,
    /// Estimated memory of what is known of the file, all segments.
    known_bytes: u64,
    durable: Option<Durable>,
}

impl Segments {
    pub(super) fn new(
        retention: Duration,
        interval_ms: i64,
        expiry: Expiry,
        listing: Listing,
        inclusive: bool,
        table: Option<Arc<SqlTable>>,
    ) -> Result<Self> {
        let retention_ms = millis(retention);
        let mut segments = Self {
            retention_ms,
            interval_ms,
            expiry,
            listing,
            inclusive,
            observed: -1,
            watermark: None,
            segments: BTreeMap::new(),
            len: 0,
            loads: 0,
            row_size: RowSize::new(ROW_BYTES),
            known_bytes: 0,
            durable: None,
        };
        if let Some(table) = table {
            segments.open(table)?;
        }
        Ok(segments)
    }

    /// Starts from what the file holds.
    fn open(&mut self, table: Arc<SqlTable>) -> Result<()> {
        let meta = table.meta()?;
        self.observed = meta.observed;
        for id in table.segments()? {
            self.segments.insert(id, Segment::in_file(self.listing == Listing::Time));
        }
        self.durable = Some(Durable {
            share: table.shared().share(),
            table,
            next_save: 1,
            durable: 0,
            changed: Changed::default(),
            removing: Vec::new(),
            expired: false,
            rows: meta.rows,
        });
        Ok(())
    }

    pub(super) fn observed(&self) -> Timestamp {
        self.observed
    }

    pub(super) fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Rows, approximate.
    pub(super) fn len(&self) -> u64 {
        self.durable.as_ref().map_or(self.len as u64, |durable| durable.rows)
    }

    /// The counter of duplicates as of the last save.
    pub(super) fn saved_seq(&self) -> Result<u32> {
        self.durable.as_ref().map_or(Ok(0), |durable| Ok(durable.table.meta()?.seq))
    }

    /// Forgets what is not in the file.
    pub(super) fn discard_uncommitted(&mut self) -> Result<()> {
        self.segments.clear();
        self.observed = -1;
        (self.len, self.known_bytes) = (0, 0);
        if let Some(durable) = self.durable.take() {
            // A save under way holds only what was committed; it is part of what the file reflects.
            durable.table.shared().finish_save()?;
            self.open(durable.table)?;
        }
        Ok(())
    }

    /// Length of a segment.
    pub(super) fn interval_ms(&self) -> i64 {
        self.interval_ms
    }

    /// The smallest time a read sees.
    pub(super) fn visible_from(&self) -> Timestamp {
        self.expiry_time() - self.retention_ms + i64::from(!self.inclusive)
    }

    fn first_alive(&self) -> i64 {
        (self.expiry_time() - self.retention_ms) / self.interval_ms
    }

    fn expiry_time(&self) -> Timestamp {
        self.watermark.map_or(self.observed, |watermark| watermark.min(self.observed))
    }

    /// See [`StateStore::expire_by`](super::StateStore::expire_by).
    pub(super) fn expire_by(&mut self, watermark: Timestamp) {
        self.watermark = Some(watermark);
        self.drop_expired();
    }

    fn drop_expired(&mut self) {
        let alive = self.first_alive();
        while let Some(entry) = self.segments.first_entry()
            && *entry.key() < alive
        {
            let segment = entry.remove();
            let gone = segment.len();
            self.len -= gone;
            self.known_bytes -= segment.known_bytes();
            if let Some(durable) = &mut self.durable {
                durable.expired = true;
                durable.rows = durable.rows.saturating_sub(gone as u64);
            }
        }
    }

    /// Advances observed time, drops what that expires, and says whether a row of this time is accepted.
    pub(super) fn admit(&mut self, time: Timestamp) -> bool {
        if time > self.observed {
            self.observed = time;
            self.drop_expired();
        }
        match self.expiry {
            Expiry::Segment => time / self.interval_ms >= self.first_alive(),
            Expiry::Row => time > self.expiry_time() - self.retention_ms,
        }
    }

    /// Sets a row.
    pub(super) fn put(&mut self, key: ByteKey, time: Timestamp, sub: i64, value: ValueAndTimestamp) {
        let (by_time, id) = (self.listing == Listing::Time, time / self.interval_ms);
        let segment = self.segments.entry(id).or_insert_with(|| Segment::new(by_time));
        let Some(durable) = &mut self.durable else {
            self.len += usize::from(segment.put(&key, (time, sub), 0, value).added);
            return;
        };
        let save = durable.next_save;
        durable.changed.count_write();
        let replaced = segment.put(&key, (time, sub), save, value);
        self.len += usize::from(replaced.added);
        durable.rows += u64::from(!replaced.value);
        if replaced.save != save {
            durable.changed.note(self.len, || (id, key, time, sub));
        }
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, key: &[u8], time: Timestamp, sub: i64) {
        let id = time / self.interval_ms;
        let Some(segment) = self.segments.get_mut(&id) else { return };
        let Some(durable) = &mut self.durable else {
            self.len -= usize::from(segment.forget(key, (time, sub), |_| true));
            return;
        };
        let save = durable.next_save;
        durable.changed.count_write();
        let Some(replaced) = segment.clear(key, (time, sub), save) else { return };
        self.len += usize::from(replaced.added);
        durable.rows = durable.rows.saturating_sub(u64::from(replaced.value));
        if replaced.save != save {
            durable.changed.note(self.len, || (id, ByteKey::new(key), time, sub));
        }
    }

    /// Brings the rows of a key into memory in the segments `from..=to`.
    fn load_key(&mut self, key: &[u8], from: i64, to: i64) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        for (id, segment) in self.segments.range_mut(from..=to) {
            if segment.lacks(key) {
                self.known_bytes -= segment.known_bytes();
                let added = segment.load_key(key, durable.table.of_segment_key(*id, key)?);
                self.known_bytes += segment.known_bytes();
                self.len += added;
                self.loads += added + 1;
            }
        }
        Ok(())
    }

    /// Brings all rows with `from <= time <= to` into memory.
    fn load(&mut self, from: Timestamp, to: Timestamp) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        for (id, segment) in self.segments.range_mut(from / self.interval_ms..=to / self.interval_ms) {
            let start = id.saturating_mul(self.interval_ms);
            let end = start.saturating_add(self.interval_ms - 1);
            let (first, last) = (from.max(start), to.min(end));
            // Around zero a segment has times of both signs.
            let in_pieces = *id > 0 && last - first < self.interval_ms / 2;
            let piece = in_pieces.then_some(self.interval_ms / PIECES);
            let added = match segment.missing((first, last), piece, end) {
                Missing::None => continue,
                Missing::Times(first, last) => {
                    segment.load_times(first, last, durable.table.of_segment_times(*id, first, last)?)
                }
                Missing::All => {
                    self.known_bytes -= segment.known_bytes();
                    segment.load_all(durable.table.of_segment(*id)?)
                }
            };
            self.len += added;
            self.loads += added;
        }
        Ok(())
    }

    /// Forgets segments without any row, in memory or file.
    pub(super) fn drop_empty(&mut self) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let mut empty = Vec::new();
        for (id, segment) in self.segments.iter().filter(|(_, segment)| segment.is_empty()) {
            if segment.is_whole() || !durable.table.has_segment(*id)? {
                empty.push(*id);
            }
        }
        for id in empty {
            let segment = self.segments.remove(&id);
            self.known_bytes -= segment.map_or(0, |segment| segment.known_bytes());
        }
        Ok(())
    }

    /// Reading may load; this keeps what is loaded within the budget. Called before a read, never within one.
    fn bound_loaded(&mut self) {
        let Some(durable) = &self.durable else { return };
        if self.loads as u64 * self.row_size.bytes() > durable.share.max_bytes() / LOADED_SHARE {
            self.loads = 0;
            self.evict();
        }
    }

    /// Estimated memory.
    fn bytes(&self) -> u64 {
        self.len as u64 * self.row_size.bytes() + self.known_bytes
    }

    /// A value on its way into the store; see [`RowSize`].
    pub(super) fn weigh(&mut self, key: &[u8], value: &AnyValue, serde: &AnySerde) {
        if self.durable.is_some() {
            self.row_size.weigh(key, value, serde);
        }
    }

    /// One row, if a read by key sees it.
    pub(super) fn get(&mut self, key: &[u8], time: Timestamp, sub: i64) -> Result<Option<ValueAndTimestamp>> {
        if time < self.visible_from() {
            return Ok(None);
        }
        let id = time / self.interval_ms;
        self.bound_loaded();
        self.load_key(key, id, id)?;
        let slot = self.segments.get(&id).and_then(|segment| segment.slot(key, (time, sub)));
        Ok(slot.and_then(|slot| slot.value.clone()))
    }

    /// Rows of a key with `from <= time <= to` that a read by key sees, by (time, sub).
    pub(super) fn of_key(&mut self, key: &[u8], from: Timestamp, to: Timestamp) -> Result<Vec<Row>> {
        let from = from.max(self.visible_from());
        let mut found = Vec::new();
        if from > to {
            return Ok(found);
        }
        let (first, last) = (from / self.interval_ms, to / self.interval_ms);
        self.bound_loaded();
        self.load_key(key, first, last)?;
        for (_, segment) in self.segments.range(first..=last) {
            found.extend(segment.of_key(key, from, to));
        }
        Ok(found)
    }

    /// Rows of all keys with `from <= time <= to`, in the store's listing order.
    pub(super) fn list(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<(ByteKey, Row)>> {
        let mut found = Vec::new();
        if from > to {
            return Ok(found);
        }
        let (first, last) = (from / self.interval_ms, to / self.interval_ms);
        self.bound_loaded();
        self.load(from, to)?;
        for (_, segment) in self.segments.range_mut(first..=last) {
            segment.list(from, to, &mut found);
        }
        Ok(found)
    }

    pub(super) fn unsaved(&self) -> Unsaved {
        self.durable.as_ref().map_or_else(Unsaved::default, |durable| {
            let changed = durable.changed.count();
            // Expired rows count as one change, so that the file is not left to keep them.
            let changed = changed + u64::from(changed == 0 && durable.expired);
            durable.share.note(self.bytes());
            let (writes, bytes) = (durable.changed.writes(), changed * self.row_size.bytes());
            Unsaved { changed, writes, rows: durable.rows, bytes }
        })
    }

    /// What has changed since the last snapshot. `seq` is kept with it.
    pub(super) fn snapshot(&mut self, seq: u32) -> Option<StoreSnapshot> {
        let first_alive = self.first_alive();
        let durable = self.durable.as_mut()?;
        let taken = durable.next_save;
        durable.next_save += 1;
        let row = |segment: i64, key: &ByteKey, slot: &Slot| SqlRow {
            segment,
            key: key.clone(),
            time: slot.time,
            sub: slot.sub,
            value: slot.value.clone(),
        };
        let alive = self.segments.range(first_alive..);
        let count = durable.changed.count();
        let rows: Vec<SqlRow> = match durable.changed.take() {
            None => {
                let slots =
                    alive.flat_map(|(id, segment)| segment.slots().map(move |(key, slot)| (*id, key, slot)));
                let changed = slots.filter(|(.., slot)| slot.save == taken);
                let mut rows = Vec::with_capacity(count as usize);
                rows.extend(changed.map(|(id, key, slot)| row(id, key, slot)));
                rows
            }
            Some(changed) => {
                let found = changed.iter().filter(|(id, ..)| *id >= first_alive);
                found
                    .filter_map(|(id, key, time, sub)| {
                        let slot = self.segments.get(id)?.slot(key.as_slice(), (*time, *sub))?;
                        Some(row(*id, key, slot))
                    })
                    .collect()
            }
        };
        let removed = rows.iter().filter(|row| row.value.is_none());
        durable.removing = removed.map(|row| (row.segment, row.key.clone(), row.time, row.sub)).collect();
        let snapshot = TableSnapshot {
            rows,
            replaced: Vec::new(),
            first_segment: std::mem::take(&mut durable.expired).then_some(first_alive),
            meta: StoreMeta { observed: self.observed, seq, rows: durable.rows },
        };
        Some(StoreSnapshot::new(durable.table.clone(), snapshot))
    }

    /// The last snapshot is in the file.
    pub(super) fn mark_saved(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        durable.durable = durable.next_save - 1;
        for (id, key, time, sub) in std::mem::take(&mut durable.removing) {
            let Some(segment) = self.segments.get_mut(&id) else { continue };
            // A removal that the file knows needs no row, unless it was written again meanwhile.
            let known = |slot: &Slot| slot.value.is_none() && slot.save <= durable.durable;
            self.len -= usize::from(segment.forget(key.as_slice(), (time, sub), known));
        }
        self.evict();
    }

    /// Lets go of saved rows while there is too much in memory, old segments first. The oldest of all goes last where rows are listed by
    /// time: it is listed next.
    fn evict(&mut self) {
        let Some(durable) = &self.durable else { return };
        let Some(keep) = durable.share.excess(self.bytes()) else { return };
        let (row, saved) = (self.row_size.bytes(), durable.durable);
        let mut order: Vec<i64> = self.segments.keys().copied().collect();
        if self.listing == Listing::Time && !order.is_empty() {
            order.rotate_left(1);
        }
        let mut excess = self.len.saturating_sub((keep / row) as usize);
        for id in order {
            if excess == 0 {
                break;
            }
            let Some(segment) = self.segments.get_mut(&id) else { continue };
            self.known_bytes -= segment.known_bytes();
            let gone = segment.evict(saved, excess);
            self.known_bytes += segment.known_bytes();
            self.len -= gone;
            excess = excess.saturating_sub(gone);
        }
        durable.share.note(self.bytes());
    }
}
