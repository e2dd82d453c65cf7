//! librdkafka's errors as what the receiver does about them: the one place where codes are read.
//!
//! The order matters: fencing first (it also comes as "fatal" and as "requires abort"), then abort, then retry.

use std::ffi::CStr;

use rdkafka::bindings::{self as rd, rd_kafka_resp_err_t as Code};

use crate::streams::error::StreamsError;

/// The name librdkafka gives a code, and its explanation.
pub(super) fn describe(code: Code) -> String {
    // SAFETY: both return static strings for every code.
    let text = unsafe {
        [rd::rd_kafka_err2name(code), rd::rd_kafka_err2str(code)].map(|s| CStr::from_ptr(s).to_string_lossy())
    };
    format!("{}: {}", text[0], text[1])
}

/// Somebody else is at work in our place.
fn is_fencing(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR__FENCED
            | RD_KAFKA_RESP_ERR_PRODUCER_FENCED
            | RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH
            | RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING
            | RD_KAFKA_RESP_ERR_INVALID_TXN_STATE
            | RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID
            | RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
            | RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
            | RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID
            | RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
            | RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST
    )
}

/// It passes by itself: a broker away, a leader or coordinator moving, a topic not yet known everywhere.
fn is_passing(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR__TIMED_OUT
            | RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | RD_KAFKA_RESP_ERR__MSG_TIMED_OUT
            | RD_KAFKA_RESP_ERR__TRANSPORT
            | RD_KAFKA_RESP_ERR__RESOLVE
            | RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | RD_KAFKA_RESP_ERR__WAIT_COORD
            | RD_KAFKA_RESP_ERR__IN_PROGRESS
            | RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS
            | RD_KAFKA_RESP_ERR__CONFLICT
            | RD_KAFKA_RESP_ERR__QUEUE_FULL
            | RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | RD_KAFKA_RESP_ERR__WAIT_CACHE
            | RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
            | RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT
            | RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION
            | RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS
            | RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_NOT_COORDINATOR
            | RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS
            | RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND
            | RD_KAFKA_RESP_ERR_NOT_CONTROLLER
            | RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS
            | RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT
            | RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR
            | RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
    )
}

/// The broker that was asked does not answer, or leads the partition no more.
pub(super) fn is_of_a_leader(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        RD_KAFKA_RESP_ERR__TIMED_OUT
            | RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
            | RD_KAFKA_RESP_ERR__TRANSPORT
            | RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT
            | RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION
            | RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
            | RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
    )
}

/// An error that comes as a bare code. `what` says what was tried, on what.
pub(super) fn of_code(what: &str, code: Code) -> StreamsError {
    let text = format!("kafka: {what}: {}", describe(code));
    if is_fencing(code) {
        StreamsError::TaskMigrated(text)
    } else if is_passing(code) {
        StreamsError::Retriable(text)
    } else {
        StreamsError::Fatal(text)
    }
}

/// Takes over an error object of a transactional call; `Ok` for null.
pub(super) fn of_object(what: &str, error: *mut rd::rd_kafka_error_t) -> Result<(), StreamsError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, and ours to read and destroy: every call that returns one gives it to the caller.
    let (code, text, fatal, retriable, abort) = unsafe {
        let text = CStr::from_ptr(rd::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        let read = (
            rd::rd_kafka_error_code(error),
            text,
            rd::rd_kafka_error_is_fatal(error) != 0,
            rd::rd_kafka_error_is_retriable(error) != 0,
            rd::rd_kafka_error_txn_requires_abort(error) != 0,
        );
        rd::rd_kafka_error_destroy(error);
        read
    };
    let text = format!("kafka: {what}: {} ({text})", describe(code));
    Err(if is_fencing(code) {
        StreamsError::TaskMigrated(text)
    } else if fatal {
        StreamsError::Fatal(text)
    } else if abort {
        StreamsError::AbortTransaction(text)
    } else if retriable || is_passing(code) {
        StreamsError::Retriable(text)
    } else {
        StreamsError::Fatal(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_what_to_do() {
        let kind = |code| match of_code("test", code) {
            StreamsError::TaskMigrated(_) => "migrated",
            StreamsError::Retriable(_) => "retry",
            StreamsError::Fatal(_) => "fatal",
            _ => "other",
        };
        assert_eq!(kind(Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION), "migrated");
        assert_eq!(kind(Code::RD_KAFKA_RESP_ERR__TRANSPORT), "retry");
        assert_eq!(kind(Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED), "fatal");
        assert!(
            of_code("commit of t-0", Code::RD_KAFKA_RESP_ERR__TRANSPORT)
                .to_string()
                .contains("commit of t-0")
        );
    }
}
