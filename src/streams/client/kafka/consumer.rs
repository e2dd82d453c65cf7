//! The Kafka [`Consumer`]: one librdkafka consumer whose queue is drained in batches.
//!
//! One poll: take what is queued (a batch, never waiting) -> when there was nothing, wait for one message, then take what
//! came with it -> hand out records, or the rebalance that the callback noted meanwhile. The callback itself assigns
//! nothing: librdkafka waits in its rebalance until [`Consumer::assign`] or [`Consumer::unassign`] answers.
//!
//! Positions are kept here and not asked of librdkafka: the end-of-partition entries of a batch would move its own one
//! record too far (librdkafka issue 4844). For the same reason `resume` seeks to the position kept here.
//!
//! Keys and values of a batch are copied into one block of memory and shared out as slices: one allocation instead of
//! two per record.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::bindings::{self as rd, rd_kafka_resp_err_t as Code};

use super::{
    KafkaConfig, error,
    native::{
        Conf, Handle, PartitionList, Queue, REQUEST_TIMEOUT, c_string, millis, opaque, read_list, text,
    },
    statistics::{self, Statistics},
};
use crate::streams::{
    client::{Consumer, ConsumerConfig, GroupMetadata, OffsetAndMetadata, OffsetReset, Polled, Rebalance},
    error::{Result, StreamsError},
    record::{ConsumerRecord, Header, Headers, Timestamp, TopicPartition},
};

/// librdkafka needs a group to assign anything; consumers without one name this and never join it.
const NO_GROUP: &str = "sluice-no-group";

/// How long a leader has to answer before it is asked who leads now.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// What the callbacks note for the next poll. Its address is librdkafka's opaque.
#[derive(Default)]
struct Notes {
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// The consumer is being closed: give everything up at once, nobody polls any more.
    closing: AtomicBool,
    statistics: Statistics,
}

impl Notes {
    fn rebalances(&self) -> MutexGuard<'_, VecDeque<Rebalance>> {
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Assigned {
    tp: TopicPartition,
    /// The next offset to hand out; `None` until librdkafka has found the start.
    position: Option<i64>,
}

/// See the module. Fields are dropped in order: the queue before its client, the notes last.
pub(super) struct KafkaConsumer {
    queue: Queue,
    client: Handle,
    notes: Box<Notes>,
    config: ConsumerConfig,
    assigned: Vec<Assigned>,
    /// A rebalance is in the caller's hands.
    handed: bool,
    /// Topics of the subscription, until it is known that the group has taken note of them.
    subscribed: Vec<String>,
    /// Found among records; told by the next poll, after them.
    failure: Option<StreamsError>,
    batch: Vec<*mut rd::rd_kafka_message_t>,
    closed: bool,
}

// SAFETY: the raw pointers in `batch` are messages only within one call of `poll`.
unsafe impl Send for KafkaConsumer {}

impl KafkaConsumer {
    pub(super) fn new(cluster: &KafkaConfig, config: ConsumerConfig) -> Result<Self> {
        let mut conf = Conf::for_cluster(cluster)?;
        conf.set_all([
            ("group.id", config.group_id.as_deref().unwrap_or(NO_GROUP)),
            ("partition.assignment.strategy", "range"),
            // A rebalance reaches the other members with their next heartbeat.
            ("heartbeat.interval.ms", "1000"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("allow.auto.create.topics", "false"),
            ("check.crcs", "false"),
            ("fetch.wait.max.ms", "20"),
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.error.backoff.ms", "100"),
            // Asked for only where somebody looks at them.
            ("statistics.interval.ms", if config.group_id.is_some() { statistics::INTERVAL_MS } else { "0" }),
            // Little is fetched ahead, so that a message is still in the processor's cache when it is read. Whoever is not in a group
            // reads a log from one end to the other: there it is better never to wait for a fetch.
            ("queued.min.messages", if config.group_id.is_some() { "5000" } else { "100000" }),
            ("queued.max.messages.kbytes", "32768"),
            ("isolation.level", if config.read_committed { "read_committed" } else { "read_uncommitted" }),
            (
                "auto.offset.reset",
                match config.offset_reset {
                    OffsetReset::Earliest => "earliest",
                    OffsetReset::Latest | OffsetReset::ByDuration(_) => "latest",
                    OffsetReset::None => "error",
                },
            ),
        ])?;
        if let Some(name) = &config.group_instance_id {
            conf.set("group.instance.id", name)?;
        }
        conf.set_all(cluster.properties_for("consumer"))?;
        if let Some(timeout) = config.session_timeout {
            conf.set("session.timeout.ms", &timeout.as_millis().to_string())?;
        }
        let notes = Box::<Notes>::default();
        // SAFETY: the notes live in a box that is dropped after the client.
        unsafe {
            rd::rd_kafka_conf_set_opaque(conf.as_ptr(), opaque(&*notes));
            rd::rd_kafka_conf_set_rebalance_cb(conf.as_ptr(), Some(note_rebalance));
            rd::rd_kafka_conf_set_error_cb(conf.as_ptr(), Some(note_error));
            rd::rd_kafka_conf_set_stats_cb(conf.as_ptr(), Some(note_statistics));
        }
        let client = Handle::new(rd::rd_kafka_type_t::RD_KAFKA_CONSUMER, conf)?;
        // SAFETY: a valid consumer. All its events then come through the one queue.
        let queue = unsafe {
            rd::rd_kafka_poll_set_consumer(client.as_ptr());
            Queue::of(rd::rd_kafka_queue_get_consumer(client.as_ptr()))
        };
        let max = if config.max_poll_records == 0 { 1000 } else { config.max_poll_records };
        Ok(Self {
            queue,
            client,
            notes,
            config,
            assigned: Vec::new(),
            handed: false,
            subscribed: Vec::new(),
            failure: None,
            batch: vec![ptr::null_mut(); max],
            closed: false,
        })
    }

    fn group_id(&self) -> Result<&str> {
        self.config.group_id.as_deref().ok_or_else(|| {
            StreamsError::fatal("this consumer has no group_id: it can assign, not subscribe or commit")
        })
    }

    fn find(&self, tp: &TopicPartition) -> Result<usize> {
        let found = self.assigned.iter().position(|a| a.tp == *tp);
        found.ok_or_else(|| StreamsError::Fatal(format!("{tp} is not assigned to this consumer")))
    }

    fn check(&self, what: &str, code: Code) -> Result<()> {
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(error::of_code(what, code)),
        }
    }

    /// The first failed element of a list, as an error.
    fn check_list(&self, what: &str, list: &PartitionList) -> Result<()> {
        let failed = list.elements().into_iter().find(|e| e.code != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
        failed.map_or(Ok(()), |e| Err(error::of_code(&format!("{what} {}", e.tp), e.code)))
    }

    /// Takes messages that are queued already; returns how many the batch holds from `from` on.
    fn take_queued(&mut self, from: usize) -> usize {
        let rest = &mut self.batch[from..];
        // SAFETY: the pointer and length describe `rest`.
        let taken = unsafe {
            rd::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, rest.as_mut_ptr(), rest.len())
        };
        from + usize::try_from(taken).unwrap_or(0)
    }

    /// Waits for one message, then takes what came with it.
    fn wait(&mut self, timeout: Duration) -> usize {
        // SAFETY: a valid consumer; the message is ours.
        let first = unsafe { rd::rd_kafka_consumer_poll(self.client.as_ptr(), millis(timeout)) };
        if first.is_null() {
            return 0;
        }
        self.batch[0] = first;
        if self.batch.len() == 1 || !self.notes.rebalances().is_empty() { 1 } else { self.take_queued(1) }
    }

    /// Turns the first `count` messages of the batch into records, and end-of-partition entries into positions.
    fn read_batch(&mut self, count: usize, records: &mut Vec<ConsumerRecord>) {
        // SAFETY: the batch holds `count` valid messages, ours until destroyed below.
        let messages = || self.batch[..count].iter().map(|m| unsafe { &**m });
        let size: usize = messages().map(|m| m.len + m.key_len).sum();
        let mut block = Vec::with_capacity(size);
        for m in messages().filter(|m| m.err == Code::RD_KAFKA_RESP_ERR_NO_ERROR) {
            // SAFETY: pointers and lengths of a message belong together.
            unsafe {
                block.extend_from_slice(bytes_of(m.key, m.key_len));
                block.extend_from_slice(bytes_of(m.payload, m.len));
            }
        }
        let block = Bytes::from(block);
        let mut at = 0;
        let mut slice = |pointer: *mut c_void, length: usize| {
            let part = (!pointer.is_null()).then(|| block.slice(at..at + length));
            at += if pointer.is_null() { 0 } else { length };
            part
        };
        records.reserve(count);
        // Messages come in runs of one partition: it is looked up once a run.
        let mut run: (*mut rd::rd_kafka_topic_t, i32, Option<usize>) = (ptr::null_mut(), -1, None);
        for place in 0..count {
            // SAFETY: as above.
            let m = unsafe { &*self.batch[place] };
            if m.rkt != run.0 || m.partition != run.1 || run.2.is_none() {
                // SAFETY: a message's topic handle lives as long as the message.
                let index = unsafe { find_assigned(&self.assigned, m.rkt, m.partition) };
                run = (m.rkt, m.partition, index);
            }
            match m.err {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    let (key, value) = (slice(m.key, m.key_len), slice(m.payload, m.len));
                    let Some(index) = run.2 else { continue };
                    let assigned = &mut self.assigned[index];
                    assigned.position = Some(m.offset + 1);
                    let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
                    records.push(ConsumerRecord {
                        topic: assigned.tp.topic.clone(),
                        partition: m.partition,
                        offset: m.offset,
                        // SAFETY: a valid message.
                        timestamp: unsafe { rd::rd_kafka_message_timestamp(m, &mut kind) },
                        key,
                        value,
                        // SAFETY: a valid message.
                        headers: unsafe { headers_of(m) },
                    });
                }
                Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                    if let Some(index) = run.2 {
                        self.assigned[index].position = Some(m.offset);
                    }
                }
                code => {
                    // SAFETY: a valid message.
                    let reason = unsafe { text(rd::rd_kafka_message_errstr(m)) };
                    let partition = run.2.map(|index| self.assigned[index].tp.to_string());
                    self.note_failure(code, partition, reason);
                }
            }
        }
        for message in &mut self.batch[..count] {
            // SAFETY: ours, and nothing borrowed from it is left.
            unsafe { rd::rd_kafka_message_destroy(*message) };
            *message = ptr::null_mut();
        }
    }

    /// An error among the messages: passing ones are librdkafka's to mend.
    fn note_failure(&mut self, code: Code, partition: Option<String>, reason: String) {
        let name = partition.unwrap_or_default();
        let failure = match code {
            Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR__NO_OFFSET => {
                StreamsError::OffsetOutOfRange { partition: name, reason }
            }
            // The group takes the partitions away: told as `Lost` by the next polls.
            Code::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED => {
                tracing::warn!("kafka: no poll for too long, the group gives our partitions away: {reason}");
                return;
            }
            code => match error::of_code(&format!("reading {name}: {reason}"), code) {
                StreamsError::Fatal(why) => StreamsError::Fatal(why),
                passing => {
                    tracing::debug!("{passing}");
                    return;
                }
            },
        };
        self.failure.get_or_insert(failure);
    }

    /// A static member that comes back with other topics is given what it had, because the group does not look at them (KIP-345). Joining
    /// again under the id it now has makes the group look, once. A member that was given nothing at all is one too many.
    fn insist_on_topics(&mut self) -> Result<()> {
        let topics = std::mem::take(&mut self.subscribed);
        let given = |topic: &String| self.assigned.iter().any(|assigned| *assigned.tp.topic == **topic);
        if self.config.group_instance_id.is_none() || self.assigned.is_empty() || topics.iter().all(given) {
            return Ok(());
        }
        tracing::info!("the group gave no partition of some topics: asking again");
        self.subscribe(&topics)?;
        self.subscribed.clear();
        Ok(())
    }

    /// Has librdkafka ask who leads the partitions of a topic. What it is told it keeps, so the answer is of no interest here.
    fn ask_for_leaders(&self, topic: &CStr) {
        // SAFETY: a valid client and name; the topic and what the call returns are ours to let go of.
        unsafe {
            let topic = rd::rd_kafka_topic_new(self.client.as_ptr(), topic.as_ptr(), ptr::null_mut());
            if topic.is_null() {
                return;
            }
            let mut metadata = ptr::null();
            let wait = millis(ASK_AGAIN_AFTER);
            let code = rd::rd_kafka_metadata(self.client.as_ptr(), 0, topic, &mut metadata, wait);
            if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                rd::rd_kafka_metadata_destroy(metadata);
            }
            rd::rd_kafka_topic_destroy(topic);
        }
    }

    fn list_with_positions(&self, partitions: &[TopicPartition]) -> Result<PartitionList> {
        let mut list = PartitionList::new();
        for tp in partitions {
            if let Some(position) = self.assigned[self.find(tp)?].position {
                list.add(&tp.topic, tp.partition, position)?;
            }
        }
        Ok(list)
    }

    /// Moves librdkafka's fetchers to the offsets of the list.
    fn seek_list(&self, list: &PartitionList) -> Result<()> {
        let until = Instant::now() + REQUEST_TIMEOUT;
        loop {
            // SAFETY: valid client and list.
            let error = unsafe {
                rd::rd_kafka_seek_partitions(self.client.as_ptr(), list.as_ptr(), millis(REQUEST_TIMEOUT))
            };
            error::of_object("seek", error)?;
            let starting = list.elements().iter().any(|e| e.code == Code::RD_KAFKA_RESP_ERR__STATE);
            if !starting || Instant::now() >= until {
                return self.check_list("seek of", list);
            }
            // The assignment has not reached the fetchers yet: a matter of a few milliseconds and no event tells.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Consumer for KafkaConsumer {
    fn subscribe(&mut self, topics: &[String]) -> Result<()> {
        self.group_id()?;
        self.subscribed = topics.to_vec();
        let mut list = PartitionList::new();
        topics.iter().try_for_each(|topic| list.add(topic, -1, 0))?;
        // SAFETY: valid client and list.
        let code = unsafe { rd::rd_kafka_subscribe(self.client.as_ptr(), list.as_ptr()) };
        self.check("subscribe", code)
    }

    fn assign(&mut self, partitions: &[(TopicPartition, Option<i64>)]) -> Result<()> {
        let mut list = PartitionList::new();
        let mut assigned = Vec::with_capacity(partitions.len());
        self.failure = None;
        for (tp, offset) in partitions {
            let start = match (offset, &self.config.group_id, self.config.offset_reset) {
                (Some(offset), ..) => *offset,
                (None, Some(_), _) => i64::from(rd::RD_KAFKA_OFFSET_STORED),
                (None, None, OffsetReset::Earliest) => i64::from(rd::RD_KAFKA_OFFSET_BEGINNING),
                (None, None, OffsetReset::Latest | OffsetReset::ByDuration(_)) => {
                    i64::from(rd::RD_KAFKA_OFFSET_END)
                }
                (None, None, OffsetReset::None) => {
                    let reason = "there is no group, hence no committed offset".to_owned();
                    self.failure = Some(StreamsError::OffsetOutOfRange { partition: tp.to_string(), reason });
                    continue;
                }
            };
            list.add(&tp.topic, tp.partition, start)?;
            assigned.push(Assigned { tp: tp.clone(), position: *offset });
        }
        // SAFETY: valid client and list.
        let code = unsafe { rd::rd_kafka_assign(self.client.as_ptr(), list.as_ptr()) };
        self.check("assign", code)?;
        self.assigned = assigned;
        if std::mem::take(&mut self.handed) { self.insist_on_topics() } else { Ok(()) }
    }

    fn unassign(&mut self) -> Result<()> {
        self.assigned.clear();
        self.failure = None;
        self.handed = false;
        // SAFETY: a valid client; null means nothing assigned.
        let code = unsafe { rd::rd_kafka_assign(self.client.as_ptr(), ptr::null()) };
        self.check("unassign", code)
    }

    fn poll(&mut self, timeout: Duration) -> Result<Polled> {
        let until = Instant::now() + timeout;
        let mut polled = Polled::default();
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.handed {
                // The group waits for the caller, so nothing can come.
                return Ok(polled);
            }
            let mut count = self.take_queued(0);
            let rest = until.saturating_duration_since(Instant::now());
            if count == 0 && !rest.is_zero() && self.notes.rebalances().is_empty() {
                count = self.wait(rest);
            }
            self.read_batch(count, &mut polled.records);
            if let Some((code, reason)) = self.client.fatal_error() {
                let why = format!("kafka: the consumer is unusable: {}: {reason}", error::describe(code));
                return Err(match code {
                    rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID => {
                        StreamsError::Displaced(why)
                    }
                    _ => StreamsError::Fatal(why),
                });
            }
            polled.rebalance = self.notes.rebalances().pop_front();
            if polled.rebalance.is_some() {
                // Records of partitions that go away now: whoever gets them reads them again.
                polled.records.clear();
                self.handed = true;
                return Ok(polled);
            }
            if !polled.records.is_empty() || Instant::now() >= until {
                return Ok(polled);
            }
        }
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        let index = self.find(partition)?;
        self.assigned[index].position = Some(offset);
        let list = self.list_with_positions(std::slice::from_ref(partition))?;
        self.seek_list(&list)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        partitions.iter().try_for_each(|tp| self.find(tp).map(|_| ()))?;
        let list = PartitionList::of(partitions, 0)?;
        // SAFETY: valid client and list.
        let code = unsafe { rd::rd_kafka_pause_partitions(self.client.as_ptr(), list.as_ptr()) };
        self.check("pause", code)?;
        self.check_list("pause of", &list)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let positions = self.list_with_positions(partitions)?;
        let list = PartitionList::of(partitions, 0)?;
        // SAFETY: valid client and list.
        let code = unsafe { rd::rd_kafka_resume_partitions(self.client.as_ptr(), list.as_ptr()) };
        self.check("resume", code)?;
        self.check_list("resume of", &list)?;
        if positions.elements().is_empty() { Ok(()) } else { self.seek_list(&positions) }
    }

    fn position(&mut self, partition: &TopicPartition) -> Result<Option<i64>> {
        Ok(self.find(partition).ok().and_then(|index| self.assigned[index].position))
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()> {
        let group_id = self.group_id()?;
        if offsets.is_empty() {
            return Ok(());
        }
        let list = PartitionList::of_offsets(offsets)?;
        let what = format!("commit of group {group_id:?}");
        // The blocking call of librdkafka waits for as long as the coordinator is away; a queue has a timeout.
        // SAFETY: valid client, list and queue; without a callback the answer comes as an event, ours to destroy.
        let (code, refused) = unsafe {
            let answers = Queue::of(rd::rd_kafka_queue_new(self.client.as_ptr()));
            let code = rd::rd_kafka_commit_queue(
                self.client.as_ptr(),
                list.as_ptr(),
                answers.as_ptr(),
                None,
                ptr::null_mut(),
            );
            self.check(&what, code)?;
            let event = rd::rd_kafka_queue_poll(answers.as_ptr(), millis(REQUEST_TIMEOUT));
            if event.is_null() {
                return Err(StreamsError::Retriable(format!(
                    "kafka: {what}: no answer after {REQUEST_TIMEOUT:?}; it may still be done"
                )));
            }
            let answer =
                (rd::rd_kafka_event_error(event), read_list(rd::rd_kafka_event_topic_partition_list(event)));
            rd::rd_kafka_event_destroy(event);
            answer
        };
        self.check(&what, code)?;
        let refused = refused.into_iter().find(|e| e.code != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
        refused.map_or(Ok(()), |e| Err(error::of_code(&format!("{what}, {}", e.tp), e.code)))
    }

    fn committed(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        let group_id = self.group_id()?;
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let list = PartitionList::of(partitions, i64::from(rd::RD_KAFKA_OFFSET_INVALID))?;
        // SAFETY: valid client and list.
        let code =
            unsafe { rd::rd_kafka_committed(self.client.as_ptr(), list.as_ptr(), millis(REQUEST_TIMEOUT)) };
        self.check(&format!("committed offsets of group {group_id:?}"), code)?;
        self.check_list("committed offset of", &list)?;
        let known = list.elements().into_iter().filter(|e| e.offset >= 0);
        Ok(known.map(|e| (e.tp, OffsetAndMetadata { offset: e.offset, metadata: e.metadata })).collect())
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> Result<(i64, i64)> {
        let topic = c_string("topic", &partition.topic)?;
        let (mut low, mut high) = (0, 0);
        let until = Instant::now() + REQUEST_TIMEOUT;
        loop {
            // SAFETY: all pointers are valid for the call.
            let code = unsafe {
                rd::rd_kafka_query_watermark_offsets(
                    self.client.as_ptr(),
                    topic.as_ptr(),
                    partition.partition,
                    &mut low,
                    &mut high,
                    millis(ASK_AGAIN_AFTER),
                )
            };
            if !error::is_of_a_leader(code) || Instant::now() >= until {
                self.check(&format!("watermarks of {partition}"), code)?;
                return Ok((low, high));
            }
            // librdkafka goes on asking the broker it knows as the leader, dead or not, until its metadata are five minutes old.
            self.ask_for_leaders(&topic);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn offset_for_time(&mut self, partition: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        let list = PartitionList::of(std::slice::from_ref(partition), time)?;
        // SAFETY: valid client and list.
        let code = unsafe {
            rd::rd_kafka_offsets_for_times(self.client.as_ptr(), list.as_ptr(), millis(REQUEST_TIMEOUT))
        };
        self.check("looking up a time", code)?;
        self.check_list("looking up a time in", &list)?;
        // The end of the log, as a negative number, where no record is that late.
        Ok(list.elements().first().map(|element| element.offset).filter(|offset| *offset >= 0))
    }

    fn client_view(&self, partition: &TopicPartition) -> Option<String> {
        self.notes.statistics.of_partition(&partition.topic, partition.partition)
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        let group_id = self.config.group_id.clone()?;
        // SAFETY: a valid client; the object is ours to read and destroy.
        let (generation_id, member_id) = unsafe {
            let metadata = rd::rd_kafka_consumer_group_metadata(self.client.as_ptr());
            if metadata.is_null() {
                return None;
            }
            let read = (
                rd::rd_kafka_consumer_group_metadata_generation_id(metadata),
                text(rd::rd_kafka_consumer_group_metadata_member_id(metadata)),
            );
            rd::rd_kafka_consumer_group_metadata_destroy(metadata);
            read
        };
        let group_instance_id = self.config.group_instance_id.clone();
        Some(GroupMetadata { group_id, generation_id, member_id, group_instance_id })
    }

    fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.notes.closing.store(true, Ordering::Relaxed);
        self.assigned.clear();
        // SAFETY: a valid client. A rebalance that still waits for an answer gets one first, or closing would wait too.
        unsafe {
            rd::rd_kafka_assign(self.client.as_ptr(), ptr::null());
            rd::rd_kafka_consumer_close(self.client.as_ptr());
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Notes a rebalance for the next poll. Runs on the polling thread.
unsafe extern "C" fn note_rebalance(
    client: *mut rd::rd_kafka_t,
    code: Code,
    partitions: *mut rd::rd_kafka_topic_partition_list_t,
    notes: *mut c_void,
) {
    // SAFETY: the opaque is the consumer's box of notes; the list lives during the call.
    let (notes, list) = unsafe { (&*notes.cast::<Notes>(), read_list(partitions)) };
    let list: Vec<TopicPartition> = list.into_iter().map(|e| e.tp).collect();
    // SAFETY: a valid client, here and below.
    let give_up = || unsafe { rd::rd_kafka_assign(client, ptr::null()) };
    match code {
        Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !notes.closing.load(Ordering::Relaxed) => {
            notes.rebalances().push_back(Rebalance::Assigned(list));
        }
        Code::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS if !notes.closing.load(Ordering::Relaxed) => {
            // SAFETY: a valid client.
            let lost = unsafe { rd::rd_kafka_assignment_lost(client) } != 0;
            let event = if lost { Rebalance::Lost(list) } else { Rebalance::Revoked(list) };
            notes.rebalances().push_back(event);
        }
        code => {
            if !notes.closing.load(Ordering::Relaxed) {
                tracing::warn!("kafka: rebalance failed: {}", error::describe(code));
            }
            give_up();
        }
    }
    // Ends the batch or wait that serves this callback, so that the event is handed out at once.
    // SAFETY: a valid client.
    unsafe { rd::rd_kafka_yield(client) };
}

/// Keeps the statistics, see [`statistics`].
unsafe extern "C" fn note_statistics(
    _client: *mut rd::rd_kafka_t,
    json: *mut c_char,
    length: usize,
    notes: *mut c_void,
) -> c_int {
    // SAFETY: the opaque is the consumer's box of notes; the text lives during the call.
    unsafe { (*notes.cast::<Notes>()).statistics.note(json, length) };
    // librdkafka frees the text.
    0
}

/// Errors of connections; librdkafka recovers from them by itself. Fatal ones are asked for by each poll.
unsafe extern "C" fn note_error(
    _client: *mut rd::rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    _notes: *mut c_void,
) {
    // SAFETY: librdkafka hands over a valid string.
    let reason = unsafe { text(reason) };
    tracing::debug!(target: "librdkafka", code, "{reason}");
}

/// # Safety
/// `pointer` is null or has `length` bytes that live as long as the result is used.
unsafe fn bytes_of<'a>(pointer: *mut c_void, length: usize) -> &'a [u8] {
    match pointer.is_null() || length == 0 {
        true => &[],
        // SAFETY: promised by the caller.
        false => unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) },
    }
}

/// # Safety
/// `topic` is null or a valid handle.
unsafe fn find_assigned(
    assigned: &[Assigned],
    topic: *mut rd::rd_kafka_topic_t,
    partition: i32,
) -> Option<usize> {
    if topic.is_null() {
        return None;
    }
    // SAFETY: promised by the caller.
    let name = unsafe { CStr::from_ptr(rd::rd_kafka_topic_name(topic)) }.to_bytes();
    assigned.iter().position(|a| a.tp.partition == partition && a.tp.topic.as_bytes() == name)
}

/// # Safety
/// `message` is valid.
unsafe fn headers_of(message: &rd::rd_kafka_message_t) -> Headers {
    let mut list = ptr::null_mut();
    // SAFETY: the list belongs to the message; names are zero-terminated, values have their size.
    unsafe {
        if rd::rd_kafka_message_headers(message, &mut list) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Headers::EMPTY;
        }
        (0..)
            .map_while(|index| {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                let code = rd::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size);
                (code == Code::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| Header {
                    key: text(name),
                    value: (!value.is_null())
                        .then(|| Bytes::copy_from_slice(bytes_of(value.cast_mut().cast(), size))),
                })
            })
            .collect()
    }
}
