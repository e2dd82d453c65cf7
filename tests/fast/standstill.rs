//! A consumer that a partition gives nothing any more, though it has records: another one is made.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        Admin, ClientSupplier, Consumer, ConsumerConfig, GroupMetadata, NewTopic, OffsetAndMetadata, Polled,
        Producer, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    config::StreamsConfig,
    error::Result,
    internals::{StreamThread, TaskOptions, ThreadParts, create_internal_topics, plan_partitions},
    kstream::{StreamsBuilder, TopologyConfig},
    metrics::StreamsMetrics,
    record::{Headers, ProducerRecord, Timestamp, TopicPartition},
    runtime::ThreadStatus,
};

/// The first member of the group that it makes is deaf to partition 0.
struct Clients {
    log: EmbeddedLog,
    given: AtomicBool,
}

impl ClientSupplier for Clients {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        let consumer = self.log.consumer(config)?;
        let deaf = config.group_id.is_some() && !self.given.swap(true, Ordering::Relaxed);
        Ok(if deaf { Box::new(Deaf(consumer)) } else { consumer })
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        self.log.producer(config)
    }

    fn admin(&self) -> Result<Arc<dyn Admin>> {
        self.log.admin()
    }
}

/// Paused for partition 0, whoever resumes it.
struct Deaf(Box<dyn Consumer>);

impl Deaf {
    fn hears(partition: &TopicPartition) -> bool {
        partition.partition != 0
    }
}

impl Consumer for Deaf {
    fn subscribe(&mut self, topics: &[String]) -> Result<()> {
        self.0.subscribe(topics)
    }

    fn assign(&mut self, partitions: &[(TopicPartition, Option<i64>)]) -> Result<()> {
        self.0.assign(partitions)?;
        let deaf: Vec<_> =
            partitions.iter().map(|(tp, _)| tp.clone()).filter(|tp| !Self::hears(tp)).collect();
        self.0.pause(&deaf)
    }

    fn unassign(&mut self) -> Result<()> {
        self.0.unassign()
    }

    fn poll(&mut self, timeout: Duration) -> Result<Polled> {
        self.0.poll(timeout)
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.0.seek(partition, offset)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.0.pause(partitions)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let heard: Vec<_> = partitions.iter().filter(|tp| Self::hears(tp)).cloned().collect();
        self.0.resume(&heard)
    }

    fn position(&mut self, partition: &TopicPartition) -> Result<Option<i64>> {
        self.0.position(partition)
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()> {
        self.0.commit(offsets)
    }

    fn committed(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        self.0.committed(partitions)
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> Result<(i64, i64)> {
        self.0.watermarks(partition)
    }

    fn offset_for_time(&mut self, partition: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        self.0.offset_for_time(partition, time)
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.0.group_metadata()
    }

    fn close(&mut self) {
        self.0.close();
    }
}

#[test]
fn a_partition_that_stands_still_is_read_with_a_new_consumer() {
    let now = Arc::new(AtomicI64::new(1_000_000));
    let clock = now.clone();
    let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
        clock: Arc::new(move || clock.load(Ordering::Relaxed)),
        ..EmbeddedOptions::default()
    });
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: 2,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    let admin = log.admin().unwrap();
    admin.create_topics(&[topic("in"), topic("out")]).unwrap();
    let builder = StreamsBuilder::with_config(TopologyConfig::default());
    builder.stream::<String, String>("in").to("out");
    let topology = Arc::new(builder.build("copies").unwrap());
    let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).unwrap());
    create_internal_topics(&topology, &plan, -1, admin.as_ref()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let config = StreamsConfig {
        application_id: "copies".into(),
        state_dir: state.path().to_owned(),
        poll: Duration::ZERO,
        commit_interval: Duration::from_millis(20),
        ..StreamsConfig::default()
    };
    let mut options = TaskOptions::new(topology, Arc::new(config));
    options.partition_counts = Arc::new(|_| Ok(2));
    let thread_clock = now.clone();
    let mut thread = StreamThread::new(ThreadParts {
        name: "0-0".into(),
        options,
        plan,
        clients: Arc::new(Clients { log: log.clone(), given: AtomicBool::new(false) }),
        clock: Arc::new(move || thread_clock.load(Ordering::Relaxed)),
        metrics: StreamsMetrics::default(),
        status: Arc::<Mutex<ThreadStatus>>::default(),
    })
    .unwrap();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for n in 0..20 {
        producer
            .send(ProducerRecord {
                topic: "in".into(),
                partition: Some(n % 2),
                key: Some(Bytes::from("key")),
                value: Some(Bytes::from("value")),
                timestamp: Some(i64::from(n)),
                headers: Headers::EMPTY,
            })
            .unwrap();
    }
    producer.flush().unwrap();
    let written = || {
        let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = log.consumer(&config).unwrap();
        consumer.assign(&[0, 1].map(|p| (TopicPartition::new("out", p), Some(0)))).unwrap();
        consumer.poll(Duration::ZERO).unwrap().records.len()
    };
    let mut steps = |count: usize| {
        for _ in 0..count {
            now.fetch_add(100, Ordering::Relaxed);
            thread.run_once().unwrap();
        }
    };
    steps(250);
    assert_eq!(written(), 10, "one partition is deaf, and 25 s are not long");
    steps(100);
    assert_eq!(written(), 20, "a new consumer hears it");
}
