//! [`VersionedTable`]: the versions of each key's value, in memory (KIP-889; Kafka's `RocksDBVersionedStore`).
//!
//! A version is valid from its timestamp until the next version of the key; a tombstone is a version without a value.
//! The latest version never expires. Older ones are dropped once the moment they ended lies further behind the
//! largest timestamp put than the history kept; nothing can ask for them then.
//!
//! Kafka Streams keeps the latest value apart from older versions, and one consequence is observable and kept here: a
//! tombstone that replaces the latest value *at the same timestamp* leaves no trace when no value ended there, so an
//! older version put afterwards becomes the latest.

use std::{collections::BTreeMap, time::Duration};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    ChangelogRecord, StateStore, VersionedPut, VersionedRecord, VersionedStore,
    layout::{restored_key, restored_value},
    segments::{millis, segment_interval},
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, ConsumerRecord, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// Versions of one key in ascending order: (valid from, value or tombstone).
pub(super) type Versions = SmallVec<[(Timestamp, Option<AnyValue>); 1]>;

/// Versions of values in memory.
pub(super) struct VersionedTable {
    name: String,
    value_serde: AnySerde,
    history_ms: i64,
    interval_ms: i64,
    /// Largest timestamp put, -1 before the first.
    observed: Timestamp,
    rows: HashMap<ByteKey, Versions, foldhash::fast::RandomState>,
    /// Keys of which a version ended in a segment of time: where to look when that segment leaves the history.
    ended: BTreeMap<i64, Vec<ByteKey>>,
    dropped: u64,
}

impl VersionedTable {
    pub(super) fn new(name: &str, value_serde: AnySerde, history: Duration) -> Self {
        let history_ms = millis(history);
        Self {
            name: name.to_owned(),
            value_serde,
            history_ms,
            interval_ms: segment_interval(history_ms),
            observed: -1,
            rows: HashMap::default(),
            ended: BTreeMap::new(),
            dropped: 0,
        }
    }

    /// Adds a version. The caller has checked nothing.
    fn set(&mut self, key: ByteKey, value: Option<AnyValue>, timestamp: Timestamp) -> VersionedPut {
        if timestamp < self.observed - self.history_ms {
            self.dropped += 1;
            return VersionedPut::TooOld;
        }
        self.observe(timestamp);
        let versions = self.rows.entry(key.clone()).or_default();
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
        // What ended: the version before this one, and this one when a newer exists.
        for end in [(at > 0).then_some(timestamp), valid_to].into_iter().flatten() {
            let keys = self.ended.entry(end / self.interval_ms).or_default();
            if keys.last() != Some(&key) {
                keys.push(key.clone());
            }
        }
        if versions.is_empty() || matches!(versions.as_slice(), [(_, None)]) {
            // A lone tombstone is forgotten with the segment it falls in.
            self.ended.entry(timestamp / self.interval_ms).or_default().push(key);
        }
        valid_to.map_or(VersionedPut::Latest, VersionedPut::ValidTo)
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
                let Some(versions) = self.rows.get_mut(key.as_slice()) else { continue };
                let ended = versions.windows(2).take_while(|pair| pair[1].0 < oldest).count();
                versions.drain(..ended);
                let gone = match versions.as_slice() {
                    [] => true,
                    [(from, None)] => *from < oldest,
                    _ => false,
                };
                if gone {
                    self.rows.remove(key.as_slice());
                }
            }
        }
    }

    fn find(&self, key: &[u8], as_of: Timestamp) -> Option<VersionedRecord> {
        let versions = self.rows.get(key)?;
        let at = versions.partition_point(|(from, _)| *from <= as_of).checked_sub(1)?;
        let valid_to = versions.get(at + 1).map(|(from, _)| *from);
        if valid_to.is_some() && as_of < self.observed - self.history_ms {
            // Beyond the history only a latest version answers, even where older ones are still held.
            return None;
        }
        let (timestamp, value) = &versions[at];
        Some(VersionedRecord { value: value.clone()?, timestamp: *timestamp, valid_to })
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
            self.set(key, value, record.timestamp);
        }
        // They were counted when they were first refused.
        self.dropped = dropped;
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        self.ended.clear();
        self.observed = -1;
        Ok(())
    }

    fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn approximate_num_entries(&self) -> u64 {
        self.rows.len() as u64
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
        Ok(self.set(key, value, timestamp))
    }

    fn delete(
        &mut self,
        key: ByteKey,
        timestamp: Timestamp,
        _: &RecordContext,
    ) -> Result<Option<VersionedRecord>> {
        // Looked up first: the delete may itself move the history past what it returns.
        let before = self.find(&key, timestamp);
        Ok(match self.set(key, None, timestamp) {
            VersionedPut::TooOld => None,
            VersionedPut::Latest | VersionedPut::ValidTo(_) => before,
        })
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<VersionedRecord>> {
        Ok(self.find(key, Timestamp::MAX))
    }

    fn get_as_of(&mut self, key: &[u8], as_of: Timestamp) -> Result<Option<VersionedRecord>> {
        Ok(self.find(key, as_of))
    }
}
