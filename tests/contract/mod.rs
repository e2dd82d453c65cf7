//! What every log behind the ports must do, written once and run on each adapter.
//!
//! A case takes a [`ClientSupplier`], makes topics and groups of its own and asserts through the ports alone, so that
//! cases run in parallel and on a broker that is used by others. [`for_each_case`] lists them all; an adapter's test
//! module turns the list into tests. Nothing sleeps: a case polls until what it waits for is there or a deadline passes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        Admin, ClientSupplier, Consumer, ConsumerConfig, GroupMetadata, NewTopic, OffsetAndMetadata,
        OffsetReset, Producer, ProducerConfig, Rebalance, partition_for_key,
    },
    error::StreamsError,
    record::{ConsumerRecord, Headers, ProducerRecord, TopicPartition},
};

mod groups;
mod records;
mod transactions;

pub use self::{groups::*, records::*, transactions::*};

/// Calls the macro `$with` with the names of all cases.
#[macro_export]
macro_rules! for_each_case {
    ($with:ident) => {
        $with! {
            creating_a_topic_twice_changes_nothing
            records_keep_their_order_and_content
            a_record_too_large_is_refused_and_the_others_are_written
            keys_choose_partitions_as_in_java
            nulls_and_empty_bytes_are_different
            a_missing_timestamp_becomes_the_time_of_the_call
            seek_goes_back_and_forth
            a_paused_partition_is_silent_until_resumed
            offset_reset_decides_without_a_committed_offset
            watermarks_tell_first_and_end
            deleted_records_are_gone_for_every_reader
            a_zero_timeout_returns_at_once
            a_blocking_poll_returns_when_a_record_arrives
            an_unknown_topic_is_an_error
            a_poll_returns_at_most_what_was_asked_for
            a_committed_transaction_shows_all_of_it
            an_aborted_transaction_shows_nothing
            an_open_transaction_holds_back_what_follows
            offsets_move_with_the_transaction
            offsets_of_an_aborted_transaction_stay
            offsets_of_an_open_transaction_are_not_told
            a_newer_producer_fences_the_older
            what_a_predecessor_left_open_is_aborted
            position_steps_over_markers
            a_timed_out_transaction_is_aborted_and_its_producer_fenced
            a_member_of_an_old_generation_is_refused
            a_member_may_commit_while_it_gives_up
            pending_offsets_are_waited_for
            what_is_aborted_between_is_left_out
            a_successor_of_its_name_fences_a_member
            one_member_gets_all_partitions
            two_members_share_and_inherit
            topics_of_equal_count_go_together
            a_static_member_returns_without_a_rebalance
            a_static_member_may_come_back_with_more_topics
            commits_are_read_back_with_their_text
            a_stale_member_cannot_commit
            a_time_is_found_as_an_offset
            a_group_can_be_reset_only_when_inactive
        }
    };
}

/// How long a case waits for what must come. Generous: a loaded machine is no failure.
const DEADLINE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name no other case and no other run uses.
pub fn unique(what: &str) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock after 1970");
    format!("{what}-{}-{}", since.as_micros(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Creates a topic and returns its name once a producer sees it.
pub fn topic(log: &dyn ClientSupplier, partitions: i32) -> String {
    let name = unique("contract");
    create(log, &name, partitions);
    name
}

fn create(log: &dyn ClientSupplier, name: &str, partitions: i32) {
    create_with(log, name, partitions, ("cleanup.policy", "delete"));
}

fn create_with(log: &dyn ClientSupplier, name: &str, partitions: i32, (key, value): (&str, &str)) {
    let config = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let new = NewTopic { name: name.to_owned(), partitions, replication_factor: -1, config };
    log.admin().unwrap().create_topics(&[new]).unwrap();
    let mut producer = plain_producer(log);
    until("the topic is seen by producers", || {
        producer.partition_count(name).ok().filter(|n| *n == partitions)
    });
}

/// Calls `look` until it finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}

pub fn record(topic: &str, partition: i32, value: &str) -> ProducerRecord {
    ProducerRecord {
        topic: topic.into(),
        partition: Some(partition),
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        timestamp: Some(1_700_000_000_000),
        headers: Headers::EMPTY,
    }
}

fn plain_producer(log: &dyn ClientSupplier) -> Box<dyn Producer> {
    log.producer(&ProducerConfig::default()).unwrap()
}

fn transactional_producer(log: &dyn ClientSupplier, id: &str) -> Box<dyn Producer> {
    producer_with_timeout(log, id, None)
}

/// A transactional producer whose transactions end after that time by themselves; `None` = as the adapter has it.
pub fn producer_with_timeout(
    log: &dyn ClientSupplier,
    id: &str,
    timeout: Option<Duration>,
) -> Box<dyn Producer> {
    let config = ProducerConfig { transactional_id: Some(id.to_owned()), transaction_timeout: timeout };
    let mut producer = log.producer(&config).unwrap();
    retried("init_transactions", || producer.init_transactions());
    producer
}

/// Repeats a call while it says `Retriable`, as a runtime does.
pub fn retried<T>(what: &str, mut call: impl FnMut() -> Result<T, StreamsError>) -> T {
    until(what, || match call() {
        Ok(value) => Some(value),
        Err(StreamsError::Retriable(_)) => None,
        Err(error) => panic!("{what}: {error}"),
    })
}

/// Writes values to partition 0 and waits for them.
fn write(log: &dyn ClientSupplier, topic: &str, values: &[&str]) {
    let mut producer = plain_producer(log);
    for value in values {
        producer.send(record(topic, 0, value)).unwrap();
    }
    producer.flush().unwrap();
}

/// A consumer without a group at the start of partitions `0..partitions`.
pub fn reader(
    log: &dyn ClientSupplier,
    topic: &str,
    partitions: i32,
    read_committed: bool,
) -> Box<dyn Consumer> {
    let mut consumer = log.consumer(&ConsumerConfig { read_committed, ..ConsumerConfig::default() }).unwrap();
    let from_start: Vec<_> = (0..partitions).map(|p| (TopicPartition::new(topic, p), Some(0))).collect();
    consumer.assign(&from_start).unwrap();
    consumer
}

/// Polls until `count` records have come.
pub fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<ConsumerRecord> {
    let mut records = Vec::new();
    until(&format!("{count} records are read"), || {
        records.extend(consumer.poll(Duration::from_millis(50)).unwrap().records);
        (records.len() >= count).then_some(())
    });
    assert_eq!(records.len(), count, "more records than expected: {:?}", values(&records));
    records
}

/// Reads the partition up to its end as this consumer sees it, by position: for "nothing comes" without sleeping.
fn read_to_end(consumer: &mut dyn Consumer, topic: &str) -> Vec<ConsumerRecord> {
    let partition = TopicPartition::new(topic, 0);
    let mut records = Vec::new();
    until("the end of the partition is reached", || {
        records.extend(consumer.poll(Duration::from_millis(20)).unwrap().records);
        let (_, end) = consumer.watermarks(&partition).unwrap();
        (consumer.position(&partition).unwrap()? >= end).then_some(())
    });
    records
}

pub fn values(records: &[ConsumerRecord]) -> Vec<String> {
    records
        .iter()
        .map(|r| String::from_utf8_lossy(r.value.as_deref().unwrap_or(b"null")).into_owned())
        .collect()
}

fn offset(offset: i64, metadata: &str) -> OffsetAndMetadata {
    OffsetAndMetadata { offset, metadata: metadata.to_owned() }
}

fn group_config(group: &str, instance: Option<&str>) -> ConsumerConfig {
    ConsumerConfig {
        group_id: Some(group.to_owned()),
        group_instance_id: instance.map(str::to_owned),
        read_committed: true,
        session_timeout: Some(Duration::from_secs(10)),
        ..ConsumerConfig::default()
    }
}

/// A member of a group with the bookkeeping a runtime does: acknowledges what it is told and keeps what it reads.
pub struct Member {
    pub consumer: Box<dyn Consumer>,
    pub owned: Vec<TopicPartition>,
    pub events: Vec<Rebalance>,
    pub records: Vec<ConsumerRecord>,
}

impl Member {
    pub fn join(log: &dyn ClientSupplier, config: &ConsumerConfig, topics: &[String]) -> Self {
        let mut consumer = log.consumer(config).unwrap();
        consumer.subscribe(topics).unwrap();
        Self { consumer, owned: Vec::new(), events: Vec::new(), records: Vec::new() }
    }

    pub fn step(&mut self) {
        let polled = self.consumer.poll(Duration::from_millis(20)).unwrap();
        self.records.extend(polled.records);
        match polled.rebalance.clone() {
            Some(Rebalance::Assigned(partitions)) => {
                let start: Vec<_> = partitions.iter().map(|tp| (tp.clone(), None)).collect();
                self.consumer.assign(&start).unwrap();
                self.owned = partitions;
            }
            Some(Rebalance::Revoked(_) | Rebalance::Lost(_)) => {
                self.owned.clear();
                self.consumer.unassign().unwrap();
            }
            None => {}
        }
        self.events.extend(polled.rebalance);
    }

    pub fn owns(&self) -> Vec<i32> {
        let mut numbers: Vec<i32> = self.owned.iter().map(|tp| tp.partition).collect();
        numbers.sort_unstable();
        numbers
    }

    fn until_owning(&mut self, count: usize) {
        until(&format!("the member owns {count} partitions"), || {
            self.step();
            (self.owned.len() == count).then_some(())
        });
    }
}

fn offsets_of<const N: usize>(
    list: [(&TopicPartition, OffsetAndMetadata); N],
) -> BTreeMap<TopicPartition, OffsetAndMetadata> {
    list.into_iter().map(|(tp, o)| (tp.clone(), o)).collect()
}

fn admin(log: &dyn ClientSupplier) -> Arc<dyn Admin> {
    log.admin().unwrap()
}
