//! Joins of two streams in a window of time (Kafka's `KStreamKStreamJoin`, `KStreamJoinWindow`, `KStreamKStreamSelfJoin`).
//!
//! Each side first joins with what the other side has kept, then keeps the record for the other side. In a left or outer join a record
//! without a partner waits in a shared store until its window has closed; one tracker, shared by both sides, knows the join's stream time
//! and the oldest waiting record. Where watermarks are on, the join's time is what every input has vouched for, and records are given up
//! when that moves, too.

mod processor;
mod self_join;

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use processor::{JoinSide, join_window};
use self_join::SelfJoin;

use super::{
    functions::{Data, Joiner, UserResult, aggregator},
    graph::{GraphNode, StreamJoinNode},
    join_windows::JoinWindows,
    kstream::{KStream, StreamCore},
    merge::pass_through,
    options::StreamJoined,
    pending_rows::PendingSerde,
};
use crate::streams::{
    processor::ProcessorSupplier,
    serdes::{AnySerde, HasSerde},
    state::{StoreBuilder, StoreKind},
};

/// A join's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Inner,
    Left,
    Outer,
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Joins records of equal key that are close in time.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (views, clicks) = (builder.stream::<String, String>("views"), builder.stream::<String, String>("clicks"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// views.join(&clicks, |view, click| Some(format!("{} {}", view?, click?)), windows).to("pairs");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.create_input_topic::<String, String>("views", String::serde(), String::serde());
    /// # let right = driver.create_input_topic::<String, String>("clicks", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("pairs", String::serde(), String::serde());
    /// left.pipe_input(Some("ad".into()), Some("seen".into()), 1_000)?;
    /// right.pipe_input(Some("ad".into()), Some("clicked".into()), 9_000)?;
    /// assert_eq!(output.read_key_values()?, [(Some("ad".into()), Some("seen clicked".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
        windows: JoinWindows,
    ) -> KStream<K, VR> {
        self.join_with(other, move |_, l, r| Ok(f(l, r)), windows, StreamJoined::default())
    }

    /// As [`join`](Self::join), with options, and a function that sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamJoined, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, String>("left"), builder.stream::<String, String>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// let joiner = |key: Option<&String>, l: Option<&String>, r: Option<&String>| {
    ///     Ok(Some(format!("{}: {} {}", key.unwrap(), l.map_or("-", String::as_str), r.map_or("-", String::as_str))))
    /// };
    /// left.join_with(&right, joiner, windows, StreamJoined::named("pairs").with_store_name("pairs")).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, String>("left");
    /// # let right = driver.input_topic::<String, String>("right");
    /// # let output = driver.output_topic::<String, String>("out");
    /// left.pipe_input(Some("k".into()), Some("a".into()), 1_000)?;
    /// right.pipe_input(Some("k".into()), Some("b".into()), 9_000)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some("k: a b".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_with<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        windows: JoinWindows,
        joined: StreamJoined<K, V, VO>,
    ) -> KStream<K, VR> {
        self.stream_joined(other, aggregator(f), windows, joined, Kind::Inner)
    }

    /// As [`join`](Self::join), and each record of this stream that found no partner, alone, when its window has closed.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (orders, payments) = (builder.stream::<String, i64>("orders"), builder.stream::<String, i64>("payments"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// orders.left_join(&payments, |_, paid| Some(paid.is_some()), windows).to("paid");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.create_input_topic::<String, i64>("orders", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, bool>("paid", String::serde(), bool::serde());
    /// left.pipe_input(Some("1".into()), Some(5), 1_000)?;
    /// left.pipe_input(Some("2".into()), Some(6), 20_000)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some(false))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
        windows: JoinWindows,
    ) -> KStream<K, VR> {
        self.left_join_with(other, move |_, l, r| Ok(f(l, r)), windows, StreamJoined::default())
    }

    /// As [`left_join`](Self::left_join), with options, and a function that sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamJoined, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, String>("left"), builder.stream::<String, String>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// let joiner = |key: Option<&String>, l: Option<&String>, r: Option<&String>| {
    ///     Ok(Some(format!("{}: {} {}", key.unwrap(), l.map_or("-", String::as_str), r.map_or("-", String::as_str))))
    /// };
    /// left.left_join_with(&right, joiner, windows, StreamJoined::named("pairs").with_store_name("pairs")).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, String>("left");
    /// # let right = driver.input_topic::<String, String>("right");
    /// # let output = driver.output_topic::<String, String>("out");
    /// left.pipe_input(Some("k".into()), Some("a".into()), 1_000)?;
    /// right.pipe_input(Some("k".into()), Some("b".into()), 9_000)?;
    /// left.pipe_input(Some("l".into()), Some("a".into()), 30_000)?;
    /// left.pipe_input(Some("m".into()), Some("a".into()), 50_000)?;
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, pair)| pair.unwrap()).collect();
    /// assert_eq!(joined, ["k: a b", "l: a -"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_with<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        windows: JoinWindows,
        joined: StreamJoined<K, V, VO>,
    ) -> KStream<K, VR> {
        self.stream_joined(other, aggregator(f), windows, joined, Kind::Left)
    }

    /// As [`left_join`](Self::left_join), for records of either stream.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, String>("left"), builder.stream::<String, String>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// left.outer_join(&right, |l, r| Some(l.is_some() && r.is_some()), windows).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, String>("left");
    /// # let right = driver.input_topic::<String, String>("right");
    /// # let output = driver.output_topic::<String, bool>("out");
    /// right.pipe_input(Some("k".into()), Some("b".into()), 1_000)?;
    /// left.pipe_input(Some("l".into()), Some("a".into()), 30_000)?;
    /// // Nothing can come for the first any more; the second still waits.
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some(false))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn outer_join<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
        windows: JoinWindows,
    ) -> KStream<K, VR> {
        self.outer_join_with(other, move |_, l, r| Ok(f(l, r)), windows, StreamJoined::default())
    }

    /// As [`outer_join`](Self::outer_join), with options, and a function that sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{JoinWindows, StreamJoined, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// let (left, right) = (builder.stream::<String, String>("left"), builder.stream::<String, String>("right"));
    /// let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(10));
    /// let joiner = |key: Option<&String>, l: Option<&String>, r: Option<&String>| {
    ///     Ok(Some(format!("{}: {} {}", key.unwrap(), l.map_or("-", String::as_str), r.map_or("-", String::as_str))))
    /// };
    /// left.outer_join_with(&right, joiner, windows, StreamJoined::named("pairs").with_store_name("pairs")).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.input_topic::<String, String>("left");
    /// # let right = driver.input_topic::<String, String>("right");
    /// # let output = driver.output_topic::<String, String>("out");
    /// left.pipe_input(Some("k".into()), Some("a".into()), 1_000)?;
    /// right.pipe_input(Some("k".into()), Some("b".into()), 9_000)?;
    /// right.pipe_input(Some("l".into()), Some("b".into()), 30_000)?;
    /// left.pipe_input(Some("m".into()), Some("a".into()), 50_000)?;
    /// let joined: Vec<_> = output.read_key_values()?.into_iter().map(|(_, pair)| pair.unwrap()).collect();
    /// assert_eq!(joined, ["k: a b", "l: - b"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn outer_join_with<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        windows: JoinWindows,
        joined: StreamJoined<K, V, VO>,
    ) -> KStream<K, VR> {
        self.stream_joined(other, aggregator(f), windows, joined, Kind::Outer)
    }

    fn stream_joined<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        joiner: Joiner,
        windows: JoinWindows,
        joined: StreamJoined<K, V, VO>,
        kind: Kind,
    ) -> KStream<K, VR> {
        let named = &joined.name;
        let (mut left, mut right) = (self.core.clone(), other.core.clone());
        if left.repartition_required {
            let topic = named.suffixed_or("-left", &left.name);
            left = self.repartitioned_for_join(&topic, joined.key_serde.clone(), joined.value_serde.clone());
        }
        if right.repartition_required {
            let topic = named.suffixed_or("-right", &right.name);
            let value_serde = joined.other_value_serde.clone();
            right = other.repartitioned_for_join(&topic, joined.key_serde.clone(), value_serde);
        }
        let sources = left.copartitioned_with(&right.sources);
        let (left_outer, right_outer) = (kind != Kind::Inner, kind == Kind::Outer);

        let mut graph = left.graph.borrow_mut();
        if let Err(error) = windows.check() {
            graph.fail(error);
        }
        let left_suffix = if right_outer { "-outer-this-join" } else { "-this-join" };
        let right_suffix = if left_outer { "-outer-other-join" } else { "-other-join" };
        let left_window = named.suffixed_or_generate("-this-windowed", &mut graph, "KSTREAM-WINDOWED-");
        let right_window = named.suffixed_or_generate("-other-windowed", &mut graph, "KSTREAM-WINDOWED-");
        let left_prefix = if right_outer { "KSTREAM-OUTERTHIS-" } else { "KSTREAM-JOINTHIS-" };
        let right_prefix = if left_outer { "KSTREAM-OUTEROTHER-" } else { "KSTREAM-JOINOTHER-" };
        let left_generated = graph.new_processor_name(left_prefix);
        let right_generated = graph.new_processor_name(right_prefix);
        let left_name = named.suffixed_or(left_suffix, &left_generated);
        let right_name = named.suffixed_or(right_suffix, &right_generated);
        let name = named.suffixed_or_generate("-merge", &mut graph, "KSTREAM-MERGE-");

        let base = |suffix: &str, generated: &str| match &joined.store_name {
            Some(store) => format!("{store}{suffix}-store"),
            None => format!("{generated}-store"),
        };
        let place = format!("the stores of {name}");
        let key_serde = joined.key_serde.clone().or(left.key_serde.clone());
        let key = graph.serde::<K>(key_serde.clone(), &place);
        let left_value = graph.serde::<V>(joined.value_serde.or(left.value_serde.clone()), &place);
        let right_value = graph.serde::<VO>(joined.other_value_serde.or(right.value_serde.clone()), &place);
        let store = |name: String, kind: StoreKind, value: &AnySerde| StoreBuilder {
            logging: joined.logging,
            backend: joined.backend.unwrap_or(graph.config.default_backend),
            ..StoreBuilder::new(name, kind, key.clone(), value.clone())
        };
        let size = duration(windows.size_ms());
        let window = StoreKind::Window {
            retention: size.saturating_add(duration(windows.grace_ms)),
            window_size: size,
            duplicates: true,
            timestamped: false,
            time_ordered: false,
        };
        let left_store = store(base(left_suffix, &left_generated), window.clone(), &left_value);
        let right_store = store(base(right_suffix, &right_generated), window, &right_value);
        let pending_store = left_outer.then(|| {
            let suffix = if right_outer { "-outer-shared-join" } else { "-left-shared-join" };
            let number = left_generated.trim_start_matches(left_prefix);
            let kind = StoreKind::KeyValue { timestamped: false };
            let values = PendingSerde::of(left_value.clone(), right_value.clone());
            let store = store(base(suffix, &format!("KSTREAM-OUTERSHARED-{number}")), kind, &values);
            // Its keys are not the records': to the state file they are only bytes.
            StoreBuilder { key_serde: Vec::<u8>::serde(), ..store }
        });

        let window_node =
            |name: &str, store: &StoreBuilder| GraphNode::processor(name, join_window(&store.name));
        let left_node = window_node(&left_window, &left_store);
        let right_node = window_node(&right_window, &right_store);
        graph.add(left.node, left_node);
        graph.add(right.node, right_node);

        let side = |is_left: bool, outer: bool, other: &StoreBuilder| JoinSide {
            join: name.clone(),
            left: is_left,
            windows,
            outer,
            other_store: other.name.clone(),
            pending_store: pending_store.as_ref().map(|store| store.name.clone()),
            joiner: joiner.clone(),
        };
        let left_join = side(true, left_outer, &right_store).supplier();
        let right_join = side(false, right_outer, &left_store).supplier();
        let self_join: ProcessorSupplier = {
            let (store_name, joiner) = (left_store.name.clone(), joiner.clone());
            Arc::new(move || {
                Box::new(SelfJoin {
                    store_name: store_name.clone(),
                    windows,
                    joiner: joiner.clone(),
                    live: None,
                })
            })
        };
        let is_self_join: Rc<Cell<bool>> = Rc::default();
        let node = {
            let (name, is_self_join) = (name.clone(), is_self_join.clone());
            let (left_window, right_window) = (left_window.clone(), right_window.clone());
            GraphNode::other(name.clone(), move |topology, _| {
                if is_self_join.get() {
                    topology.add_processor(&name, self_join.clone(), &[&left_window])?;
                    return topology.add_state_store(left_store.clone(), &[&left_window, &name]).map(drop);
                }
                topology.add_processor(&left_name, left_join.clone(), &[&left_window])?;
                topology.add_processor(&right_name, right_join.clone(), &[&right_window])?;
                topology.add_processor(&name, pass_through(), &[&left_name, &right_name])?;
                topology.add_state_store(left_store.clone(), &[&left_window, &right_name])?;
                topology.add_state_store(right_store.clone(), &[&right_window, &left_name])?;
                match &pending_store {
                    Some(store) => {
                        topology.add_state_store(store.clone(), &[&left_name, &right_name]).map(drop)
                    }
                    None => Ok(()),
                }
            })
        };
        let node = GraphNode {
            null_key_relaxed_join: left_outer,
            stream_join: Some(StreamJoinNode {
                this_windowed: left_window,
                other_windowed: right_window,
                self_join: is_self_join,
            }),
            ..node
        };
        let node = graph.add(left.node, node);
        graph.link(right.node, node);
        drop(graph);
        KStream::new(StreamCore {
            name,
            key_serde,
            value_serde: None,
            sources,
            repartition_required: false,
            node,
            graph: left.graph,
        })
    }
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
