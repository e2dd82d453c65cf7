//! Sending dead letters back to where they were read.
//!
//! What must always hold: a letter is sent at most once, however often it is asked for, by however many, and wherever a run
//! died. So a run takes over the transactional id of its dead-letter topic (an older run is fenced, what it left open is
//! aborted), then looks in the input, after the record that failed, for the same event or for a record that says it is this
//! one sent again; only what is not there is sent, in transactions.

use std::collections::{BTreeMap, HashSet};

use super::letter::{Letter, event_id};
use crate::streams::{
    client::{ClientSupplier, Producer, ProducerConfig, read_partitions},
    error::{Result, StreamsError},
    record::{Headers, ProducerRecord, REDRIVE_ATTEMPTS, REDRIVEN_FROM, TopicPartition},
};

/// Letters per transaction: far less than a transaction's time allows.
const LETTERS_PER_TRANSACTION: usize = 1_000;
/// How often an answer that did not come is asked for again, in the producer's own time.
const ASK_AGAIN: usize = 10;

/// What is to become of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is sent to where it was read.
    Send,
    /// The input has it again already.
    AlreadyThere,
    /// Another letter of this run is the same event.
    SameEvent,
    /// It does not say where it was read, or that is not there any more.
    NoOrigin,
}

impl Fate {
    /// In words, before it is done and after.
    pub fn words(self, done: bool) -> &'static str {
        match self {
            Fate::Send if done => "sent",
            Fate::Send => "to send",
            Fate::AlreadyThere => "sent before",
            Fate::SameEvent => "same event as another letter",
            Fate::NoOrigin => "where it was read is not known or not there any more",
        }
    }
}

/// Says for each letter what a redrive would do with it. Reads the inputs from the first failed record on.
pub fn plan(log: &dyn ClientSupplier, letters: &[Letter]) -> Result<Vec<Fate>> {
    let mut from: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for origin in letters.iter().filter_map(|letter| letter.origin.as_ref()) {
        let next = origin.offset + 1;
        from.entry(origin.partition.clone()).and_modify(|start| *start = next.min(*start)).or_insert(next);
    }
    let existing = log.admin()?.describe(&topics(&from))?;
    from.retain(|partition, _| {
        existing.get(&*partition.topic).is_some_and(|topic| partition.partition < topic.partitions)
    });
    let wanted: HashSet<&str> = letters.iter().filter_map(|letter| letter.event_id.as_deref()).collect();
    let mut events: BTreeMap<(TopicPartition, String), i64> = BTreeMap::new();
    let mut again: HashSet<Vec<u8>> = HashSet::new();
    read_partitions(log, &from, |record| {
        again.extend(
            record.headers.last(REDRIVEN_FROM).and_then(|header| header.value.as_deref()).map(Vec::from),
        );
        if let Some(event) = event_id(record.value.as_deref())
            && wanted.contains(event.as_str())
        {
            events.insert((TopicPartition::new(record.topic, record.partition), event), record.offset);
        }
        Ok(())
    })?;
    let mut taken = HashSet::new();
    Ok(letters
        .iter()
        .map(|letter| {
            let Some(origin) = letter.origin.as_ref().filter(|origin| from.contains_key(&origin.partition))
            else {
                return Fate::NoOrigin;
            };
            let later = |event: &String| {
                let last = events.get(&(origin.partition.clone(), event.clone()));
                last.is_some_and(|offset| *offset > origin.offset)
            };
            if again.contains(origin.to_string().as_bytes()) || letter.event_id.as_ref().is_some_and(later) {
                return Fate::AlreadyThere;
            }
            // Several applications may have written a letter about one record.
            let identity = letter.event_id.clone().unwrap_or_else(|| origin.to_string());
            if taken.insert((origin.partition.clone(), identity)) { Fate::Send } else { Fate::SameEvent }
        })
        .collect())
}

fn topics(partitions: &BTreeMap<TopicPartition, i64>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> =
        partitions.keys().map(|partition| partition.topic.to_string()).collect();
    names.into_iter().collect()
}

/// Sends back what is to be sent; tells after each transaction how many that were so far. Returns the fates as they were
/// when nobody else could be sending.
pub fn execute(
    log: &dyn ClientSupplier,
    dead_letter_topic: &str,
    letters: &[Letter],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Fate>> {
    let mut producer = log.producer(&ProducerConfig {
        transactional_id: Some(format!("sluice-redrive-{dead_letter_topic}")),
        transaction_timeout: None,
    })?;
    patiently(|| producer.init_transactions())?;
    // Only now: what another run had sent is committed or aborted, and it can send no more.
    let fates = plan(log, letters)?;
    let to_send: Vec<&Letter> = letters
        .iter()
        .zip(&fates)
        .filter(|(_, fate)| **fate == Fate::Send)
        .map(|(letter, _)| letter)
        .collect();
    let mut sent = 0;
    for batch in to_send.chunks(LETTERS_PER_TRANSACTION) {
        send(&mut *producer, batch).inspect_err(|_| {
            // What is open is aborted here or by whoever comes next; the cause is what matters.
            let _ = producer.abort_transaction();
        })?;
        sent += batch.len();
        progress(sent);
    }
    Ok(fates)
}

fn send(producer: &mut dyn Producer, letters: &[&Letter]) -> Result<()> {
    producer.begin_transaction()?;
    for letter in letters {
        let Some(origin) = &letter.origin else { continue };
        let earlier = [REDRIVEN_FROM, REDRIVE_ATTEMPTS];
        let mut headers: Headers =
            letter.headers.iter().filter(|header| !earlier.contains(&&*header.key)).cloned().collect();
        headers.add(REDRIVEN_FROM, Some(origin.to_string()));
        headers.add(REDRIVE_ATTEMPTS, Some(letter.attempts.to_string()));
        producer.send(ProducerRecord {
            topic: origin.partition.topic.clone(),
            // Its old partition: behind whatever followed it, and where the next run looks for it.
            partition: Some(origin.partition.partition),
            key: letter.key.clone(),
            value: letter.value.clone(),
            timestamp: (letter.timestamp >= 0).then_some(letter.timestamp),
            headers,
        })?;
    }
    patiently(|| producer.flush())?;
    patiently(|| producer.commit_transaction())
}

/// Asks again while the answer is unknown.
fn patiently(mut call: impl FnMut() -> Result<()>) -> Result<()> {
    let mut asked = 0;
    loop {
        match call() {
            Err(StreamsError::Retriable(_)) if asked < ASK_AGAIN => asked += 1,
            other => return other,
        }
    }
}
