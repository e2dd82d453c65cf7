//! A plain Kafka client, built on librdkafka alone: what any third party would see of our topics.
//!
//! Always true: it reads with `read_committed` and through nothing of ours, so it cannot share a mistake with the engine.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    producer::{BaseRecord, Producer, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use serde_json::Value;

/// One record as read.
#[derive(Clone, Debug)]
pub struct Read {
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

impl Read {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.value).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// Everything that is committed in the topic now, in partition order; empty when there is no such topic.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<Read> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "live-test-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(20)).expect("Kafka answers");
    let partitions: Vec<i32> =
        metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assignment).expect("assigned");
    let (mut records, mut ended) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ended < partitions.len() {
        assert!(Instant::now() < deadline, "reading {topic} to its end took over a minute");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            Some(Ok(message)) => records.push(Read {
                partition: message.partition(),
                offset: message.offset(),
                key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
                value: message.payload().unwrap_or_default().to_vec(),
                headers: message
                    .headers()
                    .map(|headers| {
                        let text = |value: Option<&[u8]>| {
                            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
                        };
                        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
                    })
                    .unwrap_or_default(),
            }),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn looker(bootstrap: &str, group: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .create()
        .expect("a consumer")
}

/// Looks at a topic and what a group has committed of it, again and again.
pub struct Observer {
    looker: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Observer {
    pub fn new(bootstrap: &str, group: &str, topic: &str, partitions: i32) -> Self {
        Self { looker: looker(bootstrap, group, "read_uncommitted"), topic: topic.to_owned(), partitions }
    }

    /// The group's next offset to read of each partition, 0 where it has committed nothing; `None` when Kafka does not answer.
    pub fn committed(&self) -> Option<Vec<i64>> {
        let mut wanted = TopicPartitionList::new();
        for partition in 0..self.partitions {
            wanted.add_partition(&self.topic, partition);
        }
        let found = self.looker.committed_offsets(wanted, Duration::from_secs(2)).ok()?;
        let offset = |partition| match found.find_partition(&self.topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => Some(0),
        };
        (0..self.partitions).map(offset).collect()
    }

    /// The end of each partition; `None` when Kafka does not answer.
    pub fn ends(&self) -> Option<Vec<i64>> {
        let limit = Duration::from_secs(2);
        let end = |partition| Some(self.looker.fetch_watermarks(&self.topic, partition, limit).ok()?.1);
        let ends: Option<Vec<i64>> = (0..self.partitions).map(end).collect();
        if ends.is_none() {
            // The leader it knows may be dead: librdkafka finds out who leads now only when it is asked.
            drop(self.looker.fetch_metadata(Some(&self.topic), limit));
        }
        ends
    }
}

/// Partitions, of all topics, whose end holds a transaction that is neither committed nor aborted: with the last stable offset and
/// the end.
pub fn undecided(bootstrap: &str) -> Vec<(String, i32, i64, i64)> {
    let [stable, end] = ["read_committed", "read_uncommitted"]
        .map(|isolation| looker(bootstrap, "live-test-reader", isolation));
    let metadata = end.fetch_metadata(None, Duration::from_secs(20)).expect("Kafka answers");
    let mut undecided = Vec::new();
    for topic in metadata.topics() {
        for partition in topic.partitions() {
            let [stable, end] = [&stable, &end].map(|looker| {
                let marks = looker.fetch_watermarks(topic.name(), partition.id(), Duration::from_secs(20));
                marks.expect("Kafka answers").1
            });
            if stable < end {
                undecided.push((topic.name().to_owned(), partition.id(), stable, end));
            }
        }
    }
    undecided
}

/// How much topics grow, moment by moment.
pub struct Growth {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<(Instant, i64)>>>,
}

impl Growth {
    /// Looks at the ends of all partitions until it is dropped.
    pub fn watch(bootstrap: &str, topics: &[String], partitions: i32) -> Self {
        let observers: Vec<Observer> = topics
            .iter()
            .map(|topic| Observer::new(bootstrap, "live-test-reader", topic, partitions))
            .collect();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<(Instant, i64)>>>::default());
        let growth = Self { stop: stop.clone(), seen: seen.clone() };
        std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(3_600);
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                let ends: Option<Vec<Vec<i64>>> = observers.iter().map(Observer::ends).collect();
                if let Some(ends) = ends {
                    seen.lock().unwrap().push((Instant::now(), ends.iter().flatten().sum()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        growth
    }

    /// Records, and markers of transactions, written in the last so much time; `None` when it has not been watched for that long.
    pub fn since(&self, time: Duration) -> Option<f64> {
        let seen = self.seen.lock().unwrap();
        let from = Instant::now().checked_sub(time)?;
        let before = seen.iter().rev().find(|(at, _)| *at <= from)?;
        Some((seen.last()?.1 - before.1) as f64)
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Which broker leads a partition.
pub fn leader(bootstrap: &str, topic: &str, partition: i32) -> i32 {
    let looker = looker(bootstrap, "live-test-reader", "read_uncommitted");
    let metadata = looker.fetch_metadata(Some(topic), Duration::from_secs(20)).expect("Kafka answers");
    let partitions = metadata.topics()[0].partitions();
    partitions.iter().find(|found| found.id() == partition).expect("it exists").leader()
}

/// Whether every partition of every topic has so many replicas that follow.
pub fn in_sync(bootstrap: &str, replicas: usize) -> bool {
    let looker = looker(bootstrap, "live-test-reader", "read_uncommitted");
    let Ok(metadata) = looker.fetch_metadata(None, Duration::from_secs(20)) else { return false };
    let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions.all(|partition| partition.isr().len() == replicas)
}

/// Writes records as a foreign client would and waits until they are acknowledged.
pub fn write(bootstrap: &str, topic: &str, records: &[(&str, &[u8])]) {
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .create()
        .expect("a producer");
    for (key, value) in records {
        producer
            .send(BaseRecord::to(topic).key(*key).payload(*value))
            .map_err(|(error, _)| error)
            .expect("queued");
    }
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}

/// Creates a topic; one that is already there is fine.
pub async fn create(bootstrap: &str, topic: &str, partitions: i32) {
    create_replicated(bootstrap, topic, partitions, 1).await;
}

/// Creates a topic with so many replicas; one that is already there is fine.
pub async fn create_replicated(bootstrap: &str, topic: &str, partitions: i32, replicas: i32) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client");
    let topics = [NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas))];
    for result in admin.create_topics(&topics, &AdminOptions::new()).await.expect("Kafka answers") {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => panic!("topic {name}: {code}"),
        }
    }
}

/// Has the topic refuse whatever is larger.
pub async fn limit_messages(bootstrap: &str, topic: &str, bytes_max: u32) {
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client");
    let bytes_max = bytes_max.to_string();
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &bytes_max);
    for result in admin.alter_configs(&[config], &AdminOptions::new()).await.expect("Kafka answers") {
        result.unwrap_or_else(|(_, code)| panic!("topic {topic}: {code}"));
    }
}

/// The partition each key lands on when librdkafka itself partitions as the Java client does.
pub async fn partitions_as_java(bootstrap: &str, partitions: i32, keys: &[String]) -> BTreeMap<String, i32> {
    let topic = format!("partition-probe-{}", std::process::id());
    create(bootstrap, &topic, partitions).await;
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("partitioner", "murmur2_random")
        .create()
        .expect("a producer");
    for key in keys {
        producer
            .send(BaseRecord::<str, str>::to(&topic).key(key).payload(""))
            .map_err(|(error, _)| error)
            .expect("queued");
    }
    producer.flush(Duration::from_secs(60)).expect("acknowledged");
    read_all(bootstrap, &topic).into_iter().map(|record| (record.key, record.partition)).collect()
}
