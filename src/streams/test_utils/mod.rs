//! [`TopologyTestDriver`]: the production task over topics in memory and a clock that stands still.
//!
//! | you want to | use |
//! |---|---|
//! | write to and read from topics | [`input_topic`](TopologyTestDriver::input_topic), [`output_topic`](TopologyTestDriver::output_topic) |
//! | move the wall clock | [`TopologyTestDriver::advance_wall_clock_time`] |
//! | look into a store | [`key_value_store`](TopologyTestDriver::key_value_store) and its neighbours |
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

pub use driver::{DriverOptions, StorePart, TopologyTestDriver};
pub use file_test::{TestOutcome, run_test_file};
pub(crate) use harness::lone_task;
pub use partitions::Partitions;
pub use topics::{TestInputTopic, TestOutputTopic, TestRecord};
