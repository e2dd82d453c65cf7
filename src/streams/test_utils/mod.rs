//! [`TopologyTestDriver`]: the production task over topics in memory and a clock that stands still.
//!
//! | you want to | use |
//! |---|---|
//! | write to and read from topics | [`TestInputTopic`], [`TestOutputTopic`] |
//! | move the wall clock | [`TopologyTestDriver::advance_wall_clock_time`] |
//! | look into a store | [`TopologyTestDriver::with_store`] |
//! | several partitions, tasks apart | [`DriverOptions::partitions`] |
//! | stop and start the application on an empty disk | [`TopologyTestDriver::restart`] |
//! | run the tests beside a topology file | [`run_test_file`] |
//!
//! Without partitions it is the harness of Kafka's own driver (streams-semantics 2.1): one task holds all sub-topologies, every topic
//! has one partition. With them there is one task per sub-topology and partition, as in production, and keys really travel
//! through repartition topics. Either way one input record drains completely before the next, in an order that never changes.

mod driver;
mod file_test;
mod harness;
mod partitions;
mod restart;
mod topics;

pub use driver::{DriverOptions, TopologyTestDriver};
pub use file_test::{TestOutcome, run_test_file};
pub use partitions::Partitions;
pub use topics::{TestInputTopic, TestOutputTopic, TestRecord};
