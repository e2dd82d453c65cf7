//! The named functions of the cases (README §4), over values that are text or integers.
//!
//! Everything here is told by name what it is and knows nothing of any case. An unknown name is an error of the case that uses it.

use std::sync::Arc;

use sluice::streams::{
    error::ProcessingError,
    kstream::{UserResult, Window, Windowed},
};

/// A value of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// UTF-8 text.
    Text(String),
    /// A signed 64-bit number.
    Integer(i64),
}

/// The two value types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    /// Text.
    Text,
    /// Integer.
    Integer,
}

impl Ty {
    /// The type a step declares.
    pub fn named(name: &str) -> Result<Self, String> {
        match name {
            "string" => Ok(Ty::Text),
            "integer" => Ok(Ty::Integer),
            other => Err(format!("unknown value type {other}")),
        }
    }
}

/// A Rust type that carries values of one of the two types through the DSL.
pub trait CaseValue: Clone + PartialEq + Send + Sync + 'static {
    /// As a [`Value`].
    fn to_value(&self) -> Value;
    /// From a [`Value`]; another type is a failure of the function that made it.
    fn from_value(value: Value) -> UserResult<Self>;
}

impl CaseValue for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }

    fn from_value(value: Value) -> UserResult<Self> {
        match value {
            Value::Text(text) => Ok(text),
            Value::Integer(_) => Err(ProcessingError::new("ClassCastException", "a text was expected")),
        }
    }
}

impl CaseValue for i64 {
    fn to_value(&self) -> Value {
        Value::Integer(*self)
    }

    fn from_value(value: Value) -> UserResult<Self> {
        match value {
            Value::Integer(number) => Ok(number),
            Value::Text(_) => Err(ProcessingError::new("ClassCastException", "a number was expected")),
        }
    }
}

/// Key of a record as functions see it: the text, and the window of a windowed key.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    pub text: &'a str,
    pub window: Option<Window>,
}

/// A key type of the DSL.
pub trait CaseKey: Clone + PartialEq + Send + Sync + 'static {
    /// As functions see it.
    fn key(&self) -> Key<'_>;
}

impl CaseKey for String {
    fn key(&self) -> Key<'_> {
        Key { text: self, window: None }
    }
}

impl CaseKey for Windowed<String> {
    fn key(&self) -> Key<'_> {
        Key { text: &self.key, window: Some(self.window) }
    }
}

pub type PredicateFn = Arc<dyn Fn(Option<Key<'_>>, Option<&Value>) -> bool + Send + Sync>;
pub type ValueFn = Arc<dyn Fn(Option<Key<'_>>, Option<&Value>) -> UserResult<Option<Value>> + Send + Sync>;
pub type ValuesFn = Arc<dyn Fn(Option<&Value>) -> Vec<Option<Value>> + Send + Sync>;
pub type Pair = (Option<String>, Option<String>);
pub type PairFn = Arc<dyn Fn(Option<Key<'_>>, Option<&Value>) -> UserResult<Pair> + Send + Sync>;
pub type PairsFn = Arc<dyn Fn(Option<Key<'_>>, Option<&Value>) -> Vec<Pair> + Send + Sync>;
pub type KeyFn = Arc<dyn Fn(Option<Key<'_>>, Option<&Value>) -> Option<String> + Send + Sync>;
pub type AggregateFn = Arc<dyn Fn(Option<&Value>, Option<&Value>) -> Option<Value> + Send + Sync>;
pub type JoinFn =
    Arc<dyn Fn(Option<Key<'_>>, Option<&Value>, Option<&Value>) -> Option<String> + Send + Sync>;

/// The text of a value, `null` for null.
pub fn txt(value: Option<&Value>) -> String {
    value.map_or_else(|| "null".into(), text)
}

/// The text of a value.
pub fn text(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
    }
}

/// A value as a number: null and most text are 0.
pub fn int0(value: Option<&Value>) -> i64 {
    match value {
        None => 0,
        Some(Value::Integer(number)) => *number,
        Some(Value::Text(text)) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let short = (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            if short { text.parse().unwrap_or(0) } else { 0 }
        }
    }
}

fn utf16_len(text: &str) -> i64 {
    text.encode_utf16().count() as i64
}

fn before_colon(value: Option<&Value>) -> Option<String> {
    let text = text(value?);
    text.split_once(':').map(|(before, _)| before.to_owned())
}

fn after_colon(value: Option<&Value>) -> Option<String> {
    let text = text(value?);
    Some(text.split_once(':').map_or(text.clone(), |(_, after)| after.to_owned()))
}

fn first_char(text: &str) -> Option<String> {
    text.chars().next().map(String::from)
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn integer(value: Option<&Value>) -> Option<i64> {
    match value {
        Some(Value::Integer(number)) => Some(*number),
        _ => None,
    }
}

fn unknown<T>(kind: &str, name: &str) -> Result<T, String> {
    Err(format!("unknown {kind} {name}"))
}

/// A predicate by name.
pub fn predicate(name: &str) -> Result<PredicateFn, String> {
    Ok(match name {
        "is_even_length" => Arc::new(|_, v| v.is_some_and(|v| utf16_len(&text(v)) % 2 == 0)),
        "is_number" => Arc::new(|_, v| v.is_some_and(|v| is_number(&text(v)))),
        "is_even" => Arc::new(|_, v| integer(v).is_some_and(|n| n % 2 == 0)),
        "is_positive" => Arc::new(|_, v| integer(v).is_some_and(|n| n > 0)),
        "is_large" => Arc::new(|_, v| integer(v).is_some_and(|n| n >= 10)),
        "not_null" => Arc::new(|_, v| v.is_some()),
        "key_not_null" => Arc::new(|k, _| k.is_some()),
        "key_is_a" => Arc::new(|k, _| k.is_some_and(|k| k.text == "a")),
        "starts_with_x" => Arc::new(|_, v| v.is_some_and(|v| text(v).starts_with('x'))),
        "always" => Arc::new(|_, _| true),
        "never" => Arc::new(|_, _| false),
        other => return unknown("predicate", other),
    })
}

/// A value mapper by name, and the type it makes of values of the given type.
pub fn value_mapper(name: &str, input: Ty) -> Result<(Ty, ValueFn), String> {
    let value = |f: fn(Option<&Value>) -> Option<Value>| -> ValueFn { Arc::new(move |_, v| Ok(f(v))) };
    Ok(match name {
        "identity" => (input, value(|v| v.cloned())),
        "upper" => (Ty::Text, value(|v| v.map(|v| Value::Text(text(v).to_uppercase())))),
        "length" => (Ty::Integer, value(|v| Some(Value::Integer(v.map_or(0, |v| utf16_len(&text(v))))))),
        "value_prefix" => (Ty::Text, value(|v| Some(Value::Text(format!("v:{}", txt(v)))))),
        "key_prefix" => (
            Ty::Text,
            Arc::new(|k, v| Ok(Some(Value::Text(format!("{}:{}", k.map_or("null", |k| k.text), txt(v)))))),
        ),
        "to_text" => (Ty::Text, value(|v| v.map(|v| Value::Text(text(v))))),
        "to_integer" => (Ty::Integer, value(|v| v.map(|_| Value::Integer(int0(v))))),
        "parse_int" => (
            Ty::Integer,
            Arc::new(|_, v| match v {
                Some(Value::Text(text)) if is_number(text) => text
                    .parse()
                    .map(|number| Some(Value::Integer(number)))
                    .map_err(|_| ProcessingError::new("NumberFormatException", text.as_str())),
                other => Err(ProcessingError::new("NumberFormatException", txt(other))),
            }),
        ),
        "null_if_x" => (input, value(|v| v.filter(|v| text(v) != "x").cloned())),
        "double" => (Ty::Integer, value(|v| v.map(|v| Value::Integer(int0(Some(v)).wrapping_mul(2))))),
        "negate" => (Ty::Integer, value(|v| v.map(|v| Value::Integer(int0(Some(v)).wrapping_neg())))),
        "before_colon" => (Ty::Text, value(|v| before_colon(v).map(Value::Text))),
        "after_colon" => (Ty::Text, value(|v| after_colon(v).map(Value::Text))),
        "after_colon_int" => (
            Ty::Integer,
            value(|v| after_colon(v).map(|text| Value::Integer(int0(Some(&Value::Text(text)))))),
        ),
        other => return unknown("value mapper", other),
    })
}

/// A flat value mapper by name.
pub fn flat_value_mapper(name: &str, input: Ty) -> Result<(Ty, ValuesFn), String> {
    Ok(match name {
        "split_comma" => (
            Ty::Text,
            Arc::new(|v| {
                v.map_or_else(Vec::new, |v| {
                    text(v).split(',').map(|part| Some(Value::Text(part.to_owned()))).collect()
                })
            }),
        ),
        "twice" => (input, Arc::new(|v| vec![v.cloned(), v.cloned()])),
        "none" => (input, Arc::new(|_| Vec::new())),
        other => return unknown("flat value mapper", other),
    })
}

/// A pair mapper by name.
pub fn pair_mapper(name: &str) -> Result<PairFn, String> {
    Ok(match name {
        "swap" => Arc::new(|k, v| Ok((v.map(text), k.map(|k| k.text.to_owned())))),
        "upper_both" => {
            Arc::new(|k, v| Ok((k.map(|k| k.text.to_uppercase()), v.map(|v| text(v).to_uppercase()))))
        }
        "split_colon" => Arc::new(|_, v| Ok((before_colon(v), after_colon(v)))),
        "null_pair" => {
            Arc::new(|_, _| Err(ProcessingError::new("NullPointerException", "the mapper returned no pair")))
        }
        other => return unknown("pair mapper", other),
    })
}

/// A flat pair mapper by name.
pub fn flat_pair_mapper(name: &str) -> Result<PairsFn, String> {
    Ok(match name {
        "chars" => Arc::new(|k, v| {
            let Some(v) = v else { return Vec::new() };
            let value = text(v);
            let out = format!("{}{value}", k.map_or("null", |k| k.text));
            value.chars().map(|c| (Some(c.to_string()), Some(out.clone()))).collect()
        }),
        "words" => Arc::new(|_, v| {
            let Some(v) = v else { return Vec::new() };
            let value = text(v);
            let mut parts: Vec<&str> = value.split(',').collect();
            if parts.len() > 1 {
                while parts.last() == Some(&"") {
                    parts.pop();
                }
            }
            parts.into_iter().map(|part| (first_char(part), Some(part.to_owned()))).collect()
        }),
        other => return unknown("flat pair mapper", other),
    })
}

/// A key selector by name.
pub fn key_selector(name: &str) -> Result<KeyFn, String> {
    Ok(match name {
        "first_char" => Arc::new(|_, v| first_char(&text(v?))),
        "key_first_char" => Arc::new(|k, _| first_char(k?.text)),
        "value_as_key" => Arc::new(|_, v| v.map(text)),
        "before_colon" => Arc::new(|_, v| before_colon(v)),
        "identity" | "window_key" => Arc::new(|k, _| k.map(|k| k.text.to_owned())),
        "null_key" => Arc::new(|_, _| None),
        "all" => Arc::new(|_, _| Some("all".into())),
        "window_key_at_start" => {
            Arc::new(|k, _| k.and_then(|k| Some(format!("{}@{}", k.text, k.window?.start))))
        }
        "window_start" => Arc::new(|k, _| k.and_then(|k| Some(k.window?.start.to_string()))),
        other => return unknown("key selector", other),
    })
}

/// An initializer by name: its value.
pub fn initial(name: &str) -> Result<Option<Value>, String> {
    Ok(match name {
        "empty" => Some(Value::Text(String::new())),
        "zero" => Some(Value::Integer(0)),
        "hundred" => Some(Value::Integer(100)),
        "null" => None,
        other => return unknown("initializer", other),
    })
}

/// An aggregator by name, `(value, aggregate) -> aggregate`, and its result type.
pub fn aggregator(name: &str) -> Result<(Ty, AggregateFn), String> {
    fn texts(f: fn(String, String) -> String) -> AggregateFn {
        Arc::new(move |value, aggregate| Some(Value::Text(f(txt(aggregate), txt(value)))))
    }
    fn numbers(f: fn(i64, Option<&Value>) -> Option<i64>) -> AggregateFn {
        Arc::new(move |value, aggregate| f(int0(aggregate), value).map(Value::Integer))
    }
    Ok(match name {
        "concat" => (Ty::Text, texts(|a, v| a + &v)),
        "concat_plus" => (Ty::Text, texts(|a, v| a + "+" + &v)),
        "concat_minus" => (Ty::Text, texts(|a, v| a + "-" + &v)),
        "concat_upper" => (Ty::Text, texts(|a, v| a + &v.to_uppercase())),
        "concat_null_at_x" => (
            Ty::Text,
            Arc::new(|value, aggregate| {
                let value = txt(value);
                (value != "x").then(|| Value::Text(txt(aggregate) + &value))
            }),
        ),
        "sum" => (Ty::Integer, numbers(|a, v| Some(a.wrapping_add(int0(v))))),
        "sum_minus" => (Ty::Integer, numbers(|a, v| Some(a.wrapping_sub(int0(v))))),
        "sum_null_at_zero" => {
            (Ty::Integer, numbers(|a, v| Some(a.wrapping_add(int0(v))).filter(|sum| *sum != 0)))
        }
        "sum_minus_null_at_zero" => {
            (Ty::Integer, numbers(|a, v| Some(a.wrapping_sub(int0(v))).filter(|sum| *sum != 0)))
        }
        "sum_length" => {
            (Ty::Integer, numbers(|a, v| Some(a.wrapping_add(v.map_or(0, |v| utf16_len(&text(v)))))))
        }
        "add_one" => (Ty::Integer, numbers(|a, _| Some(a.wrapping_add(1)))),
        "max_value" => (Ty::Integer, numbers(|a, v| Some(a.max(int0(v))))),
        other => return unknown("aggregator", other),
    })
}

/// A reducer by name, `(aggregate, value) -> aggregate`, over values of the given type.
pub fn reducer(name: &str, ty: Ty) -> Result<AggregateFn, String> {
    let larger = move |a: Option<&Value>, b: Option<&Value>| match ty {
        Ty::Integer => int0(a) >= int0(b),
        Ty::Text => txt(a).encode_utf16().ge(txt(b).encode_utf16()),
    };
    Ok(match name {
        "min" => Arc::new(move |a, b| if larger(a, b) { b.cloned() } else { a.cloned() }),
        "max" => Arc::new(move |a, b| if larger(a, b) { a.cloned() } else { b.cloned() }),
        "first" => Arc::new(|a, _| a.cloned()),
        "last" => Arc::new(|_, b| b.cloned()),
        "null_at_x" => Arc::new(|_, b| b.filter(|b| text(b) != "x").cloned()),
        other => {
            let (_, f) = aggregator(other)?;
            Arc::new(move |a, b| f(b, a))
        }
    })
}

/// A session merger by name.
pub fn merger(name: &str) -> Result<AggregateFn, String> {
    Ok(match name {
        "concat" => Arc::new(|a, b| Some(Value::Text(txt(a) + &txt(b)))),
        "bracket" => Arc::new(|a, b| Some(Value::Text(format!("({}&{})", txt(a), txt(b))))),
        "sum" => Arc::new(|a, b| Some(Value::Integer(int0(a).wrapping_add(int0(b))))),
        "max" => Arc::new(|a, b| Some(Value::Integer(int0(a).max(int0(b))))),
        other => return unknown("merger", other),
    })
}

/// A joiner by name.
pub fn joiner(name: &str) -> Result<JoinFn, String> {
    Ok(match name {
        "join_pair" => Arc::new(|_, l, r| Some(format!("{}|{}", txt(l), txt(r)))),
        "join_key_pair" => {
            Arc::new(|k, l, r| Some(format!("{}={}|{}", k.map_or("null", |k| k.text), txt(l), txt(r))))
        }
        "join_null_if_equal" => {
            Arc::new(|_, l, r| (txt(l) != txt(r)).then(|| format!("{}|{}", txt(l), txt(r))))
        }
        "join_left_only" => Arc::new(|_, l, _| l.map(text)),
        other => return unknown("joiner", other),
    })
}
