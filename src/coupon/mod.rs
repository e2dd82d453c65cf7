//! The coupon domain: a gate that advises, a ledger that is the truth, an outbox that reaches Kafka.

pub mod gate;
pub mod ids;
