//! Names to nodes, texts to typed expressions: from the shape of a file to its [`Plan`].
//!
//! Nodes are bound inputs first; a node whose input is wrong is skipped, so that one mistake is one message. Called twice: with all
//! columns, for the messages, and with those that are read. What must always hold: every mistake that can be seen without data is
//! seen here.

mod join;
mod sink;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{BadPolicy, Operator, Plan, PlanNode, SourcePlan, prune::Needed};
use crate::streams::file::{
    diagnostic::{Diagnostic, Diagnostics},
    expression::{self, ExpressionError, Scope, Typed, check, check_boolean},
    parse::{Bad, Body, Columns, File, Format, Node, Role, Source, Table},
    reader::{Text, place_in},
    suggest::did_you_mean,
    value::{Column, ColumnType, DataType},
};

const MS_PER_DAY: i64 = 86_400_000;
/// Silence after which an input no longer holds the clock back, where a file does not say: the one the shipped topologies have.
const IDLE_CLOSE_DEFAULT_MS: i64 = 30_000;

/// Binds the file, adding to the mistakes already known; with `needed`, only those columns of sources and projections.
pub(super) fn bind(
    text: &str,
    file: &File,
    processors: &BTreeSet<String>,
    needed: Option<&Needed>,
    diagnostics: Diagnostics,
) -> Result<Plan, Diagnostics> {
    let mut binder = Binder {
        text,
        file,
        processors,
        needed,
        diagnostics,
        nodes: Vec::new(),
        positions: BTreeMap::new(),
        topics: BTreeMap::new(),
    };
    let order = binder.order();
    for position in order {
        let node = &file.nodes[position];
        let bound = binder.node(node);
        if let Some(bound) = bound {
            binder.positions.insert(node.name.value.as_str(), binder.nodes.len());
            binder.nodes.push(bound);
        }
    }
    let idle_close_ms = binder.idle_close();
    let Binder { nodes, diagnostics, .. } = binder;
    diagnostics.into_result()?;
    let app = file.app.value.clone();
    let group = file.group.as_ref().map_or_else(|| app.clone(), |group| group.value.clone());
    Ok(Plan { app, group, nodes, idle_close_ms })
}

struct Binder<'a> {
    text: &'a str,
    file: &'a File,
    processors: &'a BTreeSet<String>,
    needed: Option<&'a Needed>,
    diagnostics: Diagnostics,
    nodes: Vec<PlanNode>,
    /// Bound nodes by name.
    positions: BTreeMap<&'a str, usize>,
    /// The first node that writes a topic, and the shape it writes.
    topics: BTreeMap<&'a str, (&'a str, String)>,
}

/// The inputs of a node, as written.
fn inputs(node: &Node) -> Vec<&Text> {
    match &node.body {
        Body::Source(_) => Vec::new(),
        Body::Dedupe { from, .. }
        | Body::Stream { from, .. }
        | Body::Split { from, .. }
        | Body::Branch { from }
        | Body::Repartition { from, .. }
        | Body::Processor { from, .. } => vec![from],
        Body::Table(Table { from, .. }) => vec![from],
        Body::Merge { from } => from.iter().collect(),
        Body::Join(join) => vec![&join.left, &join.right],
    }
}

impl<'a> Binder<'a> {
    fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Inputs before their readers, else in the order of the file. Reports unknown names and cycles.
    fn order(&mut self) -> Vec<usize> {
        let file = self.file;
        let position = |name: &str| file.nodes.iter().position(|node| node.name.value == name);
        let mut waiting: Vec<usize> = (0..file.nodes.len()).collect();
        let mut order: Vec<usize> = Vec::new();
        for node in &file.nodes {
            for input in inputs(node) {
                if position(&input.value).is_none() && !file.broken.contains(&input.value) {
                    let names = file.nodes.iter().map(|node| node.name.value.as_str());
                    let names = names.filter(|name| *name != node.name.value);
                    let error =
                        Diagnostic::new(input.span.clone(), format!("unknown node `{}`", input.value));
                    self.report(match did_you_mean(&input.value, names.clone()) {
                        Some(near) => error.help(format!("did you mean `{near}`?")),
                        None => {
                            error.help(format!("the nodes are: {}", names.collect::<Vec<_>>().join(", ")))
                        }
                    });
                }
            }
        }
        loop {
            let ready = waiting.iter().position(|candidate| {
                inputs(&file.nodes[*candidate])
                    .iter()
                    .all(|input| position(&input.value).is_none_or(|input| order.contains(&input)))
            });
            match ready {
                Some(ready) => order.push(waiting.remove(ready)),
                None => break,
            }
        }
        // What is left waits for itself, or for a node that does; only the first are named.
        for candidate in &waiting {
            let node = &file.nodes[*candidate];
            let path = self.cycle(*candidate);
            if let Some(path) = path {
                self.report(
                    Diagnostic::new(
                        node.name.span.clone(),
                        format!("`{}` reads its own output", node.name.value),
                    )
                    .help(format!("the cycle is {}", path.join(" <- "))),
                );
            }
        }
        order
    }

    /// The way from a node over its inputs back to itself.
    fn cycle(&self, start: usize) -> Option<Vec<&'a str>> {
        let nodes = &self.file.nodes;
        let mut paths = vec![vec![start]];
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop() {
            let last = *path.last()?;
            for input in inputs(&nodes[last]) {
                let Some(next) = nodes.iter().position(|node| node.name.value == input.value) else {
                    continue;
                };
                if next == start {
                    let names = path.iter().chain([&start]);
                    return Some(names.map(|node| nodes[*node].name.value.as_str()).collect());
                }
                if seen.insert(next) {
                    let mut longer = path.clone();
                    longer.push(next);
                    paths.push(longer);
                }
            }
        }
        None
    }

    fn node(&mut self, node: &'a Node) -> Option<PlanNode> {
        // An input that is wrong was reported; its readers say nothing.
        let positions: Vec<usize> = inputs(node)
            .iter()
            .map(|input| self.positions.get(input.value.as_str()).copied())
            .collect::<Option<_>>()?;
        self.readable(node, &positions)?;
        let name = node.name.value.clone();
        let mut bound = match &node.body {
            Body::Source(source) => self.source(node, source)?,
            Body::Dedupe { by, within, state_version, .. } => {
                let by = self.column(positions[0], by)?;
                let operator =
                    Operator::Dedupe { by, within_ms: within.value, state_version: *state_version };
                self.passing(name, positions, operator)
            }
            Body::Split { from, into, rest } => self.split(name, positions, from, into, rest.as_ref())?,
            Body::Branch { .. } => self.passing(name, positions, Operator::Branch),
            Body::Stream { from, filter, select } => {
                self.stream(name, positions, from, filter.as_ref(), select.as_ref())?
            }
            Body::Merge { from } => self.merge(name, positions, from)?,
            Body::Repartition { by, .. } => {
                let slots = self.columns(positions[0], by)?;
                let keyed_by = by.iter().map(|name| name.value.clone()).collect();
                let mut bound = self.passing(name, positions, Operator::Repartition { by: slots });
                bound.keyed_by = Some(keyed_by);
                bound
            }
            Body::Table(table) => self.table(name, positions, table)?,
            Body::Join(join) => self.join(name, positions, join)?,
            Body::Processor { uses, stores, fields, .. } => {
                self.processor(name, positions, uses, stores, fields.as_ref())?
            }
        };
        if let Some(to) = &node.to {
            bound.sink = self.sink(&node.name, &bound, to);
        }
        Some(bound)
    }

    /// Refuses inputs that are no stream of rows: a global table outside of a join, a split instead of a branch.
    fn readable(&mut self, node: &Node, positions: &[usize]) -> Option<()> {
        let mut right = true;
        for (index, (input, position)) in inputs(node).into_iter().zip(positions).enumerate() {
            let read = &self.nodes[*position];
            let joined = matches!(node.body, Body::Join(_)) && index == 1;
            if read.is_global() && !joined {
                self.report(
                    Diagnostic::new(input.span.clone(), format!("`{}` is a global table", input.value))
                        .help("it is looked up by joins, on their `right` side; nothing else can read it"),
                );
                right = false;
            } else if let Operator::Split { into, rest } = &read.operator
                && !matches!(node.body, Body::Branch { .. })
            {
                let branches: Vec<&str> =
                    into.iter().map(|(name, _)| name).chain(rest).map(String::as_str).collect();
                let help = format!("read one of its branches: {}", branches.join(", "));
                self.report(
                    Diagnostic::new(input.span.clone(), format!("`{}` is a split", input.value)).help(help),
                );
                right = false;
            }
        }
        right.then_some(())
    }

    /// A node whose rows are those of its input.
    fn passing(&self, name: String, inputs: Vec<usize>, operator: Operator) -> PlanNode {
        let input = &self.nodes[inputs[0]];
        PlanNode {
            name,
            columns: input.columns.clone(),
            keyed_by: input.keyed_by.clone(),
            inputs,
            operator,
            sink: None,
        }
    }

    fn is_needed(&self, node: &str, column: &str) -> bool {
        self.needed.is_none_or(|needed| needed.get(node).is_some_and(|columns| columns.contains(column)))
    }

    fn source(&mut self, node: &Node, source: &Source) -> Option<PlanNode> {
        let name = &node.name.value;
        for other in &self.nodes {
            if let Operator::Source(SourcePlan { topic, .. }) = &other.operator
                && *topic == source.topic.value
            {
                let message = format!("topic `{topic}` is already read by `{}`", other.name);
                self.diagnostics.push(
                    Diagnostic::new(source.topic.span.clone(), message)
                        .help("read it once and use that node twice"),
                );
                break;
            }
        }
        let mut all: Vec<Column> = Vec::new();
        for (field, type_name) in &source.fields {
            match expression::rules::declared_type(&type_name.value) {
                Ok(column_type) => all.push(Column::new(field.value.clone(), column_type)),
                Err(error) => self.expression_error(type_name, error),
            }
        }
        if all.len() < source.fields.len() {
            return None;
        }
        let field = |binder: &mut Self, key: &str, wanted: &Text| {
            let found = all.iter().find(|column| column.name == wanted.value);
            if found.is_none() {
                let names = all.iter().map(|column| column.name.as_str());
                let error = Diagnostic::new(
                    wanted.span.clone(),
                    format!("`{key}` names no field: `{}`", wanted.value),
                );
                binder.report(match did_you_mean(&wanted.value, names.clone()) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("the fields are: {}", names.collect::<Vec<_>>().join(", "))),
                });
            }
            found.cloned()
        };
        let time =
            source.time.as_ref().and_then(|time| field(self, "time", time).map(|column| (column, time)));
        if let Some((column, text)) = &time
            && column.column_type != ColumnType::required(DataType::Timestamp)
        {
            let message =
                format!("the event time `{}` is {}, not timestamp", column.name, column.column_type);
            let help = format!("declare it as `{} = \"timestamp\"`: RFC 3339 or milliseconds", column.name);
            self.report(Diagnostic::new(text.span.clone(), message).help(help));
        }
        let key: Option<Vec<Column>> =
            source.key.iter().flatten().map(|key| field(self, "key", key)).collect();
        let key = key?;
        if !self.source_shape(source, &all, &key) {
            return None;
        }
        let is_time = |column: &Column| time.as_ref().is_some_and(|(time, _)| time.name == column.name);
        // A table is kept as it is declared, whoever reads it: what its state holds must not hang on its readers.
        let whole = source.role != Role::Stream || source.format == Format::Raw;
        let columns: Vec<Column> = all
            .iter()
            .filter(|column| whole || is_time(column) || self.is_needed(name, &column.name))
            .cloned()
            .collect();
        let time = columns.iter().position(is_time);
        let bad = match &source.bad {
            Bad::DeadLetter(dlq) if source.role == Role::Global => {
                if let Some(dlq) = dlq {
                    let message =
                        "every instance reads all of a global table: each would write its dead letters";
                    let help = "write `bad = \"skip\"`, which is what it does by itself, or `bad = \"fail\"`";
                    self.report(Diagnostic::new(dlq.span.clone(), message).help(help));
                }
                BadPolicy::Skip
            }
            Bad::DeadLetter(Some(topic)) => BadPolicy::DeadLetter(topic.value.clone()),
            Bad::DeadLetter(None) => BadPolicy::DeadLetter(format!("{}-dlq", source.topic.value)),
            Bad::Skip => BadPolicy::Skip,
            Bad::Fail => BadPolicy::Fail,
        };
        let slots = key.iter().filter_map(|key| columns.iter().position(|column| column.name == key.name));
        let operator = Operator::Source(SourcePlan {
            role: source.role,
            topic: source.topic.value.clone(),
            format: source.format,
            key: if whole { slots.collect() } else { Vec::new() },
            time,
            max_future_ms: source.max_future.as_ref().map(|max| max.value),
            bad,
            state_version: source.state_version,
        });
        Some(PlanNode {
            name: name.clone(),
            inputs: Vec::new(),
            keyed_by: source.key.is_some().then(|| key.into_iter().map(|column| column.name).collect()),
            columns,
            operator,
            sink: None,
        })
    }

    /// Whether the fields are such that key and value can be told apart.
    fn source_shape(&mut self, source: &Source, all: &[Column], key: &[Column]) -> bool {
        let mut right = true;
        for (column, text) in key.iter().zip(source.key.iter().flatten()) {
            if source.role != Role::Stream && column.column_type.nullable {
                self.report(
                    Diagnostic::new(text.span.clone(), format!("the key `{}` may be NULL", column.name))
                        .help("a row without a key is no row of a table: declare it without `?`"),
                );
                right = false;
            }
            if column.column_type.data_type == DataType::Json {
                self.report(
                    Diagnostic::new(text.span.clone(), format!("the key `{}` is json", column.name))
                        .help("equal documents may be written in other ways: use a text"),
                );
                right = false;
            }
        }
        let values =
            all.len() - all.iter().filter(|column| key.iter().any(|key| key.name == column.name)).count();
        if source.format == Format::Raw && values != 1 {
            let at = source.fields.first().map_or(source.topic.span.clone(), |(name, _)| name.span.clone());
            let message = format!("a raw topic has one value per record, this declares {values}");
            self.report(Diagnostic::new(at, message).help(
                "write one field for the value, and one per column of `key` if the record's key is read, too",
            ));
            right = false;
        }
        right
    }

    /// The slot of a column of a node.
    fn column(&mut self, node: usize, column: &Text) -> Option<usize> {
        let node = &self.nodes[node];
        match Scope::of(Some(&node.name), &node.columns).resolve(None, &column.value, 0..column.value.len()) {
            Ok((slot, _)) => Some(slot.index),
            Err(error) => {
                self.expression_error(column, error);
                None
            }
        }
    }

    fn columns(&mut self, node: usize, columns: &[Text]) -> Option<Vec<usize>> {
        let slots: Vec<Option<usize>> = columns.iter().map(|column| self.column(node, column)).collect();
        slots.into_iter().collect()
    }

    /// Puts a mistake within an expression at its place in the file.
    fn expression_error(&mut self, text: &Text, error: ExpressionError) {
        let span = place_in(self.text, text, error.span);
        let diagnostic = Diagnostic::new(span, error.message);
        self.report(match error.help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        });
    }

    fn checked(&mut self, text: &Text, scope: &Scope) -> Option<Typed> {
        check(&text.value, scope).map_err(|error| self.expression_error(text, error)).ok()
    }

    /// A condition. `Err` when it is wrong.
    fn condition(&mut self, text: Option<&Text>, scope: &Scope) -> Result<Option<Typed>, ()> {
        match text {
            None => Ok(None),
            Some(text) => check_boolean(&text.value, scope)
                .map(Some)
                .map_err(|error| self.expression_error(text, error)),
        }
    }

    /// The needed columns of a projection.
    fn projection(
        &mut self,
        node: &str,
        select: &Columns,
        scope: &Scope,
    ) -> Option<(Vec<Column>, Vec<Typed>)> {
        let (mut columns, mut expressions) = (Vec::new(), Vec::new());
        let mut right = true;
        for (name, text) in select {
            // What nobody needs was right when everything was looked at; now its inputs may be gone.
            if !self.is_needed(node, &name.value) {
                continue;
            }
            match self.checked(text, scope) {
                Some(typed) => {
                    columns.push(Column::new(name.value.clone(), typed.column_type()));
                    expressions.push(typed);
                }
                None => right = false,
            }
        }
        right.then_some((columns, expressions))
    }

    /// All columns of a projection.
    fn whole_projection(&mut self, select: &Columns, scope: &Scope) -> Option<(Vec<Column>, Vec<Typed>)> {
        let needed = self.needed.take();
        let projection = self.projection("", select, scope);
        self.needed = needed;
        projection
    }

    fn stream(
        &mut self,
        name: String,
        inputs: Vec<usize>,
        from: &Text,
        filter: Option<&Text>,
        select: Option<&Columns>,
    ) -> Option<PlanNode> {
        let input = &self.nodes[inputs[0]];
        let scope = Scope::of(Some(&from.value), &input.columns);
        let keyed_by = input.keyed_by.clone();
        let filter = self.condition(filter, &scope);
        let Some(select) = select else {
            let operator = Operator::Stream { filter: filter.ok()?, select: None };
            return Some(self.passing(name, inputs, operator));
        };
        let projection = self.projection(&name, select, &scope);
        let (filter, (columns, expressions)) = (filter.ok()?, projection?);
        // The key is still known where its columns go through unchanged.
        let keyed_by = keyed_by.and_then(|key| {
            key.iter()
                .map(|key| {
                    let at = expressions.iter().position(|typed| is_column(typed, key))?;
                    Some(columns[at].name.clone())
                })
                .collect()
        });
        let operator = Operator::Stream { filter, select: Some(expressions) };
        Some(PlanNode { name, inputs, columns, keyed_by, operator, sink: None })
    }

    fn split(
        &mut self,
        name: String,
        inputs: Vec<usize>,
        from: &Text,
        into: &Columns,
        rest: Option<&Text>,
    ) -> Option<PlanNode> {
        let scope = Scope::of(Some(&from.value), &self.nodes[inputs[0]].columns);
        let conditions: Vec<Option<(String, Typed)>> = into
            .iter()
            .map(|(branch, text)| {
                let condition = self.condition(Some(text), &scope).ok()??;
                Some((branch.value.clone(), condition))
            })
            .collect();
        let into = conditions.into_iter().collect::<Option<_>>()?;
        Some(self.passing(name, inputs, Operator::Split { into, rest: rest.map(|rest| rest.value.clone()) }))
    }

    fn merge(&mut self, name: String, inputs: Vec<usize>, from: &[Text]) -> Option<PlanNode> {
        let first = &self.nodes[inputs[0]];
        let mut columns = first.columns.clone();
        let mut slots = vec![(0..columns.len()).collect::<Vec<_>>()];
        let mut keyed_by = first.keyed_by.clone();
        let mut mistakes = Vec::new();
        for (input, text) in inputs[1..].iter().zip(&from[1..]) {
            let other = &self.nodes[*input];
            let mut map = Vec::new();
            for column in &mut columns {
                match other.columns.iter().position(|candidate| candidate.name == column.name) {
                    Some(at) if other.columns[at].column_type.data_type == column.column_type.data_type => {
                        column.column_type.nullable |= other.columns[at].column_type.nullable;
                        map.push(at);
                    }
                    Some(at) => mistakes.push(
                        Diagnostic::new(
                            text.span.clone(),
                            format!(
                                "`{}` is {} in `{}` and {} in `{}`",
                                column.name,
                                column.column_type,
                                from[0].value,
                                other.columns[at].column_type,
                                text.value
                            ),
                        )
                        .help("cast it in the `select` of one of them"),
                    ),
                    None => mistakes.push(
                        Diagnostic::new(
                            text.span.clone(),
                            format!(
                                "`{}` has no column `{}`, which `{}` has",
                                text.value, column.name, from[0].value
                            ),
                        )
                        .help("merged streams have the same columns: select it, or a NULL of its type"),
                    ),
                }
            }
            for extra in &other.columns {
                if !columns.iter().any(|column| column.name == extra.name) {
                    mistakes.push(
                        Diagnostic::new(
                            text.span.clone(),
                            format!(
                                "`{}` has a column `{}`, which `{}` has not",
                                text.value, extra.name, from[0].value
                            ),
                        )
                        .help("merged streams have the same columns"),
                    );
                }
            }
            if other.keyed_by != keyed_by {
                keyed_by = None;
            }
            slots.push(map);
        }
        if !mistakes.is_empty() {
            mistakes.into_iter().for_each(|mistake| self.report(mistake));
            return None;
        }
        Some(PlanNode { name, inputs, columns, keyed_by, operator: Operator::Merge { slots }, sink: None })
    }

    fn processor(
        &mut self,
        name: String,
        inputs: Vec<usize>,
        uses: &Text,
        stores: &[Text],
        fields: Option<&Columns>,
    ) -> Option<PlanNode> {
        let mut right = true;
        if !self.processors.contains(&uses.value) {
            let known = self.processors.iter().map(String::as_str);
            let error =
                Diagnostic::new(uses.span.clone(), format!("no processor is registered as `{}`", uses.value));
            self.report(match did_you_mean(&uses.value, known) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help("processors are written in Rust and registered before the file is read"),
            });
            right = false;
        }
        for store in stores {
            let is_table = self
                .positions
                .get(store.value.as_str())
                .is_some_and(|at| matches!(self.nodes[*at].operator, Operator::Table(_)));
            let known = self.file.broken.contains(&store.value)
                || self.file.nodes.iter().any(|node| node.name.value == store.value);
            // A table that is wrong itself was reported there.
            let skipped = known && !self.positions.contains_key(store.value.as_str());
            if !is_table && !skipped {
                self.report(
                    Diagnostic::new(store.span.clone(), format!("`{}` is not a table", store.value))
                        .help("a processor reads the state of tables of this file"),
                );
                right = false;
            }
        }
        let mut columns = Vec::new();
        for (field, type_name) in fields.into_iter().flatten() {
            match expression::rules::declared_type(&type_name.value) {
                Ok(column_type) => columns.push(Column::new(field.value.clone(), column_type)),
                Err(error) => {
                    self.expression_error(type_name, error);
                    right = false;
                }
            }
        }
        if !right {
            return None;
        }
        let operator = Operator::Processor {
            uses: uses.value.clone(),
            stores: stores.iter().map(|store| store.value.clone()).collect(),
        };
        let mut bound = self.passing(name, inputs, operator);
        if fields.is_some() {
            bound.columns = columns;
            bound.keyed_by = None;
        }
        Some(bound)
    }

    /// The one `idle_close` of the file: what it says, or the default where a node goes by event time. Such a node needs watermarks: by the
    /// fastest input's time it would take for late, or give up as expired, what another input has yet to bring.
    fn idle_close(&mut self) -> Option<i64> {
        let mut first: Option<(i64, Range<usize>)> = None;
        for node in &self.file.nodes {
            let idle_close = match &node.body {
                Body::Table(Table { emit, .. }) => &emit.idle_close,
                Body::Join(join) => &join.idle_close,
                _ => &None,
            };
            let Some(idle_close) = idle_close else { continue };
            match &first {
                None => first = Some((idle_close.value, idle_close.span.clone())),
                Some((value, _)) if *value == idle_close.value => {}
                Some(_) => self.diagnostics.push(
                    Diagnostic::new(idle_close.span.clone(), "nodes of one file have one `idle_close`")
                        .help("they share their inputs, and an input is silent for all of them"),
                ),
            }
        }
        let by_event_time = self.file.nodes.iter().any(|node| match &node.body {
            Body::Table(table) => table.window.is_some(),
            Body::Join(join) => join.within.is_some(),
            _ => false,
        });
        first.map(|(value, _)| value).or(by_event_time.then_some(IDLE_CLOSE_DEFAULT_MS))
    }
}

fn is_column(typed: &Typed, name: &str) -> bool {
    matches!(&typed.node, expression::typed::Node::Column(_, shown) if shown.rsplit('.').next() == Some(name))
}
