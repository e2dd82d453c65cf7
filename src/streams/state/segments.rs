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
//! a save that took them is durable, a removed row stays without a value until then. A segment may be *incomplete*: not
//! all its rows are in memory. Then the rows of a key are loaded when the key is first touched (never, where the key is known to have none in
//! the file), and a listing loads the rest. Over the budget the oldest segments are let go first.

use std::{collections::BTreeMap, hash::BuildHasher, sync::Arc, time::Duration};

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

use super::{
    ValueAndTimestamp,
    changed::Changed,
    memory::{RowSize, Share},
    sqlite::{SqlRow, SqlTable, StoreMeta, StoreSnapshot, TableSnapshot, Unsaved},
    time_index::TimeIndex,
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, Timestamp},
    serdes::AnySerde,
};

/// What a row takes besides its content: key, slot, table, lists.
const ROW_BYTES: u64 = 250;
/// What a key takes that is known to be all in memory, and one that is known not to be.
const LOADED_BYTES: u64 = 60;
const AWAY_BYTES: u64 = 12;
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

/// A row of one key.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) time: Timestamp,
    pub(super) sub: i64,
    pub(super) value: ValueAndTimestamp,
}

/// A row as it is kept.
struct Slot {
    time: Timestamp,
    sub: i64,
    /// The save that takes the last change; 0 = loaded from the file.
    save: u32,
    /// `None`: removed, and the file does not know yet.
    value: Option<ValueAndTimestamp>,
}

impl Slot {
    fn id(&self) -> (Timestamp, i64) {
        (self.time, self.sub)
    }

    fn row(&self) -> Option<Row> {
        let value = self.value.clone()?;
        Some(Row { time: self.time, sub: self.sub, value })
    }
}

/// Rows of one key in one segment, by (time, sub).
type Slots = SmallVec<[Slot; 1]>;

/// The rows in memory by key.
type Rows = HashMap<ByteKey, Slots, foldhash::fast::RandomState>;

#[derive(Default)]
struct Segment {
    rows: Rows,
    /// Every row in memory by time, where the store lists by time.
    by_time: Option<TimeIndex>,
    /// `None` when every row of the segment is in memory.
    partly: Option<Partly>,
}

/// Which rows of a segment are in memory.
#[derive(Default)]
struct Partly {
    /// Hashes of the keys that may have rows in the file only; `None`: any key may.
    away: Option<HashSet<u64, foldhash::fast::RandomState>>,
    /// Times of which every row is in memory: first and last.
    listed: Option<(Timestamp, Timestamp)>,
    /// Keys of which every row is in memory all the same.
    loaded: HashSet<ByteKey, foldhash::fast::RandomState>,
}

impl Segment {
    fn new(listing: Listing) -> Self {
        Self { by_time: (listing == Listing::Time).then(TimeIndex::default), ..Self::default() }
    }

    /// Notes that a key has a row of a time, and had none before.
    fn index(&mut self, key: &ByteKey, time: Timestamp) {
        if let Some(by_time) = &mut self.by_time {
            by_time.add(time, key.clone(), |key, time| has(&self.rows, key, time));
        }
    }

    /// Forgets the row at a place of a key.
    fn forget(&mut self, key: &[u8], at: usize) {
        let Some(slots) = self.rows.get_mut(key) else { return };
        let time = slots.remove(at).time;
        let last_of_time = !has_time(slots, time);
        if slots.is_empty() {
            self.rows.remove(key);
        }
        if let Some(by_time) = &mut self.by_time
            && last_of_time
        {
            by_time.remove(time);
        }
    }

    /// Estimated memory of what is known of the file.
    fn known_bytes(&self) -> u64 {
        self.partly.as_ref().map_or(0, |partly| {
            let away = partly.away.as_ref().map_or(0, HashSet::len) as u64;
            away * AWAY_BYTES + partly.loaded.len() as u64 * LOADED_BYTES
        })
    }

    /// Whether the file may have rows of a key that memory has not.
    fn lacks(&self, key: &[u8]) -> bool {
        self.partly.as_ref().is_some_and(|partly| {
            let away = |away: &HashSet<u64, _>| away.contains(&self.rows.hasher().hash_one(key));
            partly.away.as_ref().is_none_or(away) && !partly.loaded.contains(key)
        })
    }

    /// Lets go of `excess` rows, or as many as are saved; returns how many.
    fn evict(&mut self, saved: u32, excess: usize) -> usize {
        if self.rows.is_empty() {
            if let Some(partly) = &mut self.partly {
                partly.loaded.clear();
            }
            return 0;
        }
        let mut partly = self
            .partly
            .take()
            .unwrap_or_else(|| Partly { away: Some(HashSet::default()), ..Partly::default() });
        let hasher = self.rows.hasher().clone();
        let mut gone = 0;
        self.rows.retain(|key, slots| {
            if gone >= excess || slots.iter().any(|slot| slot.save > saved) {
                return true;
            }
            gone += slots.len();
            if let Some(away) = &mut partly.away {
                away.insert(hasher.hash_one(key.as_slice()));
            }
            false
        });
        // Keys without rows in memory are not worth knowing.
        partly.loaded.retain(|key| self.rows.contains_key(key.as_slice()));
        if gone > 0 {
            partly.listed = None;
            if self.rows.len() * 4 < self.rows.capacity() {
                self.rows.shrink_to_fit();
            }
            let rows = &self.rows;
            match &mut self.by_time {
                Some(by_time) if rows.is_empty() => *by_time = TimeIndex::default(),
                Some(by_time) => by_time.retain(|key, _| rows.contains_key(key.as_slice())),
                None => {}
            }
        }
        // A segment that was whole and has lost nothing still is.
        let whole = partly.away.as_ref().is_some_and(HashSet::is_empty);
        self.partly = (!whole).then_some(partly);
        gone
    }

    /// Adds rows of the file that memory does not know.
    fn load(&mut self, rows: Vec<SqlRow>) -> usize {
        let mut added = 0;
        for SqlRow { key, time, sub, value, .. } in rows {
            let slots = self.rows.entry(key.clone()).or_default();
            if let Err(at) = slots.binary_search_by_key(&(time, sub), Slot::id) {
                let first_of_time = !has_time(slots, time);
                slots.insert(at, Slot { time, sub, save: 0, value });
                added += 1;
                if first_of_time {
                    self.index(&key, time);
                }
            }
        }
        added
    }
}

fn has(rows: &Rows, key: &ByteKey, time: Timestamp) -> bool {
    rows.get(key.as_slice()).is_some_and(|slots| has_time(slots, time))
}

/// Whether one of a key's rows is of a time.
fn has_time(slots: &Slots, time: Timestamp) -> bool {
    let at = slots.partition_point(|slot| slot.time < time);
    slots.get(at).is_some_and(|slot| slot.time == time)
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
        for segment in table.segments()? {
            let partly = Some(Partly::default());
            self.segments.insert(segment, Segment { partly, ..Segment::new(self.listing) });
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
            let gone = segment.rows.values().map(SmallVec::len).sum::<usize>();
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
        let (listing, id) = (self.listing, time / self.interval_ms);
        let segment = self.segments.entry(id).or_insert_with(|| Segment::new(listing));
        let save = self.durable.as_ref().map_or(0, |durable| durable.next_save);
        let mut was = 0;
        let mut new = true;
        let first_of_time;
        // Looked up by reference first: a key already there is not copied.
        let slots = match segment.rows.get_mut(key.as_slice()) {
            Some(slots) => slots,
            None => segment.rows.entry(key.clone()).or_default(),
        };
        // Times mostly grow, so the place is mostly the end.
        if slots.last().is_none_or(|last| last.id() < (time, sub)) {
            first_of_time = slots.last().is_none_or(|last| last.time != time);
            slots.push(Slot { time, sub, save, value: Some(value) });
            self.len += 1;
        } else {
            match slots.binary_search_by_key(&(time, sub), Slot::id) {
                Ok(at) => {
                    let slot = &mut slots[at];
                    (was, new) = (slot.save, slot.value.is_none());
                    slot.save = save;
                    slot.value = Some(value);
                    first_of_time = false;
                }
                Err(at) => {
                    first_of_time = !has_time(slots, time);
                    slots.insert(at, Slot { time, sub, save, value: Some(value) });
                    self.len += 1;
                }
            }
        }
        if first_of_time {
            segment.index(&key, time);
        }
        if let Some(durable) = &mut self.durable {
            durable.rows += u64::from(new);
            if was != save {
                durable.changed.note(self.len, || (id, key, time, sub));
            }
        }
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, key: &[u8], time: Timestamp, sub: i64) {
        let id = time / self.interval_ms;
        let Some(segment) = self.segments.get_mut(&id) else { return };
        if let Some(durable) = &mut self.durable {
            // The file may have the row: a row without a value stands for the removal until the file knows.
            let incomplete = segment.lacks(key);
            if !incomplete && !segment.rows.contains_key(key) {
                return;
            }
            let slots = segment.rows.entry(ByteKey::new(key)).or_default();
            let save = durable.next_save;
            let was = match slots.binary_search_by_key(&(time, sub), Slot::id) {
                Ok(at) => {
                    let slot = &mut slots[at];
                    durable.rows = durable.rows.saturating_sub(u64::from(slot.value.is_some()));
                    slot.value = None;
                    std::mem::replace(&mut slot.save, save)
                }
                Err(at) if incomplete => {
                    let first_of_time = !has_time(slots, time);
                    slots.insert(at, Slot { time, sub, save, value: None });
                    self.len += 1;
                    if first_of_time {
                        segment.index(&ByteKey::new(key), time);
                    }
                    0
                }
                Err(_) => return,
            };
            if was != save {
                durable.changed.note(self.len, || (id, ByteKey::new(key), time, sub));
            }
            return;
        }
        let Some(slots) = segment.rows.get(key) else { return };
        let Ok(at) = slots.binary_search_by_key(&(time, sub), Slot::id) else { return };
        segment.forget(key, at);
        self.len -= 1;
    }

    /// Brings the rows of a key into memory in the segments `from..=to`.
    fn load_key(&mut self, key: &[u8], from: i64, to: i64) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        for (id, segment) in self.segments.range_mut(from..=to) {
            if segment.lacks(key) {
                let added = segment.load(durable.table.of_segment_key(*id, key)?);
                if let Some(partly) = &mut segment.partly {
                    partly.loaded.insert(ByteKey::new(key));
                    self.known_bytes += LOADED_BYTES;
                }
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
            let Some(partly) = &mut segment.partly else { continue };
            let start = id.saturating_mul(self.interval_ms);
            let end = start.saturating_add(self.interval_ms - 1);
            let (first, last) = (from.max(start), to.min(end));
            let listed = partly.listed;
            if listed.is_some_and(|(from, to)| from <= first && last <= to) {
                continue;
            }
            // Segments that are listed piece by piece, as time goes on, are loaded in larger pieces: each reads the whole segment. Around zero
            // a segment has times of both signs.
            let rows = if *id > 0 && last - first < self.interval_ms / 2 {
                let last = last.saturating_add(self.interval_ms / PIECES).min(end);
                let joined = listed.filter(|(from, to)| *from <= first && first <= to.saturating_add(1));
                partly.listed = Some((joined.map_or(first, |(from, _)| from), last));
                durable.table.of_segment_times(*id, first, last)?
            } else {
                self.known_bytes -= segment.known_bytes();
                segment.partly = None;
                durable.table.of_segment(*id)?
            };
            let added = segment.load(rows);
            self.len += added;
            self.loads += added;
        }
        Ok(())
    }

    /// Forgets segments without any row, in memory or file.
    pub(super) fn drop_empty(&mut self) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let mut empty = Vec::new();
        for (id, segment) in self.segments.iter().filter(|(_, segment)| segment.rows.is_empty()) {
            if segment.partly.is_none() || !durable.table.has_segment(*id)? {
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
        let slots = self.segments.get(&id).and_then(|segment| segment.rows.get(key));
        Ok(slots.and_then(|slots| {
            let at = slots.binary_search_by_key(&(time, sub), Slot::id).ok()?;
            slots[at].value.clone()
        }))
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
            let Some(slots) = segment.rows.get(key) else { continue };
            let first = slots.partition_point(|slot| slot.time < from);
            found.extend(slots[first..].iter().take_while(|slot| slot.time <= to).filter_map(Slot::row));
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
            match &mut segment.by_time {
                None => {
                    let mut keys: Vec<&ByteKey> = segment.rows.keys().collect();
                    keys.sort_unstable();
                    for key in keys {
                        let slots = segment.rows[key].iter();
                        let slots = slots.filter(|slot| (from..=to).contains(&slot.time));
                        found.extend(slots.filter_map(Slot::row).map(|row| (key.clone(), row)));
                    }
                }
                Some(by_time) => {
                    for (time, key) in by_time.between(from, to) {
                        let Some(slots) = segment.rows.get(key) else { continue };
                        let first = slots.partition_point(|slot| slot.time < *time);
                        let slots = slots[first..].iter().take_while(|slot| slot.time == *time);
                        found.extend(slots.filter_map(Slot::row).map(|row| (key.clone(), row)));
                    }
                }
            }
        }
        Ok(found)
    }

    pub(super) fn unsaved(&self) -> Unsaved {
        self.durable.as_ref().map_or_else(Unsaved::default, |durable| {
            let changed = durable.changed.count();
            // Expired rows count as one change, so that the file is not left to keep them.
            let changed = changed + u64::from(changed == 0 && durable.expired);
            durable.share.note(self.bytes());
            Unsaved { changed, rows: durable.rows, bytes: changed * self.row_size.bytes() }
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
        let rows: Vec<SqlRow> = match durable.changed.take() {
            None => {
                let slots = alive.flat_map(|(id, segment)| {
                    segment
                        .rows
                        .iter()
                        .flat_map(move |(key, slots)| slots.iter().map(move |slot| (*id, key, slot)))
                });
                let changed = slots.filter(|(.., slot)| slot.save == taken);
                changed.map(|(id, key, slot)| row(id, key, slot)).collect()
            }
            Some(changed) => {
                let found = changed.iter().filter(|(id, ..)| *id >= first_alive);
                found
                    .filter_map(|(id, key, time, sub)| {
                        let slots = self.segments.get(id)?.rows.get(key.as_slice())?;
                        let at = slots.binary_search_by_key(&(*time, *sub), Slot::id).ok()?;
                        Some(row(*id, key, &slots[at]))
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
            let Some(slots) = segment.rows.get(key.as_slice()) else { continue };
            let Ok(at) = slots.binary_search_by_key(&(time, sub), Slot::id) else { continue };
            // A removal that the file knows needs no row, unless it was written again meanwhile.
            if slots[at].value.is_none() && slots[at].save <= durable.durable {
                segment.forget(&key, at);
                self.len -= 1;
            }
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
