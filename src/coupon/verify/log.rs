//! Reads the topics of the service from the first record to the last stable one, as any third party could.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::coupon::clock::UtcMicros;
use crate::streams::{
    client::{self, ClientSupplier},
    error::Result,
    record::ConsumerRecord,
};

pub(super) const TOPIC_ISSUED: &str = "coupon-issued";
pub(super) const TOPIC_USED: &str = "coupon-used";
pub(super) const TOPIC_USE_CANCELLED: &str = "coupon-use-cancelled";
pub(super) const TOPIC_REVOKED: &str = "coupon-revoked";
const TOPICS_OF_EVENTS: [&str; 4] = [TOPIC_ISSUED, TOPIC_USED, TOPIC_USE_CANCELLED, TOPIC_REVOKED];
pub(super) const TOPIC_MINUTE: &str = "coupon-stats-minute";
pub(super) const TOPIC_DAY: &str = "coupon-stats-day";
const TOPICS_OF_WINDOWS: [&str; 2] = [TOPIC_MINUTE, TOPIC_DAY];
const TOPIC_TOTALS: &str = "coupon-totals";
const TOPIC_COMMANDS: &str = "coupon-notification-commands";
const TOPICS_OF_DEAD_LETTERS: [&str; 2] = ["coupon-issued-dlq", "coupon-used-dlq"];

/// An event as the log has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the members of the events")]
pub struct LogEvent {
    pub event_id: String,
    pub user_coupon_id: i64,
    pub user_id: i64,
    pub coupon_id: i64,
    pub slot_no: Option<i64>,
    pub order_id: Option<String>,
    pub order_amount: Option<i64>,
    pub discount_amount: Option<i64>,
    /// The record's key, for comparison with the user.
    #[serde(skip)]
    pub key: String,
}

/// One window of statistics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the members of the record")]
pub struct WindowRecord {
    pub coupon_id: i64,
    pub window_start: UtcMicros,
    pub window_end: UtcMicros,
    pub issued: i64,
    pub used: i64,
    #[serde(default)]
    pub cancelled: i64,
    pub discount_amount_sum: i64,
    #[serde(rename = "final")]
    pub is_final: bool,
}

/// What the log says of one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The last record.
    pub latest: WindowRecord,
    /// How many records said `final`.
    pub finals: usize,
}

/// Totals of a campaign.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the members of the record")]
pub struct TotalsRecord {
    pub coupon_id: i64,
    pub issued_total: i64,
    pub used_total: i64,
    #[serde(default)]
    pub cancelled_total: i64,
    pub discount_amount_sum: i64,
}

/// One notification command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the members of the record")]
pub struct CommandRecord {
    pub command_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub user_id: Option<i64>,
    pub causation_id: String,
}

/// What the log holds.
#[derive(Clone, Debug, Default)]
pub struct LogFacts {
    /// Event topics, each record, repeats included.
    pub events: BTreeMap<String, Vec<LogEvent>>,
    /// Windows by topic and key.
    pub windows: BTreeMap<String, BTreeMap<String, Window>>,
    /// The latest totals of each campaign.
    pub totals: BTreeMap<i64, TotalsRecord>,
    /// Notification commands, each record.
    pub commands: Vec<CommandRecord>,
    /// Dead letters by topic.
    pub dead_letters: BTreeMap<String, usize>,
    /// Records that are not what their topic promises.
    pub unreadable: Vec<String>,
}

/// Reads all topics of the service that exist.
pub fn read(supplier: &dyn ClientSupplier) -> Result<LogFacts> {
    let mut facts = LogFacts::default();
    for topic in TOPICS_OF_EVENTS {
        for record in read_topic(supplier, topic)? {
            let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            if let Some(event) = parse::<LogEvent>(&record, &mut facts.unreadable) {
                facts.events.entry(topic.into()).or_default().push(LogEvent { key, ..event });
            }
        }
    }
    for topic in TOPICS_OF_WINDOWS {
        for record in read_topic(supplier, topic)? {
            let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            if let Some(record) = parse::<WindowRecord>(&record, &mut facts.unreadable) {
                let finals = usize::from(record.is_final);
                let windows = facts.windows.entry(topic.into()).or_default();
                windows
                    .entry(key)
                    .and_modify(|window| {
                        window.finals += finals;
                        window.latest = record.clone();
                    })
                    .or_insert(Window { latest: record, finals });
            }
        }
    }
    for record in read_topic(supplier, TOPIC_TOTALS)? {
        if let Some(totals) = parse::<TotalsRecord>(&record, &mut facts.unreadable) {
            facts.totals.insert(totals.coupon_id, totals);
        }
    }
    for record in read_topic(supplier, TOPIC_COMMANDS)? {
        facts.commands.extend(parse::<CommandRecord>(&record, &mut facts.unreadable));
    }
    for topic in TOPICS_OF_DEAD_LETTERS {
        facts.dead_letters.insert(topic.into(), read_topic(supplier, topic)?.len());
    }
    Ok(facts)
}

fn parse<T: for<'de> Deserialize<'de>>(record: &ConsumerRecord, unreadable: &mut Vec<String>) -> Option<T> {
    let value = record.value.as_deref()?;
    serde_json::from_slice(value)
        .map_err(|error| {
            unreadable.push(format!("{}-{}@{}: {error}", record.topic, record.partition, record.offset));
        })
        .ok()
}

/// Every committed record of a topic, in order within each partition; none when there is no such topic.
pub fn read_topic(supplier: &dyn ClientSupplier, topic: &str) -> Result<Vec<ConsumerRecord>> {
    let mut records = Vec::new();
    client::read_topic(supplier, topic, |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}
