//! The plan of a topology file: what will run, in canonical form.
//!
//! Between [`parse`](mod@super::parse) (shape) and [`lower`](mod@super::lower) (engine nodes): names are resolved, expressions typed, columns that
//! nobody reads are gone, repartitions and state are decided. What must always hold: equal files in meaning give equal plans; a plan
//! lowers without a further check.

mod bind;
mod canonical;
pub(crate) mod diff;
mod part;
mod prune;

use std::collections::BTreeSet;

use super::{
    diagnostic::Diagnostics,
    expression::{Aggregate, Typed},
    parse,
    value::Column,
    window::Windows,
};
pub(crate) use canonical::state_name;

/// A planned application.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Application id.
    pub app: String,
    /// Consumer group.
    pub group: String,
    /// Nodes, inputs before their readers.
    pub nodes: Vec<PlanNode>,
    /// Silence after which an input no longer holds the clock back, ms; `None` when no node goes by event time.
    pub idle_close_ms: Option<i64>,
}

/// A node of the plan.
#[derive(Debug)]
pub(crate) struct PlanNode {
    /// Name.
    pub name: String,
    /// Positions of the inputs in [`Plan::nodes`].
    pub inputs: Vec<usize>,
    /// Columns of its rows.
    pub columns: Vec<Column>,
    /// Names of the columns whose values are the record key; `None` when the key is not known.
    pub keyed_by: Option<Vec<String>>,
    /// What it does.
    pub operator: Operator,
    /// Where its rows are written.
    pub sink: Option<SinkPlan>,
}

/// What a node does.
#[derive(Debug)]
pub(crate) enum Operator {
    /// Reads a topic.
    Source(SourcePlan),
    /// Filters and projects.
    Stream {
        /// Rows to keep.
        filter: Option<Typed>,
        /// New columns; `None` keeps the row.
        select: Option<Vec<Typed>>,
    },
    /// Puts streams together: for each input the slots that make the common row.
    Merge {
        /// Slots by input.
        slots: Vec<Vec<usize>>,
    },
    /// Sends rows to the first branch whose condition holds.
    Split {
        /// Names and conditions, in order.
        into: Vec<(String, Typed)>,
        /// The branch of what no condition takes.
        rest: Option<String>,
    },
    /// What a split sends here.
    Branch,
    /// Drops repeats.
    Dedupe {
        /// Slot of the id.
        by: usize,
        /// Event time within which repeats come, ms.
        within_ms: i64,
        /// Counted up to begin anew.
        state_version: i64,
    },
    /// Moves records to the partition of a key.
    Repartition {
        /// Slots of the key.
        by: Vec<usize>,
    },
    /// Aggregates.
    Table(TablePlan),
    /// Joins two streams.
    Join(JoinPlan),
    /// Joins each row of a stream with the row of a table.
    Lookup(LookupPlan),
    /// Joins two tables.
    TableJoin(TableJoinPlan),
    /// Runs registered code.
    Processor {
        /// Registered name.
        uses: String,
        /// Tables whose stores it reads.
        stores: Vec<String>,
    },
}

/// A topic and how it is read.
#[derive(Debug)]
pub(crate) struct SourcePlan {
    /// Stream, table or global table.
    pub role: parse::Role,
    /// Topic.
    pub topic: String,
    /// How values are written.
    pub format: parse::Format,
    /// Slots that are read from the record's key; empty where the value repeats the key.
    pub key: Vec<usize>,
    /// Slot of the event time; `None`: the record's timestamp.
    pub time: Option<usize>,
    /// Most that a record may be ahead of the wall clock, ms.
    pub max_future_ms: Option<i64>,
    /// Bad records.
    pub bad: BadPolicy,
    /// Counted up to read a table anew.
    pub state_version: i64,
}

/// What happens to bad records of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BadPolicy {
    /// To this topic.
    DeadLetter(String),
    /// Counted and dropped.
    Skip,
    /// The application stops.
    Fail,
}

/// An aggregation.
#[derive(Debug)]
pub(crate) struct TablePlan {
    /// Columns carried to the aggregation (slots of the input row); the expressions below count in these. `None`: no repartition,
    /// the input row itself.
    pub carried: Option<Vec<usize>>,
    /// Rows to take, over the *input* row: what is not counted is not repartitioned.
    pub filter: Option<Typed>,
    /// Slots of the group key, over the carried row.
    pub group_by: Vec<usize>,
    /// Window.
    pub windows: Option<Windows>,
    /// After a window's end, ms.
    pub grace_ms: i64,
    /// How long closed windows stay readable, ms.
    pub retention_ms: i64,
    /// Running results leave.
    pub on_update: bool,
    /// … with every record, rather than once a commit.
    pub on_record: bool,
    /// A final result leaves at the close.
    pub on_close: bool,
    /// Aggregates, over the carried row.
    pub aggregates: Vec<Aggregate>,
    /// Result columns over (group key, window bounds) on the left and aggregates on the right.
    pub select: Vec<Typed>,
    /// Results to let through, over the result row.
    pub having: Option<Typed>,
    /// Counted up to rebuild state.
    pub state_version: i64,
    /// Whether partial results are folded before the repartition.
    pub partial: bool,
}

/// A stream-stream join.
#[derive(Debug)]
pub(crate) struct JoinPlan {
    /// For each side the columns that are kept, and carried through its repartition.
    pub carried: [Vec<usize>; 2],
    /// Whether a side has the key already, and needs no repartition.
    pub keyed: [bool; 2],
    /// Slots of the key on each side, over the carried row.
    pub on: [Vec<usize>; 2],
    /// A right record may be this much older, ms.
    pub before_ms: i64,
    /// … or this much younger, ms.
    pub after_ms: i64,
    /// Waiting time for late partners, ms.
    pub grace_ms: i64,
    /// Which rows without partner are kept.
    pub kind: parse::JoinKind,
    /// Joined rows to keep.
    pub filter: Option<Typed>,
    /// Columns of the result, left and right carried rows as the two sides.
    pub select: Vec<Typed>,
    /// Counted up to rebuild state.
    pub state_version: i64,
}

/// A join of a stream with a table.
#[derive(Debug)]
pub(crate) struct LookupPlan {
    /// Columns of the stream carried through a repartition; `None`: the stream is keyed already, or the table is everywhere.
    pub carried: Option<Vec<usize>>,
    /// Slots of the table's key, over the carried row.
    pub on: Vec<usize>,
    /// Whether the table is a global one.
    pub global: bool,
    /// Whether rows without a partner are kept.
    pub left: bool,
    /// Joined rows to keep.
    pub filter: Option<Typed>,
    /// Columns of the result, the stream's row and the table's as the two sides.
    pub select: Vec<Typed>,
}

/// A join of two tables.
#[derive(Debug)]
pub(crate) struct TableJoinPlan {
    /// Slots of the right table's key in the left row; `None`: both have the same key.
    pub foreign: Option<Vec<usize>>,
    /// Which rows without partner are kept.
    pub kind: parse::JoinKind,
    /// Joined rows to keep.
    pub filter: Option<Typed>,
    /// Columns of the result.
    pub select: Vec<Typed>,
    /// Counted up to rebuild state.
    pub state_version: i64,
}

/// A sink.
#[derive(Debug)]
pub(crate) struct SinkPlan {
    /// Topic.
    pub topic: String,
    /// How values are written.
    pub format: parse::Format,
    /// The key, as text.
    pub key: Option<Typed>,
    /// Headers.
    pub headers: Vec<(String, Typed)>,
}

/// Reads, checks and plans a file. `processors` are the registered names.
pub(crate) fn plan(file_name: &str, text: &str, processors: &BTreeSet<String>) -> Result<Plan, Diagnostics> {
    let (file, mistakes) = parse::parse(file_name, text);
    let Some(file) = file else {
        mistakes.into_result()?;
        return Err(Diagnostics::new(file_name, text));
    };
    let whole = bind::bind(text, &file, processors, None, mistakes)?;
    let needed = prune::needed(&whole);
    // The same file with the columns that somebody reads: what was right with all of them is right with fewer.
    bind::bind(text, &file, processors, Some(&needed), Diagnostics::new(file_name, text))
}

impl PlanNode {
    /// Whether the node is a table that joins can look a key up in, where the file reads it.
    pub(crate) fn is_table(&self) -> bool {
        self.keyed_by.is_some()
            && match &self.operator {
                Operator::Source(source) => source.role == parse::Role::Table,
                Operator::Table(table) => table.windows.is_none(),
                Operator::TableJoin(_) => true,
                _ => false,
            }
    }

    /// Whether rows of the node may be taken back: a deletion, a condition that no longer holds, a session that grew.
    pub(crate) fn takes_back(&self) -> bool {
        match &self.operator {
            Operator::Source(source) => source.role == parse::Role::Table,
            Operator::Table(table) => {
                (table.on_update && table.having.is_some())
                    || matches!(table.windows, Some(Windows::Session { .. }) if table.on_update)
            }
            Operator::TableJoin(_) => true,
            _ => false,
        }
    }

    /// Whether every instance has all of it.
    pub(crate) fn is_global(&self) -> bool {
        matches!(&self.operator, Operator::Source(SourcePlan { role: parse::Role::Global, .. }))
    }
}

impl Plan {
    /// The topics outside of the application that are read.
    pub(crate) fn source_topics(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter_map(|node| match &node.operator {
                Operator::Source(source) => Some(source.topic.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The topics that are written: results and dead letters, each once.
    pub(crate) fn sink_topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = Vec::new();
        for node in &self.nodes {
            let dead_letters = match &node.operator {
                Operator::Source(SourcePlan { bad: BadPolicy::DeadLetter(topic), .. }) => {
                    Some(topic.as_str())
                }
                _ => None,
            };
            for topic in node.sink.iter().map(|sink| sink.topic.as_str()).chain(dead_letters) {
                if !topics.contains(&topic) {
                    topics.push(topic);
                }
            }
        }
        topics
    }
}
