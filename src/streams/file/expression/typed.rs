//! The typed expression tree: what the checker makes and the compiler reads.
//!
//! Names are slots, literals have types, `CASE x WHEN` and `BETWEEN` are spelled out. Its [`Display`](std::fmt::Display) is the canonical text of
//! the expression: equal meaning by construction of the tree gives equal text, so plans compare it. What must always hold: every
//! node's type is known, except of a bare NULL, which the checker lets nobody keep.

use std::{fmt, ops::Range};

use super::{
    super::value::{ColumnType, DataType, Datum},
    function::Overload,
    scope::{Side, Slot},
};

/// An expression with its type.
#[derive(Clone, Debug)]
pub struct Typed {
    /// What it is.
    pub node: Node,
    /// Its type; `None` for a NULL whose type nothing tells.
    pub data_type: Option<DataType>,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// Where it stands in the text (bytes).
    pub span: Range<usize>,
}

/// The kinds of expression.
#[derive(Clone, Debug)]
pub enum Node {
    /// A value known at load.
    Constant(Datum),
    /// A column of the scope; the name is for people.
    Column(Slot, String),
    /// Arithmetic.
    Arithmetic(Arithmetic, Box<Typed>, Box<Typed>),
    /// `-x`.
    Negate(Box<Typed>),
    /// `a || b`.
    Concat(Box<Typed>, Box<Typed>),
    /// A comparison; NULL when a side is.
    Compare(Comparison, Box<Typed>, Box<Typed>),
    /// `a IS [NOT] DISTINCT FROM b`, `x IS TRUE`: never NULL. True when the sides are the same (`negated`: when they are not).
    Same {
        /// Answer the opposite.
        negated: bool,
        /// One side.
        left: Box<Typed>,
        /// The other.
        right: Box<Typed>,
    },
    /// `x IS [NOT] NULL`.
    IsNull {
        /// `IS NOT NULL`.
        negated: bool,
        /// The operand.
        operand: Box<Typed>,
    },
    /// `a AND b`.
    And(Box<Typed>, Box<Typed>),
    /// `a OR b`.
    Or(Box<Typed>, Box<Typed>),
    /// `NOT a`.
    Not(Box<Typed>),
    /// `x [NOT] IN (…)`.
    In {
        /// `NOT IN`.
        negated: bool,
        /// The operand.
        operand: Box<Typed>,
        /// The candidates.
        list: Vec<Typed>,
    },
    /// `x [NOT] LIKE pattern [ESCAPE c]`.
    Like {
        /// `NOT LIKE`.
        negated: bool,
        /// The text.
        operand: Box<Typed>,
        /// The pattern.
        pattern: Box<Typed>,
        /// The escape character.
        escape: Option<char>,
    },
    /// `CASE WHEN … THEN … ELSE … END`.
    Case {
        /// Conditions with their results.
        branches: Vec<(Typed, Typed)>,
        /// The `ELSE`; NULL when left out.
        otherwise: Option<Box<Typed>>,
    },
    /// `coalesce(…)`.
    Coalesce(Vec<Typed>),
    /// `nullif(a, b)`.
    NullIf(Box<Typed>, Box<Typed>),
    /// `cast(x as type)`.
    Cast(Box<Typed>, DataType),
    /// A function of the table.
    Call(Overload, Vec<Typed>),
}

/// Arithmetic operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
}

impl Arithmetic {
    /// The operator as written.
    pub fn sign(self) -> &'static str {
        match self {
            Arithmetic::Add => "+",
            Arithmetic::Subtract => "-",
            Arithmetic::Multiply => "*",
            Arithmetic::Divide => "/",
            Arithmetic::Remainder => "%",
        }
    }
}

/// Comparison operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    /// The operator as written.
    pub fn sign(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "<>",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        }
    }

    /// Whether the operator holds of that order of its sides.
    #[inline]
    pub fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Typed {
    /// The constant that this is.
    pub fn constant(&self) -> Option<&Datum> {
        if let Node::Constant(datum) = &self.node { Some(datum) } else { None }
    }

    /// The column type; a bare NULL counts as text, which callers refuse before they ask.
    pub fn column_type(&self) -> ColumnType {
        ColumnType { data_type: self.data_type.unwrap_or(DataType::Text), nullable: self.nullable }
    }

    /// Every part of the expression, itself first.
    pub fn walk(&self, visit: &mut impl FnMut(&Typed)) {
        visit(self);
        match &self.node {
            Node::Constant(_) | Node::Column(..) => {}
            Node::Negate(a) | Node::Not(a) | Node::Cast(a, _) | Node::IsNull { operand: a, .. } => {
                a.walk(visit)
            }
            Node::Arithmetic(_, a, b)
            | Node::Concat(a, b)
            | Node::Compare(_, a, b)
            | Node::And(a, b)
            | Node::Or(a, b)
            | Node::NullIf(a, b)
            | Node::Same { left: a, right: b, .. }
            | Node::Like { operand: a, pattern: b, .. } => {
                a.walk(visit);
                b.walk(visit);
            }
            Node::In { operand, list, .. } => {
                operand.walk(visit);
                list.iter().for_each(|part| part.walk(visit));
            }
            Node::Case { branches, otherwise } => {
                for (when, then) in branches {
                    when.walk(visit);
                    then.walk(visit);
                }
                if let Some(otherwise) = otherwise {
                    otherwise.walk(visit);
                }
            }
            Node::Coalesce(list) | Node::Call(_, list) => list.iter().for_each(|part| part.walk(visit)),
        }
    }

    /// The slots that the expression reads, each once, in order of first use.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::new();
        self.walk(&mut |part| {
            if let Node::Column(slot, _) = &part.node
                && !slots.contains(slot)
            {
                slots.push(*slot);
            }
        });
        slots
    }

    /// The same expression with every column moved to another slot.
    #[must_use]
    pub fn map_slots(mut self, map: &impl Fn(Slot) -> Slot) -> Typed {
        self.replace(&mut |part| {
            if let Node::Column(slot, _) = &mut part.node {
                *slot = map(*slot);
            }
        });
        self
    }

    /// Changes every part in place, inner parts first.
    pub fn replace(&mut self, change: &mut impl FnMut(&mut Typed)) {
        match &mut self.node {
            Node::Constant(_) | Node::Column(..) => {}
            Node::Negate(a) | Node::Not(a) | Node::Cast(a, _) | Node::IsNull { operand: a, .. } => {
                a.replace(change)
            }
            Node::Arithmetic(_, a, b)
            | Node::Concat(a, b)
            | Node::Compare(_, a, b)
            | Node::And(a, b)
            | Node::Or(a, b)
            | Node::NullIf(a, b)
            | Node::Same { left: a, right: b, .. }
            | Node::Like { operand: a, pattern: b, .. } => {
                a.replace(change);
                b.replace(change);
            }
            Node::In { operand, list, .. } => {
                operand.replace(change);
                list.iter_mut().for_each(|part| part.replace(change));
            }
            Node::Case { branches, otherwise } => {
                for (when, then) in branches {
                    when.replace(change);
                    then.replace(change);
                }
                if let Some(otherwise) = otherwise {
                    otherwise.replace(change);
                }
            }
            Node::Coalesce(list) | Node::Call(_, list) => {
                list.iter_mut().for_each(|part| part.replace(change))
            }
        }
        change(self);
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, list: &[Typed]) -> fmt::Result {
    for (index, part) in list.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{part}")?;
    }
    Ok(())
}

fn write_constant(f: &mut fmt::Formatter<'_>, datum: &Datum) -> fmt::Result {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut plain = Vec::new();
    super::super::json::write_plain(datum, &mut plain);
    let plain = String::from_utf8_lossy(&plain);
    match datum {
        Datum::Null => f.write_str("null"),
        Datum::Text(text) => f.write_str(&quoted(text)),
        Datum::Timestamp(_) => write!(f, "timestamp {}", quoted(&plain)),
        Datum::Duration(ms) => write!(f, "interval {}", quoted(&super::super::time::format_duration(*ms))),
        Datum::Uuid(_) => write!(f, "cast({} as uuid)", quoted(&plain)),
        Datum::Json(_) => write!(f, "cast({} as json)", quoted(&plain)),
        Datum::Float(value) => write!(f, "{value:?}"),
        Datum::Int(_) | Datum::Bool(_) => f.write_str(&plain),
    }
}

impl fmt::Display for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "not " } else { "" };
        match &self.node {
            Node::Constant(datum) => write_constant(f, datum),
            // The side is part of the meaning: in a join both may have the name.
            Node::Column(Slot { side: Side::Left, .. }, name) => f.write_str(name),
            Node::Column(Slot { side: Side::Right, .. }, name) => write!(f, "{name}"),
            Node::Arithmetic(op, a, b) => write!(f, "({a} {} {b})", op.sign()),
            Node::Negate(a) => write!(f, "(-{a})"),
            Node::Concat(a, b) => write!(f, "({a} || {b})"),
            Node::Compare(op, a, b) => write!(f, "({a} {} {b})", op.sign()),
            Node::Same { negated, left, right } => {
                write!(f, "({left} is {}distinct from {right})", if *negated { "" } else { "not " })
            }
            Node::IsNull { negated, operand } => write!(f, "({operand} is {}null)", not(negated)),
            Node::And(a, b) => write!(f, "({a} and {b})"),
            Node::Or(a, b) => write!(f, "({a} or {b})"),
            Node::Not(a) => write!(f, "(not {a})"),
            Node::In { negated, operand, list } => {
                write!(f, "({operand} {}in (", not(negated))?;
                write_list(f, list)?;
                f.write_str("))")
            }
            Node::Like { negated, operand, pattern, escape } => {
                write!(f, "({operand} {}like {pattern}", not(negated))?;
                if let Some(escape) = escape {
                    write!(
                        f,
                        " escape '{}'",
                        if *escape == '\'' { "''".to_owned() } else { escape.to_string() }
                    )?;
                }
                f.write_str(")")
            }
            Node::Case { branches, otherwise } => {
                f.write_str("case")?;
                for (when, then) in branches {
                    write!(f, " when {when} then {then}")?;
                }
                if let Some(otherwise) = otherwise {
                    write!(f, " else {otherwise}")?;
                }
                f.write_str(" end")
            }
            Node::Coalesce(list) => {
                f.write_str("coalesce(")?;
                write_list(f, list)?;
                f.write_str(")")
            }
            Node::NullIf(a, b) => write!(f, "nullif({a}, {b})"),
            Node::Cast(a, data_type) => write!(f, "cast({a} as {data_type})"),
            Node::Call(overload, list) => {
                write!(f, "{}(", overload.function.name)?;
                write_list(f, list)?;
                f.write_str(")")
            }
        }
    }
}
