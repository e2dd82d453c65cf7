//! Stateless work: filters, projections, the reordering of merged rows, headers of results; chains of them are one processor.
//!
//! What must always hold: a record leaves with the time and headers it came with; a condition that is NULL lets nothing through.

use std::sync::Arc;

use bytes::Bytes;

use super::{evaluated, row_of};
use crate::streams::{
    error::Result,
    file::{
        expression::{Expression, Predicate},
        json::write_plain,
        value::{Datum, Row},
    },
    processor::{AnyProcessor, NodeContext},
    record::AnyRecord,
};

/// One step.
#[derive(Debug)]
pub enum Step {
    /// Keeps rows of which this is true.
    Filter(Predicate),
    /// Makes a new row.
    Select(Vec<Expression>),
    /// Makes a new row of these slots.
    Reorder(Vec<usize>),
    /// Adds headers.
    Headers(Vec<(String, Expression)>),
}

/// Runs steps in order, on one record at a time.
pub struct Steps(pub Arc<[Step]>);

impl AnyProcessor for Steps {
    fn process(&mut self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        for step in self.0.iter() {
            let row = row_of(&record)?;
            match step {
                Step::Filter(predicate) => {
                    if !evaluated(predicate.holds(row, &[]))? {
                        return Ok(());
                    }
                }
                Step::Select(expressions) => {
                    let mut selected = Row::with_capacity(expressions.len());
                    for expression in expressions {
                        selected.push(evaluated(expression.evaluate(row, &[]))?);
                    }
                    record.value = Some(Arc::new(selected));
                }
                Step::Reorder(slots) => {
                    let reordered: Row = slots.iter().map(|slot| row[*slot].clone()).collect();
                    record.value = Some(Arc::new(reordered));
                }
                Step::Headers(headers) => {
                    let mut added = Vec::with_capacity(headers.len());
                    for (name, expression) in headers {
                        added.push((name, evaluated(expression.evaluate(row, &[]))?));
                    }
                    for (name, value) in added {
                        record.headers.add(name.clone(), header(&value));
                    }
                }
            }
        }
        context.forward(record)
    }
}

fn header(value: &Datum) -> Option<Bytes> {
    if value.is_null() {
        return None;
    }
    let mut out = Vec::new();
    write_plain(value, &mut out);
    Some(out.into())
}
