//! [`TopologyTestDriver`] and [`DriverOptions`]: the face of the driver; what happens behind it is in [`Harness`].

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{
    harness::Harness,
    partitions::Partitions,
    topics::{TestInputTopic, TestOutputTopic},
};
use crate::streams::{
    config::StreamsConfig,
    error::Result,
    kstream::Data,
    processor::{
        DropReason, ErrorHandlers, KeyValueStore, NodeContext, SessionStore, StoreId, VersionedKeyValueStore,
        WindowStore,
    },
    record::{ProducerRecord, Timestamp},
    runtime::TaskId,
    serdes::{AnySerde, HasSerde},
    state::Store,
    topology::{TimestampExtractor, Topology},
};

/// Drives a topology record by record. Cloning gives another handle to the same driver.
///
/// With [`DriverOptions::partitions`] the tasks of a topology are apart, as they are in production:
///
/// ```
/// use sluice::streams::{
///     kstream::{Materialized, Named, StreamsBuilder},
///     serdes::HasSerde,
///     test_utils::{DriverOptions, Partitions, TopologyTestDriver},
/// };
///
/// let builder = StreamsBuilder::new();
/// builder
///     .stream::<String, String>("orders")
///     .group_by(|_, city| city.cloned())
///     .count_with(Named::default(), Materialized::named("by-city"))
///     .to_stream()
///     .to("orders-by-city");
///
/// let options = DriverOptions { partitions: Some(Partitions::each(3)), ..DriverOptions::default() };
/// let driver = TopologyTestDriver::with_options(builder.build("app")?, options)?;
/// let orders = driver.create_input_topic::<String, String>("orders", String::serde(), String::serde());
/// let counts = driver.create_output_topic::<String, i64>("orders-by-city", String::serde(), i64::serde());
///
/// // Two keys, two upstream tasks; the city decides which downstream task counts.
/// orders.pipe_input_to(0, Some("a".into()), Some("Oslo".into()), 1)?;
/// orders.pipe_input_to(2, Some("b".into()), Some("Oslo".into()), 2)?;
/// assert_eq!(
///     counts.read_key_values()?,
///     [(Some("Oslo".into()), Some(1)), (Some("Oslo".into()), Some(2))],
/// );
/// let home = driver.partition_of("app-by-city-repartition", b"Oslo");
/// let rows = |partition| driver.key_value_store::<String, i64, _>(("by-city", partition), |rows| rows.all());
/// assert_eq!(rows(home)?.len(), 1);
/// assert_eq!(rows((home + 1) % 3)?.len(), 0);
/// # Ok::<(), sluice::streams::error::StreamsError>(())
/// ```
#[derive(Clone)]
pub struct TopologyTestDriver(Rc<RefCell<Harness>>);

/// What a driver is made with, beside the topology.
#[derive(Clone)]
pub struct DriverOptions {
    /// Settings; `emit_interval_ms` is 0 here by default, as in Kafka's driver.
    pub config: StreamsConfig,
    /// Error handlers.
    pub handlers: ErrorHandlers,
    /// Default timestamp extractor; `None` = FailOnInvalidTimestamp.
    pub timestamp_extractor: Option<TimestampExtractor>,
    /// Wall clock at the start, milliseconds.
    pub wall_clock_ms: Timestamp,
    /// Several partitions per topic and one task per sub-topology and partition, which Kafka's driver does not have.
    /// `None` is Kafka's harness: one partition, one task `0_0` for everything.
    pub partitions: Option<Partitions>,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            config: StreamsConfig { emit_interval_ms: 0, ..StreamsConfig::default() },
            handlers: ErrorHandlers::default(),
            timestamp_extractor: None,
            wall_clock_ms: 0,
            partitions: None,
        }
    }
}

/// A store, or the part of it that belongs to one partition: `"counts"`, or `("counts", 1)`.
#[derive(Clone, Copy, Debug)]
pub struct StorePart<'a> {
    name: &'a str,
    partition: Option<i32>,
}

impl<'a> From<&'a str> for StorePart<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, partition: None }
    }
}

impl<'a> From<(&'a str, i32)> for StorePart<'a> {
    fn from((name, partition): (&'a str, i32)) -> Self {
        Self { name, partition: Some(partition) }
    }
}

impl TopologyTestDriver {
    /// A driver with default options.
    pub fn new(topology: Topology) -> Result<Self> {
        Self::with_options(topology, DriverOptions::default())
    }

    /// A driver with the given settings.
    ///
    /// # Errors
    /// What would stop the application from starting: co-partitioned topics of different counts, a processor that fails to initialise.
    pub fn with_options(topology: Topology, options: DriverOptions) -> Result<Self> {
        Ok(Self(Rc::new(RefCell::new(Harness::new(topology, options)?))))
    }

    /// A typed handle that writes to an input topic, with the serdes of its types.
    pub fn input_topic<K: HasSerde, V: HasSerde>(&self, topic: &str) -> TestInputTopic<K, V> {
        self.create_input_topic(topic, K::serde(), V::serde())
    }

    /// A typed handle that reads what was written to a topic (output, repartition or changelog), with the serdes of its types.
    pub fn output_topic<K: HasSerde, V: HasSerde>(&self, topic: &str) -> TestOutputTopic<K, V> {
        self.create_output_topic(topic, K::serde(), V::serde())
    }

    /// A typed handle that writes to an input topic.
    pub fn create_input_topic<K, V>(
        &self,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> TestInputTopic<K, V> {
        TestInputTopic::new(self.clone(), topic, key_serde, value_serde)
    }

    /// A typed handle that reads what was written to a topic: output, repartition or changelog.
    pub fn create_output_topic<K, V>(
        &self,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> TestOutputTopic<K, V> {
        TestOutputTopic::new(self.clone(), topic, key_serde, value_serde)
    }

    /// Writes raw bytes to an input topic and processes until nothing is left to do. Where there are several partitions, a record that
    /// names none goes where its key belongs (murmur2, as Java clients do it), one without a key to each in turn.
    pub fn pipe_record(&self, record: ProducerRecord) -> Result<()> {
        self.0.borrow_mut().pipe(vec![record])
    }

    /// Writes all records before the first is processed, as if the application was started late: a task that reads several topics then
    /// takes the record with the smallest timestamp first, whatever the order here.
    pub fn pipe_records(&self, records: impl IntoIterator<Item = ProducerRecord>) -> Result<()> {
        self.0.borrow_mut().pipe(records.into_iter().collect())
    }

    /// Moves the wall clock, calls wall-clock schedules once, commits, and processes what they wrote.
    pub fn advance_wall_clock_time(&self, by: Duration) -> Result<()> {
        self.0.borrow_mut().advance(by.as_millis() as i64)
    }

    /// Sets the wall clock forward, if it is behind, as [`advance_wall_clock_time`](Self::advance_wall_clock_time) does.
    pub fn advance_wall_clock_to(&self, now: Timestamp) -> Result<()> {
        let behind = now - self.now();
        if behind > 0 { self.0.borrow_mut().advance(behind) } else { Ok(()) }
    }

    /// The wall clock.
    pub fn now(&self) -> Timestamp {
        self.0.borrow().now
    }

    /// Takes everything written to a topic since the last call, oldest first.
    pub fn read_records(&self, topic: &str) -> Vec<ProducerRecord> {
        self.0.borrow_mut().outputs.get_mut(topic).map(|queue| queue.drain(..).collect()).unwrap_or_default()
    }

    /// Takes the oldest record written to a topic.
    pub fn read_record(&self, topic: &str) -> Option<ProducerRecord> {
        self.0.borrow_mut().outputs.get_mut(topic)?.pop_front()
    }

    /// Takes everything written to one partition of a topic, oldest first; what is in others stays.
    pub fn read_partition(&self, topic: &str, partition: i32) -> Vec<ProducerRecord> {
        let mut harness = self.0.borrow_mut();
        let Some(queue) = harness.outputs.get_mut(topic) else { return Vec::new() };
        let (of_partition, others): (VecDeque<_>, VecDeque<_>) =
            queue.drain(..).partition(|r| r.partition.unwrap_or(0) == partition);
        *queue = others;
        Vec::from(of_partition)
    }

    /// Topics something was written to.
    pub fn produced_topic_names(&self) -> Vec<Arc<str>> {
        self.0.borrow().outputs.keys().cloned().collect()
    }

    /// How many partitions a topic has.
    pub fn partition_count(&self, topic: &str) -> i32 {
        self.0.borrow().layout.count(topic)
    }

    /// The partition of a topic that a serialized key belongs to.
    pub fn partition_of(&self, topic: &str, key: &[u8]) -> i32 {
        crate::streams::client::partition_for_key(key, self.partition_count(topic))
    }

    /// The tasks, in the order they have their turns.
    pub fn tasks(&self) -> Vec<TaskId> {
        self.0.borrow().tasks.iter().map(|task| task.id()).collect()
    }

    /// Runs `f` on a key-value store, a global one included, as the processor that uses it sees it.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder, Consumed}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.table_with::<String, i64>("stock", Consumed::default(), Materialized::named("stock"));
    /// let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// let stock = driver.create_input_topic::<String, i64>("stock", String::serde(), i64::serde());
    /// stock.pipe_input(Some("tea".into()), Some(3), 0)?;
    /// let tea = driver.key_value_store("stock", |stock| stock.get(&"tea".to_owned()))?;
    /// assert_eq!(tea.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    ///
    /// # Errors
    /// When there is no such store, or several tasks have a part of it: name the partition, too, as `("stock", 1)`.
    pub fn key_value_store<'s, K: Data, V: Data, R>(
        &self,
        store: impl Into<StorePart<'s>>,
        f: impl FnOnce(&KeyValueStore<'_, K, V>) -> Result<R>,
    ) -> Result<R> {
        self.at_store(store.into(), |node, id| f(&KeyValueStore::new(node, id)?))
    }

    /// Runs `f` on a window store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn window_store<'s, K: Data, V: Data, R>(
        &self,
        store: impl Into<StorePart<'s>>,
        f: impl FnOnce(&WindowStore<'_, K, V>) -> Result<R>,
    ) -> Result<R> {
        self.at_store(store.into(), |node, id| f(&WindowStore::new(node, id)?))
    }

    /// Runs `f` on a session store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn session_store<'s, K: Data, V: Data, R>(
        &self,
        store: impl Into<StorePart<'s>>,
        f: impl FnOnce(&SessionStore<'_, K, V>) -> Result<R>,
    ) -> Result<R> {
        self.at_store(store.into(), |node, id| f(&SessionStore::new(node, id)?))
    }

    /// Runs `f` on a versioned store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn versioned_store<'s, K: Data, V: Data, R>(
        &self,
        store: impl Into<StorePart<'s>>,
        f: impl FnOnce(&VersionedKeyValueStore<'_, K, V>) -> Result<R>,
    ) -> Result<R> {
        self.at_store(store.into(), |node, id| f(&VersionedKeyValueStore::new(node, id)?))
    }

    fn at_store<R>(
        &self,
        store: StorePart<'_>,
        f: impl FnOnce(NodeContext<'_>, StoreId) -> Result<R>,
    ) -> Result<R> {
        self.0.borrow().at_store(store.name, store.partition, f)
    }

    /// Runs `f` on a store as the engine holds it: for the engine's own tests, whose types are known at run time only.
    #[doc(hidden)]
    pub fn with_store<R>(&self, name: &str, f: impl FnOnce(&mut Store) -> R) -> Result<R> {
        self.0.borrow().with_store(name, None, f)
    }

    /// The partitions of a store, ascending; none for a store that is global or unknown.
    pub fn store_partitions(&self, name: &str) -> Vec<i32> {
        self.0.borrow().store_partitions(name)
    }

    /// Records dropped so far, all tasks, nodes and reasons together (the `dropped-records-total` metric).
    pub fn dropped_records(&self) -> u64 {
        self.dropped_by_task().values().sum()
    }

    /// Records dropped so far by one node, for one reason (a label of the `dropped-records` metric) or whatever it was.
    pub fn dropped_by<'a>(&self, node: &str, reason: impl Into<Option<&'a str>>) -> u64 {
        let reason = reason.into();
        let dropped = self.dropped_by_task().into_iter();
        dropped
            .filter(|((_, at, why), _)| &**at == node && reason.is_none_or(|reason| why.as_str() == reason))
            .map(|(_, count)| count)
            .sum()
    }

    /// Records dropped so far, by task, node and reason.
    pub fn dropped_by_task(&self) -> BTreeMap<(TaskId, Arc<str>, DropReason), u64> {
        self.0.borrow().dropped()
    }

    /// Stops the application cleanly and starts it again on an empty disk: state comes back from its changelogs, clocks and positions
    /// from what was committed. Records dropped so far stay counted.
    ///
    /// # Errors
    /// What would stop the application from starting.
    pub fn restart(&self) -> Result<()> {
        self.0.borrow_mut().restart()
    }

    /// Closes the processors. Nothing is emitted.
    pub fn close(&self) {
        for task in &mut self.0.borrow_mut().tasks {
            task.close();
        }
    }
}
