//! `count`, `aggregate`, `reduce` of a grouped table (Kafka's `KTableAggregate`, `KTableReduce`): the old value is subtracted, the
//! new one added.
//!
//! The old value is subtracted only from a group that exists. A result of null deletes the group; a count may stand at 0.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Aggregator, Data, Initializer, Reducer, UserResult, aggregator, initializer, reducer},
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableProcessor},
    table_group_by::KGroupedTable,
    table_store::{TableStore, TupleForwarder},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::{ProcessingError, Result},
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::HasSerde,
};

/// How a group changes.
#[derive(Clone)]
enum Fold {
    Aggregate { initializer: Initializer, add: Aggregator, subtract: Aggregator },
    Reduce { add: Reducer, subtract: Reducer },
}

struct TableAggregate {
    store: String,
    fold: Fold,
    send_old_values: Cell<bool>,
}

impl TableProcessor for TableAggregate {
    fn supplier(&self) -> ProcessorSupplier {
        let (store, fold) = (self.store.clone(), self.fold.clone());
        let send_old_values = self.send_old_values.get();
        Arc::new(move || {
            Box::new(TableAggregateProcessor {
                store_name: store.clone(),
                fold: fold.clone(),
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

struct TableAggregateProcessor {
    store_name: String,
    fold: Fold,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for TableAggregateProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let store = TableStore::new(context, &self.store_name)?;
        let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
        self.store = Some((store, forwarder));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let key = record.key.as_ref();
        if key.is_none() {
            let message = format!(
                "Record key for KTable aggregate operator with state {} should not be null.",
                self.store_name
            );
            return Err(ProcessingError::new("StreamsException", message).into());
        }
        let (store, forwarder) = self.store.as_ref().expect("init runs before the first record");
        let row = store.get(context, key)?;
        let mut timestamp = record.timestamp;
        let old = row.as_ref().map(|row| row.value.clone());
        // Only a group that was there before lends its timestamp, and only when it is touched.
        let stored_timestamp = row.map_or(record.timestamp, |row| row.timestamp);
        let between = match (&record.old, &old) {
            (Some(removed), Some(aggregate)) => {
                timestamp = timestamp.max(stored_timestamp);
                match &self.fold {
                    Fold::Aggregate { subtract, .. } => subtract(key, Some(removed), Some(aggregate))?,
                    Fold::Reduce { subtract, .. } => subtract(Some(aggregate), Some(removed))?,
                }
            }
            _ => old.clone(),
        };
        let new = match &record.value {
            None => between,
            Some(added) => match &self.fold {
                Fold::Aggregate { initializer, add, .. } => {
                    timestamp = timestamp.max(stored_timestamp);
                    let between = match between {
                        Some(aggregate) => Some(aggregate),
                        None => initializer()?,
                    };
                    add(key, Some(added), between.as_ref())?
                }
                Fold::Reduce { add, .. } => match between {
                    None => Some(added.clone()),
                    Some(aggregate) => {
                        timestamp = timestamp.max(stored_timestamp);
                        add(Some(&aggregate), Some(added))?
                    }
                },
            },
        };
        let put = store.put(context, key, new.clone(), timestamp)?;
        let change = AnyRecord::change(record.key, new, old, timestamp, record.headers);
        forwarder.forward_put(context, put, change)
    }
}

impl<K: Data, V: Data> KGroupedTable<K, V> {
    /// Counts the rows of each group. See [`KTable::group_by`] for an example.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, i64>("in");
    /// let by_sign = users.group_by(|_, n| (n.map(|n| if *n < 0 { "minus" } else { "plus" }.to_owned()), n.copied()));
    /// by_sign.count().to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(5), 0)?;
    /// input.pipe_input(Some("a".into()), Some(-5), 1)?;
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(sign, n)| (sign.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("plus".into(), 1), ("plus".into(), 0), ("minus".into(), 1)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count(&self) -> KTable<K, i64> {
        self.count_with(Named::default(), Materialized::default())
    }

    /// As [`count`](Self::count), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, i64>("in");
    /// let by_sign = users.group_by(|_, n| (n.map(|n| if *n < 0 { "minus" } else { "plus" }.to_owned()), n.copied()));
    /// by_sign.count_with(Named::default(), Materialized::named("signs"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(5), 0)?;
    /// let plus = driver.key_value_store("signs", |signs| signs.get(&"plus".to_owned()))?;
    /// assert_eq!(plus.as_deref(), Some(&1_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count_with(
        &self,
        named: impl Into<Named>,
        mut materialized: Materialized<K, i64>,
    ) -> KTable<K, i64> {
        materialized.value_serde.get_or_insert_with(i64::serde);
        let by = |step: i64| {
            aggregator(move |_: Option<&K>, _: Option<&V>, count: Option<&i64>| {
                Ok(count.map(|count| count.wrapping_add(step)))
            })
        };
        let fold =
            Fold::Aggregate { initializer: initializer(|| Ok(Some(0_i64))), add: by(1), subtract: by(-1) };
        self.folded(fold, &named.into(), "KTABLE-AGGREGATE-", materialized)
    }

    /// Folds the rows of each group: `add` a row that joins, `subtract` one that leaves.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .table::<String, i64>("stock")
    ///     .group_by(|_, n| (Some("all".to_owned()), n.copied()))
    ///     .aggregate(|| Some(0), |_, n, sum: Option<&i64>| Some(sum? + n?), |_, n, sum| Some(sum? - n?))
    ///     .to_stream()
    ///     .to("total");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("stock", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("total", String::serde(), i64::serde());
    /// input.pipe_input(Some("pen".into()), Some(3), 0)?;
    /// input.pipe_input(Some("ink".into()), Some(4), 1)?;
    /// input.pipe_input(Some("pen".into()), Some(1), 2)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("all".into()), Some(5))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate<A: Data>(
        &self,
        init: impl Fn() -> Option<A> + Send + Sync + 'static,
        add: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
        subtract: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> KTable<K, A> {
        self.aggregate_with(
            move || Ok(init()),
            move |key, value, aggregate| Ok(add(key, value, aggregate)),
            move |key, value, aggregate| Ok(subtract(key, value, aggregate)),
            Named::default(),
            Materialized::default(),
        )
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said, with functions that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, i64>("in");
    /// let by_sign = users.group_by(|_, n| (n.map(|n| if *n < 0 { "minus" } else { "plus" }.to_owned()), n.copied()));
    /// let by = |n: Option<&i64>, sum: Option<&i64>, sign: i64| Ok(n.zip(sum).map(|(n, sum)| sum + sign * n));
    /// by_sign.aggregate_with(
    ///     || Ok(Some(0)),
    ///     move |_, n, sum| by(n, sum, 1),
    ///     move |_, n, sum| by(n, sum, -1),
    ///     Named::default(),
    ///     Materialized::named("sums"),
    /// );
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(5), 0)?;
    /// input.pipe_input(Some("a".into()), Some(3), 1)?;
    /// let plus = driver.key_value_store("sums", |sums| sums.get(&"plus".to_owned()))?;
    /// assert_eq!(plus.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with<A: Data>(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        add: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        subtract: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<K, A> {
        let fold = Fold::Aggregate {
            initializer: initializer(init),
            add: aggregator(add),
            subtract: aggregator(subtract),
        };
        self.folded(fold, &named.into(), "KTABLE-AGGREGATE-", materialized)
    }

    /// Combines the rows of each group, two at a time: `add(aggregate, row)`, `subtract(aggregate, row)`.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, i64>("in");
    /// let by_sign = users.group_by(|_, n| (n.map(|n| if *n < 0 { "minus" } else { "plus" }.to_owned()), n.copied()));
    /// by_sign.reduce(|a, b| Some(a? + b?), |a, b| Some(a? - b?)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(5), 0)?;
    /// input.pipe_input(Some("b".into()), Some(3), 1)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("plus".into()), Some(8))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce(
        &self,
        add: impl Fn(Option<&V>, Option<&V>) -> Option<V> + Send + Sync + 'static,
        subtract: impl Fn(Option<&V>, Option<&V>) -> Option<V> + Send + Sync + 'static,
    ) -> KTable<K, V> {
        self.reduce_with(
            move |a, b| Ok(add(a, b)),
            move |a, b| Ok(subtract(a, b)),
            Named::default(),
            Materialized::default(),
        )
    }

    /// As [`reduce`](Self::reduce), named and stored as said, with functions that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, i64>("in");
    /// let by_sign = users.group_by(|_, n| (n.map(|n| if *n < 0 { "minus" } else { "plus" }.to_owned()), n.copied()));
    /// let by = |a: Option<&i64>, b: Option<&i64>, sign: i64| Ok(a.zip(b).map(|(a, b)| a + sign * b));
    /// let stored = Materialized::named("sums");
    /// by_sign.reduce_with(move |a, b| by(a, b, 1), move |a, b| by(a, b, -1), Named::default(), stored);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(5), 0)?;
    /// let plus = driver.key_value_store("sums", |sums| sums.get(&"plus".to_owned()))?;
    /// assert_eq!(plus.as_deref(), Some(&5_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce_with(
        &self,
        add: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
        subtract: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
        named: impl Into<Named>,
        mut materialized: Materialized<K, V>,
    ) -> KTable<K, V> {
        materialized.value_serde = materialized.value_serde.or(self.core.value_serde.clone());
        let fold = Fold::Reduce { add: reducer(add), subtract: reducer(subtract) };
        self.folded(fold, &named.into(), "KTABLE-REDUCE-", materialized)
    }

    fn folded<A: Data>(
        &self,
        fold: Fold,
        named: &Named,
        prefix: &str,
        materialized: Materialized<K, A>,
    ) -> KTable<K, A> {
        let mut graph = self.core.graph.borrow_mut();
        // Kafka names the store of a reduce after the aggregate, too.
        let mut materialized = MaterializedStore::new(materialized, &mut graph, "KTABLE-AGGREGATE-");
        materialized.key_serde = materialized.key_serde.or(self.core.key_serde.clone());
        let store = materialized.key_value_store::<K, A>(&mut graph);
        drop(graph);
        let processor =
            Rc::new(TableAggregate { store: store.name.clone(), fold, send_old_values: Cell::new(false) });
        self.core.aggregate::<K, V, A>(named, prefix, &materialized, store, processor)
    }
}
