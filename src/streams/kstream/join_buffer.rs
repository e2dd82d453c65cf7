//! [`JoinBuffer`]: records that wait for a table to catch up (Kafka's `RocksDBTimeOrderedKeyValueBuffer`).
//!
//! Rows lie in a key-value store under time, key and a number, so that byte order is the order they leave in. A row keeps where its record
//! came from: it goes on in its own context.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    table_store::key_bytes,
    window_aggregate::{observe, observed_stream_time},
};
use crate::streams::{
    error::{ProcessingError, Result},
    processor::{ClockId, NodeContext, StoreId},
    record::{AnyRecord, AnyValue, ByteKey, Header, Headers, RecordContext, Timestamp},
    serdes::{AnySerde, Serde},
    state::{Order, ValueAndTimestamp},
};

/// A waiting record's value and where it came from.
pub(crate) struct Buffered {
    value: AnyValue,
    context: RecordContext,
}

/// See the module's documentation.
pub(crate) struct JoinBuffer {
    store: StoreId,
    key_serde: AnySerde,
    grace_ms: i64,
    /// The largest timestamp put so far, or where watermarks are on, what the inputs vouch for.
    observed: ClockId,
    /// Number of the last row put.
    seq: ClockId,
}

impl JoinBuffer {
    /// Opens the buffer. `key_serde` is that of the records' keys.
    pub(super) fn new(
        context: NodeContext<'_>,
        store: &str,
        key_serde: AnySerde,
        grace_ms: i64,
    ) -> Result<Self> {
        Ok(Self {
            store: context.store(store)?,
            key_serde,
            grace_ms,
            observed: observed_stream_time(context),
            seq: context.register_clock("buffer-seq", 0),
        })
    }

    /// Puts a record, unless it is older than the grace: then it is to be joined at once.
    pub(super) fn put(&self, context: NodeContext<'_>, record: &AnyRecord) -> Result<bool> {
        let null =
            |what: &str| ProcessingError::new("NullPointerException", format!("{what} cannot be null"));
        let value = record.value.clone().ok_or_else(|| null("value"))?;
        let key = key_bytes(&self.key_serde, record.key.as_ref())?;
        let observed = context.clock(self.observed);
        if observed.saturating_sub(self.grace_ms) > record.timestamp {
            return Ok(false);
        }
        let seq = (context.clock(self.seq) + 1) & 0x7fff_ffff;
        context.set_clock(self.seq, seq);
        self.observe(context, record.timestamp);
        let mut row = record.timestamp.to_be_bytes().to_vec();
        row.extend_from_slice(&key);
        row.extend_from_slice(&(seq as u32).to_be_bytes());
        let record_context = context.record_context();
        let buffered: AnyValue = Arc::new(Buffered { value, context: record_context.clone() });
        let value = ValueAndTimestamp { value: buffered, timestamp: record.timestamp };
        context.with_key_value(self.store, |store| store.put(row.into(), Some(value), &record_context))?;
        Ok(true)
    }

    /// How long a record waits.
    pub(super) fn grace_ms(&self) -> i64 {
        self.grace_ms
    }

    /// Moves the buffer's time.
    pub(super) fn observe(&self, context: NodeContext<'_>, timestamp: Timestamp) {
        observe(context, self.observed, timestamp);
    }

    /// The rows the grace has passed, oldest first.
    pub(super) fn ready(&self, context: NodeContext<'_>) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        let until = context.clock(self.observed).saturating_sub(self.grace_ms);
        if until < 0 {
            return Ok(Vec::new());
        }
        // Rows at the next millisecond begin with these bytes and are longer, so they come after them.
        let end = until.saturating_add(1).to_be_bytes();
        context.with_key_value(self.store, |store| store.range(None, Some(&end), Order::Forward))
    }

    /// Takes one of them: a record that fails to join takes none of those behind it along.
    pub(super) fn take(
        &self,
        context: NodeContext<'_>,
        row: ByteKey,
        value: &AnyValue,
    ) -> Result<(AnyRecord, RecordContext)> {
        let taken = self.record(&row, value)?;
        let record_context = context.record_context();
        context.with_key_value(self.store, |store| store.put(row, None, &record_context))?;
        Ok(taken)
    }

    fn record(&self, row: &ByteKey, value: &AnyValue) -> Result<(AnyRecord, RecordContext)> {
        let broken = || ProcessingError::new("SerializationException", "a row of a join's buffer is damaged");
        let key = row.get(8..row.len().saturating_sub(4)).ok_or_else(broken)?;
        let buffered = value.downcast_ref::<Buffered>().ok_or_else(broken)?;
        let record = AnyRecord::new(
            Some(self.key_serde.deserialize(key)?),
            Some(buffered.value.clone()),
            buffered.context.timestamp,
            buffered.context.headers.clone(),
        );
        Ok((record, buffered.context.clone()))
    }
}

/// Bytes of a waiting record: its context, then its value.
pub(crate) struct BufferedSerde {
    value: AnySerde,
}

impl BufferedSerde {
    /// A serde for rows with values of the given serde.
    pub(super) fn of(value: AnySerde) -> AnySerde {
        AnySerde::new::<Buffered>(Self { value })
    }
}

fn write(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    let length = bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// Reads from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ProcessingError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            ProcessingError::new("SerializationException", "a row of a join's buffer ends too early")
        })?;
        self.0 = rest;
        Ok(taken)
    }

    fn i64(&mut self) -> Result<i64, ProcessingError> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().unwrap_or_default()))
    }

    fn i32(&mut self) -> Result<i32, ProcessingError> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().unwrap_or_default()))
    }

    fn bytes(&mut self) -> Result<Option<&'a [u8]>, ProcessingError> {
        match self.i32()? {
            length if length < 0 => Ok(None),
            length => self.take(length as usize).map(Some),
        }
    }

    fn text(&mut self) -> Result<Option<String>, ProcessingError> {
        Ok(self.bytes()?.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }
}

impl Serde<Buffered> for BufferedSerde {
    fn serialize(&self, row: &Buffered, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        let context = &row.context;
        out.extend_from_slice(&context.timestamp.to_be_bytes());
        out.extend_from_slice(&context.offset.to_be_bytes());
        out.extend_from_slice(&context.partition.to_be_bytes());
        write(context.topic.as_ref().map(|topic| topic.as_bytes()), out);
        out.extend_from_slice(&(context.headers.len() as i32).to_be_bytes());
        for header in context.headers.iter() {
            write(Some(header.key.as_bytes()), out);
            write(header.value.as_deref(), out);
        }
        self.value.serialize(&row.value, out)
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Buffered, ProcessingError> {
        let mut reader = Reader(bytes);
        let timestamp: Timestamp = reader.i64()?;
        let offset = reader.i64()?;
        let partition = reader.i32()?;
        let topic = reader.text()?.map(Arc::from);
        let mut headers = Vec::new();
        for _ in 0..reader.i32()? {
            let key = reader.text()?.unwrap_or_default();
            headers.push(Header { key, value: reader.bytes()?.map(Bytes::copy_from_slice) });
        }
        let headers: Headers = headers.into_iter().collect();
        let context = RecordContext { topic, partition, offset, timestamp, headers };
        Ok(Buffered { value: self.value.deserialize(reader.0)?, context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::serdes::HasSerde;

    #[test]
    fn a_row_comes_back_with_its_context() {
        let mut headers = Headers::EMPTY;
        headers.add("a", Some("1".to_owned()));
        headers.add("b", None::<String>);
        let context =
            RecordContext { topic: Some("t".into()), partition: 2, offset: 7, timestamp: 99, headers };
        let row: AnyValue = Arc::new(Buffered { value: Arc::new(5_i64), context: context.clone() });
        let serde = BufferedSerde::of(i64::serde());
        let bytes = serde.to_bytes(&row).unwrap();
        let back = serde.deserialize(&bytes).unwrap();
        let back = back.downcast_ref::<Buffered>().unwrap();
        assert_eq!(back.context, context);
        assert_eq!(back.value.downcast_ref::<i64>(), Some(&5));
        assert!(serde.deserialize(&bytes[..20]).is_err(), "a row cut short is refused");
    }
}
