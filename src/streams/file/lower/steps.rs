//! Stateless work: filters, projections, the reordering of merged rows, branches; chains of them are one processor.
//!
//! What must always hold: a record leaves with the time and headers it came with; a condition that is NULL lets nothing through.

use std::sync::Arc;

use super::{evaluated, row_of};
use crate::streams::{
    error::Result,
    file::{
        expression::{Expression, Predicate},
        value::Row,
    },
    processor::{AnyProcessor, NodeContext},
    record::AnyRecord,
};

/// One step.
#[derive(Debug)]
pub(super) enum Step {
    /// Keeps rows of which this is true.
    Filter(Predicate),
    /// Makes a new row.
    Select(Vec<Expression>),
    /// Makes a new row of these slots.
    Reorder(Vec<usize>),
    /// Leaves out what takes a row back: to a stream a change is a new row, and nothing else.
    Rows,
}

/// Runs steps in order, on one record at a time.
pub(super) struct Steps(pub Arc<[Step]>);

impl AnyProcessor for Steps {
    fn process(&mut self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        if matches!(self.0.first(), Some(Step::Rows)) {
            if record.value.is_none() {
                return Ok(());
            }
            record.old = None;
        }
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
                Step::Rows => {}
            }
        }
        context.forward(record)
    }
}

/// Sends each record to the first branch whose condition holds.
pub(super) struct Split {
    /// Names of the branches' nodes, and their conditions.
    pub into: Arc<[(String, Predicate)]>,
    /// The node for what no condition takes.
    pub rest: Option<Arc<str>>,
}

impl AnyProcessor for Split {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let row = row_of(&record)?;
        for (branch, condition) in self.into.iter() {
            if evaluated(condition.holds(row, &[]))? {
                return context.forward_to(branch, record);
            }
        }
        match &self.rest {
            Some(rest) => context.forward_to(rest, record),
            None => Ok(()),
        }
    }
}
