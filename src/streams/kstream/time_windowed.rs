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
    pub fn count(&self) -> KTable<Windowed<K>, i64> {
        self.counted(&Named::default(), Materialized::default())
    }

    /// As [`count`](Self::count), named and stored as said.
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
    pub fn reduce(
        &self,
        f: impl Fn(Option<&V>, Option<&V>) -> Option<V> + Send + Sync + 'static,
    ) -> KTable<Windowed<K>, V> {
        self.reduce_with(move |a, b| Ok(f(a, b)), Named::default(), Materialized::default())
    }

    /// As [`reduce`](Self::reduce), named and stored as said, with a function that may fail.
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
