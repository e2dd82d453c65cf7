//! `windowed_by_session`: [`SessionWindowedKStream`] and its `count`, `reduce`, `aggregate` (Kafka's `SessionWindowedKStream`).

use std::{cell::Cell, marker::PhantomData, rc::Rc, sync::Arc, time::Duration};

use super::{
    functions::{Aggregator, Data, Initializer, Joiner, UserResult, aggregator, initializer},
    graph::Graph,
    group_by::{Aggregation, GroupedCore, KGroupedStream},
    named::Named,
    options::Materialized,
    session_aggregate::SessionAggregate,
    table::{KTable, MaterializedStore},
    time_windowed::{count_functions, no_value, reduce_function},
    window::{EmitStrategy, SessionWindows},
    windowed::{SessionWindowedSerde, Windowed, unwindow_key, window_key},
};
use crate::streams::{
    error::StreamsError,
    serdes::HasSerde,
    state::{StoreBuilder, StoreKind},
};

/// A grouped stream in sessions.
pub struct SessionWindowedKStream<K, V> {
    core: GroupedCore,
    windows: SessionWindows,
    strategy: EmitStrategy,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Clone for SessionWindowedKStream<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), windows: self.windows, strategy: self.strategy, types: PhantomData }
    }
}

impl<K: Data, V: Data> KGroupedStream<K, V> {
    /// Aggregates by session: records of a key with no more than the gap between them.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sluice::streams::{kstream::*, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let visit = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(30 * 60));
    /// builder.stream::<String, String>("views").group_by_key().windowed_by_session(visit).count().to_stream().to("visits");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("views", String::serde(), String::serde());
    /// # let serde = SessionWindowedSerde::of::<String>(String::serde());
    /// # let output = driver.create_output_topic::<Windowed<String>, i64>("visits", serde, i64::serde());
    /// input.pipe_input(Some("ann".into()), Some("/".into()), 0)?;
    /// input.pipe_input(Some("ann".into()), Some("/shop".into()), 60_000)?;
    /// let last = output.read_records()?.pop().expect("results");
    /// assert_eq!((last.key.unwrap().window, last.value), (Window { start: 0, end: 60_000 }, Some(2)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn windowed_by_session(&self, windows: SessionWindows) -> SessionWindowedKStream<K, V> {
        let strategy = EmitStrategy::default();
        SessionWindowedKStream { core: self.core.clone(), windows, strategy, types: PhantomData }
    }
}

/// The store of a session aggregation.
pub(crate) fn session_store<K: Data, A: Data>(
    graph: &mut Graph,
    materialized: &MaterializedStore,
    windows: SessionWindows,
    strategy: EmitStrategy,
) -> StoreBuilder {
    let least = windows.gap_ms.saturating_add(windows.grace_ms);
    let retention = materialized.retention.map_or(least, super::window::millis);
    if retention < least {
        graph.fail(StreamsError::Topology(format!(
            "the retention of session store {} ({retention} ms) must not be smaller than its gap plus grace ({least} ms)",
            materialized.store_name
        )));
    }
    let on_close = strategy == EmitStrategy::OnWindowClose;
    let kind =
        StoreKind::Session { retention: Duration::from_millis(retention as u64), time_ordered: on_close };
    let store = materialized.store::<K, A>(graph, kind);
    StoreBuilder { caching: store.caching && !on_close, ..store }
}

impl<K: Data, V: Data> SessionWindowedKStream<K, V> {
    /// Forwards results at each update (the default) or when a session closes.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{EmitStrategy, SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let windowed = builder.stream::<String, String>("in").group_by_key().windowed_by_session(visits);
    /// let finals = windowed.emit_strategy(EmitStrategy::OnWindowClose).count().to_stream();
    /// finals.select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [1_000, 2_000, 90_000] {
    ///     input.pipe_input(Some("ann".into()), Some("x".into()), at)?;
    /// }
    /// // One result for the first visit: a minute has passed since its last record.
    /// assert_eq!(output.read_key_values()?, [(Some("ann@1000".into()), Some(2))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn emit_strategy(mut self, strategy: EmitStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Counts records per key and session.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by_session(visits).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [1_000, 2_000, 90_000] {
    ///     input.pipe_input(Some("ann".into()), Some("x".into()), at)?;
    /// }
    /// // A session that grows is another session: the one it was is deleted first.
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n)).collect();
    /// let expected = [("ann@1000", Some(1)), ("ann@1000", None), ("ann@1000", Some(2)), ("ann@90000", Some(1))];
    /// assert_eq!(counts, expected.map(|(key, n)| (key.to_owned(), n)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count(&self) -> KTable<Windowed<K>, i64> {
        self.counted(&Named::default(), Materialized::default())
    }

    /// As [`count`](Self::count), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let clicks = builder.stream::<String, String>("in").group_by_key().windowed_by_session(visits);
    /// clicks.count_with(Named::default(), Materialized::named("visits"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ann".into()), Some("x".into()), 1_000)?;
    /// input.pipe_input(Some("ann".into()), Some("y".into()), 2_000)?;
    /// let rows = driver.session_store::<String, i64, _>("visits", |rows| rows.fetch(&"ann".to_owned()))?;
    /// assert_eq!((rows[0].start, rows[0].end, *rows[0].value), (1_000, 2_000, 2));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count_with(
        &self,
        named: impl Into<Named>,
        materialized: Materialized<K, i64>,
    ) -> KTable<Windowed<K>, i64> {
        if materialized.store_name.is_none() {
            // Kafka takes a number here and does not use it; later names must agree.
            self.core.stream.graph.borrow_mut().new_store_name("KSTREAM-AGGREGATE-");
        }
        self.counted(&named.into(), materialized)
    }

    fn counted(&self, named: &Named, mut materialized: Materialized<K, i64>) -> KTable<Windowed<K>, i64> {
        materialized.value_serde.get_or_insert_with(i64::serde);
        let (init, add) = count_functions::<K, V>();
        let sum = |_: Option<&K>, a: Option<&i64>, b: Option<&i64>| {
            Ok(Some(a.copied().unwrap_or(0).wrapping_add(b.copied().unwrap_or(0))))
        };
        self.aggregated(init, add, aggregator(sum), named, materialized, "KSTREAM-AGGREGATE-")
    }

    /// Combines the values of each key and session; the first value is the first result.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let numbers = builder.stream::<String, i64>("in").group_by_key().windowed_by_session(visits);
    /// numbers.reduce(|a, b| Some(a? + b?)).to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some(5), 0)?;
    /// input.pipe_input(Some("k".into()), Some(7), 1)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("k@0".into()), Some(12))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> Option<V> + Send + Sync + 'static,
    ) -> KTable<Windowed<K>, V> {
        self.reduce_with(move |a, b| Ok(f(a, b)), Named::default(), Materialized::default())
    }

    /// As [`reduce`](Self::reduce), named and stored as said, with a function that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let numbers = builder.stream::<String, i64>("in").group_by_key().windowed_by_session(visits);
    /// numbers.reduce_with(|a, b| Ok(a.max(b).copied()), Named::default(), Materialized::named("highest"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some(5), 0)?;
    /// let highest = driver.session_store("highest", |rows| rows.fetch_session(&"k".to_owned(), 0, 0))?;
    /// assert_eq!(highest.as_deref(), Some(&5_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce_with(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
        named: impl Into<Named>,
        mut materialized: Materialized<K, V>,
    ) -> KTable<Windowed<K>, V> {
        materialized.value_serde = materialized.value_serde.or(self.core.value_serde.clone());
        let add = reduce_function(f);
        let merge: Joiner = {
            let add = add.clone();
            Arc::new(move |key, a, b| add(key, b, a))
        };
        self.aggregated(no_value(), add, merge, &named.into(), materialized, "KSTREAM-REDUCE-")
    }

    /// Folds the values of each key and session; `merge` combines the aggregates of sessions that become one, starting from `init`.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (gap, grace) = (Duration::from_secs(60), Duration::from_secs(60));
    /// let visits = SessionWindows::of_inactivity_gap_and_grace(gap, grace);
    /// let words = builder.stream::<String, String>("in").group_by_key().windowed_by_session(visits);
    /// let add = |_: Option<&String>, word: Option<&String>, sum: Option<&i64>| Some(sum? + word?.len() as i64);
    /// let letters = words.aggregate(|| Some(0), add, |_, a, b| Some(a? + b?));
    /// letters.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// // The third word closes the gap between two sessions: they become one.
    /// for (word, at) in [("one", 0), ("three", 100_000), ("five", 50_000)] {
    ///     input.pipe_input(Some("k".into()), Some(word.into()), at)?;
    /// }
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("k@0".into()), Some(12))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate<A: Data>(
        &self,
        init: impl Fn() -> Option<A> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
        merge: impl Fn(Option<&K>, Option<&A>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> KTable<Windowed<K>, A> {
        self.aggregate_with(
            move || Ok(init()),
            move |key, value, aggregate| Ok(f(key, value, aggregate)),
            move |key, a, b| Ok(merge(key, a, b)),
            Named::default(),
            Materialized::default(),
        )
    }

    /// As [`aggregate`](Self::aggregate), named and stored as said, with functions that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, SessionWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let visits = SessionWindows::of_inactivity_gap_with_no_grace(Duration::from_secs(60));
    /// let words = builder.stream::<String, String>("in").group_by_key().windowed_by_session(visits);
    /// let sum = |a: Option<&i64>, b: i64| Ok(a.map(|a| a + b));
    /// words.aggregate_with(
    ///     || Ok(Some(0)),
    ///     move |_, word, letters| sum(letters, word.map_or(0, String::len) as i64),
    ///     move |_, a, b| sum(a, b.copied().unwrap_or(0)),
    ///     Named::default(),
    ///     Materialized::named("letters"),
    /// );
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some("two".into()), 0)?;
    /// let letters = driver.session_store("letters", |rows| rows.fetch_session(&"k".to_owned(), 0, 0))?;
    /// assert_eq!(letters.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with<A: Data>(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        merge: impl Fn(Option<&K>, Option<&A>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<Windowed<K>, A> {
        let (init, add, merge) = (initializer(init), aggregator(f), aggregator(merge));
        self.aggregated(init, add, merge, &named.into(), materialized, "KSTREAM-AGGREGATE-")
    }

    fn aggregated<A: Data>(
        &self,
        initializer: Initializer,
        aggregator: Aggregator,
        merger: Joiner,
        named: &Named,
        materialized: Materialized<K, A>,
        prefix: &str,
    ) -> KTable<Windowed<K>, A> {
        let mut graph = self.core.stream.graph.borrow_mut();
        let mut materialized = MaterializedStore::new(materialized, &mut graph, prefix);
        materialized.key_serde = materialized.key_serde.or(self.core.key_serde.clone());
        let name = named.or_generate(&mut graph, prefix);
        let store = session_store::<K, A>(&mut graph, &materialized, self.windows, self.strategy);
        drop(graph);
        let processor = Rc::new(SessionAggregate {
            windows: self.windows,
            strategy: self.strategy,
            store: store.name.clone(),
            initializer,
            aggregator,
            merger,
            window_key: window_key::<K>(),
            unwindow_key: unwindow_key::<K>(),
            send_old_values: Cell::new(false),
        });
        self.core.aggregate::<K, V, Windowed<K>, A>(Aggregation {
            name,
            processor,
            queryable_store: materialized.queryable_name(),
            key_serde: Some(SessionWindowedSerde::of::<K>(store.key_serde.clone())),
            value_serde: Some(store.value_serde.clone()),
            store,
            window_grace_ms: Some(self.windows.gap_ms.saturating_add(self.windows.grace_ms)),
        })
    }
}
