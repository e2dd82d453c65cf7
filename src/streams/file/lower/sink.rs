//! Rows to topics: keys, headers and values of results, and the deletions of what is taken back.
//!
//! What must always hold: what a topic shows under a key is the newest row with that key; a row that is taken back is deleted under the
//! key that it had.

use std::sync::Arc;

use bytes::Bytes;

use super::{evaluated, row_of};
use crate::streams::{
    error::{ProcessingError, Result},
    file::{
        expression::Expression,
        json::{RowWriter, write_plain},
        parse::Format,
        value::{Column, Datum, Row},
    },
    processor::{AnyProcessor, NodeContext},
    record::AnyRecord,
    topology::{EncodedRecord, RecordEncoder},
};

/// The row that tells a record's key: its own, or the one that is taken back.
fn keyed_row(record: &AnyRecord) -> Result<&Row> {
    match (&record.value, &record.old) {
        (None, Some(old)) => old
            .downcast_ref::<Row>()
            .ok_or_else(|| ProcessingError::new("NullValue", "what is taken back is no row").into()),
        _ => row_of(record),
    }
}

fn plain(value: &Datum) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    let mut out = Vec::new();
    write_plain(value, &mut out);
    Some(out)
}

/// Before the sink of a node that takes rows back: a row that leaves its key behind is deleted there.
pub(super) struct TakeBack {
    /// The sink's key; without one nothing can be deleted.
    pub key: Option<Arc<Expression>>,
}

impl AnyProcessor for TakeBack {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (Some(key), Some(old)) = (&self.key, &record.old) else {
            return if record.value.is_some() { context.forward(record) } else { Ok(()) };
        };
        if record.value.is_some() {
            let gone = AnyRecord { value: None, old: Some(old.clone()), ..record.clone() };
            let was = evaluated(key.evaluate(keyed_row(&gone)?, &[]))?;
            if was == evaluated(key.evaluate(row_of(&record)?, &[]))? {
                return context.forward(record);
            }
            context.forward(gone)?;
        }
        context.forward(record)
    }
}

/// Adds headers.
pub(super) struct Headers(pub Arc<[(String, Expression)]>);

impl AnyProcessor for Headers {
    fn process(&mut self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        let row = keyed_row(&record)?;
        let mut added = Vec::with_capacity(self.0.len());
        for (name, expression) in self.0.iter() {
            added.push((name, evaluated(expression.evaluate(row, &[]))?));
        }
        for (name, value) in added {
            record.headers.add(name.clone(), plain(&value).map(Bytes::from));
        }
        context.forward(record)
    }
}

/// Writes rows.
pub(super) fn encoder(columns: &[Column], format: Format, key: Option<Arc<Expression>>) -> RecordEncoder {
    let writer = RowWriter::new(columns.iter().map(|column| column.name.as_str()));
    Arc::new(move |record| {
        let unwritable =
            |error: &dyn std::fmt::Display| ProcessingError::new("SerializationException", error.to_string());
        let row = keyed_row(record).map_err(|error| unwritable(&error))?;
        let key = match &key {
            None => None,
            Some(key) => plain(
                &key.evaluate(row, &[])
                    .map_err(|error| ProcessingError::new("ExpressionError", error.to_string()))?,
            ),
        };
        let value = match format {
            _ if record.value.is_none() => None,
            Format::Raw => plain(&row[0]),
            Format::Json => {
                let mut value = Vec::with_capacity(128);
                writer.write(row, &mut value);
                Some(value)
            }
        };
        Ok(EncodedRecord { key, value })
    })
}
