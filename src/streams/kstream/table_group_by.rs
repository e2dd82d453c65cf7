//! `group_by` of a table (Kafka's `KTableRepartitionMap`): [`KGroupedTable`], a table on its way to an aggregation by another key.
//!
//! Each change becomes what to subtract from the group the row leaves and what to add to the group it joins: one record when both
//! are the same group (KIP-904), else two, the subtraction first.

use std::{cell::Cell, marker::PhantomData, rc::Rc, sync::Arc};

use super::{
    change_serde::{change_decoder, change_encoder},
    functions::{Data, KeyValueMapper, UserResult, key_value_mapper},
    graph::{GraphNode, GraphNodeId, KeyEq, NodeKind, SharedGraph, key_eq},
    named::Named,
    options::Grouped,
    repartition::{REPARTITION_SUFFIX, Repartition},
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_source::single_source,
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::{ProcessingError, Result},
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::AnySerde,
    state::StoreBuilder,
};

struct RepartitionMap {
    mapper: KeyValueMapper,
    same_key: KeyEq,
    versioned: Cell<bool>,
}

impl TableProcessor for RepartitionMap {
    fn supplier(&self) -> ProcessorSupplier {
        let (mapper, same_key, versioned) = (self.mapper.clone(), self.same_key, self.versioned.get());
        Arc::new(move || Box::new(RepartitionMapProcessor { mapper: mapper.clone(), same_key, versioned }))
    }

    fn view(&self) -> ValueGetterSupplier {
        unreachable!("a regrouped table is read behind its topic only")
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        true
    }

    fn enable_versioned_semantics(&self, _: &str) {
        self.versioned.set(true);
    }
}

struct RepartitionMapProcessor {
    mapper: KeyValueMapper,
    same_key: KeyEq,
    versioned: bool,
}

impl AnyProcessor for RepartitionMapProcessor {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() {
            return Err(ProcessingError::new(
                "StreamsException",
                "Record key for the grouping KTable should not be null.",
            )
            .into());
        }
        if self.versioned && !record.is_latest {
            return Ok(());
        }
        let pair = |value: &Option<_>| -> Result<Option<_>> {
            let Some(value) = value else { return Ok(None) };
            match (self.mapper)(record.key.as_ref(), Some(value))? {
                (Some(key), Some(value)) => Ok(Some((key, value))),
                _ => Ok(None),
            }
        };
        let (new, old) = (pair(&record.value)?, pair(&record.old)?);
        let change = |key, value, old| AnyRecord {
            key: Some(key),
            value,
            old,
            is_latest: record.is_latest,
            timestamp: record.timestamp,
            headers: record.headers.clone(),
        };
        match (old, new) {
            (Some((old_key, old)), Some((key, new))) if (self.same_key)(&old_key, &key) => {
                context.forward(change(old_key, Some(new), Some(old)))
            }
            (old, new) => {
                if let Some((key, old)) = old {
                    context.forward(change(key, None, Some(old)))?;
                }
                if let Some((key, new)) = new {
                    context.forward(change(key, Some(new), None))?;
                }
                Ok(())
            }
        }
    }
}

/// A table grouped by another key.
pub struct KGroupedTable<K, V> {
    pub(crate) core: GroupedTableCore,
    types: PhantomData<fn(K, V)>,
}

/// A grouped table without its types.
pub(crate) struct GroupedTableCore {
    node: GraphNodeId,
    pub graph: SharedGraph,
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    name: Option<String>,
    repartition: Cell<Option<GraphNodeId>>,
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Groups rows by a key that `f` selects; `f` also selects the value to aggregate. A row for which either is null
    /// takes part in no group.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .table::<String, String>("city-of-user")
    ///     .group_by(|user, city| (city.cloned(), user.cloned()))
    ///     .count()
    ///     .to_stream()
    ///     .to("users-of-city");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("city-of-user", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("users-of-city", String::serde(), i64::serde());
    /// input.pipe_input(Some("ann".into()), Some("Ulm".into()), 0)?;
    /// input.pipe_input(Some("ann".into()), Some("Bonn".into()), 1)?;
    /// assert_eq!(
    ///     output.read_key_values()?,
    ///     [(Some("Ulm".into()), Some(1)), (Some("Ulm".into()), Some(0)), (Some("Bonn".into()), Some(1))]
    /// );
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by<KR: Data + PartialEq, VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> (Option<KR>, Option<VR>) + Send + Sync + 'static,
    ) -> KGroupedTable<KR, VR> {
        self.group_by_with(move |key, value| Ok(f(key, value)), Grouped::default())
    }

    /// As [`group_by`](Self::group_by), with serdes and a name, and a function that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Grouped, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let users = builder.table::<String, String>("in");
    /// let by_city = users.group_by_with(|user, city| Ok((city.cloned(), user.cloned())), Grouped::named("by-city"));
    /// by_city.count().to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ann".into()), Some("Ulm".into()), 0)?;
    /// assert_eq!(driver.read_records("app-by-city-repartition").len(), 1);
    /// assert_eq!(output.read_key_values()?, [(Some("Ulm".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by_with<KR: Data + PartialEq, VR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<(Option<KR>, Option<VR>)> + Send + Sync + 'static,
        grouped: Grouped<KR, VR>,
    ) -> KGroupedTable<KR, VR> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let named = grouped.name.clone().map_or_else(Named::default, Named::new);
        let name = named.or_generate(&mut graph, "KTABLE-SELECT-");
        let processor = Rc::new(RepartitionMap {
            mapper: key_value_mapper(f),
            same_key: key_eq::<KR>(),
            versioned: Cell::new(false),
        });
        let at_build = processor.clone();
        let node = GraphNode {
            versioned_semantics: Some(processor),
            ..GraphNode::stateful(&name, move || at_build.supplier(), Vec::new(), None)
        };
        let node = graph.add(core.node, node);
        drop(graph);
        core.enable_sending_old_values(true);
        KGroupedTable {
            core: GroupedTableCore {
                node,
                graph: core.graph.clone(),
                key_serde: grouped.key_serde,
                value_serde: grouped.value_serde,
                name: grouped.name,
                repartition: Cell::new(None),
            },
            types: PhantomData,
        }
    }
}

impl GroupedTableCore {
    /// Adds the hop and an aggregation behind it. `K`, `V` are the group's types.
    pub(crate) fn aggregate<K: Data, V: Data, VR: Data>(
        &self,
        named: &Named,
        prefix: &str,
        materialized: &MaterializedStore,
        store: StoreBuilder,
        processor: Rc<dyn TableProcessor>,
    ) -> KTable<K, VR> {
        let mut graph = self.graph.borrow_mut();
        let sink_name = named.suffixed_or_generate("-sink", &mut graph, "KSTREAM-SINK-");
        let source_name = named.suffixed_or_generate("-source", &mut graph, "KSTREAM-SOURCE-");
        let name = named.or_generate(&mut graph, prefix);
        let topic_name = self.name.as_deref().unwrap_or(&materialized.store_name);
        let topic = format!("{topic_name}{REPARTITION_SUFFIX}");
        let place = format!("repartition topic {topic}");
        let key_serde = graph.serde::<K>(self.key_serde.clone(), &place);
        let value_serde = graph.serde::<V>(self.value_serde.clone(), &place);
        let hop = Repartition {
            topic,
            optimizable: false,
            filter_name: None,
            sink_name,
            source_name: source_name.clone(),
            encoder: change_encoder(key_serde.clone(), value_serde.clone()),
            decoder: change_decoder(key_serde.clone(), value_serde.clone()),
            key_serde,
            value_serde,
            partitioner: None,
            partitions: None,
            drop_null_keys: false,
        };
        let hop = match (self.repartition.get(), &self.name) {
            (Some(hop), Some(_)) => {
                graph.link(self.node, hop);
                hop
            }
            _ => graph.add(self.node, GraphNode::new(source_name.clone(), NodeKind::Repartition(hop))),
        };
        self.repartition.set(Some(hop));
        let at_build = processor.clone();
        let node = GraphNode {
            output_versioned: Some(materialized.versioned.is_some()),
            ..GraphNode::stateful(&name, move || at_build.supplier(), Vec::new(), Some(store.clone()))
        };
        let node = graph.add(hop, node);
        drop(graph);
        KTable::new(TableCore {
            name,
            key_serde: Some(store.key_serde),
            value_serde: Some(store.value_serde),
            sources: single_source(&source_name),
            queryable_store: materialized.queryable_name(),
            processor,
            sends_old_values: Rc::default(),
            node,
            graph: self.graph.clone(),
        })
    }
}
