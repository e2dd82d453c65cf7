//! [`Windowed`] keys: a key and the window an aggregate of it belongs to, and their bytes on topics.
//!
//! On a topic a time window is its key followed by its start (the end follows from the size); a session is key, end, start. Only the
//! inner key chooses the partition, so all windows of a key are in one place.

use std::{fmt, sync::Arc};

use crate::streams::{
    client::partition_for_key,
    error::ProcessingError,
    record::{AnyValue, Timestamp},
    serdes::{AnySerde, Serde},
    topology::Partitioner,
};

/// A stretch of time. Whether `end` belongs to it depends on the kind: not for tumbling and hopping windows, yes for
/// sliding and session windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// First millisecond.
    pub start: Timestamp,
    /// Last millisecond, or the one after it.
    pub end: Timestamp,
}

/// A key in a window.
pub struct Windowed<K> {
    /// The key.
    pub key: Arc<K>,
    /// The window.
    pub window: Window,
}

impl<K> Clone for Windowed<K> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), window: self.window }
    }
}

impl<K: PartialEq> PartialEq for Windowed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.window == other.window && self.key == other.key
    }
}

impl<K: Eq> Eq for Windowed<K> {}

impl<K: fmt::Debug> fmt::Debug for Windowed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{}/{}", self.key, self.window.start, self.window.end)
    }
}

/// Puts an erased key into a window; captured where the key's type is known.
pub(crate) type WindowKey = fn(AnyValue, Window) -> Result<AnyValue, ProcessingError>;

/// Takes an erased windowed key apart: the inner key and the window.
pub(crate) type UnwindowKey = fn(&AnyValue) -> Result<(AnyValue, Window), ProcessingError>;

/// [`WindowKey`] for keys of type `K`.
pub(crate) fn window_key<K: Send + Sync + 'static>() -> WindowKey {
    |key, window| match key.downcast::<K>() {
        Ok(key) => Ok(Arc::new(Windowed { key, window })),
        Err(_) => Err(wrong_key::<K>()),
    }
}

/// [`UnwindowKey`] for keys of type `Windowed<K>`.
pub(crate) fn unwindow_key<K: Send + Sync + 'static>() -> UnwindowKey {
    |key| match key.downcast_ref::<Windowed<K>>() {
        Some(windowed) => Ok((windowed.key.clone() as AnyValue, windowed.window)),
        None => Err(wrong_key::<Windowed<K>>()),
    }
}

fn wrong_key<K>() -> ProcessingError {
    ProcessingError::new("ClassCastException", format!("the key is not a {}", std::any::type_name::<K>()))
}

/// Windowed keys of windows of one size (Kafka's `TimeWindowedSerde`): key, start. `end` is start + size.
pub struct TimeWindowedSerde {
    inner: AnySerde,
    size_ms: i64,
}

impl TimeWindowedSerde {
    /// A serde for `Windowed<K>`, given that of `K` and the windows' size (for sliding windows the time difference).
    pub fn of<K: Send + Sync + 'static>(inner: AnySerde, size_ms: i64) -> AnySerde {
        AnySerde::new::<Windowed<K>>(Self { inner, size_ms })
    }
}

impl<K: Send + Sync + 'static> Serde<Windowed<K>> for TimeWindowedSerde {
    fn serialize(&self, value: &Windowed<K>, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        self.inner.serialize(&(value.key.clone() as AnyValue), out)?;
        out.extend_from_slice(&value.window.start.to_be_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Windowed<K>, ProcessingError> {
        let (key, start) = split_time(bytes)?;
        let window = Window { start, end: start.saturating_add(self.size_ms) };
        Ok(Windowed { key: inner_key(&self.inner, key)?, window })
    }

    fn partitioning_suffix(&self) -> usize {
        8
    }
}

/// Session keys (Kafka's `SessionWindowedSerde`): key, end, start.
pub struct SessionWindowedSerde {
    inner: AnySerde,
}

impl SessionWindowedSerde {
    /// A serde for `Windowed<K>`, given that of `K`.
    pub fn of<K: Send + Sync + 'static>(inner: AnySerde) -> AnySerde {
        AnySerde::new::<Windowed<K>>(Self { inner })
    }
}

impl<K: Send + Sync + 'static> Serde<Windowed<K>> for SessionWindowedSerde {
    fn serialize(&self, value: &Windowed<K>, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        self.inner.serialize(&(value.key.clone() as AnyValue), out)?;
        out.extend_from_slice(&value.window.end.to_be_bytes());
        out.extend_from_slice(&value.window.start.to_be_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Windowed<K>, ProcessingError> {
        let (rest, start) = split_time(bytes)?;
        let (key, end) = split_time(rest)?;
        Ok(Windowed { key: inner_key(&self.inner, key)?, window: Window { start, end } })
    }

    fn partitioning_suffix(&self) -> usize {
        16
    }
}

fn split_time(bytes: &[u8]) -> Result<(&[u8], Timestamp), ProcessingError> {
    let (rest, time) = bytes.split_last_chunk::<8>().ok_or_else(|| {
        ProcessingError::new("SerializationException", "a windowed key ends in the 8 bytes of a time")
    })?;
    Ok((rest, Timestamp::from_be_bytes(*time)))
}

fn inner_key<K: Send + Sync + 'static>(inner: &AnySerde, bytes: &[u8]) -> Result<Arc<K>, ProcessingError> {
    inner.deserialize(bytes)?.downcast::<K>().map_err(|_| wrong_key::<K>())
}

/// For sinks of windowed keys: the hash of the inner key. `None` for other keys, whose whole bytes are hashed anyway.
pub(crate) fn windowed_partitioner(key_serde: &AnySerde) -> Option<Partitioner> {
    let suffix = key_serde.partitioning_suffix();
    if suffix == 0 {
        return None;
    }
    let serde = key_serde.clone();
    Some(Arc::new(move |_, record, partitions| {
        // Bytes that cannot be written fail in the sink, with the record's story; here they choose nothing.
        let bytes = serde.to_bytes(record.key.as_ref()?).ok()?;
        let inner = bytes.get(..bytes.len().checked_sub(suffix)?)?;
        Some(vec![partition_for_key(inner, partitions)])
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::serdes::HasSerde;

    #[test]
    fn windowed_keys_come_back() {
        let key: AnyValue =
            Arc::new(Windowed { key: Arc::new("k".to_owned()), window: Window { start: 10, end: 15 } });
        for serde in [
            TimeWindowedSerde::of::<String>(String::serde(), 5),
            SessionWindowedSerde::of::<String>(String::serde()),
        ] {
            let back = serde.deserialize(&serde.to_bytes(&key).unwrap()).unwrap();
            assert!(back.downcast_ref::<Windowed<String>>() == key.downcast_ref::<Windowed<String>>());
        }
    }
}
