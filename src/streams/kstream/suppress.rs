//! `suppress`: holds changes of a table back (Kafka's `KTableSuppressProcessorSupplier`).
//!
//! Until a time limit: the latest change of each key goes out when its first one is that old. Until the window closes: only the
//! final result of each window goes out. The operator's clock is the largest timestamp of the changes that
//! reach it, or where watermarks are on, what the inputs vouch for.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{
    functions::Data,
    graph::{Graph, GraphNode, GraphNodeId},
    named::Named,
    table::{KTable, TableCore, TableProcessor},
    table_store::key_bytes,
    value_getter::{ValueGetter, ValueGetterSupplier},
    window::millis,
    window_aggregate::observe,
    windowed::{UnwindowKey, Window, Windowed, unwindow_key},
};
use crate::streams::{
    config::Semantics,
    error::{ProcessingError, Result, StreamsError},
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, ProcessorSupplier, StoreId},
    record::{AnyRecord, AnyValue, Timestamp},
    serdes::AnySerde,
    state::{Backend, BufferedChange, StoreBuilder, StoreKind, ValueAndTimestamp},
};

/// What happens when a suppress buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest changes go out early.
    EmitEarly,
    /// The application stops: a result must never be early.
    ShutDown,
}

/// The limits of a suppress buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferConfig {
    max_records: u64,
    max_bytes: u64,
    when_full: WhenFull,
}

impl BufferConfig {
    /// No limit.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::unbounded());
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// assert_eq!(output.read_key_values()?, []);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn unbounded() -> Self {
        Self { max_records: u64::MAX, max_bytes: u64::MAX, when_full: WhenFull::ShutDown }
    }

    /// At most this many records.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::max_records(1));
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// // One change fits; the older one goes out early.
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn max_records(records: u64) -> Self {
        Self { max_records: records, max_bytes: u64::MAX, when_full: WhenFull::EmitEarly }
    }

    /// At most this many bytes, as Kafka estimates them.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::max_bytes(50));
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// // One change fits; the older one goes out early.
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn max_bytes(bytes: u64) -> Self {
        Self { max_records: u64::MAX, max_bytes: bytes, when_full: WhenFull::EmitEarly }
    }

    /// And at most this many records.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::max_bytes(1 << 20).with_max_records(1));
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// // One change fits; the older one goes out early.
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn with_max_records(self, records: u64) -> Self {
        Self { max_records: records, ..self }
    }

    /// And at most this many bytes.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::max_records(1_000).with_max_bytes(50));
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// // One change fits; the older one goes out early.
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn with_max_bytes(self, bytes: u64) -> Self {
        Self { max_bytes: bytes, ..self }
    }

    /// When full, the oldest changes go out early.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::unbounded().with_max_records(1).emit_early_when_full());
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("b".into()), Some(2), 1)?;
    /// // One change fits; the older one goes out early.
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn emit_early_when_full(self) -> Self {
        Self { when_full: WhenFull::EmitEarly, ..self }
    }

    /// When full, the application stops.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{BufferConfig, StreamsBuilder, Suppressed}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_secs(60), BufferConfig::max_records(1).shut_down_when_full());
    /// builder.table::<String, i64>("in").suppress(calm).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// assert!(input.pipe_input(Some("b".into()), Some(2), 1).is_err());
    /// # let _ = output;
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn shut_down_when_full(self) -> Self {
        Self { when_full: WhenFull::ShutDown, ..self }
    }
}

/// Until when changes are held back.
#[derive(Clone, Debug)]
pub struct Suppressed {
    name: Named,
    buffer: BufferConfig,
    /// `None` = until the window closes.
    limit: Option<Duration>,
}

impl Suppressed {
    /// Until the first held change of a key is `limit` old.
    pub fn until_time_limit(limit: Duration, buffer: BufferConfig) -> Self {
        Self { name: Named::default(), buffer, limit: Some(limit) }
    }

    /// Until the window of the key is closed; only for windowed tables. A result is never early: a full buffer stops the application.
    pub fn until_window_closes(buffer: BufferConfig) -> Self {
        Self { name: Named::default(), buffer: buffer.shut_down_when_full(), limit: None }
    }

    /// Names the operator; its store is `<name>-store`.
    pub fn with_name(mut self, name: impl Into<Named>) -> Self {
        self.name = name.into();
        self
    }
}

/// Takes the window from a key; captured where the key's type is known.
type WindowOf = Arc<dyn Fn(&AnyValue) -> Result<Window> + Send + Sync>;

struct Suppress {
    parent: Rc<dyn TableProcessor>,
    parts: SuppressParts,
}

#[derive(Clone)]
struct SuppressParts {
    store: String,
    key_serde: AnySerde,
    wait_ms: i64,
    buffer: BufferConfig,
    /// Set for until-window-closes.
    window: Option<WindowOf>,
}

impl TableProcessor for Suppress {
    fn supplier(&self) -> ProcessorSupplier {
        let parts = self.parts.clone();
        Arc::new(move || Box::new(SuppressProcessor { parts: parts.clone(), live: None }))
    }

    fn view(&self) -> ValueGetterSupplier {
        let parent = self.parent.view();
        let (store, key_serde) = (self.parts.store.clone(), self.parts.key_serde.clone());
        let mut store_names = vec![store.clone()];
        store_names.extend(parent.store_names);
        let make = parent.make;
        ValueGetterSupplier {
            store_names,
            make: Arc::new(move || {
                let (store, key_serde) = (store.clone(), key_serde.clone());
                Box::new(SuppressGetter { parent: make(), name: store, key_serde, store: None })
            }),
        }
    }

    fn enable_sending_old_values(&self, force: bool) -> bool {
        self.parent.enable_sending_old_values(force)
    }
}

struct Live {
    store: StoreId,
    observed: ClockId,
    /// Windows up to here have had their final result (sluice semantics).
    closed: ClockId,
    /// Length of the longest window seen.
    longest: ClockId,
}

struct SuppressProcessor {
    parts: SuppressParts,
    live: Option<Live>,
}

impl AnyProcessor for SuppressProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let observed = super::window_aggregate::observed_stream_time(context);
        let closed = context.register_clock("closed_until", i64::MIN);
        let longest = context.register_clock("longest_window", 0);
        self.live = Some(Live { store: context.store(&self.parts.store)?, observed, closed, longest });
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let live = self.live.as_ref().expect("init runs before the first record");
        let observed = observe(context, live.observed, record.timestamp);
        let key = key_bytes(&self.parts.key_serde, record.key.as_ref())?;
        let time = match (&self.parts.window, &record.key) {
            (Some(window), Some(key)) => {
                let Window { start, end } = window(key)?;
                let longest = context.clock(live.longest).max(end.saturating_sub(start));
                context.set_clock(live.longest, longest);
                end
            }
            _ => record.timestamp,
        };
        let sluice = context.semantics() == Semantics::Sluice;
        if sluice && self.parts.window.is_some() && time <= context.clock(live.closed) {
            // Kafka would send a second "final" result here: the aggregation accepts a record exactly on the boundary.
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let mut at = context.record_context();
        at.timestamp = record.timestamp;
        at.headers = record.headers;
        let change = BufferedChange { prior: None, old: record.old, new: record.value, context: at };
        context.with_buffer(live.store, |buffer| buffer.put(time, key, change))?;
        self.enforce_constraints(context, observed)
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let observed = observe(context, live.observed, watermark);
        self.enforce_constraints(context, observed)?;
        // What is held leaves dated as its last change, which is in its window.
        let held = observed.saturating_sub(self.parts.wait_ms);
        context.hold_watermark(held.saturating_sub(context.clock(live.longest)));
        Ok(())
    }
}

impl SuppressProcessor {
    fn enforce_constraints(&self, context: NodeContext<'_>, observed: Timestamp) -> Result<()> {
        let live = self.live.as_ref().expect("init runs before the first record");
        let expired = observed.saturating_sub(self.parts.wait_ms);
        while context.with_buffer(live.store, |buffer| Ok(buffer.min_timestamp() <= expired))? {
            if !self.emit_first(context, live.store)? {
                break;
            }
        }
        if expired > context.clock(live.closed) {
            context.set_clock(live.closed, expired);
        }
        loop {
            let (records, bytes) = context
                .with_buffer(live.store, |buffer| Ok((buffer.num_records(), buffer.buffer_bytes())))?;
            let BufferConfig { max_records, max_bytes, when_full } = self.parts.buffer;
            if records <= max_records && bytes <= max_bytes {
                return Ok(());
            }
            if when_full == WhenFull::ShutDown {
                let message = format!(
                    "{} buffer exceeded its max capacity. Currently [{records}/{max_records}] records and [{bytes}/{max_bytes}] bytes",
                    context.task().node_name(context.node())
                );
                return Err(match context.semantics() {
                    // A failure like any other: the processing handler may let it pass, and the buffer stays over its bounds.
                    Semantics::Kafka43 => ProcessingError::new("StreamsException", message).into(),
                    Semantics::Sluice => StreamsError::Fatal(message),
                });
            }
            if !self.emit_first(context, live.store)? {
                return Ok(());
            }
        }
    }

    fn emit_first(&self, context: NodeContext<'_>, store: StoreId) -> Result<bool> {
        // In Kafka the row is still in the buffer while it is emitted, so that who reads this table meanwhile sees what was before it.
        let stays = context.semantics() == Semantics::Kafka43;
        let first = context.with_buffer(store, |buffer| match stays {
            true => Ok(buffer.first()),
            false => Ok(buffer.pop_first()?.map(|(_, key, change)| (key, change))),
        })?;
        let Some((key, change)) = first else { return Ok(false) };
        let result = self.emit(context, &key, change);
        if stays {
            context.with_buffer(store, |buffer| buffer.pop_first())?;
        }
        result.map(|()| true)
    }

    fn emit(&self, context: NodeContext<'_>, key: &[u8], change: BufferedChange) -> Result<()> {
        // Downstream of a final result there is nothing to delete.
        if change.new.is_none() && self.parts.window.is_some() {
            return Ok(());
        }
        let record = AnyRecord::change(
            Some(self.parts.key_serde.deserialize(key)?),
            change.new,
            // The old value of the last change held, as Kafka has it, though downstream may never have seen it.
            change.old,
            change.context.timestamp,
            change.context.headers.clone(),
        );
        let current = context.task().replace_record_context(change.context);
        let result = context.forward(record);
        context.task().replace_record_context(current);
        result
    }
}

struct SuppressGetter {
    parent: Box<dyn ValueGetter>,
    name: String,
    key_serde: AnySerde,
    store: Option<StoreId>,
}

impl ValueGetter for SuppressGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(context.store(&self.name)?);
        self.parent.init(context)
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        let store = self.store.expect("init runs before the first read");
        let bytes = key_bytes(&self.key_serde, key)?;
        match context.with_buffer(store, |buffer| Ok(buffer.prior_value(&bytes)))? {
            Some(prior) => Ok(prior),
            // Nothing is held back: downstream sees what the parent has.
            None => self.parent.get(context, key),
        }
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        _: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        self.get(context, key)
    }

    fn is_versioned(&self) -> bool {
        false
    }
}

/// How long windows upstream stay open behind their end: the largest grace on the way up.
fn window_grace(graph: &Graph, node: GraphNodeId) -> Option<i64> {
    let known = graph.nodes[node].window_grace_ms;
    known.or_else(|| graph.nodes[node].parents.iter().filter_map(|parent| window_grace(graph, *parent)).max())
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Holds changes back until a time limit.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sluice::streams::{kstream::*, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let calm = Suppressed::until_time_limit(Duration::from_millis(100), BufferConfig::unbounded());
    /// builder.table::<String, i64>("prices").suppress(calm).to_stream().to("calm-prices");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("prices", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("calm-prices", String::serde(), i64::serde());
    /// input.pipe_input(Some("a".into()), Some(1), 0)?;
    /// input.pipe_input(Some("a".into()), Some(2), 50)?;
    /// assert_eq!(output.read_key_values()?, []);
    /// input.pipe_input(Some("b".into()), Some(9), 100)?;
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(2))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn suppress(&self, suppressed: Suppressed) -> KTable<K, V> {
        if suppressed.limit.is_none() {
            self.core.graph.borrow_mut().fail(StreamsError::Topology(
                "until_window_closes is for windowed tables: use suppress_windows".to_owned(),
            ));
        }
        self.suppressed(suppressed, None)
    }

    fn suppressed(&self, suppressed: Suppressed, unwindow: Option<UnwindowKey>) -> KTable<K, V> {
        let core = &self.core;
        let Suppressed { name: named, buffer, limit } = suppressed;
        let (name, store, wait_ms) = {
            let mut graph = core.graph.borrow_mut();
            // A given name takes no number here, unlike elsewhere.
            let name = match named.name() {
                Some(name) => graph.checked_name(name.to_owned()),
                None => graph.new_processor_name("KTABLE-SUPPRESS-"),
            };
            let wait_ms = match limit {
                Some(limit) => millis(limit),
                None => window_grace(&graph, core.node).unwrap_or_else(|| {
                    graph.fail(StreamsError::Topology(
                        "window close time is only defined for windowed computations".to_owned(),
                    ));
                    0
                }),
            };
            let store_name = match named.name() {
                Some(name) => format!("{name}-store"),
                None => graph.new_store_name("KTABLE-SUPPRESS-"),
            };
            let place = format!("store {store_name}");
            let key_serde = graph.serde::<K>(core.key_serde.clone(), &place);
            let value_serde = graph.serde::<V>(core.value_serde.clone(), &place);
            let store = StoreBuilder {
                backend: Backend::InMemory,
                ..StoreBuilder::new(store_name, StoreKind::Buffer, key_serde, value_serde)
            };
            (name, store, wait_ms)
        };
        // The buffer shows its readers the value before the first held change.
        core.enable_sending_old_values(true);
        let window = unwindow.map(|unwindow| -> WindowOf { Arc::new(move |key| Ok(unwindow(key)?.1)) });
        let parts = SuppressParts {
            store: store.name.clone(),
            key_serde: store.key_serde.clone(),
            wait_ms,
            buffer,
            window,
        };
        let processor = Rc::new(Suppress { parent: core.processor.clone(), parts });
        let at_build = processor.clone();
        let node = GraphNode {
            suppress: true,
            output_versioned: Some(false),
            ..GraphNode::stateful(&name, move || at_build.supplier(), Vec::new(), Some(store))
        };
        let node = core.graph.borrow_mut().add(core.node, node);
        KTable::new(TableCore {
            name,
            queryable_store: None,
            processor,
            sends_old_values: Rc::default(),
            node,
            ..core.clone()
        })
    }
}

impl<K: Data, V: Data> KTable<Windowed<K>, V> {
    /// Holds changes of windows back: until a time limit, or [until the window closes](Suppressed::until_window_closes).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sluice::streams::{kstream::*, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .stream::<String, String>("clicks")
    ///     .group_by_key()
    ///     .windowed_by(TimeWindows::of_size_with_no_grace(Duration::from_millis(10)))
    ///     .count()
    ///     .suppress_windows(Suppressed::until_window_closes(BufferConfig::unbounded()))
    ///     .to_stream()
    ///     .to("final");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let serde = TimeWindowedSerde::of::<String>(String::serde(), 10);
    /// # let output = driver.create_output_topic::<Windowed<String>, i64>("final", serde, i64::serde());
    /// for at in [1, 2, 10] {
    ///     input.pipe_input(Some("ann".into()), Some("x".into()), at)?;
    /// }
    /// let results = output.read_records()?;
    /// assert_eq!(results.iter().map(|result| result.value).collect::<Vec<_>>(), [Some(2)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn suppress_windows(&self, suppressed: Suppressed) -> KTable<Windowed<K>, V> {
        let unwindow = suppressed.limit.is_none().then(unwindow_key::<K>);
        self.suppressed(suppressed, unwindow)
    }
}
