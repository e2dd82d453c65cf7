//! Typed expressions to closures over slots: what runs for every record.
//!
//! A value closure returns a [`Datum`]; a condition has a closure of its own that returns three-valued truth without making a datum.
//! Comparisons of a column with a constant, the common case, are closures without an inner call. What must always hold: `and`, `or`,
//! `case`, `coalesce` evaluate no more than they need; an error is kept in the context and reported by the call.

use std::{cell::Cell, fmt, sync::Arc};

use smallvec::SmallVec;

use super::{
    super::{
        json::{read_plain, write_plain},
        value::{DataType, Datum},
    },
    EvalError,
    like::LikePattern,
    number,
    scope::{Side, Slot},
    typed::{Arithmetic, Comparison, Node, Typed},
};

/// The rows under evaluation.
pub(crate) struct EvalContext<'a> {
    left: &'a [Datum],
    right: &'a [Datum],
    error: Cell<Option<EvalError>>,
}

impl<'a> EvalContext<'a> {
    /// Takes the rows of the scope's two sides.
    pub(crate) fn new(left: &'a [Datum], right: &'a [Datum]) -> Self {
        Self { left, right, error: Cell::new(None) }
    }

    #[inline]
    fn datum(&self, slot: Slot) -> &'a Datum {
        match slot.side {
            Side::Left => &self.left[slot.index],
            Side::Right => &self.right[slot.index],
        }
    }

    fn fail(&self, error: EvalError) -> Datum {
        self.error.set(Some(self.error.get().unwrap_or(error)));
        Datum::Null
    }

    #[inline]
    fn finish<T>(&self, value: T) -> Result<T, EvalError> {
        match self.error.get() {
            None => Ok(value),
            Some(error) => Err(error),
        }
    }
}

type Value = Box<dyn Fn(&EvalContext<'_>) -> Datum + Send + Sync>;
type Truth = Box<dyn Fn(&EvalContext<'_>) -> Option<bool> + Send + Sync>;

/// A compiled expression.
pub struct Expression {
    typed: Typed,
    run: Value,
}

impl Expression {
    /// Compiles.
    pub fn new(typed: Typed) -> Self {
        let run = value(&typed);
        Self { typed, run }
    }

    /// The typed tree it was made from.
    pub fn typed(&self) -> &Typed {
        &self.typed
    }

    /// Its value on a row (or on the two rows of a join).
    #[inline]
    pub fn evaluate(&self, left: &[Datum], right: &[Datum]) -> Result<Datum, EvalError> {
        let context = EvalContext::new(left, right);
        let value = (self.run)(&context);
        context.finish(value)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.typed)
    }
}

/// A compiled condition.
pub struct Predicate {
    typed: Typed,
    run: Truth,
}

impl Predicate {
    /// Compiles an expression of type bool.
    pub fn new(typed: Typed) -> Self {
        let run = condition(&typed);
        Self { typed, run }
    }

    /// The typed tree it was made from.
    pub fn typed(&self) -> &Typed {
        &self.typed
    }

    /// Whether it is true of the rows; NULL is not true.
    #[inline]
    pub fn holds(&self, left: &[Datum], right: &[Datum]) -> Result<bool, EvalError> {
        let context = EvalContext::new(left, right);
        let value = (self.run)(&context) == Some(true);
        context.finish(value)
    }
}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.typed)
    }
}

/// An expression of which only matters whether it is true: as in SQLite, what stands behind an `and` is not looked at when what is
/// before it is NULL, and so cannot fail.
fn condition(typed: &Typed) -> Truth {
    match &typed.node {
        Node::And(a, b) => {
            let (a, b) = (condition(a), condition(b));
            Box::new(move |context| if a(context) == Some(true) { b(context) } else { Some(false) })
        }
        Node::Or(a, b) => {
            let (a, b) = (condition(a), condition(b));
            Box::new(move |context| if a(context) == Some(true) { Some(true) } else { b(context) })
        }
        _ => truth(typed),
    }
}

fn is_condition(node: &Node) -> bool {
    matches!(
        node,
        Node::Compare(..)
            | Node::Same { .. }
            | Node::IsNull { .. }
            | Node::And(..)
            | Node::Or(..)
            | Node::Not(_)
            | Node::In { .. }
            | Node::Like { .. }
    )
}

fn values(list: &[Typed]) -> Vec<Value> {
    list.iter().map(value).collect()
}

fn value(typed: &Typed) -> Value {
    if is_condition(&typed.node) {
        let test = truth(typed);
        return Box::new(move |context| test(context).into());
    }
    match &typed.node {
        Node::Constant(datum) => {
            let datum = datum.clone();
            Box::new(move |_| datum.clone())
        }
        Node::Column(slot, _) => {
            let slot = *slot;
            Box::new(move |context| context.datum(slot).clone())
        }
        Node::Arithmetic(op, a, b) => arithmetic(*op, a, b),
        Node::Negate(a) => {
            let a = value(a);
            Box::new(move |context| match a(context) {
                Datum::Duration(ms) => match ms.checked_neg() {
                    Some(ms) => Datum::Duration(ms),
                    None => context.fail(EvalError::IntegerOverflow),
                },
                datum => number::negate(&datum),
            })
        }
        Node::Concat(a, b) => concat(a, b),
        Node::Case { branches, otherwise } => {
            let branches: Vec<(Truth, Value)> =
                branches.iter().map(|(when, then)| (condition(when), value(then))).collect();
            let otherwise = otherwise.as_deref().map(value);
            Box::new(move |context| {
                for (when, then) in &branches {
                    if when(context) == Some(true) {
                        return then(context);
                    }
                }
                otherwise.as_ref().map_or(Datum::Null, |otherwise| otherwise(context))
            })
        }
        Node::Coalesce(list) => {
            let list = values(list);
            Box::new(move |context| {
                list.iter().map(|part| part(context)).find(|datum| !datum.is_null()).unwrap_or_default()
            })
        }
        Node::NullIf(a, b) => {
            let (a, b) = (value(a), value(b));
            Box::new(move |context| {
                let first = a(context);
                if first.compare(&b(context)).is_some_and(std::cmp::Ordering::is_eq) {
                    Datum::Null
                } else {
                    first
                }
            })
        }
        Node::Cast(a, target) => {
            let (a, target) = (value(a), *target);
            Box::new(move |context| cast(a(context), target))
        }
        Node::Call(overload, args) => {
            let constants: Vec<Option<&Datum>> = args.iter().map(Typed::constant).collect();
            // The checker has bound these constants once already and refused the call if that failed.
            let Ok(body) = (overload.signature.bind)(&constants) else {
                return Box::new(|_| Datum::Null);
            };
            let args = values(args);
            let strict = overload.signature.strict;
            Box::new(move |context| {
                let mut given: SmallVec<[Datum; 3]> = SmallVec::new();
                for arg in &args {
                    let datum = arg(context);
                    if strict && datum.is_null() {
                        return Datum::Null;
                    }
                    given.push(datum);
                }
                body(&given).unwrap_or_else(|error| context.fail(error))
            })
        }
        // Conditions were taken above.
        _ => Box::new(|_| Datum::Null),
    }
}

fn arithmetic(op: Arithmetic, a: &Typed, b: &Typed) -> Value {
    let plain = [a, b].iter().all(|side| side.data_type.is_none_or(DataType::is_numeric));
    let run: fn(&Datum, &Datum) -> Datum = match op {
        Arithmetic::Add => number::add,
        Arithmetic::Subtract => number::subtract,
        Arithmetic::Multiply => number::multiply,
        Arithmetic::Divide => number::divide,
        Arithmetic::Remainder => number::remainder,
    };
    let (a, b) = (value(a), value(b));
    if plain {
        return Box::new(move |context| {
            let left = a(context);
            if left.is_null() { Datum::Null } else { run(&left, &b(context)) }
        });
    }
    Box::new(move |context| {
        let (left, right) = (a(context), b(context));
        time_arithmetic(op, &left, &right).unwrap_or_else(|error| context.fail(error))
    })
}

/// Arithmetic of moments and durations, which does not go on as doubles: a moment beyond 64 bits is an error.
fn time_arithmetic(op: Arithmetic, a: &Datum, b: &Datum) -> Result<Datum, EvalError> {
    use Datum::{Duration, Timestamp};
    let overflow = EvalError::IntegerOverflow;
    Ok(match (op, a, b) {
        (_, Datum::Null, _) | (_, _, Datum::Null) => Datum::Null,
        (Arithmetic::Add, Timestamp(x), Duration(y)) | (Arithmetic::Add, Duration(x), Timestamp(y)) => {
            Timestamp(x.checked_add(*y).ok_or(overflow)?)
        }
        (Arithmetic::Subtract, Timestamp(x), Duration(y)) => Timestamp(x.checked_sub(*y).ok_or(overflow)?),
        (Arithmetic::Subtract, Timestamp(x) | Duration(x), Timestamp(y) | Duration(y)) => {
            Duration(x.checked_sub(*y).ok_or(overflow)?)
        }
        (Arithmetic::Add, Duration(x), Duration(y)) => Duration(x.checked_add(*y).ok_or(overflow)?),
        (Arithmetic::Multiply, Duration(x), y) | (Arithmetic::Multiply, y, Duration(x)) => match y {
            Datum::Int(y) => Duration(x.checked_mul(*y).ok_or(overflow)?),
            // An integer that went beyond 64 bits.
            _ => return Err(overflow),
        },
        (Arithmetic::Divide, Duration(_), Datum::Int(0)) => Datum::Null,
        (Arithmetic::Divide, Duration(x), Datum::Int(y)) => Duration(x.checked_div(*y).ok_or(overflow)?),
        _ => Datum::Null,
    })
}

/// A chain of `||` is one closure that writes all parts into one buffer.
fn concat(a: &Typed, b: &Typed) -> Value {
    let mut parts = Vec::new();
    collect_concat(a, &mut parts);
    collect_concat(b, &mut parts);
    Box::new(move |context| {
        let mut out = Vec::with_capacity(32);
        for part in &parts {
            let datum = part(context);
            if datum.is_null() {
                return Datum::Null;
            }
            write_plain(&datum, &mut out);
        }
        into_text(out)
    })
}

fn collect_concat(typed: &Typed, parts: &mut Vec<Value>) {
    if let Node::Concat(a, b) = &typed.node {
        collect_concat(a, parts);
        collect_concat(b, parts);
    } else {
        parts.push(value(typed));
    }
}

fn into_text(bytes: Vec<u8>) -> Datum {
    // Datums write UTF-8 only.
    Datum::Text(Arc::from(String::from_utf8(bytes).unwrap_or_default()))
}

fn cast(datum: Datum, target: DataType) -> Datum {
    match (datum, target) {
        (Datum::Null, _) => Datum::Null,
        (Datum::Text(text), DataType::Int) => Datum::Int(number::parse_integer(&text)),
        (Datum::Text(text), DataType::Float) => Datum::float(number::parse_real(&text)),
        (Datum::Text(text), DataType::Bool) => match text.to_ascii_lowercase().as_str() {
            "true" => Datum::Bool(true),
            "false" => Datum::Bool(false),
            _ => Datum::Null,
        },
        (Datum::Text(text), target) => read_plain(target, &text).unwrap_or_default(),
        (datum, DataType::Text) => {
            let mut out = Vec::new();
            write_plain(&datum, &mut out);
            into_text(out)
        }
        (Datum::Bool(value), DataType::Int) => Datum::Int(i64::from(value)),
        (Datum::Timestamp(ms) | Datum::Duration(ms), DataType::Int) => Datum::Int(ms),
        (datum, DataType::Float) => number::real(&datum).map_or(Datum::Null, Datum::float),
        (datum, target) => {
            let Some(int) = number::integer(&datum) else { return Datum::Null };
            match target {
                DataType::Int => Datum::Int(int),
                DataType::Bool => Datum::Bool(int != 0),
                DataType::Timestamp => Datum::Timestamp(int),
                DataType::Duration => Datum::Duration(int),
                _ => Datum::Null,
            }
        }
    }
}

fn truth(typed: &Typed) -> Truth {
    match &typed.node {
        Node::Constant(datum) => {
            let answer = if let Datum::Bool(value) = datum { Some(*value) } else { None };
            Box::new(move |_| answer)
        }
        Node::Column(slot, _) => {
            let slot = *slot;
            Box::new(
                move |context| if let Datum::Bool(value) = context.datum(slot) { Some(*value) } else { None },
            )
        }
        Node::Compare(op, a, b) => comparison(*op, a, b),
        Node::Same { negated, left, right } => {
            let (negated, left, right) = (*negated, value(left), value(right));
            Box::new(move |context| Some(left(context).same(&right(context)) != negated))
        }
        Node::IsNull { negated, operand } => {
            let negated = *negated;
            if let Node::Column(slot, _) = operand.node {
                return Box::new(move |context| Some(context.datum(slot).is_null() != negated));
            }
            let operand = value(operand);
            Box::new(move |context| Some(operand(context).is_null() != negated))
        }
        Node::And(a, b) => {
            let (a, b) = (truth(a), truth(b));
            Box::new(move |context| match a(context) {
                Some(false) => Some(false),
                Some(true) => b(context),
                None => {
                    if b(context) == Some(false) {
                        Some(false)
                    } else {
                        None
                    }
                }
            })
        }
        Node::Or(a, b) => {
            let (a, b) = (truth(a), truth(b));
            Box::new(move |context| match a(context) {
                Some(true) => Some(true),
                Some(false) => b(context),
                None => {
                    if b(context) == Some(true) {
                        Some(true)
                    } else {
                        None
                    }
                }
            })
        }
        Node::Not(a) => {
            let a = truth(a);
            Box::new(move |context| a(context).map(|value| !value))
        }
        Node::In { negated, operand, list } => {
            let (negated, operand, list) = (*negated, value(operand), values(list));
            Box::new(move |context| {
                let wanted = operand(context);
                if wanted.is_null() {
                    return None;
                }
                let mut unknown = false;
                for candidate in &list {
                    match wanted.compare(&candidate(context)) {
                        Some(order) if order.is_eq() => return Some(!negated),
                        Some(_) => {}
                        None => unknown = true,
                    }
                }
                if unknown { None } else { Some(negated) }
            })
        }
        Node::Like { negated, operand, pattern, escape } => like(*negated, operand, pattern, *escape),
        _ => {
            let run = value(typed);
            Box::new(move |context| if let Datum::Bool(value) = run(context) { Some(value) } else { None })
        }
    }
}

fn like(negated: bool, operand: &Typed, pattern: &Typed, escape: Option<char>) -> Truth {
    let run = value(operand);
    if let Some(constant) = pattern.constant() {
        let Datum::Text(pattern) = constant else { return Box::new(|_| None) };
        let pattern = LikePattern::new(pattern, escape);
        return Box::new(move |context| match run(context) {
            Datum::Text(text) => Some(pattern.matches(&text) != negated),
            _ => None,
        });
    }
    let pattern = value(pattern);
    Box::new(move |context| match (run(context), pattern(context)) {
        (Datum::Text(text), Datum::Text(pattern)) => {
            Some(LikePattern::new(&pattern, escape).matches(&text) != negated)
        }
        _ => None,
    })
}

fn comparison(op: Comparison, a: &Typed, b: &Typed) -> Truth {
    match (&a.node, &b.node) {
        (Node::Column(slot, _), Node::Constant(constant)) => {
            let slot = *slot;
            match constant {
                Datum::Int(wanted) => {
                    let wanted = *wanted;
                    Box::new(move |context| match context.datum(slot) {
                        Datum::Int(value) => Some(op.holds(value.cmp(&wanted))),
                        other => other.compare(&Datum::Int(wanted)).map(|order| op.holds(order)),
                    })
                }
                Datum::Text(wanted) => {
                    let wanted = wanted.clone();
                    Box::new(move |context| match context.datum(slot) {
                        // Equality of slices looks at the lengths first; an order has to read.
                        Datum::Text(value) => Some(match op {
                            Comparison::Equal => **value == *wanted,
                            Comparison::NotEqual => **value != *wanted,
                            _ => op.holds(value.as_bytes().cmp(wanted.as_bytes())),
                        }),
                        _ => None,
                    })
                }
                constant => {
                    let constant = constant.clone();
                    Box::new(move |context| {
                        context.datum(slot).compare(&constant).map(|order| op.holds(order))
                    })
                }
            }
        }
        (Node::Column(left, _), Node::Column(right, _)) => {
            let (left, right) = (*left, *right);
            Box::new(move |context| {
                context.datum(left).compare(context.datum(right)).map(|order| op.holds(order))
            })
        }
        _ => {
            let (a, b) = (value(a), value(b));
            // With NULL on the left the right side is not needed, and SQLite does not evaluate it.
            Box::new(move |context| {
                let left = a(context);
                if left.is_null() {
                    return None;
                }
                left.compare(&b(context)).map(|order| op.holds(order))
            })
        }
    }
}
