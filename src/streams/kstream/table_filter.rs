//! `filter`, `filter_not` on tables (Kafka's `KTableFilter`): a row that does not match is deleted downstream.
//!
//! Where old values come for free (a materialised source, any aggregate) nothing is sent when neither the old nor the new row
//! matches; otherwise a tombstone is sent for every row that does not match, even one never sent before.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Data, Predicate, UserResult, predicate},
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
};

struct TableFilter {
    parent: TableCore,
    predicate: Predicate,
    not: bool,
    store: Option<String>,
    send_old_values: Cell<bool>,
    versioned: Cell<bool>,
}

impl TableProcessor for TableFilter {
    fn supplier(&self) -> ProcessorSupplier {
        let (predicate, not, store) = (self.predicate.clone(), self.not, self.store.clone());
        let (send_old_values, versioned) = (self.send_old_values.get(), self.versioned.get());
        Arc::new(move || {
            Box::new(TableFilterProcessor {
                predicate: predicate.clone(),
                not,
                store_name: store.clone(),
                send_old_values,
                versioned,
                store: None,
            })
        })
    }

    fn view(&self) -> ValueGetterSupplier {
        match &self.store {
            Some(store) => ValueGetterSupplier::of_store(store),
            None => {
                let (predicate, not) = (self.predicate.clone(), self.not);
                ValueGetterSupplier::mapped(self.parent.value_getter(), move |_, key, row| match row {
                    Some(row) if not ^ predicate(key, Some(&row.value))? => Ok(Some(row)),
                    _ => Ok(None),
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

    fn enable_versioned_semantics(&self, _: &str) {
        self.versioned.set(true);
    }
}

struct TableFilterProcessor {
    predicate: Predicate,
    not: bool,
    store_name: Option<String>,
    send_old_values: bool,
    versioned: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl TableFilterProcessor {
    fn keep(&self, key: Option<&AnyValue>, value: Option<AnyValue>) -> Result<Option<AnyValue>> {
        match value {
            Some(value) if self.not ^ (self.predicate)(key, Some(&value))? => Ok(Some(value)),
            _ => Ok(None),
        }
    }
}

impl AnyProcessor for TableFilterProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        if let Some(name) = &self.store_name {
            let store = TableStore::new(context, name)?;
            let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
            self.store = Some((store, forwarder));
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let value = self.keep(record.key.as_ref(), record.value)?;
        let old = match (&self.store, self.send_old_values) {
            (_, false) => None,
            (Some((store, _)), true) => store.get(context, record.key.as_ref())?.map(|row| row.value),
            (None, true) => self.keep(record.key.as_ref(), record.old)?,
        };
        if !self.versioned && self.send_old_values && old.is_none() && value.is_none() {
            return Ok(()); // The row was not there before and is not there now.
        }
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
    /// Keeps the rows for which `f` is true. `f` is never called with a null value.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.table::<String, i64>("stock").filter(|_, n| n.is_some_and(|n| *n > 0)).to_stream().to("available");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("stock", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("available", String::serde(), i64::serde());
    /// input.pipe_input(Some("pen".into()), Some(3), 0)?;
    /// input.pipe_input(Some("pen".into()), Some(0), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("pen".into()), Some(3)), (Some("pen".into()), None)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter(&self, f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static) -> Self {
        self.filter_with(move |key, value| Ok(f(key, value)), Named::default(), None)
    }

    /// As [`filter`](Self::filter), named, stored when `materialized` is given, with a predicate that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let stock = builder.table::<String, i64>("in");
    /// stock.filter_with(|_, n| Ok(n.is_some_and(|n| *n > 0)), Named::default(), Some(Materialized::named("available")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("pen".into()), Some(3), 0)?;
    /// input.pipe_input(Some("ink".into()), Some(0), 1)?;
    /// let rows = driver.key_value_store::<String, i64, _>("available", |rows| rows.all())?;
    /// assert_eq!((rows.len(), rows[0].0.as_str(), *rows[0].1), (1, "pen", 3));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter_with(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<bool> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, V>>,
    ) -> Self {
        self.filtered(predicate(f), false, &named.into(), materialized)
    }

    /// Keeps the rows for which `f` is false.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.table::<String, i64>("in").filter_not(|_, n| n == Some(&0)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("pen".into()), Some(3), 0)?;
    /// input.pipe_input(Some("pen".into()), Some(0), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("pen".into()), Some(3)), (Some("pen".into()), None)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter_not(&self, f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static) -> Self {
        self.filter_not_with(move |key, value| Ok(f(key, value)), Named::default(), None)
    }

    /// As [`filter_not`](Self::filter_not), named, stored when `materialized` is given, with a predicate that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let stock = builder.table::<String, i64>("in");
    /// stock.filter_not_with(|_, n| Ok(n == Some(&0)), Named::default(), Some(Materialized::named("available")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ink".into()), Some(0), 0)?;
    /// let ink = driver.key_value_store::<String, i64, _>("available", |rows| rows.get(&"ink".to_owned()))?;
    /// assert_eq!(ink, None);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter_not_with(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<bool> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, V>>,
    ) -> Self {
        self.filtered(predicate(f), true, &named.into(), materialized)
    }

    fn filtered(
        &self,
        predicate: Predicate,
        not: bool,
        named: &Named,
        materialized: Option<Materialized<K, V>>,
    ) -> Self {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let materialized =
            materialized.map(|options| MaterializedStore::new(options, &mut graph, "KTABLE-FILTER-"));
        let (mut key_serde, mut value_serde) = (core.key_serde.clone(), core.value_serde.clone());
        let mut store = None;
        let mut versioned = None;
        if let Some(mut options) = materialized {
            options.key_serde = options.key_serde.or(key_serde);
            options.value_serde = options.value_serde.or(value_serde);
            (key_serde, value_serde) = (options.key_serde.clone(), options.value_serde.clone());
            versioned = Some(options.versioned.is_some());
            if options.queryable {
                store = Some(options.key_value_store::<K, V>(&mut graph));
            }
        }
        let name = named.or_generate(&mut graph, "KTABLE-FILTER-");
        drop(graph);
        let store_name = store.as_ref().map(|store| store.name.clone());
        let processor = Rc::new(TableFilter {
            parent: core.clone(),
            predicate,
            not,
            store: store_name.clone(),
            send_old_values: Cell::new(core.enable_sending_old_values(false)),
            versioned: Cell::new(false),
        });
        let at_build = processor.clone();
        let node = GraphNode {
            output_versioned: versioned,
            versioned_semantics: Some(processor.clone()),
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
