//! Records without time and headers, handed to librdkafka many at once (`rd_kafka_produce_batch`): changelogs whose values carry the time.
//!
//! A call per partition and thousand costs a third less CPU than a call per record. What must always hold: records of a partition are
//! handed over in the order in which they came, each once; those that found no room wait here and are handed over before anything later.

use std::ptr;

use bytes::Bytes;
use rdkafka::bindings::{self as rd, rd_kafka_resp_err_t as Code};

/// Records of a partition that gather before they are handed over.
pub(super) const BATCH_RECORDS: usize = 1_000;

/// Records for one partition that are not handed over yet.
pub(super) struct Batch {
    /// The topic; kept alive by the producer.
    pub topic: *mut rd::rd_kafka_topic_t,
    /// The partition.
    pub partition: i32,
    records: Vec<(Option<Bytes>, Option<Bytes>)>,
}

/// What became of records handed over.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    /// All are in librdkafka's hands.
    All,
    /// Some found no room and are still here.
    Some,
    /// One was refused; it and everything behind it is still here.
    Refused(Code),
}

impl Batch {
    pub(super) fn new(topic: *mut rd::rd_kafka_topic_t, partition: i32) -> Self {
        Self { topic, partition, records: Vec::with_capacity(BATCH_RECORDS) }
    }

    pub(super) fn push(&mut self, key: Option<Bytes>, value: Option<Bytes>) {
        self.records.push((key, value));
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
    }

    /// Hands over what is here. `produce` is `rd_kafka_produce_batch` on the batch's topic and partition: it sets every message's
    /// outcome.
    pub(super) fn hand_over(&mut self, produce: impl FnOnce(&mut [rd::rd_kafka_message_t])) -> Taken {
        let mut messages: Vec<rd::rd_kafka_message_t> = self.records.iter().map(message).collect();
        produce(&mut messages);
        // After the first that found no room librdkafka takes no other; one that it refuses for itself (too large) does not stop those behind
        // it. They are out, so what must not happen is to hand them over again.
        let mut outcome = Taken::All;
        let mut errors = messages.iter().map(|message| message.err);
        self.records.retain(|_| {
            let error = errors.next().unwrap_or(Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            match (error, &outcome) {
                (Code::RD_KAFKA_RESP_ERR_NO_ERROR, _) => return false,
                (Code::RD_KAFKA_RESP_ERR__QUEUE_FULL, Taken::All) => outcome = Taken::Some,
                (Code::RD_KAFKA_RESP_ERR__QUEUE_FULL, _) | (_, Taken::Refused(_)) => {}
                (refused, _) => outcome = Taken::Refused(refused),
            }
            true
        });
        outcome
    }
}

fn message((key, value): &(Option<Bytes>, Option<Bytes>)) -> rd::rd_kafka_message_t {
    // A pointer that is not null even when empty is how librdkafka tells an empty value from none.
    let part = |bytes: &Option<Bytes>| match bytes {
        Some(bytes) => (bytes.as_ptr().cast_mut().cast(), bytes.len()),
        None => (ptr::null_mut(), 0),
    };
    let ((key, key_len), (payload, len)) = (part(key), part(value));
    rd::rd_kafka_message_t {
        err: Code::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: 0,
        payload,
        len,
        key,
        key_len,
        offset: 0,
        _private: ptr::null_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(batch: &Batch) -> Vec<&[u8]> {
        batch.records.iter().filter_map(|(_, value)| value.as_deref()).collect()
    }

    #[test]
    fn what_was_not_taken_stays_in_its_order() {
        use Code::{
            RD_KAFKA_RESP_ERR__QUEUE_FULL as FULL, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as LARGE,
            RD_KAFKA_RESP_ERR_NO_ERROR as TAKEN,
        };
        let cases: [(&[Code], Taken, &[&[u8]]); 5] = [
            (&[TAKEN, TAKEN, TAKEN], Taken::All, &[]),
            (&[TAKEN, FULL, FULL], Taken::Some, &[b"1", b"2"]),
            (&[FULL, FULL, FULL], Taken::Some, &[b"0", b"1", b"2"]),
            (&[TAKEN, LARGE, TAKEN], Taken::Refused(LARGE), &[b"1"]),
            (&[LARGE, FULL, FULL], Taken::Refused(LARGE), &[b"0", b"1", b"2"]),
        ];
        for (outcomes, expected, left) in cases {
            let mut batch = Batch::new(ptr::null_mut(), 0);
            for value in [b"0", b"1", b"2"] {
                batch.push(None, Some(Bytes::from_static(value)));
            }
            let taken = batch.hand_over(|messages| {
                for (message, outcome) in messages.iter_mut().zip(outcomes) {
                    message.err = *outcome;
                }
            });
            assert_eq!(taken, expected, "{outcomes:?}");
            assert_eq!(values(&batch), left, "{outcomes:?}");
        }
    }

    #[test]
    fn nothing_is_told_from_empty() {
        let deleted = message(&(Some(Bytes::from_static(b"key")), None));
        assert!(deleted.payload.is_null() && deleted.key_len == 3);
        let empty = message(&(None, Some(Bytes::new())));
        assert!(!empty.payload.is_null() && empty.key.is_null());
    }
}
