//! Byte layouts of changelog records (streams-semantics part C), so that a changelog could be read by Kafka Streams.
//!
//! All integers are big-endian. Stores write these keys when a change is logged and read them back in a restore;
//! nothing else depends on the bytes.

use smallvec::SmallVec;

use super::ValueAndTimestamp;
use crate::streams::{
    error::{Result, StreamsError},
    record::{ByteKey, ConsumerRecord, Timestamp},
    serdes::AnySerde,
};

/// Key of a window row: key, 8 bytes of start, 4 bytes of sequence number.
pub(crate) fn window_key(key: &[u8], start: Timestamp, seq: u32) -> ByteKey {
    joined(&[key, &start.to_be_bytes(), &seq.to_be_bytes()])
}

/// Parts one after the other. Short ones need no allocation, neither here nor in the key.
fn joined(parts: &[&[u8]]) -> ByteKey {
    let mut bytes = SmallVec::<[u8; 64]>::new();
    for part in parts {
        bytes.extend_from_slice(part);
    }
    ByteKey::new(&bytes)
}

/// Undoes [`window_key`]; `None` when the bytes are too short.
pub(crate) fn parse_window_key(bytes: &[u8]) -> Option<(&[u8], Timestamp, u32)> {
    let (rest, seq) = bytes.split_last_chunk::<4>()?;
    let (key, start) = rest.split_last_chunk::<8>()?;
    Some((key, i64::from_be_bytes(*start), u32::from_be_bytes(*seq)))
}

/// Key of a session row: key, 8 bytes of end, 8 bytes of start.
pub(crate) fn session_key(key: &[u8], start: Timestamp, end: Timestamp) -> ByteKey {
    joined(&[key, &end.to_be_bytes(), &start.to_be_bytes()])
}

/// Undoes [`session_key`]: key, start, end; `None` when the bytes are too short.
pub(crate) fn parse_session_key(bytes: &[u8]) -> Option<(&[u8], Timestamp, Timestamp)> {
    let (rest, start) = bytes.split_last_chunk::<8>()?;
    let (key, end) = rest.split_last_chunk::<8>()?;
    Some((key, i64::from_be_bytes(*start), i64::from_be_bytes(*end)))
}

/// The key of a changelog record; a null key is an error that names the record.
pub(super) fn restored_key<'a>(store: &str, record: &'a ConsumerRecord) -> Result<&'a [u8]> {
    record.key.as_deref().ok_or_else(|| malformed(store, record, "its key is null"))
}

/// The value of a changelog record, decoded, with the time that it tells or else the record has.
pub(super) fn restored_value(
    store: &str,
    serde: &AnySerde,
    record: &ConsumerRecord,
) -> Result<Option<ValueAndTimestamp>> {
    let Some(bytes) = &record.value else { return Ok(None) };
    let (value, time) = serde
        .deserialize_timed(bytes)
        .map_err(|error| malformed(store, record, &format!("its value cannot be read: {error}")))?;
    Ok(Some(ValueAndTimestamp { value, timestamp: time.unwrap_or(record.timestamp) }))
}

/// What is said of a changelog record that this store cannot have written.
pub(super) fn malformed(store: &str, record: &ConsumerRecord, what: &str) -> StreamsError {
    StreamsError::fatal(format!(
        "store {store}: changelog record {}-{} at offset {} is not one of this store: {what}. \
         Was the store's kind or type changed? Then give it a new name or reset the application",
        record.topic, record.partition, record.offset
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_and_session_keys_have_kafkas_bytes() {
        assert_eq!(window_key(b"a", 258, 3).as_slice(), b"a\0\0\0\0\0\0\x01\x02\0\0\0\x03");
        assert_eq!(session_key(b"a", 1, 258).as_slice(), b"a\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x01");
        assert_eq!(parse_window_key(&window_key(b"key", -5, 7)), Some((b"key".as_slice(), -5, 7)));
        assert_eq!(parse_session_key(&session_key(b"", 4, 9)), Some((b"".as_slice(), 4, 9)));
        assert_eq!(parse_window_key(b"too short"), None);
    }
}
