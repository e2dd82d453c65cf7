//! [`ValueGetter`]: how an operator reads a table that another operator owns (Kafka's `KTableValueGetter`).
//!
//! A table without a store of its own is read through its parent: the getter applies the same function to what the parent's
//! getter returns.

use std::sync::Arc;

use super::table_store::TableStore;
use crate::streams::{
    error::Result,
    processor::NodeContext,
    record::{AnyValue, Timestamp},
    state::ValueAndTimestamp,
};

/// See the module's documentation.
pub(crate) trait ValueGetter: Send {
    /// Once, before the first read, in the reading node's context.
    fn init(&mut self, context: NodeContext<'_>) -> Result<()>;
    /// The current value.
    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>>;
    /// The value at a time; only where [`is_versioned`](Self::is_versioned).
    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        as_of: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>>;
    /// Whether the table keeps versions. Valid after `init`.
    fn is_versioned(&self) -> bool;
}

/// Makes getters, and names the stores a node must be connected to for them.
#[derive(Clone)]
pub(crate) struct ValueGetterSupplier {
    pub make: Arc<dyn Fn() -> Box<dyn ValueGetter> + Send + Sync>,
    pub store_names: Vec<String>,
}

impl ValueGetterSupplier {
    /// Reads a store.
    pub(crate) fn of_store(name: &str) -> Self {
        let store_name = name.to_owned();
        Self {
            make: Arc::new(move || Box::new(StoreGetter { name: store_name.clone(), store: None })),
            store_names: vec![name.to_owned()],
        }
    }

    /// Applies `f` to each row another getter reads.
    pub(crate) fn mapped(
        parent: Self,
        f: impl Fn(
            NodeContext<'_>,
            Option<&AnyValue>,
            Option<ValueAndTimestamp>,
        ) -> Result<Option<ValueAndTimestamp>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let f: RowMapper = Arc::new(f);
        let make = parent.make;
        Self {
            make: Arc::new(move || Box::new(MappedGetter { parent: make(), f: f.clone() })),
            store_names: parent.store_names,
        }
    }
}

struct StoreGetter {
    name: String,
    store: Option<TableStore>,
}

impl StoreGetter {
    fn store(&self) -> &TableStore {
        self.store.as_ref().expect("init runs before the first read")
    }
}

impl ValueGetter for StoreGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(TableStore::new(context, &self.name)?);
        Ok(())
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        self.store().get(context, key)
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        as_of: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        self.store().get_as_of(context, key, as_of)
    }

    fn is_versioned(&self) -> bool {
        self.store().is_versioned()
    }
}

type RowMapper = Arc<
    dyn Fn(NodeContext<'_>, Option<&AnyValue>, Option<ValueAndTimestamp>) -> Result<Option<ValueAndTimestamp>>
        + Send
        + Sync,
>;

struct MappedGetter {
    parent: Box<dyn ValueGetter>,
    f: RowMapper,
}

impl ValueGetter for MappedGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.parent.init(context)
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        let row = self.parent.get(context, key)?;
        (self.f)(context, key, row)
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        as_of: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        let row = self.parent.get_as_of(context, key, as_of)?;
        (self.f)(context, key, row)
    }

    fn is_versioned(&self) -> bool {
        self.parent.is_versioned()
    }
}
