//! Turns what the engine wrote and stores into the JSON of the cases.

use serde_json::{Value as Json, json};
use sluice::streams::{
    internals::{Store, ValueAndTimestamp},
    kstream::{SessionWindowedSerde, TimeWindowedSerde, Windowed},
    record::{AnyValue, Headers, ProducerRecord},
    serdes::{AnySerde, HasSerde},
    stores::{StoreBuilder, StoreKind},
};

use crate::{
    functions::Ty,
    interpreter::{KeyKind, Output},
};

/// What could not be shown.
type Shown<T> = Result<T, String>;

/// A value, or the text of why there is none.
fn value(value: &AnyValue) -> Json {
    match (value.downcast_ref::<String>(), value.downcast_ref::<i64>()) {
        (Some(text), _) => json!(text),
        (_, Some(number)) => json!(number),
        _ => json!("(neither text nor integer)"),
    }
}

fn key(any: &AnyValue) -> Json {
    match any.downcast_ref::<Windowed<String>>() {
        Some(windowed) => {
            json!({ "key": *windowed.key, "start": windowed.window.start, "end": windowed.window.end })
        }
        None => value(any),
    }
}

fn decoded(serde: &AnySerde, bytes: Option<&[u8]>, show: fn(&AnyValue) -> Json) -> Shown<Json> {
    match bytes {
        None => Ok(Json::Null),
        Some(bytes) => serde.deserialize(bytes).map(|any| show(&any)).map_err(|error| error.to_string()),
    }
}

fn value_serde(ty: Ty) -> AnySerde {
    match ty {
        Ty::Text => String::serde(),
        Ty::Integer => i64::serde(),
    }
}

fn headers(headers: &Headers) -> Json {
    headers
        .iter()
        .map(|header| {
            json!([
                header.key,
                header.value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
            ])
        })
        .collect()
}

fn with_headers(mut row: Json, record: &ProducerRecord) -> Json {
    if !record.headers.is_empty() {
        row["headers"] = headers(&record.headers);
    }
    row
}

/// The JSON text of a key with its fields in the order the files have them.
pub fn key_text(key: &Json) -> String {
    match key.as_object() {
        Some(windowed) => {
            let field = |name: &str| windowed.get(name).map(ToString::to_string).unwrap_or_default();
            format!("{{\"key\":{},\"start\":{},\"end\":{}}}", field("key"), field("start"), field("end"))
        }
        None => key.to_string(),
    }
}

/// A record of a sink topic.
pub fn output(record: &ProducerRecord, output: Output, at: i64) -> Shown<Json> {
    let key_serde = match output.key {
        KeyKind::Plain => String::serde(),
        KeyKind::Time(size) => TimeWindowedSerde::of::<String>(String::serde(), size),
        KeyKind::Session => SessionWindowedSerde::of::<String>(String::serde()),
    };
    let row = json!({
        "key": decoded(&key_serde, record.key.as_deref(), key)?,
        "value": decoded(&value_serde(output.ty), record.value.as_deref(), value)?,
        "ts": record.timestamp,
        "at": at,
    });
    Ok(with_headers(row, record))
}

/// A dead letter.
pub fn dead_letter(record: &ProducerRecord, at: i64) -> Json {
    let hex = |bytes: Option<&[u8]>| {
        bytes.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let row = json!({
        "key_hex": hex(record.key.as_deref()),
        "value_hex": hex(record.value.as_deref()),
        "ts": record.timestamp,
        "at": at,
    });
    with_headers(row, record)
}

/// A record of a repartition topic, read as the source behind it reads it.
pub fn repartition(
    record: &ProducerRecord,
    decode: impl Fn(&ProducerRecord) -> Shown<(Option<AnyValue>, Option<AnyValue>, Option<AnyValue>)>,
    regrouped: bool,
    at: i64,
) -> Shown<Json> {
    let (record_key, new, old) = decode(record)?;
    let mut row = json!({ "key": record_key.as_ref().map(key), "ts": record.timestamp, "at": at });
    if regrouped {
        if let Some(new) = &new {
            row["new"] = value(new);
        }
        if let Some(old) = &old {
            row["old"] = value(old);
        }
    } else {
        row["value"] = json!(new.as_ref().map(value));
    }
    Ok(with_headers(row, record))
}

/// Splits time and sequence off the end of a window store's changelog key.
fn split(bytes: &[u8], tail: usize) -> Shown<(&[u8], &[u8])> {
    bytes
        .len()
        .checked_sub(tail)
        .map(|at| bytes.split_at(at))
        .ok_or_else(|| format!("a changelog key of {} bytes is too short", bytes.len()))
}

fn time(bytes: &[u8]) -> i64 {
    bytes.try_into().map(i64::from_be_bytes).unwrap_or(i64::MIN)
}

/// A row of a suppress buffer (streams-semantics 3.1, format 3): context, prior, old and new value, buffer time.
fn buffered(bytes: &[u8], serde: &AnySerde) -> Shown<Json> {
    struct Reader<'a>(&'a [u8]);
    impl<'a> Reader<'a> {
        fn take(&mut self, count: usize) -> Shown<&'a [u8]> {
            let (taken, rest) = self.0.split_at_checked(count).ok_or("a buffered row ends early")?;
            self.0 = rest;
            Ok(taken)
        }

        fn int(&mut self) -> Shown<i32> {
            self.take(4).map(|bytes| bytes.try_into().map_or(i32::MIN, i32::from_be_bytes))
        }

        fn bytes(&mut self, length: i32) -> Shown<Option<&'a [u8]>> {
            if length < 0 { Ok(None) } else { self.take(length as usize).map(Some) }
        }
    }
    let mut row = Reader(bytes);
    let record_ts = time(row.take(8)?);
    row.take(8)?;
    let topic = row.int()?;
    row.bytes(topic)?;
    row.take(4)?;
    for _ in 0..row.int()? {
        let name = row.int()?;
        row.bytes(name)?;
        let value = row.int()?;
        row.bytes(value)?;
    }
    let length = row.int()?;
    let prior = row.bytes(length)?;
    let old = match row.int()? {
        -2 => prior,
        length => row.bytes(length)?,
    };
    let length = row.int()?;
    let new = row.bytes(length)?;
    let show = |bytes| decoded(serde, bytes, value);
    Ok(json!({
        "prior": show(prior)?,
        "old": show(old)?,
        "new": show(new)?,
        "record_ts": record_ts,
        "buffer_time": time(row.take(8)?),
    }))
}

/// A record of a store's changelog.
pub fn changelog(record: &ProducerRecord, store: &StoreBuilder, at: i64) -> Shown<Json> {
    let bytes = record.key.as_deref().unwrap_or_default();
    let inner = |bytes: &[u8]| decoded(&store.key_serde, Some(bytes), key);
    let key = match &store.kind {
        StoreKind::KeyValue { .. } | StoreKind::Versioned { .. } | StoreKind::Buffer => inner(bytes)?,
        StoreKind::Window { duplicates, window_size, .. } => {
            let (key, tail) = split(bytes, 12)?;
            let start = time(&tail[..8]);
            if *duplicates {
                let seq = tail[8..].try_into().map(u32::from_be_bytes).unwrap_or(u32::MAX);
                json!({ "key": inner(key)?, "start": start, "seq": seq })
            } else {
                let size = i64::try_from(window_size.as_millis()).unwrap_or(i64::MAX);
                json!({ "key": inner(key)?, "start": start, "end": start.saturating_add(size) })
            }
        }
        StoreKind::Session { .. } => {
            let (key, tail) = split(bytes, 16)?;
            json!({ "key": inner(key)?, "start": time(&tail[8..]), "end": time(&tail[..8]) })
        }
    };
    let value = match (&store.kind, record.value.as_deref()) {
        (StoreKind::Buffer, Some(bytes)) => buffered(bytes, &store.value_serde)?,
        (_, bytes) => decoded(&store.value_serde, bytes, value)?,
    };
    Ok(json!({ "key": key, "value": value, "ts": record.timestamp, "at": at }))
}

/// A record of the changelog of a stream join's waiting rows: 8 bytes of time, one of side, the key; a list of values, each with its
/// length and side.
pub fn pending(record: &ProducerRecord, left: &AnySerde, right: &AnySerde, at: i64) -> Shown<Json> {
    let bytes = record.key.as_deref().unwrap_or_default();
    let (Some(row_time), Some(side), Some(inner)) = (bytes.get(..8), bytes.get(8), bytes.get(9..)) else {
        return Err("a waiting row's key is too short".into());
    };
    let is_left = *side == 1;
    let key = json!({
        "time": time(row_time),
        "side": if is_left { "left" } else { "right" },
        "key": decoded(&String::serde(), Some(inner), key)?,
    });
    let values = match record.value.as_deref() {
        None => Json::Null,
        Some(bytes) => {
            let length = |at: usize| -> Shown<usize> {
                let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map(|bytes| u32::from_be_bytes(bytes) as usize).ok_or_else(|| "a list cut short".into())
            };
            let mut values = Vec::new();
            let mut place = 4;
            for _ in 0..length(0)? {
                let end = place + 4 + length(place)?;
                let one = bytes.get(place + 5..end).ok_or("a list cut short")?;
                values.push(decoded(if is_left { left } else { right }, Some(one), value)?);
                place = end;
            }
            Json::Array(values)
        }
    };
    Ok(json!({ "key": key, "value": values, "ts": record.timestamp, "at": at }))
}

/// The rows of a store, in its listing order. `inputs` are the keys of all input records: what a versioned store is asked for.
pub fn store(store: &mut Store, builder: &StoreBuilder, inputs: &[String]) -> Shown<Vec<Json>> {
    let plain = |bytes: &[u8]| decoded(&builder.key_serde, Some(bytes), key);
    let timestamped = match &builder.kind {
        StoreKind::KeyValue { timestamped } | StoreKind::Window { timestamped, .. } => *timestamped,
        _ => false,
    };
    let stamped = |mut row: Json, value: &ValueAndTimestamp| {
        if timestamped {
            row["ts"] = json!(value.timestamp);
        }
        row
    };
    let failed = |error: sluice::streams::error::StreamsError| error.to_string();
    let mut rows = Vec::new();
    match store {
        Store::KeyValue(store) => {
            let all = store.range(None, None, sluice::streams::internals::Order::Forward).map_err(failed)?;
            for (key, row) in all {
                rows.push(stamped(json!({ "key": plain(&key)?, "value": value(&row.value) }), &row));
            }
        }
        Store::Window(store) => {
            let size = match &builder.kind {
                StoreKind::Window { window_size, .. } => {
                    i64::try_from(window_size.as_millis()).unwrap_or(i64::MAX)
                }
                _ => 0,
            };
            for row in store.all().map_err(failed)? {
                let key = json!({
                    "key": plain(&row.key)?,
                    "start": row.start,
                    "end": row.start.saturating_add(size),
                });
                rows.push(stamped(json!({ "key": key, "value": value(&row.value.value) }), &row.value));
            }
        }
        Store::Session(store) => {
            for row in store.all().map_err(failed)? {
                let key = json!({ "key": plain(&row.key)?, "start": row.start, "end": row.end });
                rows.push(json!({ "key": key, "value": value(&row.value) }));
            }
        }
        Store::Versioned(store) => {
            for key in inputs {
                if let Some(row) = store.get(key.as_bytes()).map_err(failed)? {
                    rows.push(json!({ "key": key, "value": value(&row.value), "ts": row.timestamp }));
                }
            }
        }
        Store::Buffer(_) => {}
    }
    Ok(rows)
}
