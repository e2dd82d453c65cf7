//! The plan of a topology file: what will run, in canonical form.
//!
//! Between [`parse`](mod@super::parse) (shape) and [`lower`](mod@super::lower) (engine nodes): names are resolved, expressions typed, columns that
//! nobody reads are gone, repartitions and state are decided. What must always hold: equal files in meaning give equal plans; a plan
//! lowers without a further check.

mod bind;
mod canonical;
mod prune;

use std::collections::BTreeSet;

use super::{
    diagnostic::Diagnostics,
    expression::{Aggregate, Typed},
    parse,
    value::Column,
    window::Windows,
};
pub use canonical::{fingerprint, stores, table_store};

/// A planned application.
#[derive(Debug)]
pub struct Plan {
    /// Application id.
    pub app: String,
    /// Consumer group.
    pub group: String,
    /// Nodes, inputs before their readers.
    pub nodes: Vec<PlanNode>,
    /// Silence after which an input no longer holds the clock back, ms; `None` when no table asks for it.
    pub idle_close_ms: Option<i64>,
}

/// A node of the plan.
#[derive(Debug)]
pub struct PlanNode {
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
pub enum Operator {
    /// Reads a topic.
    Source {
        /// Topic.
        topic: String,
        /// Slot of the event time; `None`: the record's timestamp.
        time: Option<usize>,
        /// Most that a record may be ahead of the wall clock, ms.
        max_future_ms: Option<i64>,
        /// Bad records.
        bad: BadPolicy,
    },
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
    /// Drops repeats.
    Dedupe {
        /// Slot of the id.
        by: usize,
        /// Event time within which repeats come, ms.
        within_ms: i64,
    },
    /// Moves records to the partition of a key.
    Repartition {
        /// Slots of the key.
        by: Vec<usize>,
    },
    /// Aggregates.
    Table(TablePlan),
    /// Joins.
    Join(JoinPlan),
    /// Runs registered code.
    Processor {
        /// Registered name.
        uses: String,
        /// Tables whose stores it reads.
        stores: Vec<String>,
    },
}

/// What happens to bad records of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadPolicy {
    /// To this topic.
    DeadLetter(String),
    /// Counted and dropped.
    Skip,
    /// The application stops.
    Fail,
}

/// An aggregation.
#[derive(Debug)]
pub struct TablePlan {
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
pub struct JoinPlan {
    /// For each side the columns carried through a repartition; `None`: the side is keyed already.
    pub carried: [Option<Vec<usize>>; 2],
    /// Slot of the key on each side, over the carried row.
    pub on: [usize; 2],
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
}

/// A sink.
#[derive(Debug)]
pub struct SinkPlan {
    /// Topic.
    pub topic: String,
    /// The key, as text.
    pub key: Option<Typed>,
    /// Headers.
    pub headers: Vec<(String, Typed)>,
}

/// Reads, checks and plans a file. `processors` are the registered names.
pub fn plan(file_name: &str, text: &str, processors: &BTreeSet<String>) -> Result<Plan, Diagnostics> {
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

impl Plan {
    /// The topics outside of the application that are read.
    pub fn source_topics(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter_map(|node| match &node.operator {
                Operator::Source { topic, .. } => Some(topic.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The topics that are written: results and dead letters, each once.
    pub fn sink_topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = Vec::new();
        for node in &self.nodes {
            let dead_letters = match &node.operator {
                Operator::Source { bad: BadPolicy::DeadLetter(topic), .. } => Some(topic.as_str()),
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
