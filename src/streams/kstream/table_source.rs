//! Source tables: `StreamsBuilder::table` and `KStream::to_table` (Kafka's `KTableSource`).
//!
//! A record with a null key is dropped; any other is a change, an older timestamp than the stored one included (the last offset
//! wins). A store is kept only when somebody names it, reads the table or needs old values.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    sync::Arc,
};

use super::{
    functions::Data,
    graph::GraphNode,
    kstream::KStream,
    named::Named,
    options::Materialized,
    repartition::Repartition,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

/// Descriptor of a source table.
pub(crate) struct TableSource {
    store_name: String,
    /// Set once the table is to keep a store.
    materialized: RefCell<Option<String>>,
    send_old_values: Cell<bool>,
}

impl TableSource {
    pub(super) fn new(store_name: &str, queryable: Option<String>) -> Rc<Self> {
        Rc::new(Self {
            store_name: store_name.to_owned(),
            materialized: RefCell::new(queryable),
            send_old_values: Cell::new(false),
        })
    }

    pub(super) fn is_materialized(&self) -> bool {
        self.materialized.borrow().is_some()
    }

    fn materialize(&self) {
        *self.materialized.borrow_mut() = Some(self.store_name.clone());
    }
}

impl TableProcessor for TableSource {
    fn supplier(&self) -> ProcessorSupplier {
        table_source_processor(self.materialized.borrow().clone(), self.send_old_values.get())
    }

    fn view(&self) -> ValueGetterSupplier {
        self.materialize();
        ValueGetterSupplier::of_store(&self.store_name)
    }

    fn enable_sending_old_values(&self, force: bool) -> bool {
        if !force && !self.is_materialized() {
            return false;
        }
        self.send_old_values.set(true);
        self.materialize();
        true
    }
}

/// The processor of a source table, with or without a store.
pub(crate) fn table_source_processor(store: Option<String>, send_old_values: bool) -> ProcessorSupplier {
    Arc::new(move || Box::new(TableSourceProcessor { name: store.clone(), send_old_values, store: None }))
}

struct TableSourceProcessor {
    name: Option<String>,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for TableSourceProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        if let Some(name) = &self.name {
            let store = TableStore::new(context, name)?;
            let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
            self.store = Some((store, forwarder));
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        let Some((store, forwarder)) = &self.store else {
            return context.forward(AnyRecord { old: None, is_latest: true, ..record });
        };
        let old = store.get(context, record.key.as_ref())?.map(|row| row.value);
        let put = store.put(context, record.key.as_ref(), record.value.clone(), record.timestamp)?;
        forwarder.forward_put(context, put, AnyRecord { old, ..record })
    }
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Reads the stream as a table: each record replaces the one before it with the same key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let table = builder.stream::<String, i64>("in").to_table();
    /// table.filter(|_, n| n.is_some_and(|n| *n > 0)).to_stream().to("positive");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("positive", String::serde(), i64::serde());
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to_table(&self) -> KTable<K, V> {
        self.to_table_with(Named::default(), Materialized::default())
    }

    /// As [`to_table`](Self::to_table), named and stored.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("in").to_table_with(Named::default(), Materialized::named("latest"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("a".into()), Some(2), 1)?;
    /// let latest = driver.key_value_store("latest", |rows| rows.get(&"a".to_owned()))?;
    /// assert_eq!(latest.as_deref(), Some(&2_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to_table_with(&self, named: impl Into<Named>, materialized: Materialized<K, V>) -> KTable<K, V> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let name = named.into().or_generate(&mut graph, "KSTREAM-TOTABLE-");
        let mut materialized = MaterializedStore::new(materialized, &mut graph, "KSTREAM-TOTABLE-");
        materialized.key_serde = materialized.key_serde.or(core.key_serde.clone());
        materialized.value_serde = materialized.value_serde.or(core.value_serde.clone());
        let store = materialized.key_value_store::<K, V>(&mut graph);
        let (parent, sources) = if core.repartition_required {
            let (key, value) = (store.key_serde.clone(), store.value_serde.clone());
            let hop = Repartition::named(&mut graph, &name, key, value, None, true);
            drop(graph);
            let behind = core.repartitioned(hop);
            graph = core.graph.borrow_mut();
            (behind.node, behind.sources)
        } else {
            (core.node, core.sources.clone())
        };
        let processor = TableSource::new(&materialized.store_name, materialized.queryable_name());
        let node = {
            let (node, processor, store) = (name.clone(), processor.clone(), store.clone());
            GraphNode::other(name.clone(), move |topology, parents| {
                topology.add_processor(&node, processor.supplier(), parents)?;
                if processor.is_materialized() {
                    topology.add_state_store(store.clone(), &[&node])?;
                }
                Ok(())
            })
        };
        let node = GraphNode { output_versioned: Some(materialized.versioned.is_some()), ..node };
        let node = graph.add(parent, node);
        drop(graph);
        KTable::new(TableCore {
            name,
            key_serde: Some(store.key_serde),
            value_serde: Some(store.value_serde),
            sources,
            queryable_store: materialized.queryable_name(),
            processor,
            sends_old_values: Rc::default(),
            node,
            graph: core.graph.clone(),
        })
    }
}

/// Sources of a table that starts at one source node.
pub(crate) fn single_source(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}
