//! Sending a batch of outbox rows so that no user's events ever change places.
//!
//! Between the relay (which reads and marks) and the producer. Synchronous. What must always hold: an event is handed
//! to the producer only when every earlier event of its key is acknowledged; so whatever fails, whatever the producer
//! repeats by itself, the log sees a key's events in their order (possibly more than once). That costs nothing in
//! the common case: rows of different keys share one flush.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
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
    /// Rows the log refuses for good while it takes others, with its words, and rows that make no record: to be parked.
    pub refused: Vec<(i64, String)>,
    /// Why the batch ended early: try again later.
    pub stopped: Option<StreamsError>,
}

/// Producers for the relay: one at a time, made when needed, thrown away when it failed.
pub struct Sender {
    supplier: Arc<dyn ClientSupplier>,
    producer: Option<Box<dyn Producer>>,
    /// Rows that the producer holds and has not been able to deliver: it goes on with them by itself, so they are
    /// flushed again and not sent again. Empty when there is no producer.
    queued: Vec<i64>,
}

impl Sender {
    /// No connection is made yet.
    pub fn new(supplier: Arc<dyn ClientSupplier>) -> Self {
        Self { supplier, producer: None, queued: Vec::new() }
    }

    /// Sends rows (in the order of their ids), giving up at `until`, when the lanes may be somebody else's.
    ///
    /// 1. What the producer still holds from before is delivered first.
    /// 2. Wave by wave, of what happened at about one time: every key's next row, then one flush.
    /// 3. A wave that fails is sent again row by row, to find out which row it was.
    pub fn send(&mut self, rows: &[UnsentRow], until: Instant) -> Sent {
        let mut sent = Sent::default();
        // 1
        let delivered = match self.deliver_queued() {
            Ok(delivered) => delivered,
            Err(error) => {
                sent.stopped = Some(error);
                return sent;
            }
        };
        sent.acknowledged.extend(&delivered);
        let delivered: HashSet<i64> = delivered.into_iter().collect();
        let rows: Vec<&UnsentRow> = rows.iter().filter(|row| !delivered.contains(&row.id)).collect();
        // 2
        let mut held: HashSet<&str> = HashSet::new();
        let mut refused_by_log = 0;
        for mut wave in waves(&rows) {
            wave.retain(|row| !held.contains(row.row.key.as_str()));
            if Instant::now() >= until {
                sent.stopped = Some(StreamsError::Retriable("the lease ran out while sending".into()));
                return sent;
            }
            match self.send_together(&wave) {
                Ok(()) => sent.acknowledged.extend(wave.iter().map(|row| row.id)),
                Err(error) if !is_refusal(&error) => {
                    sent.stopped = Some(error);
                    return sent;
                }
                // 3
                Err(_) => {
                    for row in wave {
                        match self.send_alone(row) {
                            Alone::Acknowledged => sent.acknowledged.push(row.id),
                            Alone::Refused(reason) => {
                                refused_by_log += 1;
                                held.insert(&row.row.key);
                                sent.refused.push((row.id, reason));
                            }
                            Alone::Unreadable(reason) => {
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
        if sent.acknowledged.is_empty() && refused_by_log >= REFUSALS_MAX {
            return refuses_everything(sent);
        }
        sent
    }

    /// Step 1: flushes again what could not be delivered before; returns the rows.
    fn deliver_queued(&mut self) -> Result<Vec<i64>> {
        if self.queued.is_empty() {
            return Ok(Vec::new());
        }
        let result = self.producer().and_then(|producer| producer.flush());
        match result {
            Ok(()) => Ok(std::mem::take(&mut self.queued)),
            Err(error) => {
                self.keep_or_drop(&error);
                Err(error)
            }
        }
    }

    /// Sends rows of different keys and waits for all acknowledgements.
    fn send_together(&mut self, rows: &[&UnsentRow]) -> Result<()> {
        // A row that makes no record says nothing of the producer, which has heard of none yet.
        let records = rows.iter().map(|row| record(row)).collect::<Result<Vec<_>>>()?;
        let result = self.try_send(rows, records);
        match &result {
            Ok(()) => self.queued.clear(),
            Err(error) => self.keep_or_drop(error),
        }
        result
    }

    fn try_send(&mut self, rows: &[&UnsentRow], records: Vec<ProducerRecord>) -> Result<()> {
        self.queued.clear();
        for (row, record) in rows.iter().zip(records) {
            self.producer()?.send(record)?;
            self.queued.push(row.id);
        }
        self.producer()?.flush()
    }

    /// A producer that only could not deliver yet goes on; after anything else what it holds must not arrive between
    /// what is sent next.
    fn keep_or_drop(&mut self, error: &StreamsError) {
        if !matches!(error, StreamsError::Retriable(_)) {
            self.producer = None;
            self.queued.clear();
        }
    }

    /// One row by itself. Refused for good: the same clear refusal twice, by two producers, while the log knows the
    /// topic. Anything less is a reason to wait, never to set an event aside.
    fn send_alone(&mut self, row: &UnsentRow) -> Alone {
        if let Err(error) = record(row) {
            return Alone::Unreadable(error.to_string());
        }
        let Err(first) = self.send_together(&[row]) else { return Alone::Acknowledged };
        if !is_refusal(&first) {
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

/// Refusals in a batch of which nothing is taken that speak against the log and not against the rows.
const REFUSALS_MAX: usize = 3;

/// A log that takes nothing at all (permissions, a broken topic) is waited for: no event is set aside for that.
fn refuses_everything(sent: Sent) -> Sent {
    let reason = sent.refused.into_iter().next().map_or_else(String::new, |(_, reason)| reason);
    let stopped = StreamsError::Retriable(format!("the log refuses every event: {reason}"));
    Sent { stopped: Some(stopped), ..Sent::default() }
}

enum Alone {
    Acknowledged,
    /// By the log.
    Refused(String),
    /// It makes no record.
    Unreadable(String),
    TryLater(StreamsError),
}

fn is_refusal(error: &StreamsError) -> bool {
    !matches!(error, StreamsError::Retriable(_) | StreamsError::TaskMigrated(_))
}

/// How far an event may be behind a later one of somebody else. Statistics bear what is out of order by less than their grace.
const SPREAD_MAX_MICROS: i64 = 500_000;

/// Cuts rows into waves: a key's first row is in the first wave, its second in the second, and so on; what is more than
/// [`SPREAD_MAX_MICROS`] younger begins anew. Else the waves of an hour's backlog would be an hour each, one after the other, and the
/// second events of users old news when they arrive.
fn waves<'a>(rows: &[&'a UnsentRow]) -> Vec<Vec<&'a UnsentRow>> {
    let mut waves: Vec<Vec<&UnsentRow>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(rows.len());
    let (mut first_wave, mut began_at) = (0, None);
    for row in rows {
        let at = row.row.created_at.micros();
        if at - *began_at.get_or_insert(at) > SPREAD_MAX_MICROS {
            (first_wave, began_at) = (waves.len(), Some(at));
            seen.clear();
        }
        let turn = seen.entry(&row.row.key).or_insert(first_wave);
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
    let headers: BTreeMap<String, Option<String>> = serde_json::from_str(&row.headers)
        .map_err(|error| StreamsError::fatal(format!("outbox row {}: headers: {error}", unsent.id)))?;
    let headers: Headers =
        headers.into_iter().map(|(key, value)| Header { key, value: value.map(Into::into) }).collect();
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
        producers: usize,
    }

    impl Fake {
        fn log(&self) -> MutexGuard<'_, FakeLog> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// As Kafka's plain producer: what cannot be delivered stays queued; a refused record is gone.
    struct FakeProducer {
        log: Fake,
        queue: Vec<String>,
        refused: bool,
    }

    impl Producer for FakeProducer {
        fn init_transactions(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn begin_transaction(&mut self) -> Result<()> {
            unreachable!("the relay is not transactional")
        }
        fn send(&mut self, record: ProducerRecord) -> Result<()> {
            self.queue.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
            Ok(())
        }
        fn flush(&mut self) -> Result<()> {
            let mut log = self.log.log();
            log.flushes += 1;
            if log.down {
                return Err(StreamsError::Retriable("not acknowledged; flush again".into()));
            }
            for value in self.queue.drain(..) {
                if log.poison.contains(&value) {
                    self.refused = true;
                } else {
                    log.taken.push(value);
                }
            }
            match std::mem::take(&mut self.refused) {
                true => Err(StreamsError::fatal("message size too large")),
                false => Ok(()),
            }
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
            if self.log.log().topic_unknown {
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
            self.log().producers += 1;
            Ok(Box::new(FakeProducer { log: self.clone(), queue: Vec::new(), refused: false }))
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
    fn a_backlog_keeps_its_order_of_time() {
        let log = Fake::default();
        let mut rows = rows(&["a1", "b1", "a2", "c1", "a3", "c2"]);
        for (row, millis) in rows.iter_mut().zip([0, 100, 500, 501, 900, 60_000]) {
            row.row.created_at = UtcMicros::clamped(millis * 1_000);
        }
        let sent = Sender::new(Arc::new(log.clone())).send(&rows, later());
        assert_eq!(log.log().taken, ["a1", "b1", "a2", "c1", "a3", "c2"]);
        assert_eq!((sent.acknowledged.len(), log.log().flushes), (6, 4));
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
    fn a_log_that_is_down_parks_nothing_and_gets_each_event_once_when_it_is_back() {
        let log = Fake::default();
        log.log().down = true;
        let mut sender = Sender::new(Arc::new(log.clone()));
        for _ in 0..3 {
            let sent = sender.send(&rows(&["a1", "b1", "a2"]), later());
            assert!(sent.acknowledged.is_empty() && sent.refused.is_empty(), "{sent:?}");
            assert!(matches!(sent.stopped, Some(StreamsError::Retriable(_))));
        }
        log.log().down = false;
        assert_eq!(sender.send(&rows(&["a1", "b1", "a2", "a3"]), later()).acknowledged, [0, 1, 2, 3]);
        assert_eq!(log.log().taken, ["a1", "b1", "a2", "a3"]);
    }

    #[test]
    fn rows_that_make_no_record_are_refused_without_another_producer() {
        let log = Fake::default();
        let mut rows = rows(&["a1", "b1", "c1", "d1", "a2"]);
        rows[..4].iter_mut().for_each(|row| row.row.headers = "not JSON".into());
        let mut sender = Sender::new(Arc::new(log.clone()));
        let sent = sender.send(&rows, later());
        // Nothing was taken, but not because the log takes nothing.
        assert!(sent.stopped.is_none() && sent.acknowledged.is_empty(), "{sent:?}");
        assert_eq!(sent.refused.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(sent.refused[0].1.contains("headers"), "{sent:?}");
        rows[4].row.key = "e".into();
        assert_eq!(sender.send(&rows, later()).acknowledged, [4]);
        assert_eq!(log.log().producers, 1);
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
    fn a_log_that_refuses_everything_is_waited_for() {
        let log = Fake::default();
        log.log().poison.extend(["a1", "b1", "c1", "d1"].map(String::from));
        let mut sender = Sender::new(Arc::new(log.clone()));
        let sent = sender.send(&rows(&["a1", "b1", "c1", "d1", "e1"]), later());
        assert_eq!((sent.refused.len(), sent.acknowledged), (4, vec![4]), "one that is taken proves the log");
        let sent = sender.send(&rows(&["a1", "b1", "c1", "d1"]), later());
        assert!(
            sent.refused.is_empty() && matches!(sent.stopped, Some(StreamsError::Retriable(_))),
            "{sent:?}"
        );
    }

    #[test]
    fn nothing_is_sent_after_the_lease() {
        let log = Fake::default();
        let sent = Sender::new(Arc::new(log.clone())).send(&rows(&["a1"]), Instant::now());
        assert!(sent.acknowledged.is_empty() && sent.stopped.is_some());
        assert!(log.log().taken.is_empty());
    }
}
