//! How far the relay is, said in the log itself: "everything that happened before this moment is in the event topics".
//!
//! Only the relay can know it, and readers need it: an event topic that is silent may be complete, or its relay may be
//! away with an hour of events in the outbox. Statistics close a window over a silent topic only as far as the last
//! record here vouches. What must always hold: a record is written after the events it vouches for are acknowledged, from
//! an outbox that was read after the moment it names; saying less than is true delays windows, saying more loses events.
//!
//! What is not covered: an event is dated when the gate admits it and becomes visible when its transaction commits. A
//! commit that takes longer than the windows' `idle_close` + `grace` (40 s as shipped) may find its window closed; so may
//! an event that was parked and resumed. Such events are counted as late, and `sluice verify` names them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    coupon::clock::UtcMicros,
    streams::{
        client::{ClientSupplier, ConsumerConfig, Producer, ProducerConfig},
        error::{Result, StreamsError},
        record::{Headers, ProducerRecord, TopicPartition},
    },
};

/// Where it is said; compacted, one key.
pub const TOPIC: &str = "coupon-relay-progress";
const KEY: &str = "relay";

/// How long one look for news takes at most, and how long to wait after a log that did not answer.
const POLL: Duration = Duration::from_millis(500);

/// The record's value.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    up_to: UtcMicros,
}

/// Says how far the relay is.
#[derive(Default)]
pub(super) struct Announcer {
    producer: Option<Box<dyn Producer>>,
}

impl Announcer {
    /// Blocks until the log has it. After an error the next call begins anew.
    pub(super) fn announce(&mut self, supplier: &dyn ClientSupplier, up_to: UtcMicros) -> Result<()> {
        let result = self.try_announce(supplier, up_to);
        if result.is_err() {
            self.producer = None;
        }
        result
    }

    fn try_announce(&mut self, supplier: &dyn ClientSupplier, up_to: UtcMicros) -> Result<()> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            none => none.insert(supplier.producer(&ProducerConfig::default())?),
        };
        let value = serde_json::to_string(&Progress { up_to }).expect("a time always serializes");
        producer.send(ProducerRecord {
            topic: TOPIC.into(),
            partition: None,
            key: Some(KEY.into()),
            value: Some(value.into()),
            timestamp: Some(up_to.millis()),
            headers: Headers::EMPTY,
        })?;
        producer.flush()
    }
}

/// Follows what relays say, in a thread that ends when nobody holds the result any more: milliseconds since 1970, 0 while
/// nothing was ever said.
pub fn follow(supplier: Arc<dyn ClientSupplier>) -> Arc<AtomicI64> {
    let progress = Arc::new(AtomicI64::new(0));
    let followed = Arc::downgrade(&progress);
    let thread = std::thread::Builder::new().name("sluice-progress".into()).spawn(move || {
        let mut last_failure = String::new();
        while followed.strong_count() > 0 {
            if let Err(error) = read_on(&*supplier, &followed) {
                // Said once per cause: a log that is down fails every look.
                let words = error.to_string();
                if words != last_failure {
                    tracing::warn!(%error, "how far the relay is cannot be read; windows over silent topics stay open");
                    last_failure = words;
                }
                std::thread::sleep(POLL);
            }
        }
    });
    if let Err(error) = thread {
        tracing::error!(%error, "no thread to follow the relay; windows over silent topics stay open");
    }
    progress
}

/// From the newest record on, until nobody wants it or the log fails.
fn read_on(supplier: &dyn ClientSupplier, followed: &Weak<AtomicI64>) -> Result<()> {
    let described = supplier.admin()?.describe(&[TOPIC.to_owned()])?;
    let Some(description) = described.get(TOPIC) else {
        return Err(StreamsError::Retriable(format!("the topic {TOPIC} does not exist yet")));
    };
    let mut consumer = supplier.consumer(&ConsumerConfig::default())?;
    let mut from = HashMap::new();
    for partition in 0..description.partitions {
        let partition = TopicPartition::new(TOPIC, partition);
        let (first, end) = consumer.watermarks(&partition)?;
        from.insert(partition, first.max(end - 1));
    }
    let assignment: Vec<_> = from.into_iter().map(|(partition, offset)| (partition, Some(offset))).collect();
    consumer.assign(&assignment)?;
    loop {
        let polled = consumer.poll(POLL)?;
        let Some(progress) = followed.upgrade() else { return Ok(()) };
        for record in polled.records {
            let value = record.value.as_deref().unwrap_or_default();
            // What is not ours to read says nothing.
            if let Ok(said) = serde_json::from_slice::<Progress>(value) {
                // What was true stays true: of two relays the one that is further counts.
                progress.fetch_max(said.up_to.millis(), Ordering::AcqRel);
            }
        }
    }
}
