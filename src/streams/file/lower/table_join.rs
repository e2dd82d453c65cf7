//! Joins with tables: the DSL's own operators, given the file's expressions.
//!
//! A stream's record brings the table's key (through a repartition, or made of its columns); two tables meet by their keys or by a foreign
//! one. What must always hold: joined rows are those of the expressions, and a condition that does not hold means no row.

use std::sync::Arc;

use super::{
    End, Lowering, Rekey, Step,
    codec::{RowSerde, key_of},
    compiled,
};
use crate::streams::{
    error::{ProcessingError, Result},
    file::{
        expression::{EvalError, Expression, Predicate, Typed},
        parse::JoinKind,
        plan::{LookupPlan, TableJoinPlan, state_name},
        value::{Column, Row},
    },
    kstream::{
        GraftedNode, Joined, KTable, Materialized, TableJoined, UserResult, place_of_stream, place_of_table,
        with_serdes,
    },
    processor::ProcessorSupplier,
    serdes::{AnySerde, BytesSerde},
};

/// A key between nodes of a file: its bytes.
pub(super) type Key = Vec<u8>;

pub(super) fn key_serde() -> AnySerde {
    AnySerde::new::<Key>(BytesSerde)
}

pub(super) fn row_serde(columns: &[Column]) -> AnySerde {
    AnySerde::new::<Row>(RowSerde::new(columns.iter().cloned()))
}

/// Makes joined rows.
struct Joining {
    filter: Option<Predicate>,
    select: Vec<Expression>,
    /// Columns of each side, of which there are so many NULLs where it is missing.
    nulls: [Row; 2],
}

type JoinFn = dyn Fn(Option<&Key>, Option<&Row>, Option<&Row>) -> UserResult<Option<Row>> + Send + Sync;

impl Joining {
    fn joiner(filter: Option<Typed>, select: Vec<Typed>, widths: [usize; 2]) -> Arc<JoinFn> {
        let joining = Self {
            filter: filter.map(Predicate::new),
            select: compiled(select),
            nulls: widths.map(Row::nulls),
        };
        Arc::new(move |_, left, right| {
            let failed = |error: EvalError| ProcessingError::new("ExpressionError", error.to_string());
            joining.row(left, right).map_err(failed)
        })
    }

    fn row(&self, left: Option<&Row>, right: Option<&Row>) -> std::result::Result<Option<Row>, EvalError> {
        let (left, right) = (left.unwrap_or(&self.nulls[0]), right.unwrap_or(&self.nulls[1]));
        if let Some(filter) = &self.filter
            && !filter.holds(left, right)?
        {
            return Ok(None);
        }
        let mut row = Row::with_capacity(self.select.len());
        for expression in &self.select {
            row.push(expression.evaluate(left, right)?);
        }
        Ok(Some(row))
    }
}

impl Lowering<'_> {
    pub(super) fn lookup(&mut self, name: &str, inputs: &[usize], lookup: LookupPlan) -> Result<End> {
        let (parent, steps) = self.input(inputs[0])?;
        let mut sources = self.ends[inputs[0]].sources.clone();
        let LookupPlan { carried, on, global, left, filter, select } = lookup;
        let filtered = filter.is_some();
        let mut stream_columns = self.columns[inputs[0]].clone();
        let parent = match &carried {
            Some(carried) => {
                stream_columns = carried.iter().map(|slot| stream_columns[*slot].clone()).collect();
                let source = self.repartition(name, &parent, inputs[0], carried, &on, steps)?;
                sources = vec![source.clone()];
                source
            }
            None => {
                let parent = self.after(&format!("{name}-input"), steps, parent)?;
                if global {
                    parent
                } else {
                    let (rekeyed, by): (_, Arc<[usize]>) = (format!("{name}-rekey"), on.clone().into());
                    let supplier: ProcessorSupplier = Arc::new(move || Box::new(Rekey(by.clone())));
                    self.builder.add_processor(&rekeyed, supplier, &[&parent])?;
                    rekeyed
                }
            }
        };
        let widths = [stream_columns.len(), self.columns[inputs[1]].len()];
        let stream = self.graft.stream::<Key, Row>(GraftedNode {
            name: &parent,
            sources: &sources,
            key: key_serde(),
            value: row_serde(&stream_columns),
        });
        let join = Joining::joiner(filter, select, widths);
        let join = move |key: Option<&Key>, left: Option<&Row>, right: Option<&Row>| join(key, left, right);
        let joined = match (&self.ends[inputs[1]].global, &self.ends[inputs[1]].table) {
            (Some(store), _) => {
                let table = self.graft.global_table::<Key, Row>(store);
                let key = move |_: Option<&Key>, row: Option<&Row>| {
                    Ok(row.and_then(|row| key_of(on.iter().map(|slot| &row[*slot]))))
                };
                if left {
                    stream.try_left_join_global(&table, key, join, name)
                } else {
                    stream.try_join_global(&table, key, join, name)
                }
            }
            (None, Some(table)) if left => stream.left_join_table_with(table, join, Joined::named(name)),
            (None, Some(table)) => stream.join_table_with(table, join, Joined::named(name)),
            (None, None) => return Err(super::no_table(name)),
        };
        let (node, sources) = place_of_stream(&joined);
        self.graft.write(&mut self.builder)?;
        let bad = self.ends[inputs[0]].bad.clone();
        // A condition that does not hold leaves no row, and that is nothing for a stream.
        let open = if filtered { vec![Step::Rows] } else { Vec::new() };
        let end = End { open, ..End::of(node, sources.into_iter().collect(), bad) };
        self.closed_if_shared(name, end)
    }

    pub(super) fn table_join(
        &mut self,
        name: &str,
        inputs: &[usize],
        columns: &[Column],
        join: TableJoinPlan,
    ) -> Result<End> {
        let table = |side: usize| self.ends[inputs[side]].table.clone().ok_or_else(|| super::no_table(name));
        let (left, right): (KTable<Key, Row>, KTable<Key, Row>) = (table(0)?, table(1)?);
        let TableJoinPlan { foreign, kind, filter, select, state_version } = join;
        let widths = [0, 1].map(|side| self.columns[inputs[side]].len());
        let joiner = Joining::joiner(filter, select, widths);
        let join = move |key: Option<&Key>, left: Option<&Row>, right: Option<&Row>| joiner(key, left, right);
        let joined = match (foreign, kind) {
            (Some(foreign), kind) => {
                let base = state_name(name, state_version);
                let key = move |_: Option<&Key>, row: Option<&Row>| {
                    Ok(row.and_then(|row| key_of(foreign.iter().map(|slot| &row[*slot]))))
                };
                let named = TableJoined::named(base.as_str());
                let stored = Materialized::named(base)
                    .with_key_serde(key_serde())
                    .with_value_serde(row_serde(columns))
                    .with_caching(false);
                if kind == JoinKind::Left {
                    left.left_join_on_with(&right, key, join, named, stored)
                } else {
                    left.join_on_with(&right, key, join, named, stored)
                }
            }
            (None, JoinKind::Inner) => left.join_with(&right, join, name, None),
            (None, JoinKind::Left) => left.left_join_with(&right, join, name, None),
            (None, JoinKind::Outer) => left.outer_join_with(&right, join, name, None),
        };
        let (node, sources) = place_of_table(&joined);
        self.graft.write(&mut self.builder)?;
        let bad = self.ends[inputs[0]].bad.clone();
        let sources: Vec<String> = sources.into_iter().collect();
        let table = with_serdes(joined, key_serde(), row_serde(columns));
        Ok(End { table: Some(table), ..End::of(node, sources, bad) })
    }
}
