//! [`KTable`]: a changelog stream read as a table: the latest value of each key.
//!
//! A table is known by the operator that makes it ([`TableProcessor`]): whoever reads it asks that operator for a getter, and
//! whoever must know what a change replaced asks it to send old values. Both may make the operator keep a store.

use std::{cell::Cell, collections::BTreeSet, marker::PhantomData, rc::Rc};

use super::{
    graph::{Graph, GraphNodeId, SharedGraph},
    named,
    options::Materialized,
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    processor::ProcessorSupplier,
    serdes::AnySerde,
    state::{Backend, StoreBuilder, StoreKind},
};

/// The operator behind a table, as other operators see it until the topology is built (Kafka's `KTableProcessorSupplier`).
pub(crate) trait TableProcessor {
    /// The node's code, with everything the operator was told so far. Called when the node is written.
    fn supplier(&self) -> ProcessorSupplier;
    /// How to read the table. May make the operator keep a store.
    fn view(&self) -> ValueGetterSupplier;
    /// Asks for old values in changes; whether they will come. With `force` a store is kept where needed.
    fn enable_sending_old_values(&self, force: bool) -> bool;
    /// Tells that the parent node of that name keeps versions.
    fn enable_versioned_semantics(&self, parent: &str) {
        let _ = parent;
    }
}

/// A table without its types.
#[derive(Clone)]
pub(crate) struct TableCore {
    /// Name of the node that produces the table.
    pub name: String,
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    /// Source nodes of the sub-topology the table runs in.
    pub sources: BTreeSet<String>,
    /// Store to query by name, when the user named one.
    pub queryable_store: Option<String>,
    pub processor: Rc<dyn TableProcessor>,
    pub sends_old_values: Rc<Cell<bool>>,
    pub node: GraphNodeId,
    pub graph: SharedGraph,
}

impl TableCore {
    /// How to read the table.
    pub(crate) fn value_getter(&self) -> ValueGetterSupplier {
        self.processor.view()
    }

    /// Asks for old values; see [`TableProcessor::enable_sending_old_values`].
    pub(crate) fn enable_sending_old_values(&self, force: bool) -> bool {
        if !self.sends_old_values.get() {
            if !self.processor.enable_sending_old_values(force) {
                return false;
            }
            self.sends_old_values.set(true);
        }
        true
    }

    /// Requires equal partition counts with another stream or table; the union of their sources.
    pub(crate) fn copartitioned_with(&self, other: &BTreeSet<String>) -> BTreeSet<String> {
        let all: BTreeSet<String> = self.sources.union(other).cloned().collect();
        self.graph.borrow_mut().copartitioned.push(all.clone());
        all
    }
}

/// A table with keys `K` and values `V`. Handles are cheap; cloning one names the same table.
pub struct KTable<K, V> {
    pub(crate) core: TableCore,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> KTable<K, V> {
    pub(crate) fn new(core: TableCore) -> Self {
        Self { core, types: PhantomData }
    }

    /// Name of the store to query, when the table was given one.
    pub fn queryable_store_name(&self) -> Option<&str> {
        self.core.queryable_store.as_deref()
    }
}

impl<K, V> Clone for KTable<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), types: PhantomData }
    }
}

/// A [`Materialized`] with a store name given or generated, and serdes still optional (Kafka's `MaterializedInternal`).
pub(crate) struct MaterializedStore {
    pub store_name: String,
    /// Whether the user named the store.
    pub queryable: bool,
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    pub caching: bool,
    pub logging: bool,
    pub retention: Option<std::time::Duration>,
    pub backend: Option<Backend>,
    pub versioned: Option<std::time::Duration>,
}

impl MaterializedStore {
    /// Generates the store's name with `prefix` when none is given.
    pub(crate) fn new<K, V>(materialized: Materialized<K, V>, graph: &mut Graph, prefix: &str) -> Self {
        let queryable = materialized.store_name.is_some();
        let store_name = match materialized.store_name {
            Some(name) => {
                if let Err(error) = named::validate(&name) {
                    graph.fail(error);
                }
                name
            }
            None => {
                let name = graph.new_store_name(prefix);
                graph.unnamed_stores.push(name.clone());
                name
            }
        };
        Self {
            store_name,
            queryable,
            key_serde: materialized.key_serde,
            value_serde: materialized.value_serde,
            caching: materialized.caching,
            logging: materialized.logging,
            retention: materialized.retention,
            backend: materialized.backend,
            versioned: materialized.versioned,
        }
    }

    /// The store's name, if the user gave it.
    pub(crate) fn queryable_name(&self) -> Option<String> {
        self.queryable.then(|| self.store_name.clone())
    }

    /// The builder of a key-value (or versioned) store for a table.
    pub(crate) fn key_value_store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        graph: &mut Graph,
    ) -> StoreBuilder {
        let kind = match self.versioned {
            Some(history) => StoreKind::Versioned { history },
            None => StoreKind::KeyValue { timestamped: true },
        };
        let caching = self.caching && self.versioned.is_none();
        StoreBuilder { caching, ..self.store::<K, V>(graph, kind) }
    }

    /// The builder of a store of any kind, with the serdes resolved.
    pub(crate) fn store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        graph: &mut Graph,
        kind: StoreKind,
    ) -> StoreBuilder {
        let name = &self.store_name;
        let key = graph.serde::<K>(self.key_serde.clone(), &format!("the keys of store {name}"));
        let value = graph.serde::<V>(self.value_serde.clone(), &format!("the values of store {name}"));
        StoreBuilder {
            caching: self.caching,
            logging: self.logging,
            backend: self.backend.unwrap_or(graph.config.default_backend),
            ..StoreBuilder::new(name, kind, key, value)
        }
    }
}
