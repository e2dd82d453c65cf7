//! Aggregates of a table: one state per aggregate and key, with init, add, merge, result, and a form that stores can keep.
//!
//! `sum` and `avg` follow SQLite (exact integers, compensated doubles, an error when integers overflow). `first` and `last` go by record
//! time. What must always hold: saving and loading a state loses nothing; where [`Aggregate::mergeable`], folding records into several
//! states and merging them gives the state of folding them into one.

use std::{cmp::Ordering, collections::BTreeSet, fmt, ops::Range};

use super::{
    super::{
        json::{read_datum, write_datum},
        value::{ColumnType, DataType, Datum},
    },
    EvalError, ExpressionError, Result,
    compile::{Expression, Predicate},
    number,
    typed::{Node, Typed},
};

/// The most distinct values that `count(distinct …)` keeps under one key; one more is an error, never an estimate.
pub(crate) const DISTINCT_MAX: usize = 100_000;

/// The most values that `top(n, …)` lists.
pub(crate) const TOP_MAX: usize = 1_000;

/// Which aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregateKind {
    /// `count(*)`, `count(x)`, `count(distinct x)`.
    Count,
    /// `sum(x)`.
    Sum,
    /// `min(x)`.
    Min,
    /// `max(x)`.
    Max,
    /// `avg(x)`.
    Avg,
    /// `first(x)`.
    First,
    /// `last(x)`.
    Last,
    /// `top(n, x, by)`.
    Top,
}

impl AggregateKind {
    /// The names, for messages and the reference.
    pub const NAMES: [&'static str; 8] = ["count", "sum", "min", "max", "avg", "first", "last", "top"];

    /// The aggregate of that name, in lower case.
    pub fn find(name: &str) -> Option<Self> {
        use AggregateKind::{Avg, Count, First, Last, Max, Min, Sum, Top};
        let kinds = [Count, Sum, Min, Max, Avg, First, Last, Top];
        Self::NAMES.iter().position(|known| *known == name).map(|at| kinds[at])
    }
}

/// Aggregates for the reference: how they are written, what they do.
#[cfg(test)]
pub(crate) const REFERENCE: &[(&str, &str)] = &[
    ("count(*) -> int", "Records."),
    ("count(T) -> int", "Records in which the value is not NULL."),
    (
        "count(distinct T) -> int",
        "Different values, NULL not counted. Exact up to 100000 values under one key; one more makes the record bad, it never becomes an \
         estimate.",
    ),
    (
        "sum(number) -> int? or float?",
        "The sum; NULL without a value. A sum of integers beyond 64 bits makes the record bad. Doubles are summed with compensation, as in \
         SQLite. Also of durations.",
    ),
    ("min(T) -> T?", "The smallest value; NULL without one."),
    ("max(T) -> T?", "The greatest value; NULL without one."),
    ("avg(number) -> float?", "The mean; NULL without a value."),
    (
        "first(T) -> T?",
        "The value of the record with the smallest time, of equal times the first to arrive; NULLs are passed over.",
    ),
    (
        "last(T) -> T?",
        "The value of the record with the greatest time, of equal times the last to arrive; NULLs are passed over.",
    ),
    (
        "top(n, T, U) -> json",
        "The n different values (n from 1 to 1000, a number written out) whose greatest `U` is greatest, as a list of `{\"value\": …, \"by\": …}`, \
         the greatest first, of equal ones the smaller value; NULLs are passed over. A value counts with its greatest `U`, so that running \
         results that grow may be ranked.",
    ),
];

/// An aggregate as a file declares it, compiled.
#[derive(Debug)]
pub struct Aggregate {
    kind: AggregateKind,
    distinct: bool,
    argument: Option<Expression>,
    /// Of `top`: what ranks the values, and how many are listed.
    rank: Option<(Expression, usize)>,
    filter: Option<Predicate>,
    canonical: String,
    column_type: ColumnType,
}

impl Aggregate {
    /// Checks the argument's type and compiles.
    pub fn new(
        kind: AggregateKind,
        distinct: bool,
        mut args: Vec<Typed>,
        filter: Option<Typed>,
        span: Range<usize>,
    ) -> Result<Self> {
        let name = AggregateKind::NAMES[kind as usize];
        let count_all = kind == AggregateKind::Count && args.is_empty() && !distinct;
        let rank = if kind == AggregateKind::Top { Some(rank_of(&mut args, &span)?) } else { None };
        if !count_all && args.len() != 1 {
            return Err(ExpressionError::new(span, format!("`{name}` takes one argument")));
        }
        if distinct && kind != AggregateKind::Count {
            return Err(ExpressionError::new(span, format!("`{name}(distinct …)` is not available"))
                .help("only `count` counts distinct values"));
        }
        let argument = args.pop();
        let of = argument.as_ref().map_or(DataType::Int, |typed| typed.column_type().data_type);
        let refuse = |what: &str| {
            let at = argument.as_ref().map_or(span.clone(), |typed| typed.span.clone());
            Err(ExpressionError::new(at, format!("`{name}` needs {what}, this is {of}")))
        };
        let column_type = match kind {
            AggregateKind::Count if distinct && of == DataType::Json => {
                return refuse("values that can be compared");
            }
            AggregateKind::Count => ColumnType::required(DataType::Int),
            AggregateKind::Sum if of.is_numeric() || of == DataType::Duration => ColumnType::nullable(of),
            AggregateKind::Avg if of.is_numeric() => ColumnType::nullable(DataType::Float),
            AggregateKind::Sum | AggregateKind::Avg => return refuse("numbers"),
            AggregateKind::Min | AggregateKind::Max | AggregateKind::Top if of == DataType::Json => {
                return refuse("values that can be compared");
            }
            AggregateKind::Top => ColumnType::required(DataType::Json),
            _ => ColumnType::nullable(of),
        };
        let mut canonical = match (&argument, &rank) {
            (Some(argument), Some((by, limit))) => format!("{name}({limit}, {argument}, {by})"),
            (None, _) => format!("{name}(*)"),
            (Some(argument), None) => {
                format!("{name}({}{argument})", if distinct { "distinct " } else { "" })
            }
        };
        // `filter (where true)` is no filter.
        let filter = filter.filter(|filter| !matches!(filter.node, Node::Constant(Datum::Bool(true))));
        if let Some(filter) = &filter {
            canonical.push_str(&format!(" filter (where {filter})"));
        }
        Ok(Self {
            kind,
            distinct,
            argument: argument.map(Expression::new),
            rank: rank.map(|(by, limit)| (Expression::new(by), limit)),
            filter: filter.map(Predicate::new),
            canonical,
            column_type,
        })
    }

    /// The type of the result.
    pub fn column_type(&self) -> ColumnType {
        self.column_type
    }

    /// Whether both are the same aggregate of the same values.
    pub fn same_as(&self, other: &Aggregate) -> bool {
        self.canonical == other.canonical
    }

    /// Whether states of parts of the records merge into the state of all: then a repartition may carry partial results. Sums of
    /// doubles depend on the order and do not; beyond the bound of distinct values one record is to be bad, not all of a part.
    pub fn mergeable(&self) -> bool {
        !self.distinct
            && !matches!(
                (self.kind, self.argument_type()),
                (AggregateKind::Sum | AggregateKind::Avg, Some(DataType::Float))
            )
    }

    /// The columns that the aggregate reads.
    pub fn slots(&self) -> Vec<super::scope::Slot> {
        let mut slots = Vec::new();
        let by = self.rank.iter().map(|(by, _)| by);
        let parts = self.argument.iter().chain(by).map(Expression::typed);
        let parts = parts.chain(self.filter.iter().map(Predicate::typed));
        for slot in parts.flat_map(Typed::slots) {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
        slots
    }

    /// The same aggregate over a row whose columns stand elsewhere.
    #[must_use]
    pub fn map_slots(self, map: &impl Fn(super::scope::Slot) -> super::scope::Slot) -> Self {
        Self {
            argument: self.argument.map(|e| Expression::new(e.typed().clone().map_slots(map))),
            rank: self.rank.map(|(by, n)| (Expression::new(by.typed().clone().map_slots(map)), n)),
            filter: self.filter.map(|p| Predicate::new(p.typed().clone().map_slots(map))),
            ..self
        }
    }

    fn argument_type(&self) -> Option<DataType> {
        self.argument.as_ref().and_then(|argument| argument.typed().data_type)
    }

    /// The state before any record.
    pub fn init(&self) -> AggregateState {
        match self.kind {
            AggregateKind::Count if self.distinct => AggregateState::Distinct(BTreeSet::new()),
            AggregateKind::Count => AggregateState::Count(0),
            AggregateKind::Sum | AggregateKind::Avg => AggregateState::Sum(Sum::default()),
            AggregateKind::Min | AggregateKind::Max => AggregateState::Extreme(Datum::Null),
            AggregateKind::First | AggregateKind::Last => {
                AggregateState::Timed { time: 0, value: Datum::Null }
            }
            AggregateKind::Top => AggregateState::Top(Vec::new()),
        }
    }

    /// Folds a record in. `time` is the record's timestamp. After an error the state is as before.
    pub fn add(&self, state: &mut AggregateState, row: &[Datum], time: i64) -> Result<(), EvalError> {
        if let Some(value) = self.value(row)? {
            self.check(state, &value)?;
            self.take(state, value, time);
        }
        Ok(())
    }

    /// What a record brings: nothing when the filter does not hold or the value is NULL.
    pub fn value(&self, row: &[Datum]) -> Result<Option<Taken>, EvalError> {
        if let Some(filter) = &self.filter
            && !filter.holds(row, &[])?
        {
            return Ok(None);
        }
        let value = match &self.argument {
            None => Datum::Int(1),
            Some(argument) => argument.evaluate(row, &[])?,
        };
        if value.is_null() {
            return Ok(None);
        }
        let Some((by, _)) = &self.rank else { return Ok(Some(Taken { value, by: Datum::Null })) };
        let by = by.evaluate(row, &[])?;
        Ok((!by.is_null()).then_some(Taken { value, by }))
    }

    /// Whether the state can take the value; where it can, [`take`](Self::take) cannot fail.
    pub fn check(&self, state: &AggregateState, taken: &Taken) -> Result<(), EvalError> {
        let value = &taken.value;
        match state {
            AggregateState::Distinct(seen)
                if seen.len() >= DISTINCT_MAX && !seen.contains(&distinct_key(value)) =>
            {
                Err(EvalError::TooManyDistinct)
            }
            AggregateState::Sum(sum) if self.kind == AggregateKind::Sum => {
                let mut after = sum.clone();
                after.add(value);
                if after.overflow { Err(EvalError::IntegerOverflow) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Folds a checked value in.
    pub fn take(&self, state: &mut AggregateState, taken: Taken, time: i64) {
        let Taken { value, by } = taken;
        match state {
            AggregateState::Top(list) => self.take_top(list, value, by),
            AggregateState::Count(count) => *count += 1,
            AggregateState::Distinct(seen) => {
                seen.insert(distinct_key(&value));
            }
            AggregateState::Sum(sum) => sum.add(&value),
            AggregateState::Extreme(best) => self.take_extreme(best, value),
            AggregateState::Timed { time: held, value: kept } => {
                let newer = match self.kind {
                    AggregateKind::First => time < *held,
                    _ => time >= *held,
                };
                if kept.is_null() || newer {
                    (*held, *kept) = (time, value);
                }
            }
        }
    }

    /// Takes a record out again, where that is possible (`count`, `sum`, `avg` of numbers): tables that take back an old row. `false`
    /// when the state cannot forget.
    pub fn subtract(&self, state: &mut AggregateState, row: &[Datum]) -> Result<bool, EvalError> {
        if matches!(
            state,
            AggregateState::Distinct(_)
                | AggregateState::Extreme(_)
                | AggregateState::Timed { .. }
                | AggregateState::Top(_)
        ) {
            return Ok(false);
        }
        if let Some(filter) = &self.filter
            && !filter.holds(row, &[])?
        {
            return Ok(true);
        }
        let value = match &self.argument {
            None => Datum::Int(1),
            Some(argument) => argument.evaluate(row, &[])?,
        };
        if !value.is_null() {
            match state {
                AggregateState::Count(count) => *count -= 1,
                AggregateState::Sum(sum) => {
                    sum.remove(&value);
                    self.check_sum(sum)?;
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Folds another state of the same aggregate in; of equal times the other one counts as the later.
    pub fn merge(&self, state: &mut AggregateState, other: AggregateState) -> Result<(), EvalError> {
        match (state, other) {
            (AggregateState::Count(count), AggregateState::Count(more)) => *count += more,
            (AggregateState::Distinct(seen), AggregateState::Distinct(more)) => {
                seen.extend(more);
                if seen.len() > DISTINCT_MAX {
                    return Err(EvalError::TooManyDistinct);
                }
            }
            (AggregateState::Sum(sum), AggregateState::Sum(more)) => {
                sum.merge(&more);
                self.check_sum(sum)?;
            }
            (AggregateState::Extreme(best), AggregateState::Extreme(value)) if !value.is_null() => {
                self.take_extreme(best, value);
            }
            (AggregateState::Timed { time, value }, AggregateState::Timed { time: other, value: more }) => {
                let newer = if self.kind == AggregateKind::First { other < *time } else { other >= *time };
                if !more.is_null() && (value.is_null() || newer) {
                    (*time, *value) = (other, more);
                }
            }
            (AggregateState::Top(list), AggregateState::Top(more)) => {
                more.into_iter().for_each(|(value, by)| self.take_top(list, value, by));
            }
            // States of one aggregate are of one kind.
            _ => {}
        }
        Ok(())
    }

    /// The value now.
    pub fn result(&self, state: &AggregateState) -> Datum {
        match state {
            AggregateState::Count(count) => Datum::Int(*count),
            AggregateState::Distinct(seen) => Datum::Int(seen.len() as i64),
            AggregateState::Extreme(value) | AggregateState::Timed { value, .. } => value.clone(),
            AggregateState::Top(list) => top_json(list),
            AggregateState::Sum(sum) if self.kind == AggregateKind::Avg => sum.mean(),
            AggregateState::Sum(sum) => match (sum.total(), self.column_type.data_type) {
                (Datum::Int(ms), DataType::Duration) => Datum::Duration(ms),
                (total, _) => total,
            },
        }
    }

    /// Whether a result tells all that goes on from the state, so that it may be kept instead (see [`state_of`](Self::state_of)).
    pub fn is_told_by_result(&self, state: &AggregateState) -> bool {
        match state {
            AggregateState::Count(_) | AggregateState::Extreme(_) => true,
            AggregateState::Sum(sum) => self.kind == AggregateKind::Sum && !sum.approximate,
            AggregateState::Distinct(_) | AggregateState::Timed { .. } | AggregateState::Top(_) => false,
        }
    }

    /// The state that a result tells of; `None` when it tells too little.
    pub fn state_of(&self, result: Datum) -> Option<AggregateState> {
        Some(match (self.init(), result) {
            (AggregateState::Count(_), Datum::Int(count)) => AggregateState::Count(count),
            (AggregateState::Extreme(_), value) => AggregateState::Extreme(value),
            (empty @ AggregateState::Sum(_), Datum::Null) => empty,
            (AggregateState::Sum(_), Datum::Int(value) | Datum::Duration(value))
                if self.kind == AggregateKind::Sum =>
            {
                AggregateState::Sum(Sum { count: 1, int: value, ..Sum::default() })
            }
            _ => return None,
        })
    }

    fn check_sum(&self, sum: &Sum) -> Result<(), EvalError> {
        if self.kind == AggregateKind::Sum && sum.overflow { Err(EvalError::IntegerOverflow) } else { Ok(()) }
    }

    /// Ranks a value with the greatest that it has had; what falls out of the list comes back only with a greater one.
    fn take_top(&self, list: &mut Vec<(Datum, Datum)>, value: Datum, by: Datum) {
        match list.iter_mut().find(|(known, _)| known.compare(&value).is_some_and(|order| order.is_eq())) {
            Some((_, held)) if by.compare(held).is_some_and(|order| order.is_gt()) => *held = by,
            Some(_) => return,
            None => list.push((value, by)),
        }
        list.sort_by(|(a, of_a), (b, of_b)| {
            let greater_first = of_b.compare(of_a).unwrap_or(Ordering::Equal);
            greater_first.then_with(|| a.compare(b).unwrap_or(Ordering::Equal))
        });
        list.truncate(self.rank.as_ref().map_or(0, |(_, limit)| *limit));
    }

    fn take_extreme(&self, best: &mut Datum, value: Datum) {
        let wins = match value.compare(best) {
            None => true,
            Some(order) if self.kind == AggregateKind::Min => order.is_lt(),
            Some(order) => order.is_gt(),
        };
        if wins {
            *best = value;
        }
    }
}

/// The canonical text: equal for equal aggregates.
impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical)
    }
}

/// What a record brings to an aggregate.
#[derive(Clone, Debug)]
pub struct Taken {
    value: Datum,
    /// What ranks it; NULL but for `top`.
    by: Datum,
}

/// Takes number and ranking out of the arguments of `top(n, x, by)`.
fn rank_of(args: &mut Vec<Typed>, span: &Range<usize>) -> Result<(Typed, usize)> {
    if args.len() != 3 {
        return Err(ExpressionError::new(span.clone(), "`top` takes three arguments")
            .help("write `top(3, page, views)`: how many, what, and by what it is ranked"));
    }
    let by = args.remove(2);
    let number = args.remove(0);
    let limit = match number.node {
        Node::Constant(Datum::Int(n)) => usize::try_from(n).ok().filter(|n| (1..=TOP_MAX).contains(n)),
        _ => None,
    };
    let Some(limit) = limit else {
        return Err(ExpressionError::new(number.span, "`top` needs to know how many")
            .help(format!("write a number from 1 to {TOP_MAX}")));
    };
    let of = by.column_type().data_type;
    if of == DataType::Json {
        return Err(ExpressionError::new(
            by.span,
            format!("`top` ranks by values that can be compared, this is {of}"),
        ));
    }
    Ok((by, limit))
}

fn top_json(list: &[(Datum, Datum)]) -> Datum {
    let mut out = vec![b'['];
    for (index, (value, by)) in list.iter().enumerate() {
        out.extend_from_slice(if index > 0 { b",{\"value\":" } else { b"{\"value\":" });
        write_datum(value, &mut out);
        out.extend_from_slice(b",\"by\":");
        write_datum(by, &mut out);
        out.push(b'}');
    }
    out.push(b']');
    Datum::Json(String::from_utf8_lossy(&out).as_ref().into())
}

/// What an aggregate keeps under one key.
#[derive(Clone, Debug, PartialEq)]
pub enum AggregateState {
    /// Records.
    Count(i64),
    /// The values seen, as [`distinct_key`]s.
    Distinct(BTreeSet<Vec<u8>>),
    /// A sum.
    Sum(Sum),
    /// The best value so far; NULL before the first.
    Extreme(Datum),
    /// The value at the earliest or latest time.
    Timed {
        /// That time.
        time: i64,
        /// The value; NULL before the first.
        value: Datum,
    },
    /// Values and what ranks them, the greatest first.
    Top(Vec<(Datum, Datum)>),
}

/// A value as bytes that are equal for equal values.
fn distinct_key(value: &Datum) -> Vec<u8> {
    let mut key = Vec::new();
    match value {
        // `1` and `1.0` are one value.
        Datum::Float(float) if *float == float.trunc() && float.abs() < 9e15 => {
            write_datum(&Datum::Int(*float as i64), &mut key);
        }
        other => write_exact(other, &mut key),
    }
    key
}

impl AggregateState {
    /// Appends the state as JSON; [`load`](Self::load) reads it back.
    pub fn save(&self, out: &mut Vec<u8>) {
        match self {
            AggregateState::Count(count) => write_datum(&Datum::Int(*count), out),
            AggregateState::Distinct(seen) => {
                out.push(b'[');
                for (index, key) in seen.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                }
                out.push(b']');
            }
            AggregateState::Sum(sum) => sum.save(out),
            AggregateState::Extreme(value) => write_exact(value, out),
            AggregateState::Timed { time, value } => {
                out.push(b'[');
                write_datum(&Datum::Int(*time), out);
                out.push(b',');
                write_exact(value, out);
                out.push(b']');
            }
            AggregateState::Top(list) => {
                out.push(b'[');
                for (index, (value, by)) in list.iter().enumerate() {
                    out.extend_from_slice(if index > 0 { b",[" } else { b"[" });
                    write_exact(value, out);
                    out.push(b',');
                    write_exact(by, out);
                    out.push(b']');
                }
                out.push(b']');
            }
        }
    }

    /// Reads what [`save`](Self::save) wrote for this aggregate; `None` when it is not that.
    pub fn load(aggregate: &Aggregate, text: &str) -> Option<AggregateState> {
        let of = aggregate.argument_type().unwrap_or(DataType::Int);
        let empty = aggregate.init();
        // The frequent forms are read as they stand; restoring reads one per record.
        match &empty {
            AggregateState::Count(_) => return Some(AggregateState::Count(text.parse().ok()?)),
            AggregateState::Extreme(_)
                if matches!(of, DataType::Int | DataType::Timestamp) && !text.starts_with('[') =>
            {
                let value = if text == "null" { Datum::Null } else { read_datum(of, text)? };
                return Some(AggregateState::Extreme(value));
            }
            _ => {}
        }
        let raw: &serde_json::Value = &serde_json::from_str(text).ok()?;
        Some(match empty {
            AggregateState::Count(_) => AggregateState::Count(raw.as_i64()?),
            AggregateState::Distinct(_) => AggregateState::Distinct(
                raw.as_array()?.iter().map(|value| value.to_string().into_bytes()).collect(),
            ),
            AggregateState::Sum(_) => AggregateState::Sum(Sum::load(raw)?),
            AggregateState::Extreme(_) => AggregateState::Extreme(read_exact(of, raw)?),
            AggregateState::Timed { .. } => {
                AggregateState::Timed { time: raw.get(0)?.as_i64()?, value: read_exact(of, raw.get(1)?)? }
            }
            AggregateState::Top(_) => {
                let (by, _) = aggregate.rank.as_ref()?;
                let by = by.typed().data_type.unwrap_or(DataType::Int);
                let pair = |raw: &serde_json::Value| {
                    Some((read_exact(of, raw.get(0)?)?, read_exact(by, raw.get(1)?)?))
                };
                AggregateState::Top(raw.as_array()?.iter().map(pair).collect::<Option<_>>()?)
            }
        })
    }
}

/// A double as the integer of its bits within a one-element list: JSON readers differ in the last digit, and know no infinity.
fn write_exact(value: &Datum, out: &mut Vec<u8>) {
    if let Datum::Float(float) = value {
        out.extend_from_slice(format!("[{}]", float.to_bits()).as_bytes());
    } else {
        write_datum(value, out);
    }
}

fn read_exact(of: DataType, raw: &serde_json::Value) -> Option<Datum> {
    match raw {
        serde_json::Value::Array(bits) if of != DataType::Json => {
            Some(Datum::Float(f64::from_bits(bits.first()?.as_u64()?)))
        }
        // A double column may hold integers, as SQLite's do.
        serde_json::Value::Number(_) if of == DataType::Float => read_datum(DataType::Int, &raw.to_string()),
        serde_json::Value::Null => Some(Datum::Null),
        raw => read_datum(of, &raw.to_string()),
    }
}

/// SQLite's running sum: integers exactly, doubles by Kahan, Babuška and Neumaier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    count: i64,
    int: i64,
    real: f64,
    error: f64,
    /// A double was seen, or the integers overflowed: `real` and `error` hold the sum.
    approximate: bool,
    /// Integers alone went beyond 64 bits.
    overflow: bool,
}

impl Sum {
    fn add(&mut self, value: &Datum) {
        self.count += 1;
        match value {
            Datum::Int(value) | Datum::Duration(value) => self.add_int(*value),
            other => {
                if let Some(value) = number::real(other) {
                    self.go_approximate();
                    self.overflow = false;
                    self.step(value);
                }
            }
        }
    }

    fn remove(&mut self, value: &Datum) {
        self.count -= 1;
        match value {
            Datum::Int(value) | Datum::Duration(value) if !self.approximate => {
                match self.int.checked_sub(*value) {
                    Some(int) => self.int = int,
                    None => {
                        self.go_approximate();
                        self.overflow = true;
                    }
                }
            }
            Datum::Int(value) | Datum::Duration(value) => match value.checked_neg() {
                Some(negative) => self.step_int(negative),
                None => {
                    self.step_int(i64::MAX);
                    self.step_int(1);
                }
            },
            other => {
                if let Some(value) = number::real(other) {
                    self.go_approximate();
                    self.step(-value);
                }
            }
        }
    }

    fn add_int(&mut self, value: i64) {
        if self.approximate {
            self.step_int(value);
        } else if let Some(int) = self.int.checked_add(value) {
            self.int = int;
        } else {
            self.go_approximate();
            self.overflow = true;
            self.step_int(value);
        }
    }

    fn merge(&mut self, other: &Sum) {
        if other.approximate {
            self.go_approximate();
            self.step(other.real);
            self.step(other.error);
            self.overflow |= other.overflow;
        } else {
            self.add_int(other.int);
        }
        self.count += other.count;
    }

    fn go_approximate(&mut self) {
        if !self.approximate {
            self.approximate = true;
            if self.int.unsigned_abs() >= 1 << 52 {
                let small = self.int % 16_384;
                (self.real, self.error) = ((self.int - small) as f64, small as f64);
            } else {
                (self.real, self.error) = (self.int as f64, 0.0);
            }
            self.int = 0;
        }
    }

    fn step_int(&mut self, value: i64) {
        if value.unsigned_abs() >= 1 << 52 {
            let small = value % 16_384;
            self.step((value - small) as f64);
            self.step(small as f64);
        } else {
            self.step(value as f64);
        }
    }

    fn step(&mut self, value: f64) {
        let before = self.real;
        let after = before + value;
        self.error +=
            if before.abs() > value.abs() { (before - after) + value } else { (value - after) + before };
        self.real = after;
    }

    fn approximate_total(&self) -> f64 {
        // An overflowed error term is infinite or no number: the plain sum is what is known.
        if self.error.is_finite() { self.real + self.error } else { self.real }
    }

    fn total(&self) -> Datum {
        match (self.count, self.approximate) {
            (0, _) => Datum::Null,
            (_, false) => Datum::Int(self.int),
            (_, true) => Datum::float(self.approximate_total()),
        }
    }

    fn mean(&self) -> Datum {
        if self.count == 0 {
            return Datum::Null;
        }
        let total = if self.approximate { self.approximate_total() } else { self.int as f64 };
        Datum::float(total / self.count as f64)
    }

    fn save(&self, out: &mut Vec<u8>) {
        let text = if self.approximate {
            format!(
                "[{},{},{},{}]",
                self.count,
                self.real.to_bits(),
                self.error.to_bits(),
                u8::from(self.overflow)
            )
        } else {
            format!("[{},{}]", self.count, self.int)
        };
        out.extend_from_slice(text.as_bytes());
    }

    fn load(raw: &serde_json::Value) -> Option<Sum> {
        let list = raw.as_array()?;
        let count = list.first()?.as_i64()?;
        Some(match list.len() {
            2 => Sum { count, int: list[1].as_i64()?, ..Sum::default() },
            _ => Sum {
                count,
                int: 0,
                real: f64::from_bits(list[1].as_u64()?),
                error: f64::from_bits(list.get(2)?.as_u64()?),
                approximate: true,
                overflow: list.get(3)?.as_u64()? == 1,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Scope, check_select},
        *,
    };
    use crate::streams::file::value::Column;

    fn aggregate(text: &str) -> Aggregate {
        let columns = [
            Column::new("i", ColumnType::nullable(DataType::Int)),
            Column::new("f", ColumnType::nullable(DataType::Float)),
            Column::new("t", ColumnType::nullable(DataType::Text)),
        ];
        let mut list = Vec::new();
        check_select(text, &Scope::default(), &Scope::of(None, &columns), &mut list).unwrap();
        list.remove(0)
    }

    const ALL: [&str; 16] = [
        "count(*)",
        "count(i)",
        "count(distinct t)",
        "count(distinct f)",
        "sum(i)",
        "avg(i)",
        "min(t)",
        "max(f)",
        "first(t)",
        "last(i)",
        "last(f)",
        "count(*) filter (where i > 0)",
        "sum(i) filter (where t = 'a')",
        "sum(f)",
        "top(2, t, i)",
        "top(3, i, f)",
    ];

    fn record() -> impl Strategy<Value = (Vec<Datum>, i64)> {
        let int = prop_oneof![Just(Datum::Null), (-50..50_i64).prop_map(Datum::Int)];
        let float = prop_oneof![
            Just(Datum::Null),
            (-1e6..1e6_f64).prop_map(Datum::float),
            (0..3_i64).prop_map(Datum::Int)
        ];
        let text = prop_oneof![Just(Datum::Null), "[abc\"]".prop_map(Datum::text)];
        ((int, float, text), 0..20_i64).prop_map(|((i, f, t), time)| (vec![i, f, t], time))
    }

    fn folded(aggregate: &Aggregate, records: &[(Vec<Datum>, i64)]) -> AggregateState {
        let mut state = aggregate.init();
        for (row, time) in records {
            aggregate.add(&mut state, row, *time).unwrap();
        }
        state
    }

    proptest! {
        #[test]
        fn states_survive_saving(records in proptest::collection::vec(record(), 0..12)) {
            for text in ALL {
                let aggregate = aggregate(text);
                let state = folded(&aggregate, &records);
                let mut saved = Vec::new();
                state.save(&mut saved);
                let raw = std::str::from_utf8(&saved).unwrap();
                prop_assert_eq!(AggregateState::load(&aggregate, raw).unwrap(), state, "{}", text);
            }
        }

        #[test]
        fn parts_merge_to_the_whole(first in proptest::collection::vec(record(), 0..8), second in proptest::collection::vec(record(), 0..8)) {
            let all: Vec<_> = first.iter().chain(&second).cloned().collect();
            for text in ALL {
                let aggregate = aggregate(text);
                if !aggregate.mergeable() {
                    prop_assert!(text == "sum(f)" || text.contains("distinct"), "{text}");
                    continue;
                }
                let mut state = folded(&aggregate, &first);
                aggregate.merge(&mut state, folded(&aggregate, &second)).unwrap();
                prop_assert_eq!(aggregate.result(&state), aggregate.result(&folded(&aggregate, &all)), "{}", text);
            }
        }

        #[test]
        fn what_is_subtracted_was_never_there(kept in proptest::collection::vec(record(), 0..8), gone in proptest::collection::vec(record(), 0..8)) {
            for text in ["count(*)", "count(i)", "sum(i)", "avg(i)", "sum(i) filter (where t = 'a')"] {
                let aggregate = aggregate(text);
                let mut state = folded(&aggregate, &kept);
                for (row, time) in &gone {
                    aggregate.add(&mut state, row, *time).unwrap();
                }
                for (row, _) in &gone {
                    prop_assert!(aggregate.subtract(&mut state, row).unwrap());
                }
                prop_assert_eq!(aggregate.result(&state), aggregate.result(&folded(&aggregate, &kept)), "{}", text);
            }
        }
    }

    #[test]
    fn integers_beyond_64_bits_are_an_error_not_a_guess() {
        let sum = aggregate("sum(i)");
        let mut state = sum.init();
        sum.add(&mut state, &[Datum::Int(i64::MAX), Datum::Null, Datum::Null], 0).unwrap();
        let over = sum.add(&mut state, &[Datum::Int(1), Datum::Null, Datum::Null], 0);
        assert_eq!(over, Err(EvalError::IntegerOverflow));
    }

    #[test]
    fn distinct_counts_up_to_its_bound_and_then_fails() {
        let count = aggregate("count(distinct i)");
        let mut state = count.init();
        for value in 0..DISTINCT_MAX as i64 {
            count.add(&mut state, &[Datum::Int(value), Datum::Null, Datum::Null], 0).unwrap();
        }
        count.add(&mut state, &[Datum::Int(5), Datum::Null, Datum::Null], 0).unwrap();
        let over = count.add(&mut state, &[Datum::Int(-1), Datum::Null, Datum::Null], 0);
        assert_eq!(over, Err(EvalError::TooManyDistinct));
        assert_eq!(count.result(&state), Datum::Int(DISTINCT_MAX as i64));
    }

    #[test]
    fn the_top_is_that_of_a_sort() {
        let rows = [("a", 3), ("b", 5), ("c", 1), ("a", 4), ("d", 4), ("b", 2), ("c", 9)];
        let aggregate = aggregate("top(3, t, i)");
        let mut state = aggregate.init();
        for (value, by) in rows {
            aggregate.add(&mut state, &[Datum::Int(by), Datum::Null, Datum::text(value)], 0).unwrap();
        }
        let expected = r#"[{"value":"c","by":9},{"value":"b","by":5},{"value":"a","by":4}]"#;
        assert_eq!(aggregate.result(&state), Datum::Json(expected.into()));
    }

    #[test]
    fn first_and_last_go_by_time() {
        let row = |value: &str| [Datum::Null, Datum::Null, Datum::text(value)];
        for (text, expected) in [("first(t)", "early"), ("last(t)", "late 2")] {
            let aggregate = aggregate(text);
            let mut state = aggregate.init();
            for (value, time) in [("mid", 5), ("late", 9), ("early", 1), ("early 2", 1), ("late 2", 9)] {
                aggregate.add(&mut state, &row(value), time).unwrap();
            }
            assert_eq!(aggregate.result(&state), Datum::text(expected), "{text}");
        }
    }
}
