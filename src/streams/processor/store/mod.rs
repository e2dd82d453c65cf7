//! Typed handles to stores: what a processor gets from its context by name, and a test from its driver.
//!
//! A store holds bytes and erased values; a handle speaks the types of the store's serdes, so that nobody downcasts by hand. A handle
//! borrows the call it was made in, costs one look-up, and is made anew in the next. Nothing may be forwarded from within a call of a
//! store, which the handles make impossible: they hand out what was found, never a cursor.

mod key_value;
mod session;
mod versioned;
mod window;

use std::{any::type_name, marker::PhantomData, sync::Arc};

pub use key_value::KeyValueStore;
pub use session::{SessionRow, SessionStore};
pub use versioned::{VersionedKeyValueStore, VersionedRecord};
pub use window::{WindowRow, WindowStore};

use super::{NodeContext, StoreId};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    record::{AnyValue, ByteKey, RecordContext, Timestamp},
    serdes::AnySerde,
    state::{Store, StoreBuilder, ValueAndTimestamp as Stored},
};

/// Names a store: by its name, or by what [`state_store`](super::ProcessingContext::state_store) found for it.
pub trait StoreName: sealed::Find {}
impl<T: sealed::Find> StoreName for T {}

mod sealed {
    use super::{NodeContext, Result, StoreId};

    pub trait Find {
        fn find(&self, context: NodeContext<'_>) -> Result<StoreId>;
    }

    impl Find for StoreId {
        fn find(&self, _: NodeContext<'_>) -> Result<StoreId> {
            Ok(*self)
        }
    }

    impl Find for &str {
        fn find(&self, context: NodeContext<'_>) -> Result<StoreId> {
            context.store(self)
        }
    }

    impl Find for &String {
        fn find(&self, context: NodeContext<'_>) -> Result<StoreId> {
            context.store(self)
        }
    }
}

/// A value and the timestamp it was last updated with (Kafka's `ValueAndTimestamp`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueAndTimestamp<V> {
    /// The value.
    pub value: Arc<V>,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// What the four kinds of handles share: the store, its serdes, and whether it may be written.
struct Handle<'a, K, V> {
    node: NodeContext<'a>,
    id: StoreId,
    types: PhantomData<fn(K, V)>,
}

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Handle<'a, K, V> {
    /// # Errors
    /// A store of that name that the processor is not connected to.
    fn new(node: NodeContext<'a>, store: impl StoreName) -> Result<Self> {
        Ok(Self { node, id: store.find(node)?, types: PhantomData })
    }

    fn builder(&self) -> &'a StoreBuilder {
        self.node.task().store_builder(self.id)
    }

    fn wrong_kind(&self, kind: &str) -> StreamsError {
        StreamsError::Topology(format!("store {} is not a {kind} store", self.builder().name))
    }

    fn read<R>(&self, f: impl FnOnce(&mut Store) -> Result<R>) -> Result<R> {
        self.node.with_store(self.id, f)
    }

    /// As [`read`](Self::read), with the context of the write. A global store is written by the processor that fills it and nobody else.
    fn write<R>(&self, f: impl FnOnce(&mut Store, &RecordContext) -> Result<R>) -> Result<R> {
        if self.node.task().is_read_only(self.node.node(), self.id) {
            let message = format!("Global store {} is read only", self.builder().name);
            return Err(ProcessingError::new("UnsupportedOperationException", message).into());
        }
        let context = self.node.record_context();
        self.node.with_store(self.id, |store| f(store, &context))
    }

    fn key(&self, key: &K) -> Result<ByteKey> {
        let mut bytes = Vec::new();
        self.builder().key_serde.serialize_ref(key, &mut bytes)?;
        Ok(ByteKey::from(bytes))
    }

    fn key_back(&self, bytes: &[u8]) -> Result<Arc<K>> {
        from_any(self.builder().key_serde.deserialize(bytes)?)
    }

    /// Refuses a value whose type is not the store's here, where it is written, instead of where it is next read.
    fn checked(&self, value: Option<V>) -> Result<Option<AnyValue>> {
        let serde: &AnySerde = &self.builder().value_serde;
        if value.is_some() && !serde.is_for::<V>() {
            let message = format!("store {} does not hold a {}", self.builder().name, type_name::<V>());
            return Err(ProcessingError::new("ClassCastException", message).into());
        }
        Ok(value.map(|value| Arc::new(value) as AnyValue))
    }

    fn value(&self, stored: Stored) -> Result<ValueAndTimestamp<V>> {
        Ok(ValueAndTimestamp { value: from_any(stored.value)?, timestamp: stored.timestamp })
    }
}

fn from_any<T: Send + Sync + 'static>(value: AnyValue) -> Result<Arc<T>> {
    value.downcast::<T>().map_err(|_| {
        let message = format!("the store does not hold a {}", type_name::<T>());
        StreamsError::Processing(ProcessingError::new("ClassCastException", message))
    })
}
