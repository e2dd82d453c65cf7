//! Typed handles to the topics of a test driver: [`TestInputTopic`], [`TestOutputTopic`].

use std::{marker::PhantomData, sync::Arc};

use bytes::Bytes;

use super::TopologyTestDriver;
use crate::streams::{
    error::{Result, StreamsError},
    record::{AnyValue, Headers, ProducerRecord, Timestamp},
    serdes::AnySerde,
};

/// A record read from or written to a topic of the driver.
#[derive(Clone, Debug, PartialEq)]
pub struct TestRecord<K, V> {
    /// The key, or null.
    pub key: Option<K>,
    /// The value, or null.
    pub value: Option<V>,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its headers.
    pub headers: Headers,
}

/// Writes to an input topic.
pub struct TestInputTopic<K, V> {
    driver: TopologyTestDriver,
    topic: Arc<str>,
    key_serde: AnySerde,
    value_serde: AnySerde,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> TestInputTopic<K, V> {
    pub(super) fn new(
        driver: TopologyTestDriver,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> Self {
        Self { driver, topic: topic.into(), key_serde, value_serde, types: PhantomData }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> TestInputTopic<K, V> {
    /// Writes a record at a time and processes until nothing is left to do.
    pub fn pipe_input(&self, key: Option<K>, value: Option<V>, timestamp: Timestamp) -> Result<()> {
        self.pipe_record(key, value, timestamp, Headers::EMPTY)
    }

    /// As [`pipe_input`](Self::pipe_input), with headers.
    pub fn pipe_record(
        &self,
        key: Option<K>,
        value: Option<V>,
        timestamp: Timestamp,
        headers: Headers,
    ) -> Result<()> {
        self.pipe(None, key, value, timestamp, headers)
    }

    /// As [`pipe_input`](Self::pipe_input), to a partition of choice instead of the one the key belongs to.
    ///
    /// # Errors
    /// When the topic has no such partition.
    pub fn pipe_input_to(
        &self,
        partition: i32,
        key: Option<K>,
        value: Option<V>,
        timestamp: Timestamp,
    ) -> Result<()> {
        self.pipe(Some(partition), key, value, timestamp, Headers::EMPTY)
    }

    fn pipe(
        &self,
        partition: Option<i32>,
        key: Option<K>,
        value: Option<V>,
        timestamp: Timestamp,
        headers: Headers,
    ) -> Result<()> {
        let key = key.map(|key| self.key_serde.to_bytes(&(Arc::new(key) as AnyValue))).transpose()?;
        let value =
            value.map(|value| self.value_serde.to_bytes(&(Arc::new(value) as AnyValue))).transpose()?;
        self.driver.pipe_record(ProducerRecord {
            topic: self.topic.clone(),
            partition,
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            timestamp: Some(timestamp),
            headers,
        })
    }
}

/// Reads what was written to a topic.
pub struct TestOutputTopic<K, V> {
    driver: TopologyTestDriver,
    topic: Arc<str>,
    key_serde: AnySerde,
    value_serde: AnySerde,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> TestOutputTopic<K, V> {
    pub(super) fn new(
        driver: TopologyTestDriver,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> Self {
        Self { driver, topic: topic.into(), key_serde, value_serde, types: PhantomData }
    }
}

impl<K: Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> TestOutputTopic<K, V> {
    /// Takes the oldest record.
    pub fn read_record(&self) -> Result<Option<TestRecord<K, V>>> {
        self.driver.read_record(&self.topic).map(|record| self.decode(record)).transpose()
    }

    /// Takes all records, oldest first.
    pub fn read_records(&self) -> Result<Vec<TestRecord<K, V>>> {
        self.driver.read_records(&self.topic).into_iter().map(|record| self.decode(record)).collect()
    }

    /// Takes all records of one partition, oldest first; those of others stay.
    pub fn read_records_of(&self, partition: i32) -> Result<Vec<TestRecord<K, V>>> {
        self.driver
            .read_partition(&self.topic, partition)
            .into_iter()
            .map(|record| self.decode(record))
            .collect()
    }

    /// Takes all records as `(key, value)`, oldest first.
    pub fn read_key_values(&self) -> Result<Vec<(Option<K>, Option<V>)>> {
        Ok(self.read_records()?.into_iter().map(|record| (record.key, record.value)).collect())
    }

    fn decode(&self, record: ProducerRecord) -> Result<TestRecord<K, V>> {
        Ok(TestRecord {
            key: decode(&self.key_serde, record.key)?,
            value: decode(&self.value_serde, record.value)?,
            timestamp: record.timestamp.unwrap_or(-1),
            headers: record.headers,
        })
    }
}

fn decode<T: Clone + 'static>(serde: &AnySerde, bytes: Option<Bytes>) -> Result<Option<T>> {
    let Some(bytes) = bytes else { return Ok(None) };
    let value = serde.deserialize(&bytes)?;
    value.downcast_ref::<T>().cloned().map(Some).ok_or_else(|| {
        StreamsError::fatal(format!("the serde of this topic does not read a {}", std::any::type_name::<T>()))
    })
}
