//! Kafka under the contract of the ports, on the cluster that `SLUICE_TEST_KAFKA` names.

use sluice::streams::client::kafka::{KafkaClients, KafkaConfig};

use crate::service;

macro_rules! tests {
    ($($case:ident)*) => { $(
        #[test]
        fn $case() {
            if let Some(bootstrap) = service("SLUICE_TEST_KAFKA") {
                crate::contract::$case(&KafkaClients::new(KafkaConfig::new(bootstrap)).unwrap());
            }
        }
    )* };
}
crate::for_each_case!(tests);
