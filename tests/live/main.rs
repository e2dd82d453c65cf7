//! Tests against real services, in one binary. One module a subject; add a `mod` line.
//!
//! Each test takes its service from [`service`]: absent it prints `skipped` and returns, unless `CI=true`, where a
//! missing service is a failure.

/// The address in the environment variable `name`, or `None` after saying that the test is skipped.
pub fn service(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(address) if !address.is_empty() => Some(address),
        _ if std::env::var("CI").as_deref() == Ok("true") => {
            panic!("{name} is not set: with CI=true a test that needs a service fails")
        }
        _ => {
            println!("skipped: {name} is not set");
            None
        }
    }
}

mod chaos;
#[path = "../contract/mod.rs"]
mod contract;
mod correlation;
mod corruptions;
mod crashes;
mod crowd;
mod deployment;
mod described;
mod documents;
mod faults;
mod gate;
mod gate_repair;
mod invariants;
mod kafka_contract;
mod ledger;
mod outage;
mod parked;
mod poison;
#[path = "../common/private_redis.rs"]
mod private_redis;
mod proxy;
mod reload;
mod reset;
mod runner;
mod services;
mod spine;
mod stalls;
mod tls;
mod told;
mod topic;
mod truth;
mod verdict;
mod world;
