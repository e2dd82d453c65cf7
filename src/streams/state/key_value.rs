//! [`KeyValueTable`]: the rows of a key-value store, decoded, in memory.
//!
//! The innermost layer: no logging, no cache. Rows are in unsigned byte order of the key when listed.

use std::ops::Bound;

use super::{
    ChangelogRecord, KeyValueStore, Order, StateStore, ValueAndTimestamp,
    indexed_map::IndexedMap,
    layout::{restored_key, restored_value},
};
use crate::streams::{
    error::Result,
    record::{ByteKey, ConsumerRecord, RecordContext},
    serdes::AnySerde,
};

/// Key-value rows in memory.
pub(super) struct KeyValueTable {
    name: String,
    value_serde: AnySerde,
    rows: IndexedMap<ByteKey, ValueAndTimestamp>,
}

impl KeyValueTable {
    pub(super) fn new(name: &str, value_serde: AnySerde) -> Self {
        Self { name: name.to_owned(), value_serde, rows: IndexedMap::default() }
    }

    fn set(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>) {
        match value {
            Some(value) => self.rows.insert(key, value),
            None => self.rows.remove(key.as_slice()),
        };
    }
}

impl StateStore for KeyValueTable {
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
            self.set(key, value.map(|value| ValueAndTimestamp { value, timestamp: record.timestamp }));
        }
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        Ok(())
    }

    fn approximate_num_entries(&self) -> u64 {
        self.rows.len() as u64
    }
}

impl KeyValueStore for KeyValueTable {
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        Ok(self.rows.get(key).cloned())
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
        let range = (
            from.map_or(Bound::Unbounded, |from| Bound::Included(ByteKey::new(from))),
            to.map_or(Bound::Unbounded, |to| Bound::Included(ByteKey::new(to))),
        );
        let mut rows = collect(self.rows.range(range));
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        Ok(collect(self.rows.range(prefix_range(prefix))))
    }
}

fn collect(rows: Vec<(ByteKey, &ValueAndTimestamp)>) -> Vec<(ByteKey, ValueAndTimestamp)> {
    rows.into_iter().map(|(key, value)| (key, value.clone())).collect()
}

/// The range of all keys that start with `prefix`.
pub(super) fn prefix_range(prefix: &[u8]) -> (Bound<ByteKey>, Bound<ByteKey>) {
    if prefix.is_empty() {
        return (Bound::Unbounded, Bound::Unbounded);
    }
    // The smallest key after all those with the prefix: drop trailing 0xff, add one to what is then last.
    let end = prefix.iter().rposition(|byte| *byte != 0xff).map(|last| {
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        ByteKey::from(end)
    });
    (Bound::Included(ByteKey::new(prefix)), end.map_or(Bound::Unbounded, Bound::Excluded))
}
