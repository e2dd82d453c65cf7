//! sluice: first-come-first-served coupons, and the Kafka Streams for Rust that runs under them.
//!
//! | you want | go to |
//! |---|---|
//! | Kafka Streams in Rust: streams, tables, windows, joins, exactly-once state | [`streams`] |
//! | to write a topology | [`streams::kstream`], or as a file, [`streams::file`] |
//! | to test it | [`streams::test_utils`] |
//! | to run it, on Kafka or in this process | [`streams::runtime`], [`streams::client`] |
//! | coupons: the domain with its gate, ledger, outbox and relay | [`coupon`] |
//! | their API over HTTP | [`http`] |
//! | the program: its parts put together, its command line, settings and logs | [`app`], [`cli`], [`config`], [`telemetry`] |
//!
//! The engine knows no coupon; the coupon service is its first user. How the parts may import each other is in `ARCHITECTURE.md`.

pub mod app;
pub mod cli;
pub mod config;
pub mod coupon;
pub mod http;
pub mod streams;
pub mod telemetry;
