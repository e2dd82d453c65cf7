//! `transform_values` on tables (Kafka's `KTableTransformValues`): gives each row another value with code that has state.
//!
//! Unlike `map_values` the transformer sees deletions, too. A table without a store of its own is transformed again when it is read, by
//! another instance; so a transformer must answer from its key, value and stores alone.

use std::{cell::Cell, marker::PhantomData, rc::Rc, sync::Arc};

use super::{
    functions::{Data, typed},
    graph::GraphNode,
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::{ValueGetter, ValueGetterSupplier},
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessingContext, ProcessorSupplier},
    record::{AnyRecord, AnyValue, Headers, RecordContext, Timestamp},
    state::ValueAndTimestamp,
};

/// Code that gives rows another value (Kafka's `ValueTransformerWithKey`); one instance per task and reader.
pub trait ValueTransformer<K, V, VR>: Send {
    /// Once before the first row.
    fn init(&mut self, context: &ProcessingContext<'_>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// The new value of a row; a null value is a deletion.
    fn transform(
        &mut self,
        context: &ProcessingContext<'_>,
        key: Option<&K>,
        value: Option<&V>,
    ) -> Result<Option<VR>>;
}

/// A transformer, types erased.
trait AnyTransformer: Send {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()>;
    fn transform(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        value: Option<&AnyValue>,
    ) -> Result<Option<AnyValue>>;
}

struct Erase<T, K, V, VR>(T, PhantomData<fn(K, V, VR)>);

impl<T: ValueTransformer<K, V, VR>, K: Data, V: Data, VR: Data> AnyTransformer for Erase<T, K, V, VR> {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.0.init(&ProcessingContext::new(context))
    }

    fn transform(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        value: Option<&AnyValue>,
    ) -> Result<Option<AnyValue>> {
        let new = self.0.transform(&ProcessingContext::new(context), typed(key)?, typed(value)?)?;
        Ok(new.map(|new| Arc::new(new) as AnyValue))
    }
}

type TransformerSupplier = Arc<dyn Fn() -> Box<dyn AnyTransformer> + Send + Sync>;

struct TableTransformValues {
    parent: TableCore,
    supplier: TransformerSupplier,
    store: Option<String>,
    send_old_values: Cell<bool>,
}

impl TableProcessor for TableTransformValues {
    fn supplier(&self) -> ProcessorSupplier {
        let (supplier, store) = (self.supplier.clone(), self.store.clone());
        let send_old_values = self.send_old_values.get();
        Arc::new(move || {
            Box::new(TransformValuesProcessor {
                transformer: supplier(),
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
                let (parent, supplier) = (self.parent.value_getter(), self.supplier.clone());
                let make = parent.make;
                ValueGetterSupplier {
                    make: Arc::new(move || {
                        Box::new(TransformGetter { parent: make(), transformer: supplier() })
                    }),
                    store_names: parent.store_names,
                }
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

struct TransformValuesProcessor {
    transformer: Box<dyn AnyTransformer>,
    store_name: Option<String>,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for TransformValuesProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.transformer.init(context)?;
        if let Some(name) = &self.store_name {
            let store = TableStore::new(context, name)?;
            let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
            self.store = Some((store, forwarder));
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let key = record.key.as_ref();
        let value = self.transformer.transform(context, key, record.value.as_ref())?;
        match &self.store {
            Some((store, forwarder)) => {
                let old = match self.send_old_values {
                    true => store.get(context, key)?.map(|row| row.value),
                    false => None,
                };
                let put = store.put(context, key, value.clone(), record.timestamp)?;
                forwarder.forward_put(context, put, AnyRecord { value, old, ..record })
            }
            None => {
                let old = match self.send_old_values {
                    true => self.transformer.transform(context, key, record.old.as_ref())?,
                    false => None,
                };
                context.forward(AnyRecord { value, old, ..record })
            }
        }
    }
}

/// Reads the table through its parent, transforming what it finds.
struct TransformGetter {
    parent: Box<dyn ValueGetter>,
    transformer: Box<dyn AnyTransformer>,
}

impl TransformGetter {
    fn transform(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        row: Option<ValueAndTimestamp>,
    ) -> Result<Option<ValueAndTimestamp>> {
        let timestamp = row.as_ref().map_or(-1, |row| row.timestamp);
        // Where the row came from is not known any more: only its timestamp is.
        let before = context.record_context();
        context.task().set_record_context(RecordContext {
            topic: None,
            partition: -1,
            offset: -1,
            timestamp,
            headers: Headers::EMPTY,
        });
        let value = self.transformer.transform(context, key, row.as_ref().map(|row| &row.value));
        context.task().set_record_context(before);
        Ok(value?.map(|value| ValueAndTimestamp { value, timestamp }))
    }
}

impl ValueGetter for TransformGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.parent.init(context)?;
        self.transformer.init(context)
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        let row = self.parent.get(context, key)?;
        self.transform(context, key, row)
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        as_of: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        let row = self.parent.get_as_of(context, key, as_of)?;
        self.transform(context, key, row)
    }

    fn is_versioned(&self) -> bool {
        self.parent.is_versioned()
    }
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Gives each row another value, with a transformer made anew for each task that may use the stores named.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// use sluice::streams::{error::Result, kstream::ValueTransformer, processor::ProcessingContext};
    ///
    /// struct Stamp;
    /// impl ValueTransformer<String, String, String> for Stamp {
    ///     fn transform(
    ///         &mut self,
    ///         context: &ProcessingContext<'_>,
    ///         _: Option<&String>,
    ///         value: Option<&String>,
    ///     ) -> Result<Option<String>> {
    ///         Ok(value.map(|value| format!("{value}@{}", context.record_metadata().timestamp)))
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// let table = builder.table::<String, String>("in");
    /// table.transform_values(|| Stamp, Named::default(), None, &[]).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("out", String::serde(), String::serde());
    /// input.pipe_input(Some("a".into()), Some("x".into()), 7)?;
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some("x@7".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn transform_values<VR: Data, T: ValueTransformer<K, V, VR> + 'static>(
        &self,
        supplier: impl Fn() -> T + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, VR>>,
        stores: &[&str],
    ) -> KTable<K, VR> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let (mut key_serde, mut value_serde) = (core.key_serde.clone(), None);
        let mut store = None;
        let mut versioned = None;
        if let Some(options) = materialized {
            versioned = Some(options.versioned.is_some());
            key_serde = options.key_serde.clone().or(key_serde);
            value_serde = options.value_serde.clone();
            // Without a name nothing is stored, and unlike elsewhere no number is taken.
            if options.store_name.is_some() {
                let mut options = MaterializedStore::new(options, &mut graph, "KTABLE-TRANSFORMVALUES-");
                options.key_serde = key_serde.clone();
                store = Some(options.key_value_store::<K, VR>(&mut graph));
            }
        }
        let name = named.into().or_generate(&mut graph, "KTABLE-TRANSFORMVALUES-");
        drop(graph);
        let store_name = store.as_ref().map(|store| store.name.clone());
        let processor = Rc::new(TableTransformValues {
            parent: core.clone(),
            supplier: Arc::new(move || Box::new(Erase(supplier(), PhantomData))),
            store: store_name.clone(),
            send_old_values: Cell::new(false),
        });
        let at_build = processor.clone();
        let stores = stores.iter().map(|store| (*store).to_owned()).collect();
        let node = GraphNode {
            output_versioned: versioned,
            ..GraphNode::stateful(&name, move || at_build.supplier(), stores, store)
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
