//! The options of operators: [`Consumed`], [`Produced`], [`Grouped`], [`Repartitioned`], [`Materialized`], [`Joined`],
//! [`StreamJoined`], [`TableJoined`]. Kafka Streams' classes, one builder method per setting.
//!
//! A serde not given here is inherited from the stream, else taken from the type
//! ([`StreamsBuilder::register_serde`](super::StreamsBuilder::register_serde) for types of one's own).

use std::{marker::PhantomData, time::Duration};

use super::named::Named;
use crate::streams::{
    client::OffsetReset,
    serdes::{AnySerde, HasSerde},
    state::Backend,
    topology::{Partitioner, TimestampExtractor},
};

/// Clones field by field: the types are only markers and need not be `Clone`.
macro_rules! cloned {
    ($name:ident<$($type:ident),*>: $($field:ident),*) => {
        impl<$($type),*> Clone for $name<$($type),*> {
            fn clone(&self) -> Self {
                Self { $($field: self.$field.clone(),)* types: PhantomData }
            }
        }
    };
}
cloned!(Consumed<K, V>: key_serde, value_serde, timestamp_extractor, offset_reset, name);
cloned!(Produced<K, V>: key_serde, value_serde, partitioner, name);
cloned!(Grouped<K, V>: key_serde, value_serde, name);
cloned!(Repartitioned<K, V>: key_serde, value_serde, name, number_of_partitions, partitioner);
cloned!(Materialized<K, V>: store_name, key_serde, value_serde, caching, logging, retention, backend, versioned);
cloned!(Joined<K, V, VO>: key_serde, value_serde, name, grace);
cloned!(StreamJoined<K, V, VO>: key_serde, value_serde, other_value_serde, name, store_name, logging, backend);
cloned!(TableJoined<K, KO>: name, partitioner, other_partitioner);

macro_rules! serde_setters {
    ($key:ident, $value:ident) => {
        /// Serde of keys.
        pub fn with_key_serde(mut self, serde: AnySerde) -> Self {
            self.$key = Some(serde);
            self
        }

        /// Serde of values.
        pub fn with_value_serde(mut self, serde: AnySerde) -> Self {
            self.$value = Some(serde);
            self
        }
    };
}

/// How a source reads its topic.
pub struct Consumed<K, V> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) timestamp_extractor: Option<TimestampExtractor>,
    pub(crate) offset_reset: Option<OffsetReset>,
    pub(crate) name: Named,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Default for Consumed<K, V> {
    fn default() -> Self {
        Self {
            key_serde: None,
            value_serde: None,
            timestamp_extractor: None,
            offset_reset: None,
            name: Named::default(),
            types: PhantomData,
        }
    }
}

impl<K, V> Consumed<K, V> {
    /// Reads with these serdes.
    pub fn with(key: AnySerde, value: AnySerde) -> Self {
        Self::default().with_key_serde(key).with_value_serde(value)
    }

    /// Reads with the serdes of the types.
    pub fn of() -> Self
    where
        K: HasSerde,
        V: HasSerde,
    {
        Self::with(K::serde(), V::serde())
    }

    serde_setters!(key_serde, value_serde);

    /// Where the event time comes from.
    pub fn with_timestamp_extractor(mut self, extractor: TimestampExtractor) -> Self {
        self.timestamp_extractor = Some(extractor);
        self
    }

    /// Where to start without a committed offset.
    pub fn with_offset_reset(mut self, reset: OffsetReset) -> Self {
        self.offset_reset = Some(reset);
        self
    }

    /// Names the source.
    pub fn with_name(mut self, name: impl Into<Named>) -> Self {
        self.name = name.into();
        self
    }
}

/// How a sink writes its topic.
pub struct Produced<K, V> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) partitioner: Option<Partitioner>,
    pub(crate) name: Named,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Default for Produced<K, V> {
    fn default() -> Self {
        Self {
            key_serde: None,
            value_serde: None,
            partitioner: None,
            name: Named::default(),
            types: PhantomData,
        }
    }
}

impl<K, V> Produced<K, V> {
    /// Writes with these serdes.
    pub fn with(key: AnySerde, value: AnySerde) -> Self {
        Self::default().with_key_serde(key).with_value_serde(value)
    }

    serde_setters!(key_serde, value_serde);

    /// Chooses partitions instead of the hash of the key.
    pub fn with_partitioner(mut self, partitioner: Partitioner) -> Self {
        self.partitioner = Some(partitioner);
        self
    }

    /// Names the sink.
    pub fn with_name(mut self, name: impl Into<Named>) -> Self {
        self.name = name.into();
        self
    }
}

/// How a stream is grouped: serdes, and the name of the repartition topic where one is needed.
pub struct Grouped<K, V> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) name: Option<String>,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Default for Grouped<K, V> {
    fn default() -> Self {
        Self { key_serde: None, value_serde: None, name: None, types: PhantomData }
    }
}

impl<K, V> Grouped<K, V> {
    /// Groups with these serdes.
    pub fn with(key: AnySerde, value: AnySerde) -> Self {
        Self::default().with_key_serde(key).with_value_serde(value)
    }

    /// Names the repartition topic (and, for `group_by`, the node that selects the key).
    pub fn named(name: impl Into<String>) -> Self {
        Self::default().with_name(name)
    }

    serde_setters!(key_serde, value_serde);

    /// Names the repartition topic.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// How a stream is repartitioned.
pub struct Repartitioned<K, V> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) name: Option<String>,
    pub(crate) number_of_partitions: Option<i32>,
    pub(crate) partitioner: Option<Partitioner>,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Default for Repartitioned<K, V> {
    fn default() -> Self {
        Self {
            key_serde: None,
            value_serde: None,
            name: None,
            number_of_partitions: None,
            partitioner: None,
            types: PhantomData,
        }
    }
}

impl<K, V> Repartitioned<K, V> {
    /// Names the topic: `<application_id>-<name>-repartition`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    serde_setters!(key_serde, value_serde);

    /// Fixes the number of partitions.
    pub fn with_number_of_partitions(mut self, partitions: i32) -> Self {
        self.number_of_partitions = Some(partitions);
        self
    }

    /// Chooses partitions instead of the hash of the key.
    pub fn with_partitioner(mut self, partitioner: Partitioner) -> Self {
        self.partitioner = Some(partitioner);
        self
    }
}

/// Whether and how the result of an operator is stored.
pub struct Materialized<K, V> {
    pub(crate) store_name: Option<String>,
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) caching: bool,
    pub(crate) logging: bool,
    pub(crate) retention: Option<Duration>,
    pub(crate) backend: Option<Backend>,
    pub(crate) versioned: Option<Duration>,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Default for Materialized<K, V> {
    fn default() -> Self {
        Self {
            store_name: None,
            key_serde: None,
            value_serde: None,
            caching: true,
            logging: true,
            retention: None,
            backend: None,
            versioned: None,
            types: PhantomData,
        }
    }
}

impl<K, V> Materialized<K, V> {
    /// Stores under this name, which makes the store queryable.
    pub fn named(store_name: impl Into<String>) -> Self {
        Self { store_name: Some(store_name.into()), ..Self::default() }
    }

    /// Stores with these serdes.
    pub fn with(key: AnySerde, value: AnySerde) -> Self {
        Self::default().with_key_serde(key).with_value_serde(value)
    }

    serde_setters!(key_serde, value_serde);

    /// Whether a record cache sits on the store (on by default; versioned stores never have one).
    pub fn with_caching(mut self, caching: bool) -> Self {
        self.caching = caching;
        self
    }

    /// Whether changes go to a changelog topic (on by default).
    pub fn with_logging(mut self, logging: bool) -> Self {
        self.logging = logging;
        self
    }

    /// How long windows or sessions are kept; at least size and grace.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Where rows live.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Keeps versions of each value for this long (KIP-889).
    pub fn versioned(mut self, history: Duration) -> Self {
        self.versioned = Some(history);
        self
    }
}

/// Options of a stream-table join.
pub struct Joined<K, V, VO> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) name: Named,
    pub(crate) grace: Option<Duration>,
    types: PhantomData<fn(K, V, VO)>,
}

impl<K, V, VO> Default for Joined<K, V, VO> {
    fn default() -> Self {
        Self { key_serde: None, value_serde: None, name: Named::default(), grace: None, types: PhantomData }
    }
}

impl<K, V, VO> Joined<K, V, VO> {
    /// Names the join, and its repartition topic where one is needed.
    pub fn named(name: impl Into<Named>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    serde_setters!(key_serde, value_serde);

    /// Waits this long for the table to catch up; needs a versioned table.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }
}

/// Options of a stream-stream join.
pub struct StreamJoined<K, V, VO> {
    pub(crate) key_serde: Option<AnySerde>,
    pub(crate) value_serde: Option<AnySerde>,
    pub(crate) other_value_serde: Option<AnySerde>,
    pub(crate) name: Named,
    pub(crate) store_name: Option<String>,
    pub(crate) logging: bool,
    pub(crate) backend: Option<Backend>,
    types: PhantomData<fn(K, V, VO)>,
}

impl<K, V, VO> Default for StreamJoined<K, V, VO> {
    fn default() -> Self {
        Self {
            key_serde: None,
            value_serde: None,
            other_value_serde: None,
            name: Named::default(),
            store_name: None,
            logging: true,
            backend: None,
            types: PhantomData,
        }
    }
}

impl<K, V, VO> StreamJoined<K, V, VO> {
    /// Names the join's nodes and repartition topics.
    pub fn named(name: impl Into<Named>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    serde_setters!(key_serde, value_serde);

    /// Names the join's nodes and repartition topics.
    pub fn with_name(mut self, name: impl Into<Named>) -> Self {
        self.name = name.into();
        self
    }

    /// Serde of the other stream's values.
    pub fn with_other_value_serde(mut self, serde: AnySerde) -> Self {
        self.other_value_serde = Some(serde);
        self
    }

    /// Names the join's stores.
    pub fn with_store_name(mut self, name: impl Into<String>) -> Self {
        self.store_name = Some(name.into());
        self
    }

    /// Whether the stores are logged (on by default).
    pub fn with_logging(mut self, logging: bool) -> Self {
        self.logging = logging;
        self
    }

    /// Where rows live.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }
}

/// Options of a foreign-key join.
pub struct TableJoined<K, KO> {
    pub(crate) name: Named,
    pub(crate) partitioner: Option<Partitioner>,
    pub(crate) other_partitioner: Option<Partitioner>,
    types: PhantomData<fn(K, KO)>,
}

impl<K, KO> Default for TableJoined<K, KO> {
    fn default() -> Self {
        Self { name: Named::default(), partitioner: None, other_partitioner: None, types: PhantomData }
    }
}

impl<K, KO> TableJoined<K, KO> {
    /// Names the join's nodes and topics.
    pub fn named(name: impl Into<Named>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// How this table is partitioned, when not by the hash of its key.
    pub fn with_partitioner(mut self, partitioner: Partitioner) -> Self {
        self.partitioner = Some(partitioner);
        self
    }

    /// How the other table is partitioned, when not by the hash of its key.
    pub fn with_other_partitioner(mut self, partitioner: Partitioner) -> Self {
        self.other_partitioner = Some(partitioner);
        self
    }
}
