//! Topologies as files: `topologies/*.toml` read, checked, planned and lowered onto the engine.
//!
//! | file | step |
//! |---|---|
//! | [`value`], [`time`], [`json`] | what moves: datums, rows, and records to rows and back |
//! | [`reader`], [`parse`](mod@parse), [`diagnostic`] | text to the shape of the file; mistakes with their line and a caret |
//! | [`plan`](mod@plan) | names and types resolved, unread columns gone, repartitions and state decided |
//! | [`lower`](mod@lower) | the plan as nodes, stores and topics of the engine |
//! | [`test_file`] | what the tests beside a file send and expect |
//! | [`expression`] | SQL in the file's strings: parsed, typed, compiled |
//!
//! A record's way through a lowered file is the engine's; nothing here runs but the functions that the nodes call. What must always
//! hold: a file that loads runs, and a mistake is refused at load with its line, a caret and advice.

pub mod diagnostic;
pub mod expression;
pub mod json;
pub mod lower;
#[cfg(test)]
mod mistakes;
pub mod parse;
pub mod plan;
pub mod reader;
pub mod suggest;
pub mod test_file;
pub mod time;
pub mod value;
pub mod window;

pub use diagnostic::Diagnostics;
pub use lower::{Processors, lower};
pub use plan::{Plan, plan};

use super::{error::StreamsError, topology::Topology};

/// A file ready to run.
pub struct LoadedFile {
    /// The topology.
    pub topology: Topology,
    /// Consumer group.
    pub group: String,
    /// The plan in canonical form.
    pub plan: serde_json::Value,
    /// What the runtime's `idle_close_ms` has to be for the file's final results; `None` when no table asks for it.
    pub idle_close_ms: Option<i64>,
    /// Topics outside of the application that are read.
    pub source_topics: Vec<String>,
    /// Topics that are written, dead letters included.
    pub sink_topics: Vec<String>,
}

/// Why a file does not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Mistakes in the file, with their places.
    #[error("{0}")]
    Mistakes(#[from] Diagnostics),
    /// The engine refuses the topology.
    #[error("{0}")]
    Topology(#[from] StreamsError),
}

/// Reads a file to what runs. `file_name` is for messages.
pub fn load(file_name: &str, text: &str, processors: &Processors) -> Result<LoadedFile, LoadError> {
    let plan = plan(file_name, text, &processors.names())?;
    let owned = |topics: Vec<&str>| topics.into_iter().map(str::to_owned).collect();
    let (group, idle_close_ms, canonical) = (plan.group.clone(), plan.idle_close_ms, plan.to_json());
    let (source_topics, sink_topics) = (owned(plan.source_topics()), owned(plan.sink_topics()));
    let topology = lower(plan, processors)?;
    Ok(LoadedFile { topology, group, plan: canonical, idle_close_ms, source_topics, sink_topics })
}
