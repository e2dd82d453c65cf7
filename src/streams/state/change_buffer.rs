//! [`SuppressBuffer`]: the changes a suppress operator holds back (Kafka's `InMemoryTimeOrderedKeyValueChangeBuffer`).
//!
//! Rows are ordered by (buffer time, key bytes), at most one per key. The buffer lives in memory and is rebuilt from
//! its changelog: at each flush every key that changed since the last one is logged once, with a tombstone when it
//! has left the buffer (bytes: [`buffer_format`](super::buffer_format)).

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use bytes::Bytes;
use hashbrown::HashMap;

use super::{
    BufferedChange, CacheFlush, ChangeBuffer, ChangelogRecord, StateStore, ValueAndTimestamp,
    buffer_format::{FORMAT, LoggedChange},
    layout::{malformed, restored_key},
};
use crate::streams::{
    error::{ProcessingError, Result},
    record::{AnyValue, ByteKey, ConsumerRecord, Header, Headers, Timestamp},
    serdes::AnySerde,
};

/// A row: the change, and its values serialized (they are counted at once and logged at the flush).
struct Buffered {
    change: BufferedChange,
    prior: Option<Bytes>,
    old: Option<Bytes>,
    new: Option<Bytes>,
}

/// The buffer.
pub(super) struct SuppressBuffer {
    name: String,
    value_serde: AnySerde,
    logging: bool,
    rows: BTreeMap<(Timestamp, ByteKey), Buffered>,
    /// Buffer time of each key in `rows`.
    times: HashMap<ByteKey, Timestamp, foldhash::fast::RandomState>,
    /// Keys changed since the last flush. Sorted, so that what is logged does not depend on a hash.
    changed: BTreeSet<ByteKey>,
    log: Vec<ChangelogRecord>,
    bytes: u64,
}

impl SuppressBuffer {
    pub(super) fn new(name: &str, value_serde: AnySerde, logging: bool) -> Self {
        Self {
            name: name.to_owned(),
            value_serde,
            logging,
            rows: BTreeMap::new(),
            times: HashMap::default(),
            changed: BTreeSet::new(),
            log: Vec::new(),
            bytes: 0,
        }
    }

    fn serialize(&self, value: Option<&AnyValue>) -> Result<Option<Bytes>> {
        let bytes = value.map(|value| self.value_serde.to_bytes(value)).transpose()?;
        Ok(bytes.map(Bytes::from))
    }

    fn insert(&mut self, time: Timestamp, key: ByteKey, row: Buffered) {
        let time = *self.times.entry(key.clone()).or_insert(time);
        self.bytes += size(&key, &row);
        let key = (time, key);
        if let Some(replaced) = self.rows.insert(key.clone(), row) {
            self.bytes -= size(&key.1, &replaced);
        }
    }

    fn remove(&mut self, time: Timestamp, key: ByteKey) -> Option<Buffered> {
        self.times.remove(key.as_slice());
        let key = (time, key);
        let row = self.rows.remove(&key)?;
        self.bytes -= size(&key.1, &row);
        Some(row)
    }

    fn decode(&self, record: &ConsumerRecord, bytes: &Bytes) -> Result<(Timestamp, Buffered)> {
        let parsed = LoggedChange::parse(bytes);
        let parsed = parsed.ok_or_else(|| malformed(&self.name, record, "its value ends too early"))?;
        let LoggedChange { buffer_time: time, context, prior, old, new } = parsed;
        let read = |bytes: &Option<Bytes>| -> Result<Option<AnyValue>> {
            let value = bytes.as_ref().map(|bytes| self.value_serde.deserialize(bytes)).transpose();
            value.map_err(|error: ProcessingError| {
                malformed(&self.name, record, &format!("a value in it cannot be read: {error}"))
            })
        };
        let change = BufferedChange { prior: read(&prior)?, old: read(&old)?, new: read(&new)?, context };
        Ok((time, Buffered { change, prior, old, new }))
    }
}

impl StateStore for SuppressBuffer {
    fn name(&self) -> &str {
        &self.name
    }

    /// Logs what changed; a suppress buffer has nothing to forward.
    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        for key in mem::take(&mut self.changed) {
            let (value, headers) = match self.times.get(key.as_slice()) {
                None => (None, Headers::EMPTY),
                Some(time) => {
                    let row = &self.rows[&(*time, key.clone())];
                    let version = Header { key: "v".into(), value: Some(Bytes::from_static(FORMAT)) };
                    let logged = LoggedChange {
                        buffer_time: *time,
                        context: row.change.context.clone(),
                        prior: row.prior.clone(),
                        old: row.old.clone(),
                        new: row.new.clone(),
                    };
                    (Some(logged.encode()), Headers::from_iter([version]))
                }
            };
            self.log.push(ChangelogRecord { key, value, timestamp: None, headers });
        }
        Ok(Vec::new())
    }

    fn drain_changelog(&mut self, out: &mut Vec<ChangelogRecord>) -> Result<()> {
        out.append(&mut self.log);
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        for record in records {
            let key = ByteKey::new(restored_key(&self.name, record)?);
            match &record.value {
                None => {
                    if let Some(time) = self.times.get(key.as_slice()).copied() {
                        self.remove(time, key);
                    }
                }
                Some(bytes) => {
                    if record.headers.last("v").and_then(|header| header.value.as_deref()) != Some(FORMAT) {
                        return Err(malformed(&self.name, record, "its header v is not 3"));
                    }
                    let (time, row) = self.decode(record, bytes)?;
                    // The logged time decides: a key that left and came back between two flushes has a new one.
                    if let Some(before) = self.times.get(key.as_slice()).copied() {
                        self.remove(before, key.clone());
                    }
                    self.insert(time, key, row);
                }
            }
        }
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        self.times.clear();
        self.changed.clear();
        self.log.clear();
        self.bytes = 0;
        Ok(())
    }

    fn approximate_num_entries(&self) -> u64 {
        self.rows.len() as u64
    }
}

impl ChangeBuffer for SuppressBuffer {
    fn put(&mut self, time: Timestamp, key: ByteKey, change: BufferedChange) -> Result<()> {
        let old = self.serialize(change.old.as_ref())?;
        let new = self.serialize(change.new.as_ref())?;
        let buffered = self.times.get(key.as_slice()).and_then(|time| self.rows.get(&(*time, key.clone())));
        // The first change of a key tells what downstream saw before; later ones must not overwrite it.
        let (prior_value, prior) = match buffered {
            Some(row) => (row.change.prior.clone(), row.prior.clone()),
            None => (change.old.clone(), old.clone()),
        };
        if self.logging {
            self.changed.insert(key.clone());
        }
        self.insert(
            time,
            key,
            Buffered { change: BufferedChange { prior: prior_value, ..change }, prior, old, new },
        );
        Ok(())
    }

    fn prior_value(&mut self, key: &[u8]) -> Option<Option<ValueAndTimestamp>> {
        let time = *self.times.get(key)?;
        let row = self.rows.get(&(time, ByteKey::new(key)))?;
        // Its timestamp is not known, only the value is: -1 as in Kafka Streams.
        Some(row.change.prior.clone().map(|value| ValueAndTimestamp { value, timestamp: -1 }))
    }

    fn first(&self) -> Option<(ByteKey, BufferedChange)> {
        let ((_, key), row) = self.rows.first_key_value()?;
        Some((key.clone(), row.change.clone()))
    }

    fn pop_first(&mut self) -> Result<Option<(Timestamp, ByteKey, BufferedChange)>> {
        let Some((time, key)) = self.rows.keys().next().cloned() else { return Ok(None) };
        if self.logging {
            self.changed.insert(key.clone());
        }
        Ok(self.remove(time, key.clone()).map(|row| (time, key, row.change)))
    }

    fn min_timestamp(&self) -> Timestamp {
        self.rows.keys().next().map_or(Timestamp::MAX, |(time, _)| *time)
    }

    fn num_records(&self) -> u64 {
        self.rows.len() as u64
    }

    fn buffer_bytes(&self) -> u64 {
        self.bytes
    }
}

/// Kafka's estimate of a row: 8 for the buffer time, key, values (an old value equal to the prior one counts once),
/// and the record context.
fn size(key: &[u8], row: &Buffered) -> u64 {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let old = if row.old == row.prior { 0 } else { length(&row.old) };
    let context = &row.change.context;
    // Java counts characters (UTF-16 units), not bytes.
    let characters = |text: &str| text.encode_utf16().count();
    let topic = context.topic.as_deref().map_or(0, characters);
    let headers: usize = context
        .headers
        .iter()
        .map(|header| characters(&header.key) + header.value.as_ref().map_or(0, Bytes::len))
        .sum();
    (8 + key.len() + length(&row.prior) + old + length(&row.new) + 8 + 8 + 4 + topic + headers) as u64
}
