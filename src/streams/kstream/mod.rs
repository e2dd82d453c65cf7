//! The typed DSL: Kafka Streams' streams and tables, one operator per file.
//!
//! A topology begins at a [`StreamsBuilder`]; every operator is a method with an example.
//!
//! | you have | you want | with | which gives |
//! |---|---|---|---|
//! | a topic | its records, or its rows | [`stream`](StreamsBuilder::stream), [`table`](StreamsBuilder::table), [`global_table`](StreamsBuilder::global_table) | [`KStream`], [`KTable`], [`GlobalKTable`] |
//! | a stream | fewer or other records | [`filter`](KStream::filter), [`map_values`](KStream::map_values), [`map`](KStream::map), [`select_key`](KStream::select_key), [`flat_map`](KStream::flat_map) | [`KStream`] |
//! | | several streams, or one of two | [`split`](KStream::split), [`merge`](KStream::merge) | [`BranchedKStream`], [`KStream`] |
//! | | to look, to write | [`peek`](KStream::peek), [`for_each`](KStream::for_each), [`to`](KStream::to), [`to_dynamic`](KStream::to_dynamic), [`repartition`](KStream::repartition) | |
//! | | code of your own | [`process`](KStream::process), [`process_values`](KStream::process_values) | [`KStream`] |
//! | | aggregates | [`group_by_key`](KStream::group_by_key), [`group_by`](KStream::group_by), then [`count`](KGroupedStream::count), [`reduce`](KGroupedStream::reduce), [`aggregate`](KGroupedStream::aggregate), [`cogroup`](KGroupedStream::cogroup) | [`KTable`] |
//! | | aggregates by window | [`windowed_by`](KGroupedStream::windowed_by) with [`TimeWindows`], [`SlidingWindows`], [`UnlimitedWindows`]; [`windowed_by_session`](KGroupedStream::windowed_by_session) with [`SessionWindows`] | [`KTable`] of [`Windowed`] keys |
//! | two streams | pairs that are close in time | [`join`](KStream::join), [`left_join`](KStream::left_join), [`outer_join`](KStream::outer_join) with [`JoinWindows`] | [`KStream`] |
//! | a stream and a table | each record with its row | [`join_table`](KStream::join_table), [`left_join_table`](KStream::left_join_table), [`join_global`](KStream::join_global), [`left_join_global`](KStream::left_join_global) | [`KStream`] |
//! | a stream | a table | [`to_table`](KStream::to_table) | [`KTable`] |
//! | a table | other rows | [`filter`](KTable::filter), [`map_values`](KTable::map_values), [`transform_values`](KTable::transform_values) | [`KTable`] |
//! | | aggregates over rows | [`group_by`](KTable::group_by), then [`aggregate`](KGroupedTable::aggregate) | [`KTable`] |
//! | | fewer updates, or final ones | [`suppress`](KTable::suppress), [`suppress_windows`](KTable::suppress_windows), [`EmitStrategy`] | [`KTable`] |
//! | | its changes | [`to_stream`](KTable::to_stream) | [`KStream`] |
//! | two tables | rows of equal key | [`join`](KTable::join), [`left_join`](KTable::left_join), [`outer_join`](KTable::outer_join) | [`KTable`] |
//! | | rows by a key found in the value | [`join_on`](KTable::join_on), [`left_join_on`](KTable::left_join_on) | [`KTable`] |
//!
//! Names and stores are given with [`Named`] and [`Materialized`], serdes and the rest with [`Consumed`], [`Produced`], [`Grouped`],
//! [`Repartitioned`], [`Joined`], [`StreamJoined`] and [`TableJoined`]; what holds for a whole topology with [`TopologyConfig`].
//!
//! Keys and values reach closures as `Option<&K>`, `Option<&V>`: null is allowed wherever Kafka allows it. The `_with` and
//! `_named` forms take options and names, the `try_` and `_with` forms take functions that may fail.
//!
//! For those who work on the engine: each operator is an untyped processor (`AnyProcessor`) and a thin typed method in the same file.
//! Calling a method adds a node to the logical `graph`; [`StreamsBuilder::build`] optimises it (`optimize`) and writes it to a
//! [`Topology`](crate::streams::topology::Topology). Names, numbers and order are Kafka's, so `describe()` prints the same text.

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
pub use table_transform_values::ValueTransformer;
pub use time_windowed::TimeWindowedKStream;
pub(crate) use value_getter::ValueGetterSupplier;
pub use window::{EmitStrategy, SessionWindows, SlidingWindows, TimeWindows, UnlimitedWindows, Windows};
pub use windowed::{SessionWindowedSerde, TimeWindowedSerde, Window, Windowed};
