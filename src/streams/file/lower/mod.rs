//! The plan on the engine: every node of a file becomes sources, processors, stores and sinks of a [`Topology`].
//!
//! Last step of loading. A chain of stateless nodes is one processor; a table or join whose input has another key gets a repartition
//! topic with the columns that are read below it, or with partial results where all aggregates merge. What must always hold: nodes, stores
//! and topics have the names of the file; nothing of the file is looked at again while records flow.

mod codec;
mod dedupe;
mod join;
mod partial;
mod steps;
mod table;
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
use steps::{Step, Steps};
use table::{TableProcessor, TableSpec};
use table_state::{PartialSerde, PartialState, TableState, TableStateSerde};

use super::{
    expression::{EvalError, Expression, Predicate, typed::Node},
    json::{RowReader, RowWriter, write_plain},
    parse::JoinKind,
    plan::{BadPolicy, JoinPlan, Operator, Plan, PlanNode, SinkPlan, TablePlan, table_store},
    value::{Column, Datum, Row},
};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
    serdes::{AnySerde, BytesSerde},
    state::{StoreBuilder, StoreKind},
    topology::{
        BadRecordPolicy, DecodedRecord, EncodedRecord, RecordEncoder, SinkSpec, SinkTopic, SourceSpec,
        Topology, TopologyBuilder, serde_decoder, serde_encoder,
    },
};

/// Rows of a window store are taken out by the table itself, never by age behind the newest: with inputs at different speeds the
/// newest says nothing of what is still open.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

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

/// Lowers a plan.
pub fn lower(plan: Plan, processors: &Processors) -> Result<Topology> {
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
    let mut lowering = Lowering {
        builder: TopologyBuilder::new(),
        processors,
        columns,
        readers,
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
}

struct Lowering<'a> {
    builder: TopologyBuilder,
    processors: &'a Processors,
    columns: Vec<Vec<Column>>,
    readers: Vec<usize>,
    ends: Vec<End>,
    /// Stores of tables by the node's name.
    stores: BTreeMap<String, String>,
    keep_keys: bool,
}

impl Lowering<'_> {
    fn node(&mut self, node: PlanNode) -> Result<End> {
        let position = self.ends.len();
        let PlanNode { name, inputs, columns, operator, sink, .. } = node;
        let sources = |lowering: &Self| -> Vec<String> {
            inputs.iter().flat_map(|input| lowering.ends[*input].sources.clone()).collect()
        };
        let bad = |lowering: &Self| inputs.first().and_then(|input| lowering.ends[*input].bad.clone());
        let end = match operator {
            Operator::Source { topic, time, max_future_ms, bad } => {
                let spec = source(topic, &columns, time, max_future_ms, bad, self.keep_keys);
                let bad = spec.bad.clone();
                self.builder.add_source(&name, spec)?;
                End { node: name.clone(), open: Vec::new(), sources: vec![name.clone()], bad }
            }
            Operator::Stream { filter, select } => {
                let (parent, mut steps) = self.input(inputs[0])?;
                steps.extend(filter.map(|filter| Step::Filter(Predicate::new(filter))));
                steps.extend(select.map(|select| Step::Select(compiled(select))));
                let sources = sources(self);
                if self.readers[position] == 1 && sink.is_none() {
                    End { node: parent, open: steps, sources, bad: bad(self) }
                } else {
                    self.steps(&name, steps, &[&parent])?;
                    End { node: name.clone(), open: Vec::new(), sources, bad: bad(self) }
                }
            }
            Operator::Merge { slots } => {
                let mut parents = Vec::new();
                for (input, slots) in inputs.iter().zip(slots) {
                    let (parent, mut steps) = self.input(*input)?;
                    if !slots.iter().copied().eq(0..self.columns[*input].len()) {
                        steps.push(Step::Reorder(slots));
                    }
                    if steps.is_empty() {
                        parents.push(parent);
                    } else {
                        let branch = format!("{name}-{}", parents.len());
                        self.steps(&branch, steps, &[&parent])?;
                        parents.push(branch);
                    }
                }
                let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
                self.steps(&name, Vec::new(), &parents)?;
                End { node: name.clone(), open: Vec::new(), sources: sources(self), bad: bad(self) }
            }
            Operator::Dedupe { by, within_ms } => {
                let parent = self.closed(inputs[0], &name)?;
                let store: Arc<str> = name.as_str().into();
                let supplier: ProcessorSupplier =
                    Arc::new(move || Box::new(Dedupe::new(store.clone(), by, within_ms)));
                self.builder.add_processor(&name, supplier, &[&parent])?;
                self.builder.add_state_store(Dedupe::store(&name, within_ms), &[&name])?;
                End { node: name.clone(), open: Vec::new(), sources: sources(self), bad: bad(self) }
            }
            Operator::Repartition { by } => {
                let parent = self.closed(inputs[0], &name)?;
                let all: Vec<usize> = (0..columns.len()).collect();
                let source = self.repartition(&name, &parent, inputs[0], &all, &by, Vec::new())?;
                self.steps(&name, Vec::new(), &[&source])?;
                End { node: name.clone(), open: Vec::new(), sources: vec![source], bad: bad(self) }
            }
            Operator::Table(table) => self.table(&name, &inputs, &columns, table)?,
            Operator::Join(join) => self.join(&name, &inputs, join)?,
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
                End { node: name.clone(), open: Vec::new(), sources: sources(self), bad: bad(self) }
            }
        };
        if let Some(sink) = sink {
            self.sink(&name, &end.node, &columns, sink)?;
        }
        Ok(end)
    }

    /// The engine node of an input, and steps that are to run before anything else.
    fn input(&mut self, input: usize) -> Result<(String, Vec<Step>)> {
        let end = &mut self.ends[input];
        Ok((end.node.clone(), std::mem::take(&mut end.open)))
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

    /// Rows to the partition of a key and back; returns the source behind the topic.
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
        let key = || AnySerde::new::<Vec<u8>>(BytesSerde);
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
        let store = table_store(name, &table);
        self.stores.insert(name.to_owned(), store.clone());
        let first = table.group_by.len() + if table.windows.is_some() { 2 } else { 0 };
        let names = state_names(&table, &columns[first..]);
        let TablePlan { carried, filter, group_by, partial, .. } = table;
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
        });
        let state_serde = TableStateSerde::new(spec.aggregates.clone(), names.into());
        steps.extend(filter.map(|filter| Step::Filter(Predicate::new(filter))));
        let parent = match carried {
            Some(carried) if partial => {
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
            Some(windows) => StoreKind::Window {
                retention: FOREVER,
                window_size: Duration::from_millis(windows.size_ms().unsigned_abs()),
                duplicates: false,
                timestamped: true,
                time_ordered: true,
            },
        };
        let value_serde = AnySerde::new::<TableState>(state_serde);
        let supplier: ProcessorSupplier = Arc::new(move || Box::new(TableProcessor::new(spec.clone())));
        self.builder.add_processor(name, supplier, &[&parent])?;
        let keys = AnySerde::new::<Vec<u8>>(BytesSerde);
        self.builder.add_state_store(StoreBuilder::new(store, kind, keys, value_serde), &[name])?;
        let bad = self.ends[inputs[0]].bad.clone();
        Ok(End { node: name.to_owned(), open: Vec::new(), sources, bad })
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
        let mut widths = [0; 2];
        for (side, label) in ["left", "right"].into_iter().enumerate() {
            let input = inputs[side];
            let (parent, steps) = self.input(input)?;
            let part = format!("{name}-{label}");
            match &join.carried[side] {
                Some(carried) => {
                    let by = [carried[join.on[side]]];
                    widths[side] = carried.len();
                    let by: Vec<usize> =
                        by.iter().filter_map(|slot| carried.iter().position(|known| known == slot)).collect();
                    let source = self.repartition(&part, &parent, input, carried, &by, steps)?;
                    sources.push(source.clone());
                    parents.push(source);
                }
                None => {
                    widths[side] = self.columns[input].len();
                    parents.push(self.after(&format!("{part}-input"), steps, parent)?);
                    sources.extend(self.ends[input].sources.clone());
                }
            }
        }
        let spec = Arc::new(JoinSpec {
            name: name.to_owned(),
            on: join.on,
            columns: widths,
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
        Ok(End { node: name.to_owned(), open: Vec::new(), sources, bad })
    }

    fn sink(&mut self, name: &str, parent: &str, columns: &[Column], sink: SinkPlan) -> Result<()> {
        let mut parent = parent.to_owned();
        if !sink.headers.is_empty() {
            let headers =
                sink.headers.into_iter().map(|(name, typed)| (name, Expression::new(typed))).collect();
            let node = format!("{name}-headers");
            self.steps(&node, vec![Step::Headers(headers)], &[&parent])?;
            parent = node;
        }
        let spec = SinkSpec {
            topic: SinkTopic::Fixed(sink.topic.as_str().into()),
            encoder: encoder(columns, sink.key.map(Expression::new)),
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

fn source(
    topic: String,
    columns: &[Column],
    time: Option<usize>,
    max_future_ms: Option<i64>,
    bad: BadPolicy,
    keep_keys: bool,
) -> SourceSpec {
    let reader = RowReader::new(columns.to_vec());
    let mut spec = SourceSpec::new(
        [topic.as_str()],
        Arc::new(move |record| {
            let bytes = record.value.as_deref().ok_or_else(|| {
                ProcessingError::new(
                    "SerializationException",
                    "the record has no value, and a stream needs one",
                )
            })?;
            let row = reader
                .read(bytes)
                .map_err(|error| ProcessingError::new("SerializationException", error.to_string()))?;
            let key = record.key.as_ref().filter(|_| keep_keys).map(|key| Arc::new(key.to_vec()) as _);
            Ok(DecodedRecord { key, value: Some(Arc::new(row)), old: None })
        }),
    );
    spec.timestamp_extractor = time.map(|slot| -> crate::streams::topology::TimestampExtractor {
        Arc::new(move |record, decoded, _| {
            let row = decoded.value.as_ref().and_then(|value| value.downcast_ref::<Row>());
            Ok(row.and_then(|row| row[slot].as_timestamp()).unwrap_or(record.timestamp))
        })
    });
    spec.max_future_ms = max_future_ms;
    spec.bad = Some(match bad {
        BadPolicy::DeadLetter(topic) => BadRecordPolicy::DeadLetter(topic.into()),
        BadPolicy::Skip => BadRecordPolicy::Skip,
        BadPolicy::Fail => BadRecordPolicy::Fail,
    });
    spec
}

fn encoder(columns: &[Column], key: Option<Expression>) -> RecordEncoder {
    let writer = RowWriter::new(columns.iter().map(|column| column.name.as_str()));
    Arc::new(move |record| {
        let row = row_of(record)
            .map_err(|error| ProcessingError::new("SerializationException", error.to_string()))?;
        let key = match &key {
            None => None,
            Some(key) => {
                let value = key
                    .evaluate(row, &[])
                    .map_err(|error| ProcessingError::new("ExpressionError", error.to_string()))?;
                if value == Datum::Null {
                    None
                } else {
                    let mut out = Vec::new();
                    write_plain(&value, &mut out);
                    Some(out)
                }
            }
        };
        let mut value = Vec::with_capacity(128);
        writer.write(row, &mut value);
        Ok(EncodedRecord { key, value: Some(value) })
    })
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
