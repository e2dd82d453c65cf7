//! The ports to a log: [`Consumer`], [`Producer`], [`Admin`].
//!
//! Two adapters stand behind them, held by one contract test suite: [`kafka`] is librdkafka, [`embedded`] is a log
//! kept in SQLite (file or memory) inside the process. Everything here is synchronous; a stream thread calls it.
//!
//! # Contract
//! * Offsets handed to `commit`/`send_offsets` are the *next* offset to read.
//! * A consumer with `read_committed` never sees a record of an open or aborted transaction, nor past the first open one.
//! * `poll` returns at most one rebalance; while one is returned and not yet acknowledged (`assign`/`unassign`),
//!   the group waits. Nothing is assigned or revoked behind the caller's back.
//! * Errors say what to do: `Retriable` same call again; `AbortTransaction` abort and rewind; `TaskMigrated` fenced: drop
//!   the tasks and rejoin (from a producer: abort; if that fails too, it is the producer that is fenced: drop it, make a
//!   new one and `init_transactions`); `OffsetOutOfRange` the position is not in the log and the reset policy is `None`;
//!   `Fatal` give up.
//! * Dropping a producer aborts nothing, as in a crash: an open transaction stays open until its timeout or the next
//!   `init_transactions` of its id. Dropping a consumer closes it.
//! * A plain (not transactional) producer keeps what it was given, in order: `flush` answers `Retriable` while the log
//!   cannot be reached, and flushing again goes on. After any other error the producer is of no further use: make a new
//!   one and send what was not flushed again.

pub mod embedded;
pub mod kafka;
mod partitioner;
mod read;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use partitioner::partition_for_key;
pub(crate) use read::read_partitions;
pub use read::read_topic;

use super::{
    error::Result,
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
};

/// A committed position: the next offset to read, and text kept with it (clocks, as Kafka Streams keeps them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetAndMetadata {
    /// The next offset to read.
    pub offset: i64,
    /// Free text stored with the offset; empty when none.
    pub metadata: String,
}

/// Where a consumer starts when its group has no committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OffsetReset {
    /// The first record kept.
    #[default]
    Earliest,
    /// Only what comes after now.
    Latest,
    /// Refuse: an error names the partition.
    None,
    /// The first record that is younger than this, counted back from now; where there is none, what comes after now (KIP-1106). An
    /// application looks the place up; a consumer alone takes only what comes after now.
    ByDuration(Duration),
}

/// What a consumer is made with.
#[derive(Clone, Debug, Default)]
pub struct ConsumerConfig {
    /// Consumer group; `None` for a consumer that only assigns partitions itself.
    pub group_id: Option<String>,
    /// Stable member name: a restart within the session timeout causes no rebalance.
    pub group_instance_id: Option<String>,
    /// Hide open and aborted transactions.
    pub read_committed: bool,
    /// Where to start without a committed offset, and on an offset out of range.
    pub offset_reset: OffsetReset,
    /// Most records one `poll` returns; 0 means the default of 1000.
    pub max_poll_records: usize,
    /// Time without a heartbeat after which the group gives the partitions away; `None` = the adapter's default.
    pub session_timeout: Option<Duration>,
}

/// What a producer is made with.
#[derive(Clone, Debug, Default)]
pub struct ProducerConfig {
    /// Stable id of the transactional producer; `None` for a plain idempotent one.
    pub transactional_id: Option<String>,
    /// An open transaction older than this is aborted by the log; `None` = 15 s.
    pub transaction_timeout: Option<Duration>,
}

/// Identity of a group member at a generation; sent with transactional offsets so that a zombie is refused (KIP-447).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadata {
    /// The group.
    pub group_id: String,
    /// Generation the member last joined.
    pub generation_id: i32,
    /// The member's id in that generation.
    pub member_id: String,
    /// Its static name, if it has one.
    pub group_instance_id: Option<String>,
}

/// A change of what this member owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These partitions are this member's from now on (all of them: the protocol is eager). Answer with [`Consumer::assign`].
    Assigned(Vec<TopicPartition>),
    /// These partitions go away. Commit, then answer with [`Consumer::unassign`].
    Revoked(Vec<TopicPartition>),
    /// These partitions are already somebody else's: do not commit. Answer with [`Consumer::unassign`].
    Lost(Vec<TopicPartition>),
}

/// What one poll brought.
#[derive(Debug, Default)]
pub struct Polled {
    /// Records, in offset order per partition.
    pub records: Vec<ConsumerRecord>,
    /// A rebalance to acknowledge, if one is due.
    pub rebalance: Option<Rebalance>,
}

/// Reads partitions of topics.
pub trait Consumer: Send {
    /// Joins the group for these topics (range assignment, so equal partition counts go together).
    fn subscribe(&mut self, topics: &[String]) -> Result<()>;

    /// Reads these partitions from now on and no others, each from the given offset, or from the committed offset / reset policy
    /// when `None`. Acknowledges [`Rebalance::Assigned`]; also used without a group.
    fn assign(&mut self, partitions: &[(TopicPartition, Option<i64>)]) -> Result<()>;

    /// Gives up all partitions. Acknowledges [`Rebalance::Revoked`] and [`Rebalance::Lost`].
    fn unassign(&mut self) -> Result<()>;

    /// Waits up to `timeout` for records or a rebalance. Returns early when there is something; a zero timeout never blocks.
    /// Also the heartbeat: call it often.
    fn poll(&mut self, timeout: Duration) -> Result<Polled>;

    /// Continues reading at `offset`. Records already handed out are the caller's to drop.
    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()>;

    /// Stops fetching these partitions until resumed.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Undoes [`pause`](Self::pause).
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// The offset the next poll would return per assigned partition, control records and gaps stepped over where the log tells.
    fn position(&mut self, partition: &TopicPartition) -> Result<Option<i64>>;

    /// Commits offsets for the group (not transactional).
    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()>;

    /// The group's committed offsets; partitions without one are absent. With `read_committed` it waits for pending
    /// transactional commits, for a bounded time, then `Retriable`; else it tells the last that are decided.
    fn committed(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>>;

    /// `(first kept, end)` offsets. End is the last *stable* offset for read_committed, else the high watermark.
    fn watermarks(&mut self, partition: &TopicPartition) -> Result<(i64, i64)>;

    /// The offset of the first record at or after a time; `None` when there is none. Reads no more than it must where the log keeps an
    /// index of times, else from the beginning; what was assigned before is given up.
    fn offset_for_time(&mut self, partition: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        let (first, end) = self.watermarks(partition)?;
        self.assign(&[(partition.clone(), Some(first))])?;
        loop {
            let records = self.poll(Duration::from_millis(10))?.records;
            if let Some(found) = records.iter().find(|record| record.timestamp >= time) {
                return Ok(Some(found.offset));
            }
            if self.position(partition)?.is_none_or(|at| at >= end) {
                return Ok(None);
            }
        }
    }

    /// What the client itself says of a partition that it should be reading, for messages; `None` where it says nothing.
    fn client_view(&self, partition: &TopicPartition) -> Option<String> {
        let _ = partition;
        None
    }

    /// The member's identity now; `None` outside a group.
    fn group_metadata(&self) -> Option<GroupMetadata>;

    /// Leaves the group (a static member only goes silent). Idempotent.
    fn close(&mut self);
}

/// Writes records; with a transactional id, in transactions.
pub trait Producer: Send {
    /// Fences older producers of this transactional id and aborts what they left open. Once, before `begin`.
    fn init_transactions(&mut self) -> Result<()>;

    /// Opens a transaction.
    fn begin_transaction(&mut self) -> Result<()>;

    /// Hands a record over. Returns before it is durable; a failure surfaces here, in `flush` or in `commit_transaction`.
    /// `RecordRefused`: this record was not taken and would not be another time; everything else is as before the call.
    fn send(&mut self, record: ProducerRecord) -> Result<()>;

    /// Waits until everything sent is acknowledged; returns the first failure since the last flush. `Retriable`: some of
    /// it is not acknowledged yet, flush again and do not send it again.
    fn flush(&mut self) -> Result<()>;

    /// Puts consumed offsets into the open transaction.
    fn send_offsets_to_transaction(
        &mut self,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        group: &GroupMetadata,
    ) -> Result<()>;

    /// Commits the open transaction. `Retriable`: outcome unknown, call again; do not abort.
    fn commit_transaction(&mut self) -> Result<()>;

    /// Aborts the open transaction. An error: this producer is of no further use, make a new one.
    fn abort_transaction(&mut self) -> Result<()>;

    /// Number of partitions of a topic (cached); an error when it does not exist.
    fn partition_count(&mut self, topic: &str) -> Result<i32>;
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas; -1 = the broker's default.
    pub replication_factor: i32,
    /// Topic configuration by Kafka's names (`cleanup.policy`, `retention.ms`, …).
    pub config: BTreeMap<String, String>,
}

/// What is known of an existing topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of partition 0.
    pub replication_factor: i32,
}

/// A member of a group, as an outsider sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id in the current generation.
    pub member_id: String,
    /// Its static name, if it has one.
    pub group_instance_id: Option<String>,
}

/// Creates and inspects topics.
pub trait Admin: Send + Sync {
    /// Creates the topics that do not exist; an existing one is left as it is (compare with [`Admin::describe`]).
    fn create_topics(&self, topics: &[NewTopic]) -> Result<()>;

    /// Describes those that exist of the given topics.
    fn describe(&self, topics: &[String]) -> Result<BTreeMap<String, TopicDescription>>;

    /// Names of all topics.
    fn list_topics(&self) -> Result<Vec<String>>;

    /// Deletes topics; unknown names are ignored.
    fn delete_topics(&self, topics: &[String]) -> Result<()>;

    /// Deletes records before the given offsets (repartition purge, tests).
    fn delete_records(&self, before: &BTreeMap<TopicPartition, i64>) -> Result<()>;

    /// The configuration of one topic by Kafka's names.
    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>>;

    /// Committed offsets of a group, over all topics.
    fn group_offsets(&self, group_id: &str) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>>;

    /// Members of a group that it still counts as alive. A static member that was stopped is one until its session times out.
    fn group_members(&self, group_id: &str) -> Result<Vec<GroupMember>>;

    /// Sets committed offsets of an *inactive* group (the reset tool).
    fn alter_group_offsets(
        &self,
        group_id: &str,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) -> Result<()>;

    /// Forgets the group.
    fn delete_group(&self, group_id: &str) -> Result<()>;
}

/// Makes clients of one log: what a runtime is given instead of an address.
pub trait ClientSupplier: Send + Sync {
    /// A consumer.
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>>;
    /// A producer.
    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>>;
    /// An admin client.
    fn admin(&self) -> Result<Arc<dyn Admin>>;
}
