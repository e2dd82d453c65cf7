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

pub(crate) mod diagnostic;
pub(crate) mod expression;
pub(crate) mod json;
pub(crate) mod lower;
#[cfg(test)]
mod mistakes;
pub(crate) mod parse;
pub(crate) mod plan;
pub(crate) mod reader;
mod schema;
pub(crate) mod suggest;
pub(crate) mod test_file;
pub(crate) mod time;
pub(crate) mod value;
pub(crate) mod window;

pub use diagnostic::Diagnostics;
pub use lower::Processors;
pub(crate) use lower::lower;
pub(crate) use plan::{Plan, plan};
pub use schema::schema;
pub use value::{Datum, Row};

use std::collections::BTreeSet;

use super::{
    error::StreamsError,
    topology::{BadRecordPolicy, NodeKind, Topology, changelog_topic},
};

/// A file ready to run.
pub struct LoadedFile {
    /// What messages call the file.
    pub name: String,
    /// Its text, so that what runs can be loaded again.
    pub text: String,
    /// The topology.
    pub topology: Topology,
    /// Consumer group.
    pub group: String,
    /// The plan in canonical form.
    pub plan: serde_json::Value,
    /// What the runtime's `idle_close_ms` has to be for the file's final results; `None` when no node goes by event time.
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

impl LoadedFile {
    /// Stores of these nodes.
    pub fn stores_of(&self, nodes: &BTreeSet<String>) -> BTreeSet<String> {
        let all = self.plan["nodes"].as_array().into_iter().flatten();
        let wanted = all.filter(|node| node["name"].as_str().is_some_and(|name| nodes.contains(name)));
        let stores = wanted.flat_map(|node| node["stores"].as_array().into_iter().flatten());
        stores.filter_map(|store| store.as_str().map(str::to_owned)).collect()
    }
}

/// Reads a file to what runs. `file_name` is for messages.
pub fn load(file_name: &str, text: &str, processors: &Processors) -> Result<LoadedFile, LoadError> {
    ready(file_name, text, plan(file_name, text, &processors.names())?, processors)
}

/// The part of a file that builds the state of these nodes anew: they and what they read, without sinks and dead letters, as the
/// application `application`. The new state's changelogs are those that the file itself will use.
pub fn load_rebuild(
    file_name: &str,
    text: &str,
    processors: &Processors,
    nodes: &BTreeSet<String>,
    application: &str,
) -> Result<LoadedFile, LoadError> {
    let whole = plan(file_name, text, &processors.names())?;
    let owner = whole.app.clone();
    let mut file = ready(file_name, text, whole.only(nodes, application), processors)?;
    for store in file.stores_of(nodes) {
        let changelog = changelog_topic(&owner, &store);
        file.topology.changelog_names.insert(store, changelog);
    }
    for node in &mut file.topology.nodes {
        // Bad records were told of when they first came.
        if let NodeKind::Source(source) = &mut node.kind
            && matches!(source.bad, Some(BadRecordPolicy::DeadLetter(_)))
        {
            source.bad = Some(BadRecordPolicy::Skip);
        }
    }
    Ok(file)
}

fn ready(file_name: &str, text: &str, plan: Plan, processors: &Processors) -> Result<LoadedFile, LoadError> {
    let owned = |topics: Vec<&str>| topics.into_iter().map(str::to_owned).collect();
    let (group, idle_close_ms, canonical) = (plan.group.clone(), plan.idle_close_ms, plan.to_json());
    let (source_topics, sink_topics) = (owned(plan.source_topics()), owned(plan.sink_topics()));
    let mut topology = lower(plan, processors)?;
    scope_clocks(&mut topology, &canonical);
    let (name, text) = (file_name.to_owned(), text.to_owned());
    Ok(LoadedFile { name, text, topology, group, plan: canonical, idle_close_ms, source_topics, sink_topics })
}

/// State that was built anew begins with clocks of its own: those of the version before say what that one had sent.
fn scope_clocks(topology: &mut Topology, plan: &serde_json::Value) {
    for node in plan["nodes"].as_array().into_iter().flatten() {
        let version = node["state"]["stateVersion"].as_i64().unwrap_or(1);
        let stores = node["stores"].as_array().into_iter().flatten().filter_map(|store| store.as_str());
        if version > 1 {
            for store in stores {
                topology.scope_clocks_of(store, &format!("v{version}"));
            }
        }
    }
}
