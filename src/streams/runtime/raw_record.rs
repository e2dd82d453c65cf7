//! [`RawRecord`]: the bytes of the record now being processed, for dead letters.
//!
//! Kafka keeps them in the record's context and lets them go as soon as a sink has sent something in that context: a failure that comes
//! after it there leaves a dead letter without key and value. Nodes share a context as long as they hand on the record they were
//! given; one who makes a new record makes a new context, with a copy of what the bytes are by then. That is reproduced with
//! `semantics = "kafka-4.3"`; sluice keeps the bytes.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use bytes::Bytes;

use crate::streams::record::{AnyRecord, AnyValue, ConsumerRecord, Headers, RecordContext, Timestamp};

/// What makes a record the same object: where its key and value lie, its time and headers.
#[derive(PartialEq)]
struct Identity {
    key: Option<usize>,
    value: Option<usize>,
    timestamp: Timestamp,
    headers: Headers,
}

impl Identity {
    fn of(record: &AnyRecord) -> Self {
        let address =
            |value: &Option<AnyValue>| value.as_ref().map(|value| Arc::as_ptr(value).cast::<()>().addr());
        Self {
            key: address(&record.key),
            value: address(&record.value),
            timestamp: record.timestamp,
            headers: record.headers.clone(),
        }
    }
}

/// What to return to when a node is done.
pub(super) struct Outer(Option<Identity>);

/// Whether something had been sent before a context of its own began.
pub(super) struct Scope(Option<bool>);

/// See the module's documentation.
pub(super) struct RawRecord {
    record: RefCell<Option<ConsumerRecord>>,
    /// Whether the bytes go when something was sent.
    forgets: bool,
    sent: Cell<bool>,
    /// The record the running node was given.
    given: RefCell<Option<Identity>>,
}

impl RawRecord {
    pub(super) fn new(forgets: bool) -> Self {
        Self { record: RefCell::default(), forgets, sent: Cell::new(false), given: RefCell::default() }
    }

    /// Work on a record begins.
    pub(super) fn begin(&self, record: ConsumerRecord) {
        *self.record.borrow_mut() = Some(record);
        self.sent.set(false);
    }

    /// A node gets a record.
    pub(super) fn enter(&self, record: &AnyRecord) -> Outer {
        Outer(if self.forgets { self.given.replace(Some(Identity::of(record))) } else { None })
    }

    /// The node is done.
    pub(super) fn leave(&self, outer: Outer) {
        if self.forgets {
            *self.given.borrow_mut() = outer.0;
        }
    }

    /// `record` is about to go to the children of a node. `passes`: the node hands on what it is given.
    pub(super) fn open(&self, passes: bool, record: &AnyRecord) -> Scope {
        let shared = !self.forgets || passes && self.given.borrow().as_ref() == Some(&Identity::of(record));
        Scope((!shared).then(|| self.sent.get()))
    }

    /// The children are done.
    pub(super) fn close(&self, scope: Scope) {
        if let Some(sent) = scope.0 {
            self.sent.set(sent);
        }
    }

    /// A sink has sent something.
    pub(super) fn sent(&self) {
        self.sent.set(self.forgets);
    }

    /// Key and value of the record this context tells of, as far as they are still here.
    pub(super) fn bytes(&self, context: &RecordContext) -> (Option<Bytes>, Option<Bytes>) {
        let record = self.record.borrow();
        let known = record.as_ref().filter(|record| {
            let here = (Some(&record.topic), record.partition, record.offset);
            !self.sent.get() && here == (context.topic.as_ref(), context.partition, context.offset)
        });
        known.map_or((None, None), |record| (record.key.clone(), record.value.clone()))
    }
}
