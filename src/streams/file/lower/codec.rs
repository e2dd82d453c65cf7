//! Rows as bytes: repartition topics, changelogs and the state file.
//!
//! A row is one tag byte and the value per column; a key is text that a person can read (one column as plain text, several as a JSON
//! list). What must always hold: what is written reads back as the same values, and reading never trusts a length.

use std::sync::Arc;

use uuid::Uuid;

use crate::streams::{
    error::ProcessingError,
    file::{
        json::{read_list, read_plain, write_datum, write_plain},
        value::{Column, ColumnType, DataType, Datum, Row},
    },
    record::AnyValue,
    serdes::{ColumnSerde, Serde, SqlValue},
};

/// Writes and reads rows of known columns.
#[derive(Clone, Debug)]
pub(super) struct RowSerde {
    columns: Arc<[Column]>,
}

impl RowSerde {
    /// A serde of rows with these columns.
    pub(super) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect() }
    }
}

impl Serde<Row> for RowSerde {
    fn serialize(&self, row: &Row, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        row.iter().for_each(|datum| write(datum, out));
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Row, ProcessingError> {
        let mut input = Input(bytes);
        let row = input.row(self.columns.len()).filter(|_| input.0.is_empty());
        row.ok_or_else(|| malformed("a row"))
    }

    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        Some(Arc::new(self.clone()))
    }
}

impl ColumnSerde for RowSerde {
    fn columns(&self) -> Vec<(String, &'static str)> {
        self.columns.iter().map(|column| (column.name.clone(), sql_type(column.column_type))).collect()
    }

    fn to_columns(&self, value: &AnyValue) -> Vec<SqlValue> {
        let row = value.downcast_ref::<Row>();
        row.map(|row| row.iter().map(to_sql).collect()).unwrap_or_default()
    }

    fn from_columns(&self, columns: &[SqlValue]) -> Result<AnyValue, ProcessingError> {
        let row: Option<Row> = self
            .columns
            .iter()
            .zip(columns)
            .map(|(column, value)| from_sql(column.column_type.data_type, value))
            .collect();
        row.map(|row| Arc::new(row) as AnyValue).ok_or_else(|| malformed("a row of the state file"))
    }
}

/// The error for bytes that none of ours wrote.
pub(super) fn malformed(what: &str) -> ProcessingError {
    ProcessingError::new("SerializationException", format!("the bytes are not {what} of this topology"))
}

/// The type of a column in the state file.
pub(super) fn sql_type(column_type: ColumnType) -> &'static str {
    match column_type.data_type {
        DataType::Int | DataType::Bool | DataType::Timestamp | DataType::Duration => "INTEGER",
        DataType::Float => "REAL",
        DataType::Text | DataType::Uuid | DataType::Json => "TEXT",
    }
}

/// A value as the state file keeps it.
pub(super) fn to_sql(datum: &Datum) -> SqlValue {
    match datum {
        Datum::Null => SqlValue::Null,
        Datum::Int(value) | Datum::Timestamp(value) | Datum::Duration(value) => SqlValue::Integer(*value),
        Datum::Bool(value) => SqlValue::Integer(i64::from(*value)),
        Datum::Float(value) => SqlValue::Real(*value),
        Datum::Text(text) | Datum::Json(text) => SqlValue::Text(text.to_string()),
        Datum::Uuid(uuid) => SqlValue::Text(uuid.to_string()),
    }
}

/// A value from the state file.
pub(super) fn from_sql(data_type: DataType, value: &SqlValue) -> Option<Datum> {
    Some(match (value, data_type) {
        (SqlValue::Null, _) => Datum::Null,
        (SqlValue::Integer(value), DataType::Bool) => Datum::Bool(*value != 0),
        (SqlValue::Integer(value), DataType::Timestamp) => Datum::Timestamp(*value),
        (SqlValue::Integer(value), DataType::Duration) => Datum::Duration(*value),
        (SqlValue::Integer(value), _) => Datum::Int(*value),
        (SqlValue::Real(value), _) => Datum::float(*value),
        (SqlValue::Text(text), DataType::Uuid) => Datum::Uuid(Uuid::parse_str(text).ok()?),
        (SqlValue::Text(text), DataType::Json) => Datum::Json(text.as_str().into()),
        (SqlValue::Text(text), _) => Datum::text(text),
        (SqlValue::Blob(_), _) => return None,
    })
}

/// Appends a value.
pub(super) fn write(datum: &Datum, out: &mut Vec<u8>) {
    match datum {
        Datum::Null => out.push(0),
        Datum::Int(value) => write_number(1, *value, out),
        Datum::Float(value) => {
            out.push(2);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Datum::Text(text) => write_text(3, text, out),
        Datum::Bool(false) => out.push(4),
        Datum::Bool(true) => out.push(5),
        Datum::Timestamp(value) => write_number(6, *value, out),
        Datum::Duration(value) => write_number(7, *value, out),
        Datum::Uuid(uuid) => {
            out.push(8);
            out.extend_from_slice(uuid.as_bytes());
        }
        Datum::Json(text) => write_text(9, text, out),
    }
}

fn write_number(tag: u8, value: i64, out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&value.to_be_bytes());
}

fn write_text(tag: u8, text: &str, out: &mut Vec<u8>) {
    out.push(tag);
    write_bytes(text.as_bytes(), out);
}

/// Appends bytes with their length before them.
fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_sized(out, |out| out.extend_from_slice(bytes));
}

/// Appends what `write` appends, with its length before it.
pub(super) fn write_sized<T>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let written = write(out);
    // No record is longer than 32 bits count.
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    written
}

/// Bytes being read.
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// A number.
    pub(super) fn number(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    /// Bytes with their length before them.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.take()?) as usize;
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn text(&mut self) -> Option<Arc<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Arc::from)
    }

    /// A value.
    pub(super) fn datum(&mut self) -> Option<Datum> {
        let [tag] = self.take()?;
        Some(match tag {
            0 => Datum::Null,
            1 => Datum::Int(self.number()?),
            2 => Datum::float(f64::from_be_bytes(self.take()?)),
            3 => Datum::Text(self.text()?),
            4 => Datum::Bool(false),
            5 => Datum::Bool(true),
            6 => Datum::Timestamp(self.number()?),
            7 => Datum::Duration(self.number()?),
            8 => Datum::Uuid(Uuid::from_bytes(self.take()?)),
            9 => Datum::Json(self.text()?),
            _ => return None,
        })
    }

    /// Passes over a value that [`datum`](Self::datum) would read.
    pub(super) fn skip(&mut self) -> Option<()> {
        let [tag] = self.take()?;
        match tag {
            0 | 4 | 5 => Some(()),
            1 | 2 | 6 | 7 => self.take::<8>().map(drop),
            3 | 9 => std::str::from_utf8(self.bytes()?).ok().map(drop),
            8 => self.take::<16>().map(drop),
            _ => None,
        }
    }

    /// A row of that many values.
    pub(super) fn row(&mut self, columns: usize) -> Option<Row> {
        let mut row = Row::with_capacity(columns.min(64));
        for _ in 0..columns {
            row.push(self.datum()?);
        }
        Some(row)
    }
}

/// The key of the values: plain text of one, a JSON list of several; `None` when one is NULL.
pub(super) fn key_of<'a>(values: impl ExactSizeIterator<Item = &'a Datum>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(24);
    write_key(values, &mut out).then_some(out)
}

/// Appends a key as [`key_of`] makes it; `false` when a value is NULL, and then what was appended is of no use.
pub(super) fn write_key<'a>(values: impl ExactSizeIterator<Item = &'a Datum>, out: &mut Vec<u8>) -> bool {
    let single = values.len() == 1;
    for (index, value) in values.enumerate() {
        match value {
            Datum::Null => return false,
            // All digits: the short form of text would bring different doubles together.
            Datum::Float(_) if single => write_datum(value, out),
            value if single => write_plain(value, out),
            value => {
                out.push(if index == 0 { b'[' } else { b',' });
                write_datum(value, out);
            }
        }
    }
    if !single {
        out.push(b']');
    }
    true
}

/// The values of a key that [`key_of`] made, appended to a row.
pub(super) fn read_key(types: &[DataType], key: &[u8], row: &mut Row) -> Option<()> {
    let text = std::str::from_utf8(key).ok()?;
    if let [data_type] = types {
        row.push(read_plain(*data_type, text)?);
        return Some(());
    }
    read_list(types, text)?.into_iter().for_each(|value| row.push(value));
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn datum() -> impl Strategy<Value = Datum> {
        prop_oneof![
            any::<i64>().prop_map(Datum::Int),
            any::<f64>().prop_filter("a number", |f| f.is_finite()).prop_map(Datum::Float),
            any::<String>().prop_map(Datum::text),
            any::<bool>().prop_map(Datum::Bool),
            (0..4_000_000_000_000_i64).prop_map(Datum::Timestamp),
            any::<i64>().prop_map(Datum::Duration),
            any::<u128>().prop_map(|bits| Datum::Uuid(Uuid::from_u128(bits))),
        ]
    }

    proptest! {
        #[test]
        fn rows_read_back(values in proptest::collection::vec(prop_oneof![Just(Datum::Null), datum()], 0..6)) {
            let columns = values.iter().map(|value| {
                Column::new("c", ColumnType::nullable(value.data_type().unwrap_or(DataType::Int)))
            });
            let serde = RowSerde::new(columns);
            let row: Row = values.into_iter().collect();
            let mut bytes = Vec::new();
            serde.serialize(&row, &mut bytes).unwrap();
            prop_assert_eq!(&serde.deserialize(&bytes).unwrap(), &row);
            for cut in 0..bytes.len() {
                prop_assert!(serde.deserialize(&bytes[..cut]).is_err());
            }
            let shared = Arc::new(row) as AnyValue;
            let restored = ColumnSerde::from_columns(&serde, &serde.to_columns(&shared)).unwrap();
            prop_assert_eq!(restored.downcast_ref::<Row>(), shared.downcast_ref::<Row>());
        }

        #[test]
        fn bytes_of_others_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = RowSerde::new([Column::new("a", ColumnType::nullable(DataType::Text))]).deserialize(&bytes);
        }

        #[test]
        fn keys_read_back_and_differ(first in proptest::collection::vec(datum(), 1..4), second in proptest::collection::vec(datum(), 1..4)) {
            let types: Vec<DataType> = first.iter().filter_map(Datum::data_type).collect();
            let key = key_of(first.iter()).unwrap();
            let mut row = Row::default();
            read_key(&types, &key, &mut row).unwrap();
            let first: Row = first.into_iter().collect();
            prop_assert_eq!(&row, &first);
            let same_types = second.len() == types.len() && second.iter().zip(&types).all(|(d, t)| d.data_type() == Some(*t));
            let second: Row = second.into_iter().collect();
            if same_types && second != first {
                prop_assert_ne!(key_of(second.iter()).unwrap(), key);
            }
        }
    }
}
