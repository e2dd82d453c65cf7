//! The Kafka [`Producer`]: one librdkafka producer, records handed over by `produceva` with cached topic handles, or many at once where they
//! have neither time nor headers ([`batch`](super::batch)).
//!
//! * Delivery reports come for failures only; they wait on the event queue and are read by [`KafkaProducer::serve`].
//!   A report that is not read counts as outstanding, so every wait below serves between short waits.
//! * `flush` and `commit_transaction` are the C calls: they end when the last acknowledgement is there, not at the next
//!   step of a polling loop.
//! * A plain producer never lets a record expire: `flush` says `Retriable` while the cluster is away, the records stay
//!   queued in their order, and the same `flush` goes on later. Sending them again instead would reorder.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CString, c_int},
    ptr::{self, NonNull},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::bindings::{self as rd, rd_kafka_resp_err_t as Code, rd_kafka_vtype_t as Field};

use super::{
    KafkaConfig,
    batch::{BATCH_RECORDS, Batch, Taken},
    error,
    native::{Conf, Handle, PartitionList, Queue, REQUEST_TIMEOUT, c_string, millis, text, within},
};
use crate::streams::{
    client::{GroupMetadata, OffsetAndMetadata, Producer, ProducerConfig, partition_for_key},
    error::{ProcessingError, RefusedRecord, Result, StreamsError},
    record::{Headers, ProducerRecord, TopicPartition},
};

/// Failures wait unread for at most this long while something else is waited for.
const SERVE_EVERY: Duration = Duration::from_millis(50);

/// Sends between two looks at the event queue.
const SENDS_BETWEEN_SERVES: u32 = 256;

/// How long a send waits for room in librdkafka's queue.
const QUEUE_FULL_WAIT: Duration = Duration::from_secs(30);

/// A topic known to librdkafka: the handle spares a name lookup under a global lock per record.
struct Topic {
    handle: NonNull<rd::rd_kafka_topic_t>,
    partitions: i32,
}

/// See the module. Fields are dropped in order: what refers to the client before it.
pub(super) struct KafkaProducer {
    topics: HashMap<Arc<str>, Topic, foldhash::fast::RandomState>,
    /// Records that are handed over many at once, by partition.
    batches: Vec<Batch>,
    events: Queue,
    /// Shared with a call that is under way, and kept alive by one that does not return.
    client: Arc<Handle>,
    /// A call of the transaction does not return: every other would be refused.
    is_stuck: bool,
    config: ProducerConfig,
    /// First delivery failure since the last flush or abort.
    failure: Option<(Code, String)>,
    sends: u32,
    round_robin: i32,
}

// SAFETY: topic handles are thread safe as their client is.
unsafe impl Send for KafkaProducer {}

impl KafkaProducer {
    pub(super) fn new(cluster: &KafkaConfig, config: ProducerConfig) -> Result<Self> {
        let mut conf = Conf::for_cluster(cluster)?;
        conf.set_all([
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("delivery.report.only.error", "true"),
            // A short queue: messages are acknowledged while they are still in the processor's cache.
            ("queue.buffering.max.messages", "20000"),
            // Few large requests: with five in flight to a partition and more that waits longer than linger.ms, the broker
            // thread of librdkafka polls without sleeping, which cost a third of the CPU. A flush ends every linger at once.
            ("batch.num.messages", "1000"),
            ("linger.ms", "20"),
            ("queue.buffering.max.kbytes", "262144"),
            // The first retry of AddOffsetsToTxn and EndTxn: 100 ms by default would be the length of a transaction.
            ("retry.backoff.ms", "10"),
        ])?;
        match &config.transactional_id {
            Some(id) => {
                let timeout = config.transaction_timeout.unwrap_or(Duration::from_secs(15)).as_millis();
                conf.set_all([
                    ("transactional.id", id.as_str()),
                    ("transaction.timeout.ms", &timeout.to_string()),
                ])?;
            }
            None => conf.set("message.timeout.ms", "0")?,
        }
        conf.set_all(cluster.properties_for("producer"))?;
        // SAFETY: a valid configuration.
        unsafe {
            rd::rd_kafka_conf_set_events(conf.as_ptr(), rd::RD_KAFKA_EVENT_DR | rd::RD_KAFKA_EVENT_ERROR)
        };
        let client = Arc::new(Handle::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, conf)?);
        // SAFETY: a valid client.
        let events = Queue::of(unsafe { rd::rd_kafka_queue_get_main(client.as_ptr()) });
        Ok(Self {
            topics: HashMap::default(),
            batches: Vec::new(),
            events,
            client,
            is_stuck: false,
            config,
            failure: None,
            sends: 0,
            round_robin: 0,
        })
    }

    /// Reads what librdkafka has to report, waiting up to `wait` for the first.
    fn serve(&mut self, wait: Duration) {
        let mut wait = millis(wait);
        loop {
            // SAFETY: a valid queue; the event is ours until destroyed below.
            let event = unsafe { rd::rd_kafka_queue_poll(self.events.as_ptr(), wait) };
            if event.is_null() {
                return;
            }
            wait = 0;
            // SAFETY: messages live as long as their event.
            unsafe {
                if rd::rd_kafka_event_type(event) == rd::RD_KAFKA_EVENT_DR {
                    while let Some(message) = rd::rd_kafka_event_message_next(event).as_ref() {
                        let purged = matches!(
                            message.err,
                            Code::RD_KAFKA_RESP_ERR__PURGE_QUEUE | Code::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT
                        );
                        if message.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR
                            && !purged
                            && self.failure.is_none()
                        {
                            let topic = text(rd::rd_kafka_topic_name(message.rkt));
                            self.failure = Some((message.err, format!("{topic}-{}", message.partition)));
                        }
                    }
                } else {
                    // Errors of connections: librdkafka recovers by itself, fatal ones are asked for where they matter.
                    let (code, reason) =
                        (rd::rd_kafka_event_error(event), text(rd::rd_kafka_event_error_string(event)));
                    tracing::debug!(target: "librdkafka", code = error::describe(code), "{reason}");
                }
                rd::rd_kafka_event_destroy(event);
            }
        }
    }

    fn outstanding(&self) -> i32 {
        // SAFETY: a valid client.
        unsafe { rd::rd_kafka_outq_len(self.client.as_ptr()) }
    }

    /// Waits until every record is acknowledged or has failed; `false` when `limit` passes first.
    fn drain(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let rest = until.saturating_duration_since(Instant::now()).min(SERVE_EVERY);
            // SAFETY: a valid client. The call also ends every linger at once.
            let done = unsafe { rd::rd_kafka_flush(self.client.as_ptr(), millis(rest)) };
            self.serve(Duration::ZERO);
            if done == Code::RD_KAFKA_RESP_ERR_NO_ERROR && self.outstanding() == 0 {
                return true;
            }
            if Instant::now() >= until {
                return self.outstanding() == 0;
            }
        }
    }

    /// The first failure as an error, once.
    fn take_failure(&mut self) -> Result<()> {
        if let Some((code, reason)) = self.client.fatal_error() {
            self.failure = None;
            // Whatever made it unusable, a new producer may do: only refusals by the cluster's rules are final.
            let final_refusal = matches!(
                code,
                Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
                    | Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED
                    | Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE
            );
            let why = format!("kafka: the producer is unusable: {}: {reason}", error::describe(code));
            return Err(match final_refusal {
                true => StreamsError::Fatal(why),
                false => StreamsError::TaskMigrated(why),
            });
        }
        let Some((code, partition)) = self.failure.take() else { return Ok(()) };
        let what = format!("a record for {partition} was not written");
        if code == Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE {
            // The broker refuses a whole batch for one record of it, and would again after an abort.
            return Err(StreamsError::Fatal(format!(
                "kafka: {what}: {}: the topic's max.message.bytes is below the producer's message.max.bytes: make it at \
                 least as large",
                error::describe(code)
            )));
        }
        Err(match &self.config.transactional_id {
            Some(_) => StreamsError::AbortTransaction(format!("kafka: {what}: {}", error::describe(code))),
            // Not `Retriable`: the record is gone from the queue, flushing again would not bring it back.
            None => StreamsError::Fatal(format!("kafka: {what}: {}", error::describe(code))),
        })
    }

    fn topic(&mut self, name: &Arc<str>) -> Result<&Topic> {
        // Two look-ups instead of one, so that the borrow of the first ends: the price of the borrow checker.
        if !self.topics.contains_key(name) {
            let topic = self.look_up(name)?;
            self.topics.insert(name.clone(), topic);
        }
        Ok(&self.topics[name])
    }

    /// Asks the cluster for a topic.
    fn look_up(&self, name: &str) -> Result<Topic> {
        let c_name = c_string("topic", name)?;
        let client = self.client.as_ptr();
        // SAFETY: valid client and name; a null configuration means the default.
        let handle = unsafe { rd::rd_kafka_topic_new(client, c_name.as_ptr(), ptr::null_mut()) };
        let Some(handle) = NonNull::new(handle) else {
            return Err(StreamsError::Fatal(format!("kafka: topic {name:?} is not a valid name")));
        };
        let mut topic = Topic { handle, partitions: 0 };
        let mut metadata = ptr::null();
        // SAFETY: all valid; the metadata is ours when the call succeeds.
        let (code, partitions) = unsafe {
            let code =
                rd::rd_kafka_metadata(client, 0, handle.as_ptr(), &mut metadata, millis(REQUEST_TIMEOUT));
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                (code, 0)
            } else {
                let found = ((*metadata).topic_cnt > 0).then(|| &*(*metadata).topics);
                let read =
                    found.map_or((Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, 0), |t| (t.err, t.partition_cnt));
                rd::rd_kafka_metadata_destroy(metadata);
                read
            }
        };
        let unknown = matches!(
            code,
            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        );
        if unknown {
            return Err(StreamsError::Fatal(format!(
                "kafka: topic {name:?} does not exist: create it before use"
            )));
        }
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(error::of_code(&format!("looking up topic {name:?}"), code));
        }
        topic.partitions = partitions;
        Ok(topic)
    }

    fn partition_of(&mut self, record: &ProducerRecord) -> Result<(*mut rd::rd_kafka_topic_t, i32)> {
        let round_robin = self.round_robin;
        let topic = self.topic(&record.topic)?;
        let (handle, count) = (topic.handle.as_ptr(), topic.partitions);
        let number = match (record.partition, &record.key) {
            (Some(number), _) if (0..count).contains(&number) => number,
            (Some(number), _) => {
                return Err(StreamsError::Fatal(format!(
                    "kafka: topic {:?} has {count} partitions, a record names partition {number}",
                    record.topic
                )));
            }
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => {
                self.round_robin = (round_robin + 1) & i32::MAX;
                round_robin % count
            }
        };
        Ok((handle, number))
    }

    /// The batch of a partition, where one was begun.
    fn batch(&self, topic: *mut rd::rd_kafka_topic_t, partition: i32) -> Option<usize> {
        self.batches.iter().position(|batch| batch.topic == topic && batch.partition == partition)
    }

    /// Hands a batch over, all of it.
    fn hand_over(&mut self, index: usize) -> Result<()> {
        let mut until = None;
        while self.batches[index].len() > 0 {
            let batch = &mut self.batches[index];
            let (topic, partition) = (batch.topic, batch.partition);
            // SAFETY: the messages and what they point to live through the call, which copies them.
            let taken = batch.hand_over(|messages| unsafe {
                let count = c_int::try_from(messages.len()).unwrap_or(c_int::MAX);
                rd::rd_kafka_produce_batch(
                    topic,
                    partition,
                    rd::RD_KAFKA_MSG_F_COPY,
                    messages.as_mut_ptr(),
                    count,
                );
            });
            self.serve(Duration::ZERO);
            // SAFETY: a valid topic handle.
            let place = || format!("{}-{partition}", unsafe { text(rd::rd_kafka_topic_name(topic)) });
            match taken {
                Taken::All => {}
                Taken::Some => {
                    self.wait_for_room(
                        *until.get_or_insert_with(|| Instant::now() + QUEUE_FULL_WAIT),
                        place,
                    )?;
                }
                Taken::Refused(code) => {
                    self.client.fatal_error().map_or(Ok(()), |_| self.take_failure())?;
                    let what = format!("send to {}", place());
                    return Err(self
                        .cannot_go_on(&what, code)
                        .unwrap_or_else(|| error::of_code(&what, code)));
                }
            }
        }
        Ok(())
    }

    /// A transaction that failed meanwhile (records that expired, say) takes no record: the next call of the transaction would say so,
    /// too, but not this refusal.
    fn cannot_go_on(&self, what: &str, code: Code) -> Option<StreamsError> {
        let failed = code == Code::RD_KAFKA_RESP_ERR__STATE && self.config.transactional_id.is_some();
        failed.then(|| StreamsError::AbortTransaction(format!("kafka: {what}: {}", error::describe(code))))
    }

    fn hand_over_all(&mut self) -> Result<()> {
        (0..self.batches.len()).try_for_each(|index| self.hand_over(index))
    }

    /// Waits a moment for librdkafka's queue to empty.
    fn wait_for_room(&mut self, until: Instant, place: impl Fn() -> String) -> Result<()> {
        if Instant::now() >= until {
            return Err(StreamsError::Retriable(format!(
                "kafka: send to {}: the queue is full and the cluster took nothing for {QUEUE_FULL_WAIT:?}",
                place()
            )));
        }
        self.serve(Duration::from_millis(1));
        Ok(())
    }

    fn what(&self, call: &str) -> String {
        format!("{call} of producer {:?}", self.config.transactional_id.as_deref().unwrap_or(""))
    }
}

fn field(vtype: Field, u: rd::rd_kafka_vu_s__bindgen_ty_1) -> rd::rd_kafka_vu_t {
    rd::rd_kafka_vu_t { vtype, u }
}

fn bytes_field(vtype: Field, bytes: &[u8]) -> rd::rd_kafka_vu_t {
    // Not null even when empty, which is how librdkafka tells an empty value from none.
    let mem = rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
        ptr: bytes.as_ptr().cast_mut().cast(),
        size: bytes.len(),
    };
    field(vtype, rd::rd_kafka_vu_s__bindgen_ty_1 { mem })
}

/// Headers as librdkafka's list; null when there are none.
fn native_headers(headers: &Headers) -> *mut rd::rd_kafka_headers_t {
    if headers.is_empty() {
        return ptr::null_mut();
    }
    // SAFETY: names and values are copied by the call.
    unsafe {
        let list = rd::rd_kafka_headers_new(headers.len());
        for header in headers.iter() {
            let (value, size) =
                header.value.as_ref().map_or((ptr::null(), 0), |v| (v.as_ptr().cast(), v.len() as isize));
            let name = header.key.as_bytes();
            rd::rd_kafka_header_add(list, name.as_ptr().cast(), name.len() as isize, value, size);
        }
        list
    }
}

impl Producer for KafkaProducer {
    fn init_transactions(&mut self) -> Result<()> {
        let timeout = millis(REQUEST_TIMEOUT * 3);
        // SAFETY: a valid client.
        let error = unsafe { rd::rd_kafka_init_transactions(self.client.as_ptr(), timeout) };
        error::of_object(&self.what("init_transactions"), error)
    }

    fn begin_transaction(&mut self) -> Result<()> {
        self.failure = None;
        // SAFETY: a valid client.
        let error = unsafe { rd::rd_kafka_begin_transaction(self.client.as_ptr()) };
        error::of_object(&self.what("begin_transaction"), error)
    }

    fn send(&mut self, record: ProducerRecord) -> Result<()> {
        let (topic, partition) = self.partition_of(&record)?;
        let batch = self.batch(topic, partition);
        if record.timestamp.is_none() && record.headers.is_empty() {
            let index = batch.unwrap_or_else(|| {
                self.batches.push(Batch::new(topic, partition));
                self.batches.len() - 1
            });
            self.batches[index].push(record.key, record.value);
            return if self.batches[index].len() >= BATCH_RECORDS { self.hand_over(index) } else { Ok(()) };
        }
        if let Some(earlier) = batch {
            self.hand_over(earlier)?;
        }
        let headers = native_headers(&record.headers);
        type Value = rd::rd_kafka_vu_s__bindgen_ty_1;
        let end = field(Field::RD_KAFKA_VTYPE_END, Value { i: 0 });
        let mut fields = [end; 7];
        fields[0] = field(Field::RD_KAFKA_VTYPE_RKT, Value { rkt: topic });
        fields[1] = field(Field::RD_KAFKA_VTYPE_PARTITION, Value { i32_: partition });
        fields[2] = field(Field::RD_KAFKA_VTYPE_MSGFLAGS, Value { i: rd::RD_KAFKA_MSG_F_COPY });
        let mut count = 3;
        let mut add = |next| {
            fields[count] = next;
            count += 1;
        };
        if let Some(key) = &record.key {
            add(bytes_field(Field::RD_KAFKA_VTYPE_KEY, key));
        }
        if let Some(value) = &record.value {
            add(bytes_field(Field::RD_KAFKA_VTYPE_VALUE, value));
        }
        if let Some(timestamp) = record.timestamp {
            // Zero means "now" to librdkafka; the first millisecond of 1970 is the nearest it can say.
            let i64_ = if timestamp == 0 { 1 } else { timestamp };
            add(field(Field::RD_KAFKA_VTYPE_TIMESTAMP, Value { i64_ }));
        }
        if !headers.is_null() {
            add(field(Field::RD_KAFKA_VTYPE_HEADERS, Value { headers }));
        }

        self.sends = self.sends.wrapping_add(1);
        if self.sends.is_multiple_of(SENDS_BETWEEN_SERVES) {
            self.serve(Duration::ZERO);
        }
        let mut until = None;
        let result = loop {
            // SAFETY: key and value live through the call and are copied by it; the headers become librdkafka's when it
            // succeeds.
            let error = unsafe { rd::rd_kafka_produceva(self.client.as_ptr(), fields.as_ptr(), count) };
            if error.is_null() {
                return Ok(());
            }
            // SAFETY: not null.
            let code = unsafe { rd::rd_kafka_error_code(error) };
            if code == Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE {
                // SAFETY: ours.
                unsafe { rd::rd_kafka_error_destroy(error) };
                let error = ProcessingError::new("RecordTooLargeException", error::describe(code));
                break Err(StreamsError::RecordRefused(Box::new(RefusedRecord { record, error })));
            }
            if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                let what = format!("send to {}-{partition}", record.topic);
                let told = error::of_object(&what, error);
                break self.cannot_go_on(&what, code).map_or(told, Err);
            }
            // SAFETY: ours.
            unsafe { rd::rd_kafka_error_destroy(error) };
            let until = *until.get_or_insert_with(|| Instant::now() + QUEUE_FULL_WAIT);
            if let Err(error) = self.wait_for_room(until, || format!("{}-{partition}", record.topic)) {
                break Err(error);
            }
        };
        if !headers.is_null() {
            // SAFETY: the record was not taken, so they are still ours.
            unsafe { rd::rd_kafka_headers_destroy(headers) };
        }
        // A fatal error shows here as a refusal to take the record; say what it was.
        self.client.fatal_error().map_or(result, |_| self.take_failure())
    }

    fn flush(&mut self) -> Result<()> {
        self.hand_over_all()?;
        let all = self.drain(REQUEST_TIMEOUT);
        self.take_failure()?;
        match all {
            true => Ok(()),
            false => Err(StreamsError::Retriable(format!(
                "kafka: {} records are not acknowledged after {REQUEST_TIMEOUT:?}; they stay queued, flush again",
                self.outstanding()
            ))),
        }
    }

    fn send_offsets_to_transaction(
        &mut self,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        group: &GroupMetadata,
    ) -> Result<()> {
        self.hand_over_all()?;
        let list = PartitionList::of_offsets(offsets)?;
        let group_id = c_string("group", &group.group_id)?;
        let member_id = c_string("member", &group.member_id)?;
        let instance: Option<CString> =
            group.group_instance_id.as_deref().map(|name| c_string("instance", name)).transpose()?;
        let (client, generation, what) =
            (self.client.clone(), group.generation_id, self.what("send_offsets_to_transaction"));
        let call = move || {
            // SAFETY: all pointers live through the calls; the metadata object is ours to destroy.
            let error = unsafe {
                let metadata = rd::rd_kafka_consumer_group_metadata_new_with_genid(
                    group_id.as_ptr(),
                    generation,
                    member_id.as_ptr(),
                    instance.as_ref().map_or(ptr::null(), |name| name.as_ptr()),
                );
                let error = rd::rd_kafka_send_offsets_to_transaction(
                    client.as_ptr(),
                    list.as_ptr(),
                    metadata,
                    millis(REQUEST_TIMEOUT),
                );
                rd::rd_kafka_consumer_group_metadata_destroy(metadata);
                error
            };
            error::of_object(&what, error)
        };
        // The call asks for the group's coordinator, and librdkafka waits for that without a limit: after an error it asks again when a
        // connection comes or goes, which may never be (`rd_kafka_coord_req` of 2.12 keeps its timeout and never looks at it).
        within(REQUEST_TIMEOUT + Duration::from_secs(5), call).unwrap_or_else(|| {
            self.is_stuck = true;
            let why = "it does not return; the producer is given up";
            Err(StreamsError::AbortTransaction(format!(
                "{}: {why}",
                self.what("send_offsets_to_transaction")
            )))
        })
    }

    fn commit_transaction(&mut self) -> Result<()> {
        self.hand_over_all()?;
        if !self.drain(REQUEST_TIMEOUT) {
            return Err(StreamsError::Retriable(format!(
                "kafka: {} records of the transaction are not acknowledged yet",
                self.outstanding()
            )));
        }
        self.take_failure()?;
        // SAFETY: a valid client. Everything is acknowledged, so the call's own flush has nothing to wait for.
        let error = unsafe { rd::rd_kafka_commit_transaction(self.client.as_ptr(), millis(REQUEST_TIMEOUT)) };
        error::of_object(&self.what("commit_transaction"), error)
    }

    fn abort_transaction(&mut self) -> Result<()> {
        if self.is_stuck {
            // The next producer of the transactional id aborts what this one has left open.
            return Err(StreamsError::TaskMigrated(
                self.what("abort_transaction after a call that is stuck"),
            ));
        }
        self.batches.iter_mut().for_each(Batch::clear);
        // An abort that overtakes the registration of its partitions makes the producer unusable (librdkafka issue 4849),
        // so what can still be acknowledged is waited for; the rest is thrown away.
        if !self.drain(Duration::from_secs(2)) {
            // SAFETY: a valid client.
            unsafe {
                let what = rd::RD_KAFKA_PURGE_F_QUEUE | rd::RD_KAFKA_PURGE_F_INFLIGHT;
                rd::rd_kafka_purge(self.client.as_ptr(), what)
            };
            self.drain(REQUEST_TIMEOUT);
        }
        self.failure = None;
        let until = Instant::now() + REQUEST_TIMEOUT * 3;
        loop {
            // SAFETY: a valid client.
            let error =
                unsafe { rd::rd_kafka_abort_transaction(self.client.as_ptr(), millis(REQUEST_TIMEOUT)) };
            match error::of_object(&self.what("abort_transaction"), error) {
                Err(StreamsError::Retriable(_)) if Instant::now() < until => continue,
                result => return result,
            }
        }
    }

    fn partition_count(&mut self, topic: &str) -> Result<i32> {
        Ok(self.topic(&Arc::from(topic))?.partitions)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: ours; the producer drops its topics before its client.
        unsafe { rd::rd_kafka_topic_destroy(self.handle.as_ptr()) };
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        // What was not flushed was promised to nobody. Without this, destroying the client would wait for it.
        // SAFETY: a valid client.
        unsafe {
            let what = rd::RD_KAFKA_PURGE_F_QUEUE | rd::RD_KAFKA_PURGE_F_INFLIGHT;
            rd::rd_kafka_purge(self.client.as_ptr(), what | rd::RD_KAFKA_PURGE_F_NON_BLOCKING);
        }
        self.serve(Duration::ZERO);
    }
}
