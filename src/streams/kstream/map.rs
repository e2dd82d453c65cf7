//! `map`, `map_values`, `select_key`: one record in, one out (Kafka's `KStreamMap`, `KStreamMapValues`).
//!
//! Timestamp and headers stay. A new key means that grouping and joining need a hop through a topic first.

use std::sync::Arc;

use super::{
    functions::{Data, KeyValueMapper, UserResult, ValueMapper, key_value_mapper, value_mapper},
    kstream::{KStream, StreamCore},
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct Map(KeyValueMapper);

impl AnyProcessor for Map {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (key, value) = (self.0)(record.key.as_ref(), record.value.as_ref())?;
        context.forward(AnyRecord::new(key, value, record.timestamp, record.headers))
    }
}

/// A processor that maps key and value.
pub(crate) fn map_processor(mapper: KeyValueMapper) -> ProcessorSupplier {
    Arc::new(move || Box::new(Map(mapper.clone())))
}

struct MapValues(ValueMapper);

impl AnyProcessor for MapValues {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let value = (self.0)(record.key.as_ref(), record.value.as_ref())?;
        context.forward(AnyRecord::new(record.key, value, record.timestamp, record.headers))
    }
}

/// A processor that maps values; of a table's changes it sees and keeps the new value only.
pub(crate) fn map_values_processor(mapper: ValueMapper) -> ProcessorSupplier {
    Arc::new(move || Box::new(MapValues(mapper.clone())))
}

/// A processor that changes the key and keeps the value.
pub(crate) fn select_key_processor(selector: ValueMapper) -> ProcessorSupplier {
    map_processor(Arc::new(move |key, value| Ok((selector(key, value)?, value.cloned()))))
}

impl StreamCore {
    /// Adds a node that selects a new key; the value keeps its serde.
    pub(crate) fn select_key(&self, selector: ValueMapper, named: &Named) -> StreamCore {
        let core = self.key_changing(named, "KSTREAM-KEY-SELECT-", select_key_processor(selector));
        StreamCore { value_serde: self.value_serde.clone(), ..core }
    }
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Turns each record into another, key and value both.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").map(|k, v| (v.cloned(), k.cloned())).to("swapped");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("swapped", String::serde(), String::serde());
    /// input.pipe_input(Some("a".into()), Some("1".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some("a".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn map<KR: Data, VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> (Option<KR>, Option<VR>) + Send + Sync + 'static,
    ) -> KStream<KR, VR> {
        self.try_map(move |key, value| Ok(f(key, value)), Named::default())
    }

    /// As [`map`](Self::map), named, with a function that may fail.
    pub fn try_map<KR: Data, VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<(Option<KR>, Option<VR>)> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<KR, VR> {
        let supplier = map_processor(key_value_mapper(f));
        KStream::new(self.core.key_changing(&named.into(), "KSTREAM-MAP-", supplier))
    }

    /// Gives each record another value.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").map_values(|_, v| v.map(|v| v.len() as i64)).to("lengths");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("lengths", String::serde(), i64::serde());
    /// input.pipe_input(Some("a".into()), Some("four".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), Some(4))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn map_values<VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> Option<VR> + Send + Sync + 'static,
    ) -> KStream<K, VR> {
        self.try_map_values(move |key, value| Ok(f(key, value)), Named::default())
    }

    /// As [`map_values`](Self::map_values), named, with a function that may fail.
    pub fn try_map_values<VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR> {
        let supplier = map_values_processor(value_mapper(f));
        KStream::new(self.core.value_changing(&named.into(), "KSTREAM-MAPVALUES-", supplier))
    }

    /// Gives each record another key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").select_key(|_, v| v.cloned()).to("by-value");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("by-value", String::serde(), String::serde());
    /// input.pipe_input(None, Some("x".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("x".into()), Some("x".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn select_key<KR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> Option<KR> + Send + Sync + 'static,
    ) -> KStream<KR, V> {
        self.try_select_key(move |key, value| Ok(f(key, value)), Named::default())
    }

    /// As [`select_key`](Self::select_key), named, with a function that may fail.
    pub fn try_select_key<KR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KR>> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<KR, V> {
        KStream::new(self.core.select_key(value_mapper(f), &named.into()))
    }
}
