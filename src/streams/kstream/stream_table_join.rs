//! Joins of a stream with a table or a global table (Kafka's `KStreamKTableJoin`, `KStreamGlobalKTableJoin`).
//!
//! Only the stream's records trigger results; the table is read as it is then, or, when it keeps versions, as it was at the record's
//! time. With a grace period records wait in a buffer until stream time has passed them by the grace, so that the table can catch
//! up; a record that is older than that already is joined at once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    functions::{Data, Joiner, UserResult, ValueMapper, aggregator, value_mapper},
    global_table::GlobalKTable,
    graph::GraphNode,
    join_buffer::{BufferedSerde, JoinBuffer},
    kstream::{KStream, StreamCore},
    named::Named,
    optimize,
    options::Joined,
    repartition::Repartition,
    table::KTable,
    value_getter::{ValueGetter, ValueGetterSupplier},
};
use crate::streams::{
    error::{Result, StreamsError},
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::{AnyRecord, Timestamp},
    serdes::{AnySerde, HasSerde},
    state::{StoreBuilder, StoreKind},
};

/// What a join with a table needs.
#[derive(Clone)]
pub(crate) struct StreamTableJoin {
    pub table: ValueGetterSupplier,
    /// Selects the table's key; `None` = the stream's key.
    pub mapper: Option<ValueMapper>,
    pub joiner: Joiner,
    pub left: bool,
    /// Name of the buffer's store, serde of the records' keys, and the grace.
    pub buffer: Option<(String, AnySerde, i64)>,
}

impl StreamTableJoin {
    /// The join's code.
    pub(super) fn supplier(self) -> ProcessorSupplier {
        Arc::new(move || {
            Box::new(StreamTableJoinProcessor {
                getter: (self.table.make)(),
                join: self.clone(),
                buffer: None,
            })
        })
    }
}

struct StreamTableJoinProcessor {
    getter: Box<dyn ValueGetter>,
    join: StreamTableJoin,
    buffer: Option<JoinBuffer>,
}

impl AnyProcessor for StreamTableJoinProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.getter.init(context)?;
        if let Some((store, key_serde, grace_ms)) = &self.join.buffer {
            self.buffer = Some(JoinBuffer::new(context, store, key_serde.clone(), *grace_ms)?);
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let has_key = match &self.join.mapper {
            None => record.key.is_some(),
            Some(mapper) => mapper(record.key.as_ref(), record.value.as_ref())?.is_some(),
        };
        // A left join keeps a record without a key: there is nothing to find, which is an answer.
        if record.value.is_none() || (!has_key && !self.join.left) {
            let reason = if has_key { DropReason::NullValue } else { DropReason::NullKey };
            context.drop_record(reason);
            return Ok(());
        }
        let Some(buffer) = self.buffer.take() else { return self.join(context, record) };
        let result = self.process_buffered(context, &buffer, record);
        self.buffer = Some(buffer);
        result
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        buffer.observe(context, watermark);
        let result = self.join_ready(context, &buffer);
        // What waits is younger than the grace.
        context.hold_watermark(watermark.saturating_sub(buffer.grace_ms()));
        self.buffer = Some(buffer);
        result
    }
}

impl StreamTableJoinProcessor {
    fn process_buffered(
        &mut self,
        context: NodeContext<'_>,
        buffer: &JoinBuffer,
        record: AnyRecord,
    ) -> Result<()> {
        if !buffer.put(context, &record)? {
            return self.join(context, record);
        }
        self.join_ready(context, buffer)
    }

    /// Joins what has waited long enough, each record in its own context.
    fn join_ready(&mut self, context: NodeContext<'_>, buffer: &JoinBuffer) -> Result<()> {
        let now = context.record_context();
        for (row, value) in buffer.ready(context)? {
            let (ready, record_context) = buffer.take(context, row, &value.value)?;
            context.task().set_record_context(record_context);
            let result = self.join(context, ready);
            context.task().set_record_context(now.clone());
            result?;
        }
        Ok(())
    }

    fn join(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let key = match &self.join.mapper {
            None => record.key.clone(),
            Some(mapper) => mapper(record.key.as_ref(), record.value.as_ref())?,
        };
        let row = match key {
            None => None,
            Some(key) if self.getter.is_versioned() => {
                self.getter.get_as_of(context, Some(&key), record.timestamp)?
            }
            Some(key) => self.getter.get(context, Some(&key))?,
        };
        if row.is_none() && !self.join.left {
            return Ok(());
        }
        let right = row.as_ref().map(|row| &row.value);
        let value = (self.join.joiner)(record.key.as_ref(), record.value.as_ref(), right)?;
        context.forward(AnyRecord::new(record.key, value, record.timestamp, record.headers))
    }
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Joins each record with the table's row of its key; records without one are left out.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let names = builder.table::<String, String>("names");
    /// let clicks = builder.stream::<String, String>("clicks");
    /// clicks.join_table(&names, |page, name| Some(format!("{} saw {}", name?, page?))).to("seen");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let table = driver.create_input_topic::<String, String>("names", String::serde(), String::serde());
    /// # let input = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("seen", String::serde(), String::serde());
    /// table.pipe_input(Some("7".into()), Some("Ann".into()), 0)?;
    /// input.pipe_input(Some("7".into()), Some("/home".into()), 1)?;
    /// input.pipe_input(Some("8".into()), Some("/home".into()), 2)?;
    /// assert_eq!(output.read_key_values()?, [(Some("7".into()), Some("Ann saw /home".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_table<VO: Data, VR: Data>(
        &self,
        table: &KTable<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KStream<K, VR> {
        self.join_table_with(table, move |_, left, right| Ok(f(left, right)), Joined::default())
    }

    /// As [`join_table`](Self::join_table), with options, and a function that sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Joined, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let names = builder.table::<String, String>("names");
    /// let clicks = builder.stream::<String, String>("clicks");
    /// let joiner = |id: Option<&String>, _: Option<&String>, name: Option<&String>| {
    ///     Ok(Some(format!("{} {}", id.unwrap(), name.map_or("?", String::as_str))))
    /// };
    /// clicks.join_table_with(&names, joiner, Joined::named("who")).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let clicks = driver.input_topic::<String, String>("clicks");
    /// # let output = driver.output_topic::<String, String>("out");
    /// names.pipe_input(Some("7".into()), Some("Ann".into()), 0)?;
    /// clicks.pipe_input(Some("7".into()), Some("/".into()), 1)?;
    /// clicks.pipe_input(Some("8".into()), Some("/".into()), 2)?;
    /// let who: Vec<_> = output.read_key_values()?.into_iter().map(|(_, who)| who.unwrap()).collect();
    /// assert_eq!(who, ["7 Ann"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_table_with<VO: Data, VR: Data>(
        &self,
        table: &KTable<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        joined: Joined<K, V, VO>,
    ) -> KStream<K, VR> {
        self.table_joined(table, aggregator(f), joined, false)
    }

    /// Joins each record with the table's row of its key, or with none.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let names = builder.table::<String, String>("names");
    /// let clicks = builder.stream::<String, String>("clicks");
    /// clicks.left_join_table(&names, |_, name| Some(name.cloned().unwrap_or("a guest".into()))).to("who");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("who", String::serde(), String::serde());
    /// input.pipe_input(Some("7".into()), Some("/home".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("7".into()), Some("a guest".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_table<VO: Data, VR: Data>(
        &self,
        table: &KTable<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KStream<K, VR> {
        self.left_join_table_with(table, move |_, left, right| Ok(f(left, right)), Joined::default())
    }

    /// As [`left_join_table`](Self::left_join_table), with options, and a function that sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Joined, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let names = builder.table::<String, String>("names");
    /// let clicks = builder.stream::<String, String>("clicks");
    /// let joiner = |id: Option<&String>, _: Option<&String>, name: Option<&String>| {
    ///     Ok(Some(format!("{} {}", id.unwrap(), name.map_or("?", String::as_str))))
    /// };
    /// clicks.left_join_table_with(&names, joiner, Joined::named("who")).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let clicks = driver.input_topic::<String, String>("clicks");
    /// # let output = driver.output_topic::<String, String>("out");
    /// names.pipe_input(Some("7".into()), Some("Ann".into()), 0)?;
    /// clicks.pipe_input(Some("7".into()), Some("/".into()), 1)?;
    /// clicks.pipe_input(Some("8".into()), Some("/".into()), 2)?;
    /// let who: Vec<_> = output.read_key_values()?.into_iter().map(|(_, who)| who.unwrap()).collect();
    /// assert_eq!(who, ["7 Ann", "8 ?"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_table_with<VO: Data, VR: Data>(
        &self,
        table: &KTable<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        joined: Joined<K, V, VO>,
    ) -> KStream<K, VR> {
        self.table_joined(table, aggregator(f), joined, true)
    }

    fn table_joined<VO: Data, VR: Data>(
        &self,
        table: &KTable<K, VO>,
        joiner: Joiner,
        joined: Joined<K, V, VO>,
        left: bool,
    ) -> KStream<K, VR> {
        let mut stream = self.core.clone();
        if stream.repartition_required {
            let topic = joined.name.name().unwrap_or(&self.core.name).to_owned();
            stream =
                self.repartitioned_for_join(&topic, joined.key_serde.clone(), joined.value_serde.clone());
        }
        let sources = stream.copartitioned_with(&table.core.sources);
        let key_serde = joined.key_serde.clone().or(stream.key_serde.clone());
        let mut graph = stream.graph.borrow_mut();
        let prefix = if left { "KSTREAM-LEFTJOIN-" } else { "KSTREAM-JOIN-" };
        let name = joined.name.or_generate(&mut graph, prefix);
        let mut store = None;
        if let Some(grace) = joined.grace {
            let table_node = &graph.nodes[table.core.node];
            if table_node.output_versioned == Some(false) {
                let reason = format!(
                    "{name} joins {} with a grace period, but the table keeps no versions: materialise it versioned",
                    table_node.name
                );
                graph.fail(StreamsError::Topology(reason));
            }
            let place = format!("the buffer of {name}");
            let key = graph.serde::<K>(key_serde.clone(), &place);
            let value = graph.serde::<V>(joined.value_serde.or(stream.value_serde.clone()), &place);
            store = Some((buffer_store(&name, value), key, grace));
        }
        drop(graph);
        let getter = table.core.value_getter();
        let table_stores = getter.store_names.clone();
        let join = StreamTableJoin {
            table: getter,
            mapper: None,
            joiner,
            left,
            buffer: store
                .as_ref()
                .map(|(store, key, grace)| (store.name.clone(), key.clone(), millis(*grace))),
        };
        let supplier = join.supplier();
        let node = {
            let node = name.clone();
            GraphNode::other(name.clone(), move |topology, parents| {
                topology.add_processor(&node, supplier.clone(), parents)?;
                for store in &table_stores {
                    topology.connect_processor_and_state_store(&node, store)?;
                }
                let Some((store, _, grace)) = &store else { return Ok(()) };
                for table in &table_stores {
                    let kind = topology.store_builder(table).map(|builder| builder.kind.clone());
                    optimize::check_grace(&node, table, kind, *grace)?;
                }
                topology.add_state_store(store.clone(), &[&node]).map(drop)
            })
        };
        let node = GraphNode { null_key_relaxed_join: left, ..node };
        let node = stream.graph.borrow_mut().add(stream.node, node);
        KStream::new(StreamCore {
            name,
            key_serde,
            value_serde: None,
            sources,
            repartition_required: false,
            node,
            graph: stream.graph,
        })
    }

    /// The stream behind a hop made for a join (Kafka's `repartitionForJoin`). Joins that give no name share one hop.
    pub(crate) fn repartitioned_for_join(
        &self,
        topic: &str,
        key_serde: Option<AnySerde>,
        value_serde: Option<AnySerde>,
    ) -> StreamCore {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let place = format!("repartition topic {topic}");
        let key_serde = graph.serde::<K>(key_serde.or(core.key_serde.clone()), &place);
        let value_serde = graph.serde::<V>(value_serde.or(core.value_serde.clone()), &place);
        let hop = Repartition::named(&mut graph, topic, key_serde.clone(), value_serde.clone(), None, true);
        drop(graph);
        let source = hop.source_name.clone();
        let node = match self.join_repartition.get() {
            Some(node) if core.name == topic => node,
            _ => core.repartitioned(hop).node,
        };
        self.join_repartition.set(Some(node));
        StreamCore {
            sources: BTreeSet::from([source.clone()]),
            name: source,
            key_serde: Some(key_serde),
            value_serde: Some(value_serde),
            repartition_required: false,
            node,
            graph: core.graph.clone(),
        }
    }

    /// Joins each record with the row of a global table whose key `select` names; records without one are left out.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let cities = builder.global_table::<String, String>("cities");
    /// let orders = builder.stream::<String, String>("orders");
    /// orders
    ///     .join_global(&cities, |_, city| city.cloned(), |_, name| name.cloned(), Named::default())
    ///     .to("city-names");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let table = driver.create_input_topic::<String, String>("cities", String::serde(), String::serde());
    /// # let input = driver.create_input_topic::<String, String>("orders", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("city-names", String::serde(), String::serde());
    /// table.pipe_input(Some("UL".into()), Some("Ulm".into()), 0)?;
    /// input.pipe_input(Some("1".into()), Some("UL".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some("Ulm".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_global<KG: Data, VG: Data, VR: Data>(
        &self,
        table: &GlobalKTable<KG, VG>,
        select: impl Fn(Option<&K>, Option<&V>) -> Option<KG> + Send + Sync + 'static,
        f: impl Fn(Option<&V>, Option<&VG>) -> Option<VR> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR> {
        self.try_join_global(
            table,
            move |key, value| Ok(select(key, value)),
            move |_, left, right| Ok(f(left, right)),
            named,
        )
    }

    /// As [`join_global`](Self::join_global), with functions that may fail; the joiner sees the stream's key.
    pub fn try_join_global<KG: Data, VG: Data, VR: Data>(
        &self,
        table: &GlobalKTable<KG, VG>,
        select: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KG>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VG>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR> {
        self.global_joined(table.value_getter(), value_mapper(select), aggregator(f), &named.into(), false)
    }

    /// Joins each record with the row of a global table whose key `select` names, or with none.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let cities = builder.global_table::<String, String>("cities");
    /// let orders = builder.stream::<String, String>("orders");
    /// orders
    ///     .left_join_global(&cities, |_, city| city.cloned(), |_, name| Some(name.is_some()), Named::default())
    ///     .to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let cities = driver.input_topic::<String, String>("cities");
    /// # let orders = driver.input_topic::<String, String>("orders");
    /// # let output = driver.output_topic::<String, bool>("out");
    /// cities.pipe_input(Some("UL".into()), Some("Ulm".into()), 0)?;
    /// orders.pipe_input(Some("1".into()), Some("UL".into()), 1)?;
    /// orders.pipe_input(Some("2".into()), Some("XX".into()), 2)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some(true)), (Some("2".into()), Some(false))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_global<KG: Data, VG: Data, VR: Data>(
        &self,
        table: &GlobalKTable<KG, VG>,
        select: impl Fn(Option<&K>, Option<&V>) -> Option<KG> + Send + Sync + 'static,
        f: impl Fn(Option<&V>, Option<&VG>) -> Option<VR> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR> {
        self.try_left_join_global(
            table,
            move |key, value| Ok(select(key, value)),
            move |_, left, right| Ok(f(left, right)),
            named,
        )
    }

    /// As [`left_join_global`](Self::left_join_global), with functions that may fail; the joiner sees the stream's key.
    pub fn try_left_join_global<KG: Data, VG: Data, VR: Data>(
        &self,
        table: &GlobalKTable<KG, VG>,
        select: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KG>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VG>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR> {
        self.global_joined(table.value_getter(), value_mapper(select), aggregator(f), &named.into(), true)
    }

    fn global_joined<VR: Data>(
        &self,
        table: ValueGetterSupplier,
        mapper: ValueMapper,
        joiner: Joiner,
        named: &Named,
        left: bool,
    ) -> KStream<K, VR> {
        let join = StreamTableJoin { table, mapper: Some(mapper), joiner, left, buffer: None };
        // Both kinds take their name from the left join's prefix, as in Kafka.
        let core = self.core.processor(named, "KSTREAM-LEFTJOIN-", join.supplier());
        core.graph.borrow_mut().nodes[core.node].null_key_relaxed_join = left;
        KStream::new(StreamCore { value_serde: None, ..core })
    }
}

/// The store of a join's buffer: rows by (time, key, number).
fn buffer_store(join: &str, value: AnySerde) -> StoreBuilder {
    let kind = StoreKind::KeyValue { timestamped: false };
    let name = format!("{join}-Buffer");
    // Its keys are not the records': to the state file they are only bytes.
    StoreBuilder::new(name, kind, Vec::<u8>::serde(), BufferedSerde::of(value))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
