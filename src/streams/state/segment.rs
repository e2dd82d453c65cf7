//! [`Segment`]: the rows of one stretch of time, and what is known of those that only the file has.
//!
//! A segment may be *incomplete*: not all its rows are in memory. Then it knows which keys may have rows in the file only, and which
//! times are all in memory. A removed row stays without a value until the file knows of it.

use std::hash::BuildHasher;

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

use super::{ValueAndTimestamp, sqlite::SqlRow, time_index::TimeIndex};
use crate::streams::record::{ByteKey, Timestamp};

/// What a key takes that is known to be all in memory, and one that is known not to be.
const LOADED_BYTES: u64 = 60;
const AWAY_BYTES: u64 = 12;

/// A row of one key.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) time: Timestamp,
    pub(super) sub: i64,
    pub(super) value: ValueAndTimestamp,
}

/// A row as it is kept.
pub(super) struct Slot {
    pub(super) time: Timestamp,
    pub(super) sub: i64,
    /// The save that takes the last change; 0 = loaded from the file.
    pub(super) save: u32,
    /// `None`: removed, and the file does not know yet.
    pub(super) value: Option<ValueAndTimestamp>,
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

/// Rows of all keys in one stretch of time.
#[derive(Default)]
pub(super) struct Segment {
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

/// What a write found in its place.
pub(super) struct Replaced {
    /// The save that was to take the place's last change; 0 = none.
    pub(super) save: u32,
    /// Whether it had a value.
    pub(super) value: bool,
    /// Whether it is a place that was not in memory.
    pub(super) added: bool,
}

/// What a listing needs of the file.
pub(super) enum Missing {
    /// Nothing.
    None,
    /// The rows of these times, first and last.
    Times(Timestamp, Timestamp),
    /// Every row.
    All,
}

impl Segment {
    /// An empty one.
    pub(super) fn new(lists_by_time: bool) -> Self {
        Self { by_time: lists_by_time.then(TimeIndex::default), ..Self::default() }
    }

    /// One that is in the file, and not in memory.
    pub(super) fn in_file(lists_by_time: bool) -> Self {
        Self { partly: Some(Partly::default()), ..Self::new(lists_by_time) }
    }

    /// Rows in memory.
    pub(super) fn len(&self) -> usize {
        self.rows.values().map(SmallVec::len).sum()
    }

    /// Whether no row is in memory.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether every row is in memory.
    pub(super) fn is_whole(&self) -> bool {
        self.partly.is_none()
    }

    /// Estimated memory of what is known of the file.
    pub(super) fn known_bytes(&self) -> u64 {
        self.partly.as_ref().map_or(0, |partly| {
            let away = partly.away.as_ref().map_or(0, HashSet::len) as u64;
            away * AWAY_BYTES + partly.loaded.len() as u64 * LOADED_BYTES
        })
    }

    /// Sets a row, to be taken by that save.
    pub(super) fn put(
        &mut self,
        key: &ByteKey,
        (time, sub): (Timestamp, i64),
        save: u32,
        value: ValueAndTimestamp,
    ) -> Replaced {
        let new = |value| Slot { time, sub, save, value: Some(value) };
        // Looked up by reference first: a key already there is not copied.
        let slots = match self.rows.get_mut(key.as_slice()) {
            Some(slots) => slots,
            None => self.rows.entry(key.clone()).or_default(),
        };
        let first_of_time;
        // Times mostly grow, so the place is mostly the end.
        if slots.last().is_none_or(|last| last.id() < (time, sub)) {
            first_of_time = slots.last().is_none_or(|last| last.time != time);
            slots.push(new(value));
        } else {
            match slots.binary_search_by_key(&(time, sub), Slot::id) {
                Ok(at) => {
                    let replaced = std::mem::replace(&mut slots[at], new(value));
                    return Replaced { save: replaced.save, value: replaced.value.is_some(), added: false };
                }
                Err(at) => {
                    first_of_time = !has_time(slots, time);
                    slots.insert(at, new(value));
                }
            }
        }
        if first_of_time {
            self.index(key, time);
        }
        Replaced { save: 0, value: false, added: true }
    }

    /// Takes a row's value away, and leaves the place so that the save removes it from the file. `None`: neither memory nor file has the
    /// row.
    pub(super) fn clear(&mut self, key: &[u8], (time, sub): (Timestamp, i64), save: u32) -> Option<Replaced> {
        let incomplete = self.lacks(key);
        if !incomplete && !self.rows.contains_key(key) {
            return None;
        }
        let slots = self.rows.entry(ByteKey::new(key)).or_default();
        match slots.binary_search_by_key(&(time, sub), Slot::id) {
            Ok(at) => {
                let slot = &mut slots[at];
                let save = std::mem::replace(&mut slot.save, save);
                Some(Replaced { save, value: slot.value.take().is_some(), added: false })
            }
            Err(at) if incomplete => {
                let first_of_time = !has_time(slots, time);
                slots.insert(at, Slot { time, sub, save, value: None });
                if first_of_time {
                    self.index(&ByteKey::new(key), time);
                }
                Some(Replaced { save: 0, value: false, added: true })
            }
            Err(_) => None,
        }
    }

    /// Forgets a row, if it is in memory and `choose` takes it; says whether it did.
    pub(super) fn forget(
        &mut self,
        key: &[u8],
        (time, sub): (Timestamp, i64),
        choose: impl FnOnce(&Slot) -> bool,
    ) -> bool {
        let Some(slots) = self.rows.get_mut(key) else { return false };
        let Ok(at) = slots.binary_search_by_key(&(time, sub), Slot::id) else { return false };
        if !choose(&slots[at]) {
            return false;
        }
        slots.remove(at);
        let last_of_time = !has_time(slots, time);
        if slots.is_empty() {
            self.rows.remove(key);
        }
        if let Some(by_time) = &mut self.by_time
            && last_of_time
        {
            by_time.remove(time);
        }
        true
    }

    /// The row in a place, with or without a value.
    pub(super) fn slot(&self, key: &[u8], (time, sub): (Timestamp, i64)) -> Option<&Slot> {
        let slots = self.rows.get(key)?;
        let at = slots.binary_search_by_key(&(time, sub), Slot::id).ok()?;
        Some(&slots[at])
    }

    /// Rows of a key with `from <= time <= to` in memory, by (time, sub).
    pub(super) fn of_key(&self, key: &[u8], from: Timestamp, to: Timestamp) -> impl Iterator<Item = Row> {
        let slots = self.rows.get(key).map_or(&[][..], |slots| slots.as_slice());
        let first = slots.partition_point(|slot| slot.time < from);
        slots[first..].iter().take_while(move |slot| slot.time <= to).filter_map(Slot::row)
    }

    /// Rows with `from <= time <= to` in memory: by time, then key where the store lists by time, else by key, then time.
    pub(super) fn list(&mut self, from: Timestamp, to: Timestamp, found: &mut Vec<(ByteKey, Row)>) {
        let Some(by_time) = &mut self.by_time else {
            let mut keys: Vec<&ByteKey> = self.rows.keys().collect();
            keys.sort_unstable();
            for key in keys {
                let slots = self.rows[key].iter().filter(|slot| (from..=to).contains(&slot.time));
                found.extend(slots.filter_map(Slot::row).map(|row| (key.clone(), row)));
            }
            return;
        };
        for (time, key) in by_time.between(from, to) {
            let Some(slots) = self.rows.get(key) else { continue };
            let first = slots.partition_point(|slot| slot.time < *time);
            let slots = slots[first..].iter().take_while(|slot| slot.time == *time);
            found.extend(slots.filter_map(Slot::row).map(|row| (key.clone(), row)));
        }
    }

    /// Every place in memory, in no order.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&ByteKey, &Slot)> {
        self.rows.iter().flat_map(|(key, slots)| slots.iter().map(move |slot| (key, slot)))
    }

    /// Whether the file may have rows of a key that memory has not.
    pub(super) fn lacks(&self, key: &[u8]) -> bool {
        self.partly.as_ref().is_some_and(|partly| {
            let away = |away: &HashSet<u64, _>| away.contains(&self.rows.hasher().hash_one(key));
            partly.away.as_ref().is_none_or(away) && !partly.loaded.contains(key)
        })
    }

    /// What a listing of `first..=last` needs of the file. A segment that is listed piece by piece, as time goes on, is loaded `piece`
    /// further, and no further than `end`: each piece reads the whole segment.
    pub(super) fn missing(
        &self,
        (first, last): (Timestamp, Timestamp),
        piece: Option<i64>,
        end: Timestamp,
    ) -> Missing {
        let Some(partly) = &self.partly else { return Missing::None };
        if partly.listed.is_some_and(|(from, to)| from <= first && last <= to) {
            return Missing::None;
        }
        piece.map_or(Missing::All, |piece| Missing::Times(first, last.saturating_add(piece).min(end)))
    }

    /// Adds every row that the file has of these times; returns how many memory did not know.
    pub(super) fn load_times(&mut self, first: Timestamp, last: Timestamp, rows: Vec<SqlRow>) -> usize {
        if let Some(partly) = &mut self.partly {
            let joined = partly.listed.filter(|(from, to)| *from <= first && first <= to.saturating_add(1));
            partly.listed = Some((joined.map_or(first, |(from, _)| from), last));
        }
        self.load(rows)
    }

    /// Adds every row that the file has of a key; returns how many memory did not know.
    pub(super) fn load_key(&mut self, key: &[u8], rows: Vec<SqlRow>) -> usize {
        if let Some(partly) = &mut self.partly {
            partly.loaded.insert(ByteKey::new(key));
        }
        self.load(rows)
    }

    /// Adds every row that the file has; returns how many memory did not know.
    pub(super) fn load_all(&mut self, rows: Vec<SqlRow>) -> usize {
        self.partly = None;
        self.load(rows)
    }

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

    /// Lets go of `excess` rows, or as many as are saved; returns how many.
    pub(super) fn evict(&mut self, saved: u32, excess: usize) -> usize {
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

    /// Notes that a key has a row of a time, and had none before.
    fn index(&mut self, key: &ByteKey, time: Timestamp) {
        if let Some(by_time) = &mut self.by_time {
            by_time.add(time, key.clone(), |key, time| {
                self.rows.get(key.as_slice()).is_some_and(|slots| has_time(slots, time))
            });
        }
    }
}

/// Whether one of a key's rows is of a time.
fn has_time(slots: &Slots, time: Timestamp) -> bool {
    let at = slots.partition_point(|slot| slot.time < time);
    slots.get(at).is_some_and(|slot| slot.time == time)
}
