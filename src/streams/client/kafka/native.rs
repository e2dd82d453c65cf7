//! The C side held safely: the client handle, its configuration, partition lists, and librdkafka's log lines.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::{self, NonNull},
    time::Duration,
};

use rdkafka::bindings as rd;

use super::KafkaConfig;
use crate::streams::{
    client::OffsetAndMetadata,
    error::{Result, StreamsError},
    record::TopicPartition,
};

/// How long a single request to the cluster may take before the caller is told `Retriable`.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Milliseconds as the C API takes them, rounded up so that a short wait is not a busy loop.
pub(super) fn millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
}

/// A C string; an error names what holds the zero byte.
pub(super) fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| StreamsError::Fatal(format!("kafka: {what} {text:?} contains a zero byte")))
}

/// Reads a C string that may be null.
///
/// # Safety
/// `text` is null or a zero-terminated string that lives during the call.
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A configuration under construction; given to [`Handle::new`].
pub(super) struct Conf(NonNull<rd::rd_kafka_conf_t>);

impl Conf {
    fn new() -> Self {
        // SAFETY: allocates; never null (librdkafka aborts when out of memory).
        let conf = unsafe { rd::rd_kafka_conf_new() };
        let mut conf = Self(NonNull::new(conf).expect("librdkafka allocates or aborts"));
        // SAFETY: the callback lives for ever and touches nothing but its arguments.
        unsafe { rd::rd_kafka_conf_set_log_cb(conf.as_ptr(), Some(log)) };
        // Lines of a client that is being made or closed are as useful as others.
        conf.set("log.thread.name", "true").expect("a setting librdkafka has");
        conf
    }

    /// What every client of a cluster has in common.
    pub(super) fn for_cluster(cluster: &KafkaConfig) -> Result<Self> {
        let mut conf = Self::new();
        conf.set_all([
            ("bootstrap.servers", cluster.bootstrap_servers.as_str()),
            ("enable.metrics.push", "false"),
            // A client that is told of a new leader too early, or not at all, goes on asking the old one until it looks again: five minutes
            // by default.
            ("topic.metadata.refresh.interval.ms", "10000"),
        ])?;
        if !cluster.client_id.is_empty() {
            conf.set("client.id", &cluster.client_id)?;
        }
        Ok(conf)
    }

    pub(super) fn as_ptr(&mut self) -> *mut rd::rd_kafka_conf_t {
        self.0.as_ptr()
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let (c_name, c_value) = (c_string("property", name)?, c_string("property value", value)?);
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: all pointers are valid for the call; the reason is zero-terminated within its size.
        let (outcome, reason) = unsafe {
            let outcome = rd::rd_kafka_conf_set(
                self.as_ptr(),
                c_name.as_ptr(),
                c_value.as_ptr(),
                reason.as_mut_ptr(),
                reason.len(),
            );
            (outcome, text(reason.as_ptr()))
        };
        match outcome {
            rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => Ok(()),
            _ => {
                Err(StreamsError::Fatal(format!("kafka: property {name:?} = {value:?} is refused: {reason}")))
            }
        }
    }

    pub(super) fn set_all<'a>(
        &mut self,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<()> {
        settings.into_iter().try_for_each(|(name, value)| self.set(name, value))
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        // SAFETY: still ours, or replaced in `Handle::new` by forgetting `self`.
        unsafe { rd::rd_kafka_conf_destroy(self.0.as_ptr()) };
    }
}

/// A client of librdkafka, destroyed when dropped.
pub(super) struct Handle(NonNull<rd::rd_kafka_t>);

// SAFETY: rd_kafka_t is thread safe by its own documentation.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) fn new(kind: rd::rd_kafka_type_t, mut conf: Conf) -> Result<Self> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: the configuration is valid; on success it belongs to the client, which `forget` respects.
        let client = unsafe { rd::rd_kafka_new(kind, conf.as_ptr(), reason.as_mut_ptr(), reason.len()) };
        match NonNull::new(client) {
            Some(client) => {
                std::mem::forget(conf);
                Ok(Self(client))
            }
            None => {
                // SAFETY: librdkafka has written a zero-terminated reason.
                let reason = unsafe { text(reason.as_ptr()) };
                Err(StreamsError::Fatal(format!("kafka: cannot make a client: {reason}")))
            }
        }
    }

    pub(super) fn as_ptr(&self) -> *mut rd::rd_kafka_t {
        self.0.as_ptr()
    }

    /// The fatal error this client has met, if it has.
    pub(super) fn fatal_error(&self) -> Option<(rd::rd_kafka_resp_err_t, String)> {
        let mut reason: [c_char; 512] = [0; 512];
        // SAFETY: valid client and buffer.
        unsafe {
            let code = rd::rd_kafka_fatal_error(self.as_ptr(), reason.as_mut_ptr(), reason.len());
            (code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR)
                .then(|| (code, text(reason.as_ptr())))
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the only owner; waits for librdkafka's threads, so no callback runs after it.
        unsafe { rd::rd_kafka_destroy(self.0.as_ptr()) };
    }
}

/// A queue of events or messages, let go when dropped. Must be dropped before its client.
pub(super) struct Queue(NonNull<rd::rd_kafka_queue_t>);

// SAFETY: queues are thread safe as clients are.
unsafe impl Send for Queue {}

impl Queue {
    /// Takes over a queue that a librdkafka call returned.
    pub(super) fn of(queue: *mut rd::rd_kafka_queue_t) -> Self {
        Self(NonNull::new(queue).expect("librdkafka returns a queue for a client of the right kind"))
    }

    pub(super) fn as_ptr(&self) -> *mut rd::rd_kafka_queue_t {
        self.0.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { rd::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

/// Makes a call that may never return, in a thread of its own. `None`: it has not returned after `limit`, and is left to itself.
pub(super) fn within<R: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (returns, result) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("bounded-call".into());
    // Without a thread it is as if it did not return.
    thread.spawn(move || returns.send(call())).ok()?;
    result.recv_timeout(limit).ok()
}

/// A list of partitions with offsets and texts.
pub(super) struct PartitionList(NonNull<rd::rd_kafka_topic_partition_list_t>);

// SAFETY: the list is ours alone, whatever thread we are in.
unsafe impl Send for PartitionList {}

/// One element of a list, read.
pub(super) struct ListElement {
    pub tp: TopicPartition,
    pub offset: i64,
    pub metadata: String,
    pub code: rd::rd_kafka_resp_err_t,
}

impl PartitionList {
    pub(super) fn new() -> Self {
        // SAFETY: allocates.
        let list = unsafe { rd::rd_kafka_topic_partition_list_new(8) };
        Self(NonNull::new(list).expect("librdkafka allocates or aborts"))
    }

    pub(super) fn add(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let topic = c_string("topic", topic)?;
        // SAFETY: the element returned lives in the list until the next change of it.
        unsafe {
            (*rd::rd_kafka_topic_partition_list_add(self.as_ptr(), topic.as_ptr(), partition)).offset = offset
        };
        Ok(())
    }

    pub(super) fn of(partitions: &[TopicPartition], offset: i64) -> Result<Self> {
        let mut list = Self::new();
        partitions.iter().try_for_each(|tp| list.add(&tp.topic, tp.partition, offset))?;
        Ok(list)
    }

    pub(super) fn of_offsets(offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<Self> {
        let mut list = Self::new();
        for (tp, offset) in offsets {
            list.add(&tp.topic, tp.partition, offset.offset)?;
            let bytes = offset.metadata.as_bytes();
            if bytes.is_empty() {
                continue;
            }
            // SAFETY: the element just added is the last one. The text is allocated by malloc, because librdkafka frees
            // it with the list.
            unsafe {
                let raw = &*list.as_ptr();
                let element = &mut *raw.elems.add(raw.cnt as usize - 1);
                let copy = libc::malloc(bytes.len());
                assert!(!copy.is_null(), "out of memory");
                ptr::copy_nonoverlapping(bytes.as_ptr(), copy.cast::<u8>(), bytes.len());
                element.metadata = copy;
                element.metadata_size = bytes.len();
            }
        }
        Ok(list)
    }

    pub(super) fn as_ptr(&self) -> *mut rd::rd_kafka_topic_partition_list_t {
        self.0.as_ptr()
    }

    pub(super) fn elements(&self) -> Vec<ListElement> {
        // SAFETY: ours and valid.
        unsafe { read_list(self.as_ptr()) }
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { rd::rd_kafka_topic_partition_list_destroy(self.as_ptr()) };
    }
}

/// Copies a list out.
///
/// # Safety
/// `list` is null or valid during the call.
pub(super) unsafe fn read_list(list: *const rd::rd_kafka_topic_partition_list_t) -> Vec<ListElement> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: promised by the caller; `cnt` elements are initialised.
    unsafe {
        let elements = if (*list).cnt == 0 {
            &[][..]
        } else {
            std::slice::from_raw_parts((*list).elems, (*list).cnt as usize)
        };
        elements
            .iter()
            .map(|e| {
                let metadata = match e.metadata.is_null() {
                    true => String::new(),
                    false => {
                        let bytes = std::slice::from_raw_parts(e.metadata.cast::<u8>(), e.metadata_size);
                        String::from_utf8_lossy(bytes).into_owned()
                    }
                };
                let tp = TopicPartition::new(text(e.topic), e.partition);
                ListElement { tp, offset: e.offset, metadata, code: e.err }
            })
            .collect()
    }
}

/// librdkafka's log lines as ours. Its "error" is often a passing state of the network, so it is a warning here.
unsafe extern "C" fn log(
    _client: *const rd::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    line: *const c_char,
) {
    // SAFETY: librdkafka hands over valid strings.
    let (facility, line) = unsafe { (text(facility), text(line)) };
    match level {
        0..=2 => tracing::error!(target: "librdkafka", facility, "{line}"),
        3..=4 => tracing::warn!(target: "librdkafka", facility, "{line}"),
        5..=6 => tracing::debug!(target: "librdkafka", facility, "{line}"),
        _ => tracing::trace!(target: "librdkafka", facility, "{line}"),
    }
}

/// A pointer as librdkafka's `void *opaque`.
pub(super) fn opaque<T>(value: &T) -> *mut c_void {
    ptr::from_ref(value).cast_mut().cast()
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::within;

    #[test]
    fn a_call_that_does_not_return_is_left_to_itself() {
        let (end, ends) = mpsc::channel::<()>();
        let (ended, has_ended) = mpsc::channel();
        let stuck = move || {
            let _ = ends.recv();
            ended.send(7).unwrap();
        };
        assert_eq!(within(Duration::from_millis(20), stuck), None);
        drop(end);
        assert_eq!(has_ended.recv(), Ok(7), "it went on by itself");
        assert_eq!(within(Duration::from_secs(60), || 8), Some(8));
    }
}
