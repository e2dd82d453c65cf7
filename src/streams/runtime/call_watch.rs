//! [`CallWatch`]: which call to the log a thread is in, and since when; [`WatchedClients`] note it around each call.
//!
//! The clients' blocking calls have timeouts, and not all of them keep them in every state of a cluster; the thread that waits can
//! tell nobody. Always: a note stands exactly as long as the call lasts. Sending a record is not noted: it happens per record, and waits for
//! room in a queue by a clock of ours.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::streams::{
    client::{
        Admin, ClientSupplier, Consumer, ConsumerConfig, GroupMetadata, OffsetAndMetadata, Polled, Producer,
        ProducerConfig,
    },
    error::Result,
    record::{ProducerRecord, Timestamp, TopicPartition},
};

/// See the module's documentation. One per stream thread, shared by all of its clients.
#[derive(Default)]
pub(super) struct CallWatch {
    call: Mutex<Option<(&'static str, Instant)>>,
}

impl CallWatch {
    /// The call that has not returned yet, and how long that is.
    pub(super) fn waiting_for(&self) -> Option<(&'static str, Duration)> {
        let call = *self.call.lock().unwrap_or_else(PoisonError::into_inner);
        call.map(|(name, since)| (name, since.elapsed()))
    }

    fn during<T>(&self, name: &'static str, call: impl FnOnce() -> T) -> T {
        self.note(Some((name, Instant::now())));
        let result = call();
        self.note(None);
        result
    }

    fn note(&self, call: Option<(&'static str, Instant)>) {
        *self.call.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }
}

/// Clients whose calls are noted.
pub(super) struct WatchedClients {
    pub clients: Arc<dyn ClientSupplier>,
    pub watch: Arc<CallWatch>,
}

impl ClientSupplier for WatchedClients {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        let consumer = self.watch.during("making a consumer", || self.clients.consumer(config))?;
        Ok(Box::new(Watched { client: Some(consumer), watch: self.watch.clone() }))
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        let producer = self.watch.during("making a producer", || self.clients.producer(config))?;
        Ok(Box::new(Watched { client: Some(producer), watch: self.watch.clone() }))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>> {
        self.clients.admin()
    }
}

struct Watched<C> {
    /// Absent only while it is dropped.
    client: Option<C>,
    watch: Arc<CallWatch>,
}

impl<C> Watched<C> {
    fn call<T>(&mut self, name: &'static str, call: impl FnOnce(&mut C) -> T) -> T {
        let client = self.client.as_mut().expect("only dropping takes it");
        self.watch.during(name, || call(client))
    }

    /// Of calls that only look at what the client knows.
    fn client(&mut self) -> &mut C {
        self.client.as_mut().expect("only dropping takes it")
    }
}

impl<C> Drop for Watched<C> {
    fn drop(&mut self) {
        // Letting a client go waits for its threads.
        let client = self.client.take();
        self.watch.during("letting a client go", || drop(client));
    }
}

impl Consumer for Watched<Box<dyn Consumer>> {
    fn subscribe(&mut self, topics: &[String]) -> Result<()> {
        self.call("subscribe", |consumer| consumer.subscribe(topics))
    }

    fn assign(&mut self, partitions: &[(TopicPartition, Option<i64>)]) -> Result<()> {
        self.call("assign", |consumer| consumer.assign(partitions))
    }

    fn unassign(&mut self) -> Result<()> {
        self.call("unassign", |consumer| consumer.unassign())
    }

    fn poll(&mut self, timeout: Duration) -> Result<Polled> {
        self.call("poll", |consumer| consumer.poll(timeout))
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.call("seek", |consumer| consumer.seek(partition, offset))
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.call("pause", |consumer| consumer.pause(partitions))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.call("resume", |consumer| consumer.resume(partitions))
    }

    fn position(&mut self, partition: &TopicPartition) -> Result<Option<i64>> {
        self.client().position(partition)
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()> {
        self.call("commit of offsets", |consumer| consumer.commit(offsets))
    }

    fn committed(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        self.call("committed offsets", |consumer| consumer.committed(partitions))
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> Result<(i64, i64)> {
        self.call("watermarks", |consumer| consumer.watermarks(partition))
    }

    fn offset_for_time(&mut self, partition: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        self.call("offset for a time", |consumer| consumer.offset_for_time(partition, time))
    }

    fn client_view(&self, partition: &TopicPartition) -> Option<String> {
        self.client.as_ref().and_then(|consumer| consumer.client_view(partition))
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.client.as_ref().and_then(|consumer| consumer.group_metadata())
    }

    fn close(&mut self) {
        self.call("close", |consumer| consumer.close());
    }
}

impl Producer for Watched<Box<dyn Producer>> {
    fn init_transactions(&mut self) -> Result<()> {
        self.call("init_transactions", |producer| producer.init_transactions())
    }

    fn begin_transaction(&mut self) -> Result<()> {
        self.call("begin_transaction", |producer| producer.begin_transaction())
    }

    fn send(&mut self, record: ProducerRecord) -> Result<()> {
        self.client().send(record)
    }

    fn flush(&mut self) -> Result<()> {
        self.call("flush", |producer| producer.flush())
    }

    fn send_offsets_to_transaction(
        &mut self,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        group: &GroupMetadata,
    ) -> Result<()> {
        self.call("send_offsets_to_transaction", |producer| {
            producer.send_offsets_to_transaction(offsets, group)
        })
    }

    fn commit_transaction(&mut self) -> Result<()> {
        self.call("commit_transaction", |producer| producer.commit_transaction())
    }

    fn abort_transaction(&mut self) -> Result<()> {
        self.call("abort_transaction", |producer| producer.abort_transaction())
    }

    fn partition_count(&mut self, topic: &str) -> Result<i32> {
        self.call("partition_count", |producer| producer.partition_count(topic))
    }
}
