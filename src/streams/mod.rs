//! The engine: Kafka Streams' model, words and semantics in Rust.

pub mod client;
pub mod config;
pub mod error;
pub mod failpoint;
pub mod file;
pub mod kstream;
pub mod metrics;
pub mod processor;
pub mod record;
pub mod runtime;
pub mod serdes;
pub mod state;
pub mod test_utils;
pub mod topology;
