//! The engine: Kafka Streams' model, words and semantics in Rust.
//!
//! | you want to | start at |
//! |---|---|
//! | write a topology with streams, tables, windows and joins | [`kstream`]: [`StreamsBuilder`](kstream::StreamsBuilder) |
//! | write a node of your own, with stores and schedules | [`processor`]: [`Processor`](processor::Processor), [`FixedKeyProcessor`](processor::FixedKeyProcessor) |
//! | connect such nodes without the DSL | [`topology`]: [`TopologyBuilder`](topology::TopologyBuilder) |
//! | describe stores, read and write them | [`stores`] |
//! | write a topology as a file | [`mod@file`]: [`load`](file::load) |
//! | see it as text or as a picture | [`Topology::describe`](topology::Topology::describe), [`dot`](topology::Topology::dot), [`svg`](topology::Topology::svg) |
//! | test it record by record | [`test_utils`]: [`TopologyTestDriver`](test_utils::TopologyTestDriver) |
//! | run it | [`runtime`]: [`KafkaStreams`](runtime::KafkaStreams), with the settings in [`config`] |
//! | choose the log: Kafka, or one in this process | [`client`]: [`KafkaClients`](client::kafka::KafkaClients), [`EmbeddedLog`](client::embedded::EmbeddedLog) |
//! | decide what happens to bad records | [`ErrorHandlers`](processor::ErrorHandlers), and [`error`] for what errors mean |
//! | turn types into bytes | [`serdes`]: [`HasSerde`](serdes::HasSerde), [`Serde`](serdes::Serde) |
//! | watch it | [`metrics`] |
//!
//! From a topology in code to its results, in memory:
//!
//! ```
//! use sluice::streams::{kstream::StreamsBuilder, serdes::HasSerde, test_utils::TopologyTestDriver};
//!
//! let builder = StreamsBuilder::new();
//! builder.stream::<String, String>("visits").group_by_key().count().to_stream().to("visits-per-page");
//! let driver = TopologyTestDriver::new(builder.build("pages")?)?;
//!
//! let visits = driver.create_input_topic::<String, String>("visits", String::serde(), String::serde());
//! let counts = driver.create_output_topic::<String, i64>("visits-per-page", String::serde(), i64::serde());
//! visits.pipe_input(Some("/".into()), Some("ann".into()), 0)?;
//! visits.pipe_input(Some("/".into()), Some("bob".into()), 1)?;
//! assert_eq!(counts.read_key_values()?, [(Some("/".into()), Some(1)), (Some("/".into()), Some(2))]);
//! # Ok::<(), sluice::streams::error::StreamsError>(())
//! ```
//!
//! Who comes from Kafka Streams finds concept by concept what is the same and what is not in `docs/streams.md`.

#![warn(unreachable_pub)]

pub mod client;
pub mod config;
pub mod error;
pub(crate) mod failpoint;
pub mod file;
#[doc(hidden)]
pub mod internals;
pub mod kstream;
pub mod metrics;
pub mod processor;
pub mod record;
pub mod runtime;
pub mod serdes;
pub(crate) mod state;
pub mod stores;
pub mod test_utils;
pub mod topology;
