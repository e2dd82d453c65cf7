//! `reduce` of a grouped stream, without windows (Kafka's `KStreamReduce`): the first value is the first aggregate.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Data, Reducer, UserResult, reducer},
    group_by::{Aggregation, KGroupedStream},
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct StreamReduce {
    store: String,
    reducer: Reducer,
    send_old_values: Cell<bool>,
}

impl TableProcessor for StreamReduce {
    fn supplier(&self) -> ProcessorSupplier {
        let (store, reducer) = (self.store.clone(), self.reducer.clone());
        let send_old_values = self.send_old_values.get();
        Arc::new(move || {
            Box::new(StreamReduceProcessor {
                store_name: store.clone(),
                reducer: reducer.clone(),
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

struct StreamReduceProcessor {
    store_name: String,
    reducer: Reducer,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for StreamReduceProcessor {
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
        let (new, old, timestamp) = match store.get(context, key)? {
            Some(row) => {
                let new = (self.reducer)(Some(&row.value), record.value.as_ref())?;
                (new, Some(row.value), record.timestamp.max(row.timestamp))
            }
            None => (record.value.clone(), None, record.timestamp),
        };
        let put = store.put(context, key, new.clone(), timestamp)?;
        let change = AnyRecord::change(record.key, new, old, timestamp, record.headers);
        forwarder.forward_put(context, put, change)
    }
}

impl<K: Data, V: Data> KGroupedStream<K, V> {
    /// Combines the values of each key, two at a time: `f(aggregate, value)`.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("bids").group_by_key().reduce(|a, b| a.max(b).copied()).to_stream().to("highest");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("bids", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("highest", String::serde(), i64::serde());
    /// input.pipe_input(Some("lot".into()), Some(7), 0)?;
    /// input.pipe_input(Some("lot".into()), Some(5), 1)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("lot".into()), Some(7))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> Option<V> + Send + Sync + 'static,
    ) -> KTable<K, V> {
        self.reduce_with(move |a, b| Ok(f(a, b)), Named::default(), Materialized::default())
    }

    /// As [`reduce`](Self::reduce), named and stored as said, with a function that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let bids = builder.stream::<String, i64>("in").group_by_key();
    /// bids.reduce_with(|a, b| Ok(a.max(b).copied()), Named::default(), Materialized::named("highest"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for bid in [5, 7, 6] {
    ///     input.pipe_input(Some("lot".into()), Some(bid), 0)?;
    /// }
    /// let highest = driver.key_value_store("highest", |bids| bids.get(&"lot".to_owned()))?;
    /// assert_eq!(highest.as_deref(), Some(&7_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce_with(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, V>,
    ) -> KTable<K, V> {
        let mut graph = self.core.stream.graph.borrow_mut();
        let mut materialized = MaterializedStore::new(materialized, &mut graph, "KSTREAM-REDUCE-");
        materialized.key_serde = materialized.key_serde.or(self.core.key_serde.clone());
        materialized.value_serde = materialized.value_serde.or(self.core.value_serde.clone());
        let name = named.into().or_generate(&mut graph, "KSTREAM-REDUCE-");
        let store = materialized.key_value_store::<K, V>(&mut graph);
        drop(graph);
        let processor = Rc::new(StreamReduce {
            store: store.name.clone(),
            reducer: reducer(f),
            send_old_values: Cell::new(false),
        });
        self.core.aggregate::<K, V, K, V>(Aggregation {
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
