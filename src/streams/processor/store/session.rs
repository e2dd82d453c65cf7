//! [`SessionStore`]: the typed handle of a session store.

use std::sync::Arc;

use super::{Handle, StoreName, from_any};
use crate::streams::{
    error::Result,
    processor::NodeContext,
    record::Timestamp,
    state::{self, Store},
};

/// A row of a session store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow<K, V> {
    /// The key.
    pub key: Arc<K>,
    /// First record of the session.
    pub start: Timestamp,
    /// Last record of the session, inclusive.
    pub end: Timestamp,
    /// The aggregate.
    pub value: Arc<V>,
}

/// A session store of the processor (Kafka's `SessionStore`).
///
/// A session is visible while its end is younger than the largest end put so far less the retention.
pub struct SessionStore<'a, K, V>(Handle<'a, K, V>);

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> SessionStore<'a, K, V> {
    pub(in crate::streams) fn new(node: NodeContext<'a>, store: impl StoreName) -> Result<Self> {
        Handle::new(node, store).map(Self)
    }

    /// All sessions of a key, by end, then start.
    pub fn fetch(&self, key: &K) -> Result<Vec<SessionRow<K, V>>> {
        self.find_sessions(key, 0, i64::MAX)
    }

    /// One session.
    pub fn fetch_session(&self, key: &K, start: Timestamp, end: Timestamp) -> Result<Option<Arc<V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.fetch_session(&key, start, end))?.map(from_any).transpose()
    }

    /// Sessions of a key with `end >= earliest_end` and `start <= latest_start`, by end, then start: those that a record at a time
    /// touches are found with the time less and plus the gap.
    pub fn find_sessions(
        &self,
        key: &K,
        earliest_end: Timestamp,
        latest_start: Timestamp,
    ) -> Result<Vec<SessionRow<K, V>>> {
        let key = self.0.key(key)?;
        let rows = self.read(|store| store.find_sessions(&key, earliest_end, latest_start))?;
        self.rows(rows)
    }

    /// All visible sessions, in the store's order.
    pub fn all(&self) -> Result<Vec<SessionRow<K, V>>> {
        self.read(|store| store.all()).and_then(|rows| self.rows(rows))
    }

    /// Sets a session, or removes it with `None`.
    pub fn put(&self, key: &K, start: Timestamp, end: Timestamp, value: impl Into<Option<V>>) -> Result<()> {
        let key = self.0.key(key)?;
        let value = self.0.checked(value.into())?;
        self.0.write(|store, context| self.of(store)?.put(key, start, end, value, context))
    }

    /// Removes a session.
    pub fn remove(&self, key: &K, start: Timestamp, end: Timestamp) -> Result<()> {
        self.put(key, start, end, None)
    }

    fn rows(&self, rows: Vec<state::SessionRow>) -> Result<Vec<SessionRow<K, V>>> {
        let typed = rows.into_iter().map(|row| {
            let value = from_any(row.value)?;
            Ok(SessionRow { key: self.0.key_back(&row.key)?, start: row.start, end: row.end, value })
        });
        typed.collect()
    }

    fn read<R>(&self, f: impl FnOnce(&mut dyn state::SessionStore) -> Result<R>) -> Result<R> {
        self.0.read(|store| f(self.of(store)?))
    }

    fn of<'s>(&self, store: &'s mut Store) -> Result<&'s mut dyn state::SessionStore> {
        match store {
            Store::Session(store) => Ok(store.as_mut()),
            _ => Err(self.0.wrong_kind("session")),
        }
    }
}
