//! Names to nodes, texts to typed expressions: from the shape of a file to its [`Plan`].
//!
//! Nodes are bound inputs first; a node whose input is wrong is skipped, so that one mistake is one message. Called twice: with all
//! columns, for the messages, and with those that are read. What must always hold: every mistake that can be seen without data is
//! seen here.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use jiff::tz::TimeZone;

use super::{BadPolicy, JoinPlan, Operator, Plan, PlanNode, SinkPlan, TablePlan, prune::Needed};
use crate::streams::file::{
    diagnostic::{Diagnostic, Diagnostics},
    expression::{
        self, Aggregate, ExpressionError, Scope, Side, Slot, Typed, check, check_boolean, check_select,
    },
    parse::{Bad, Body, Columns, File, Join, JoinKind, Node, Source, Table, To},
    reader::{Text, place_in},
    suggest::did_you_mean,
    value::{Column, ColumnType, DataType},
    window::Windows,
};

const MS_PER_DAY: i64 = 86_400_000;

/// How long a closed window stays readable when the file does not say, ms.
const RETENTION_MS: i64 = MS_PER_DAY;

/// Binds the file, adding to the mistakes already known; with `needed`, only those columns of sources and projections.
pub fn bind(
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
        let name = node.name.value.clone();
        let mut bound = match &node.body {
            Body::Source(source) => self.source(node, source)?,
            Body::Dedupe { by, within, .. } => {
                let by = self.column(positions[0], by)?;
                let operator = Operator::Dedupe { by, within_ms: within.value };
                self.passing(name, positions, operator)
            }
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
            if let Operator::Source { topic, .. } = &other.operator
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
            match expression::check::declared_type(&type_name.value) {
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
        let key = source.key.as_ref().and_then(|key| field(self, "key", key));
        let is_time = |column: &Column| time.as_ref().is_some_and(|(time, _)| time.name == column.name);
        let columns: Vec<Column> = all
            .iter()
            .filter(|column| is_time(column) || self.is_needed(name, &column.name))
            .cloned()
            .collect();
        let time = columns.iter().position(is_time);
        let bad = match &source.bad {
            Bad::DeadLetter(Some(topic)) => BadPolicy::DeadLetter(topic.value.clone()),
            Bad::DeadLetter(None) => BadPolicy::DeadLetter(format!("{}-dlq", source.topic.value)),
            Bad::Skip => BadPolicy::Skip,
            Bad::Fail => BadPolicy::Fail,
        };
        Some(PlanNode {
            name: name.clone(),
            inputs: Vec::new(),
            keyed_by: key.map(|column| vec![column.name]),
            columns,
            operator: Operator::Source {
                topic: source.topic.value.clone(),
                time,
                max_future_ms: source.max_future.as_ref().map(|max| max.value),
                bad,
            },
            sink: None,
        })
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
            match self.checked(text, scope) {
                Some(typed) if self.is_needed(node, &name.value) => {
                    columns.push(Column::new(name.value.clone(), typed.column_type()));
                    expressions.push(typed);
                }
                Some(_) => {}
                None => right = false,
            }
        }
        right.then_some((columns, expressions))
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

    fn table(&mut self, name: String, inputs: Vec<usize>, table: &Table) -> Option<PlanNode> {
        let input = &self.nodes[inputs[0]];
        let input_columns = input.columns.clone();
        let keyed_by = input.keyed_by.clone();
        let input_scope = Scope::of(Some(&table.from.value), &input_columns);
        let group_by = self.columns(inputs[0], &table.group_by);
        let filter = self.condition(table.filter.as_ref(), &input_scope);
        let windows = match &table.window {
            None => Some(None),
            Some(window) => self.windows(window).map(Some),
        };
        let (group_by, windows) = (group_by?, windows?);
        let mut columns: Vec<Column> = Vec::new();
        for slot in &group_by {
            let column = &input_columns[*slot];
            // A NULL key never reaches the state.
            columns
                .push(Column::new(column.name.clone(), ColumnType { nullable: false, ..column.column_type }));
        }
        let timestamp = ColumnType::required(DataType::Timestamp);
        if windows.is_some() {
            columns.push(Column::new("windowStart", timestamp));
            columns.push(Column::new("windowEnd", timestamp));
        }
        let output_scope = with_aliases(&columns, windows.is_some(), group_by.len());
        let mut aggregates: Vec<Aggregate> = Vec::new();
        let mut select = Vec::new();
        let mut right = true;
        for (column, text) in &table.select {
            if columns.iter().any(|known| known.name == column.value)
                || (windows.is_some() && matches!(column.value.as_str(), "final" | "revision"))
            {
                self.report(
                    Diagnostic::new(
                        column.span.clone(),
                        format!("the result already has a column `{}`", column.value),
                    )
                    .help("group columns, window bounds, `final` and `revision` are there by themselves"),
                );
                right = false;
            }
            match check_select(&text.value, &output_scope, &input_scope, &mut aggregates) {
                Ok(typed) => {
                    columns.push(Column::new(column.value.clone(), typed.column_type()));
                    select.push(typed);
                }
                Err(error) => {
                    self.expression_error(text, error);
                    right = false;
                }
            }
        }
        if windows.is_some() {
            columns.push(Column::new("final", ColumnType::required(DataType::Bool)));
            columns.push(Column::new("revision", ColumnType::required(DataType::Int)));
        }
        let having = if right {
            let scope = with_aliases(&columns, windows.is_some(), group_by.len());
            self.condition(table.having.as_ref(), &scope)
        } else {
            Err(())
        };
        let (filter, having) = (filter.ok()?, having.ok()?);
        let names: Vec<String> = table.group_by.iter().map(|column| column.value.clone()).collect();
        let (carried, group_by, aggregates) = if keyed_by.as_ref() == Some(&names) {
            (None, group_by, aggregates)
        } else {
            carry(group_by, aggregates)
        };
        let partial = carried.is_some() && aggregates.iter().all(Aggregate::mergeable);
        let plan = TablePlan {
            carried,
            filter,
            group_by,
            grace_ms: table.window.as_ref().map_or(0, |window| window.grace.value),
            retention_ms: table.retention.as_ref().map_or(RETENTION_MS, |retention| retention.value),
            on_update: !table.emit.on_close,
            on_close: table.emit.on_close || table.emit.with_final,
            windows,
            aggregates,
            select,
            having,
            state_version: table.state_version,
            partial,
        };
        Some(PlanNode {
            name,
            inputs,
            columns,
            keyed_by: Some(names),
            operator: Operator::Table(plan),
            sink: None,
        })
    }

    fn windows(&mut self, window: &crate::streams::file::parse::Window) -> Option<Windows> {
        let Some(zone) = &window.zone else { return Some(Windows::Fixed { size_ms: window.size.value }) };
        let found = TimeZone::get(&zone.value).ok();
        if found.is_none() {
            self.report(
                Diagnostic::new(zone.span.clone(), format!("`{}` is not a time zone", zone.value))
                    .help("write an IANA name such as \"Asia/Seoul\" or \"UTC\""),
            );
        }
        if window.size.value % MS_PER_DAY != 0 {
            self.report(
                Diagnostic::new(window.size.span.clone(), "only windows of whole days have a zone")
                    .help("write `tumbling = \"1d\"`, or leave `zone` out"),
            );
            return None;
        }
        Some(Windows::Days { days: window.size.value / MS_PER_DAY, zone: found? })
    }

    fn join(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
        if join.left.value == join.right.value {
            self.report(
                Diagnostic::new(join.right.span.clone(), "both sides of the join are the same node")
                    .help("give one side another name with a stream node"),
            );
            return None;
        }
        let on = [self.column(inputs[0], &join.on_left), self.column(inputs[1], &join.on_right)];
        let sides = [&self.nodes[inputs[0]], &self.nodes[inputs[1]]];
        let mut scope = Scope::default();
        let optional = [join.kind == JoinKind::Outer, join.kind != JoinKind::Inner];
        for ((side, text), (which, optional)) in sides
            .iter()
            .zip([&join.left, &join.right])
            .zip([(Side::Left, optional[0]), (Side::Right, optional[1])])
        {
            let columns: Vec<Column> = side
                .columns
                .iter()
                .map(|column| {
                    let nullable = column.column_type.nullable || optional;
                    Column::new(column.name.clone(), ColumnType { nullable, ..column.column_type })
                })
                .collect();
            scope.add(Some(&text.value), &columns, which);
        }
        let keyed: Vec<bool> = sides
            .iter()
            .zip([&join.on_left, &join.on_right])
            .map(|(side, on)| side.keyed_by.as_deref() == Some(std::slice::from_ref(&on.value)))
            .collect();
        let types: Vec<Option<DataType>> = sides
            .iter()
            .zip(on)
            .map(|(side, slot)| slot.map(|slot| side.columns[slot].column_type.data_type))
            .collect();
        let filter = self.condition(join.filter.as_ref(), &scope);
        let projection = join.select.as_ref().and_then(|select| self.projection(&name, select, &scope));
        let on = [on[0]?, on[1]?];
        if types[0] != types[1] {
            let shown: Vec<String> = types.iter().flatten().map(ToString::to_string).collect();
            let message = format!(
                "the sides cannot be brought together: `{}.{}` is {}, `{}.{}` is {}",
                join.left.value,
                join.on_left.value,
                shown[0],
                join.right.value,
                join.on_right.value,
                shown[1]
            );
            self.report(
                Diagnostic::new(join.on_right.span.clone(), message)
                    .help("equal keys must be equal bytes: cast one of them in a stream before the join"),
            );
            return None;
        }
        let (filter, (columns, select)) = (filter.ok()?, projection?);
        let mut plan = JoinPlan {
            carried: [None, None],
            on,
            before_ms: join.before,
            after_ms: join.after.value,
            grace_ms: join.grace.value,
            kind: join.kind,
            filter,
            select,
        };
        for (index, side) in [Side::Left, Side::Right].into_iter().enumerate() {
            if !keyed[index] {
                carry_side(&mut plan, index, side);
            }
        }
        let keyed_by = plan
            .select
            .iter()
            .position(|typed| matches!(typed.node, expression::typed::Node::Column(Slot { side: Side::Left, index }, _) if index == plan.on[0]))
            .filter(|_| join.kind != JoinKind::Outer)
            .map(|at| vec![columns[at].name.clone()]);
        Some(PlanNode { name, inputs, columns, keyed_by, operator: Operator::Join(plan), sink: None })
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
            match expression::check::declared_type(&type_name.value) {
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

    fn sink(&mut self, name: &'a Text, node: &PlanNode, to: &'a To) -> Option<SinkPlan> {
        let scope = match &node.operator {
            Operator::Table(table) => {
                with_aliases(&node.columns, table.windows.is_some(), table.group_by.len())
            }
            _ => Scope::of(Some(&node.name), &node.columns),
        };
        let key = to.key.as_ref().map(|key| self.checked(key, &scope));
        let headers: Vec<Option<(String, Typed)>> = to
            .headers
            .iter()
            .map(|(name, text)| self.checked(text, &scope).map(|typed| (name.value.clone(), typed)))
            .collect();
        for input in &self.file.nodes {
            if let Body::Source(source) = &input.body
                && source.topic.value == to.topic.value
            {
                let message = format!(
                    "`{}` writes topic `{}`, which `{}` reads",
                    name.value, to.topic.value, input.name.value
                );
                self.diagnostics.push(
                    Diagnostic::new(to.topic.span.clone(), message)
                        .help("that is a cycle: read the node instead of its topic"),
                );
                return None;
            }
        }
        let shape: Vec<String> = node
            .columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.column_type))
            .chain([format!("key {}", key.is_some())])
            .collect();
        let shape = shape.join(", ");
        match self.topics.get(to.topic.value.as_str()) {
            Some((other, known)) if *known != shape => {
                let message = format!(
                    "`{}` and `{other}` write topic `{}` with other shapes",
                    name.value, to.topic.value
                );
                let help = format!("`{other}` writes ({known}), this node ({shape})");
                self.diagnostics.push(Diagnostic::new(to.topic.span.clone(), message).help(help));
            }
            Some(_) => {}
            None => {
                self.topics.insert(&to.topic.value, (&name.value, shape));
            }
        }
        let key = match key {
            Some(key) => Some(key?),
            None => None,
        };
        Some(SinkPlan {
            topic: to.topic.value.clone(),
            key,
            headers: headers.into_iter().collect::<Option<_>>()?,
        })
    }

    /// The one `idle_close` of the file.
    fn idle_close(&mut self) -> Option<i64> {
        let mut first: Option<(i64, Range<usize>)> = None;
        for node in &self.file.nodes {
            let Body::Table(Table { emit, .. }) = &node.body else { continue };
            let Some(idle_close) = &emit.idle_close else { continue };
            match &first {
                None => first = Some((idle_close.value, idle_close.span.clone())),
                Some((value, _)) if *value == idle_close.value => {}
                Some(_) => self.diagnostics.push(
                    Diagnostic::new(idle_close.span.clone(), "tables of one file have one `idle_close`")
                        .help("they share their inputs, and an input is silent for all of them"),
                ),
            }
        }
        first.map(|(value, _)| value)
    }
}

fn is_column(typed: &Typed, name: &str) -> bool {
    matches!(&typed.node, expression::typed::Node::Column(_, shown) if shown.rsplit('.').next() == Some(name))
}

/// The columns of a table's result; window bounds also under their names in expressions.
fn with_aliases(columns: &[Column], windowed: bool, group_columns: usize) -> Scope {
    let mut scope = Scope::of(None, columns);
    if windowed {
        for (offset, alias) in ["window_start", "window_end"].into_iter().enumerate() {
            scope.add_alias(
                alias,
                ColumnType::required(DataType::Timestamp),
                Slot { side: Side::Left, index: group_columns + offset },
            );
        }
    }
    scope
}

/// Decides what goes through a table's repartition: the group key, then what the aggregates read.
fn carry(
    group_by: Vec<usize>,
    aggregates: Vec<Aggregate>,
) -> (Option<Vec<usize>>, Vec<usize>, Vec<Aggregate>) {
    let mut carried: Vec<usize> = Vec::new();
    let read = aggregates.iter().flat_map(Aggregate::slots).map(|slot| slot.index);
    for slot in group_by.iter().copied().chain(read) {
        if !carried.contains(&slot) {
            carried.push(slot);
        }
    }
    let moved = |index: usize| carried.iter().position(|slot| *slot == index).unwrap_or_default();
    let aggregates = aggregates
        .into_iter()
        .map(|aggregate| aggregate.map_slots(&|slot| Slot { index: moved(slot.index), ..slot }))
        .collect();
    let group_by = group_by.into_iter().map(moved).collect();
    (Some(carried), group_by, aggregates)
}

/// Decides what goes through a join's repartition of one side.
fn carry_side(plan: &mut JoinPlan, index: usize, side: Side) {
    let mut carried = vec![plan.on[index]];
    for typed in plan.select.iter().chain(&plan.filter) {
        for slot in typed.slots() {
            if slot.side == side && !carried.contains(&slot.index) {
                carried.push(slot.index);
            }
        }
    }
    let moved = |slot: Slot| {
        if slot.side != side {
            return slot;
        }
        Slot { index: carried.iter().position(|known| *known == slot.index).unwrap_or_default(), ..slot }
    };
    let select = std::mem::take(&mut plan.select);
    plan.select = select.into_iter().map(|typed| typed.map_slots(&moved)).collect();
    plan.filter = plan.filter.take().map(|typed| typed.map_slots(&moved));
    plan.on[index] = 0;
    plan.carried[index] = Some(carried);
}
