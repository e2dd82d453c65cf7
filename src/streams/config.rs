//! [`StreamsConfig`]: what an application is run with. Kafka Streams' keys, dots become underscores.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use super::client::OffsetReset;

/// Whose rules hold where Kafka Streams has a fault (streams-semantics part D). Every switch point names this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Semantics {
    /// Corrected: see `docs/streams.md` for each correction.
    #[default]
    Sluice,
    /// Record for record as Kafka Streams 4.3, faults included.
    Kafka43,
}

/// What a commit promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ProcessingGuarantee {
    /// Outputs, changelog and consumed offsets become visible together, once.
    #[default]
    ExactlyOnce,
    /// After a crash, records since the last commit are processed again and their outputs repeated.
    AtLeastOnce,
}

/// When the work of a save is done, once it is due. What it saves is always taken right after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SaveTiming {
    /// In a thread of its own, while work goes on.
    #[default]
    Background,
    /// The commit waits for it.
    AtCommit,
    /// By the task's own thread, when it has been asked for this many times: what a background save looks like, without a thread to
    /// race with. For simulations.
    Later(u32),
}

/// Settings of an application. [`Default`] is what a user gets who sets nothing.
#[derive(Clone, Debug)]
pub struct StreamsConfig {
    /// Prefix of internal topics; consumer group unless `group_id` says otherwise.
    pub application_id: String,
    /// Consumer group, when it is not the application id.
    pub group_id: Option<String>,
    /// Stable name of this process: same name after a restart = no rebalance, same transactional ids.
    pub instance_id: String,
    /// Stream threads of this process, >= 1.
    pub num_stream_threads: usize,
    /// Exactly-once or at-least-once.
    pub processing_guarantee: ProcessingGuarantee,
    /// Time between commits.
    pub commit_interval: Duration,
    /// What all tasks of the application may have of their state in memory, bytes. The record cache of a store may take a quarter of it
    /// on top.
    pub buffer_bytes_max: usize,
    /// Records buffered per input partition before it is paused.
    pub buffered_records_per_partition: usize,
    /// Most records one poll returns.
    pub max_poll_records: usize,
    /// Longest wait of a poll.
    pub poll: Duration,
    /// How long a task waits for an empty partition: negative = never, zero = only while it lags, else wall time once it is caught up.
    pub max_task_idle_ms: i64,
    /// Retry budget of retriable errors.
    pub task_timeout: Duration,
    /// A call to the log that has not returned for so long is reported; after `task_timeout` the application gives up.
    pub stuck_after: Duration,
    /// An open transaction older than this is aborted by the log.
    pub transaction_timeout: Duration,
    /// Where state files live.
    pub state_dir: PathBuf,
    /// A store is written to its file when it has been written to twice as often as it has rows and at least this many have changed: a sparse
    /// save costs a page per row.
    pub save_rows_min: u64,
    /// What has changed is written to the file after this time at the latest.
    pub save_age_max: Duration,
    /// Whether a save runs beside the work: a simulation must not depend on threads.
    pub save_timing: SaveTiming,
    /// 1 or more: this process keeps copies of the state of all tasks that it does not run. 0: none.
    pub num_standby_replicas: usize,
    /// Replicas of internal topics; -1 = the broker's default.
    pub replication_factor: i32,
    /// Where sources start without a committed offset.
    pub offset_reset: OffsetReset,
    /// Kafka's faults or ours corrected.
    pub semantics: Semantics,
    /// Wall time between scans for closed windows and expired join misses (Kafka's `__emit.interval.ms…`); 0 = at each record.
    pub emit_interval_ms: i64,
    /// Turns watermarks on: operators judge lateness by what every input has vouched for, in-band through repartition topics, and
    /// an input that is caught up and silent for this long no longer holds the clock back. `None` = off, as in Kafka Streams.
    pub idle_close_ms: Option<i64>,
    /// Source topics whose writer says how far it is: everything older than this (milliseconds since the epoch) that will ever be
    /// written to the topic is in it. Silence of such a topic only counts up to there: a writer that is held up must not make
    /// windows close over what it still holds. Topics not named here are complete when they are silent.
    pub progress: BTreeMap<String, Arc<AtomicI64>>,
}

impl StreamsConfig {
    /// The consumer group.
    pub fn group_id(&self) -> &str {
        self.group_id.as_deref().unwrap_or(&self.application_id)
    }
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            application_id: "sluice".into(),
            group_id: None,
            instance_id: "0".into(),
            num_stream_threads: 1,
            processing_guarantee: ProcessingGuarantee::ExactlyOnce,
            commit_interval: Duration::from_millis(100),
            buffer_bytes_max: 256 << 20,
            buffered_records_per_partition: 1_000,
            max_poll_records: 1_000,
            poll: Duration::from_millis(100),
            max_task_idle_ms: 0,
            task_timeout: Duration::from_secs(300),
            stuck_after: Duration::from_secs(60),
            transaction_timeout: Duration::from_secs(15),
            state_dir: PathBuf::from("data/state"),
            save_rows_min: 50_000,
            save_age_max: Duration::from_secs(60),
            save_timing: SaveTiming::Background,
            num_standby_replicas: 0,
            replication_factor: -1,
            offset_reset: OffsetReset::Earliest,
            semantics: Semantics::Sluice,
            emit_interval_ms: 1_000,
            idle_close_ms: None,
            progress: BTreeMap::new(),
        }
    }
}
