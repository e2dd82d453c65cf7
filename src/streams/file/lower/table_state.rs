//! What a table keeps per key (and window): the aggregates' states and how many records they are made of.
//!
//! In changelogs it is JSON; in the state file every aggregate that can be read back from its result is a column of its own, so that a
//! person can query it, and the rest stands as JSON beside them. What must always hold: both forms read back the same states.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::codec::{Input, from_sql, malformed, sql_type, to_sql, write_bytes};
use crate::streams::{
    error::ProcessingError,
    file::{
        expression::{Aggregate, AggregateState},
        json::write_datum,
        value::Datum,
    },
    record::{AnyValue, Timestamp},
    serdes::{ColumnSerde, Serde, SqlValue},
};

/// The states of a table's aggregates, in their order.
pub(super) type States = SmallVec<[AggregateState; 2]>;

/// The state under one key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TableState {
    /// Records folded in.
    pub revision: i64,
    /// One state per aggregate; a few stand inline, which spares an allocation per key.
    pub states: States,
}

/// A state as it is written; what an aggregate wrote is left to it.
#[derive(Deserialize)]
struct SavedState<'a> {
    revision: i64,
    #[serde(borrow)]
    states: SmallVec<[&'a RawValue; 4]>,
}

/// Writes and reads table states.
#[derive(Clone)]
pub(super) struct TableStateSerde {
    aggregates: Arc<[Aggregate]>,
    /// Names for the columns of the state file.
    names: Arc<[String]>,
}

impl TableStateSerde {
    /// A serde for these aggregates, named for people.
    pub(super) fn new(aggregates: Arc<[Aggregate]>, names: Arc<[String]>) -> Self {
        Self { aggregates, names }
    }

    fn write_states(&self, states: &[AggregateState], out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, state) in states.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            state.save(out);
        }
        out.push(b']');
    }

    fn read_states(&self, list: &[&RawValue]) -> Option<States> {
        if list.len() != self.aggregates.len() {
            return None;
        }
        self.aggregates
            .iter()
            .zip(list)
            .map(|(aggregate, raw)| AggregateState::load(aggregate, raw.get()))
            .collect()
    }
}

impl Serde<TableState> for TableStateSerde {
    fn serialize(&self, state: &TableState, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(b"{\"revision\":");
        write_datum(&Datum::Int(state.revision), out);
        out.extend_from_slice(b",\"states\":");
        self.write_states(&state.states, out);
        out.push(b'}');
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<TableState, ProcessingError> {
        let read = || {
            // Checked once: reading from text is cheaper than from bytes, and restoring is a read per record.
            let raw: SavedState<'_> = serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()?;
            Some(TableState { revision: raw.revision, states: self.read_states(&raw.states)? })
        };
        read().ok_or_else(|| malformed("a table's state"))
    }

    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        Some(Arc::new(self.clone()))
    }
}

impl ColumnSerde for TableStateSerde {
    fn columns(&self) -> Vec<(String, &'static str)> {
        let named = self.names.iter().zip(self.aggregates.iter());
        let named = named.map(|(name, aggregate)| (name.clone(), sql_type(aggregate.column_type())));
        [("revision".to_owned(), "INTEGER")]
            .into_iter()
            .chain(named)
            .chain([("states".to_owned(), "TEXT")])
            .collect()
    }

    fn to_columns(&self, value: &AnyValue) -> Vec<SqlValue> {
        let Some(state) = value.downcast_ref::<TableState>() else { return Vec::new() };
        let mut columns = vec![SqlValue::Integer(state.revision)];
        let mut whole = true;
        for (aggregate, held) in self.aggregates.iter().zip(&state.states) {
            whole &= aggregate.is_told_by_result(held);
            columns.push(to_sql(&aggregate.result(held)));
        }
        // Only what the columns cannot tell is written twice.
        columns.push(if whole {
            SqlValue::Null
        } else {
            let mut out = Vec::new();
            self.write_states(&state.states, &mut out);
            SqlValue::Text(String::from_utf8(out).unwrap_or_default())
        });
        columns
    }

    fn from_columns(&self, columns: &[SqlValue]) -> Result<AnyValue, ProcessingError> {
        let read = || {
            let (first, rest) = columns.split_first()?;
            let (last, results) = rest.split_last()?;
            let SqlValue::Integer(revision) = first else { return None };
            let states = match last {
                SqlValue::Text(text) => {
                    self.read_states(&serde_json::from_str::<Vec<&RawValue>>(text).ok()?)?
                }
                _ => self
                    .aggregates
                    .iter()
                    .zip(results)
                    .map(|(aggregate, result)| {
                        aggregate.state_of(from_sql(aggregate.column_type().data_type, result)?)
                    })
                    .collect::<Option<_>>()?,
            };
            Some(TableState { revision: *revision, states })
        };
        read().map(|state| Arc::new(state) as AnyValue).ok_or_else(|| malformed("a table's state"))
    }
}

/// Part of a table's result, folded before the repartition: of one key, window and commit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PartialState {
    /// Start of the window; 0 without windows.
    pub start: Timestamp,
    /// Latest record in it.
    pub time: Timestamp,
    /// Count and states.
    pub state: TableState,
}

/// Writes and reads partial states.
pub(super) struct PartialSerde(pub TableStateSerde);

impl Serde<PartialState> for PartialSerde {
    fn serialize(&self, partial: &PartialState, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(&partial.start.to_be_bytes());
        out.extend_from_slice(&partial.time.to_be_bytes());
        let mut state = Vec::new();
        self.0.serialize(&partial.state, &mut state)?;
        write_bytes(&state, out);
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<PartialState, ProcessingError> {
        let mut input = Input(bytes);
        let mut read = || Some((input.number()?, input.number()?, input.bytes()?));
        let (start, time, state) = read().ok_or_else(|| malformed("a partial result"))?;
        Ok(PartialState { start, time, state: self.0.deserialize(state)? })
    }
}
