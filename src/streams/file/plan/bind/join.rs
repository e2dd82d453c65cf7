//! Binds joins: of two streams, of a stream with a table, of two tables. What the sides are decides which.
//!
//! What must always hold: sides meet where equal keys are in one partition; a join that cannot be co-partitioned is refused here.

use super::Binder;
use crate::streams::file::{
    diagnostic::Diagnostic,
    expression::{Scope, Side, Slot, Typed, typed::Node},
    parse::{Join, JoinKind},
    plan::{JoinPlan, LookupPlan, Operator, PlanNode, TableJoinPlan},
    value::{Column, ColumnType, DataType},
};

/// A join of which everything is known that all kinds have in common.
struct Sides {
    on: [Vec<usize>; 2],
    filter: Option<Typed>,
    columns: Vec<Column>,
    select: Vec<Typed>,
}

impl Binder<'_> {
    pub(super) fn join(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
        if join.left.value == join.right.value {
            self.report(
                Diagnostic::new(join.right.span.clone(), "both sides of the join are the same node")
                    .help("give one side another name with a stream node"),
            );
            return None;
        }
        let [left, right] = [&self.nodes[inputs[0]], &self.nodes[inputs[1]]];
        match (left.is_table(), right.is_table() || right.is_global()) {
            (true, true) if right.is_global() => {
                self.refuse_left(join, "a global table is looked up by streams, `left` is a table");
                None
            }
            (true, true) => self.table_join(name, inputs, join),
            (false, true) => self.lookup(name, inputs, join),
            (false, false) => self.stream_join(name, inputs, join),
            (true, false) => {
                self.refuse_left(join, "a table cannot look up streams");
                None
            }
        }
    }

    fn refuse_left(&mut self, join: &Join, message: &str) {
        self.report(
            Diagnostic::new(join.left.span.clone(), message)
                .help(format!("put the stream on the left; a stream of the changes of `{0}` is `[stream.x]` with `from = \"{0}\"`", join.left.value)),
        );
    }

    /// Columns, condition and projection; `whole` keeps all columns, whoever reads them.
    fn sides(&mut self, name: &str, inputs: &[usize], join: &Join, whole: bool) -> Option<Sides> {
        let on = [self.columns(inputs[0], &join.on_left), self.columns(inputs[1], &join.on_right)];
        let sides = [&self.nodes[inputs[0]], &self.nodes[inputs[1]]];
        let mut scope = Scope::default();
        let kind = join.kind.value;
        let optional = [kind == JoinKind::Outer, kind != JoinKind::Inner];
        for (index, (side, text)) in sides.iter().zip([&join.left, &join.right]).enumerate() {
            let columns: Vec<Column> = side
                .columns
                .iter()
                .map(|column| {
                    let nullable = column.column_type.nullable || optional[index];
                    Column::new(column.name.clone(), ColumnType { nullable, ..column.column_type })
                })
                .collect();
            scope.add(Some(&text.value), &columns, [Side::Left, Side::Right][index]);
        }
        let types = |index: usize| -> Option<Vec<DataType>> {
            let columns = &sides[index].columns;
            Some(on[index].as_ref()?.iter().map(|slot| columns[*slot].column_type.data_type).collect())
        };
        let types = [types(0), types(1)];
        let filter = self.condition(join.filter.as_ref(), &scope);
        let projection = if whole {
            self.whole_projection(&join.select, &scope)
        } else {
            self.projection(name, &join.select, &scope)
        };
        let ([Some(left), Some(right)], [Some(on_left), Some(on_right)]) = (types, on) else { return None };
        for (at, (left, right)) in left.iter().zip(&right).enumerate() {
            if left == right {
                continue;
            }
            let message = format!(
                "the sides cannot be brought together: `{}.{}` is {left}, `{}.{}` is {right}",
                join.left.value, join.on_left[at].value, join.right.value, join.on_right[at].value,
            );
            self.report(
                Diagnostic::new(join.on_right[at].span.clone(), message)
                    .help("equal keys must be equal bytes: cast one of them in a stream before the join"),
            );
            return None;
        }
        let (filter, (columns, select)) = (filter.ok()?, projection?);
        Some(Sides { on: [on_left, on_right], filter, columns, select })
    }

    fn stream_join(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
        let Some(within) = &join.within else {
            // Where it is there and wrong, that was said when it was read.
            let node = self.file.nodes.iter().find(|node| node.name.value == name && !join.has_within);
            if let Some(node) = node {
                self.report(
                    Diagnostic::new(node.name.span.clone(), format!("join `{name}` has no `within`")).help(
                        "write `within = { after = \"24h\", grace = \"1m\" }`: how far apart partners may be; there is no default",
                    ),
                );
            }
            self.sides(&name, &inputs, join, false);
            return None;
        };
        let keyed = [0, 1].map(|side| {
            let on = [&join.on_left, &join.on_right][side].iter().map(|column| &column.value);
            self.nodes[inputs[side]].keyed_by.as_ref().is_some_and(|key| key.iter().eq(on))
        });
        let Sides { on, filter, columns, select } = self.sides(&name, &inputs, join, false)?;
        let mut plan = JoinPlan {
            carried: [Vec::new(), Vec::new()],
            keyed,
            on,
            before_ms: within.value.before,
            after_ms: within.value.after,
            grace_ms: within.value.grace,
            kind: join.kind.value,
            filter,
            select,
            state_version: join.state_version,
        };
        for (index, side) in [Side::Left, Side::Right].into_iter().enumerate() {
            let expressions = (&mut plan.select, &mut plan.filter);
            plan.carried[index] = carry(expressions, &mut plan.on[index], side);
        }
        let keyed_by = (plan.kind != JoinKind::Outer).then(|| kept_key(&plan.on[0], &plan.select, &columns));
        Some(PlanNode {
            name,
            inputs,
            columns,
            keyed_by: keyed_by.flatten(),
            operator: Operator::Join(plan),
            sink: None,
        })
    }

    fn lookup(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
        let table = &self.nodes[inputs[1]];
        let global = table.is_global();
        let right = self.on_key_of_right(inputs[1], join) & self.no_within(join);
        if join.kind.value == JoinKind::Outer {
            self.report(
                Diagnostic::new(join.kind.span.clone(), "a stream cannot be outer-joined with a table")
                    .help("only the stream's records make results: write \"inner\" or \"left\""),
            );
            return None;
        }
        let stream = &self.nodes[inputs[0]];
        let keyed = global
            || stream
                .keyed_by
                .as_ref()
                .is_some_and(|key| key.iter().eq(join.on_left.iter().map(|column| &column.value)));
        let global_key = if global { stream.keyed_by.clone() } else { None };
        let stream_columns = stream.columns.clone();
        let Sides { on: [mut on, _], mut filter, columns, mut select } =
            self.sides(&name, &inputs, join, false)?;
        if !right {
            return None;
        }
        // Looking up in a global table moves nothing: the key stays that of the stream.
        let key: Option<Vec<usize>> = match global {
            false => Some(on.clone()),
            true => global_key.and_then(|key| {
                let slot = |name: &String| stream_columns.iter().position(|column| column.name == *name);
                key.iter().map(slot).collect()
            }),
        };
        let keyed_by = key.and_then(|key| kept_key(&key, &select, &columns));
        let carried = (!keyed).then(|| carry((&mut select, &mut filter), &mut on, Side::Left));
        let left = join.kind.value == JoinKind::Left;
        let operator = Operator::Lookup(LookupPlan { carried, on, global, left, filter, select });
        Some(PlanNode { name, inputs, columns, keyed_by, operator, sink: None })
    }

    fn table_join(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
        let left = &self.nodes[inputs[0]];
        let primary = left
            .keyed_by
            .as_ref()
            .is_some_and(|key| key.iter().eq(join.on_left.iter().map(|column| &column.value)));
        let left_key = left.keyed_by.clone().unwrap_or_default();
        let left_columns = left.columns.clone();
        let right = self.on_key_of_right(inputs[1], join) & self.no_within(join);
        if !primary && join.kind.value == JoinKind::Outer {
            self.report(
                Diagnostic::new(join.kind.span.clone(), "a join by foreign key cannot be an outer one").help(
                    format!(
                        "write \"inner\" or \"left\", or join on the key of `{}`: {}",
                        join.left.value,
                        left_key.join(", ")
                    ),
                ),
            );
            return None;
        }
        let Sides { on: [on, _], filter, columns, select } = self.sides(&name, &inputs, join, !primary)?;
        if !right {
            return None;
        }
        let key: Option<Vec<usize>> =
            left_key.iter().map(|name| left_columns.iter().position(|column| column.name == *name)).collect();
        let kept = key.filter(|_| join.kind.value != JoinKind::Outer);
        let keyed_by = kept.and_then(|key| kept_key(&key, &select, &columns));
        let operator = Operator::TableJoin(TableJoinPlan {
            foreign: (!primary).then_some(on),
            kind: join.kind.value,
            filter,
            select,
            state_version: join.state_version,
        });
        Some(PlanNode { name, inputs, columns, keyed_by, operator, sink: None })
    }

    /// Whether the join finds the right side's rows by their key.
    fn on_key_of_right(&mut self, right: usize, join: &Join) -> bool {
        let key = self.nodes[right].keyed_by.clone().unwrap_or_default();
        if key.iter().eq(join.on_right.iter().map(|column| &column.value)) {
            return true;
        }
        // A column that does not exist is the nearer mistake, and said elsewhere.
        let columns = &self.nodes[right].columns;
        if join.on_right.iter().all(|on| columns.iter().any(|column| column.name == on.value)) {
            let at = join.on_right.first().map_or(join.right.span.clone(), |on| on.span.clone());
            let message = format!("`{}` has one row per {}", join.right.value, key.join(" and "));
            let written = match &key[..] {
                [one] => format!("\"{one}\""),
                several => format!("[\"{}\"]", several.join("\", \"")),
            };
            self.report(Diagnostic::new(at, message).help(format!(
                "join on that: `on = {{ left = …, right = {written} }}`; for another key read the topic as a stream and make a table of it"
            )));
        }
        false
    }

    fn no_within(&mut self, join: &Join) -> bool {
        if let Some(within) = &join.within {
            self.report(
                Diagnostic::new(within.span.clone(), "a join with a table has no `within`")
                    .help("a table's row is joined as it is, however old: leave `within` out"),
            );
        }
        join.within.is_none()
    }
}

/// Names under which the key's columns of the left side are in the result; `None` when one is not.
fn kept_key(key: &[usize], select: &[Typed], columns: &[Column]) -> Option<Vec<String>> {
    key.iter()
        .map(|slot| {
            let is_slot = |typed: &Typed| {
                matches!(typed.node, Node::Column(Slot { side: Side::Left, index }, _) if index == *slot)
            };
            select.iter().position(is_slot).map(|at| columns[at].name.clone())
        })
        .collect()
}

/// Decides what of one side is kept and goes through its repartition: the key, then what the expressions read. They and the key
/// count in the carried row afterwards.
fn carry(
    (select, filter): (&mut Vec<Typed>, &mut Option<Typed>),
    on: &mut Vec<usize>,
    side: Side,
) -> Vec<usize> {
    let mut carried: Vec<usize> = Vec::new();
    let read = select.iter().chain(filter.iter()).flat_map(Typed::slots);
    let read = read.filter(|slot| slot.side == side).map(|slot| slot.index);
    for slot in on.iter().copied().chain(read) {
        if !carried.contains(&slot) {
            carried.push(slot);
        }
    }
    let place = |index: usize| carried.iter().position(|known| *known == index).unwrap_or_default();
    let moved = |slot: Slot| if slot.side == side { Slot { index: place(slot.index), ..slot } } else { slot };
    *select = std::mem::take(select).into_iter().map(|typed| typed.map_slots(&moved)).collect();
    *filter = filter.take().map(|typed| typed.map_slots(&moved));
    *on = on.iter().map(|slot| place(*slot)).collect();
    carried
}
