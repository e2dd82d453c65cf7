//! `map_values` on tables (Kafka's `KTableMapValues`): a deleted row stays deleted, the mapper is not asked.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Data, UserResult, ValueMapper, value_mapper},
    graph::GraphNode,
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::{AnyRecord, AnyValue},
    state::ValueAndTimestamp,
};

struct TableMapValues {
    parent: TableCore,
    mapper: ValueMapper,
    store: Option<String>,
    send_old_values: Cell<bool>,
}

impl TableProcessor for TableMapValues {
    fn supplier(&self) -> ProcessorSupplier {
        let (mapper, store) = (self.mapper.clone(), self.store.clone());
        let send_old_values = self.send_old_values.get();
        Arc::new(move || {
            Box::new(TableMapValuesProcessor {
                mapper: mapper.clone(),
                store_name: store.clone(),
                send_old_values,
                store: None,
            })
        })
    }

    fn view(&self) -> ValueGetterSupplier {
        match &self.store {
            Some(store) => ValueGetterSupplier::of_store(store),
            None => {
                let mapper = self.mapper.clone();
                ValueGetterSupplier::mapped(self.parent.value_getter(), move |_, key, row| {
                    let Some(row) = row else { return Ok(None) };
                    let value = mapper(key, Some(&row.value))?;
                    Ok(value.map(|value| ValueAndTimestamp { value, timestamp: row.timestamp }))
                })
            }
        }
    }

    fn enable_sending_old_values(&self, force: bool) -> bool {
        if self.store.is_some() || self.parent.enable_sending_old_values(force) {
            self.send_old_values.set(true);
        }
        self.send_old_values.get()
    }
}

struct TableMapValuesProcessor {
    mapper: ValueMapper,
    store_name: Option<String>,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl TableMapValuesProcessor {
    fn map(&self, key: Option<&AnyValue>, value: Option<&AnyValue>) -> Result<Option<AnyValue>> {
        match value {
            Some(_) => Ok((self.mapper)(key, value)?),
            None => Ok(None),
        }
    }
}

impl AnyProcessor for TableMapValuesProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        if let Some(name) = &self.store_name {
            let store = TableStore::new(context, name)?;
            let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
            self.store = Some((store, forwarder));
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let value = self.map(record.key.as_ref(), record.value.as_ref())?;
        let old = match (&self.store, self.send_old_values) {
            (_, false) => None,
            (Some((store, _)), true) => store.get(context, record.key.as_ref())?.map(|row| row.value),
            (None, true) => self.map(record.key.as_ref(), record.old.as_ref())?,
        };
        let change = AnyRecord { value, old, ..record };
        match &self.store {
            Some((store, forwarder)) => {
                let put = store.put(context, change.key.as_ref(), change.value.clone(), change.timestamp)?;
                forwarder.forward_put(context, put, change)
            }
            None => context.forward(change),
        }
    }
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Gives each row another value. `f` is never called with a null value.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.table::<String, String>("names").map_values(|_, v| v.map(|v| v.to_uppercase())).to_stream().to("upper");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("names", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("upper", String::serde(), String::serde());
    /// input.pipe_input(Some("1".into()), Some("ann".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some("ANN".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn map_values<VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.map_values_with(move |key, value| Ok(f(key, value)), Named::default(), None)
    }

    /// As [`map_values`](Self::map_values), named, stored when `materialized` is given, with a function that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let names = builder.table::<String, String>("in");
    /// let length = |_: Option<&String>, name: Option<&String>| Ok(name.map(|name| name.len() as i64));
    /// names.map_values_with(length, Named::default(), Some(Materialized::named("lengths")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("1".into()), Some("ann".into()), 0)?;
    /// let length = driver.key_value_store("lengths", |rows| rows.get(&"1".to_owned()))?;
    /// assert_eq!(length.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn map_values_with<VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, VR>>,
    ) -> KTable<K, VR> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let materialized =
            materialized.map(|options| MaterializedStore::new(options, &mut graph, "KTABLE-MAPVALUES-"));
        let (mut key_serde, mut value_serde) = (core.key_serde.clone(), None);
        let mut store = None;
        let mut versioned = None;
        if let Some(mut options) = materialized {
            options.key_serde = options.key_serde.or(key_serde);
            (key_serde, value_serde) = (options.key_serde.clone(), options.value_serde.clone());
            versioned = Some(options.versioned.is_some());
            if options.queryable {
                store = Some(options.key_value_store::<K, VR>(&mut graph));
            }
        }
        let name = named.into().or_generate(&mut graph, "KTABLE-MAPVALUES-");
        drop(graph);
        let store_name = store.as_ref().map(|store| store.name.clone());
        let processor = Rc::new(TableMapValues {
            parent: core.clone(),
            mapper: value_mapper(f),
            store: store_name.clone(),
            send_old_values: Cell::new(false),
        });
        let at_build = processor.clone();
        let node = GraphNode {
            output_versioned: versioned,
            ..GraphNode::stateful(&name, move || at_build.supplier(), Vec::new(), store)
        };
        let node = core.graph.borrow_mut().add(core.node, node);
        KTable::new(TableCore {
            name,
            key_serde,
            value_serde,
            queryable_store: store_name,
            processor,
            sends_old_values: Rc::default(),
            node,
            ..core.clone()
        })
    }
}
