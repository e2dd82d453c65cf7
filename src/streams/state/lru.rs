//! [`LruTable`]: a key-value store of at most n rows in memory (Kafka's `MemoryLRUCache`).
//!
//! A read or write makes a row the most recent; a put over the limit evicts the least recent one. Evicted keys are
//! told to the change-logging layer, which logs a tombstone for them *before* the put that pushed them out.

use std::collections::BTreeMap;

use super::{
    ChangelogRecord, KeyValueStore, Order, StateStore, ValueAndTimestamp,
    key_value::count_up,
    layout::{restored_key, restored_value},
};
use crate::streams::{
    error::Result,
    record::{ByteKey, ConsumerRecord, RecordContext},
    serdes::AnySerde,
};

/// A bounded key-value store.
pub(super) struct LruTable {
    name: String,
    value_serde: AnySerde,
    capacity: usize,
    /// Row and the tick of its last use. Small by nature, so an ordered map serves lookups and scans alike.
    rows: BTreeMap<ByteKey, (ValueAndTimestamp, u64)>,
    /// Key by tick of last use: the first is the next to go.
    uses: BTreeMap<u64, ByteKey>,
    tick: u64,
    evicted: Vec<ByteKey>,
    /// See [`count_up`].
    counts_prefixes: bool,
}

impl LruTable {
    pub(super) fn new(name: &str, value_serde: AnySerde, capacity: usize, counts_prefixes: bool) -> Self {
        Self {
            name: name.to_owned(),
            value_serde,
            capacity,
            rows: BTreeMap::new(),
            uses: BTreeMap::new(),
            tick: 0,
            evicted: Vec::new(),
            counts_prefixes,
        }
    }

    fn set(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>) {
        let before = match value {
            Some(value) => {
                self.tick += 1;
                self.uses.insert(self.tick, key.clone());
                self.rows.insert(key, (value, self.tick))
            }
            None => self.rows.remove(&key),
        };
        if let Some((_, used)) = before {
            self.uses.remove(&used);
        }
        if self.rows.len() > self.capacity
            && let Some((_, eldest)) = self.uses.pop_first()
        {
            self.rows.remove(&eldest);
            self.evicted.push(eldest);
        }
    }
}

impl StateStore for LruTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn drain_changelog(&mut self, _: &mut Vec<ChangelogRecord>) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        for record in records {
            let key = ByteKey::new(restored_key(&self.name, record)?);
            let value = restored_value(&self.name, &self.value_serde, record)?;
            self.set(key, value);
        }
        self.evicted.clear();
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        self.uses.clear();
        self.evicted.clear();
        Ok(())
    }

    fn approximate_num_entries(&self) -> u64 {
        self.rows.len() as u64
    }
}

impl KeyValueStore for LruTable {
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        let Some((value, used)) = self.rows.get_mut(key) else { return Ok(None) };
        self.tick += 1;
        if let Some(key) = self.uses.remove(used) {
            self.uses.insert(self.tick, key);
        }
        *used = self.tick;
        Ok(Some(value.clone()))
    }

    fn put(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, _: &RecordContext) -> Result<()> {
        self.set(key, value);
        Ok(())
    }

    fn range(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
    ) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        let inside = |key: &ByteKey| {
            from.is_none_or(|from| key.as_slice() >= from) && to.is_none_or(|to| key.as_slice() <= to)
        };
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect();
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        if self.counts_prefixes {
            count_up(prefix)?;
        }
        Ok(self
            .rows
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, (value, _))| (key.clone(), value.clone()))
            .collect())
    }

    fn take_evicted(&mut self) -> Vec<ByteKey> {
        std::mem::take(&mut self.evicted)
    }
}
