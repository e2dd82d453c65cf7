//! What the relay must do between a ledger and a log, run with either ledger over the embedded log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sluice::{
    coupon::{
        clock::Clock,
        error::Outcome,
        event::TOPICS,
        ids::CouponId,
        outbox,
        relay::{Relay, RelayConfig, RelayError, Step},
    },
    streams::{
        client::{
            Admin, ClientSupplier, Consumer, ConsumerConfig, GroupMetadata, NewTopic, OffsetAndMetadata,
            Producer, ProducerConfig, embedded::EmbeddedLog, partition_for_key,
        },
        error::{Result, StreamsError},
        record::{ConsumerRecord, ProducerRecord, TopicPartition},
    },
};

use super::ledger_contract::{Fixture, cancel, context, order};

/// The embedded log behind a switch: down, or refusing records that contain a text.
#[derive(Clone)]
pub struct Log {
    log: EmbeddedLog,
    down: Arc<AtomicBool>,
    refuses: &'static str,
}

/// The topics that events go to.
pub fn create_topics(log: &EmbeddedLog) {
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: 3,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&TOPICS.map(topic)).unwrap();
}

impl Log {
    pub fn new(refuses: &'static str) -> Self {
        let log = EmbeddedLog::in_memory();
        create_topics(&log);
        Self { log, down: Arc::default(), refuses }
    }

    /// Everything in the topics, by key in the order of the offsets; events of different topics by their time.
    pub fn records(&self) -> Vec<ConsumerRecord> {
        let mut consumer = self.log.consumer(&ConsumerConfig::default()).unwrap();
        let mut all = Vec::new();
        for topic in TOPICS {
            let partitions: Vec<_> = (0..3).map(|n| (TopicPartition::new(topic, n), Some(0))).collect();
            consumer.assign(&partitions).unwrap();
            loop {
                let polled = consumer.poll(Duration::ZERO).unwrap();
                if polled.records.is_empty() {
                    break;
                }
                all.extend(polled.records);
            }
        }
        all
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }
}

impl ClientSupplier for Log {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        self.log.consumer(config)
    }
    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        Ok(Box::new(Switched { producer: self.log.producer(config)?, log: self.clone() }))
    }
    fn admin(&self) -> Result<Arc<dyn Admin>> {
        self.log.admin()
    }
}

struct Switched {
    producer: Box<dyn Producer>,
    log: Log,
}

impl Producer for Switched {
    fn init_transactions(&mut self) -> Result<()> {
        self.producer.init_transactions()
    }
    fn begin_transaction(&mut self) -> Result<()> {
        self.producer.begin_transaction()
    }
    fn send(&mut self, record: ProducerRecord) -> Result<()> {
        if self.log.down.load(Ordering::SeqCst) {
            return Err(StreamsError::Retriable("the log is down".into()));
        }
        let value = record.value.clone().unwrap_or_default();
        if !self.log.refuses.is_empty() && String::from_utf8_lossy(&value).contains(self.log.refuses) {
            return Err(StreamsError::fatal("message size too large"));
        }
        self.producer.send(record)
    }
    fn flush(&mut self) -> Result<()> {
        self.producer.flush()
    }
    fn send_offsets_to_transaction(
        &mut self,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        group: &GroupMetadata,
    ) -> Result<()> {
        self.producer.send_offsets_to_transaction(offsets, group)
    }
    fn commit_transaction(&mut self) -> Result<()> {
        self.producer.commit_transaction()
    }
    fn abort_transaction(&mut self) -> Result<()> {
        self.producer.abort_transaction()
    }
    fn partition_count(&mut self, topic: &str) -> Result<i32> {
        self.producer.partition_count(topic)
    }
}

fn relay(f: &Fixture, log: &Log, config: RelayConfig) -> Relay {
    let now = f.now_us.clone();
    let clock = Clock::from_fn(move || sluice::coupon::clock::UtcMicros::clamped(now.load(Ordering::SeqCst)));
    Relay::new(&f.ledger, Arc::new(log.clone()), clock, config)
}

/// Steps until there is nothing to do; returns how many rows left the outbox.
async fn drain(relay: &mut Relay) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut moved = 0;
    while Instant::now() < deadline {
        match relay.relay_batch().await.unwrap() {
            Step::Moved { sent, parked, .. } => moved += sent + parked,
            Step::Idle => return moved,
            Step::NoLane => panic!("somebody else holds the lanes"),
        }
    }
    panic!("the outbox was not empty within 20 s");
}

/// One user's life: issued, used, taken back, used again. Four events.
async fn live(f: &Fixture, coupon: CouponId, who: i64) {
    let id = f.issue(coupon, who).await.done().unwrap().user_coupon_id;
    f.advance(1_000);
    for outcome in [
        f.service.use_coupon(id, order("o-1", 1_000), &context("r")).await,
        f.service.cancel_use(id, cancel("o-1"), &context("r")).await,
        f.service.use_coupon(id, order("o-2", 1_000), &context("r")).await,
    ] {
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        f.advance(1_000);
    }
}

fn value(record: &ConsumerRecord) -> serde_json::Value {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

/// Turns the cases into tests of a module.
#[macro_export]
macro_rules! relay_contract_tests {
    ($fixture:ident) => {
        $crate::ledger_contract_tests! { $fixture relay_contract:
            every_event_arrives_once_with_its_key_headers_and_time
            a_user_s_events_keep_their_order_in_batches_of_any_size
            a_log_that_is_down_delays_and_loses_nothing
            a_relay_that_died_before_marking_repeats_and_loses_nothing
            a_refused_event_is_parked_and_holds_back_its_user_only
            two_relays_do_not_share_a_lane
            a_running_relay_is_woken_by_a_commit
        }
    };
}

pub async fn every_event_arrives_once_with_its_key_headers_and_time(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    for who in 1..=5 {
        live(&f, coupon, who).await;
    }
    let mut relay = relay(&f, &log, RelayConfig::default());
    assert_eq!(drain(&mut relay).await, 20);
    assert_eq!(drain(&mut relay).await, 0);
    let records = log.records();
    assert_eq!(records.len(), 20);
    for record in &records {
        let event = value(record);
        let key = event["userId"].as_i64().unwrap().to_string();
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        assert_eq!(record.partition, partition_for_key(key.as_bytes(), 3));
        let header = |name: &str| {
            let header = record.headers.last(name).unwrap_or_else(|| panic!("no header {name}"));
            String::from_utf8(header.value.clone().unwrap().to_vec()).unwrap()
        };
        assert_eq!(header("ce_id"), event["eventId"]);
        assert_eq!(header("ce_specversion"), "1.0");
        assert_eq!(header("ce_correlationid"), "r");
        let at: sluice::coupon::clock::UtcMicros = header("ce_time").parse().unwrap();
        assert_eq!(record.timestamp, at.millis());
    }
    assert_eq!(f.ints("select count(*) as n from outbox").await, [0]);
    assert_eq!(relay.metrics().sent.get(), 20);
}

pub async fn a_user_s_events_keep_their_order_in_batches_of_any_size(f: Fixture) {
    for batch_rows_max in [1, 3, 1_000] {
        let (log, coupon) = (Log::new(""), f.open(10).await);
        for who in 1..=3 {
            live(&f, coupon, who).await;
        }
        let mut relay = relay(&f, &log, RelayConfig { batch_rows_max, ..RelayConfig::default() });
        assert_eq!(drain(&mut relay).await, 12);
        outbox::release_leases(f.ledger.db(), relay.holder()).await.unwrap();
        let used: Vec<serde_json::Value> =
            log.records().iter().filter(|record| &*record.topic == "coupon-used").map(value).collect();
        for who in 1..=3 {
            let orders: Vec<_> =
                used.iter().filter(|event| event["userId"] == who).map(|event| &event["orderId"]).collect();
            assert_eq!(orders, ["o-1", "o-2"], "batches of {batch_rows_max}");
        }
    }
}

pub async fn a_log_that_is_down_delays_and_loses_nothing(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    let mut relay = relay(&f, &log, RelayConfig::default());
    log.set_down(true);
    for who in 1..=3 {
        live(&f, coupon, who).await;
        assert!(matches!(relay.relay_batch().await, Err(RelayError::Log(StreamsError::Retriable(_)))));
    }
    let backlog = outbox::backlog(f.ledger.db()).await.unwrap();
    assert_eq!((backlog.unsent, backlog.parked), (12, 0));
    assert_eq!(relay.metrics().failed.get(), 3);
    log.set_down(false);
    assert_eq!(drain(&mut relay).await, 12);
    assert_eq!(log.records().len(), 12);
}

pub async fn a_relay_that_died_before_marking_repeats_and_loses_nothing(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    live(&f, coupon, 1).await;
    let before = outbox::read_unsent(f.ledger.db(), &(0..16).collect::<Vec<_>>(), 100).await.unwrap();
    let mut died = relay(&f, &log, RelayConfig::default());
    let mut heir = relay(&f, &log, RelayConfig::default());
    died.relay_batch().await.unwrap();
    assert_eq!(log.records().len(), 4);
    // As if the marks had never reached the ledger.
    let mut tx = f.ledger.db().begin().await.unwrap();
    for row in &before {
        outbox::append(&mut tx, &row.row).await.unwrap();
    }
    tx.commit().await.unwrap();
    outbox::release_leases(f.ledger.db(), died.holder()).await.unwrap();
    assert_eq!(drain(&mut heir).await, 4);
    let ids: Vec<_> = log.records().iter().map(|record| value(record)["eventId"].clone()).collect();
    let distinct: std::collections::HashSet<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!((ids.len(), distinct.len()), (8, 4));
}

pub async fn a_refused_event_is_parked_and_holds_back_its_user_only(f: Fixture) {
    let (log, coupon) = (
        Log::new("\"orderId\":\"o-1\",\"orderAmount\":1000,\"discountAmount\":100,\"usedAt\""),
        f.open(10).await,
    );
    live(&f, coupon, 1).await;
    f.issue(coupon, 2).await.done().unwrap();
    let mut relay = relay(&f, &log, RelayConfig::default());
    assert_eq!(drain(&mut relay).await, 3, "two issued events and one parked");
    let topics: Vec<String> = log.records().iter().map(|record| record.topic.to_string()).collect();
    assert_eq!(topics, ["coupon-issued", "coupon-issued"]);
    let parked = outbox::parked(f.ledger.db()).await.unwrap();
    assert_eq!((parked.len(), parked[0].waiting), (1, 2));
    assert!(parked[0].reason.contains("too large"), "{parked:?}");
    // The operator has the log take larger messages and resumes: the rest follows, in order.
    assert!(outbox::resume(f.ledger.db(), parked[0].id).await.unwrap());
    outbox::release_leases(f.ledger.db(), relay.holder()).await.unwrap();
    let lenient = Log { refuses: "", ..log.clone() };
    let mut relay = self::relay(&f, &lenient, RelayConfig::default());
    assert_eq!(drain(&mut relay).await, 3);
    let used: Vec<_> = log
        .records()
        .iter()
        .filter(|r| &*r.topic == "coupon-used")
        .map(|r| value(r)["orderId"].clone())
        .collect();
    assert_eq!(used, ["o-1", "o-2"]);
}

pub async fn two_relays_do_not_share_a_lane(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    let mut first = relay(&f, &log, RelayConfig::default());
    let mut second = relay(&f, &log, RelayConfig::default());
    assert_eq!(first.relay_batch().await.unwrap(), Step::Idle);
    f.issue(coupon, 1).await.done().unwrap();
    assert_eq!(second.relay_batch().await.unwrap(), Step::NoLane);
    assert_eq!(drain(&mut first).await, 1);
    assert_eq!(log.records().len(), 1);
}

pub async fn a_running_relay_is_woken_by_a_commit(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    // The timer alone would take an hour.
    let config = RelayConfig { interval: Duration::from_secs(3_600), ..RelayConfig::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(relay(&f, &log, config).run(async {
        let _ = stopped.await;
    }));
    let deadline = Instant::now() + Duration::from_secs(20);
    for who in 1..=3 {
        f.issue(coupon, who).await.done().unwrap();
        while log.records().len() < who as usize {
            assert!(Instant::now() < deadline, "event {who} was not carried");
            tokio::task::yield_now().await;
        }
    }
    stop.send(()).unwrap();
    running.await.unwrap();
    // A stopped relay gives its lanes back at once.
    let mut next = relay(&f, &log, RelayConfig::default());
    assert_eq!(next.relay_batch().await.unwrap(), Step::Idle);
}

/// A transaction with a lower outbox id commits after a higher one was sent: it is sent all the same. Needs a ledger
/// with more than one writer.
#[allow(dead_code, reason = "only where there is more than one writer")]
pub async fn a_slower_transaction_is_not_skipped(f: Fixture) {
    let (log, coupon) = (Log::new(""), f.open(10).await);
    let mut relay = relay(&f, &log, RelayConfig::default());
    let slow = f.issuance(coupon, 77, 10).await.event;
    assert_eq!(slow.key, "77");
    let mut tx = f.ledger.db().begin().await.unwrap();
    outbox::append(&mut tx, &slow).await.unwrap();
    f.issue(coupon, 1).await.done().unwrap();
    assert_eq!(drain(&mut relay).await, 1);
    tx.commit().await.unwrap();
    assert_eq!(drain(&mut relay).await, 1);
    let keys: std::collections::BTreeSet<_> = log.records().into_iter().map(|record| record.key).collect();
    assert_eq!(keys.len(), 2);
}
