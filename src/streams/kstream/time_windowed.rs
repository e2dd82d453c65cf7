//! `windowed_by` with time windows: [`TimeWindowedKStream`] and its `count`, `reduce`, `aggregate`
//! (Kafka's `TimeWindowedKStream`, for tumbling, hopping, sliding and unlimited windows).

use std::{cell::Cell, marker::PhantomData, rc::Rc, time::Duration};

use super::{
    functions::{Aggregator, Data, Initializer, UserResult, aggregator, initializer, reducer},
    graph::Graph,
    group_by::{Aggregation, GroupedCore, KGroupedStream},
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore},
    window::{EmitStrategy, Windows},
    window_aggregate::WindowAggregate,
    windowed::{TimeWindowedSerde, Windowed, unwindow_key, window_key},
};
use crate::streams::{
    error::StreamsError,
    serdes::HasSerde,
    state::{StoreBuilder, StoreKind},
};

/// A grouped stream in windows. Aggregating it makes a table with keys [`Windowed<K>`].
pub struct TimeWindowedKStream<K, V> {
    core: GroupedCore,
    windows: Windows,
    strategy: EmitStrategy,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Clone for TimeWindowedKStream<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), windows: self.windows, strategy: self.strategy, types: PhantomData }
    }
}

impl<K: Data, V: Data> KGroupedStream<K, V> {
    /// Aggregates by window: [`TimeWindows`](super::TimeWindows), [`SlidingWindows`](super::SlidingWindows),
    /// [`UnlimitedWindows`](super::UnlimitedWindows).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use sluice::streams::{kstream::*, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let minute = TimeWindows::of_size_and_grace(Duration::from_secs(60), Duration::from_secs(10));
    /// builder
    ///     .stream::<String, String>("clicks")
    ///     .group_by_key()
    ///     .windowed_by(minute)
    ///     .count()
    ///     .to_stream()
    ///     .to("clicks-per-minute");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let serde = TimeWindowedSerde::of::<String>(String::serde(), 60_000);
    /// # let output = driver.create_output_topic::<Windowed<String>, i64>("clicks-per-minute", serde, i64::serde());
    /// input.pipe_input(Some("ann".into()), Some("x".into()), 61_000)?;
    /// let counted = output.read_record()?.expect("one result");
    /// assert_eq!((counted.key.unwrap().window.start, counted.value), (60_000, Some(1)));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn windowed_by(&self, windows: impl Into<Windows>) -> TimeWindowedKStream<K, V> {
        let windows = windows.into();
        if let Some(mistake) = windows.mistake() {
            self.core.stream.graph.borrow_mut().fail(StreamsError::Topology(mistake));
        }
        let strategy = EmitStrategy::default();
        TimeWindowedKStream { core: self.core.clone(), windows, strategy, types: PhantomData }
    }
}

/// The store of a time-windowed aggregation.
pub(crate) fn window_store<K: Data, A: Data>(
    graph: &mut Graph,
    materialized: &MaterializedStore,
    windows: &Windows,
    strategy: EmitStrategy,
) -> StoreBuilder {
    let least = windows.retention_ms();
    let retention = materialized.retention.map_or(least, super::window::millis);
    if retention < least {
        graph.fail(StreamsError::Topology(format!(
            "the retention of window store {} ({retention} ms) must not be smaller than its window size plus grace ({least} ms)",
            materialized.store_name
        )));
    }
    let on_close = strategy == EmitStrategy::OnWindowClose;
    let kind = StoreKind::Window {
        retention: Duration::from_millis(retention as u64),
        window_size: Duration::from_millis(windows.size_ms() as u64),
        duplicates: false,
        timestamped: true,
        time_ordered: on_close,
    };
    let store = materialized.store::<K, A>(graph, kind);
    let cacheable = !(on_close && matches!(windows, Windows::Sliding(_)));
    StoreBuilder { caching: store.caching && cacheable, ..store }
}

impl<K: Data, V: Data> TimeWindowedKStream<K, V> {
    /// Forwards results at each update (the default) or when a window closes.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{EmitStrategy, StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let windowed = builder.stream::<String, String>("in").group_by_key().windowed_by(minutes);
    /// let finals = windowed.emit_strategy(EmitStrategy::OnWindowClose).count().to_stream();
    /// finals.select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [1_000, 2_000, 60_000] {
    ///     input.pipe_input(Some("ann".into()), Some("x".into()), at)?;
    /// }
    /// // One result for the first minute, when the second has begun.
    /// assert_eq!(output.read_key_values()?, [(Some("ann@0".into()), Some(2))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn emit_strategy(mut self, strategy: EmitStrategy) -> Self {
        if strategy == EmitStrategy::OnWindowClose && matches!(self.windows, Windows::Unlimited(_)) {
            let error = StreamsError::Topology(
                "an unlimited window never closes: it cannot emit on window close".to_owned(),
            );
            self.core.stream.graph.borrow_mut().fail(error);
        }
        self.strategy = strategy;
        self
    }

    /// Counts records per key and window.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let counts = builder.stream::<String, String>("in").group_by_key().windowed_by(minutes).count();
    /// counts.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for at in [1_000, 2_000, 60_000] {
    ///     input.pipe_input(Some("ann".into()), Some("x".into()), at)?;
    /// }
    /// let counts: Vec<_> = output.read_key_values()?.into_iter().map(|(key, n)| (key.unwrap(), n.unwrap())).collect();
    /// assert_eq!(counts, [("ann@0".into(), 1), ("ann@0".into(), 2), ("ann@60000".into(), 1)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count(&self) -> KTable<Windowed<K>, i64> {
        self.counted(&Named::default(), Materialized::default())
    }

    /// As [`count`](Self::count), named and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let clicks = builder.stream::<String, String>("in").group_by_key().windowed_by(minutes);
    /// let kept = Materialized::named("per-minute").with_retention(Duration::from_secs(3_600));
    /// clicks.count_with(Named::default(), kept);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ann".into()), Some("x".into()), 61_000)?;
    /// let rows = driver.window_store::<String, i64, _>("per-minute", |rows| rows.all())?;
    /// assert_eq!((rows[0].start, *rows[0].value), (60_000, 1));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn count_with(
        &self,
        named: impl Into<Named>,
        materialized: Materialized<K, i64>,
    ) -> KTable<Windowed<K>, i64> {
        if materialized.store_name.is_none() && !matches!(self.windows, Windows::Sliding(_)) {
            // Kafka takes a number here (not for sliding windows) and does not use it; later names must agree.
            self.core.stream.graph.borrow_mut().new_store_name("KSTREAM-AGGREGATE-");
        }
        self.counted(&named.into(), materialized)
    }

    fn counted(&self, named: &Named, mut materialized: Materialized<K, i64>) -> KTable<Windowed<K>, i64> {
        materialized.value_serde.get_or_insert_with(i64::serde);
        let (init, add) = count_functions::<K, V>();
        self.aggregated(init, add, named, materialized, "KSTREAM-AGGREGATE-")
    }

    /// Combines the values of each key and window; the first value is the first result.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let highest = builder.stream::<String, i64>("in").group_by_key().windowed_by(minutes).reduce(|a, b| a.max(b).copied());
    /// highest.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for (n, at) in [(5, 0), (7, 1), (6, 2)] {
    ///     input.pipe_input(Some("k".into()), Some(n), at)?;
    /// }
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("k@0".into()), Some(7))));
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
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let numbers = builder.stream::<String, i64>("in").group_by_key().windowed_by(minutes);
    /// numbers.reduce_with(|a, b| Ok(a.max(b).copied()), Named::default(), Materialized::named("highest"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some(5), 0)?;
    /// input.pipe_input(Some("k".into()), Some(7), 1)?;
    /// let highest = driver.window_store("highest", |rows| rows.fetch(&"k".to_owned(), 0))?;
    /// assert_eq!(highest.as_deref(), Some(&7_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn reduce_with(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
        named: impl Into<Named>,
        mut materialized: Materialized<K, V>,
    ) -> KTable<Windowed<K>, V> {
        materialized.value_serde = materialized.value_serde.or(self.core.value_serde.clone());
        let f = reduce_function(f);
        self.aggregated(no_value(), f, &named.into(), materialized, "KSTREAM-REDUCE-")
    }

    /// Folds the values of each key and window into a value of another type.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let words = builder.stream::<String, String>("in").group_by_key().windowed_by(minutes);
    /// let letters = words.aggregate(|| Some(0), |_, word, sum: Option<&i64>| Some(sum? + word?.len() as i64));
    /// letters.to_stream().select_key(|key, _| key.map(|key| format!("{}@{}", key.key, key.window.start))).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some("two".into()), 0)?;
    /// input.pipe_input(Some("k".into()), Some("words".into()), 1)?;
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("k@0".into()), Some(8))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate<A: Data>(
        &self,
        init: impl Fn() -> Option<A> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Option<A> + Send + Sync + 'static,
    ) -> KTable<Windowed<K>, A> {
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
    /// # use sluice::streams::{kstream::{Materialized, Named, StreamsBuilder, TimeWindows}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let minutes = TimeWindows::of_size_with_no_grace(Duration::from_secs(60));
    /// let words = builder.stream::<String, String>("in").group_by_key().windowed_by(minutes);
    /// let add = |_: Option<&String>, word: Option<&String>, sum: Option<&i64>| {
    ///     Ok(sum.zip(word).map(|(sum, word)| sum + word.len() as i64))
    /// };
    /// words.aggregate_with(|| Ok(Some(0)), add, Named::default(), Materialized::named("letters"));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some("two".into()), 0)?;
    /// let letters = driver.window_store("letters", |rows| rows.fetch(&"k".to_owned(), 0))?;
    /// assert_eq!(letters.as_deref(), Some(&3_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn aggregate_with<A: Data>(
        &self,
        init: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<A>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Materialized<K, A>,
    ) -> KTable<Windowed<K>, A> {
        self.aggregated(initializer(init), aggregator(f), &named.into(), materialized, "KSTREAM-AGGREGATE-")
    }

    fn aggregated<A: Data>(
        &self,
        initializer: Initializer,
        aggregator: Aggregator,
        named: &Named,
        materialized: Materialized<K, A>,
        prefix: &str,
    ) -> KTable<Windowed<K>, A> {
        let mut graph = self.core.stream.graph.borrow_mut();
        let mut materialized = MaterializedStore::new(materialized, &mut graph, prefix);
        materialized.key_serde = materialized.key_serde.or(self.core.key_serde.clone());
        let name = named.or_generate(&mut graph, prefix);
        let store = window_store::<K, A>(&mut graph, &materialized, &self.windows, self.strategy);
        drop(graph);
        let processor = Rc::new(WindowAggregate {
            windows: self.windows,
            strategy: self.strategy,
            store: store.name.clone(),
            initializer,
            aggregator,
            window_key: window_key::<K>(),
            unwindow_key: unwindow_key::<K>(),
            send_old_values: Cell::new(false),
        });
        self.core.aggregate::<K, V, Windowed<K>, A>(Aggregation {
            name,
            processor,
            queryable_store: materialized.queryable_name(),
            key_serde: Some(TimeWindowedSerde::of::<K>(store.key_serde.clone(), self.windows.size_ms())),
            value_serde: Some(store.value_serde.clone()),
            store,
            window_grace_ms: Some(self.windows.grace_ms()),
        })
    }
}

/// Counting: from zero, one more each.
pub(crate) fn count_functions<K: Data, V: Data>() -> (Initializer, Aggregator) {
    let add_one =
        |_: Option<&K>, _: Option<&V>, count: Option<&i64>| Ok(count.map(|count| count.wrapping_add(1)));
    (initializer(|| Ok(Some(0_i64))), aggregator(add_one))
}

/// The initializer of a reduce: nothing.
pub(crate) fn no_value() -> Initializer {
    std::sync::Arc::new(|| Ok(None))
}

/// A reducer as an aggregator: the first value is taken as it is.
pub(crate) fn reduce_function<V: Data>(
    f: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
) -> Aggregator {
    let f = reducer(f);
    std::sync::Arc::new(move |_, value, aggregate| match aggregate {
        None => Ok(value.cloned()),
        Some(_) => f(aggregate, value),
    })
}
