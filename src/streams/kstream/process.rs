//! `process`, `process_values`: the Processor API inside the DSL.
//!
//! `process` may change keys, which marks the stream as to be repartitioned before grouping or joining; `process_values` cannot
//! (KIP-820).

use std::sync::Arc;

use super::{
    functions::Data,
    graph::GraphNode,
    kstream::{KStream, StreamCore},
    named::Named,
};
use crate::streams::processor::{FixedKeyProcessor, Processor, ProcessorSupplier, erase, erase_fixed_key};

impl<K: Data, V: Data> KStream<K, V> {
    /// Runs a processor, made anew for each task, with access to the stores named and to those it brings
    /// ([`Processor::stores`]).
    ///
    /// The key may change, so grouping and joining what comes out go through a repartition topic.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// use sluice::streams::{error::Result, processor::{Processor, ProcessorContext}, record::Record};
    ///
    /// struct Stamp;
    /// impl Processor<String, String, String, String> for Stamp {
    ///     fn process(
    ///         &mut self,
    ///         context: &ProcessorContext<'_, String, String>,
    ///         record: Record<String, String>,
    ///     ) -> Result<()> {
    ///         let offset = context.record_metadata().offset;
    ///         context.forward(record.with_value(Some(offset.to_string())))
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").process(|| Stamp, Named::default(), &[]).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("out", String::serde(), String::serde());
    /// input.pipe_input(None, Some("x".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(None, Some("0".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn process<KR: Data, VR: Data, P: Processor<K, V, KR, VR> + 'static>(
        &self,
        supplier: impl Fn() -> P + Send + Sync + 'static,
        named: impl Into<Named>,
        stores: &[&str],
    ) -> KStream<KR, VR> {
        let core =
            self.processed(Arc::new(move || erase(supplier())), &named.into(), "KSTREAM-PROCESSOR-", stores);
        KStream::new(StreamCore { key_serde: None, value_serde: None, repartition_required: true, ..core })
    }

    /// Runs a processor that cannot change keys, so that nothing behind it must be repartitioned.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// use sluice::streams::{
    ///     error::Result,
    ///     processor::{FixedKeyProcessor, FixedKeyProcessorContext, FixedKeyRecord, PunctuationType, ScheduleId},
    /// };
    ///
    /// /// Passes lengths on, and the last record once more every 100 ms of stream time.
    /// #[derive(Default)]
    /// struct Lengths(Option<FixedKeyRecord<String, i64>>);
    ///
    /// impl FixedKeyProcessor<String, String, i64> for Lengths {
    ///     fn init(&mut self, context: &FixedKeyProcessorContext<'_, String, i64>) -> Result<()> {
    ///         context.schedule(100, PunctuationType::StreamTime);
    ///         Ok(())
    ///     }
    ///
    ///     fn process(
    ///         &mut self,
    ///         context: &FixedKeyProcessorContext<'_, String, i64>,
    ///         record: FixedKeyRecord<String, String>,
    ///     ) -> Result<()> {
    ///         let length = record.value.as_ref().map(|value| value.len() as i64);
    ///         let record = record.with_value(length);
    ///         self.0 = Some(record.clone());
    ///         context.forward(record)
    ///     }
    ///
    ///     fn punctuate(
    ///         &mut self,
    ///         context: &FixedKeyProcessorContext<'_, String, i64>,
    ///         _: ScheduleId,
    ///         _: i64,
    ///     ) -> Result<()> {
    ///         self.0.take().map_or(Ok(()), |record| context.forward(record))
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").process_values(Lengths::default, Named::default(), &[]).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("out", String::serde(), i64::serde());
    /// input.pipe_input(Some("k".into()), Some("one".into()), 7)?;
    /// let three = (Some("k".into()), Some(3));
    /// assert_eq!(output.read_key_values()?, [three.clone(), three]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn process_values<VR: Data, P: FixedKeyProcessor<K, V, VR> + 'static>(
        &self,
        supplier: impl Fn() -> P + Send + Sync + 'static,
        named: impl Into<Named>,
        stores: &[&str],
    ) -> KStream<K, VR> {
        let supplier: ProcessorSupplier = Arc::new(move || erase_fixed_key(supplier()));
        let core = self.processed(supplier, &named.into(), "KSTREAM-PROCESSVALUES-", stores);
        KStream::new(StreamCore { value_serde: None, ..core })
    }

    fn processed(
        &self,
        supplier: ProcessorSupplier,
        named: &Named,
        prefix: &str,
        stores: &[&str],
    ) -> StreamCore {
        let mut graph = self.core.graph.borrow_mut();
        // Unlike other operators, a named processor takes no number.
        let name = match named.name() {
            Some(name) => graph.checked_name(name.to_owned()),
            None => graph.new_processor_name(prefix),
        };
        let stores = stores.iter().map(|store| (*store).to_owned()).collect();
        let node = GraphNode::stateful(&name, move || supplier.clone(), stores, None);
        let node = graph.add(self.core.node, node);
        drop(graph);
        StreamCore { name, node, ..self.core.clone() }
    }
}
