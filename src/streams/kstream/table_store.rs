//! [`TableStore`]: the store behind a table, timestamped or versioned, with typed keys (Kafka's `KeyValueStoreWrapper`), and
//! [`TupleForwarder`]: forwards changes at once, or leaves it to the store's cache (Kafka's `TimestampedTupleForwarder`).

use crate::streams::{
    error::{ProcessingError, Result},
    processor::{NodeContext, StoreId},
    record::{AnyRecord, AnyValue, ByteKey, Timestamp},
    serdes::AnySerde,
    state::{StoreKind, ValueAndTimestamp, VersionedPut, VersionedRecord},
};

/// A key as bytes; a null key fails as Java's stores do.
pub(crate) fn key_bytes(serde: &AnySerde, key: Option<&AnyValue>) -> Result<ByteKey> {
    let key = key.ok_or_else(|| ProcessingError::new("NullPointerException", "key cannot be null"))?;
    Ok(ByteKey::from(serde.to_bytes(key)?))
}

/// What a put into a table's store did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TablePut {
    /// Refused as too old (versioned stores): nothing is to be forwarded.
    NotPut,
    /// Stored; the flag says whether it is the newest version.
    Put {
        /// False when a newer version exists.
        is_latest: bool,
    },
}

/// See the module's documentation.
pub(crate) struct TableStore {
    id: StoreId,
    key_serde: AnySerde,
    versioned: bool,
    caching: bool,
}

impl TableStore {
    /// Finds a store by name.
    pub(super) fn new(context: NodeContext<'_>, name: &str) -> Result<Self> {
        let id = context.store(name)?;
        let builder = context.task().store_builder(id);
        Ok(Self {
            id,
            key_serde: builder.key_serde.clone(),
            versioned: matches!(builder.kind, StoreKind::Versioned { .. }),
            caching: builder.caching,
        })
    }

    /// Whether versions are kept.
    pub(super) fn is_versioned(&self) -> bool {
        self.versioned
    }

    /// The current value of a key.
    pub(super) fn get(
        &self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
    ) -> Result<Option<ValueAndTimestamp>> {
        let key = key_bytes(&self.key_serde, key)?;
        if self.versioned {
            let row = context.with_versioned(self.id, |store| store.get(&key))?;
            return Ok(row.map(value_and_timestamp));
        }
        context.with_key_value(self.id, |store| store.get(&key))
    }

    /// The value of a key at a time; versioned stores only.
    pub(super) fn get_as_of(
        &self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        as_of: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        let key = key_bytes(&self.key_serde, key)?;
        let row = context.with_versioned(self.id, |store| store.get_as_of(&key, as_of))?;
        Ok(row.map(value_and_timestamp))
    }

    /// Sets or deletes.
    pub(super) fn put(
        &self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        value: Option<AnyValue>,
        timestamp: Timestamp,
    ) -> Result<TablePut> {
        let key = key_bytes(&self.key_serde, key)?;
        let record_context = context.record_context();
        if self.versioned {
            let put =
                context.with_versioned(self.id, |store| store.put(key, value, timestamp, &record_context))?;
            return Ok(match put {
                VersionedPut::Latest => TablePut::Put { is_latest: true },
                VersionedPut::ValidTo(_) => TablePut::Put { is_latest: false },
                VersionedPut::TooOld => TablePut::NotPut,
            });
        }
        let value = value.map(|value| ValueAndTimestamp { value, timestamp });
        context.with_key_value(self.id, |store| store.put(key, value, &record_context))?;
        Ok(TablePut::Put { is_latest: true })
    }
}

fn value_and_timestamp(row: VersionedRecord) -> ValueAndTimestamp {
    ValueAndTimestamp { value: row.value, timestamp: row.timestamp }
}

/// See the module's documentation.
pub(crate) struct TupleForwarder {
    caching: bool,
    send_old_values: bool,
}

impl TupleForwarder {
    /// For an operator with a store. With a cache on it, the node forwards what the cache flushes and nothing else.
    pub(super) fn new(context: NodeContext<'_>, store: &TableStore, send_old_values: bool) -> Self {
        if store.caching {
            let key_serde = store.key_serde.clone();
            context.forward_on_flush(store.id, send_old_values, move |flush| {
                let timestamp = flush.new.as_ref().map_or(flush.context.timestamp, |value| value.timestamp);
                Ok(Some(AnyRecord::change(
                    Some(key_serde.deserialize(&flush.key)?),
                    flush.new.map(|row| row.value),
                    flush.old.filter(|_| send_old_values).map(|row| row.value),
                    timestamp,
                    flush.context.headers,
                )))
            });
        }
        Self { caching: store.caching, send_old_values }
    }

    /// Forwards a change, unless the cache will; without `send_old_values` the old value is withheld.
    pub(super) fn maybe_forward(&self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        if self.caching {
            return Ok(());
        }
        if !self.send_old_values {
            record.old = None;
        }
        context.forward(record)
    }

    /// Forwards the change a put made, unless it was refused.
    pub(super) fn forward_put(
        &self,
        context: NodeContext<'_>,
        put: TablePut,
        mut record: AnyRecord,
    ) -> Result<()> {
        match put {
            TablePut::NotPut => Ok(()),
            TablePut::Put { is_latest } => {
                record.is_latest = is_latest;
                self.maybe_forward(context, record)
            }
        }
    }
}
