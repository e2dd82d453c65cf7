//! sluice: first-come-first-served coupons, and the Kafka Streams for Rust that runs under them.
//!
//! | module | what it is |
//! |---|---|
//! | [`streams`] | the engine: Kafka Streams' model over a log, exactly-once, state in SQLite. Knows no coupon. |
//! | [`coupon`] | the domain: gate, ledger, outbox, relay |
//! | [`http`] | the API: parse, one call into the domain, answer |
//! | [`app`] | the composition root: the only module that knows all the others |
//! | [`cli`], [`config`], [`telemetry`] | the edges of the process |

pub mod app;
pub mod cli;
pub mod config;
pub mod coupon;
pub mod http;
pub mod streams;
pub mod telemetry;
