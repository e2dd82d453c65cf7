//! Sending a batch of outbox rows so that no user's events ever change places.
//!
//! Between the relay (which reads and marks) and the producer. Synchronous. What must always hold: an event is handed
//! to the producer only when every earlier event of its key is acknowledged; so whatever fails, whatever the producer
//! repeats by itself, the log sees a key's events in their order (possibly more than once). That costs nothing in
//! the common case: rows of different keys share one flush.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    coupon::{failpoint, outbox::UnsentRow},
    streams::{
        client::{ClientSupplier, Producer, ProducerConfig},
        error::{Result, StreamsError},
        record::{Header, Headers, ProducerRecord},
    },
};

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Sent {
    /// Ids of the rows the log has acknowledged, to be marked.
    pub acknowledged: Vec<i64>,
    /// Rows the log refuses for good while it takes others, with its words: to be parked.
    pub refused: Vec<(i64, String)>,
    /// Why the batch ended early: try again later.
    pub stopped: Option<StreamsError>,
}

/// Producers for the relay: one at a time, made when needed, thrown away when it failed.
pub struct Sender {
    supplier: Arc<dyn ClientSupplier>,
    producer: Option<Box<dyn Producer>>,
}

impl Sender {
    /// No connection is made yet.
    pub fn new(supplier: Arc<dyn ClientSupplier>) -> Self {
        Self { supplier, producer: None }
    }

    /// Sends rows (in the order of their ids), giving up at `until`, when the lanes may be somebody else's.
    pub fn send(&mut self, rows: &[UnsentRow], until: Instant) -> Sent {
        let mut sent = Sent::default();
        let mut held: HashSet<&str> = HashSet::new();
        for wave in waves(rows) {
            let wave: Vec<&UnsentRow> =
                wave.into_iter().filter(|row| !held.contains(row.row.key.as_str())).collect();
            if Instant::now() >= until {
                sent.stopped = Some(StreamsError::Retriable("the lease ran out while sending".into()));
                return sent;
            }
            match self.send_together(&wave) {
                Ok(()) => sent.acknowledged.extend(wave.iter().map(|row| row.id)),
                // Which of them failed is not known: one at a time.
                Err(_) => {
                    for row in wave {
                        match self.send_alone(row, until) {
                            Alone::Acknowledged => sent.acknowledged.push(row.id),
                            Alone::Refused(reason) => {
                                held.insert(&row.row.key);
                                sent.refused.push((row.id, reason));
                            }
                            Alone::TryLater(error) => {
                                sent.stopped = Some(error);
                                return sent;
                            }
                        }
                    }
                }
            }
            failpoint::hit("relay_after_send");
        }
        sent
    }

    fn send_together(&mut self, rows: &[&UnsentRow]) -> Result<()> {
        let result = self.try_send(rows);
        if result.is_err() {
            // What the producer still holds must not arrive between what is sent next.
            self.producer = None;
        }
        result
    }

    fn try_send(&mut self, rows: &[&UnsentRow]) -> Result<()> {
        let producer = self.producer()?;
        for row in rows {
            producer.send(record(row)?)?;
        }
        producer.flush()
    }

    /// One row by itself. Refused for good: the same clear refusal twice, by two producers, while the log knows the
    /// topic. Anything less is a reason to wait, never to set an event aside.
    fn send_alone(&mut self, row: &UnsentRow, until: Instant) -> Alone {
        let Err(first) = self.send_together(&[row]) else { return Alone::Acknowledged };
        if !is_refusal(&first) {
            return Alone::TryLater(first);
        }
        if Instant::now() >= until {
            return Alone::TryLater(first);
        }
        let topic_known = self.producer().and_then(|producer| producer.partition_count(&row.row.topic));
        if let Err(error) = topic_known {
            return Alone::TryLater(error);
        }
        match self.send_together(&[row]) {
            Ok(()) => Alone::Acknowledged,
            Err(second) if is_refusal(&second) => Alone::Refused(second.to_string()),
            Err(second) => Alone::TryLater(second),
        }
    }

    fn producer(&mut self) -> Result<&mut Box<dyn Producer>> {
        if self.producer.is_none() {
            self.producer = Some(self.supplier.producer(&ProducerConfig::default())?);
        }
        Ok(self.producer.as_mut().expect("it was just made"))
    }
}

enum Alone {
    Acknowledged,
    Refused(String),
    TryLater(StreamsError),
}

fn is_refusal(error: &StreamsError) -> bool {
    !matches!(error, StreamsError::Retriable(_) | StreamsError::TaskMigrated(_))
}

/// Cuts rows into waves: a key's first row is in the first wave, its second in the second, and so on.
fn waves(rows: &[UnsentRow]) -> Vec<Vec<&UnsentRow>> {
    let mut waves: Vec<Vec<&UnsentRow>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(rows.len());
    for row in rows {
        let turn = seen.entry(&row.row.key).or_default();
        if waves.len() == *turn {
            waves.push(Vec::new());
        }
        waves[*turn].push(row);
        *turn += 1;
    }
    waves
}

fn record(unsent: &UnsentRow) -> Result<ProducerRecord> {
    let row = &unsent.row;
    let headers: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&row.headers)
        .map_err(|error| StreamsError::fatal(format!("outbox row {}: headers: {error}", unsent.id)))?;
    let headers: Headers = headers
        .into_iter()
        .map(|(key, value)| Header { key, value: value.as_str().map(|text| text.to_owned().into()) })
        .collect();
    Ok(ProducerRecord {
        topic: row.topic.as_str().into(),
        partition: None,
        key: Some(row.key.clone().into()),
        value: Some(row.payload.clone().into()),
        timestamp: Some(row.created_at.millis()),
        headers,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, MutexGuard, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::{
        coupon::{clock::UtcMicros, outbox::OutboxRow},
        streams::client::{Admin, Consumer, ConsumerConfig, GroupMetadata, OffsetAndMetadata},
    };

    /// A log that takes what it is told to take.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<FakeLog>>);

    #[derive(Default)]
    struct FakeLog {
        taken: Vec<String>,
        flushes: usize,
        /// Values refused for good.
        poison: HashSet<String>,
        /// Down: everything is retriable.
        down: bool,
        topic_unknown: bool,
    }

    impl Fake {
        fn log(&self) -> MutexGuard<'_, FakeLog> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    struct FakeProducer(Fake, Option<StreamsError>);

    impl Producer for FakeProducer {
        fn init_transactions(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn begin_transaction(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn send(&mut self, record: ProducerRecord) -> Result<()> {
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            let mut log = self.0.log();
            if log.down {
                self.1.get_or_insert(StreamsError::Retriable("the log is down".into()));
            } else if log.poison.contains(&value) {
                self.1.get_or_insert(StreamsError::fatal("message size too large"));
            } else {
                log.taken.push(value);
            }
            Ok(())
        }
        fn flush(&mut self) -> Result<()> {
            self.0.log().flushes += 1;
            self.1.take().map_or(Ok(()), Err)
        }
        fn send_offsets_to_transaction(
            &mut self,
            _: &BTreeMap<crate::streams::record::TopicPartition, OffsetAndMetadata>,
            _: &GroupMetadata,
        ) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn commit_transaction(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn abort_transaction(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn partition_count(&mut self, topic: &str) -> Result<i32> {
            if self.0.log().topic_unknown {
                return Err(StreamsError::fatal(format!("topic {topic} does not exist")));
            }
            Ok(3)
        }
    }

    impl ClientSupplier for Fake {
        fn consumer(&self, _: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
            unreachable!("the relay reads no topic")
        }
        fn producer(&self, _: &ProducerConfig) -> Result<Box<dyn Producer>> {
            Ok(Box::new(FakeProducer(self.clone(), None)))
        }
        fn admin(&self) -> Result<Arc<dyn Admin>> {
            unreachable!("the relay makes no topic")
        }
    }

    /// `a1` is key `a`, value `a1`.
    fn rows(values: &[&str]) -> Vec<UnsentRow> {
        let row = |(id, value): (usize, &&str)| UnsentRow {
            id: id as i64,
            row: OutboxRow {
                event_id: value.to_string(),
                lane: 0,
                topic: "t".into(),
                key: value[..1].into(),
                headers: r#"{"ce_id":"1"}"#.into(),
                payload: value.as_bytes().to_vec(),
                created_at: UtcMicros::clamped(0),
            },
        };
        values.iter().enumerate().map(row).collect()
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn different_keys_share_a_flush_and_one_key_keeps_its_order() {
        let log = Fake::default();
        let sent = Sender::new(Arc::new(log.clone())).send(&rows(&["a1", "b1", "a2", "c1", "a3"]), later());
        assert_eq!(sent.acknowledged, [0, 1, 3, 2, 4]);
        assert_eq!(log.log().taken, ["a1", "b1", "c1", "a2", "a3"]);
        assert_eq!(log.log().flushes, 3);
    }

    #[test]
    fn a_poison_row_is_refused_alone_and_holds_back_only_its_key() {
        let log = Fake::default();
        log.log().poison.insert("a1".into());
        let sent = Sender::new(Arc::new(log.clone())).send(&rows(&["a1", "b1", "a2", "b2"]), later());
        assert_eq!(sent.refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0]);
        assert!(sent.refused[0].1.contains("too large"), "{sent:?}");
        assert_eq!(sent.acknowledged, [1, 3]);
        assert!(sent.stopped.is_none());
        let taken = log.log().taken.clone();
        assert!(!taken.iter().any(|value| value.starts_with('a')), "{taken:?}");
    }

    #[test]
    fn a_log_that_is_down_parks_nothing() {
        let log = Fake::default();
        log.log().down = true;
        let mut sender = Sender::new(Arc::new(log.clone()));
        let sent = sender.send(&rows(&["a1", "b1"]), later());
        assert!(sent.acknowledged.is_empty() && sent.refused.is_empty(), "{sent:?}");
        assert!(matches!(sent.stopped, Some(StreamsError::Retriable(_))));
        log.log().down = false;
        assert_eq!(sender.send(&rows(&["a1", "b1"]), later()).acknowledged, [0, 1]);
    }

    #[test]
    fn a_missing_topic_is_waited_for() {
        let log = Fake::default();
        log.log().topic_unknown = true;
        log.log().poison.insert("a1".into());
        let sent = Sender::new(Arc::new(log.clone())).send(&rows(&["a1"]), later());
        assert!(sent.refused.is_empty() && sent.stopped.is_some(), "{sent:?}");
    }

    #[test]
    fn nothing_is_sent_after_the_lease() {
        let log = Fake::default();
        let sent = Sender::new(Arc::new(log.clone())).send(&rows(&["a1"]), Instant::now());
        assert!(sent.acknowledged.is_empty() && sent.stopped.is_some());
        assert!(log.log().taken.is_empty());
    }
}
