//! The runtime: [`KafkaStreams`] > [`StreamThread`] > [`TaskManager`] > [`StreamTask`].
//!
//! A record's way down: consume in `stream_thread` -> `task_manager.add_records` -> `partition_group` (smallest head
//! timestamp next) -> `task.process` -> `task_graph`, depth first -> processor -> store; what comes out is drained to the
//! producer. Below the stream thread nothing awaits, spawns, sleeps or reads a clock.

mod commit_metadata;
mod java_priority_queue;
mod partition_group;
mod punctuation_queue;
mod record_queue;
mod task;
mod task_graph;
mod task_id;
mod watermark;

pub use task::{StreamTask, TaskOptions};
pub use task_graph::{GlobalStores, TaskGraph};
pub use task_id::TaskId;
