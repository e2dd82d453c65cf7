//! [`SelfJoin`]: a stream joined with itself on one store (Kafka's `KStreamKStreamSelfJoin`).

use super::processor::JoinStore;
use crate::streams::{
    error::Result,
    kstream::{
        functions::Joiner, join_windows::JoinWindows, table_store::key_bytes,
        window_aggregate::observed_stream_time,
    },
    processor::{AnyProcessor, ClockId, DropReason, NodeContext},
    record::{AnyRecord, AnyValue, Timestamp},
};

/// A stream joined with itself on one store (`single.store.self.join`).
pub(super) struct SelfJoin {
    pub(super) store_name: String,
    pub(super) windows: JoinWindows,
    pub(super) joiner: Joiner,
    pub(super) live: Option<(JoinStore, ClockId)>,
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
