//! Binds tables: group key, window, aggregates, result; and decides what goes through their repartition.

use jiff::tz::TimeZone;

use super::{Binder, MS_PER_DAY};
use crate::streams::file::{
    diagnostic::Diagnostic,
    expression::{Aggregate, Scope, Side, Slot, check_select},
    parse::{Table, Window, WindowShape},
    plan::{Operator, PlanNode, TablePlan},
    reader::Spanned,
    value::{Column, ColumnType, DataType},
    window::{OVERLAP_MAX, Windows},
};

/// How long a closed window stays readable when the file does not say, ms.
const RETENTION_MS: i64 = MS_PER_DAY;

impl Binder<'_> {
    pub(super) fn table(&mut self, name: String, inputs: Vec<usize>, table: &Table) -> Option<PlanNode> {
        let input = &self.nodes[inputs[0]];
        if input.takes_back() && input.is_table() {
            let message =
                format!("`{}` is a table: its rows change, and a change is no new row", table.from.value);
            let help = "to aggregate over its changes put a stream between: `[stream.x]` with `from`";
            self.report(Diagnostic::new(table.from.span.clone(), message).help(help));
            return None;
        }
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
        let aligned = windows.as_ref().is_none_or(Windows::is_aligned);
        let partial = carried.is_some()
            && aligned
            && !table.emit.on_record
            && aggregates.iter().all(Aggregate::mergeable);
        let plan = TablePlan {
            carried,
            filter,
            group_by,
            grace_ms: table.window.as_ref().map_or(0, |window| window.grace.value),
            retention_ms: table.retention.as_ref().map_or(RETENTION_MS, |retention| retention.value),
            on_update: !table.emit.on_close,
            on_record: table.emit.on_record,
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

    fn windows(&mut self, window: &Window) -> Option<Windows> {
        let (size, step) = match &window.shape {
            WindowShape::Tumbling(size) => (size, size),
            WindowShape::Hopping(size, step) => (size, step),
            WindowShape::Sliding(size) | WindowShape::Session(size) => {
                if let Some(zone) = &window.zone {
                    self.report(
                        Diagnostic::new(
                            zone.span.clone(),
                            "windows that records make do not begin with days",
                        )
                        .help("leave `zone` out, or use tumbling or hopping windows of whole days"),
                    );
                    return None;
                }
                return Some(match window.shape {
                    WindowShape::Sliding(_) => Windows::Sliding { size_ms: size.value },
                    _ => Windows::Session { gap_ms: size.value },
                });
            }
        };
        if size.value / step.value > OVERLAP_MAX {
            let message = format!("every record would be in {} windows", size.value / step.value);
            let help = format!("at most {OVERLAP_MAX}: let windows begin further apart, or use `sliding`");
            self.report(Diagnostic::new(step.span.clone(), message).help(help));
            return None;
        }
        let Some(zone) = &window.zone else {
            return Some(Windows::Fixed { size_ms: size.value, step_ms: step.value });
        };
        let found = TimeZone::get(&zone.value).ok();
        if found.is_none() {
            self.report(
                Diagnostic::new(zone.span.clone(), format!("`{}` is not a time zone", zone.value))
                    .help("write an IANA name such as \"Asia/Seoul\" or \"UTC\""),
            );
        }
        let days =
            |length: &Spanned<i64>| (length.value % MS_PER_DAY == 0).then_some(length.value / MS_PER_DAY);
        let (Some(days), Some(step)) = (days(size), days(step)) else {
            let wrong = if days(size).is_none() { size } else { step };
            self.report(
                Diagnostic::new(wrong.span.clone(), "only windows of whole days have a zone")
                    .help("write whole days, such as `tumbling = \"1d\"`, or leave `zone` out"),
            );
            return None;
        };
        Some(Windows::Days { days, step, zone: found? })
    }
}

/// The columns of a table's result; window bounds also under their names in expressions.
pub(super) fn with_aliases(columns: &[Column], windowed: bool, group_columns: usize) -> Scope {
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
