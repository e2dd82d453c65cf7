//! Configuration: layers of text, read into types, checked as a whole; then never changed.
//!
//! `layers` merges default file < file < environment, `reader` turns values into types, [`Config`] is what the rest of
//! the program sees. What must always hold: nothing starts before every key was checked, all mistakes are reported
//! at once with the place each was written at, and `config/default.toml` has exactly the keys read here (a test below
//! holds the two together).

mod layers;
mod problem;
mod reader;

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

pub use layers::{DEFAULT_TOML, Layers, environment_name};
pub use problem::{ConfigError, Problem, nearest};
use reader::{Reader, shown};

use crate::{
    coupon::{db::DbConfig, relay::RelayConfig, service::CouponConfig},
    http::HttpConfig,
    streams::{
        client::kafka::KafkaConfig,
        config::{ProcessingGuarantee, Semantics, StreamsConfig},
    },
};

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of everything this process keeps.
    pub data_dir: PathBuf,
    /// The HTTP server.
    pub http: HttpConfig,
    /// Token of the admin endpoints, when there is one.
    pub admin_token: Option<Secret>,
    /// Where events are kept.
    pub log: LogConfig,
    /// Topics of the service.
    pub topics: TopicsConfig,
    /// The gate.
    pub gate: GateConfig,
    /// The ledger.
    pub ledger: LedgerConfig,
    /// The coupon service.
    pub coupon: CouponConfig,
    /// The relay from outbox to log.
    pub relay: RelayConfig,
    /// The topologies.
    pub streams: StreamsSection,
    /// Logs and metrics.
    pub telemetry: TelemetryConfig,
}

/// Where events and derived records are kept.
#[derive(Clone)]
pub enum LogConfig {
    /// In this process, in one file.
    Embedded {
        /// The file.
        path: PathBuf,
    },
    /// On a Kafka cluster.
    Kafka(KafkaConfig),
}

impl std::fmt::Debug for LogConfig {
    /// Without Kafka's properties: a password may be among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogConfig::Embedded { path } => write!(f, "Embedded({})", path.display()),
            LogConfig::Kafka(kafka) => write!(f, "Kafka({})", kafka.bootstrap_servers),
        }
    }
}

/// How topics are created.
#[derive(Clone, Debug)]
pub struct TopicsConfig {
    /// Partitions.
    pub partitions: i32,
    /// Replicas; -1 = the broker's default.
    pub replication_factor: i32,
    /// How long event topics keep records.
    pub retention: Duration,
}

/// Which gate, and its times.
#[derive(Clone, Debug)]
pub struct GateConfig {
    /// Where it lives.
    pub kind: GateKind,
    /// Age at which an unconfirmed admission is looked up.
    pub pending_timeout: Duration,
    /// How often that is done.
    pub sweep_interval: Duration,
    /// How long "sold out" may be answered from memory.
    pub sold_out_memo: Duration,
    /// Least time between two calls of a gate in Redis while few claims wait.
    pub gather: Duration,
}

/// Where the gate lives.
#[derive(Clone, Debug)]
pub enum GateKind {
    /// In this process.
    Embedded,
    /// In Redis.
    Redis {
        /// Address.
        url: Secret,
        /// Connections; calls are pipelined over them.
        connections: usize,
        /// Longest wait for one answer.
        timeout: Duration,
    },
}

/// The database that is the truth.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// `sqlite://…` or `postgres://…`, `{data_dir}` put in.
    pub url: Secret,
    /// How it is used.
    pub db: DbConfig,
}

/// What the engine runs, and how.
#[derive(Clone, Debug)]
pub struct StreamsSection {
    /// Topology files, or `builtin:NAME`.
    pub topologies: Vec<String>,
    /// Name of this process; `None` = one is made up and kept in the state directory.
    pub instance_id: Option<String>,
    /// Settings of every application; its id comes from its file.
    pub runtime: StreamsConfig,
}

/// What is logged and how.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Filter, as in `RUST_LOG`.
    pub log: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A text that must not show up in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Config {
    /// Default file < `file` < environment of this process.
    pub fn load(file: Option<&std::path::Path>) -> Result<Self, ConfigError> {
        Self::from_layers(Self::layers(file))
    }

    /// The layers [`Config::load`] reads.
    pub fn layers(file: Option<&std::path::Path>) -> Layers {
        let layers = match file {
            Some(path) => Layers::defaults().file(path),
            None => Layers::defaults(),
        };
        // A variable that is not text cannot be one of ours.
        layers.environment(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Reads and checks; every mistake is in the error.
    pub fn from_layers(layers: Layers) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(layers);
        let config = read(&mut reader);
        reader.finish()?;
        Ok(config)
    }
}

/// Every key with its value (secrets masked) and the place it came from: `sluice config show`.
pub fn show(layers: &Layers) -> String {
    let width = layers.values.keys().map(String::len).max().unwrap_or(0);
    layers
        .values
        .iter()
        .map(|(key, raw)| {
            let value = shown(key, &raw.value);
            format!("{key:width$} = {value}  # {}\n", raw.origin)
        })
        .collect()
}

fn read(reader: &mut Reader) -> Config {
    let config = Config {
        data_dir: reader.path("data_dir"),
        http: read_http(reader),
        admin_token: read_token(reader),
        log: read_log(reader),
        topics: TopicsConfig {
            partitions: reader.integer("topics.partitions", 1..=10_000) as i32,
            replication_factor: reader.integer("topics.replication_factor", -1..=100) as i32,
            retention: reader.millis("topics.retention_ms", 60_000..=i64::MAX),
        },
        gate: GateConfig {
            kind: read_gate_kind(reader),
            pending_timeout: reader.millis("gate.pending_timeout_ms", 100..=3_600_000),
            sweep_interval: reader.millis("gate.sweep_interval_ms", 10..=600_000),
            sold_out_memo: reader.millis("gate.sold_out_memo_ms", 0..=1_000),
            gather: reader.millis("gate.gather_ms", 0..=100),
        },
        ledger: read_ledger(reader),
        coupon: read_coupon(reader),
        relay: RelayConfig {
            interval: reader.millis("relay.interval_ms", 1..=60_000),
            batch_rows_max: reader.size("relay.batch_rows_max", 1..=100_000),
            lease: reader.millis("relay.lease_ms", 1_000..=600_000),
            keep_sent: reader.millis("relay.keep_sent_ms", 0..=31_536_000_000),
        },
        streams: read_streams(reader),
        telemetry: read_telemetry(reader),
    };
    check_together(reader, &config);
    config
}

fn read_http(reader: &mut Reader) -> HttpConfig {
    let listen = reader.string("http.listen");
    let address = listen.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    if address.is_none() {
        reader.problem(
            "http.listen",
            "is not an address to listen on",
            "Write HOST:PORT, for example \"127.0.0.1:8080\" or \"0.0.0.0:8080\".",
        );
    }
    HttpConfig {
        listen: address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        max_in_flight: reader.size("http.max_in_flight", 1..=1_000_000),
        connections_max: reader.size("http.connections_max", 1..=1_000_000),
        header_timeout: reader.millis("http.header_timeout_ms", 1..=600_000),
        body_timeout: reader.millis("http.body_timeout_ms", 1..=600_000),
        request_timeout: reader.millis("http.request_timeout_ms", 1..=600_000),
        body_bytes_max: reader.size("http.body_bytes_max", 256..=1_048_576),
        shutdown_grace: reader.millis("http.shutdown_grace_ms", 0..=600_000),
    }
}

fn read_token(reader: &mut Reader) -> Option<Secret> {
    let token = reader.string("admin.token");
    if token.chars().any(|c| c.is_whitespace() || !c.is_ascii_graphic()) {
        reader.problem(
            "admin.token",
            "holds a character that no HTTP header can carry",
            "Use printable ASCII without spaces, for example the output of `openssl rand -hex 32`.",
        );
    }
    (!token.is_empty()).then(|| Secret::new(token))
}

fn read_log(reader: &mut Reader) -> LogConfig {
    let path = reader.path("log.path");
    let kafka = KafkaConfig {
        bootstrap_servers: reader.string("kafka.bootstrap_servers"),
        client_id: "sluice".into(),
        properties: reader.table("kafka.properties"),
    };
    for (name, why) in kafka.refused_properties() {
        reader.problem(
            "kafka.properties",
            format!("`{name}` cannot be passed through: {why}"),
            "Remove it from the table.",
        );
    }
    match reader.choice("log.kind", &[("embedded", false), ("kafka", true)]) {
        false => LogConfig::Embedded { path },
        true => {
            if kafka.bootstrap_servers.trim().is_empty() {
                reader.problem(
                    "kafka.bootstrap_servers",
                    "is needed when log.kind = \"kafka\"",
                    "Name the brokers, for example \"localhost:9092\", or set log.kind = \"embedded\".",
                );
            }
            LogConfig::Kafka(kafka)
        }
    }
}

fn read_gate_kind(reader: &mut Reader) -> GateKind {
    let url = reader.string("redis.url");
    let connections = reader.size("redis.connections", 1..=64);
    let timeout = reader.millis("redis.timeout_ms", 1..=60_000);
    match reader.choice("gate.kind", &[("embedded", false), ("redis", true)]) {
        false => GateKind::Embedded,
        true => {
            if !["redis://", "rediss://", "redis+unix://", "unix://"].iter().any(|s| url.starts_with(s)) {
                reader.problem(
                    "redis.url",
                    "is not the address of a Redis, and gate.kind = \"redis\" needs one",
                    "Write redis://host:port, or set gate.kind = \"embedded\".",
                );
            }
            GateKind::Redis { url: Secret::new(url), connections, timeout }
        }
    }
}

fn read_ledger(reader: &mut Reader) -> LedgerConfig {
    let url = reader.string("ledger.url");
    if !["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        reader.problem(
            "ledger.url",
            "is not a database this service knows",
            "Write sqlite://PATH or postgres://user:password@host:port/database.",
        );
    }
    LedgerConfig {
        url: Secret::new(reader.expand(&url)),
        db: DbConfig {
            connections_max: reader.integer("ledger.connections_max", 1..=1_000) as u32,
            acquire_timeout: reader.millis("ledger.acquire_timeout_ms", 1..=600_000),
            statement_timeout: reader.millis("ledger.statement_timeout_ms", 1..=600_000),
            sync_commits: reader.boolean("ledger.sync_commits"),
        },
    }
}

fn read_coupon(reader: &mut Reader) -> CouponConfig {
    CouponConfig {
        event_source: reader.string("coupon.event_source"),
        snapshot_ttl: reader.millis("coupon.snapshot_ttl_ms", 0..=60_000),
        unknown_ttl: reader.millis("coupon.unknown_ttl_ms", 0..=60_000),
        duplicate_wait: reader.millis("coupon.duplicate_wait_ms", 0..=3_000),
        issue_queue_max: reader.size("coupon.issue_queue_max", 1..=10_000_000),
        idempotency_ttl: reader.millis("coupon.idempotency_ttl_ms", 60_000..=31_536_000_000),
    }
}

fn read_streams(reader: &mut Reader) -> StreamsSection {
    use ProcessingGuarantee::{AtLeastOnce, ExactlyOnce};
    let instance_id = reader.string("streams.instance_id");
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !instance_id.chars().all(is_name) || instance_id.len() > 100 {
        reader.problem(
            "streams.instance_id",
            "is not a name",
            "Use up to 100 letters, digits, dots, dashes and underscores, for example the host's name.",
        );
    }
    StreamsSection {
        topologies: reader.strings("streams.topologies"),
        instance_id: (!instance_id.is_empty()).then_some(instance_id),
        runtime: StreamsConfig {
            state_dir: reader.path("streams.state_dir"),
            num_stream_threads: reader.size("streams.num_stream_threads", 1..=256),
            processing_guarantee: reader.choice(
                "streams.processing_guarantee",
                // The last is Kafka Streams' name of the same thing.
                &[
                    ("exactly_once", ExactlyOnce),
                    ("at_least_once", AtLeastOnce),
                    ("exactly_once_v2", ExactlyOnce),
                ],
            ),
            commit_interval: reader.millis("streams.commit_interval_ms", 20..=3_600_000),
            buffer_bytes_max: reader.size("streams.buffer_bytes_max", 0..=i64::MAX),
            num_standby_replicas: reader.size("streams.num_standby_replicas", 0..=10),
            save_age_max: reader.millis("streams.save_age_max_ms", 100..=3_600_000),
            task_timeout: reader.millis("streams.task_timeout_ms", 0..=86_400_000),
            stuck_after: reader.millis("streams.stuck_after_ms", 100..=86_400_000),
            transaction_timeout: reader.millis("streams.transaction_timeout_ms", 1_000..=900_000),
            replication_factor: reader.integer("topics.replication_factor", -1..=100) as i32,
            semantics: reader.choice(
                "streams.semantics",
                &[("sluice", Semantics::Sluice), ("kafka-4.3", Semantics::Kafka43)],
            ),
            ..StreamsConfig::default()
        },
    }
}

fn read_telemetry(reader: &mut Reader) -> TelemetryConfig {
    let log = reader.string("telemetry.log");
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log) {
        let remedy = "Write a level (error, warn, info, debug, trace), or \"info,sluice::coupon=debug\".";
        reader.problem("telemetry.log", format!("is not a log filter: {error}"), remedy);
    }
    let format = reader.choice("telemetry.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    TelemetryConfig { log, format }
}

/// Combinations that each key alone cannot show to be impossible.
fn check_together(reader: &mut Reader, config: &Config) {
    let embedded = matches!(config.log, LogConfig::Embedded { .. });
    if embedded && config.topics.replication_factor > 1 {
        reader.problem(
            "topics.replication_factor",
            "is more than the one copy that log.kind = \"embedded\" keeps",
            "Set it to 1, or set log.kind = \"kafka\".",
        );
    }
    if config.topics.replication_factor == 0 {
        reader.problem("topics.replication_factor", "would keep no copy", "Write 1 or more, or -1.");
    }
    // Waiting for a connection, then begin, insert and commit.
    let issue_max = config.ledger.db.acquire_timeout + config.ledger.db.statement_timeout * 3;
    if config.gate.pending_timeout <= issue_max {
        reader.problem(
            "gate.pending_timeout_ms",
            "must be longer than an issue can take by ledger.acquire_timeout_ms and statement_timeout_ms, or the \
             sweeper judges issues still on their way",
            format!("Write more than {}.", issue_max.as_millis()),
        );
    }
}

#[cfg(test)]
mod tests;
