//! Joins of two streams in a window of time (Kafka's `KStreamKStreamJoin`, `KStreamJoinWindow`, `KStreamKStreamSelfJoin`).
//!
//! Each side first joins with what the other side has kept, then keeps the record for the other side. In a left or outer join a record
//! without a partner waits in a shared store until its window has closed; one tracker, shared by both sides, knows the join's stream time
//! and the oldest waiting record. Where watermarks are on, the join's time is what every input has vouched for, and records are given up
//! when that moves, too.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use super::{
    functions::{Data, Joiner, UserResult, aggregator},
    graph::{GraphNode, StreamJoinNode},
    join_windows::JoinWindows,
    kstream::{KStream, StreamCore},
    merge::pass_through,
    options::StreamJoined,
    pending_rows::{PendingRows, PendingSerde},
    table_store::key_bytes,
    window_aggregate::{observe, observed_stream_time},
};
use crate::streams::{
    config::Semantics,
    error::Result,
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, ProcessorSupplier, StoreId},
    record::{AnyRecord, AnyValue, Headers, Timestamp},
    serdes::{AnySerde, HasSerde},
    state::{Order, StoreBuilder, StoreKind, ValueAndTimestamp, WindowRow},
};

/// A kept record's store: its id and the serde of its keys.
struct JoinStore {
    id: StoreId,
    key_serde: AnySerde,
}

impl JoinStore {
    fn new(context: NodeContext<'_>, name: &str) -> Result<Self> {
        let id = context.store(name)?;
        Ok(Self { id, key_serde: context.task().store_builder(id).key_serde.clone() })
    }

    /// Records of a key with `from <= time <= to`, oldest first.
    fn fetch(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<WindowRow>> {
        context.with_window(self.id, |store| store.fetch_range(key, from, to, Order::Forward))
    }
}

/// Passes a record to the join, then keeps it for the other side.
struct JoinWindow {
    name: String,
    store: Option<JoinStore>,
}

impl AnyProcessor for JoinWindow {
    fn passes_records(&self) -> bool {
        true
    }

    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(JoinStore::new(context, &self.name)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (key, value, timestamp) = (record.key.clone(), record.value.clone(), record.timestamp);
        context.forward(record)?;
        if key.is_none() {
            return Ok(());
        }
        let store = self.store.as_ref().expect("init runs before the first record");
        let key = key_bytes(&store.key_serde, key.as_ref())?;
        let value = value.map(|value| ValueAndTimestamp { value, timestamp });
        let record_context = context.record_context();
        context.with_window(store.id, |store| store.put(key, value, timestamp, &record_context))
    }
}

fn join_window(store: &str) -> ProcessorSupplier {
    let store = store.to_owned();
    Arc::new(move || Box::new(JoinWindow { name: store.clone(), store: None }))
}

/// What both sides know of time, in clocks they share.
struct TimeTracker {
    /// The largest timestamp of either side.
    stream_time: ClockId,
    /// The oldest waiting record, as far as known; `i64::MAX` when none waits.
    min_time: ClockId,
    /// The wall clock before which waiting records are not looked through again.
    next_time_to_emit: ClockId,
}

impl TimeTracker {
    fn new(context: NodeContext<'_>, join: &str) -> Self {
        let clock = |name: &str, initial: i64| {
            let clock = context.register_shared_clock(join, name, initial);
            // Kafka forgets its clocks at a restart; sluice does not.
            if context.semantics() == Semantics::Kafka43 {
                context.set_clock(clock, initial);
            }
            clock
        };
        Self {
            stream_time: clock("stream-time", -1),
            min_time: clock("min-time", i64::MAX),
            next_time_to_emit: clock("next-time-to-emit", 0),
        }
    }

    /// Moves the join's stream time and returns it.
    fn observe(&self, context: NodeContext<'_>, timestamp: Timestamp) -> Timestamp {
        observe(context, self.stream_time, timestamp)
    }
}

/// What a side of a join is made with.
#[derive(Clone)]
struct JoinSide {
    /// Name of the join, under which both sides share their clocks.
    join: String,
    left: bool,
    windows: JoinWindows,
    /// Whether this side's records are wanted without a partner.
    outer: bool,
    /// Store of the other side's records.
    other_store: String,
    /// Store of waiting records; `None` in an inner join.
    pending_store: Option<String>,
    /// `(key, left, right)`
    joiner: Joiner,
}

impl JoinSide {
    fn supplier(&self) -> ProcessorSupplier {
        let side = self.clone();
        Arc::new(move || Box::new(JoinProcessor { side: side.clone(), live: None }))
    }

    /// How much earlier and later the partner may be.
    fn bounds(&self) -> (i64, i64) {
        let JoinWindows { before_ms, after_ms, .. } = self.windows;
        if self.left { (before_ms, after_ms) } else { (after_ms, before_ms) }
    }
}

struct Live {
    other: JoinStore,
    pending: Option<PendingRows>,
    tracker: TimeTracker,
}

struct JoinProcessor {
    side: JoinSide,
    live: Option<Live>,
}

impl AnyProcessor for JoinProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let other = JoinStore::new(context, &self.side.other_store)?;
        let pending = match &self.side.pending_store {
            Some(name) => Some(PendingRows::new(context, name, other.key_serde.clone())?),
            None => None,
        };
        self.live = Some(Live { other, pending, tracker: TimeTracker::new(context, &self.side.join) });
        Ok(())
    }

    /// 1. Stream time advances, by records that are dropped, too.
    /// 2. The waiting records whose window closed are given up; in Kafka only by a record that is not behind stream time.
    /// 3. The record joins with what the other side has kept.
    /// 4. Without a partner it waits, or is sent alone when its window is over already.
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let live = self.live.as_ref().expect("init runs before the first record");
        let side = &self.side;
        let now = live.tracker.observe(context, record.timestamp);
        if side.outer && record.key.is_none() && record.value.is_some() {
            let value = side.joined(None, record.value.as_ref(), None)?;
            return context.forward(AnyRecord { value, ..record });
        }
        let Some(value) = record.value.clone().filter(|_| record.key.is_some()) else {
            let reason = if record.key.is_none() { DropReason::NullKey } else { DropReason::NullValue };
            context.drop_record(reason);
            return Ok(());
        };
        if let Some(pending) = &live.pending {
            match context.semantics() {
                Semantics::Kafka43 if record.timestamp == now => {
                    side.give_up_as_kafka(context, live, pending, &record.headers)?;
                }
                Semantics::Kafka43 => {}
                Semantics::Sluice => side.give_up_closed(context, live, pending, &record.headers)?,
            }
        }
        let key = record.key.as_ref();
        let bytes = key_bytes(&live.other.key_serde, key)?;
        let (before_ms, after_ms) = side.bounds();
        let from = record.timestamp.saturating_sub(before_ms).max(0);
        let to = record.timestamp.saturating_add(after_ms).max(0);
        let partners = live.other.fetch(context, &bytes, from, to)?;
        let alone = partners.is_empty();
        for partner in partners {
            if let Some(pending) = &live.pending {
                pending.remove_if_present(context, partner.start, !side.left, &bytes)?;
            }
            let joined = side.joined(key, Some(&value), Some(&partner.value.value))?;
            context.forward(AnyRecord {
                value: joined,
                timestamp: record.timestamp.max(partner.start),
                ..record.clone()
            })?;
        }
        if !alone || !side.outer {
            return Ok(());
        }
        // Kafka forgets the grace here (KAFKA-19536): it gives a record up that may still find a partner.
        let grace_ms = match context.semantics() {
            Semantics::Kafka43 => 0,
            Semantics::Sluice => side.windows.grace_ms,
        };
        match &live.pending {
            Some(pending) if to.saturating_add(grace_ms) >= now => {
                let min_time = context.clock(live.tracker.min_time).min(record.timestamp);
                context.set_clock(live.tracker.min_time, min_time);
                pending.add(context, record.timestamp, side.left, &bytes, value)
            }
            _ => {
                let value = side.joined(key, Some(&value), None)?;
                context.forward(AnyRecord { value, ..record })
            }
        }
    }

    /// Gives up what has closed though no record came. The left side does it for both: whoever has waiting records has a left side.
    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = self.live.as_ref().filter(|_| self.side.left) else { return Ok(()) };
        live.tracker.observe(context, watermark);
        let Some(pending) = &live.pending else { return Ok(()) };
        // Records without a partner leave when their windows close, dated as they are.
        let wait = self.side.wait_ms(true).max(self.side.wait_ms(false));
        context.hold_watermark(watermark.saturating_sub(wait));
        self.side.give_up_closed(context, live, pending, &Headers::EMPTY)
    }
}

impl JoinSide {
    /// Joins a value of this side with one of the other.
    fn joined(
        &self,
        key: Option<&AnyValue>,
        this: Option<&AnyValue>,
        other: Option<&AnyValue>,
    ) -> UserResult<Option<AnyValue>> {
        if self.left { (self.joiner)(key, this, other) } else { (self.joiner)(key, other, this) }
    }

    /// How long a waiting record of a side may still find a partner.
    fn wait_ms(&self, left: bool) -> i64 {
        let JoinWindows { before_ms, after_ms, grace_ms } = self.windows;
        (if left { after_ms } else { before_ms }).saturating_add(grace_ms)
    }

    /// As Kafka does it: the quick test takes the bound of the side of the *current* record, and wraps around when nothing waits; the scan
    /// ends when an open record of either side was seen, and the last one looked at becomes the oldest known. In a left join
    /// that is the youngest of all, so later misses come out late.
    fn give_up_as_kafka(
        &self,
        context: NodeContext<'_>,
        live: &Live,
        pending: &PendingRows,
        headers: &Headers,
    ) -> Result<()> {
        let tracker = &live.tracker;
        let now = context.clock(tracker.stream_time);
        let (_, after_ms) = self.bounds();
        let min_time = context.clock(tracker.min_time);
        if min_time.wrapping_add(after_ms).wrapping_add(self.windows.grace_ms) >= now {
            return Ok(());
        }
        if !self.emit_is_due(context, tracker) {
            return Ok(());
        }
        context.set_clock(tracker.min_time, i64::MAX);
        let (mut left_open, mut right_open) = (false, false);
        for row in pending.rows(context, None)? {
            context.set_clock(tracker.min_time, row.timestamp);
            if left_open && right_open {
                break;
            }
            if row.timestamp.wrapping_add(self.wait_ms(row.left)) >= now {
                *(if row.left { &mut left_open } else { &mut right_open }) = true;
                // Kafka meets each of a row's values: with both sides open the second one ends the scan.
                if left_open && right_open && row.values.len() > 1 {
                    break;
                }
                continue;
            }
            self.send_alone(context, pending, headers, row)?;
        }
        Ok(())
    }

    /// Every record whose own window has closed, and no other, as soon as time says so; what is left is remembered by the time nothing
    /// older waits.
    fn give_up_closed(
        &self,
        context: NodeContext<'_>,
        live: &Live,
        pending: &PendingRows,
        headers: &Headers,
    ) -> Result<()> {
        let tracker = &live.tracker;
        let now = context.clock(tracker.stream_time);
        let shortest = self.wait_ms(true).min(self.wait_ms(false));
        let closed_until = now.saturating_sub(shortest).saturating_sub(1);
        if context.clock(tracker.min_time) > closed_until {
            return Ok(());
        }
        let mut oldest = i64::MAX;
        for row in pending.rows(context, Some(closed_until))? {
            if row.timestamp.saturating_add(self.wait_ms(row.left)) >= now {
                oldest = oldest.min(row.timestamp);
            } else {
                self.send_alone(context, pending, headers, row)?;
            }
        }
        context.set_clock(tracker.min_time, oldest.min(closed_until.saturating_add(1)));
        Ok(())
    }

    fn emit_is_due(&self, context: NodeContext<'_>, tracker: &TimeTracker) -> bool {
        let now = context.now();
        if now < context.clock(tracker.next_time_to_emit) {
            return false;
        }
        let interval_ms = context.task().config().emit_interval_ms;
        context.set_clock(tracker.next_time_to_emit, now.saturating_add(interval_ms));
        true
    }

    /// Sends a waiting row without a partner: its own time, the headers of the record that closed its window.
    fn send_alone(
        &self,
        context: NodeContext<'_>,
        pending: &PendingRows,
        headers: &Headers,
        row: super::pending_rows::PendingRow,
    ) -> Result<()> {
        for value in &row.values {
            let (left, right) = if row.left { (Some(value), None) } else { (None, Some(value)) };
            let value = (self.joiner)(Some(&row.key), left, right)?;
            context.forward(AnyRecord::new(Some(row.key.clone()), value, row.timestamp, headers.clone()))?;
        }
        pending.remove(context, row.row)
    }
}

/// A stream joined with itself on one store (`single.store.self.join`).
struct SelfJoin {
    store_name: String,
    windows: JoinWindows,
    joiner: Joiner,
    live: Option<(JoinStore, ClockId)>,
}

impl AnyProcessor for SelfJoin {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let clock = observed_stream_time(context);
        self.live = Some((JoinStore::new(context, &self.store_name)?, clock));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let Some(value) = record.value.clone().filter(|_| record.key.is_some()) else {
            let reason = if record.key.is_none() { DropReason::NullKey } else { DropReason::NullValue };
            context.drop_record(reason);
            return Ok(());
        };
        let (store, clock) = self.live.as_ref().expect("init runs before the first record");
        let JoinWindows { before_ms, after_ms, grace_ms } = self.windows;
        let key = record.key.as_ref();
        let bytes = key_bytes(&store.key_serde, key)?;
        let time = record.timestamp;
        let now = context.clock(*clock).max(time);
        context.set_clock(*clock, now);
        let retention_ms = self.windows.size_ms().saturating_add(grace_ms);
        let with_itself = time > now.saturating_sub(retention_ms).saturating_add(1);
        let send = |left: &AnyValue, right: &AnyValue, timestamp: Timestamp| {
            let value = (self.joiner)(key, Some(left), Some(right))?;
            context.forward(AnyRecord { value, timestamp, ..record.clone() })
        };
        let range = |earlier: i64, later: i64| {
            (time.saturating_sub(earlier).max(0), time.saturating_add(later).max(0))
        };
        let (from, to) = range(before_ms, after_ms);
        for other in store.fetch(context, &bytes, from, to)? {
            send(&value, &other.value.value, time.max(other.start))?;
        }
        // As the right record: partners later than itself come after the pair with itself.
        let mut sent_itself = !with_itself;
        let (from, to) = range(after_ms, before_ms);
        for other in store.fetch(context, &bytes, from, to)? {
            if other.start > time && !sent_itself {
                sent_itself = true;
                send(&value, &value, time)?;
            }
            send(&other.value.value, &value, time.max(other.start))?;
        }
        if !sent_itself {
            send(&value, &value, time)?;
        }
        Ok(())
    }
}

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
    pub fn outer_join<VO: Data, VR: Data>(
        &self,
        other: &KStream<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
        windows: JoinWindows,
    ) -> KStream<K, VR> {
        self.outer_join_with(other, move |_, l, r| Ok(f(l, r)), windows, StreamJoined::default())
    }

    /// As [`outer_join`](Self::outer_join), with options, and a function that sees the key and may fail.
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
