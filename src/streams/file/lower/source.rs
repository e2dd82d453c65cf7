//! Topics to rows: the decoders of sources and of tables read from a topic.
//!
//! What must always hold: a record that cannot be read is a bad record of its source, never a wrong row; a table's row is kept under the
//! very bytes of the record's key, which decide its partition.

use std::sync::Arc;

use super::codec::{key_of, read_key};
use crate::streams::{
    error::ProcessingError,
    file::{
        json::{RowReader, read_plain},
        parse::{Format, Role},
        plan::{BadPolicy, SourcePlan},
        value::{Column, DataType, Datum, Row},
    },
    record::AnyValue,
    topology::{BadRecordPolicy, DecodedRecord, RecordDecoder, SourceSpec, TimestampExtractor},
};

/// The engine's source for a planned one. `keep_keys`: processors written in Rust see the key of stream records.
pub(super) fn source_spec(source: &SourcePlan, columns: &[Column], keep_keys: bool) -> SourceSpec {
    let mut spec = SourceSpec::new([source.topic.as_str()], decoder(source, columns, keep_keys));
    spec.timestamp_extractor = source.time.map(|slot| -> TimestampExtractor {
        Arc::new(move |record, decoded, _| {
            let row = decoded.value.as_ref().and_then(|value| value.downcast_ref::<Row>());
            Ok(row.and_then(|row| row[slot].as_timestamp()).unwrap_or(record.timestamp))
        })
    });
    spec.max_future_ms = source.max_future_ms;
    spec.bad = Some(match &source.bad {
        BadPolicy::DeadLetter(topic) => BadRecordPolicy::DeadLetter(topic.as_str().into()),
        BadPolicy::Skip => BadRecordPolicy::Skip,
        BadPolicy::Fail => BadRecordPolicy::Fail,
    });
    spec
}

/// Reads the columns that are not in the record's key.
enum ValueReader {
    Json(RowReader),
    Raw(Column),
}

impl ValueReader {
    fn read(&self, bytes: &[u8]) -> Result<Row, ProcessingError> {
        match self {
            ValueReader::Json(reader) => reader.read(bytes).map_err(|error| unreadable(error.to_string())),
            ValueReader::Raw(column) => {
                let text = std::str::from_utf8(bytes).map_err(|_| unreadable("the value is not UTF-8"))?;
                let data_type = column.column_type.data_type;
                let datum = read_plain(data_type, text).filter(|datum| !datum.is_null());
                let datum = datum.ok_or_else(|| {
                    unreadable(format!(
                        "the value should be {data_type} as plain text: field `{}`",
                        column.name
                    ))
                })?;
                Ok([datum].into_iter().collect())
            }
        }
    }
}

fn unreadable(message: impl Into<String>) -> ProcessingError {
    ProcessingError::new("SerializationException", message)
}

fn decoder(source: &SourcePlan, columns: &[Column], keep_keys: bool) -> RecordDecoder {
    let key_slots: Arc<[usize]> = source.key.clone().into();
    let key_types: Vec<DataType> =
        key_slots.iter().map(|slot| columns[*slot].column_type.data_type).collect();
    let values: Vec<Column> = columns
        .iter()
        .enumerate()
        .filter(|(slot, _)| !key_slots.contains(slot))
        .map(|(_, column)| column.clone())
        .collect();
    let reader = match (source.format, &values[..]) {
        (Format::Raw, [value]) => ValueReader::Raw(value.clone()),
        _ => ValueReader::Json(RowReader::new(values)),
    };
    let width = columns.len();
    let table = source.role != Role::Stream;
    Arc::new(move |record| {
        let key = match record.key.as_deref() {
            _ if key_slots.is_empty() => None,
            Some(key) => Some(parsed_key(&key_types, key)?),
            None => return Err(unreadable("the record has no key, and its fields are read from it")),
        };
        let value = match record.value.as_deref() {
            Some(bytes) => {
                let value = reader.read(bytes)?;
                Some(match &key {
                    Some(key) => woven(width, &key_slots, key, value),
                    None => value,
                })
            }
            None if table => None,
            None => return Err(unreadable("the record has no value, and a stream needs one")),
        };
        let shown = if table || keep_keys { record.key.as_ref() } else { None };
        Ok(DecodedRecord {
            key: shown.map(|key| Arc::new(key.to_vec()) as AnyValue),
            value: value.map(|row| Arc::new(row) as AnyValue),
            old: None,
        })
    })
}

/// The values of a key; one that is written in another way than joins write it would not be found.
fn parsed_key(types: &[DataType], key: &[u8]) -> Result<Row, ProcessingError> {
    let mut row = Row::with_capacity(types.len());
    if read_key(types, key, &mut row).is_some() && key_of(row.iter()).as_deref() == Some(key) {
        return Ok(row);
    }
    let wanted: Vec<&str> = types.iter().map(|data_type| data_type.name()).collect();
    let shown = String::from_utf8_lossy(key);
    Err(unreadable(format!("the key should be {} as plain text, found {shown}", wanted.join(", "))))
}

/// Key and value columns in the order of the fields.
fn woven(width: usize, key_slots: &[usize], key: &[Datum], value: Row) -> Row {
    let mut values = value.iter().cloned();
    (0..width)
        .map(|slot| match key_slots.iter().position(|known| *known == slot) {
            Some(at) => key[at].clone(),
            None => values.next().unwrap_or(Datum::Null),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_joins_would_write_otherwise_is_refused() {
        let cases = [
            (&[DataType::Int][..], "7", true),
            (&[DataType::Int], "07", false),
            (&[DataType::Int], "seven", false),
            (&[DataType::Text], "07", true),
            (&[DataType::Int, DataType::Text], "[7,\"a\"]", true),
            (&[DataType::Int, DataType::Text], "[7, \"a\"]", false),
        ];
        for (types, key, right) in cases {
            assert_eq!(parsed_key(types, key.as_bytes()).is_ok(), right, "{types:?} {key}");
        }
    }
}
