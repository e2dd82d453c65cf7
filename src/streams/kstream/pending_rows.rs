//! Rows of a left or outer stream join that found no partner yet (Kafka's outer-join store of `TimestampedKeyAndJoinSide` and lists of
//! `LeftOrRightValue`).
//!
//! They lie in a key-value store under 8 bytes of time, one of side (1 = left) and the key: byte order is the order they are given up in.
//! Records of equal time, side and key share a row.

use std::sync::Arc;

use crate::streams::{
    error::{ProcessingError, Result},
    processor::{NodeContext, StoreId},
    record::{AnyValue, ByteKey, Timestamp},
    serdes::{AnySerde, Serde},
    state::{Order, ValueAndTimestamp},
};

/// The values of a row, in order of arrival.
pub(crate) struct PendingValues {
    left: bool,
    values: Vec<AnyValue>,
}

/// A row of pending records.
pub(crate) struct PendingRow {
    pub row: ByteKey,
    pub timestamp: Timestamp,
    pub left: bool,
    pub key: AnyValue,
    pub values: Vec<AnyValue>,
}

/// See the module's documentation.
pub(crate) struct PendingRows {
    store: StoreId,
    key_serde: AnySerde,
}

/// The row of a time, side and key.
fn row_of(timestamp: Timestamp, left: bool, key: &[u8]) -> ByteKey {
    let mut row = timestamp.to_be_bytes().to_vec();
    row.push(u8::from(left));
    row.extend_from_slice(key);
    row.into()
}

impl PendingRows {
    /// Opens the store. `key_serde` is that of the records' keys.
    pub(super) fn new(context: NodeContext<'_>, name: &str, key_serde: AnySerde) -> Result<Self> {
        Ok(Self { store: context.store(name)?, key_serde })
    }

    /// Adds a record.
    pub(super) fn add(
        &self,
        context: NodeContext<'_>,
        timestamp: Timestamp,
        left: bool,
        key: &[u8],
        value: AnyValue,
    ) -> Result<()> {
        let row = row_of(timestamp, left, key);
        let record_context = context.record_context();
        context.with_key_value(self.store, |store| {
            let mut values = match store.get(&row)? {
                Some(stored) => values_of(&stored.value)?.values.clone(),
                None => Vec::new(),
            };
            values.push(value);
            let value: AnyValue = Arc::new(PendingValues { left, values });
            let value = ValueAndTimestamp { value, timestamp: record_context.timestamp };
            store.put(row, Some(value), &record_context)
        })
    }

    /// Removes the row of a record that found a partner, if it is there.
    pub(super) fn remove_if_present(
        &self,
        context: NodeContext<'_>,
        timestamp: Timestamp,
        left: bool,
        key: &[u8],
    ) -> Result<()> {
        let row = row_of(timestamp, left, key);
        let record_context = context.record_context();
        context.with_key_value(self.store, |store| match store.get(&row)? {
            Some(_) => store.put(row, None, &record_context),
            None => Ok(()),
        })
    }

    /// Removes a row.
    pub(super) fn remove(&self, context: NodeContext<'_>, row: ByteKey) -> Result<()> {
        let record_context = context.record_context();
        context.with_key_value(self.store, |store| store.put(row, None, &record_context))
    }

    /// The rows up to a time (all of them when `None`), oldest first.
    pub(super) fn rows(&self, context: NodeContext<'_>, until: Option<Timestamp>) -> Result<Vec<PendingRow>> {
        // Rows at the next millisecond begin with these bytes and are longer, so they come after them.
        let end = until.map(|until| until.saturating_add(1).to_be_bytes());
        let rows = context.with_key_value(self.store, |store| {
            store.range(None, end.as_ref().map(<[u8; 8]>::as_slice), Order::Forward)
        })?;
        rows.into_iter()
            .map(|(row, stored)| {
                let broken =
                    || ProcessingError::new("SerializationException", "a pending row of a join is damaged");
                let (time, rest) = row.split_first_chunk::<8>().ok_or_else(broken)?;
                let (side, key) = rest.split_first().ok_or_else(broken)?;
                Ok(PendingRow {
                    timestamp: Timestamp::from_be_bytes(*time),
                    left: *side == 1,
                    key: self.key_serde.deserialize(key)?,
                    values: values_of(&stored.value)?.values.clone(),
                    row,
                })
            })
            .collect()
    }
}

fn values_of(value: &AnyValue) -> Result<&PendingValues> {
    Ok(value.downcast_ref::<PendingValues>().ok_or_else(|| {
        ProcessingError::new("ClassCastException", "the store of a join's pending rows holds something else")
    })?)
}

/// Bytes of a row's values: a count, then length, side and bytes of each.
pub(crate) struct PendingSerde {
    left: AnySerde,
    right: AnySerde,
}

impl PendingSerde {
    /// A serde for rows of either side.
    pub(super) fn of(left: AnySerde, right: AnySerde) -> AnySerde {
        AnySerde::new::<PendingValues>(Self { left, right })
    }

    fn side(&self, left: bool) -> &AnySerde {
        if left { &self.left } else { &self.right }
    }
}

impl Serde<PendingValues> for PendingSerde {
    fn serialize(&self, row: &PendingValues, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(&(row.values.len() as u32).to_be_bytes());
        for value in &row.values {
            let bytes = self.side(row.left).to_bytes(value)?;
            out.extend_from_slice(&(bytes.len() as u32 + 1).to_be_bytes());
            out.push(u8::from(row.left));
            out.extend_from_slice(&bytes);
        }
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<PendingValues, ProcessingError> {
        let broken =
            || ProcessingError::new("SerializationException", "the values of a pending row are damaged");
        let (count, mut rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
        let mut row = PendingValues { left: false, values: Vec::new() };
        for _ in 0..u32::from_be_bytes(*count) {
            let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(broken)?;
            let (value, tail) =
                tail.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(broken)?;
            let (side, value) = value.split_first().ok_or_else(broken)?;
            row.left = *side == 1;
            row.values.push(self.side(row.left).deserialize(value)?);
            rest = tail;
        }
        Ok(row)
    }
}

/// The values of a row, for whoever reads the changelog.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::serdes::HasSerde;

    #[test]
    fn values_come_back_on_their_side() {
        let serde = PendingSerde::of(String::serde(), i64::serde());
        let row: AnyValue =
            Arc::new(PendingValues { left: false, values: vec![Arc::new(1_i64), Arc::new(2_i64)] });
        let back = serde.deserialize(&serde.to_bytes(&row).unwrap()).unwrap();
        let back = back.downcast_ref::<PendingValues>().unwrap();
        assert!(!back.left);
        let numbers: Vec<_> = back.values.iter().map(|v| *v.downcast_ref::<i64>().unwrap()).collect();
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn rows_order_by_time_then_right_before_left() {
        let mut rows = [row_of(2, false, b"a"), row_of(1, true, b"a"), row_of(1, false, b"b")];
        rows.sort();
        assert_eq!(rows, [row_of(1, false, b"b"), row_of(1, true, b"a"), row_of(2, false, b"a")]);
    }
}
