//! The names an expression may use, and the slots behind them.
//!
//! A stream's scope holds its columns; a join's scope holds two sides, each under its node's name. What must always hold: a name
//! resolves to exactly one slot, or loading fails with the names that were meant.

use std::ops::Range;

use super::{
    super::{
        suggest::did_you_mean,
        value::{Column, ColumnType},
    },
    ExpressionError, Result,
};

/// Which of the two rows of an [`EvalContext`](super::compile::EvalContext) a column is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The row itself; the left side of a join; the group key and window of a table.
    Left,
    /// The right side of a join; the aggregates of a table.
    Right,
}

/// Where a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The row.
    pub side: Side,
    /// The index in it.
    pub index: usize,
}

#[derive(Clone, Debug)]
struct ScopeColumn {
    qualifier: Option<String>,
    column: Column,
    slot: Slot,
}

/// The columns that an expression sees.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    columns: Vec<ScopeColumn>,
}

impl Scope {
    /// The columns of one row; they may be written with the node's name before them, too.
    pub fn of(qualifier: Option<&str>, columns: &[Column]) -> Self {
        let mut scope = Scope::default();
        scope.add(qualifier, columns, Side::Left);
        scope
    }

    /// Adds the columns of a row.
    pub fn add(&mut self, qualifier: Option<&str>, columns: &[Column], side: Side) {
        for (index, column) in columns.iter().enumerate() {
            self.columns.push(ScopeColumn {
                qualifier: qualifier.map(str::to_owned),
                column: column.clone(),
                slot: Slot { side, index },
            });
        }
    }

    /// Adds a further name of a slot.
    pub fn add_alias(&mut self, name: &str, column_type: ColumnType, slot: Slot) {
        self.columns.push(ScopeColumn { qualifier: None, column: Column::new(name, column_type), slot });
    }

    /// The names in the scope, for messages.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|entry| entry.column.name.as_str())
    }

    /// The slot and type of a name.
    pub fn resolve(
        &self,
        qualifier: Option<&str>,
        name: &str,
        span: Range<usize>,
    ) -> Result<(Slot, ColumnType)> {
        let mut found = self.columns.iter().filter(|entry| {
            entry.column.name == name && (qualifier.is_none() || entry.qualifier.as_deref() == qualifier)
        });
        match (found.next(), found.next()) {
            (Some(entry), None) => Ok((entry.slot, entry.column.column_type)),
            (Some(first), Some(second)) => {
                let write = |entry: &ScopeColumn| {
                    format!("`{}.{name}`", entry.qualifier.as_deref().unwrap_or_default())
                };
                Err(ExpressionError::new(span, format!("column `{name}` is on both sides of the join"))
                    .help(format!("write {} or {}", write(first), write(second))))
            }
            (None, _) => Err(self.unknown(qualifier, name, span)),
        }
    }

    fn unknown(&self, qualifier: Option<&str>, name: &str, span: Range<usize>) -> ExpressionError {
        if let Some(qualifier) = qualifier {
            let known: Vec<&str> = {
                let mut list: Vec<&str> =
                    self.columns.iter().filter_map(|entry| entry.qualifier.as_deref()).collect();
                list.dedup();
                list
            };
            if !known.contains(&qualifier) {
                let error = ExpressionError::new(span, format!("`{qualifier}` is not an input of this node"));
                return match did_you_mean(qualifier, known.iter().copied()) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("its inputs are: {}", list(known.into_iter()))),
                };
            }
            let side = || {
                self.columns
                    .iter()
                    .filter(|entry| entry.qualifier.as_deref() == Some(qualifier))
                    .map(|entry| entry.column.name.as_str())
            };
            let error = ExpressionError::new(span, format!("`{qualifier}` has no column `{name}`"));
            return match did_you_mean(name, side()) {
                Some(near) => error.help(format!("did you mean `{qualifier}.{near}`?")),
                None => error.help(format!("it has: {}", list(side()))),
            };
        }
        let error = ExpressionError::new(span, format!("unknown column `{name}`"));
        match did_you_mean(name, self.names()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None if self.columns.is_empty() => error.help("there are no columns here, only constants"),
            None => error.help(format!("the columns here are: {}", list(self.names()))),
        }
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
