//! `count`, `aggregate` of a grouped stream, without windows (Kafka's `KStreamAggregate`).
//!
//! A record with a null key or value is dropped. The result's timestamp is the largest of the records that made it. An aggregator
//! that returns null deletes the row.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Aggregator, Data, Initializer, UserResult, aggregator, initializer},
    group_by::{Aggregation, KGroupedStream},
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    config::Semantics,
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::HasSerde,
};

/// Descriptor of an aggregation with a key-value store.
pub(crate) struct StreamAggregate {
    pub store: String,
    pub initializer: Initializer,
    pub aggregator: Aggregator,
    pub send_old_values: Cell<bool>,
}

impl TableProcessor for StreamAggregate {
    fn supplier(&self) -> ProcessorSupplier {
        let (store, initializer) = (self.store.clone(), self.initializer.clone());
        let (aggregator, send_old_values) = (self.aggregator.clone(), self.send_old_values.get());
        Arc::new(move || {
            Box::new(StreamAggregateProcessor {
                store_name: store.clone(),
                initializer: initializer.clone(),
                aggregator: aggregator.clone(),
                send_old_values,
                store: None,
            })
        })
    }

    fn view(&self) -> ValueGetterSupplier {
        ValueGetterSupplier::of_store(&self.store)
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        self.send_old_values.set(true);
        true
    }
}

struct StreamAggregateProcessor {
    store_name: String,
    initializer: Initializer,
    aggregator: Aggregator,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for StreamAggregateProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let store = TableStore::new(context, &self.store_name)?;
        let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
        self.store = Some((store, forwarder));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() || record.value.is_none() {
            let reason = if record.key.is_none() { DropReason::NullKey } else { DropReason::NullValue };
            context.drop_record(reason);
            return Ok(());
        }
        let (store, forwarder) = self.store.as_ref().expect("init runs before the first record");
        let key = record.key.as_ref();
        let (old, aggregate, timestamp) = match store.get(context, key)? {
            Some(row) => (Some(row.value.clone()), Some(row.value), record.timestamp.max(row.timestamp)),
            None => {
                let initial = (self.initializer)()?;
                // Kafka reports the initializer's value as the old value of a first update, which a regrouping then subtracts.
                let old = initial.clone().filter(|_| context.semantics() == Semantics::Kafka43);
                (old, initial, record.timestamp)
            }
        };
        let new = (self.aggregator)(key, record.value.as_ref(), aggregate.as_ref())?;
        let put = store.put(context, key, new.clone(), timestamp)?;
        let change = AnyRecord::change(record.key, new, old, timestamp, record.headers);
        forwarder.forward_put(context, put, change)
    }
}

impl<K: Data, V: Data> KGroupedStream<K, V> {
    /// Counts records per key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("clicks").group_by_key().count().to_stream().to("counts");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("counts", String::serde(), i64::serde());
    /// input.pipe_input(Some("ann".into()), Some("x".into()), 0)?;
    /// input.pipe_input(Some("ann".into()), Some("y".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("ann".into()), Some(1)), (Some("ann".into()), Some(2))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count(&self) -> KTable<K, i64> {
        self.counted(&Named::default(), Materialized::default())
    }

    /// As [`count`](Self::count), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let clicks = builder.stream::<String, String>("in").group_by_key();
    /// clicks.count_with(Named::default(), Materialized::named("clicks"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ann".into()), Some("x".into()), 0)?;
    /// let count = driver.key_value_store("clicks", |clicks| clicks.get(&"ann".to_owned()))?;
    /// assert_eq!(count.as_deref(), Some(&1_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count_with(&self, named: impl Into<Named>, materialized: Materialized<K, i64>) -> KTable<K, i64> {
        if materialized.store_name.is_none() {
            // Kafka takes a number here and does not use it; later names must agree.
            self.core.stream.graph.borrow_mut().new_store_name("KSTREAM-AGGREGATE-");
        }
        self.counted(&named.into(), materialized)
    }

    fn counted(&self, named: &Named, mut materialized: Materialized<K, i64>) -> KTable<K, i64> {
        materialized.value_serde.get_or_insert_with(i64::serde);
        let add_one =
            |_: Option<&K>, _: Option<&V>, count: Option<&i64>| Ok(count.map(|count| count.wrapping_add(1)));
        self.aggregated(initializer(|| Ok(Some(0_i64))), aggregator(add_one), named, materialized)
    }

    /// Folds the values of each key into a value of another type.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .stream::<String, String>("words")
    ///     .group_by_key()
    ///     .aggregate(|| Some(0), |_, word, sum: Option<&i64>| Some(sum? + word?.len() as i64))
    ///     .to_stream()
    ///     .to("letters");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("words", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("letters", String::serde(), i64::serde());
    /// input.pipe_input(Some("k".into()), Some("two".into()), 0)?;
    /// input.pipe_input(Some("k".into()), Some("words".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some(3)), (Some("k".into()), Some(8))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate<A: Data>(
        &self,
        init: impl Fn() -> Option<A> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> KTable<K, A> {
        self.aggregate_with(
            move || Ok(init()),
            move |key, value, aggregate| Ok(f(key, value, aggregate)),
            Named::default(),
            Materialized::default(),
        )
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said, with functions that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let numbers = builder.stream::<String, i64>("in").group_by_key();
    /// let least = |_: Option<&String>, n: Option<&i64>, least: Option<&i64>| Ok(n.min(least).copied());
    /// numbers.aggregate_with(|| Ok(Some(i64::MAX)), least, Named::default(), Materialized::named("least"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for n in [5, 3, 4] {
    ///     input.pipe_input(Some("k".into()), Some(n), 0)?;
    /// }
    /// let least = driver.key_value_store("least", |least| least.get(&"k".to_owned()))?;
    /// assert_eq!(least.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with<A: Data>(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<K, A> {
        self.aggregated(initializer(init), aggregator(f), &named.into(), materialized)
    }

    fn aggregated<A: Data>(
        &self,
        initializer: Initializer,
        aggregator: Aggregator,
        named: &Named,
        materialized: Materialized<K, A>,
    ) -> KTable<K, A> {
        let mut graph = self.core.stream.graph.borrow_mut();
        let mut materialized = MaterializedStore::new(materialized, &mut graph, "KSTREAM-AGGREGATE-");
        materialized.key_serde = materialized.key_serde.or(self.core.key_serde.clone());
        let name = named.or_generate(&mut graph, "KSTREAM-AGGREGATE-");
        let store = materialized.key_value_store::<K, A>(&mut graph);
        drop(graph);
        let processor = Rc::new(StreamAggregate {
            store: store.name.clone(),
            initializer,
            aggregator,
            send_old_values: Cell::new(false),
        });
        self.core.aggregate::<K, V, K, A>(Aggregation {
            name,
            processor,
            queryable_store: materialized.queryable_name(),
            key_serde: Some(store.key_serde.clone()),
            value_serde: Some(store.value_serde.clone()),
            store,
            window_grace_ms: None,
        })
    }
}
