//! The values that move through a topology read from a file: [`Datum`], [`Row`] and their types.
//!
//! A source decodes the columns that its topology reads into a [`Row`]; expressions read a row's slots and make
//! datums; sinks encode rows. What must always hold: a column declared without `?` never holds [`Datum::Null`]; a column of
//! type [`DataType::Int`] holds [`Datum::Int`], except that arithmetic beyond 64 bits goes on as [`Datum::Float`], as in SQLite.

use std::{cmp::Ordering, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use uuid::Uuid;

/// One value of one column.
#[derive(Clone, Debug, Default)]
pub enum Datum {
    /// SQL's NULL.
    #[default]
    Null,
    /// A 64-bit integer.
    Int(i64),
    /// A double; never NaN (that is NULL, as in SQLite).
    Float(f64),
    /// Text, shared.
    Text(Arc<str>),
    /// True or false.
    Bool(bool),
    /// A moment, in milliseconds since the Unix epoch.
    Timestamp(i64),
    /// A length of time in milliseconds.
    Duration(i64),
    /// A UUID.
    Uuid(Uuid),
    /// A JSON document as it was written.
    Json(Arc<str>),
}

/// The type of a column or an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// 64-bit integer.
    Int,
    /// Double.
    Float,
    /// Text.
    Text,
    /// Boolean.
    Bool,
    /// Milliseconds since the epoch.
    Timestamp,
    /// Milliseconds between two moments.
    Duration,
    /// UUID.
    Uuid,
    /// JSON document.
    Json,
}

impl DataType {
    /// Every type, in the order in which messages list them.
    pub const ALL: [DataType; 8] = [
        DataType::Text,
        DataType::Int,
        DataType::Float,
        DataType::Bool,
        DataType::Timestamp,
        DataType::Duration,
        DataType::Uuid,
        DataType::Json,
    ];

    /// The name as files write it.
    pub fn name(self) -> &'static str {
        match self {
            DataType::Int => "int",
            DataType::Float => "float",
            DataType::Text => "text",
            DataType::Bool => "bool",
            DataType::Timestamp => "timestamp",
            DataType::Duration => "duration",
            DataType::Uuid => "uuid",
            DataType::Json => "json",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<DataType> {
        DataType::ALL.into_iter().find(|candidate| candidate.name() == name)
    }

    /// Whether arithmetic works on it as a plain number.
    pub fn is_numeric(self) -> bool {
        matches!(self, DataType::Int | DataType::Float)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type, and whether NULL may stand in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnType {
    /// The type of the values.
    pub data_type: DataType,
    /// Whether a value may be absent.
    pub nullable: bool,
}

impl ColumnType {
    /// A type whose values are always there.
    pub const fn required(data_type: DataType) -> Self {
        Self { data_type, nullable: false }
    }

    /// A type that may be NULL.
    pub const fn nullable(data_type: DataType) -> Self {
        Self { data_type, nullable: true }
    }

    /// The type as files write it: `int`, or `int?` when it may be NULL.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, nullable) = match text.strip_suffix('?') {
            Some(name) => (name, true),
            None => (text, false),
        };
        Some(Self { data_type: DataType::parse(name)?, nullable })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.data_type, if self.nullable { "?" } else { "" })
    }
}

/// A named column of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The name, as JSON and expressions know it.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
}

impl Column {
    /// A column.
    pub fn new(name: impl Into<String>, column_type: ColumnType) -> Self {
        Self { name: name.into(), column_type }
    }
}

impl Datum {
    /// A text value.
    pub fn text(text: impl AsRef<str>) -> Self {
        Datum::Text(Arc::from(text.as_ref()))
    }

    /// A double, or NULL when it is not a number.
    pub fn float(value: f64) -> Self {
        if value.is_nan() { Datum::Null } else { Datum::Float(value) }
    }

    /// Whether this is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// The type of the value held; `None` for NULL.
    pub fn data_type(&self) -> Option<DataType> {
        Some(match self {
            Datum::Null => return None,
            Datum::Int(_) => DataType::Int,
            Datum::Float(_) => DataType::Float,
            Datum::Text(_) => DataType::Text,
            Datum::Bool(_) => DataType::Bool,
            Datum::Timestamp(_) => DataType::Timestamp,
            Datum::Duration(_) => DataType::Duration,
            Datum::Uuid(_) => DataType::Uuid,
            Datum::Json(_) => DataType::Json,
        })
    }

    /// The milliseconds of a timestamp.
    pub fn as_timestamp(&self) -> Option<i64> {
        if let Datum::Timestamp(ms) = self { Some(*ms) } else { None }
    }

    /// SQL's comparison: `None` when a side is NULL. Numbers compare as exact values, text by bytes.
    #[inline]
    pub fn compare(&self, other: &Datum) -> Option<Ordering> {
        Some(match (self, other) {
            (Datum::Null, _) | (_, Datum::Null) => return None,
            (Datum::Int(a), Datum::Int(b)) => a.cmp(b),
            (Datum::Text(a), Datum::Text(b)) | (Datum::Json(a), Datum::Json(b)) => a.cmp(b),
            (Datum::Timestamp(a), Datum::Timestamp(b)) | (Datum::Duration(a), Datum::Duration(b)) => a.cmp(b),
            (Datum::Float(a), Datum::Float(b)) => compare_floats(*a, *b),
            (Datum::Int(a), Datum::Float(b)) => compare_int_float(*a, *b),
            (Datum::Float(a), Datum::Int(b)) => compare_int_float(*b, *a).reverse(),
            (Datum::Bool(a), Datum::Bool(b)) => a.cmp(b),
            (Datum::Uuid(a), Datum::Uuid(b)) => a.cmp(b),
            // The type checker refuses every other pair; ordering by kind keeps sorting total all the same.
            _ => self.rank().cmp(&other.rank()),
        })
    }

    /// Whether both are the same value, NULL equal to NULL (`is not distinct from`).
    pub fn same(&self, other: &Datum) -> bool {
        match (self.is_null(), other.is_null()) {
            (true, true) => true,
            (false, false) => self.compare(other) == Some(Ordering::Equal),
            _ => false,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Datum::Null => 0,
            Datum::Int(_) | Datum::Float(_) => 1,
            Datum::Text(_) => 2,
            Datum::Bool(_) => 3,
            Datum::Timestamp(_) => 4,
            Datum::Duration(_) => 5,
            Datum::Uuid(_) => 6,
            Datum::Json(_) => 7,
        }
    }
}

/// Doubles in order; the callers never hold NaN.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

/// An integer against a double by exact value: `9007199254740993 > 9007199254740992.0`, as SQLite has it.
fn compare_int_float(int: i64, float: f64) -> Ordering {
    if float < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    if float >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    // In range now: compare whole parts as integers, then what the cut left over.
    let whole = float as i64;
    int.cmp(&whole).then_with(|| compare_floats(int as f64, float))
}

/// Equality of representation: NULL equals NULL, `1` and `1.0` are the same number.
impl PartialEq for Datum {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

impl From<i64> for Datum {
    fn from(value: i64) -> Self {
        Datum::Int(value)
    }
}

impl From<f64> for Datum {
    fn from(value: f64) -> Self {
        Datum::float(value)
    }
}

impl From<bool> for Datum {
    fn from(value: bool) -> Self {
        Datum::Bool(value)
    }
}

impl From<&str> for Datum {
    fn from(value: &str) -> Self {
        Datum::text(value)
    }
}

impl From<Option<bool>> for Datum {
    fn from(value: Option<bool>) -> Self {
        value.map_or(Datum::Null, Datum::Bool)
    }
}

/// The columns of one record, addressed by slot. Up to four stand inline: one allocation a record behind its `Arc`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(SmallVec<[Datum; 4]>);

impl Row {
    /// An empty row with room for `columns`.
    pub fn with_capacity(columns: usize) -> Self {
        Row(SmallVec::with_capacity(columns))
    }

    /// A row of NULLs.
    pub fn nulls(columns: usize) -> Self {
        Row(SmallVec::from_elem(Datum::Null, columns))
    }

    /// Appends a column.
    pub fn push(&mut self, datum: Datum) {
        self.0.push(datum);
    }

    /// The columns, to change.
    pub fn as_mut_slice(&mut self) -> &mut [Datum] {
        &mut self.0
    }
}

impl std::ops::Deref for Row {
    type Target = [Datum];
    fn deref(&self) -> &[Datum] {
        &self.0
    }
}

impl FromIterator<Datum> for Row {
    fn from_iter<I: IntoIterator<Item = Datum>>(iter: I) -> Self {
        Row(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datum_is_three_words() {
        assert_eq!(std::mem::size_of::<Datum>(), 24);
    }

    #[test]
    fn integers_and_doubles_compare_by_exact_value() {
        let cases = [
            (
                Datum::Int(9_007_199_254_740_993),
                Datum::Float(9_007_199_254_740_992.0),
                Some(Ordering::Greater),
            ),
            (Datum::Int(i64::MAX), Datum::Float(9_223_372_036_854_775_808.0), Some(Ordering::Less)),
            (Datum::Int(i64::MIN), Datum::Float(-9_223_372_036_854_775_808.0), Some(Ordering::Equal)),
            (Datum::Int(-1), Datum::Float(-1.5), Some(Ordering::Greater)),
            (Datum::Int(1), Datum::Float(f64::INFINITY), Some(Ordering::Less)),
            (Datum::Int(1), Datum::Null, None),
            (Datum::text("a"), Datum::text("B"), Some(Ordering::Greater)),
        ];
        for (left, right, expected) in cases {
            assert_eq!(left.compare(&right), expected, "{left:?} against {right:?}");
            assert_eq!(right.compare(&left), expected.map(Ordering::reverse), "{right:?} against {left:?}");
        }
    }

    #[test]
    fn types_are_written_as_files_write_them() {
        assert_eq!(ColumnType::parse("int?"), Some(ColumnType::nullable(DataType::Int)));
        assert_eq!(ColumnType::parse("timestamp"), Some(ColumnType::required(DataType::Timestamp)));
        assert_eq!(ColumnType::parse("integer"), None);
        assert_eq!(ColumnType::nullable(DataType::Uuid).to_string(), "uuid?");
    }
}
