//! Deduplication: of records with the same id within a stretch of event time, the first goes on.
//!
//! Ids are kept in a window store under aligned buckets of the stretch, so that a look-up is at most three point reads. What must
//! always hold: two records with one id and times at most `within` apart never both leave; an id is forgotten only when it is more than
//! that behind the newest record.

use std::{sync::Arc, time::Duration};

use super::{key_of, row_of};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext, StoreId},
    record::{AnyRecord, ByteKey, Timestamp},
    serdes::{AnySerde, HasSerde},
    state::{StoreBuilder, StoreKind, ValueAndTimestamp},
};

/// See the module's documentation.
pub(super) struct Dedupe {
    store_name: Arc<str>,
    store: Option<StoreId>,
    by: usize,
    within_ms: i64,
}

impl Dedupe {
    /// Drops repeats of the id in a slot.
    pub(super) fn new(store_name: Arc<str>, by: usize, within_ms: i64) -> Self {
        Self { store_name, store: None, by, within_ms }
    }

    /// The store it needs.
    pub(super) fn store(name: &str, within_ms: i64) -> StoreBuilder {
        let within = Duration::from_millis(within_ms.unsigned_abs());
        let kind = StoreKind::Window {
            // A bucket, the one before it, and room for records that are behind.
            retention: within * 3,
            window_size: within,
            duplicates: false,
            timestamped: true,
            time_ordered: true,
        };
        StoreBuilder::new(
            name,
            kind,
            AnySerde::new::<Vec<u8>>(crate::streams::serdes::BytesSerde),
            i64::serde(),
        )
    }
}

impl AnyProcessor for Dedupe {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(context.store(&self.store_name)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let store = super::ready(self.store)?;
        let Some(key) = key_of(std::iter::once(&row_of(&record)?[self.by])) else {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        };
        let (time, within) = (record.timestamp, self.within_ms);
        let at = context.record_context();
        let bucket = time - time.rem_euclid(within);
        let repeated = context.with_window(store, |rows| {
            for start in [bucket, bucket - within, bucket + within] {
                let Some(row) = rows.fetch(&key, start)? else { continue };
                if row.value.downcast_ref::<Timestamp>().is_some_and(|seen| (seen - time).abs() <= within) {
                    return Ok(true);
                }
            }
            let seen = ValueAndTimestamp { value: Arc::new(time), timestamp: time };
            rows.put(ByteKey::from(key), Some(seen), bucket, &at)?;
            Ok(false)
        })?;
        if repeated {
            context.drop_record(DropReason::Duplicate);
            return Ok(());
        }
        context.forward(record)
    }
}
