//! `flat_map`, `flat_map_values`: one record in, any number out, in order, all with the input's timestamp
//! (Kafka's `KStreamFlatMap`, `KStreamFlatMapValues`).

use std::sync::Arc;

use super::{
    functions::{
        Data, FlatKeyValueMapper, FlatValueMapper, UserResult, flat_key_value_mapper, flat_value_mapper,
    },
    kstream::KStream,
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct FlatMap(FlatKeyValueMapper);

impl AnyProcessor for FlatMap {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        for (key, value) in (self.0)(record.key.as_ref(), record.value.as_ref())? {
            context.forward(AnyRecord::new(key, value, record.timestamp, record.headers.clone()))?;
        }
        Ok(())
    }
}

/// A processor that maps a record to many.
pub(crate) fn flat_map_processor(mapper: FlatKeyValueMapper) -> ProcessorSupplier {
    Arc::new(move || Box::new(FlatMap(mapper.clone())))
}

struct FlatMapValues(FlatValueMapper);

impl AnyProcessor for FlatMapValues {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        for value in (self.0)(record.key.as_ref(), record.value.as_ref())? {
            context.forward(AnyRecord::new(
                record.key.clone(),
                value,
                record.timestamp,
                record.headers.clone(),
            ))?;
        }
        Ok(())
    }
}

/// A processor that maps a value to many.
pub(crate) fn flat_map_values_processor(mapper: FlatValueMapper) -> ProcessorSupplier {
    Arc::new(move || Box::new(FlatMapValues(mapper.clone())))
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Turns each record into any number of records.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .stream::<String, String>("lines")
    ///     .flat_map(|_, line| {
    ///         let words = line.map(|line| line.split(' ').map(str::to_owned).collect()).unwrap_or(vec![]);
    ///         words.into_iter().map(|word: String| (Some(word.clone()), Some(word)))
    ///     })
    ///     .to("words");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("lines", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("words", String::serde(), String::serde());
    /// input.pipe_input(None, Some("a b".into()), 0)?;
    /// assert_eq!(output.read_records()?.len(), 2);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn flat_map<KR: Data, VR: Data, I>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> I + Send + Sync + 'static,
    ) -> KStream<KR, VR>
    where
        I: IntoIterator<Item = (Option<KR>, Option<VR>)>,
    {
        self.try_flat_map(move |key, value| Ok(f(key, value)), Named::default())
    }

    /// As [`flat_map`](Self::flat_map), named, with a function that may fail.
    pub fn try_flat_map<KR: Data, VR: Data, I>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<I> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<KR, VR>
    where
        I: IntoIterator<Item = (Option<KR>, Option<VR>)>,
    {
        let supplier = flat_map_processor(flat_key_value_mapper(f));
        KStream::new(self.core.key_changing(&named.into(), "KSTREAM-FLATMAP-", supplier))
    }

    /// Turns each value into any number of values of the same key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("in").flat_map_values(|_, n| [n.copied(), n.map(|n| -n)]).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("out", String::serde(), i64::serde());
    /// input.pipe_input(None, Some(3), 0)?;
    /// assert_eq!(output.read_key_values()?, [(None, Some(3)), (None, Some(-3))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn flat_map_values<VR: Data, I>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> I + Send + Sync + 'static,
    ) -> KStream<K, VR>
    where
        I: IntoIterator<Item = Option<VR>>,
    {
        self.try_flat_map_values(move |key, value| Ok(f(key, value)), Named::default())
    }

    /// As [`flat_map_values`](Self::flat_map_values), named, with a function that may fail.
    pub fn try_flat_map_values<VR: Data, I>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<I> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> KStream<K, VR>
    where
        I: IntoIterator<Item = Option<VR>>,
    {
        let supplier = flat_map_values_processor(flat_value_mapper(f));
        KStream::new(self.core.value_changing(&named.into(), "KSTREAM-FLATMAPVALUES-", supplier))
    }
}
