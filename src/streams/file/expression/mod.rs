//! SQL expressions of topology files: parsed, bound to slots, typed, folded and compiled when the file is loaded.
//!
//! Order of an expression's life: [`parse`](mod@parse) (sqlparser, with SQLite's operator precedence) -> [`check`](mod@check) (names to slots, types with
//! NULL-ability, constants folded) -> [`compile`] (closures over slots). Aggregates of a table's `select` are taken out by the
//! checker and live in [`aggregate`]. What must always hold: an expression that loads can be evaluated on every row of its
//! scope, gives the same answer each time, and answers as SQLite does.

pub(crate) mod aggregate;
pub mod check;
pub(crate) mod compile;
pub(crate) mod function;
pub(crate) mod like;
pub(crate) mod number;
pub(crate) mod parse;
pub(crate) mod rules;
pub(crate) mod scope;
pub(crate) mod typed;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod sqlite_property;

use std::{fmt, ops::Range};

pub(crate) use aggregate::{Aggregate, AggregateState, Taken};
pub(crate) use check::check_select;
pub use check::{check, check_boolean};
pub use compile::{Expression, Predicate};
pub use scope::Scope;
pub(crate) use scope::{Side, Slot};
pub(crate) use typed::Typed;

/// A mistake in an expression, with its place in the expression's text (bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// What is wrong.
    pub message: String,
    /// Where, as bytes of the expression.
    pub span: Range<usize>,
    /// What to do about it, where that is known.
    pub help: Option<String>,
}

impl ExpressionError {
    /// A mistake without advice.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span, help: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {}..{})", self.message, self.span.start, self.span.end)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ExpressionError {}

/// Result of the loading steps.
pub(crate) type Result<T, E = ExpressionError> = std::result::Result<T, E>;

/// Why an expression has no value on one record; the record goes the way of bad records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalError {
    /// `abs` of the smallest integer, or a moment or duration beyond 64 bits of milliseconds, or a `sum` of integers beyond 64 bits.
    IntegerOverflow,
    /// `count(distinct …)` met more values than its bound allows.
    TooManyDistinct,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::IntegerOverflow => f.write_str("integer overflow"),
            EvalError::TooManyDistinct => write!(
                f,
                "count(distinct …) met more than {} values under one key; group by a finer key",
                aggregate::DISTINCT_MAX
            ),
        }
    }
}

impl std::error::Error for EvalError {}
