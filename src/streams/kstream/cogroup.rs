//! `cogroup`: several grouped streams folded into one aggregate per key (Kafka's `CogroupedKStreamImpl`).
//!
//! Each stream has an aggregation node of its own over one shared store; a node below them all passes the changes on and stands for
//! the table.

use std::{cell::Cell, collections::BTreeSet, marker::PhantomData, rc::Rc, sync::Arc};

use super::{
    functions::{Aggregator, Data, Initializer, Joiner, UserResult, aggregator, initializer},
    graph::GraphNode,
    group_by::{GroupedCore, KGroupedStream},
    kstream::StreamCore,
    named::Named,
    options::Materialized,
    session_aggregate::SessionAggregate,
    session_windowed::session_store,
    stream_aggregate::StreamAggregate,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    time_windowed::window_store,
    value_getter::ValueGetterSupplier,
    window::{EmitStrategy, SessionWindows, Windows},
    window_aggregate::WindowAggregate,
    windowed::{SessionWindowedSerde, TimeWindowedSerde, Windowed, unwindow_key, window_key},
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::AnySerde,
    state::StoreBuilder,
};

const AGGREGATE: &str = "COGROUPKSTREAM-AGGREGATE-";
const MERGE: &str = "COGROUPKSTREAM-MERGE-";

/// Makes the stream an aggregation reads, behind a hop where needed; the stream's value type is captured in it.
type Hop = Rc<dyn Fn(&str) -> StreamCore>;

#[derive(Clone)]
struct Member {
    grouped: GroupedCore,
    hop: Hop,
    aggregator: Aggregator,
}

/// Grouped streams that share one aggregate.
pub struct CogroupedKStream<K, A> {
    members: Vec<Member>,
    types: PhantomData<fn(K, A)>,
}

impl<K, A> Clone for CogroupedKStream<K, A> {
    fn clone(&self) -> Self {
        Self { members: self.members.clone(), types: PhantomData }
    }
}

impl<K: Data, V: Data> KGroupedStream<K, V> {
    /// Begins an aggregate of several streams with this one; `f` folds its values in.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let sold = builder.stream::<String, i64>("sold").group_by_key();
    /// let bought = builder.stream::<String, i64>("bought").group_by_key();
    /// sold.cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?))
    ///     .cogroup(&bought, |_, n, stock| Some(stock? + n?))
    ///     .aggregate(|| Some(0))
    ///     .to_stream()
    ///     .to("stock");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let bought = driver.create_input_topic::<String, i64>("bought", String::serde(), i64::serde());
    /// # let sold = driver.create_input_topic::<String, i64>("sold", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("stock", String::serde(), i64::serde());
    /// bought.pipe_input(Some("tea".into()), Some(10), 0)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("tea".into()), Some(10)), (Some("tea".into()), Some(7))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn cogroup<A: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> CogroupedKStream<K, A> {
        self.try_cogroup(move |key, value, aggregate| Ok(f(key, value, aggregate)))
    }

    /// As [`cogroup`](Self::cogroup), with a function that may fail.
    pub fn try_cogroup<A: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
    ) -> CogroupedKStream<K, A> {
        CogroupedKStream { members: Vec::new(), types: PhantomData }.try_cogroup(self, f)
    }
}

impl<K: Data, A: Data> CogroupedKStream<K, A> {
    /// Adds another grouped stream.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// both.aggregate(|| Some(0)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 0)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 1)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("tea".into()), Some(7))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn cogroup<V: Data>(
        self,
        grouped: &KGroupedStream<K, V>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> Self {
        self.try_cogroup(grouped, move |key, value, aggregate| Ok(f(key, value, aggregate)))
    }

    /// As [`cogroup`](Self::cogroup), with a function that may fail.
    pub fn try_cogroup<V: Data>(
        mut self,
        grouped: &KGroupedStream<K, V>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
    ) -> Self {
        let core = grouped.core.clone();
        let hop: Hop = {
            let core = core.clone();
            Rc::new(move |store| core.aggregated_stream::<K, V>(store))
        };
        self.members.push(Member { grouped: core, hop, aggregator: aggregator(f) });
        self
    }

    /// Aggregates without windows.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// both.aggregate(|| Some(100)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// sold.pipe_input(Some("tea".into()), Some(3), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("tea".into()), Some(97))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate(&self, init: impl Fn() -> Option<A> + Send + Sync + 'static) -> KTable<K, A> {
        self.aggregate_with(move || Ok(init()), Named::default(), Materialized::default())
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// both.aggregate_with(|| Ok(Some(0)), Named::default(), Materialized::named("stock")).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 0)?;
    /// let tea = driver.key_value_store("stock", |stock| stock.get(&"tea".to_owned()))?;
    /// assert_eq!(tea.as_deref(), Some(&10_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<K, A> {
        let materialized = self.materialize(materialized);
        let graph = self.members[0].grouped.stream.graph.clone();
        let store = materialized.key_value_store::<K, A>(&mut graph.borrow_mut());
        let init = initializer(init);
        let name = store.name.clone();
        let processor = move |aggregator| -> Rc<dyn TableProcessor> {
            let (store, initializer) = (name.clone(), init.clone());
            Rc::new(StreamAggregate { store, initializer, aggregator, send_old_values: Cell::new(false) })
        };
        let key_serde = store.key_serde.clone();
        self.build(&named.into(), &materialized, store, key_serde, None, processor)
    }

    /// Aggregates by window.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let changes = both.windowed_by(minutes).aggregate(|| Some(0)).to_stream();
    /// changes.select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 59_000)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 61_000)?;
    /// assert_eq!(output.read_key_values()?, [(Some("tea@0".into()), Some(10)), (Some("tea@60000".into()), Some(-3))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn windowed_by(&self, windows: impl Into<Windows>) -> TimeWindowedCogroupedKStream<K, A> {
        TimeWindowedCogroupedKStream { cogrouped: self.clone(), windows: windows.into() }
    }

    /// Aggregates by session.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let table = both.windowed_by_session(visits).aggregate(|| Some(0), |_, a, b| Some(a? + b?));
    /// table.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 0)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 61_000)?;
    /// assert_eq!(output.read_key_values()?, [(Some("tea@0".into()), Some(10)), (Some("tea@61000".into()), Some(-3))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn windowed_by_session(&self, windows: SessionWindows) -> SessionWindowedCogroupedKStream<K, A> {
        SessionWindowedCogroupedKStream { cogrouped: self.clone(), windows }
    }

    fn materialize(&self, materialized: Materialized<K, A>) -> MaterializedStore {
        let first = &self.members[0].grouped;
        let mut graph = first.stream.graph.borrow_mut();
        let mut materialized = MaterializedStore::new(materialized, &mut graph, AGGREGATE);
        materialized.key_serde = materialized.key_serde.or(first.key_serde.clone());
        materialized
    }

    fn build<KR: Data>(
        &self,
        named: &Named,
        materialized: &MaterializedStore,
        store: StoreBuilder,
        key_serde: AnySerde,
        window_grace_ms: Option<i64>,
        processor: impl Fn(Aggregator) -> Rc<dyn TableProcessor>,
    ) -> KTable<KR, A> {
        let streams: Vec<StreamCore> = self.members.iter().map(|member| (member.hop)(&store.name)).collect();
        let graph = streams[0].graph.clone();
        let mut sources: BTreeSet<String> = BTreeSet::new();
        for stream in &streams {
            sources.extend(stream.sources.iter().cloned());
        }
        if streams.len() > 1 {
            graph.borrow_mut().copartitioned.push(sources.clone());
        }
        let value_serde = store.value_serde.clone();
        let mut parents = Vec::new();
        let mut processors = Vec::new();
        for (index, (member, stream)) in self.members.iter().zip(&streams).enumerate() {
            let processor = processor(member.aggregator.clone());
            let name = named.suffixed_or_generate(
                &format!("-cogroup-agg-{index}"),
                &mut graph.borrow_mut(),
                AGGREGATE,
            );
            let at_build = processor.clone();
            // The first node brings the store, the others are connected to it.
            let (names, own) = match index {
                0 => (Vec::new(), Some(store.clone())),
                _ => (vec![store.name.clone()], None),
            };
            let node = GraphNode {
                output_versioned: Some(materialized.versioned.is_some()),
                window_grace_ms,
                ..GraphNode::stateful(&name, move || at_build.supplier(), names, own)
            };
            parents.push(graph.borrow_mut().add(stream.node, node));
            processors.push(processor);
        }
        let mut borrowed = graph.borrow_mut();
        let name = named.suffixed_or_generate("-cogroup-merge", &mut borrowed, MERGE);
        let pass: ProcessorSupplier = Arc::new(|| Box::new(PassThrough));
        let node = borrowed.add(parents[0], GraphNode::processor(&name, pass));
        for parent in &parents[1..] {
            borrowed.add_child(*parent, node);
        }
        drop(borrowed);
        KTable::new(TableCore {
            name,
            key_serde: Some(key_serde),
            value_serde: Some(value_serde),
            sources,
            queryable_store: materialized.queryable_name(),
            processor: Rc::new(Merged(processors)),
            sends_old_values: Rc::default(),
            node,
            graph,
        })
    }
}

/// The table below the aggregations of a cogroup.
struct Merged(Vec<Rc<dyn TableProcessor>>);

impl TableProcessor for Merged {
    fn supplier(&self) -> ProcessorSupplier {
        Arc::new(|| Box::new(PassThrough))
    }

    fn view(&self) -> ValueGetterSupplier {
        self.0[0].view() // All members share one store.
    }

    fn enable_sending_old_values(&self, force: bool) -> bool {
        let mut all = true;
        for member in &self.0 {
            // Not `all()`, which stops at the first no: every member must be told.
            all &= member.enable_sending_old_values(force);
        }
        all
    }
}

struct PassThrough;

impl AnyProcessor for PassThrough {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        context.forward(record)
    }
}

/// A cogroup in windows.
pub struct TimeWindowedCogroupedKStream<K, A> {
    cogrouped: CogroupedKStream<K, A>,
    windows: Windows,
}

impl<K: Data, A: Data> TimeWindowedCogroupedKStream<K, A> {
    /// Aggregates by key and window.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// both.windowed_by(minutes).aggregate(|| Some(0)).to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 70_000)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 80_000)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("tea@60000".into()), Some(7))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate(&self, init: impl Fn() -> Option<A> + Send + Sync + 'static) -> KTable<Windowed<K>, A> {
        self.aggregate_with(move || Ok(init()), Named::default(), Materialized::default())
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let minutes = both.windowed_by(TimeWindows::of_size_with_no_grace(Duration::from_secs(60)));
    /// minutes.aggregate_with(|| Ok(Some(0)), Named::default(), Materialized::named("per-minute"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 70_000)?;
    /// let tea = driver.window_store("per-minute", |rows| rows.fetch(&"tea".to_owned(), 60_000))?;
    /// assert_eq!(tea.as_deref(), Some(&10_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<Windowed<K>, A> {
        let (cogrouped, windows) = (&self.cogrouped, self.windows);
        let materialized = cogrouped.materialize(materialized);
        let graph = cogrouped.members[0].grouped.stream.graph.clone();
        let strategy = EmitStrategy::OnWindowUpdate;
        let store = window_store::<K, A>(&mut graph.borrow_mut(), &materialized, &windows, strategy);
        let (name, init) = (store.name.clone(), initializer(init));
        let processor = move |aggregator| -> Rc<dyn TableProcessor> {
            Rc::new(WindowAggregate {
                windows,
                strategy,
                store: name.clone(),
                initializer: init.clone(),
                aggregator,
                window_key: window_key::<K>(),
                unwindow_key: unwindow_key::<K>(),
                send_old_values: Cell::new(false),
            })
        };
        let key_serde = TimeWindowedSerde::of::<K>(store.key_serde.clone(), windows.size_ms());
        let grace = Some(windows.grace_ms());
        cogrouped.build(&named.into(), &materialized, store, key_serde, grace, processor)
    }
}

/// A cogroup in sessions.
pub struct SessionWindowedCogroupedKStream<K, A> {
    cogrouped: CogroupedKStream<K, A>,
    windows: SessionWindows,
}

impl<K: Data, A: Data> SessionWindowedCogroupedKStream<K, A> {
    /// Aggregates by key and session; `merge` combines sessions that become one.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let table = both.windowed_by_session(visits).aggregate(|| Some(0), |_, a, b| Some(a? + b?));
    /// table.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 1_000)?;
    /// sold.pipe_input(Some("tea".into()), Some(3), 31_000)?;
    /// // The session has grown: the one it was is gone, the one it is now has both.
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("tea@1000".into()), Some(7))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate(
        &self,
        init: impl Fn() -> Option<A> + Send + Sync + 'static,
        merge: impl Fn(Option<&K>, Option<&A>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> KTable<Windowed<K>, A> {
        let merge = move |key: Option<&K>, a: Option<&A>, b: Option<&A>| Ok(merge(key, a, b));
        self.aggregate_with(move || Ok(init()), merge, Named::default(), Materialized::default())
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (sold, bought) = (builder.stream::<String, i64>("sold"), builder.stream::<String, i64>("bought"));
    /// let sold = sold.group_by_key().cogroup(|_, n, stock: Option<&i64>| Some(stock? - n?));
    /// let both = sold.cogroup(&bought.group_by_key(), |_, n, stock| Some(stock? + n?));
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let stored = Materialized::named("visits");
    /// both.windowed_by_session(visits)
    ///     .aggregate_with(|| Ok(Some(0)), |_, a, b| Ok(Some(a.unwrap() + b.unwrap())), Named::default(), stored);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let sold = driver.input_topic::<String, i64>("sold");
    /// # let bought = driver.input_topic::<String, i64>("bought");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// bought.pipe_input(Some("tea".into()), Some(10), 1_000)?;
    /// let tea = driver.session_store("visits", |rows| rows.fetch_session(&"tea".to_owned(), 1_000, 1_000))?;
    /// assert_eq!(tea.as_deref(), Some(&10_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        merge: impl Fn(Option<&K>, Option<&A>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<Windowed<K>, A> {
        let (cogrouped, windows) = (&self.cogrouped, self.windows);
        let materialized = cogrouped.materialize(materialized);
        let graph = cogrouped.members[0].grouped.stream.graph.clone();
        let strategy = EmitStrategy::OnWindowUpdate;
        let store = session_store::<K, A>(&mut graph.borrow_mut(), &materialized, windows, strategy);
        let (name, init): (String, Initializer) = (store.name.clone(), initializer(init));
        let merger: Joiner = aggregator(merge);
        let processor = move |aggregator| -> Rc<dyn TableProcessor> {
            Rc::new(SessionAggregate {
                windows,
                strategy,
                store: name.clone(),
                initializer: init.clone(),
                aggregator,
                merger: merger.clone(),
                window_key: window_key::<K>(),
                unwindow_key: unwindow_key::<K>(),
                send_old_values: Cell::new(false),
            })
        };
        let key_serde = SessionWindowedSerde::of::<K>(store.key_serde.clone());
        let grace = Some(windows.gap_ms.saturating_add(windows.grace_ms));
        cogrouped.build(&named.into(), &materialized, store, key_serde, grace, processor)
    }
}
