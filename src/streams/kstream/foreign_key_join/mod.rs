//! `join_on`, `left_join_on`: joins of two tables by a foreign key (KIP-213).
//!
//! ```text
//! left change -> send --topic--> receive -> store -> join with the foreign row --topic--> resolve -> result
//!                                             ^                                   ^
//!                             foreign change -+-> every row subscribed to its key +
//! ```
//!
//! Subscriptions are partitioned by foreign key, answers go to the partition that asked. An answer to a value the left row no longer has
//! is dropped, so the result never goes back in time.

mod processors;
mod subscription;

use std::{cell::Cell, collections::BTreeSet, rc::Rc, sync::Arc};

use self::{
    processors::{ForeignTableJoin, ResponseJoin, SubscriptionJoin, SubscriptionReceive, SubscriptionSend},
    subscription::{Response, ResponseSerde, SubscriptionSerde},
};
use super::{
    functions::{Data, Joiner, UserResult, ValueMapper, aggregator, value_mapper},
    graph::{Graph, GraphNode, GraphNodeId, ROOT},
    named::Named,
    options::{Materialized, TableJoined},
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_source::TableSource,
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    processor::ProcessorSupplier,
    record::AnyRecord,
    serdes::{AnySerde, HasSerde},
    state::{StoreBuilder, StoreKind},
    topology::{Partitioner, SinkSpec, SinkTopic, SourceSpec, serde_decoder, serde_encoder},
};

/// A node that must know whether the table above it keeps versions.
struct VersionedNode<F>(Cell<bool>, F);

impl<F: Fn(bool) -> ProcessorSupplier> TableProcessor for VersionedNode<F> {
    fn supplier(&self) -> ProcessorSupplier {
        (self.1)(self.0.get())
    }

    fn view(&self) -> ValueGetterSupplier {
        unreachable!("a subscription is read by nobody")
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        true
    }

    fn enable_versioned_semantics(&self, _: &str) {
        self.0.set(true);
    }
}

fn versioned_node(
    name: &str,
    stores: Vec<String>,
    make: impl Fn(bool) -> ProcessorSupplier + 'static,
) -> GraphNode {
    let descriptor = Rc::new(VersionedNode(Cell::new(false), make));
    let at_build = descriptor.clone();
    GraphNode {
        versioned_semantics: Some(descriptor),
        ..GraphNode::stateful(name, move || at_build.supplier(), stores, None)
    }
}

/// The sink of one of the join's own topics.
fn sink_node(
    name: &str,
    topic: &str,
    key: AnySerde,
    value: AnySerde,
    partitioner: Option<Partitioner>,
) -> GraphNode {
    let sink = SinkSpec {
        topic: SinkTopic::Fixed(topic.into()),
        encoder: serde_encoder(key, value),
        partitioner,
        internal: true,
    };
    let node = name.to_owned();
    GraphNode::other(name, move |topology, parents| topology.add_sink(&node, sink.clone(), parents).map(drop))
}

/// The source behind one of the join's own topics. It hangs below the sink for the order of building only.
fn source_node(name: &str, topic: &str, key: AnySerde, value: AnySerde) -> GraphNode {
    let source = SourceSpec { internal: true, ..SourceSpec::new([topic], serde_decoder(key, value)) };
    let node = name.to_owned();
    GraphNode::other(name, move |topology, _| topology.add_source(&node, source.clone()).map(drop))
}

/// A given partitioner is asked with the key alone: the value on the topic is the join's own.
fn by_key_alone(partitioner: Partitioner) -> Partitioner {
    Arc::new(move |topic, record, partitions| {
        partitioner(topic, &AnyRecord { value: None, ..record.clone() }, partitions)
    })
}

/// Answers go back to the partition that asked.
fn to_primary_partition() -> Partitioner {
    Arc::new(|_, record, _| {
        let response = record.value.as_ref()?.downcast_ref::<Response>()?;
        response.primary_partition.map(|partition| vec![partition])
    })
}

/// What is joined, types erased.
struct ForeignKeyJoin {
    extractor: ValueMapper,
    joiner: Joiner,
    left: bool,
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Joins each row with the row of another table whose key `select` finds in it; a row without a partner has no result.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let (people, towns) = (builder.table::<String, String>("people"), builder.table::<String, String>("towns"));
    /// // A person's value is the key of a town.
    /// people.join_on(&towns, |_, town| town.cloned(), |_, name| name.cloned()).to_stream().to("town-names");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.create_input_topic::<String, String>("people", String::serde(), String::serde());
    /// # let right = driver.create_input_topic::<String, String>("towns", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("town-names", String::serde(), String::serde());
    /// left.pipe_input(Some("ann".into()), Some("UL".into()), 0)?;
    /// right.pipe_input(Some("UL".into()), Some("Ulm".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("ann".into()), Some("Ulm".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_on<KO: Data, VO: Data, VR: Data>(
        &self,
        other: &KTable<KO, VO>,
        select: impl Fn(Option<&K>, Option<&V>) -> Option<KO> + Send + Sync + 'static,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.join_on_with(
            other,
            move |key, value| Ok(select(key, value)),
            move |_, l, r| Ok(f(l, r)),
            TableJoined::default(),
            Materialized::default(),
        )
    }

    /// As [`join_on`](Self::join_on), with options; the functions may fail, and the joiner sees the key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder, TableJoined}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (people, towns) = (builder.table::<String, String>("people"), builder.table::<String, String>("towns"));
    /// people.join_on_with(
    ///     &towns,
    ///     |_, town| Ok(town.cloned()),
    ///     |person, _, name| Ok(person.zip(name).map(|(person, name)| format!("{person} of {name}"))),
    ///     TableJoined::named("home"),
    ///     Materialized::named("homes"),
    /// );
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let people = driver.input_topic::<String, String>("people");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// towns.pipe_input(Some("UL".into()), Some("Ulm".into()), 0)?;
    /// people.pipe_input(Some("ann".into()), Some("UL".into()), 1)?;
    /// let ann = driver.key_value_store("homes", |homes| homes.get(&"ann".to_owned()))?;
    /// assert_eq!(ann.as_deref(), Some(&"ann of Ulm".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_on_with<KO: Data, VO: Data, VR: Data>(
        &self,
        other: &KTable<KO, VO>,
        select: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KO>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        joined: TableJoined<K, KO>,
        materialized: Materialized<K, VR>,
    ) -> KTable<K, VR> {
        let join = ForeignKeyJoin { extractor: value_mapper(select), joiner: aggregator(f), left: false };
        self.joined_on(other, join, joined, materialized)
    }

    /// Joins each row with the row of another table whose key `select` finds in it, or with none.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (people, towns) = (builder.table::<String, String>("people"), builder.table::<String, String>("towns"));
    /// let homes = people.left_join_on(&towns, |_, town| town.cloned(), |_, name| Some(name.cloned().unwrap_or("?".into())));
    /// homes.to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let people = driver.input_topic::<String, String>("people");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// # let output = driver.output_topic::<String, String>("out");
    /// people.pipe_input(Some("ann".into()), Some("UL".into()), 0)?;
    /// towns.pipe_input(Some("UL".into()), Some("Ulm".into()), 1)?;
    /// assert_eq!(
    ///     output.read_key_values()?,
    ///     [(Some("ann".into()), Some("?".into())), (Some("ann".into()), Some("Ulm".into()))]
    /// );
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_on<KO: Data, VO: Data, VR: Data>(
        &self,
        other: &KTable<KO, VO>,
        select: impl Fn(Option<&K>, Option<&V>) -> Option<KO> + Send + Sync + 'static,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.left_join_on_with(
            other,
            move |key, value| Ok(select(key, value)),
            move |_, l, r| Ok(f(l, r)),
            TableJoined::default(),
            Materialized::default(),
        )
    }

    /// As [`left_join_on`](Self::left_join_on), with options; the functions may fail, and the joiner sees the key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder, TableJoined}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (people, towns) = (builder.table::<String, String>("people"), builder.table::<String, String>("towns"));
    /// let joined = (TableJoined::named("home"), Materialized::named("homes"));
    /// let name = |_: Option<&String>, _: Option<&String>, name: Option<&String>| Ok(name.cloned().or(Some("?".into())));
    /// people.left_join_on_with(&towns, |_, town| Ok(town.cloned()), name, joined.0, joined.1);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let people = driver.input_topic::<String, String>("people");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// people.pipe_input(Some("ann".into()), Some("UL".into()), 0)?;
    /// let ann = driver.key_value_store("homes", |homes| homes.get(&"ann".to_owned()))?;
    /// assert_eq!(ann.as_deref(), Some(&"?".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_on_with<KO: Data, VO: Data, VR: Data>(
        &self,
        other: &KTable<KO, VO>,
        select: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KO>> + Send + Sync + 'static,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        joined: TableJoined<K, KO>,
        materialized: Materialized<K, VR>,
    ) -> KTable<K, VR> {
        let join = ForeignKeyJoin { extractor: value_mapper(select), joiner: aggregator(f), left: true };
        self.joined_on(other, join, joined, materialized)
    }

    fn joined_on<KO: Data, VO: Data, VR: Data>(
        &self,
        other: &KTable<KO, VO>,
        join: ForeignKeyJoin,
        joined: TableJoined<K, KO>,
        materialized: Materialized<K, VR>,
    ) -> KTable<K, VR> {
        let (this, other) = (&self.core, &other.core);
        let named = &joined.name;
        other.enable_sending_old_values(true);
        this.enable_sending_old_values(true);
        let (foreign_getter, primary_getter) = (other.value_getter(), this.value_getter());

        let mut graph = this.graph.borrow_mut();
        let place = "a foreign-key join";
        let primary_key = graph.serde::<K>(this.key_serde.clone(), place);
        let foreign_key = graph.serde::<KO>(other.key_serde.clone(), place);
        let primary_value = graph.serde::<V>(this.value_serde.clone(), place);
        let foreign_value = graph.serde::<VO>(other.value_serde.clone(), place);
        let subscription_serde = SubscriptionSerde::of(primary_key.clone());
        let response_serde = ResponseSerde::of(foreign_value);
        let ForeignKeyJoin { extractor, joiner, left } = join;

        // 1. Left changes become subscriptions on a topic partitioned by foreign key.
        let topic = named.suffixed_or_generate(
            "-subscription-registration",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-",
        ) + "-topic";
        graph.internal_topics.push(topic.clone());
        let name = named.suffixed_or_generate(
            "-subscription-registration-processor",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-",
        );
        let send = {
            let (foreign_key, value) = (foreign_key.clone(), primary_value.clone());
            versioned_node(&name, Vec::new(), move |versioned| {
                let (extractor, foreign_key, value) = (extractor.clone(), foreign_key.clone(), value.clone());
                Arc::new(move || {
                    Box::new(SubscriptionSend {
                        extractor: extractor.clone(),
                        foreign_key_serde: foreign_key.clone(),
                        value_serde: value.clone(),
                        left,
                        versioned,
                    })
                })
            })
        };
        let send = graph.add(this.node, send);
        let partitioner = joined.other_partitioner.map(by_key_alone);
        let (subscription_source, at_foreign_side) = hop(
            &mut graph,
            send,
            named,
            "-subscription-registration",
            &topic,
            (foreign_key.clone(), subscription_serde.clone()),
            partitioner,
        );
        let mut copartitioned = other.sources.clone();
        copartitioned.insert(subscription_source);
        graph.copartitioned.push(copartitioned);

        // 2. The foreign side stores them and answers with its row.
        let store_name = named.suffixed_or_generate(
            "-subscription-store",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-STATE-STORE-",
        );
        let store = StoreBuilder {
            backend: graph.config.default_backend,
            ..StoreBuilder::new(
                store_name.clone(),
                StoreKind::KeyValue { timestamped: true },
                // Its keys are not the rows': to the state file they are only bytes.
                Vec::<u8>::serde(),
                subscription_serde,
            )
        };
        graph.add(
            ROOT,
            GraphNode::other(store_name.clone(), move |topology, _| {
                topology.add_state_store(store.clone(), &[]).map(drop)
            }),
        );
        let name = named.suffixed_or_generate(
            "-subscription-receive",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-PROCESSOR-",
        );
        let receive: ProcessorSupplier = {
            let (store, foreign, primary) = (store_name.clone(), foreign_key.clone(), primary_key.clone());
            Arc::new(move || {
                Box::new(SubscriptionReceive {
                    store_name: store.clone(),
                    foreign_key_serde: foreign.clone(),
                    primary_key_serde: primary.clone(),
                    store: None,
                })
            })
        };
        let receive = GraphNode::stateful(&name, move || receive.clone(), vec![store_name.clone()], None);
        let receive = graph.add(at_foreign_side, receive);
        let name = named.suffixed_or_generate(
            "-subscription-join-foreign",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-PROCESSOR-",
        );
        let answer: ProcessorSupplier = {
            let make = foreign_getter.make.clone();
            Arc::new(move || Box::new(SubscriptionJoin { foreign: make() }))
        };
        let answer = GraphNode::stateful(&name, move || answer.clone(), foreign_getter.store_names, None);
        let answer = graph.add(receive, answer);

        // 3. A foreign change answers everyone subscribed to its key.
        let name = named.suffixed_or_generate(
            "-foreign-join-subscription",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-PROCESSOR-",
        );
        let foreign_join = {
            let (store, foreign, primary) = (store_name.clone(), foreign_key, primary_key.clone());
            versioned_node(&name, vec![store_name], move |versioned| {
                let (store, foreign, primary) = (store.clone(), foreign.clone(), primary.clone());
                Arc::new(move || {
                    Box::new(ForeignTableJoin {
                        store_name: store.clone(),
                        foreign_key_serde: foreign.clone(),
                        primary_key_serde: primary.clone(),
                        versioned,
                        store: None,
                    })
                })
            })
        };
        let foreign_join = graph.add(other.node, foreign_join);

        // 4. Answers travel back to the partition that asked, and are joined with the left row.
        let topic = named.suffixed_or_generate(
            "-subscription-response",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-RESPONSE-",
        ) + "-topic";
        graph.internal_topics.push(topic.clone());
        let partitioner = joined.partitioner.map_or_else(to_primary_partition, by_key_alone);
        let (response_source, at_left_side) = hop(
            &mut graph,
            answer,
            named,
            "-subscription-response",
            &topic,
            (primary_key, response_serde),
            Some(partitioner),
        );
        let sink = graph.nodes[at_left_side].parents[0];
        graph.link(foreign_join, sink);
        let mut sources: BTreeSet<String> = this.sources.clone();
        sources.insert(response_source);
        graph.copartitioned.push(sources.clone());
        let name = named.suffixed_or_generate(
            "-subscription-response-resolver",
            &mut graph,
            "KTABLE-FK-JOIN-SUBSCRIPTION-RESPONSE-RESOLVER-PROCESSOR-",
        );
        let resolve: ProcessorSupplier = {
            let make = primary_getter.make.clone();
            Arc::new(move || {
                Box::new(ResponseJoin {
                    primary: make(),
                    value_serde: primary_value.clone(),
                    joiner: joiner.clone(),
                    left,
                })
            })
        };
        let resolve = GraphNode::stateful(&name, move || resolve.clone(), primary_getter.store_names, None);
        let resolve = graph.add(at_left_side, resolve);

        // 5. The result is a table of its own.
        let name = named.suffixed_or_generate("-result", &mut graph, "KTABLE-FK-JOIN-OUTPUT-");
        let mut materialized = MaterializedStore::new(materialized, &mut graph, "KTABLE-FK-JOIN-OUTPUT-");
        materialized.key_serde = materialized.key_serde.or(this.key_serde.clone());
        let value_serde = materialized.value_serde.clone();
        let processor = TableSource::new(&materialized.store_name, materialized.queryable_name());
        let store = materialized.key_value_store::<K, VR>(&mut graph);
        let node = {
            let (name, processor) = (name.clone(), processor.clone());
            GraphNode::other(name.clone(), move |topology, parents| {
                topology.add_processor(&name, processor.supplier(), parents)?;
                if processor.is_materialized() {
                    topology.add_state_store(store.clone(), &[&name])?;
                }
                Ok(())
            })
        };
        let node = GraphNode { output_versioned: Some(materialized.versioned.is_some()), ..node };
        let node = graph.add(resolve, node);
        drop(graph);
        KTable::new(TableCore {
            name,
            key_serde: this.key_serde.clone(),
            value_serde,
            sources,
            queryable_store: materialized.queryable_name(),
            processor,
            sends_old_values: Rc::default(),
            node,
            graph: this.graph.clone(),
        })
    }
}

/// Adds sink and source of one of the join's own topics; the source's name and node.
fn hop(
    graph: &mut Graph,
    parent: GraphNodeId,
    named: &Named,
    suffix: &str,
    topic: &str,
    (key, value): (AnySerde, AnySerde),
    partitioner: Option<Partitioner>,
) -> (String, GraphNodeId) {
    let sink = named.suffixed_or_generate(&format!("{suffix}-sink"), graph, "KTABLE-SINK-");
    let sink = sink_node(&sink, topic, key.clone(), value.clone(), partitioner);
    let sink = graph.add(parent, sink);
    let source = named.suffixed_or_generate(&format!("{suffix}-source"), graph, "KTABLE-SOURCE-");
    let node = graph.add(sink, source_node(&source, topic, key, value));
    (source, node)
}
