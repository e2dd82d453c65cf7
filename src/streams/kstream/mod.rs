//! The typed DSL: Kafka Streams' streams and tables, one operator per file.
//!
//! | You have | in | you get |
//! |---|---|---|
//! | a topic | [`StreamsBuilder`] | [`KStream`], [`KTable`], [`GlobalKTable`] |
//! | a stream | `filter`, `map`, `flat_map`, `peek`, `merge`, `branch`, `repartition`, `to`, `process` | [`KStream`] |
//! | a stream | `group_by` | [`KGroupedStream`] |
//! | a grouped stream | `stream_aggregate`, `stream_reduce` | [`KTable`] |
//! | a grouped stream | `time_windowed`, `session_windowed`, `cogroup` | [`KTable`] of [`Windowed`] keys |
//! | a table | `suppress`, `table_filter`, `table_map_values`, `table_transform_values`, `to_stream` | [`KTable`], [`KStream`] |
//! | a table | `table_group_by` | [`KGroupedTable`] |
//! | a grouped table | `table_aggregate` | [`KTable`] |
//! | a stream and a stream, table or global table | `stream_stream_join`, `stream_table_join` | [`KStream`] |
//! | two tables | `table_table_join`, `foreign_key_join` | [`KTable`] |
//!
//! Each operator is an untyped processor ([`AnyProcessor`](crate::streams::processor::AnyProcessor)) and a thin typed method in
//! the same file. Calling a method adds a node to the logical [`graph`]; [`StreamsBuilder::build`] optimises it ([`optimize`]) and
//! writes it to a [`Topology`](crate::streams::topology::Topology). Names, numbers and order are Kafka's, so `describe()` prints the same text.
//!
//! Keys and values reach closures as `Option<&K>`, `Option<&V>`: null is allowed wherever Kafka allows it. The `_with` and
//! `_named` forms take options and names, the `try_` and `_with` forms take functions that may fail.

mod branch;
mod change_serde;
mod cogroup;
mod filter;
mod flat_map;
mod foreign_key_join;
mod functions;
mod global_table;
mod graft;
mod graph;
mod group_by;
mod join_buffer;
mod join_windows;
#[allow(clippy::module_inception, reason = "KStream lives where a Kafka Streams user looks for it")]
mod kstream;
mod map;
mod merge;
mod named;
mod optimize;
mod options;
mod peek;
mod pending_rows;
mod process;
mod repartition;
mod session_aggregate;
mod session_windowed;
mod sliding_aggregate;
mod source;
mod stream_aggregate;
mod stream_reduce;
mod stream_stream_join;
mod stream_table_join;
mod streams_builder;
mod suppress;
mod table;
mod table_aggregate;
mod table_filter;
mod table_group_by;
mod table_map_values;
mod table_source;
mod table_store;
mod table_table_join;
mod table_transform_values;
mod time_windowed;
mod to;
mod to_stream;
mod value_getter;
mod window;
mod window_aggregate;
mod window_emit;
mod window_getter;
mod windowed;

pub use branch::BranchedKStream;
pub use cogroup::{CogroupedKStream, SessionWindowedCogroupedKStream, TimeWindowedCogroupedKStream};
pub use functions::{Data, UserResult};
pub use global_table::GlobalKTable;
pub(crate) use graft::{Graft, GraftedNode, place_of_stream, place_of_table, with_serdes};
pub use graph::TopologyConfig;
pub use group_by::KGroupedStream;
pub use join_windows::JoinWindows;
pub use kstream::KStream;
pub use named::Named;
pub use options::{
    Consumed, Grouped, Joined, Materialized, Produced, Repartitioned, StreamJoined, TableJoined,
};
pub use session_windowed::SessionWindowedKStream;
pub use streams_builder::StreamsBuilder;
pub use suppress::{BufferConfig, Suppressed, WhenFull};
pub use table::KTable;
pub use table_group_by::KGroupedTable;
pub(crate) use table_source::table_source_processor;
pub use table_transform_values::{TransformContext, ValueTransformer};
pub use time_windowed::TimeWindowedKStream;
pub(crate) use value_getter::ValueGetterSupplier;
pub use window::{EmitStrategy, SessionWindows, SlidingWindows, TimeWindows, UnlimitedWindows, Windows};
pub use windowed::{SessionWindowedSerde, TimeWindowedSerde, Window, Windowed};
