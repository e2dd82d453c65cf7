//! What a table keeps per key (and window): the aggregates' states and how many records they are made of.
//!
//! In changelogs it is JSON; in the state file every aggregate that can be read back from its result is a column of its own, so that a
//! person can query it, and the rest stands as JSON beside them. What must always hold: both forms read back the same states.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::codec::{Input, from_sql, malformed, sql_type, to_sql, write_sized};
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
    /// Of the newest record; not there in partial results, which tell it themselves.
    time: Option<Timestamp>,
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

    fn write(&self, state: &TableState, time: Option<Timestamp>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"revision\":");
        write_datum(&Datum::Int(state.revision), out);
        if let Some(time) = time {
            out.extend_from_slice(b",\"time\":");
            write_datum(&Datum::Int(time), out);
        }
        out.extend_from_slice(b",\"states\":");
        self.write_states(&state.states, out);
        out.push(b'}');
    }

    fn read(&self, bytes: &[u8]) -> Result<(TableState, Option<Timestamp>), ProcessingError> {
        let read = || {
            // Checked once: reading from text is cheaper than from bytes, and restoring is a read per record.
            let text = std::str::from_utf8(bytes).ok()?;
            if let Some((revision, time, states)) = flat(text)
                && let Some(states) = self.read_states(&states)
            {
                return Some((TableState { revision, states }, time));
            }
            let raw: SavedState<'_> = serde_json::from_str(text).ok()?;
            let states: SmallVec<[&str; 4]> = raw.states.iter().map(|state| state.get()).collect();
            Some((TableState { revision: raw.revision, states: self.read_states(&states)? }, raw.time))
        };
        read().ok_or_else(|| malformed("a table's state"))
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

    fn read_states(&self, list: &[&str]) -> Option<States> {
        if list.len() != self.aggregates.len() {
            return None;
        }
        self.aggregates
            .iter()
            .zip(list)
            .map(|(aggregate, text)| AggregateState::load(aggregate, text))
            .collect()
    }
}

/// Revision, time and states of what [`TableStateSerde`] wrote, where no state is a list and no text has escapes: a third of the price of
/// reading JSON, and nearly all that a restore reads.
fn flat(text: &str) -> Option<(i64, Option<Timestamp>, SmallVec<[&str; 4]>)> {
    let rest = text.strip_prefix("{\"revision\":")?;
    let (revision, rest) = rest.split_once(',')?;
    let (time, rest) = match rest.strip_prefix("\"time\":") {
        Some(rest) => rest.split_once(',').map(|(time, rest)| (Some(time), rest))?,
        None => (None, rest),
    };
    let mut rest = rest.strip_prefix("\"states\":[")?;
    let mut states = SmallVec::new();
    loop {
        let end = match rest.as_bytes().first()? {
            b'[' | b'{' | b']' => return None,
            b'"' => {
                rest[1..].find(['"', '\\']).map(|at| at + 1).filter(|at| rest.as_bytes()[*at] == b'"')? + 1
            }
            _ => rest.find([',', ']'])?,
        };
        let (state, behind) = rest.split_at(end);
        states.push(state);
        match behind {
            "]}" => break,
            behind => rest = behind.strip_prefix(',')?,
        }
    }
    let time = time.map(str::parse).transpose().ok()?;
    Some((revision.parse().ok()?, time, states))
}

impl Serde<TableState> for TableStateSerde {
    fn serialize(&self, state: &TableState, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        self.write(state, None, out);
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<TableState, ProcessingError> {
        self.read(bytes).map(|(state, _)| state)
    }

    fn carries_time(&self) -> bool {
        true
    }

    fn serialize_timed(
        &self,
        state: &TableState,
        time: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), ProcessingError> {
        self.write(state, Some(time), out);
        Ok(())
    }

    fn deserialize_timed(&self, bytes: &[u8]) -> Result<(TableState, Option<Timestamp>), ProcessingError> {
        self.read(bytes)
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
                    let raw = serde_json::from_str::<Vec<&RawValue>>(text).ok()?;
                    self.read_states(&raw.iter().map(|state| state.get()).collect::<Vec<_>>())?
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
        write_sized(out, |out| self.0.serialize(&partial.state, out))
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<PartialState, ProcessingError> {
        let mut input = Input(bytes);
        let mut read = || Some((input.number()?, input.number()?, input.bytes()?));
        let (start, time, state) = read().ok_or_else(|| malformed("a partial result"))?;
        Ok(PartialState { start, time, state: self.0.deserialize(state)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_states_are_read_as_json_would_be() {
        let cases = [
            (
                "{\"revision\":3,\"time\":-5,\"states\":[1,\"a,b]\",null]}",
                Some((3, Some(-5), vec!["1", "\"a,b]\"", "null"])),
            ),
            ("{\"revision\":3,\"states\":[1]}", Some((3, None, vec!["1"]))),
            // Left to the JSON reader.
            ("{\"revision\":3,\"states\":[]}", None),
            ("{\"revision\":3,\"states\":[[1,2]]}", None),
            ("{\"revision\":3,\"states\":[\"a\\\"b\"]}", None),
            ("{\"revision\":3,\"states\":[1", None),
            ("{\"revision\":x,\"states\":[1]}", None),
        ];
        for (text, expected) in cases {
            let found = flat(text).map(|(revision, time, states)| (revision, time, states.to_vec()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
