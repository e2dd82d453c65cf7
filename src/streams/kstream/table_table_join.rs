//! Joins of two tables by primary key (Kafka's `KTableKTable{Inner,Left,Right,Outer}Join` and `…JoinMerger`).
//!
//! A change on either side is joined with the other side's row as it is now; the result's time is the later of the two. Each side is a
//! node of its own, a third merges them and keeps the result where it is to be stored. A result of null is a deletion, sent even
//! where nothing was before.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    functions::{Data, Joiner, UserResult, aggregator},
    graph::GraphNode,
    named::Named,
    options::Materialized,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_store::{TableStore, TupleForwarder},
    value_getter::{ValueGetter, ValueGetterSupplier},
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::{AnyRecord, AnyValue, Timestamp},
    state::ValueAndTimestamp,
};

/// Whose rows a result needs, seen from the side that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Both (inner).
    Both,
    /// This side's (the left side of a left join).
    This,
    /// The other's (the right side of a left join).
    Other,
    /// Either (outer).
    Either,
}

/// One side of a join.
struct JoinSide {
    this: TableCore,
    other: TableCore,
    this_getter: ValueGetterSupplier,
    other_getter: ValueGetterSupplier,
    needs: Needs,
    /// `(key, this, other)`
    joiner: Joiner,
    send_old_values: Cell<bool>,
    versioned: Cell<bool>,
}

impl JoinSide {
    fn new(this: &TableCore, other: &TableCore, needs: Needs, joiner: Joiner) -> Rc<Self> {
        Rc::new(Self {
            this: this.clone(),
            other: other.clone(),
            this_getter: this.value_getter(),
            other_getter: other.value_getter(),
            needs,
            joiner,
            send_old_values: Cell::new(false),
            versioned: Cell::new(false),
        })
    }
}

impl TableProcessor for JoinSide {
    fn supplier(&self) -> ProcessorSupplier {
        let (make, joiner, needs) = (self.other_getter.make.clone(), self.joiner.clone(), self.needs);
        let (send_old_values, versioned) = (self.send_old_values.get(), self.versioned.get());
        Arc::new(move || {
            Box::new(JoinSideProcessor {
                other: make(),
                joiner: joiner.clone(),
                needs,
                send_old_values,
                versioned,
            })
        })
    }

    fn view(&self) -> ValueGetterSupplier {
        let (this, other) = (self.this_getter.clone(), self.other_getter.clone());
        let (joiner, needs) = (self.joiner.clone(), self.needs);
        let mut store_names = this.store_names.clone();
        for name in &other.store_names {
            if !store_names.contains(name) {
                store_names.push(name.clone());
            }
        }
        ValueGetterSupplier {
            make: Arc::new(move || {
                Box::new(JoinGetter {
                    this: (this.make)(),
                    other: (other.make)(),
                    joiner: joiner.clone(),
                    needs,
                })
            }),
            store_names,
        }
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        self.this.enable_sending_old_values(true);
        self.other.enable_sending_old_values(true);
        self.send_old_values.set(true);
        true
    }

    fn enable_versioned_semantics(&self, parent: &str) {
        if self.this.name == parent {
            self.versioned.set(true);
        }
    }
}

struct JoinSideProcessor {
    other: Box<dyn ValueGetter>,
    joiner: Joiner,
    needs: Needs,
    send_old_values: bool,
    versioned: bool,
}

impl JoinSideProcessor {
    /// The joined value, or null where a side that is needed is missing.
    fn joined(
        &self,
        key: Option<&AnyValue>,
        this: Option<&AnyValue>,
        other: Option<&AnyValue>,
    ) -> Result<Option<AnyValue>> {
        let wanted = match self.needs {
            // The other side was found missing before it comes to this.
            Needs::Both | Needs::This => this.is_some(),
            Needs::Other => true,
            Needs::Either => this.is_some() || other.is_some(),
        };
        if wanted { Ok((self.joiner)(key, this, other)?) } else { Ok(None) }
    }
}

impl AnyProcessor for JoinSideProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.other.init(context)
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        if self.versioned && !record.is_latest {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let key = record.key.as_ref();
        let other = self.other.get(context, key)?;
        let nothing_to_say = other.is_none()
            && match self.needs {
                Needs::Both | Needs::Other => true,
                Needs::This | Needs::Either => record.value.is_none() && record.old.is_none(),
            };
        if nothing_to_say {
            return Ok(());
        }
        let other_value = other.as_ref().map(|row| &row.value);
        let value = self.joined(key, record.value.as_ref(), other_value)?;
        let old = match self.send_old_values {
            true => self.joined(key, record.old.as_ref(), other_value)?,
            false => None,
        };
        let timestamp = other.map_or(record.timestamp, |row| row.timestamp.max(record.timestamp));
        context.forward(AnyRecord { value, old, timestamp, ..record })
    }
}

/// Reads the join through both tables.
struct JoinGetter {
    this: Box<dyn ValueGetter>,
    other: Box<dyn ValueGetter>,
    joiner: Joiner,
    needs: Needs,
}

impl ValueGetter for JoinGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.this.init(context)?;
        self.other.init(context)
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        let this = self.this.get(context, key)?;
        if this.is_none() && matches!(self.needs, Needs::Both | Needs::This) {
            return Ok(None);
        }
        let other = self.other.get(context, key)?;
        let found = match self.needs {
            Needs::Both | Needs::Other => other.is_some(),
            Needs::This => true,
            Needs::Either => this.is_some() || other.is_some(),
        };
        if !found {
            return Ok(None);
        }
        let timestamp = [&this, &other].into_iter().flatten().map(|row| row.timestamp).max().unwrap_or(-1);
        let value =
            (self.joiner)(key, this.as_ref().map(|row| &row.value), other.as_ref().map(|row| &row.value))?;
        Ok(value.map(|value| ValueAndTimestamp { value, timestamp }))
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        _: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        // A join keeps no versions; nobody asks for the past after `is_versioned` said so.
        self.get(context, key)
    }

    fn is_versioned(&self) -> bool {
        false
    }
}

/// Both sides together, and the store of the result.
struct JoinMerger {
    left: Rc<JoinSide>,
    right: Rc<JoinSide>,
    store: Option<String>,
    send_old_values: Cell<bool>,
}

impl TableProcessor for JoinMerger {
    fn supplier(&self) -> ProcessorSupplier {
        let (store, send_old_values) = (self.store.clone(), self.send_old_values.get());
        Arc::new(move || Box::new(MergeProcessor { name: store.clone(), send_old_values, store: None }))
    }

    fn view(&self) -> ValueGetterSupplier {
        match &self.store {
            Some(store) => ValueGetterSupplier::of_store(store),
            None => self.left.view(),
        }
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        self.left.enable_sending_old_values(true);
        self.right.enable_sending_old_values(true);
        self.send_old_values.set(true);
        true
    }

    fn enable_versioned_semantics(&self, parent: &str) {
        self.left.enable_versioned_semantics(parent);
        self.right.enable_versioned_semantics(parent);
    }
}

struct MergeProcessor {
    name: Option<String>,
    send_old_values: bool,
    store: Option<(TableStore, TupleForwarder)>,
}

impl AnyProcessor for MergeProcessor {
    fn passes_records(&self) -> bool {
        true
    }

    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        if let Some(name) = &self.name {
            let store = TableStore::new(context, name)?;
            let forwarder = TupleForwarder::new(context, &store, self.send_old_values);
            self.store = Some((store, forwarder));
        }
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        match &self.store {
            Some((store, forwarder)) => {
                let put = store.put(context, record.key.as_ref(), record.value.clone(), record.timestamp)?;
                forwarder.forward_put(context, put, record)
            }
            None => {
                if !self.send_old_values {
                    record.old = None;
                }
                context.forward(record)
            }
        }
    }
}

/// A join's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Inner,
    Left,
    Outer,
}

impl<K: Data, V: Data> KTable<K, V> {
    /// Joins the rows of equal key; a row without a partner has no result.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// names.join(&towns, |name, town| Some(format!("{} of {}", name?, town?))).to_stream().to("people");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let left = driver.create_input_topic::<String, String>("names", String::serde(), String::serde());
    /// # let right = driver.create_input_topic::<String, String>("towns", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("people", String::serde(), String::serde());
    /// left.pipe_input(Some("1".into()), Some("Ann".into()), 0)?;
    /// right.pipe_input(Some("1".into()), Some("Ulm".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some("Ann of Ulm".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.join_with(other, move |_, l, r| Ok(f(l, r)), Named::default(), None)
    }

    /// As [`join`](Self::join), named, stored when `materialized` is given; the function sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// let joiner = |id: Option<&String>, name: Option<&String>, town: Option<&String>| {
    ///     Ok(Some(format!("{} {} {}", id.unwrap(), name.map_or("-", String::as_str), town.map_or("-", String::as_str))))
    /// };
    /// names.join_with(&towns, joiner, "people", Some(Materialized::named("people")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// names.pipe_input(Some("1".into()), Some("Ann".into()), 0)?;
    /// towns.pipe_input(Some("1".into()), Some("Ulm".into()), 1)?;
    /// let person = driver.key_value_store("people", |people| people.get(&"1".to_owned()))?;
    /// assert_eq!(person.as_deref(), Some(&"1 Ann Ulm".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn join_with<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, VR>>,
    ) -> KTable<K, VR> {
        self.joined(other, aggregator(f), &named.into(), materialized, Kind::Inner)
    }

    /// Joins each row with the other table's of equal key, or with none.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// names.left_join(&towns, |name, town| Some(format!("{} {}", name?, town.map_or("?", String::as_str)))).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// # let output = driver.output_topic::<String, String>("out");
    /// names.pipe_input(Some("1".into()), Some("Ann".into()), 0)?;
    /// towns.pipe_input(Some("1".into()), Some("Ulm".into()), 1)?;
    /// let people: Vec<_> = output.read_key_values()?.into_iter().map(|(_, person)| person.unwrap()).collect();
    /// assert_eq!(people, ["Ann ?", "Ann Ulm"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.left_join_with(other, move |_, l, r| Ok(f(l, r)), Named::default(), None)
    }

    /// As [`left_join`](Self::left_join), named, stored when `materialized` is given; the function sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// let joiner = |id: Option<&String>, name: Option<&String>, town: Option<&String>| {
    ///     Ok(Some(format!("{} {} {}", id.unwrap(), name.map_or("-", String::as_str), town.map_or("-", String::as_str))))
    /// };
    /// names.left_join_with(&towns, joiner, "people", Some(Materialized::named("people")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// names.pipe_input(Some("1".into()), Some("Ann".into()), 0)?;
    /// let person = driver.key_value_store("people", |people| people.get(&"1".to_owned()))?;
    /// assert_eq!(person.as_deref(), Some(&"1 Ann -".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn left_join_with<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, VR>>,
    ) -> KTable<K, VR> {
        self.joined(other, aggregator(f), &named.into(), materialized, Kind::Left)
    }

    /// Joins the rows of both tables; either side may be missing.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// names.outer_join(&towns, |name, town| Some(name.is_some() && town.is_some())).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// # let output = driver.output_topic::<String, bool>("out");
    /// towns.pipe_input(Some("1".into()), Some("Ulm".into()), 0)?;
    /// names.pipe_input(Some("1".into()), Some("Ann".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some(false)), (Some("1".into()), Some(true))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn outer_join<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&V>, Option<&VO>) -> Option<VR> + Send + Sync + 'static,
    ) -> KTable<K, VR> {
        self.outer_join_with(other, move |_, l, r| Ok(f(l, r)), Named::default(), None)
    }

    /// As [`outer_join`](Self::outer_join), named, stored when `materialized` is given; the function sees the key and may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Materialized, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let (names, towns) = (builder.table::<String, String>("names"), builder.table::<String, String>("towns"));
    /// let joiner = |id: Option<&String>, name: Option<&String>, town: Option<&String>| {
    ///     Ok(Some(format!("{} {} {}", id.unwrap(), name.map_or("-", String::as_str), town.map_or("-", String::as_str))))
    /// };
    /// names.outer_join_with(&towns, joiner, "people", Some(Materialized::named("people")));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let names = driver.input_topic::<String, String>("names");
    /// # let towns = driver.input_topic::<String, String>("towns");
    /// towns.pipe_input(Some("1".into()), Some("Ulm".into()), 1)?;
    /// let person = driver.key_value_store("people", |people| people.get(&"1".to_owned()))?;
    /// assert_eq!(person.as_deref(), Some(&"1 - Ulm".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn outer_join_with<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        f: impl Fn(Option<&K>, Option<&V>, Option<&VO>) -> UserResult<Option<VR>> + Send + Sync + 'static,
        named: impl Into<Named>,
        materialized: Option<Materialized<K, VR>>,
    ) -> KTable<K, VR> {
        self.joined(other, aggregator(f), &named.into(), materialized, Kind::Outer)
    }

    fn joined<VO: Data, VR: Data>(
        &self,
        other: &KTable<K, VO>,
        joiner: Joiner,
        named: &Named,
        materialized: Option<Materialized<K, VR>>,
        kind: Kind,
    ) -> KTable<K, VR> {
        let (this, other) = (&self.core, &other.core);
        let mut graph = this.graph.borrow_mut();
        let materialized =
            materialized.map(|options| MaterializedStore::new(options, &mut graph, "KTABLE-MERGE-"));
        let name = named.or_generate(&mut graph, "KTABLE-MERGE-");
        drop(graph);
        let sources = this.copartitioned_with(&other.sources);
        if kind != Kind::Inner {
            this.enable_sending_old_values(true);
        }
        if kind == Kind::Outer {
            other.enable_sending_old_values(true);
        }
        let reversed: Joiner = {
            let joiner = joiner.clone();
            Arc::new(move |key, right, left| joiner(key, left, right))
        };
        let (left_needs, right_needs) = match kind {
            Kind::Inner => (Needs::Both, Needs::Both),
            Kind::Left => (Needs::This, Needs::Other),
            Kind::Outer => (Needs::Either, Needs::Either),
        };
        let left = JoinSide::new(this, other, left_needs, joiner);
        let right = JoinSide::new(other, this, right_needs, reversed);
        let mut graph = this.graph.borrow_mut();
        let left_name = named.suffixed_or_generate("-join-this", &mut graph, "KTABLE-JOINTHIS-");
        let right_name = named.suffixed_or_generate("-join-other", &mut graph, "KTABLE-JOINOTHER-");
        let mut versioned = false;
        let mut store = None;
        if let Some(mut options) = materialized {
            options.key_serde = options.key_serde.or(this.key_serde.clone());
            versioned = options.versioned.is_some();
            store = Some(options.key_value_store::<K, VR>(&mut graph));
        }
        let store_name = store.as_ref().map(|store| store.name.clone());
        let merger = Rc::new(JoinMerger {
            left: left.clone(),
            right: right.clone(),
            store: store_name.clone(),
            send_old_values: Cell::new(false),
        });
        let value_serde = store.as_ref().map(|store| store.value_serde.clone());
        let key_serde = store.as_ref().map(|store| store.key_serde.clone()).or(this.key_serde.clone());
        let node = {
            let (name, at_build) = (name.clone(), merger.clone());
            let (this_name, other_name) = (this.name.clone(), other.name.clone());
            GraphNode::other(name.clone(), move |topology, _| {
                topology.add_processor(&left_name, left.supplier(), &[&this_name])?;
                topology.add_processor(&right_name, right.supplier(), &[&other_name])?;
                topology.add_processor(&name, at_build.supplier(), &[&left_name, &right_name])?;
                for store in &left.other_getter.store_names {
                    topology.connect_processor_and_state_store(&left_name, store)?;
                }
                for store in &right.other_getter.store_names {
                    topology.connect_processor_and_state_store(&right_name, store)?;
                }
                match &store {
                    Some(store) => topology.add_state_store(store.clone(), &[&name]).map(drop),
                    None => Ok(()),
                }
            })
        };
        let node = GraphNode {
            output_versioned: Some(versioned),
            versioned_semantics: Some(merger.clone()),
            ..node
        };
        let node = graph.add(this.node, node);
        graph.link(other.node, node);
        drop(graph);
        KTable::new(TableCore {
            name,
            key_serde,
            value_serde,
            sources,
            queryable_store: store_name,
            processor: merger,
            sends_old_values: Rc::default(),
            node,
            graph: this.graph.clone(),
        })
    }
}
