//! Tests that need no service: everything here runs against the embedded log, files and memory, in one binary because
//! linking is the slow part. One module a subject; add a `mod` line.

mod alerts;
mod bad_input;
mod bench;
#[path = "../common/binary.rs"]
mod binary;
mod dead_letters;
mod documents;
mod driver_partitions;
mod dsl_corrections;
mod dsl_join_corrections;
mod dsl_names;
mod dsl_properties;
mod dsl_runtime;
mod dsl_sources;
mod dsl_window_corrections;
mod gate;
mod http;
mod ledger;
mod operator;
mod processor_api;
mod rebalancing;
#[path = "../common/server.rs"]
mod server;
mod standstill;
mod state_survival;
mod streams_runtime;
mod topologies;
mod topologies_runtime;
mod topology_changes;
mod topology_format;
mod topology_fuzz;
mod topology_windows;
mod verify;
mod watchdog;
mod window_properties;

#[path = "../contract/mod.rs"]
mod contract;
mod embedded_contract;
mod embedded_random;
