//! A call to the log that does not return: it is told of while it lasts, and given up on in the end.
//!
//! The log is the embedded one, with a gate that a test closes in front of a commit, as a coordinator that never answers would.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions, LogCall},
    },
    config::StreamsConfig,
    kstream::StreamsBuilder,
    metrics::StreamsMetrics,
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{KafkaStreams, RunOptions, State},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Closed, whoever comes waits.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.0.lock().unwrap() = closed;
        self.1.notify_all();
    }

    fn pass(&self) {
        let closed = self.0.lock().unwrap();
        drop(self.1.wait_while(closed, |closed| *closed).unwrap());
    }
}

/// Words counted, behind a gate.
struct Counting {
    log: EmbeddedLog,
    gate: Arc<Gate>,
    streams: KafkaStreams,
    metrics: StreamsMetrics,
    _state: tempfile::TempDir,
}

impl Counting {
    fn start(task_timeout: Duration) -> Self {
        let gate = Arc::<Gate>::default();
        let passing = gate.clone();
        let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
            faults: Some(Arc::new(move |call, done| {
                if call == LogCall::SendOffsets && !done {
                    passing.pass();
                }
                Ok(())
            })),
            ..EmbeddedOptions::default()
        });
        let topic = |name: &str| NewTopic {
            name: name.into(),
            partitions: 1,
            replication_factor: 1,
            config: BTreeMap::new(),
        };
        log.admin().unwrap().create_topics(&[topic("words"), topic("counts")]).unwrap();
        let builder = StreamsBuilder::new();
        let words = builder.stream::<String, String>("words");
        words.group_by_key().count().to_stream().to("counts");
        let state = tempfile::tempdir().unwrap();
        let metrics = StreamsMetrics::default();
        let mut options = RunOptions::new(StreamsConfig {
            state_dir: state.path().into(),
            commit_interval: Duration::from_millis(20),
            stuck_after: Duration::from_millis(200),
            task_timeout,
            ..StreamsConfig::default()
        });
        options.metrics = metrics.clone();
        let mut streams =
            KafkaStreams::new(builder.build("counting").unwrap(), Arc::new(log.clone()), options);
        streams.start().unwrap();
        let counting = Self { log, gate, streams, metrics, _state: state };
        counting.until("it runs", |counting| counting.streams.state() == State::Running);
        counting
    }

    fn write(&self) {
        let mut producer = self.log.producer(&ProducerConfig::default()).unwrap();
        producer
            .send(ProducerRecord {
                topic: "words".into(),
                partition: Some(0),
                key: Some(Bytes::from_static(b"word")),
                value: Some(Bytes::from_static(b"word")),
                timestamp: Some(1),
                headers: Headers::EMPTY,
            })
            .unwrap();
        producer.flush().unwrap();
    }

    fn counts(&self) -> Vec<i64> {
        let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = self.log.consumer(&config).unwrap();
        consumer.assign(&[(TopicPartition::new("counts", 0), Some(0))]).unwrap();
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        let count = |value: Bytes| i64::from_be_bytes(value.as_ref().try_into().unwrap());
        records.into_iter().map(|record| count(record.value.unwrap())).collect()
    }

    fn stuck_seconds(&self) -> i64 {
        self.metrics.stuck_seconds.with_label_values(&["counting", "0-0"]).get()
    }

    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited {DEADLINE:?} until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_call_that_does_not_return_is_told_of_until_it_does() {
    let mut counting = Counting::start(Duration::from_secs(300));
    counting.write();
    counting.until("the first is counted", |counting| counting.counts() == [1]);
    assert_eq!((counting.streams.stuck(), counting.stuck_seconds()), (None, 0));

    counting.gate.set_closed(true);
    counting.write();
    counting.until("the call is found to be stuck", |counting| counting.streams.stuck().is_some());
    let reason = counting.streams.stuck().unwrap();
    assert!(reason.contains("thread 0-0: send_offsets_to_transaction has not returned"), "{reason}");
    assert!(counting.stuck_seconds() > 0);
    assert_eq!((counting.streams.error(), counting.counts()), (None, vec![1]));

    counting.gate.set_closed(false);
    counting.until("it goes on", |counting| counting.streams.stuck().is_none());
    counting.until("the second is counted", |counting| counting.counts() == [1, 2]);
    assert_eq!((counting.streams.state(), counting.stuck_seconds()), (State::Running, 0));
    assert!(counting.streams.close(DEADLINE));
}

#[test]
fn an_application_whose_call_never_returns_gives_up_after_its_task_timeout() {
    let mut counting = Counting::start(Duration::from_secs(1));
    counting.gate.set_closed(true);
    counting.write();
    counting.until("it gives up", |counting| counting.streams.state() == State::Error);
    let reason = counting.streams.error().unwrap();
    assert!(reason.contains("send_offsets_to_transaction has not returned"), "{reason}");
    // Who supervises it asks it to end: that does not hang either.
    assert!(!counting.streams.close(Duration::from_millis(50)), "its thread cannot end");
    assert_eq!(counting.counts(), [0; 0], "nothing of it has become visible");
    counting.gate.set_closed(false);
}
