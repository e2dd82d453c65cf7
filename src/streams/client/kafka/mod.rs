//! Apache Kafka behind the ports, by librdkafka.
//!
//! | file | what it is |
//! |---|---|
//! | `consumer` | classic group protocol with range assignment; rebalances are handed out, not acted upon |
//! | `producer` | idempotent or transactional; flush and commit without polling steps |
//! | `batch` | records handed over many at once |
//! | `admin` | topics, configurations, offsets of groups |
//! | `native` | the handle, its configuration, lists and strings |
//! | `error` | librdkafka's errors as what the receiver does |
//!
//! The C API is called directly rather than through rdkafka's own clients, because those step `flush` and
//! `commit_transaction` by 100 ms, cost an event per message, and act on rebalances by themselves.

mod admin;
mod batch;
mod consumer;
mod error;
mod native;
mod producer;
mod statistics;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Admin, ClientSupplier, Consumer, ConsumerConfig, Producer, ProducerConfig};
use crate::streams::error::{Result, StreamsError};

/// Where the cluster is and how to talk to it.
#[derive(Clone, Debug, Default)]
pub struct KafkaConfig {
    /// `host:port,host:port`
    pub bootstrap_servers: String,
    /// Name shown in the broker's logs and quotas; empty for librdkafka's default.
    pub client_id: String,
    /// librdkafka settings passed through, applied last. A prefix `consumer.`, `producer.` or `admin.` restricts one to
    /// that kind of client. Those the adapters rely on are refused.
    pub properties: BTreeMap<String, String>,
}

/// Settings that are the adapters' own, and where each is set instead.
const OWN_SETTINGS: &[(&str, &str)] = &[
    ("bootstrap.servers", "bootstrap_servers is a setting of its own"),
    ("metadata.broker.list", "bootstrap_servers is a setting of its own"),
    ("client.id", "client_id is a setting of its own"),
    ("group.id", "the group follows from the application id"),
    ("group.instance.id", "static membership follows from the instance's name"),
    ("group.protocol", "the classic protocol with range assignment is what tasks rely on"),
    ("partition.assignment.strategy", "range assignment keeps co-partitioned topics together"),
    ("enable.auto.commit", "offsets are committed with the results they belong to"),
    ("enable.auto.offset.store", "offsets are committed with the results they belong to"),
    ("enable.partition.eof", "restoring relies on it to find the end of a log"),
    ("isolation.level", "it follows from the processing guarantee"),
    ("auto.offset.reset", "each source says where it starts"),
    ("transactional.id", "it follows from application, instance and thread"),
    ("transaction.timeout.ms", "it is a setting of the runtime"),
    ("enable.idempotence", "order and exactly-once rely on it"),
    ("acks", "idempotence requires all"),
    ("request.required.acks", "idempotence requires all"),
    ("message.timeout.ms", "a record that expired while a later one went out would be a reordering"),
    ("delivery.timeout.ms", "a record that expired while a later one went out would be a reordering"),
    ("delivery.report.only.error", "flush and commit rely on it"),
    ("partitioner", "keys go to partitions by murmur2, as in Java"),
];

impl KafkaConfig {
    /// The configuration of a local or test cluster.
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        Self { bootstrap_servers: bootstrap_servers.into(), ..Self::default() }
    }

    fn validate(&self) -> Result<()> {
        if self.bootstrap_servers.trim().is_empty() {
            return Err(StreamsError::fatal(
                "kafka: bootstrap_servers is empty: give host:port of at least one broker",
            ));
        }
        match self.refused_properties().next() {
            Some((name, why)) => {
                Err(StreamsError::Fatal(format!("kafka: property {name:?} cannot be set: {why}; remove it")))
            }
            None => Ok(()),
        }
    }

    /// Properties that cannot be passed through, each with the reason; to report all of them before a client is made.
    pub fn refused_properties(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.properties.keys().filter_map(|name| {
            let (_, bare) = scope(name);
            OWN_SETTINGS.iter().find(|(own, _)| *own == bare).map(|(_, why)| (name.as_str(), *why))
        })
    }

    /// The properties for one kind of client, prefixes taken off.
    fn properties_for(&self, kind: &str) -> impl Iterator<Item = (&str, &str)> {
        // Those with a prefix come after those without, so that they win.
        let of = move |wanted: Option<&str>| {
            let wanted = wanted.map(str::to_owned);
            self.properties.iter().filter_map(move |(name, value)| {
                let (found, bare) = scope(name);
                (found == wanted.as_deref()).then_some((bare, value.as_str()))
            })
        };
        of(None).chain(of(Some(kind)))
    }
}

/// Splits `consumer.fetch.wait.max.ms` into its scope and the setting.
fn scope(name: &str) -> (Option<&str>, &str) {
    match name.split_once('.') {
        Some((kind @ ("consumer" | "producer" | "admin"), bare)) => (Some(kind), bare),
        _ => (None, name),
    }
}

/// Makes clients of one Kafka cluster. Making one does not connect; the first call does.
pub struct KafkaClients {
    config: KafkaConfig,
    /// One for all: it has threads of its own and is used rarely.
    admin: Mutex<Option<Arc<admin::KafkaAdmin>>>,
}

impl KafkaClients {
    /// Checks the configuration.
    pub fn new(config: KafkaConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, admin: Mutex::new(None) })
    }
}

impl ClientSupplier for KafkaClients {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        Ok(Box::new(consumer::KafkaConsumer::new(&self.config, config.clone())?))
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::KafkaProducer::new(&self.config, config.clone())?))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>> {
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(admin) = &*admin {
            return Ok(admin.clone());
        }
        let made = Arc::new(admin::KafkaAdmin::new(&self.config)?);
        *admin = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> KafkaConfig {
        let mut config = KafkaConfig::new("localhost:1");
        config.properties.insert(name.to_owned(), value.to_owned());
        config
    }

    #[test]
    fn settings_the_adapters_rely_on_are_refused_with_a_reason() {
        for name in ["enable.auto.commit", "consumer.isolation.level", "producer.transactional.id"] {
            let error = KafkaClients::new(with(name, "x")).err().expect(name).to_string();
            assert!(error.contains(name) && error.contains("remove it"), "{error}");
        }
        assert!(KafkaClients::new(KafkaConfig::default()).is_err());
        assert!(KafkaClients::new(with("linger.ms", "3")).is_ok());
    }

    #[test]
    fn a_prefixed_property_reaches_its_kind_only_and_wins() {
        let mut config = with("linger.ms", "1");
        config.properties.insert("producer.linger.ms".into(), "2".into());
        assert_eq!(
            config.properties_for("producer").collect::<Vec<_>>(),
            [("linger.ms", "1"), ("linger.ms", "2")]
        );
        assert_eq!(config.properties_for("consumer").collect::<Vec<_>>(), [("linger.ms", "1")]);
    }

    #[test]
    fn a_misspelt_property_is_an_error_that_names_it() {
        let clients = KafkaClients::new(with("linger.mss", "1")).unwrap();
        let error = clients.producer(&ProducerConfig::default()).err().expect("must be refused").to_string();
        assert!(error.contains("linger.mss"), "{error}");
    }
}
