//! The plan on the engine: every node of a file becomes sources, processors, stores and sinks of a [`Topology`].
//!
//! Last step of loading. A chain of stateless nodes is one processor; a table or join whose input has another key gets a repartition
//! topic with the columns that are read below it, or with partial results where all aggregates merge. What must always hold: nodes, stores
//! and topics have the names of the file; nothing of the file is looked at again while records flow.

mod codec;
mod dedupe;
mod join;
mod partial;
mod pending;
mod session;
mod sink;
mod sliding;
mod source;
mod steps;
mod table;
mod table_join;
mod table_state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use codec::{RowSerde, key_of};
use dedupe::Dedupe;
use join::{JoinSide, JoinSpec};
use partial::PartialProcessor;
use session::SessionProcessor;
use sliding::SlidingProcessor;
use steps::{Split, Step, Steps};
use table::{TableProcessor, TableSpec};
use table_join::{Key, key_serde, row_serde};
use table_state::{PartialSerde, PartialState, TableState, TableStateSerde};

use super::{
    expression::{EvalError, Expression, Predicate, typed::Node},
    parse::{JoinKind, Role},
    plan::{JoinPlan, Operator, Plan, PlanNode, SinkPlan, SourcePlan, TablePlan, state_name},
    value::{Column, Row},
    window::Windows,
};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    kstream::{Graft, GraftedNode, KTable, ValueGetterSupplier, table_source_processor},
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::AnySerde,
    state::{StoreBuilder, StoreKind},
    topology::{
        BadRecordPolicy, SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder,
        serde_encoder,
    },
};

/// Rows of a window store are taken out by the table itself, never by age behind the newest: with inputs at different speeds the
/// newest says nothing of what is still open.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Segments that a table's readable rows are in.
const SEGMENTS_READABLE: i64 = 32;

/// Processors written in Rust, by the name under which files use them.
#[derive(Clone, Default)]
pub struct Processors(BTreeMap<String, ProcessorSupplier>);

impl Processors {
    /// Registers a processor. Its records have a [`Row`] as value and the key's bytes (`Vec<u8>`) as key.
    pub fn register(&mut self, name: impl Into<String>, supplier: ProcessorSupplier) {
        self.0.insert(name.into(), supplier);
    }

    /// The names.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }
}

impl fmt::Debug for Processors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A failing expression is a bad record.
fn evaluated<T>(result: Result<T, EvalError>) -> Result<T> {
    result.map_err(|error| ProcessingError::new("ExpressionError", error.to_string()).into())
}

/// The row of a record between nodes of a file.
fn row_of(record: &AnyRecord) -> Result<&Row> {
    record
        .value
        .as_ref()
        .and_then(|value| value.downcast_ref::<Row>())
        .ok_or_else(|| ProcessingError::new("NullValue", "the record has no row").into())
}

/// What `init` has set; the engine calls it first.
fn ready<T: Copy>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| StreamsError::fatal("a processor was used before it was initialised"))
}

/// The binder lets joins read tables only.
fn no_table(name: &str) -> StreamsError {
    StreamsError::Topology(format!("{name} joins something that is no table"))
}

/// Lowers a plan.
pub(crate) fn lower(plan: Plan, processors: &Processors) -> Result<Topology> {
    let keep_keys = plan.nodes.iter().any(|node| matches!(node.operator, Operator::Processor { .. }));
    let app = plan.app.clone();
    let columns = plan.nodes.iter().map(|node| node.columns.clone()).collect();
    let readers = plan.nodes.iter().flat_map(|node| node.inputs.clone()).fold(
        vec![0_usize; plan.nodes.len()],
        |mut readers, input| {
            readers[input] += 1;
            readers
        },
    );
    let mut joined = vec![false; plan.nodes.len()];
    let mut looked_into = vec![false; plan.nodes.len()];
    for node in &plan.nodes {
        match &node.operator {
            Operator::TableJoin(_) => node.inputs.iter().for_each(|input| joined[*input] = true),
            Operator::Lookup(_) => node.inputs[1..].iter().for_each(|input| looked_into[*input] = true),
            Operator::Processor { stores, .. } => {
                for (known, other) in looked_into.iter_mut().zip(&plan.nodes) {
                    *known |= stores.contains(&other.name);
                }
            }
            _ => {}
        }
    }
    looked_into.iter_mut().zip(&joined).for_each(|(known, joined)| *known |= joined);
    let mut lowering = Lowering {
        builder: TopologyBuilder::new(),
        graft: Graft::new(),
        processors,
        columns,
        readers,
        joined,
        looked_into,
        ends: Vec::new(),
        stores: BTreeMap::new(),
        keep_keys,
    };
    for node in plan.nodes {
        let end = lowering.node(node)?;
        lowering.ends.push(end);
    }
    lowering.builder.build(&app)
}

/// Where the rows of a lowered node come out.
struct End {
    /// The engine node to attach to.
    node: String,
    /// Steps of a stateless chain that is not closed yet: its only reader takes them over.
    open: Vec<Step>,
    /// The sources of the sub-topology, for co-partitioning.
    sources: Vec<String>,
    /// What happens to bad records of the file's first source above: the same happens behind a repartition.
    bad: Option<BadRecordPolicy>,
    /// The node as a table that joins read.
    table: Option<KTable<Key, Row>>,
    /// The store of a global table.
    global: Option<String>,
    /// Whether it takes rows back, which streams do not want to see.
    takes_back: bool,
}

impl End {
    /// A node of a stream.
    fn of(node: String, sources: Vec<String>, bad: Option<BadRecordPolicy>) -> Self {
        Self { node, open: Vec::new(), sources, bad, table: None, global: None, takes_back: false }
    }
}

struct Lowering<'a> {
    builder: TopologyBuilder,
    /// The DSL's operators on nodes of the file.
    graft: Graft,
    processors: &'a Processors,
    columns: Vec<Vec<Column>>,
    readers: Vec<usize>,
    /// Nodes that joins of tables read: they say what their changes replace.
    joined: Vec<bool>,
    /// Nodes whose state others look into: it must be the newest at any time.
    looked_into: Vec<bool>,
    ends: Vec<End>,
    /// Stores of tables by the node's name.
    stores: BTreeMap<String, String>,
    keep_keys: bool,
}

impl Lowering<'_> {
    fn node(&mut self, node: PlanNode) -> Result<End> {
        let position = self.ends.len();
        let takes_back = node.takes_back();
        let is_table = node.is_table();
        let PlanNode { name, inputs, columns, operator, sink, .. } = node;
        let sources: Vec<String> =
            inputs.iter().flat_map(|input| self.ends[*input].sources.clone()).collect();
        let bad = inputs.first().and_then(|input| self.ends[*input].bad.clone());
        let mut end = match operator {
            Operator::Source(source) => self.source(&name, &columns, &source)?,
            Operator::Stream { filter, select } => {
                let (parent, mut steps) = self.input(inputs[0])?;
                steps.extend(filter.map(|filter| Step::Filter(Predicate::new(filter))));
                steps.extend(select.map(|select| Step::Select(compiled(select))));
                if self.readers[position] == 1 && sink.is_none() {
                    End { open: steps, ..End::of(parent, sources, bad) }
                } else {
                    self.steps(&name, steps, &[&parent])?;
                    End::of(name.clone(), sources, bad)
                }
            }
            Operator::Merge { slots } => {
                let mut parents = Vec::new();
                for (input, slots) in inputs.iter().zip(slots) {
                    let (parent, mut steps) = self.input(*input)?;
                    if !slots.iter().copied().eq(0..self.columns[*input].len()) {
                        steps.push(Step::Reorder(slots));
                    }
                    parents.push(self.after(&format!("{name}-{}", parents.len()), steps, parent)?);
                }
                let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
                self.steps(&name, Vec::new(), &parents)?;
                End::of(name.clone(), sources, bad)
            }
            Operator::Split { into, rest } => {
                let parent = self.closed(inputs[0], &name)?;
                let into: Arc<[(String, Predicate)]> =
                    into.into_iter().map(|(branch, condition)| (branch, Predicate::new(condition))).collect();
                let rest: Option<Arc<str>> = rest.map(Into::into);
                let supplier: ProcessorSupplier =
                    Arc::new(move || Box::new(Split { into: into.clone(), rest: rest.clone() }));
                self.builder.add_processor(&name, supplier, &[&parent])?;
                End::of(name.clone(), sources, bad)
            }
            Operator::Branch => {
                let (parent, steps) = self.input(inputs[0])?;
                self.steps(&name, steps, &[&parent])?;
                End::of(name.clone(), sources, bad)
            }
            Operator::Dedupe { by, within_ms, state_version } => {
                let parent = self.closed(inputs[0], &name)?;
                let store: Arc<str> = state_name(&name, state_version).into();
                let builder = Dedupe::store(&store, within_ms);
                let supplier: ProcessorSupplier =
                    Arc::new(move || Box::new(Dedupe::new(store.clone(), by, within_ms)));
                self.builder.add_processor(&name, supplier, &[&parent])?;
                self.builder.add_state_store(builder, &[&name])?;
                End::of(name.clone(), sources, bad)
            }
            Operator::Repartition { by } => {
                let parent = self.closed(inputs[0], &name)?;
                let all: Vec<usize> = (0..columns.len()).collect();
                let source = self.repartition(&name, &parent, inputs[0], &all, &by, Vec::new())?;
                self.steps(&name, Vec::new(), &[&source])?;
                End::of(name.clone(), vec![source], bad)
            }
            Operator::Table(table) => self.table(&name, &inputs, &columns, table)?,
            Operator::Join(join) => self.join(&name, &inputs, join)?,
            Operator::Lookup(lookup) => self.lookup(&name, &inputs, lookup)?,
            Operator::TableJoin(join) => self.table_join(&name, &inputs, &columns, join)?,
            Operator::Processor { uses, stores } => {
                let parent = self.closed(inputs[0], &name)?;
                let supplier =
                    self.processors.0.get(&uses).cloned().ok_or_else(|| {
                        StreamsError::Topology(format!("no processor is registered as {uses}"))
                    })?;
                self.builder.add_processor(&name, supplier, &[&parent])?;
                for table in stores {
                    let store = self.stores.get(&table).cloned().unwrap_or(table);
                    self.builder.connect_processor_and_state_store(&name, &store)?;
                }
                End::of(name.clone(), sources, bad)
            }
        };
        end.takes_back = takes_back;
        if !is_table {
            end.table = None;
        }
        if let Some(sink) = sink {
            if !end.open.is_empty() {
                end = self.closed_end(&name, end)?;
            }
            self.sink(&name, &end, &columns, sink)?;
        }
        Ok(end)
    }

    /// A topic as a stream, a table or a global table.
    fn source(&mut self, name: &str, columns: &[Column], source: &SourcePlan) -> Result<End> {
        let spec = source::source_spec(source, columns, self.keep_keys);
        let bad = spec.bad.clone();
        if source.role == Role::Stream {
            self.builder.add_source(name, spec)?;
            return Ok(End::of(name.to_owned(), vec![name.to_owned()], bad));
        }
        let store = state_name(name, source.state_version);
        let kind = StoreKind::KeyValue { timestamped: true };
        let builder = StoreBuilder::new(store.as_str(), kind, key_serde(), row_serde(columns));
        let source_name = format!("{name}-source");
        if source.role == Role::Global {
            let supplier = table_source_processor(Some(store.clone()), false);
            self.builder.add_global_store(builder, &source_name, spec, name, supplier)?;
            return Ok(End { global: Some(store), ..End::of(name.to_owned(), Vec::new(), bad) });
        }
        self.builder.add_source(&source_name, spec)?;
        let supplier = table_source_processor(Some(store.clone()), true);
        self.builder.add_processor(name, supplier, &[&source_name])?;
        self.builder.add_state_store(builder, &[name])?;
        self.stores.insert(name.to_owned(), store.clone());
        let sources = vec![source_name];
        let node = GraftedNode { name, sources: &sources, key: key_serde(), value: row_serde(columns) };
        let table = self.graft.table(node, ValueGetterSupplier::of_store(&store));
        Ok(End { table: Some(table), ..End::of(name.to_owned(), sources, bad) })
    }

    /// The engine node of an input, and steps that are to run before anything else.
    fn input(&mut self, input: usize) -> Result<(String, Vec<Step>)> {
        let end = &mut self.ends[input];
        let mut steps = std::mem::take(&mut end.open);
        if end.takes_back {
            steps.insert(0, Step::Rows);
        }
        Ok((end.node.clone(), steps))
    }

    /// A node whose steps several readers would take over, with its steps run.
    fn closed_if_shared(&mut self, name: &str, end: End) -> Result<End> {
        if end.open.is_empty() || self.readers[self.ends.len()] == 1 {
            return Ok(end);
        }
        self.closed_end(name, end)
    }

    fn closed_end(&mut self, name: &str, mut end: End) -> Result<End> {
        let node = format!("{name}-rows");
        let steps = std::mem::take(&mut end.open);
        self.steps(&node, steps, &[&end.node])?;
        Ok(End { node, ..end })
    }

    /// The engine node of an input, with its steps run.
    fn closed(&mut self, input: usize, reader: &str) -> Result<String> {
        let (parent, steps) = self.input(input)?;
        if steps.is_empty() {
            return Ok(parent);
        }
        let name = format!("{reader}-input-{input}");
        self.steps(&name, steps, &[&parent])?;
        Ok(name)
    }

    fn steps(&mut self, name: &str, steps: Vec<Step>, parents: &[&str]) -> Result<()> {
        let steps: Arc<[Step]> = steps.into();
        let supplier: ProcessorSupplier = Arc::new(move || Box::new(Steps(steps.clone())));
        self.builder.add_processor(name, supplier, parents)?;
        Ok(())
    }

    /// Rows to the partition of a key (`by`, slots of the carried row) and back; returns the source behind the topic.
    fn repartition(
        &mut self,
        name: &str,
        parent: &str,
        input: usize,
        carried: &[usize],
        by: &[usize],
        before: Vec<Step>,
    ) -> Result<String> {
        let rekeyed = format!("{name}-rekey");
        let mut steps = before;
        if !carried.iter().copied().eq(0..self.columns[input].len()) {
            steps.push(Step::Reorder(carried.to_vec()));
        }
        let parent = if steps.is_empty() {
            parent.to_owned()
        } else {
            let carry = format!("{name}-carry");
            self.steps(&carry, steps, &[parent])?;
            carry
        };
        let by: Arc<[usize]> = by.into();
        let supplier: ProcessorSupplier = Arc::new(move || Box::new(Rekey(by.clone())));
        self.builder.add_processor(&rekeyed, supplier, &[&parent])?;
        let columns = carried.iter().map(|slot| self.columns[input][*slot].clone());
        let bad = self.ends[input].bad.clone();
        self.through_topic(name, &rekeyed, AnySerde::new::<Row>(RowSerde::new(columns)), bad)
    }

    /// A sink into a repartition topic and the source behind it.
    fn through_topic(
        &mut self,
        name: &str,
        parent: &str,
        value: AnySerde,
        bad: Option<BadRecordPolicy>,
    ) -> Result<String> {
        let topic = format!("{name}-repartition");
        let key = key_serde;
        self.builder.add_repartition_topic(&topic, None);
        let sink = SinkSpec {
            topic: SinkTopic::Fixed(topic.as_str().into()),
            encoder: serde_encoder(key(), value.clone()),
            partitioner: None,
            internal: true,
        };
        self.builder.add_sink(&format!("{name}-repartition-sink"), sink, &[parent])?;
        let source_name = format!("{name}-repartition-source");
        let mut source = SourceSpec::new([topic.as_str()], serde_decoder(key(), value));
        source.internal = true;
        source.bad = bad;
        self.builder.add_source(&source_name, source)?;
        Ok(source_name)
    }

    fn table(&mut self, name: &str, inputs: &[usize], columns: &[Column], table: TablePlan) -> Result<End> {
        let (parent, mut steps) = self.input(inputs[0])?;
        let mut sources = self.ends[inputs[0]].sources.clone();
        let store = state_name(name, table.state_version);
        self.stores.insert(name.to_owned(), store.clone());
        let position = self.ends.len();
        let first = table.group_by.len() + if table.windows.is_some() { 2 } else { 0 };
        let names = state_names(&table, &columns[first..]);
        let TablePlan { carried, filter, group_by, partial, .. } = table;
        let folded_before = partial && carried.is_some();
        let spec = Arc::new(TableSpec {
            store: store.clone(),
            key_types: columns[..group_by.len()].iter().map(|column| column.column_type.data_type).collect(),
            group_by: group_by.clone(),
            windows: table.windows,
            grace_ms: table.grace_ms,
            retention_ms: table.retention_ms,
            on_update: table.on_update,
            on_close: table.on_close,
            aggregates: table.aggregates.into(),
            select: compiled(table.select),
            having: table.having.map(Predicate::new),
            with_old: self.joined[position],
            folds: !(table.on_record || folded_before || self.looked_into[position]),
        });
        let state_serde = TableStateSerde::new(spec.aggregates.clone(), names.into());
        steps.extend(filter.map(|filter| Step::Filter(Predicate::new(filter))));
        let parent = match carried {
            Some(carried) if folded_before => {
                let parent = self.after(&format!("{name}-input"), steps, parent)?;
                let folding = format!("{name}-partial");
                let (part, carried): (_, Arc<[usize]>) = (spec.clone(), carried.into());
                let supplier: ProcessorSupplier =
                    Arc::new(move || Box::new(PartialProcessor::new(part.clone(), carried.clone())));
                self.builder.add_processor(&folding, supplier, &[&parent])?;
                let serde = AnySerde::new::<PartialState>(PartialSerde(state_serde.clone()));
                let bad = self.ends[inputs[0]].bad.clone();
                let source = self.through_topic(name, &folding, serde, bad)?;
                sources = vec![source.clone()];
                source
            }
            Some(carried) => {
                let source = self.repartition(name, &parent, inputs[0], &carried, &group_by, steps)?;
                sources = vec![source.clone()];
                source
            }
            None => self.after(&format!("{name}-input"), steps, parent)?,
        };
        let kind = match &spec.windows {
            None => StoreKind::KeyValue { timestamped: true },
            Some(Windows::Session { .. }) => StoreKind::Session { retention: FOREVER, time_ordered: true },
            Some(windows) => StoreKind::Window {
                retention: FOREVER,
                window_size: Duration::from_millis(windows.size_ms().unsigned_abs()),
                duplicates: false,
                timestamped: true,
                time_ordered: true,
            },
        };
        let value_serde = AnySerde::new::<TableState>(state_serde);
        // Windows close and go one after the other: the rows of a few at a time are looked for.
        let window = spec.windows.as_ref().map_or(0, Windows::size_ms);
        let readable = spec.grace_ms.saturating_add(spec.retention_ms) / SEGMENTS_READABLE;
        let segment_interval = Duration::from_millis(window.max(readable).unsigned_abs());
        let running = spec.clone();
        let supplier: ProcessorSupplier = match spec.windows {
            Some(Windows::Session { gap_ms }) => {
                Arc::new(move || Box::new(SessionProcessor::new(running.clone(), gap_ms)))
            }
            Some(Windows::Sliding { size_ms }) => {
                Arc::new(move || Box::new(SlidingProcessor::new(running.clone(), size_ms)))
            }
            _ => Arc::new(move || Box::new(TableProcessor::new(running.clone()))),
        };
        self.builder.add_processor(name, supplier, &[&parent])?;
        let state = StoreBuilder {
            segment_interval: Some(segment_interval),
            ..StoreBuilder::new(&store, kind, key_serde(), value_serde)
        };
        self.builder.add_state_store(state, &[name])?;
        let bad = self.ends[inputs[0]].bad.clone();
        let node = GraftedNode { name, sources: &sources, key: key_serde(), value: row_serde(columns) };
        // The store holds states; what joins read of it is the result.
        let getter =
            ValueGetterSupplier::mapped(ValueGetterSupplier::of_store(&store), move |_, key, held| {
                spec.looked_up(key, held)
            });
        let table = self.graft.table(node, getter);
        Ok(End { table: Some(table), ..End::of(name.to_owned(), sources, bad) })
    }

    /// The parent with steps run after it, if there are any.
    fn after(&mut self, name: &str, steps: Vec<Step>, parent: String) -> Result<String> {
        if steps.is_empty() {
            return Ok(parent);
        }
        self.steps(name, steps, &[&parent])?;
        Ok(name.to_owned())
    }

    fn join(&mut self, name: &str, inputs: &[usize], join: JoinPlan) -> Result<End> {
        let mut parents = Vec::new();
        let mut sources = Vec::new();
        for (side, label) in ["left", "right"].into_iter().enumerate() {
            let input = inputs[side];
            let (parent, mut steps) = self.input(input)?;
            let part = format!("{name}-{label}");
            let carried = &join.carried[side];
            if join.keyed[side] {
                if !carried.iter().copied().eq(0..self.columns[input].len()) {
                    steps.push(Step::Reorder(carried.clone()));
                }
                parents.push(self.after(&format!("{part}-input"), steps, parent)?);
                sources.extend(self.ends[input].sources.clone());
            } else {
                let source = self.repartition(&part, &parent, input, carried, &join.on[side], steps)?;
                sources.push(source.clone());
                parents.push(source);
            }
        }
        let spec = Arc::new(JoinSpec {
            name: state_name(name, join.state_version),
            on: join.on,
            columns: join.carried.map(|carried| carried.len()),
            before_ms: join.before_ms,
            after_ms: join.after_ms,
            grace_ms: join.grace_ms,
            kept: [join.kind != JoinKind::Inner, join.kind == JoinKind::Outer],
            filter: join.filter.map(Predicate::new),
            select: compiled(join.select),
        });
        let sides = [format!("{name}-left"), format!("{name}-right")];
        for (side, (part, parent)) in sides.iter().zip(&parents).enumerate() {
            let spec = spec.clone();
            let supplier: ProcessorSupplier = Arc::new(move || Box::new(JoinSide::new(spec.clone(), side)));
            self.builder.add_processor(part, supplier, &[parent])?;
        }
        for store in spec.stores() {
            self.builder.add_state_store(store, &[&sides[0], &sides[1]])?;
        }
        let together: Vec<&str> = sources.iter().map(String::as_str).collect();
        self.builder.copartition_sources(&together)?;
        self.steps(name, Vec::new(), &[&sides[0], &sides[1]])?;
        let bad = self.ends[inputs[0]].bad.clone();
        Ok(End::of(name.to_owned(), sources, bad))
    }

    fn sink(&mut self, name: &str, end: &End, columns: &[Column], sink: SinkPlan) -> Result<()> {
        let mut parent = end.node.clone();
        let key = sink.key.map(|key| Arc::new(Expression::new(key)));
        if end.takes_back {
            let (node, key) = (format!("{name}-take-back"), key.clone());
            let supplier: ProcessorSupplier = Arc::new(move || Box::new(sink::TakeBack { key: key.clone() }));
            self.builder.add_processor(&node, supplier, &[&parent])?;
            parent = node;
        }
        if !sink.headers.is_empty() {
            let headers: Arc<[(String, Expression)]> =
                sink.headers.into_iter().map(|(name, typed)| (name, Expression::new(typed))).collect();
            let node = format!("{name}-headers");
            let supplier: ProcessorSupplier = Arc::new(move || Box::new(sink::Headers(headers.clone())));
            self.builder.add_processor(&node, supplier, &[&parent])?;
            parent = node;
        }
        let spec = SinkSpec {
            topic: SinkTopic::Fixed(sink.topic.as_str().into()),
            encoder: sink::encoder(columns, sink.format, key),
            partitioner: None,
            internal: false,
        };
        self.builder.add_sink(&format!("{name}-sink"), spec, &[&parent])?;
        Ok(())
    }
}

/// Names of a table's aggregates for the columns of the state file: the result column that is the aggregate, or shows it first.
fn state_names(table: &TablePlan, columns: &[Column]) -> Vec<String> {
    use super::expression::{Side, Slot};
    let mut names: Vec<String> = Vec::new();
    for index in 0..table.aggregates.len() {
        let slot = Slot { side: Side::Right, index };
        let plain =
            |typed: &super::expression::Typed| matches!(typed.node, Node::Column(own, _) if own == slot);
        let found = table
            .select
            .iter()
            .position(plain)
            .or_else(|| table.select.iter().position(|typed| typed.slots().contains(&slot)));
        let name = found.map_or_else(|| format!("aggregate_{index}"), |at| columns[at].name.clone());
        let taken = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        let reserved = ["key", "start", "timestamp", "revision", "states", "end", "seq", "value"];
        names.push(if taken(&name) || reserved.contains(&name.to_lowercase().as_str()) {
            format!("{name}_{index}")
        } else {
            name
        });
    }
    names
}

fn compiled(expressions: Vec<super::expression::Typed>) -> Vec<Expression> {
    expressions.into_iter().map(Expression::new).collect()
}

/// Gives records the key of some of their columns; those without are dropped where no partner or group could take them.
struct Rekey(Arc<[usize]>);

impl AnyProcessor for Rekey {
    fn process(&mut self, context: NodeContext<'_>, mut record: AnyRecord) -> Result<()> {
        let row = row_of(&record)?;
        // A record without key goes to any partition; what reads it there decides.
        record.key = key_of(self.0.iter().map(|slot| &row[*slot])).map(|key| Arc::new(key) as _);
        context.forward(record)
    }
}
