//! The functions users give to operators, types erased, and the helpers that erase them.
//!
//! Operators are written once over [`AnyValue`]s; the typed layer wraps each closure so that it is handed `&K` and `&V`. Keys and
//! values are `Option`s because Kafka allows null in either place. A closure that fails names the failure with a
//! [`ProcessingError`]; the processing handler decides what happens then.

use std::{any::type_name, sync::Arc};

use crate::streams::{error::ProcessingError, record::AnyValue};

/// Result of user code.
pub type UserResult<T> = Result<T, ProcessingError>;
/// A key and a value, either may be null.
pub(super) type AnyPair = (Option<AnyValue>, Option<AnyValue>);
/// `(key, value) -> keep?`
pub(super) type Predicate =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<bool> + Send + Sync>;
/// `(key, value) -> new value`; also selects keys.
pub(super) type ValueMapper =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<Option<AnyValue>> + Send + Sync>;
/// `(key, value) -> pair`
pub(super) type KeyValueMapper =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<AnyPair> + Send + Sync>;
/// `(key, value) -> pairs`
pub(super) type FlatKeyValueMapper =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<Vec<AnyPair>> + Send + Sync>;
/// `(key, value) -> values`
pub(super) type FlatValueMapper =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<Vec<Option<AnyValue>>> + Send + Sync>;
/// `(key, value)`, for effect.
pub(super) type ForeachAction =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<()> + Send + Sync>;
/// The value an aggregate starts from.
pub(super) type Initializer = Arc<dyn Fn() -> UserResult<Option<AnyValue>> + Send + Sync>;
/// `(key, value, aggregate) -> aggregate`
pub(super) type Aggregator = Arc<
    dyn Fn(Option<&AnyValue>, Option<&AnyValue>, Option<&AnyValue>) -> UserResult<Option<AnyValue>>
        + Send
        + Sync,
>;
/// `(aggregate, value) -> aggregate`
pub(super) type Reducer =
    Arc<dyn Fn(Option<&AnyValue>, Option<&AnyValue>) -> UserResult<Option<AnyValue>> + Send + Sync>;
/// `(key, left, right) -> joined`; also merges sessions.
pub(super) type Joiner = Aggregator;

/// A reference to the value inside; another type than promised is an error, not a panic.
pub(super) fn typed<T: Send + Sync + 'static>(value: Option<&AnyValue>) -> UserResult<Option<&T>> {
    match value {
        None => Ok(None),
        Some(value) => value.downcast_ref::<T>().map(Some).ok_or_else(|| {
            ProcessingError::new(
                "ClassCastException",
                format!("a {} was expected here, the record carries something else", type_name::<T>()),
            )
        }),
    }
}

/// Erases an optional value.
pub(super) fn erased<T: Send + Sync + 'static>(value: Option<T>) -> Option<AnyValue> {
    value.map(|value| Arc::new(value) as AnyValue)
}

/// Anything a type of a stream may be.
pub trait Data: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Data for T {}

pub(crate) fn predicate<K: Data, V: Data>(
    f: impl Fn(Option<&K>, Option<&V>) -> UserResult<bool> + Send + Sync + 'static,
) -> Predicate {
    Arc::new(move |key, value| f(typed(key)?, typed(value)?))
}

pub(crate) fn value_mapper<K: Data, V: Data, R: Data>(
    f: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<R>> + Send + Sync + 'static,
) -> ValueMapper {
    Arc::new(move |key, value| f(typed(key)?, typed(value)?).map(erased))
}

pub(crate) fn key_value_mapper<K: Data, V: Data, KR: Data, VR: Data>(
    f: impl Fn(Option<&K>, Option<&V>) -> UserResult<(Option<KR>, Option<VR>)> + Send + Sync + 'static,
) -> KeyValueMapper {
    Arc::new(move |key, value| {
        let (key, value) = f(typed(key)?, typed(value)?)?;
        Ok((erased(key), erased(value)))
    })
}

pub(crate) fn flat_key_value_mapper<K: Data, V: Data, KR: Data, VR: Data, I>(
    f: impl Fn(Option<&K>, Option<&V>) -> UserResult<I> + Send + Sync + 'static,
) -> FlatKeyValueMapper
where
    I: IntoIterator<Item = (Option<KR>, Option<VR>)>,
{
    Arc::new(move |key, value| {
        let pairs = f(typed(key)?, typed(value)?)?;
        Ok(pairs.into_iter().map(|(key, value)| (erased(key), erased(value))).collect())
    })
}

pub(crate) fn flat_value_mapper<K: Data, V: Data, R: Data, I>(
    f: impl Fn(Option<&K>, Option<&V>) -> UserResult<I> + Send + Sync + 'static,
) -> FlatValueMapper
where
    I: IntoIterator<Item = Option<R>>,
{
    Arc::new(move |key, value| Ok(f(typed(key)?, typed(value)?)?.into_iter().map(erased).collect()))
}

pub(crate) fn initializer<A: Data>(
    f: impl Fn() -> UserResult<Option<A>> + Send + Sync + 'static,
) -> Initializer {
    Arc::new(move || f().map(erased))
}

pub(crate) fn aggregator<K: Data, V: Data, A: Data, R: Data>(
    f: impl Fn(Option<&K>, Option<&V>, Option<&A>) -> UserResult<Option<R>> + Send + Sync + 'static,
) -> Aggregator {
    Arc::new(move |key, value, aggregate| f(typed(key)?, typed(value)?, typed(aggregate)?).map(erased))
}

pub(crate) fn reducer<V: Data>(
    f: impl Fn(Option<&V>, Option<&V>) -> UserResult<Option<V>> + Send + Sync + 'static,
) -> Reducer {
    Arc::new(move |aggregate, value| f(typed(aggregate)?, typed(value)?).map(erased))
}
