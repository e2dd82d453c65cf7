//! A dead letter, read back: the record as it came, and the headers that tell what happened to it (KIP-1034).

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::streams::{
    file::time::format_timestamp,
    record::{ConsumerRecord, ERROR_HEADERS, Header, Headers, Timestamp, TopicPartition},
};

/// Where a record is or was in the log. Written `topic-partition@offset`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where the letter itself is.
    pub at: Place,
    /// Where the record was read; `None` when it came from no record (a punctuation) or the headers do not say.
    pub origin: Option<Place>,
    /// The `eventId` of the value, where it is JSON and has one.
    pub event_id: Option<String>,
    /// The processor that failed.
    pub node: Option<String>,
    /// Class of the error, as Kafka's handlers name it.
    pub error: Option<String>,
    /// What it said.
    pub message: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// The record's own time.
    pub timestamp: Timestamp,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value.
    pub value: Option<Bytes>,
    /// The record's own headers.
    pub headers: Headers,
}

impl Letter {
    /// Reads a record of a dead-letter topic. Headers that are missing or unreadable leave their field empty.
    pub fn read(record: ConsumerRecord) -> Self {
        let story = |name: &str| {
            let header = record.headers.last(&format!("{ERROR_HEADERS}{name}"))?;
            Some(String::from_utf8_lossy(header.value.as_deref()?).into_owned())
        };
        let origin = || {
            Some(Place {
                partition: TopicPartition::new(story("topic")?, story("partition")?.parse().ok()?),
                offset: story("offset")?.parse().ok()?,
            })
        };
        let own = |header: &&Header| !header.key.starts_with(ERROR_HEADERS);
        Self {
            at: Place {
                partition: TopicPartition::new(record.topic.clone(), record.partition),
                offset: record.offset,
            },
            origin: origin(),
            event_id: event_id(record.value.as_deref()),
            node: story("node"),
            error: story("exception"),
            message: story("message"),
            attempts: story("attempts").and_then(|text| text.parse().ok()).unwrap_or(1),
            timestamp: record.timestamp,
            headers: record.headers.iter().filter(own).cloned().collect(),
            key: record.key,
            value: record.value,
        }
    }

    /// For reports: everything, bytes as text where they are UTF-8.
    pub fn view(&self) -> View<'_> {
        View {
            at: self.at.to_string(),
            origin: self.origin.as_ref().map(ToString::to_string),
            event_id: self.event_id.as_deref(),
            node: self.node.as_deref(),
            error: self.error.as_deref(),
            message: self.message.as_deref(),
            attempts: self.attempts,
            time: format_timestamp(self.timestamp),
            key: self.key.as_deref().map(text),
            value: self
                .value
                .as_deref()
                .map(|bytes| serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(text(bytes)))),
            headers: self
                .headers
                .iter()
                .map(|header| (header.key.clone(), header.value.as_deref().map(text)))
                .collect(),
        }
    }
}

/// The identity of the event in a value: `eventId` of a JSON object.
pub fn event_id(value: Option<&[u8]>) -> Option<String> {
    let object: Value = serde_json::from_slice(value?).ok()?;
    object.get("eventId")?.as_str().map(str::to_owned)
}

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// A letter for a reader.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields of the letter")]
pub struct View<'a> {
    pub at: String,
    pub origin: Option<String>,
    pub event_id: Option<&'a str>,
    pub node: Option<&'a str>,
    pub error: Option<&'a str>,
    pub message: Option<&'a str>,
    pub attempts: u32,
    pub time: String,
    pub key: Option<String>,
    pub value: Option<Value>,
    pub headers: BTreeMap<String, Option<String>>,
}
