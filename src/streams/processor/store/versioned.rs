//! [`VersionedKeyValueStore`]: the typed handle of a versioned store (KIP-889).

use std::sync::Arc;

use super::{Handle, StoreName, from_any};
use crate::streams::{
    error::Result,
    processor::NodeContext,
    record::Timestamp,
    state::{self, Store, VersionedPut},
};

/// A version of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedRecord<V> {
    /// The value.
    pub value: Arc<V>,
    /// Valid from, inclusive.
    pub timestamp: Timestamp,
    /// Valid to, exclusive; `None` = still valid.
    pub valid_to: Option<Timestamp>,
}

/// A versioned store of the processor (Kafka's `VersionedKeyValueStore`): each key's value over time, as far back as the history goes.
pub struct VersionedKeyValueStore<'a, K, V>(Handle<'a, K, V>);

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> VersionedKeyValueStore<'a, K, V> {
    pub(in crate::streams) fn new(node: NodeContext<'a>, store: impl StoreName) -> Result<Self> {
        Handle::new(node, store).map(Self)
    }

    /// The latest version.
    pub fn get(&self, key: &K) -> Result<Option<VersionedRecord<V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.get(&key)).and_then(version)
    }

    /// The version that was valid at a time.
    pub fn get_as_of(&self, key: &K, as_of: Timestamp) -> Result<Option<VersionedRecord<V>>> {
        let key = self.0.key(key)?;
        self.read(|store| store.get_as_of(&key, as_of)).and_then(version)
    }

    /// Adds a version; `None` says that there is no value from then on. What is older than the history is refused and counted as dropped.
    pub fn put(&self, key: &K, value: impl Into<Option<V>>, timestamp: Timestamp) -> Result<VersionedPut> {
        let key = self.0.key(key)?;
        let value = self.0.checked(value.into())?;
        self.0.write(|store, context| self.of(store)?.put(key, value, timestamp, context))
    }

    /// Deletes at a time; the version that was valid there.
    pub fn delete(&self, key: &K, timestamp: Timestamp) -> Result<Option<VersionedRecord<V>>> {
        let key = self.0.key(key)?;
        self.0.write(|store, context| self.of(store)?.delete(key, timestamp, context)).and_then(version)
    }

    fn read<R>(&self, f: impl FnOnce(&mut dyn state::VersionedStore) -> Result<R>) -> Result<R> {
        self.0.read(|store| f(self.of(store)?))
    }

    fn of<'s>(&self, store: &'s mut Store) -> Result<&'s mut dyn state::VersionedStore> {
        match store {
            Store::Versioned(store) => Ok(store.as_mut()),
            _ => Err(self.0.wrong_kind("versioned")),
        }
    }
}

fn version<V: Send + Sync + 'static>(
    found: Option<state::VersionedRecord>,
) -> Result<Option<VersionedRecord<V>>> {
    let typed = found.map(|found| {
        let value = from_any(found.value)?;
        Ok(VersionedRecord { value, timestamp: found.timestamp, valid_to: found.valid_to })
    });
    typed.transpose()
}
