//! The state file of a task: where it is, what it must fit, opening and discarding it.

use std::path::PathBuf;

use super::{task::TaskOptions, task_id::TaskId};
use crate::streams::{
    error::{Result, StreamsError},
    processor::StoreId,
    state::{Backend, SavePolicy, TaskDb, TaskDbOptions},
};

/// Deletes the state file of a task that is not open.
pub(super) fn discard(options: &TaskOptions, id: TaskId) -> Result<()> {
    TaskDb::discard(&path(options, id))
}

/// `<state_dir>/<application_id>/<task>.sqlite`
fn path(options: &TaskOptions, id: TaskId) -> PathBuf {
    let config = &options.config;
    config.state_dir.join(&config.application_id).join(format!("{id}.sqlite"))
}

/// Opens or creates the file; none for a task without persistent stores. Ask it for what it has saved when the stores are built: one that
/// changed is dropped by that, and only that one.
pub(super) fn open(options: &TaskOptions, id: TaskId) -> Result<Option<TaskDb>> {
    let topology = &options.topology;
    let stores = &topology.subtopologies[id.subtopology].stores;
    let persistent = |id: &&StoreId| topology.stores[id.0].builder.backend == Backend::Persistent;
    if !stores.iter().any(|id| persistent(&id)) {
        return Ok(None);
    }
    let path = path(options, id);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| {
            StreamsError::Fatal(format!(
                "cannot create {}: {error}. Set streams.state_dir to a folder that can be written",
                folder.display()
            ))
        })?;
    }
    let config = &options.config;
    let policy = SavePolicy {
        min_rows: config.save_rows_min,
        max_age_ms: config.save_age_max.as_millis() as i64,
        timing: config.save_timing,
        ..SavePolicy::default()
    };
    let (db, _) =
        TaskDb::open(TaskDbOptions { path, task: id.to_string(), policy, memory: options.memory.clone() })?;
    let names = stores.iter().filter(persistent);
    db.keep_only(&names.map(|id| topology.stores[id.0].builder.name.as_str()).collect())?;
    Ok(Some(db))
}
