//! What the ports cost: records a second written and read, and the time of a transaction, on each adapter.
//!
//! `cargo bench --bench log` measures the embedded log in memory and in a file; with `SLUICE_TEST_KAFKA=host:port` also
//! Kafka. `LOGS=kafka` measures only that, `RECORDS=n` sets the amount. One JSON line a measurement, so that runs can be kept and compared; `cpu_ns` is CPU of this process (all its
//! threads, the broker's not) per record.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, ConsumerConfig, NewTopic, OffsetAndMetadata, ProducerConfig,
        embedded::EmbeddedLog,
        kafka::{KafkaClients, KafkaConfig},
    },
    error::StreamsError,
    record::{Headers, ProducerRecord, TopicPartition},
};

const PARTITIONS: i32 = 3;
const VALUE_BYTES: usize = 100;

fn main() {
    let records: u64 = std::env::var("RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let wanted = std::env::var("LOGS").unwrap_or_else(|_| "memory,file,kafka".to_owned());
    let wants = |name: &str| wanted.split(',').any(|w| w == name);
    if wants("memory") {
        measure("memory", &EmbeddedLog::in_memory(), records);
    }
    if wants("file") {
        measure_file(records);
    }
    match std::env::var("SLUICE_TEST_KAFKA") {
        Ok(bootstrap) if wants("kafka") => {
            let clients = KafkaClients::new(KafkaConfig::new(bootstrap)).expect("a valid configuration");
            measure("kafka", &clients, records);
        }
        Err(_) if wants("kafka") => println!("kafka not measured: SLUICE_TEST_KAFKA is not set"),
        _ => {}
    }
}

fn measure_file(records: u64) {
    let path = std::env::temp_dir().join(format!("sluice-bench-{}.db", std::process::id()));
    measure("file", &EmbeddedLog::open(&path).expect("a log in the temporary directory"), records);
    {
        let reopened = EmbeddedLog::open(&path).expect("the log again");
        read("file, cold", &reopened, records);
    }
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
}

fn measure(log_name: &str, log: &dyn ClientSupplier, records: u64) {
    let admin = log.admin().expect("an admin client");
    let _ = admin.delete_topics(&["bench".to_owned()]);
    let topic = NewTopic {
        name: "bench".to_owned(),
        partitions: PARTITIONS,
        replication_factor: -1,
        config: BTreeMap::new(),
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while admin.create_topics(std::slice::from_ref(&topic)).is_err() && Instant::now() < deadline {}

    write(log_name, log, records);
    read(log_name, log, records);
    for (size, rounds) in [(1, 200), (1000, 100)] {
        transactions(log_name, log, size, rounds);
    }
}

fn record(i: u64, value: &Bytes) -> ProducerRecord {
    ProducerRecord {
        topic: "bench".into(),
        partition: None,
        key: Some(Bytes::from(i.to_string())),
        value: Some(value.clone()),
        timestamp: Some(1_700_000_000_000 + i as i64),
        headers: Headers::EMPTY,
    }
}

/// CPU time of this process so far, in nanoseconds.
fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000_000
}

fn report(log_name: &str, what: &str, records: u64, since: (Instant, u64)) {
    let seconds = since.0.elapsed().as_secs_f64();
    println!(
        r#"{{"log":"{log_name}","what":"{what}","records":{records},"records_per_s":{:.0},"cpu_ns":{}}}"#,
        records as f64 / seconds,
        (cpu_nanos() - since.1) / records.max(1)
    );
}

fn again<T>(mut call: impl FnMut() -> Result<T, StreamsError>) -> T {
    loop {
        match call() {
            Err(StreamsError::Retriable(_)) => {}
            result => return result.expect("the log works"),
        }
    }
}

fn write(log_name: &str, log: &dyn ClientSupplier, records: u64) {
    let mut producer = log.producer(&ProducerConfig::default()).expect("a producer");
    producer.partition_count("bench").expect("the topic");
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let since = (Instant::now(), cpu_nanos());
    for i in 0..records {
        producer.send(record(i, &value)).expect("a send");
    }
    again(|| producer.flush());
    report(log_name, "write", records, since);
}

fn read(log_name: &str, log: &dyn ClientSupplier, records: u64) {
    let mut consumer = log
        .consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() })
        .expect("a consumer");
    let start: Vec<_> = (0..PARTITIONS).map(|p| (TopicPartition::new("bench", p), Some(0))).collect();
    let since = (Instant::now(), cpu_nanos());
    consumer.assign(&start).expect("an assignment");
    let (mut count, mut bytes) = (0, 0);
    while count < records {
        for record in consumer.poll(Duration::from_millis(100)).expect("a poll").records {
            count += 1;
            bytes += record.value.map_or(0, |v| v.len());
        }
    }
    assert!(bytes >= records as usize * VALUE_BYTES, "values came back short");
    report(log_name, "read", records, since);
}

fn transactions(log_name: &str, log: &dyn ClientSupplier, size: u64, rounds: usize) {
    let config = ProducerConfig { transactional_id: Some("bench".to_owned()), transaction_timeout: None };
    let mut producer = log.producer(&config).expect("a producer");
    again(|| producer.init_transactions());
    let consumer = log
        .consumer(&ConsumerConfig { group_id: Some("bench".to_owned()), ..ConsumerConfig::default() })
        .expect("a consumer");
    let group = consumer.group_metadata().expect("a group");
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let mut times = Vec::new();
    for round in 0..rounds {
        let offset = OffsetAndMetadata { offset: round as i64, metadata: String::new() };
        let offsets = BTreeMap::from([(TopicPartition::new("bench", 0), offset)]);
        let since = Instant::now();
        again(|| producer.begin_transaction());
        for i in 0..size {
            producer.send(record(i, &value)).expect("a send");
        }
        again(|| producer.flush());
        again(|| producer.send_offsets_to_transaction(&offsets, &group));
        again(|| producer.commit_transaction());
        times.push(since.elapsed());
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        r#"{{"log":"{log_name}","what":"transaction","records":{size},"p50_ms":{:.2},"p99_ms":{:.2}}}"#,
        at(50),
        at(99)
    );
}
