//! `split`: each record goes to the first branch whose predicate wants it, else to the default branch, else nowhere
//! (Kafka's `KStreamBranch`).

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use super::{
    functions::{Data, Predicate, UserResult, predicate},
    graph::GraphNode,
    kstream::{KStream, StreamCore},
    merge::pass_through,
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct Branches {
    predicates: Vec<Predicate>,
    children: Vec<String>,
}

impl AnyProcessor for Branches {
    fn passes_records(&self) -> bool {
        true
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        for (predicate, child) in self.predicates.iter().zip(&self.children) {
            if predicate(record.key.as_ref(), record.value.as_ref())? {
                return context.forward_to(child, record);
            }
        }
        match self.children.get(self.predicates.len()) {
            Some(child) => context.forward_to(child, record),
            None => Ok(()),
        }
    }
}

/// The branches of a split, made one by one. Finish with [`default_branch`](Self::default_branch) or
/// [`no_default_branch`](Self::no_default_branch).
pub struct BranchedKStream<K, V> {
    source: StreamCore,
    splitter: StreamCore,
    parts: Rc<RefCell<(Vec<Predicate>, Vec<String>)>>,
    branches: BTreeMap<String, KStream<K, V>>,
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Splits the stream.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let branches = builder
    ///     .stream::<String, i64>("in")
    ///     .split("sign-")
    ///     .branch(|_, n| n.is_some_and(|n| *n < 0), "negative")
    ///     .default_branch("rest");
    /// branches["sign-negative"].to("negative");
    /// branches["sign-rest"].to("rest");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("negative", String::serde(), i64::serde());
    /// input.pipe_input(None, Some(-1), 0)?;
    /// input.pipe_input(None, Some(1), 0)?;
    /// assert_eq!(output.read_key_values()?, [(None, Some(-1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn split(&self, named: impl Into<Named>) -> BranchedKStream<K, V> {
        let parts: Rc<RefCell<(Vec<Predicate>, Vec<String>)>> = Rc::default();
        let mut graph = self.core.graph.borrow_mut();
        let name = named.into().or_generate(&mut graph, "KSTREAM-BRANCH-");
        let at_build = parts.clone();
        let supplier = move || -> ProcessorSupplier {
            let (predicates, children) = at_build.borrow().clone();
            Arc::new(move || {
                Box::new(Branches { predicates: predicates.clone(), children: children.clone() })
            })
        };
        let node = GraphNode::stateful(&name, supplier, Vec::new(), None);
        let node = graph.add(self.core.node, node);
        drop(graph);
        BranchedKStream {
            source: self.core.clone(),
            splitter: StreamCore { name, node, ..self.core.clone() },
            parts,
            branches: BTreeMap::new(),
        }
    }
}

impl<K: Data, V: Data> BranchedKStream<K, V> {
    /// Adds a branch. Its stream is found under the split's name followed by `name` (or by its number when not named).
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let parts = builder
    ///     .stream::<String, i64>("in")
    ///     .split("size-")
    ///     .branch(|_, n| n.is_some_and(|n| *n > 100), "big")
    ///     .branch(|_, n| n.is_some_and(|n| *n > 10), "middle")
    ///     .no_default_branch();
    /// parts["size-middle"].to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// // The first branch that wants a record has it; 5 is wanted by none.
    /// for n in [200, 50, 5] {
    ///     input.pipe_input(None, Some(n), 0)?;
    /// }
    /// assert_eq!(output.read_key_values()?, [(None, Some(50))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn branch(
        self,
        f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        self.try_branch(move |key, value| Ok(f(key, value)), named)
    }

    /// As [`branch`](Self::branch), with a predicate that may fail.
    pub fn try_branch(
        mut self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<bool> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        self.parts.borrow_mut().0.push(predicate(f));
        let number = self.parts.borrow().0.len();
        self.add(number, &named.into());
        self
    }

    /// Everything no branch wanted, and all branches by name.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let split = builder.stream::<String, i64>("in").split("sign-");
    /// let parts = split.branch(|_, n| n.is_some_and(|n| *n < 0), "minus").default_branch("rest");
    /// parts["sign-rest"].to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(None, Some(-1), 0)?;
    /// input.pipe_input(None, Some(1), 0)?;
    /// assert_eq!(output.read_key_values()?, [(None, Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn default_branch(mut self, named: impl Into<Named>) -> BTreeMap<String, KStream<K, V>> {
        self.add(0, &named.into());
        self.branches
    }

    /// Drops what no branch wanted; all branches by name.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let split = builder.stream::<String, i64>("in").split("sign-");
    /// let parts = split.branch(|_, n| n.is_some_and(|n| *n < 0), "minus").no_default_branch();
    /// parts["sign-minus"].to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(None, Some(-1), 0)?;
    /// input.pipe_input(None, Some(1), 0)?;
    /// assert_eq!(output.read_key_values()?, [(None, Some(-1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn no_default_branch(self) -> BTreeMap<String, KStream<K, V>> {
        self.branches
    }

    fn add(&mut self, number: usize, named: &Named) {
        let suffix = named.name().map_or_else(|| number.to_string(), str::to_owned);
        let name = format!("{}{suffix}", self.splitter.name);
        self.parts.borrow_mut().1.push(name.clone());
        let mut graph = self.source.graph.borrow_mut();
        graph.new_processor_name(&name);
        let node = graph.add(self.splitter.node, GraphNode::processor(&name, pass_through()));
        drop(graph);
        let core = StreamCore { name: name.clone(), node, ..self.source.clone() };
        self.branches.insert(name, KStream::new(core));
    }
}
