//! State stores: described by a [`StoreBuilder`], read and written through typed handles.
//!
//! | kind | described by | handle |
//! |---|---|---|
//! | key to value, timestamped or plain | [`StoreKind::KeyValue`] | [`KeyValueStore`] |
//! | key and window start to value | [`StoreKind::Window`] | [`WindowStore`] |
//! | key, first and last record to value | [`StoreKind::Session`] | [`SessionStore`] |
//! | key to versions of a value | [`StoreKind::Versioned`] | [`VersionedKeyValueStore`] |
//!
//! A processor gets a handle from its context ([`key_value_store`](super::processor::ProcessingContext::key_value_store) and its
//! neighbours), a test from its driver ([`key_value_store`](super::test_utils::TopologyTestDriver::key_value_store)). Stores of the DSL
//! are described by [`Materialized`](super::kstream::Materialized) and may be read in the same way, if they are named.

pub use super::{
    processor::store::{
        KeyValueStore, SessionRow, SessionStore, StoreName, ValueAndTimestamp, VersionedKeyValueStore,
        VersionedRecord, WindowRow, WindowStore,
    },
    state::{Backend, StoreBuilder, StoreKind, VersionedPut},
};
