//! Builds a case's topology with the public DSL, step by step.
//!
//! A step's result is kept under its `id` as a [`Node`]: the DSL's own typed handle. Values are text or integers, so most handles come
//! in two types ([`Of`]); keys are text, or windowed text behind a windowed aggregation. Each family of steps has a file:
//! [`streams`](crate::streams), [`tables`](crate::tables), [`windows`](crate::windows), [`joins`](crate::joins),
//! [`processors`](crate::processors). A step nobody knows fails its case.

use std::{collections::HashMap, time::Duration};

use sluice::streams::{
    kstream::{
        GlobalKTable, KGroupedStream, KGroupedTable, KStream, KTable, Materialized, Named, StreamsBuilder,
        TopologyConfig, Windowed,
    },
    stores::Backend,
};

use crate::{case::Step, functions::Ty, joins, processors, streams, tables, windows, windows::WindowNode};

/// A windowed text key.
pub type W = Windowed<String>;

/// One of the two value types.
pub enum Of<A, B> {
    /// Text values.
    Text(A),
    /// Integer values.
    Integer(B),
}

impl<A, B> Of<A, B> {
    /// The type.
    pub fn ty(&self) -> Ty {
        match self {
            Of::Text(_) => Ty::Text,
            Of::Integer(_) => Ty::Integer,
        }
    }
}

/// Runs the same code on either type; the result keeps the type.
#[macro_export]
macro_rules! map_of {
    ($of:expr, $node:ident => $body:expr) => {
        match $of {
            $crate::interpreter::Of::Text($node) => $crate::interpreter::Of::Text($body),
            $crate::interpreter::Of::Integer($node) => $crate::interpreter::Of::Integer($body),
        }
    };
}

/// Runs the same code on either type; the result is of one type.
#[macro_export]
macro_rules! each_of {
    ($of:expr, $node:ident => $body:expr) => {
        match $of {
            $crate::interpreter::Of::Text($node) => $body,
            $crate::interpreter::Of::Integer($node) => $body,
        }
    };
}

pub type Streams<K> = Of<KStream<K, String>, KStream<K, i64>>;
pub type Tables<K> = Of<KTable<K, String>, KTable<K, i64>>;

/// How keys look on the topic a stream is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Text.
    Plain,
    /// Key and start of windows of this size (for sliding windows the difference).
    Time(i64),
    /// Key, end and start.
    Session,
}

/// What a step made.
pub enum Node {
    Stream(Streams<String>),
    WindowedStream(Streams<W>, KeyKind),
    Table(Tables<String>),
    WindowedTable(Tables<W>, KeyKind),
    Global(Of<GlobalKTable<String, String>, GlobalKTable<String, i64>>),
    Grouped(Of<KGroupedStream<String, String>, KGroupedStream<String, i64>>),
    GroupedTable(Of<KGroupedTable<String, String>, KGroupedTable<String, i64>>),
    /// Windowed groups, cogroups and what else the windows file knows.
    Window(WindowNode),
}

/// A topic the case reads back.
#[derive(Clone, Copy)]
pub struct Output {
    pub key: KeyKind,
    pub ty: Ty,
}

/// The topology under construction.
pub struct Interpreter {
    pub builder: StreamsBuilder,
    pub nodes: HashMap<String, Node>,
    /// Sink topics.
    pub outputs: HashMap<String, Output>,
    /// Prefixes of topics chosen per record.
    pub prefixes: Vec<(String, Output)>,
}

impl Interpreter {
    /// An empty topology with the case's settings.
    pub fn new(cache: i64, config: Option<Step<'_>>) -> Self {
        let mut topology = TopologyConfig { caching: cache > 0, ..TopologyConfig::default() };
        if let Some(config) = config {
            if config.opt_text("topology_optimization") == Some("all") {
                topology = topology.optimized();
            }
            topology.ensure_explicit_internal_resource_naming = config.flag("require_explicit_names", false);
            if config.opt_text("default_stores") == Some("in_memory") {
                topology.default_backend = Backend::InMemory;
            }
        }
        Self {
            builder: StreamsBuilder::with_config(topology),
            nodes: HashMap::new(),
            outputs: HashMap::new(),
            prefixes: Vec::new(),
        }
    }

    /// Adds one step.
    pub fn apply(&mut self, step: Step<'_>) -> Result<(), String> {
        match step.op() {
            "stream" | "filter" | "filter_not" | "map_values" | "map" | "flat_map" | "flat_map_values"
            | "select_key" | "peek" | "merge" | "split" | "repartition" | "to" | "to_dynamic"
            | "to_table" | "group_by_key" => streams::apply(self, step),
            "table" | "global_table" | "to_stream" | "group_by" | "count" | "reduce" | "aggregate" => {
                tables::apply(self, step)
            }
            "windowed_by" | "emit" | "cogroup" | "cogroup_add" | "suppress" => windows::apply(self, step),
            "stream_stream_join" | "stream_table_join" | "stream_global_join" | "table_table_join"
            | "fk_join" => joins::apply(self, step),
            "state_store" | "process" | "process_values" => processors::apply(self, step),
            other => Err(format!("unknown step {other}")),
        }
    }

    /// The node a step reads.
    pub fn from(&self, step: Step<'_>) -> Result<&Node, String> {
        self.node(step.text("from")?)
    }

    /// A node by id.
    pub fn node(&self, id: &str) -> Result<&Node, String> {
        self.nodes.get(id).ok_or_else(|| format!("there is no node {id}"))
    }

    /// The stream with text keys that a step reads in `field`.
    pub fn stream(&self, step: Step<'_>, field: &str) -> Result<&Streams<String>, String> {
        match self.node(step.text(field)?)? {
            Node::Stream(stream) => Ok(stream),
            _ => Err(format!("{} of {} is no stream with plain keys", field, step.op())),
        }
    }

    /// The table with text keys that a step reads in `field`.
    pub fn table(&self, step: Step<'_>, field: &str) -> Result<&Tables<String>, String> {
        match self.node(step.text(field)?)? {
            Node::Table(table) => Ok(table),
            _ => Err(format!("{} of {} is no table with plain keys", field, step.op())),
        }
    }

    /// Keeps what a step made.
    pub fn keep(&mut self, step: Step<'_>, node: Node) -> Result<(), String> {
        self.nodes.insert(step.text("id")?.to_owned(), node);
        Ok(())
    }
}

/// The operator's name.
pub fn named(step: Step<'_>) -> Named {
    step.opt_text("name").map_or_else(Named::default, Named::new)
}

/// The store options of a step.
pub fn materialized<K, V>(step: Step<'_>) -> Result<Materialized<K, V>, String> {
    let mut options = match step.opt_text("store") {
        Some(store) => Materialized::named(store),
        None => Materialized::default(),
    };
    options = options.with_caching(step.flag("caching", true)).with_logging(step.flag("logging", true));
    if let Some(retention) = step.opt_number("retention_ms") {
        options = options.with_retention(millis(retention));
    }
    if let Some(history) = step.opt_number("versioned_history_ms") {
        options = options.versioned(millis(history));
    }
    match backend(step)? {
        Some(backend) => Ok(options.with_backend(backend)),
        None => Ok(options),
    }
}

/// Where a step's store lives, when it says.
pub fn backend(step: Step<'_>) -> Result<Option<Backend>, String> {
    match step.opt_text("backend") {
        None => Ok(None),
        Some("in_memory") => Ok(Some(Backend::InMemory)),
        Some("lru") => Ok(Some(Backend::Lru(step.number("capacity")? as usize))),
        Some(other) => Err(format!("unknown backend {other}")),
    }
}

/// A duration of a case.
pub fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}
