//! What librdkafka says of a partition that it should be reading: its own statistics, kept for the message about one that stays silent.
//!
//! Nothing is decided by them.

use std::{
    ffi::c_char,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// How often librdkafka is asked to write them, ms. A partition is given up after half a minute of silence: the last ones are of that time.
pub(super) const INTERVAL_MS: &str = "10000";

/// What of a partition's statistics tells why it is silent.
const TELLING: [&str; 10] = [
    "fetch_state",
    "fetchq_cnt",
    "next_offset",
    "app_offset",
    "query_offset",
    "ls_offset",
    "hi_offset",
    "leader",
    "leader_epoch",
    "desired",
];

/// The last statistics of a client, as librdkafka wrote them.
#[derive(Default)]
pub(super) struct Statistics(Mutex<String>);

impl Statistics {
    /// Replaces them by what librdkafka hands to its callback.
    ///
    /// # Safety
    /// `json` points to `length` bytes that live during the call.
    pub(super) unsafe fn note(&self, json: *const c_char, length: usize) {
        // SAFETY: promised by the caller.
        let json = unsafe { std::slice::from_raw_parts(json.cast::<u8>(), length) };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clear();
        last.push_str(&String::from_utf8_lossy(json));
    }

    /// What they tell of a partition, and of the broker that leads it; `None` before the first.
    pub(super) fn of_partition(&self, topic: &str, partition: i32) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Value = serde_json::from_str(&last).ok()?;
        let of = all.get("topics")?.get(topic)?.get("partitions")?.get(partition.to_string())?;
        let mut told: Vec<String> =
            TELLING.iter().filter_map(|name| Some(format!("{name} {}", of.get(name)?))).collect();
        let broker = all.get("brokers").and_then(Value::as_object).and_then(|brokers| {
            brokers
                .values()
                .find(|broker| broker.get("nodeid").is_some_and(|id| Some(id) == of.get("leader")))
        });
        if let Some(state) = broker.and_then(|broker| broker.get("state")) {
            told.push(format!("leader's connection {state}"));
        }
        Some(told.join(", ").replace('"', ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_partition_is_why_it_may_be_silent() {
        let statistics = Statistics::default();
        assert_eq!(statistics.of_partition("t", 2), None);
        let json = r#"{"brokers": {"GroupCoordinator": {"nodeid": -1, "state": "INIT"}, "127.0.0.1:9092/1": {"nodeid": 1, "state": "UP"}},
            "topics": {"t": {"partitions": {"2": {"partition": 2, "leader": 1, "fetch_state": "validate-epoch-wait", "next_offset": 7,
            "txbytes": 0}}}}}"#;
        // SAFETY: a slice that lives during the call.
        unsafe { statistics.note(json.as_ptr().cast(), json.len()) };
        assert_eq!(
            statistics.of_partition("t", 2).as_deref(),
            Some("fetch_state validate-epoch-wait, next_offset 7, leader 1, leader's connection UP")
        );
        assert_eq!(statistics.of_partition("t", 3), None);
    }
}
