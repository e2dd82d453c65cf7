//! [`WindowStore`]: the typed handle of a window store.

use std::sync::Arc;

use super::{Handle, StoreName, ValueAndTimestamp};
use crate::streams::{
    error::Result,
    processor::NodeContext,
    record::Timestamp,
    state::{self, Order, Store, ValueAndTimestamp as Stored},
};

/// A row of a window store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRow<K, V> {
    /// The key.
    pub key: Arc<K>,
    /// Window start.
    pub start: Timestamp,
    /// The value.
    pub value: Arc<V>,
    /// When it was last updated.
    pub timestamp: Timestamp,
}

/// A window store of the processor (Kafka's `WindowStore` and `TimestampedWindowStore` in one).
///
/// A row is visible while its start is younger than the largest start put so far less the retention. What comes too late is refused
/// and counted as dropped. A store with duplicates keeps every row put.
pub struct WindowStore<'a, K, V>(Handle<'a, K, V>);

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> WindowStore<'a, K, V> {
    pub(in crate::streams) fn new(node: NodeContext<'a>, store: impl StoreName) -> Result<Self> {
        Handle::new(node, store).map(Self)
    }

    /// The value of one window.
    pub fn fetch(&self, key: &K, start: Timestamp) -> Result<Option<Arc<V>>> {
        Ok(self.fetch_with_timestamp(key, start)?.map(|stored| stored.value))
    }

    /// The value of one window and when it was last updated.
    pub fn fetch_with_timestamp(&self, key: &K, start: Timestamp) -> Result<Option<ValueAndTimestamp<V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.fetch(&key, start))?.map(|stored| self.0.value(stored)).transpose()
    }

    /// Sets the value of a window, or deletes it with `None`. Its timestamp is that of the record being processed.
    pub fn put(&self, key: &K, value: impl Into<Option<V>>, start: Timestamp) -> Result<()> {
        let key = self.0.key(key)?;
        let value = self.0.checked(value.into())?;
        self.0.write(|store, context| {
            let value = value.map(|value| Stored { value, timestamp: context.timestamp });
            self.of(store)?.put(key, value, start, context)
        })
    }

    /// Windows of a key with `from <= start <= to`, oldest first.
    pub fn fetch_range(&self, key: &K, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow<K, V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.fetch_range(&key, from, to, Order::Forward)).and_then(|rows| self.rows(rows))
    }

    /// Windows of a key with `from <= start <= to`, youngest first.
    pub fn backward_fetch(&self, key: &K, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow<K, V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.fetch_range(&key, from, to, Order::Backward)).and_then(|rows| self.rows(rows))
    }

    /// Windows of all keys with `from <= start <= to`, in the store's order.
    pub fn fetch_all(&self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow<K, V>>> {
        self.read(|store| store.fetch_all(from, to)).and_then(|rows| self.rows(rows))
    }

    /// All visible windows, in the store's order.
    pub fn all(&self) -> Result<Vec<WindowRow<K, V>>> {
        self.read(|store| store.all()).and_then(|rows| self.rows(rows))
    }

    fn rows(&self, rows: Vec<state::WindowRow>) -> Result<Vec<WindowRow<K, V>>> {
        let typed = rows.into_iter().map(|row| {
            let ValueAndTimestamp { value, timestamp } = self.0.value(row.value)?;
            Ok(WindowRow { key: self.0.key_back(&row.key)?, start: row.start, value, timestamp })
        });
        typed.collect()
    }

    fn read<R>(&self, f: impl FnOnce(&mut dyn state::WindowStore) -> Result<R>) -> Result<R> {
        self.0.read(|store| f(self.of(store)?))
    }

    fn of<'s>(&self, store: &'s mut Store) -> Result<&'s mut dyn state::WindowStore> {
        match store {
            Store::Window(store) => Ok(store.as_mut()),
            _ => Err(self.0.wrong_kind("window")),
        }
    }
}
