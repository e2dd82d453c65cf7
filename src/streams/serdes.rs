//! Serdes: how keys and values become bytes and back.
//!
//! A [`Serde`] is written for one type; [`AnySerde`] is the same with the type erased, which is what nodes and stores
//! hold. A type that implements [`HasSerde`] needs no serde named in a topology.

use std::{
    any::{Any, TypeId, type_name},
    fmt,
    marker::PhantomData,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::ProcessingError,
    record::{AnyValue, Timestamp},
};

/// Turns values of one type into bytes and back. A failure is a bad record, not a broken engine: the
/// deserialization or production handler decides.
pub trait Serde<T>: Send + Sync + 'static {
    /// Appends the bytes of `value` to `out`.
    fn serialize(&self, value: &T, out: &mut Vec<u8>) -> Result<(), ProcessingError>;

    /// Reads a value from all of `bytes`.
    fn deserialize(&self, bytes: &[u8]) -> Result<T, ProcessingError>;

    /// Natural SQL columns for the state file, where the type has them; else the bytes are stored in one column.
    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        None
    }

    /// How many bytes at the end of a key take no part in choosing its partition (the window of a windowed key).
    fn partitioning_suffix(&self) -> usize {
        0
    }

    /// Whether the bytes of a value in a changelog tell its time, so that the record need not.
    fn carries_time(&self) -> bool {
        false
    }

    /// As [`serialize`](Self::serialize), for a changelog: with the value's time, where [`carries_time`](Self::carries_time) says so.
    fn serialize_timed(&self, value: &T, time: Timestamp, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        let _ = time;
        self.serialize(value, out)
    }

    /// A value of a changelog, and its time where the bytes tell it.
    fn deserialize_timed(&self, bytes: &[u8]) -> Result<(T, Option<Timestamp>), ProcessingError> {
        Ok((self.deserialize(bytes)?, None))
    }
}

/// A type with a serde of its own, used wherever a topology names none.
pub trait HasSerde: Send + Sync + Sized + 'static {
    /// The type's serde.
    fn serde() -> AnySerde;
}

/// One value of a SQL column, as state files store it.
#[derive(Clone, Debug, PartialEq)]
pub enum SqlValue {
    /// NULL
    Null,
    /// INTEGER
    Integer(i64),
    /// REAL
    Real(f64),
    /// TEXT
    Text(String),
    /// BLOB
    Blob(Vec<u8>),
}

/// Stores a value as several named SQL columns, so that a person can query the state file.
pub trait ColumnSerde: Send + Sync {
    /// Column names and SQL types, in order (`[("issued", "INTEGER")]`).
    fn columns(&self) -> Vec<(String, &'static str)>;
    /// One SQL value per column.
    fn to_columns(&self, value: &AnyValue) -> Vec<SqlValue>;
    /// The value again.
    #[allow(clippy::wrong_self_convention)] // a serde converts something else than itself
    fn from_columns(&self, columns: &[SqlValue]) -> Result<AnyValue, ProcessingError>;
}

trait Erased: Send + Sync {
    fn serialize(&self, value: &(dyn Any + Send + Sync), out: &mut Vec<u8>) -> Result<(), ProcessingError>;
    fn deserialize(&self, bytes: &[u8]) -> Result<AnyValue, ProcessingError>;
    fn columns(&self) -> Option<Arc<dyn ColumnSerde>>;
    fn partitioning_suffix(&self) -> usize;
    fn carries_time(&self) -> bool;
    fn serialize_timed(
        &self,
        value: &AnyValue,
        time: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), ProcessingError>;
    fn deserialize_timed(&self, bytes: &[u8]) -> Result<(AnyValue, Option<Timestamp>), ProcessingError>;
    fn type_name(&self) -> &'static str;
    fn value_type(&self) -> TypeId;
}

struct Typed<T, S>(S, PhantomData<fn() -> T>);

fn typed<T: Send + Sync + 'static>(value: &(dyn Any + Send + Sync)) -> Result<&T, ProcessingError> {
    // Java throws ClassCastException here: a serde named for another type than the stream carries.
    value.downcast_ref::<T>().ok_or_else(|| {
        ProcessingError::new(
            "ClassCastException",
            format!("the serde for {} was given a value of another type", type_name::<T>()),
        )
    })
}

impl<T: Send + Sync + 'static, S: Serde<T>> Erased for Typed<T, S> {
    fn serialize(&self, value: &(dyn Any + Send + Sync), out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        self.0.serialize(typed(value)?, out)
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<AnyValue, ProcessingError> {
        self.0.deserialize(bytes).map(|value| Arc::new(value) as AnyValue)
    }

    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        self.0.columns()
    }

    fn partitioning_suffix(&self) -> usize {
        self.0.partitioning_suffix()
    }

    fn carries_time(&self) -> bool {
        self.0.carries_time()
    }

    fn serialize_timed(
        &self,
        value: &AnyValue,
        time: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), ProcessingError> {
        self.0.serialize_timed(typed(&**value)?, time, out)
    }

    fn deserialize_timed(&self, bytes: &[u8]) -> Result<(AnyValue, Option<Timestamp>), ProcessingError> {
        self.0.deserialize_timed(bytes).map(|(value, time)| (Arc::new(value) as AnyValue, time))
    }

    fn type_name(&self) -> &'static str {
        type_name::<T>()
    }

    fn value_type(&self) -> TypeId {
        TypeId::of::<T>()
    }
}

/// A [`Serde`] with its type erased. Cloning is cheap.
#[derive(Clone)]
pub struct AnySerde(Arc<dyn Erased>);

impl AnySerde {
    /// Erases the type of a serde.
    pub fn new<T: Send + Sync + 'static>(serde: impl Serde<T>) -> Self {
        Self(Arc::new(Typed(serde, PhantomData)))
    }

    /// The bytes of a value.
    pub fn to_bytes(&self, value: &AnyValue) -> Result<Vec<u8>, ProcessingError> {
        let mut out = Vec::new();
        self.0.serialize(&**value, &mut out)?;
        Ok(out)
    }

    /// Appends the bytes of a value.
    pub fn serialize(&self, value: &AnyValue, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        self.0.serialize(&**value, out)
    }

    /// As [`serialize`](Self::serialize), of a value that nobody shares.
    pub(crate) fn serialize_ref<T: Send + Sync + 'static>(
        &self,
        value: &T,
        out: &mut Vec<u8>,
    ) -> Result<(), ProcessingError> {
        self.0.serialize(value, out)
    }

    /// Whether this is the serde of a type.
    pub(crate) fn is_for<T: 'static>(&self) -> bool {
        self.0.value_type() == TypeId::of::<T>()
    }

    /// A value from bytes.
    pub fn deserialize(&self, bytes: &[u8]) -> Result<AnyValue, ProcessingError> {
        self.0.deserialize(bytes)
    }

    /// Natural SQL columns, where the type has them.
    pub fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        self.0.columns()
    }

    /// See [`Serde::partitioning_suffix`].
    pub fn partitioning_suffix(&self) -> usize {
        self.0.partitioning_suffix()
    }

    /// See [`Serde::carries_time`].
    pub fn carries_time(&self) -> bool {
        self.0.carries_time()
    }

    /// See [`Serde::serialize_timed`].
    pub fn serialize_timed(
        &self,
        value: &AnyValue,
        time: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), ProcessingError> {
        self.0.serialize_timed(value, time, out)
    }

    /// See [`Serde::deserialize_timed`].
    pub fn deserialize_timed(&self, bytes: &[u8]) -> Result<(AnyValue, Option<Timestamp>), ProcessingError> {
        self.0.deserialize_timed(bytes)
    }
}

impl fmt::Debug for AnySerde {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnySerde<{}>", self.0.type_name())
    }
}

/// UTF-8 text.
#[derive(Clone, Copy, Debug, Default)]
pub struct StringSerde;

impl Serde<String> for StringSerde {
    fn serialize(&self, value: &String, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<String, ProcessingError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(ProcessingError::new("SerializationException", format!("not UTF-8: {error}"))),
        }
    }
}

/// Raw bytes, unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesSerde;

impl Serde<Vec<u8>> for BytesSerde {
    fn serialize(&self, value: &Vec<u8>, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(value);
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Vec<u8>, ProcessingError> {
        Ok(bytes.to_vec())
    }
}

/// Numbers as Kafka's own serializers write them: big-endian, fixed width.
#[derive(Clone, Copy, Debug, Default)]
pub struct BigEndianSerde;

macro_rules! big_endian {
    ($($type:ty),*) => {$(
        impl Serde<$type> for BigEndianSerde {
            fn serialize(&self, value: &$type, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
                out.extend_from_slice(&value.to_be_bytes());
                Ok(())
            }

            fn deserialize(&self, bytes: &[u8]) -> Result<$type, ProcessingError> {
                bytes.try_into().map(<$type>::from_be_bytes).map_err(|_| ProcessingError::new(
                    "SerializationException",
                    format!("size of data received by {} deserializer is not {} but {}",
                        stringify!($type), size_of::<$type>(), bytes.len()),
                ))
            }
        }

        impl HasSerde for $type {
            fn serde() -> AnySerde {
                AnySerde::new::<$type>(BigEndianSerde)
            }
        }
    )*};
}
big_endian!(i16, i32, i64, u16, u32, u64, f32, f64);

/// One byte, 0 or 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct BoolSerde;

impl Serde<bool> for BoolSerde {
    fn serialize(&self, value: &bool, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.push(u8::from(*value));
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<bool, ProcessingError> {
        match bytes {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(ProcessingError::new("SerializationException", "a boolean is one byte, 0 or 1")),
        }
    }
}

/// A UUID as its hyphenated text, as Kafka's `UUIDSerializer` writes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct UuidSerde;

impl Serde<uuid::Uuid> for UuidSerde {
    fn serialize(&self, value: &uuid::Uuid, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(value.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<uuid::Uuid, ProcessingError> {
        uuid::Uuid::try_parse_ascii(bytes)
            .map_err(|error| ProcessingError::new("SerializationException", error.to_string()))
    }
}

/// JSON through serde, for any type that has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonSerde;

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Serde<T> for JsonSerde {
    fn serialize(&self, value: &T, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        serde_json::to_writer(out, value)
            .map_err(|error| ProcessingError::new("SerializationException", error.to_string()))
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<T, ProcessingError> {
        serde_json::from_slice(bytes)
            .map_err(|error| ProcessingError::new("SerializationException", error.to_string()))
    }
}

/// Nothing: null in, null out (Kafka's `VoidSerde`).
#[derive(Clone, Copy, Debug, Default)]
pub struct VoidSerde;

impl Serde<()> for VoidSerde {
    fn serialize(&self, (): &(), _: &mut Vec<u8>) -> Result<(), ProcessingError> {
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<(), ProcessingError> {
        if bytes.is_empty() {
            return Ok(());
        }
        Err(ProcessingError::new("IllegalArgumentException", "data should be null for a VoidDeserializer"))
    }
}

macro_rules! has_serde {
    ($($type:ty => $serde:expr),* $(,)?) => {$(
        impl HasSerde for $type {
            fn serde() -> AnySerde {
                AnySerde::new::<$type>($serde)
            }
        }
    )*};
}
has_serde! { String => StringSerde, Vec<u8> => BytesSerde, bool => BoolSerde, uuid::Uuid => UuidSerde, () => VoidSerde }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_big_endian_and_sized() {
        let serde = i64::serde();
        let bytes = serde.to_bytes(&(Arc::new(258_i64) as AnyValue)).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 1, 2]);
        assert!(serde.deserialize(&bytes[1..]).is_err());
    }

    #[test]
    fn a_value_of_another_type_is_an_error_not_a_panic() {
        let error = String::serde().to_bytes(&(Arc::new(1_i64) as AnyValue)).unwrap_err();
        assert_eq!(error.class, "ClassCastException");
    }
}
