//! The runtime: [`KafkaStreams`] > [`StreamThread`] > `TaskManager` > [`StreamTask`].
//!
//! A record's way down: consume in `stream_thread` -> `task_manager.add_records` -> `partition_group` (smallest head
//! timestamp next) -> `task.process` -> `task_graph`, depth first -> processor -> store; what comes out is drained to the
//! producer. Below the stream thread nothing awaits, spawns, sleeps or reads a clock.

mod call_watch;
mod changelog_reader;
mod commit_metadata;
mod commit_step;
mod fencing;
mod global_thread;
mod input_hold;
mod internal_topics;
mod java_priority_queue;
mod kafka_streams;
mod node_watermarks;
mod partition_group;
mod punctuation_queue;
mod raw_record;
mod record_queue;
mod refused_records;
mod standby;
mod standstill;
mod state_layout;
mod stream_thread;
mod supervisor;
mod task;
mod task_files;
mod task_graph;
mod task_id;
mod task_manager;
mod watchdog;
mod watermark;

pub use changelog_reader::RestoreProgress;
pub use commit_step::{CommitStep, StepHook};
pub(crate) use input_hold::Hold;
pub(crate) use internal_topics::plan_from as plan_partitions_from;
pub(crate) use internal_topics::wanted as internal_topics;
pub use internal_topics::{PartitionPlan, create as create_internal_topics, plan as plan_partitions};
pub(crate) use kafka_streams::system_clock;
pub use kafka_streams::{KafkaStreams, RunOptions, State, Totals};
pub use stream_thread::{Clock, StreamThread, ThreadParts, ThreadStatus};
pub(crate) use task::StreamTask;
pub use task::TaskOptions;
pub(crate) use task_graph::GlobalStores;
pub use task_id::TaskId;
pub use task_manager::TaskState;
pub(crate) use watermark::read as read_control_record;
