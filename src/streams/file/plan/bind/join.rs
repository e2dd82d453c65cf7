//! Binds stream-stream joins, and decides what goes through the repartition of each side.

use super::Binder;
use crate::streams::file::{
    diagnostic::Diagnostic,
    expression::{Scope, Side, Slot, typed::Node},
    parse::{Join, JoinKind},
    plan::{JoinPlan, Operator, PlanNode},
    value::{Column, ColumnType, DataType},
};

impl Binder<'_> {
    pub(super) fn join(&mut self, name: String, inputs: Vec<usize>, join: &Join) -> Option<PlanNode> {
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
            .position(|typed| matches!(typed.node, Node::Column(Slot { side: Side::Left, index }, _) if index == plan.on[0]))
            .filter(|_| join.kind != JoinKind::Outer)
            .map(|at| vec![columns[at].name.clone()]);
        Some(PlanNode { name, inputs, columns, keyed_by, operator: Operator::Join(plan), sink: None })
    }
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
