//! [`VersionedTable`]: the versions of each key's value (KIP-889; Kafka's `RocksDBVersionedStore`), decoded, in memory,
//! over the state file where there is one.
//!
//! A version is valid from its timestamp until the next version of the key; a tombstone is a version without a value.
//! The latest version never expires. Older ones are dropped once the moment they ended lies further behind the
//! largest timestamp put than the history kept; nothing can ask for them then.
//!
//! Kafka Streams keeps the latest value apart from older versions, and one consequence is observable and kept here: a
//! tombstone that replaces the latest value *at the same timestamp* leaves no trace when no value ended there, so an
//! older version put afterwards becomes the latest.
//!
//! With a state file a key is loaded with all its versions when it is first touched, and saved with all of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    ChangelogRecord, StateStore, ValueAndTimestamp, VersionedPut, VersionedRecord, VersionedStore,
    layout::{restored_key, restored_value},
    memory::{RowSize, Share},
    segments::{millis, segment_interval},
    sqlite::{SqlRow, SqlTable, StoreMeta, StoreSnapshot, TOMBSTONE, TableSnapshot, Unsaved},
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, ConsumerRecord, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// What a key with its versions takes besides their content.
const ROW_BYTES: u64 = 200;

/// The versions of one key.
#[derive(Default)]
struct Slot {
    /// In ascending order: (valid from, value or tombstone).
    versions: SmallVec<[(Timestamp, Option<AnyValue>); 1]>,
    /// The save that takes the last change; 0 = loaded from the file.
    save: u32,
    /// Read or written since the last eviction round.
    used: bool,
}

/// What a table with a state file keeps besides its rows.
struct Durable {
    table: Arc<SqlTable>,
    /// Whether every key of the store is in memory, so that a miss needs no read of the file.
    complete: bool,
    /// Number of the next save. A key is unsaved iff its `save` is larger than `durable`.
    next_save: u32,
    /// The last save known to be durable.
    durable: u32,
    /// Keys changed since the last snapshot, each once.
    changed: Vec<ByteKey>,
    /// Changes since then.
    writes: u64,
    /// Keys of the snapshot being saved.
    saving: Vec<ByteKey>,
    /// Keys of the store, approximate.
    rows: u64,
    share: Share,
    row_size: RowSize,
}

impl Durable {
    fn open(table: Arc<SqlTable>) -> Result<Self> {
        Ok(Self {
            complete: table.is_empty()?,
            rows: table.meta()?.rows,
            share: table.shared().share(),
            row_size: RowSize::new(ROW_BYTES),
            table,
            next_save: 1,
            durable: 0,
            changed: Vec::new(),
            writes: 0,
            saving: Vec::new(),
        })
    }

    fn change(&mut self, key: &ByteKey, slot: &mut Slot) {
        slot.used = true;
        self.writes += 1;
        if slot.save != self.next_save {
            slot.save = self.next_save;
            self.changed.push(key.clone());
        }
    }
}

/// Versions of values in memory.
pub(super) struct VersionedTable {
    name: String,
    value_serde: AnySerde,
    history_ms: i64,
    interval_ms: i64,
    /// Largest timestamp put, -1 before the first.
    observed: Timestamp,
    rows: HashMap<ByteKey, Slot, foldhash::fast::RandomState>,
    /// Keys of which a version ended in a segment of time: where to look when that segment leaves the history.
    ended: BTreeMap<i64, Vec<ByteKey>>,
    dropped: u64,
    durable: Option<Durable>,
}

impl VersionedTable {
    pub(super) fn new(
        name: &str,
        value_serde: AnySerde,
        history: Duration,
        table: Option<Arc<SqlTable>>,
    ) -> Result<Self> {
        let history_ms = millis(history);
        let mut store = Self {
            name: name.to_owned(),
            value_serde,
            history_ms,
            interval_ms: segment_interval(history_ms),
            observed: -1,
            rows: HashMap::default(),
            ended: BTreeMap::new(),
            dropped: 0,
            durable: None,
        };
        if let Some(table) = table {
            store.open(table)?;
        }
        Ok(store)
    }

    /// Starts from what the file holds, without what has left the history while nobody looked.
    fn open(&mut self, table: Arc<SqlTable>) -> Result<()> {
        self.observed = table.meta()?.observed;
        table.forget_versions(self.observed - self.history_ms)?;
        self.durable = Some(Durable::open(table)?);
        Ok(())
    }

    /// Brings the versions of a key into memory, if the file may have them.
    fn load(&mut self, key: &[u8]) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        if durable.complete || self.rows.contains_key(key) {
            return Ok(());
        }
        let found = durable.table.versions(key)?;
        if found.is_empty() {
            return Ok(());
        }
        let key = ByteKey::new(key);
        for row in found.iter().skip(1) {
            self.ended.entry(row.time / self.interval_ms).or_default().push(key.clone());
        }
        let versions = found.into_iter().map(|row| (row.time, row.value.map(|value| value.value))).collect();
        self.rows.insert(key, Slot { versions, save: 0, used: true });
        if self.rows.len().is_multiple_of(1024) {
            self.evict();
        }
        Ok(())
    }

    /// Adds a version.
    fn set(&mut self, key: ByteKey, value: Option<AnyValue>, timestamp: Timestamp) -> Result<VersionedPut> {
        if timestamp < self.observed - self.history_ms {
            self.dropped += 1;
            return Ok(VersionedPut::TooOld);
        }
        self.observe(timestamp);
        self.load(&key)?;
        let known = self.rows.len();
        let slot = self.rows.entry(key.clone()).or_default();
        if let Some(durable) = &mut self.durable {
            durable.change(&key, slot);
            if let Some(value) = &value {
                durable.row_size.weigh(&key, value, &self.value_serde);
            }
        }
        let versions = &mut slot.versions;
        let at = versions.partition_point(|(from, _)| *from < timestamp);
        let replaces = versions.get(at).is_some_and(|(from, _)| *from == timestamp);
        let valid_to = versions.get(at + usize::from(replaces)).map(|(from, _)| *from);
        let value_ends_here = at > 0 && versions[at - 1].1.is_some();
        if replaces && valid_to.is_none() && value.is_none() && versions[at].1.is_some() && !value_ends_here {
            versions.remove(at);
        } else if replaces {
            versions[at].1 = value;
        } else {
            versions.insert(at, (timestamp, value));
        }
        let forgotten_alone = matches!(versions.as_slice(), [] | [(_, None)]);
        // What ended: the version before this one, and this one when a newer exists. A lone tombstone is forgotten
        // with the segment it falls in.
        for end in [(at > 0 || forgotten_alone).then_some(timestamp), valid_to].into_iter().flatten() {
            let keys = self.ended.entry(end / self.interval_ms).or_default();
            if keys.last() != Some(&key) {
                keys.push(key.clone());
            }
        }
        if let Some(durable) = &mut self.durable {
            durable.rows += (self.rows.len() - known) as u64;
        }
        Ok(valid_to.map_or(VersionedPut::Latest, VersionedPut::ValidTo))
    }

    /// Advances time and forgets versions that ended before the history.
    fn observe(&mut self, timestamp: Timestamp) {
        if timestamp <= self.observed {
            return;
        }
        self.observed = timestamp;
        let oldest = timestamp - self.history_ms;
        while let Some(entry) = self.ended.first_entry()
            && *entry.key() < oldest / self.interval_ms
        {
            for key in entry.remove() {
                let Some(slot) = self.rows.get_mut(key.as_slice()) else { continue };
                let ended = slot.versions.windows(2).take_while(|pair| pair[1].0 < oldest).count();
                slot.versions.drain(..ended);
                let gone = match slot.versions.as_slice() {
                    [] => true,
                    [(from, None)] => *from < oldest,
                    _ => false,
                };
                match &mut self.durable {
                    Some(durable) => {
                        if gone {
                            slot.versions.clear();
                        }
                        if gone || ended > 0 {
                            durable.change(&key, slot);
                        }
                    }
                    None if gone => drop(self.rows.remove(key.as_slice())),
                    None => {}
                }
            }
        }
    }

    fn find(&mut self, key: &[u8], as_of: Timestamp) -> Result<Option<VersionedRecord>> {
        self.load(key)?;
        let (observed, history_ms) = (self.observed, self.history_ms);
        Ok(self.rows.get_mut(key).and_then(|slot| {
            slot.used = true;
            let at = slot.versions.partition_point(|(from, _)| *from <= as_of).checked_sub(1)?;
            let valid_to = slot.versions.get(at + 1).map(|(from, _)| *from);
            if valid_to.is_some() && as_of < observed - history_ms {
                // Beyond the history only a latest version answers, even where older ones are still held.
                return None;
            }
            let (timestamp, value) = &slot.versions[at];
            Some(VersionedRecord { value: value.clone()?, timestamp: *timestamp, valid_to })
        }))
    }

    /// Lets go of saved keys while there is too much in memory: those not used since the last time, then any.
    fn evict(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        let (rows, row) = (self.rows.len() as u64, durable.row_size.bytes());
        let Some(keep) = durable.share.excess(rows * row) else { return };
        let mut excess = rows.saturating_sub(keep / row);
        for round in 0..2 {
            let before = self.rows.len();
            self.rows.retain(|_, slot| {
                let goes = excess > 0 && slot.save <= durable.durable && (round == 1 || !slot.used);
                excess -= u64::from(goes);
                slot.used = false;
                !goes
            });
            durable.complete &= self.rows.len() == before;
        }
        durable.share.note(self.rows.len() as u64 * row);
    }
}

impl StateStore for VersionedTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn drain_changelog(&mut self, _: &mut Vec<ChangelogRecord>) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        let dropped = self.dropped;
        for record in records {
            let key = ByteKey::new(restored_key(&self.name, record)?);
            let value = restored_value(&self.name, &self.value_serde, record)?;
            self.set(key, value.map(|value| value.value), record.timestamp)?;
        }
        // They were counted when they were first refused.
        self.dropped = dropped;
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        self.ended.clear();
        self.observed = -1;
        self.dropped = 0;
        if let Some(durable) = self.durable.take() {
            // A save under way holds only what was committed; it is part of what the file reflects.
            durable.table.shared().finish_save()?;
            self.open(durable.table)?;
        }
        Ok(())
    }

    fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn approximate_num_entries(&self) -> u64 {
        self.durable.as_ref().map_or(self.rows.len() as u64, |durable| durable.rows)
    }

    fn unsaved(&self) -> Unsaved {
        self.durable.as_ref().map_or_else(Unsaved::default, |durable| {
            let changed = durable.changed.len() as u64;
            let row = durable.row_size.bytes();
            durable.share.note(self.rows.len() as u64 * row);
            Unsaved { changed, writes: durable.writes, rows: durable.rows, bytes: changed * row }
        })
    }

    fn snapshot(&mut self) -> Result<Option<StoreSnapshot>> {
        let Some(durable) = &mut self.durable else { return Ok(None) };
        durable.saving = std::mem::take(&mut durable.changed);
        durable.writes = 0;
        durable.next_save += 1;
        let mut rows = Vec::with_capacity(durable.saving.len());
        for key in &durable.saving {
            let Some(slot) = self.rows.get(key.as_slice()) else { continue };
            for (from, value) in &slot.versions {
                let sub = if value.is_none() { TOMBSTONE } else { 0 };
                let value = value.clone().map(|value| ValueAndTimestamp { value, timestamp: *from });
                rows.push(SqlRow { segment: 0, key: key.clone(), time: *from, sub, value });
            }
        }
        let meta = StoreMeta { observed: self.observed, seq: 0, rows: durable.rows };
        let snapshot = TableSnapshot { rows, replaced: durable.saving.clone(), first_segment: None, meta };
        Ok(Some(StoreSnapshot::new(durable.table.clone(), snapshot)))
    }

    fn mark_saved(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        durable.durable = durable.next_save - 1;
        for key in std::mem::take(&mut durable.saving) {
            // A key without versions that the file knows of needs no row, unless it was written again meanwhile.
            let gone = |slot: &Slot| slot.versions.is_empty() && slot.save <= durable.durable;
            if self.rows.get(key.as_slice()).is_some_and(gone) {
                self.rows.remove(key.as_slice());
                durable.rows = durable.rows.saturating_sub(1);
            }
        }
        self.evict();
    }
}

impl VersionedStore for VersionedTable {
    fn put(
        &mut self,
        key: ByteKey,
        value: Option<AnyValue>,
        timestamp: Timestamp,
        _: &RecordContext,
    ) -> Result<VersionedPut> {
        self.set(key, value, timestamp)
    }

    fn delete(
        &mut self,
        key: ByteKey,
        timestamp: Timestamp,
        _: &RecordContext,
    ) -> Result<Option<VersionedRecord>> {
        // Looked up first: the delete may itself move the history past what it returns.
        let before = self.find(&key, timestamp)?;
        Ok(match self.set(key, None, timestamp)? {
            VersionedPut::TooOld => None,
            VersionedPut::Latest | VersionedPut::ValidTo(_) => before,
        })
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<VersionedRecord>> {
        self.find(key, Timestamp::MAX)
    }

    fn get_as_of(&mut self, key: &[u8], as_of: Timestamp) -> Result<Option<VersionedRecord>> {
        self.find(key, as_of)
    }
}
