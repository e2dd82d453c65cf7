//! [`RefusedRecords`]: what becomes of records that the log refuses (Kafka's `RecordCollectorImpl.recordSendError`).
//!
//! The production handler decides, once per record; a dead letter tells of it, if there is a topic for them. A record of a changelog is
//! never left out, whatever the handler says: the state could not be restored. Failures that pass by themselves (the log is away) do not
//! come here: they are tried again for `task_timeout`.

use std::sync::Arc;

use super::task_graph::dead_letter;
use crate::streams::{
    error::{RefusedRecord, Result, StreamsError},
    processor::{ErrorHandlers, ProductionResponse},
    record::{ProducerRecord, RecordContext},
};

/// See the module's documentation.
pub(super) struct RefusedRecords {
    handlers: ErrorHandlers,
    changelogs: Vec<Arc<str>>,
    /// Left out since the last look.
    dropped: u64,
}

impl RefusedRecords {
    pub(super) fn new(handlers: ErrorHandlers, changelogs: Vec<Arc<str>>) -> Self {
        Self { handlers, changelogs, dropped: 0 }
    }

    /// Goes on without the record, with the letter that tells of it, or stops.
    pub(super) fn judge(&mut self, refused: RefusedRecord) -> Result<Option<ProducerRecord>> {
        let RefusedRecord { record, error } = refused;
        let stop = |why: &str| {
            Err(StreamsError::Fatal(format!(
                "a record for topic {} was not written: {error}{why}",
                record.topic
            )))
        };
        if self.changelogs.contains(&record.topic) {
            return stop("; it belongs to a changelog, without it the state could not be restored");
        }
        match (self.handlers.production)(&record, &error) {
            // Trying the same record again cannot end differently.
            ProductionResponse::Fail | ProductionResponse::Retry => {
                stop(". Raise the limit, make records smaller, or choose a production handler that continues")
            }
            ProductionResponse::Continue => {
                self.dropped += 1;
                tracing::warn!(topic = &*record.topic, %error, "record left out");
                let Some(topic) = &self.handlers.dead_letter_topic else { return Ok(None) };
                let context = RecordContext {
                    topic: None,
                    partition: -1,
                    offset: -1,
                    timestamp: record.timestamp.unwrap_or(-1),
                    headers: record.headers.clone(),
                };
                // The value is what was too much: the letter has the key and the story.
                Ok(Some(dead_letter(topic, record.key.clone(), None, &context, &error, &record.topic, false)))
            }
        }
    }

    /// How many were left out since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}
