//! [`GlobalKTable`]: a table of which every instance keeps a full copy, filled before anything starts.
//!
//! It is read by joins with any key; its updates trigger nothing.

use std::marker::PhantomData;

use super::value_getter::ValueGetterSupplier;

/// See the module's documentation.
pub struct GlobalKTable<K, V> {
    pub(crate) store: String,
    pub(crate) queryable: bool,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> GlobalKTable<K, V> {
    pub(crate) fn new(store: String, queryable: bool) -> Self {
        Self { store, queryable, types: PhantomData }
    }

    /// How joins read the table.
    pub(crate) fn value_getter(&self) -> ValueGetterSupplier {
        ValueGetterSupplier::of_store(&self.store)
    }

    /// Name of the store to query, when the table was given one.
    pub fn queryable_store_name(&self) -> Option<&str> {
        self.queryable.then_some(self.store.as_str())
    }
}

impl<K, V> Clone for GlobalKTable<K, V> {
    fn clone(&self) -> Self {
        Self::new(self.store.clone(), self.queryable)
    }
}
