//! A plain Kafka client, built on librdkafka alone: what any third party would see of our topics.
//!
//! Always true: it reads with `read_committed` and through nothing of ours, so it cannot share a mistake with the engine.

use std::{
    collections::BTreeMap,
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
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client");
    let topics = [NewTopic::new(topic, partitions, TopicReplication::Fixed(1))];
    for result in admin.create_topics(&topics, &AdminOptions::new()).await.expect("Kafka answers") {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => panic!("topic {name}: {code}"),
        }
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
