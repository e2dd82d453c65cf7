//! [`KeyValueStore`]: the typed handle of a key-value store, timestamped or plain.

use std::sync::Arc;

use super::{Handle, StoreName, ValueAndTimestamp};
use crate::streams::{
    error::Result,
    processor::NodeContext,
    record::{ByteKey, Timestamp},
    state::{self, Order, Store, ValueAndTimestamp as Stored},
};

/// A key-value store of the processor (Kafka's `KeyValueStore` and `TimestampedKeyValueStore` in one).
///
/// Rows are listed in the order of their serialized keys. Writes go to the changelog and are committed with the records they came from.
/// A global store is read only.
pub struct KeyValueStore<'a, K, V>(Handle<'a, K, V>);

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> KeyValueStore<'a, K, V> {
    pub(in crate::streams) fn new(node: NodeContext<'a>, store: impl StoreName) -> Result<Self> {
        Handle::new(node, store).map(Self)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Result<Option<Arc<V>>> {
        Ok(self.get_with_timestamp(key)?.map(|stored| stored.value))
    }

    /// The value of a key and when it was last updated; a plain store knows the time of the record it was written by.
    pub fn get_with_timestamp(&self, key: &K) -> Result<Option<ValueAndTimestamp<V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.get(&key))?.map(|stored| self.0.value(stored)).transpose()
    }

    /// Sets a value, or deletes it with `None`. Its timestamp is that of the record being processed.
    pub fn put(&self, key: &K, value: impl Into<Option<V>>) -> Result<()> {
        self.put_at(key, value.into(), None)
    }

    /// As [`put`](Self::put), with a timestamp of its own.
    pub fn put_with_timestamp(
        &self,
        key: &K,
        value: impl Into<Option<V>>,
        timestamp: Timestamp,
    ) -> Result<()> {
        self.put_at(key, value.into(), Some(timestamp))
    }

    /// Sets a value where there is none; the value that was there.
    pub fn put_if_absent(&self, key: &K, value: V) -> Result<Option<Arc<V>>> {
        let found = self.get(key)?;
        if found.is_none() {
            self.put(key, value)?;
        }
        Ok(found)
    }

    /// Deletes a row; the value that was there.
    pub fn delete(&self, key: &K) -> Result<Option<Arc<V>>> {
        let found = self.get(key)?;
        self.put_at(key, None, None)?;
        Ok(found)
    }

    /// Rows with `from <= key <= to` in the order of the serialized keys, either end open with `None`.
    pub fn range(&self, from: Option<&K>, to: Option<&K>) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        self.list(from, to, Order::Forward)
    }

    /// As [`range`](Self::range), last key first.
    pub fn reverse_range(&self, from: Option<&K>, to: Option<&K>) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        self.list(from, to, Order::Backward)
    }

    /// All rows in the order of the serialized keys.
    pub fn all(&self) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        self.list(None, None, Order::Forward)
    }

    /// All rows, last key first.
    pub fn reverse_all(&self) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        self.list(None, None, Order::Backward)
    }

    /// Rows whose serialized key starts with these bytes.
    pub fn prefix_scan(&self, prefix: &[u8]) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        self.read(|store| store.prefix_scan(prefix)).and_then(|rows| self.rows(rows))
    }

    /// How many rows there are, roughly where counting is dear.
    pub fn approximate_num_entries(&self) -> Result<u64> {
        self.read(|store| Ok(store.approximate_num_entries()))
    }

    fn put_at(&self, key: &K, value: Option<V>, timestamp: Option<Timestamp>) -> Result<()> {
        let key = self.0.key(key)?;
        let value = self.0.checked(value)?;
        self.0.write(|store, context| {
            let timestamp = timestamp.unwrap_or(context.timestamp);
            self.of(store)?.put(key, value.map(|value| Stored { value, timestamp }), context)
        })
    }

    fn list(&self, from: Option<&K>, to: Option<&K>, order: Order) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        let from = from.map(|key| self.0.key(key)).transpose()?;
        let to = to.map(|key| self.0.key(key)).transpose()?;
        self.read(|store| store.range(from.as_deref(), to.as_deref(), order)).and_then(|rows| self.rows(rows))
    }

    fn rows(&self, rows: Vec<(ByteKey, Stored)>) -> Result<Vec<(Arc<K>, Arc<V>)>> {
        rows.into_iter().map(|(key, row)| Ok((self.0.key_back(&key)?, self.0.value(row)?.value))).collect()
    }

    fn read<R>(&self, f: impl FnOnce(&mut dyn state::KeyValueStore) -> Result<R>) -> Result<R> {
        self.0.read(|store| f(self.of(store)?))
    }

    fn of<'s>(&self, store: &'s mut Store) -> Result<&'s mut dyn state::KeyValueStore> {
        match store {
            Store::KeyValue(store) => Ok(store.as_mut()),
            _ => Err(self.0.wrong_kind("key-value")),
        }
    }
}
