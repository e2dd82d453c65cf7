//! What windowed aggregations share: [`WindowForwarder`], which forwards updates at once or leaves them to the cache, and
//! [`EmitOnClose`], which decides when closed windows are read back and forwarded
//! (Kafka's `AbstractKStreamTimeWindowAggregateProcessor`).

use super::{
    window::EmitStrategy,
    windowed::{Window, WindowKey},
};
use crate::streams::{
    config::Semantics,
    error::Result,
    processor::{ClockId, NodeContext, StoreId},
    record::{AnyRecord, AnyValue, Timestamp},
    serdes::AnySerde,
};

/// The store of a windowed aggregation, with its keys and the way its results go.
pub(crate) struct WindowForwarder {
    pub store: StoreId,
    pub key_serde: AnySerde,
    window_key: WindowKey,
    caching: bool,
    send_old_values: bool,
    strategy: EmitStrategy,
}

/// Timestamp of a result that comes out of the cache.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum ResultTime {
    /// The value's own (the context's for a deletion).
    Value,
    /// The end of the session.
    WindowEnd,
}

impl WindowForwarder {
    /// Finds the store. With a cache on it (and results at each update) the node forwards what the cache flushes.
    pub(super) fn new(
        context: NodeContext<'_>,
        store: &str,
        window_key: WindowKey,
        send_old_values: bool,
        strategy: EmitStrategy,
        time: ResultTime,
    ) -> Result<Self> {
        let id = context.store(store)?;
        let builder = context.task().store_builder(id);
        let key_serde = builder.key_serde.clone();
        let caching = builder.caching && strategy == EmitStrategy::OnWindowUpdate;
        if caching {
            let key_serde = key_serde.clone();
            context.forward_on_flush(id, send_old_values, move |flush| {
                let (start, end) = flush.window.unwrap_or_default();
                let timestamp = match (time, &flush.new) {
                    (ResultTime::WindowEnd, _) => end,
                    (ResultTime::Value, Some(value)) => value.timestamp,
                    (ResultTime::Value, None) => flush.context.timestamp,
                };
                let key = window_key(key_serde.deserialize(&flush.key)?, Window { start, end })?;
                Ok(Some(AnyRecord::change(
                    Some(key),
                    flush.new.map(|row| row.value),
                    flush.old.filter(|_| send_old_values).map(|row| row.value),
                    timestamp,
                    flush.context.headers,
                )))
            });
        }
        Ok(Self { store: id, key_serde, window_key, caching, send_old_values, strategy })
    }

    /// Whether results go out at window close only.
    pub(super) fn emits_on_close(&self) -> bool {
        self.strategy == EmitStrategy::OnWindowClose
    }

    /// Forwards an update of a window, unless the cache will, or the close.
    pub(super) fn update(&self, context: NodeContext<'_>, window: Window, change: AnyRecord) -> Result<()> {
        if self.emits_on_close() || self.caching {
            return Ok(());
        }
        self.forward(context, window, change)
    }

    /// Forwards the final result of a window.
    pub(super) fn close(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        window: Window,
        result: AnyRecord,
    ) -> Result<()> {
        let key = Some(self.key_serde.deserialize(key)?);
        self.forward(context, window, AnyRecord { key, ..result })
    }

    fn forward(&self, context: NodeContext<'_>, window: Window, mut change: AnyRecord) -> Result<()> {
        change.key = change.key.map(|key| (self.window_key)(key, window)).transpose()?;
        if !self.send_old_values {
            change.old = None;
        }
        context.forward(change)
    }
}

/// Which closed windows are due.
pub(crate) struct EmitOnClose {
    /// The close time up to which windows have been emitted, -1 before the first; committed, so a restart repeats nothing.
    last: ClockId,
    next_time: Timestamp,
    interval_ms: i64,
}

impl EmitOnClose {
    /// Registers the clock.
    pub(super) fn new(context: NodeContext<'_>) -> Self {
        Self {
            last: context.register_clock("last_emit_close_time", -1),
            next_time: 0,
            interval_ms: context.task().config().emit_interval_ms,
        }
    }

    /// The close time of the last emission.
    pub(super) fn last(&self, context: NodeContext<'_>) -> Timestamp {
        context.clock(self.last)
    }

    /// Whether windows closed by `close_time` are to be looked for now. Kafka looks at intervals of wall time, and so loses windows that
    /// their store has let go of in between; sluice looks whenever time moves.
    pub(super) fn is_due(&mut self, context: NodeContext<'_>, close_time: Timestamp) -> bool {
        if context.semantics() == Semantics::Kafka43 {
            let now = context.now();
            if now < self.next_time {
                return false;
            }
            self.next_time = now + self.interval_ms;
        }
        let last = self.last(context);
        last == -1 || last < close_time
    }

    /// Windows closed by `close_time` are out.
    pub(super) fn emitted(&self, context: NodeContext<'_>, close_time: Timestamp) {
        context.set_clock(self.last, close_time);
    }
}

/// The old value of a first update. Kafka reports the initializer's value, which a regrouping then subtracts (conformance §6.6).
pub(crate) fn old_value(
    context: NodeContext<'_>,
    stored: Option<&AnyValue>,
    initial: Option<&AnyValue>,
) -> Option<AnyValue> {
    match (stored, context.semantics()) {
        (Some(stored), _) => Some(stored.clone()),
        (None, Semantics::Kafka43) => initial.cloned(),
        (None, Semantics::Sluice) => None,
    }
}
