//! The log on Kafka, through librdkafka.
