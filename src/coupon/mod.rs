//! The coupon domain: a gate that advises, a ledger that is the truth, an outbox that reaches Kafka.
//!
//! A request goes down this list and never up: [`service`] -> [`issue`], [`redeem`], [`coupons`], [`query`] -> [`gate`],
//! [`ledger`] -> [`outbox`] rows -> [`relay`] -> topics. [`event`] says what is in a topic, [`model`] what a campaign
//! and a user coupon are, [`error`] which answers are refusals.

pub mod audit;
mod batching;
pub mod clock;
mod confirm;
pub mod correlation;
pub mod coupons;
pub mod db;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod gate;
pub mod ids;
pub mod issue;
pub mod ledger;
pub mod metrics;
pub mod model;
pub mod outbox;
pub mod query;
mod rebuild;
pub mod reconcile;
pub mod redeem;
pub mod relay;
pub mod service;
mod snapshot;
pub mod sweeper;
pub mod verify;
