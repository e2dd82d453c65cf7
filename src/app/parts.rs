//! Builds single parts from the configuration.

use std::{path::Path, sync::Arc, time::Duration};

// On a line of its own: the module, not the crate of that name.
use crate::coupon::gate::redis::{RedisGate, RedisGateConfig};
use crate::{
    cli::Failure,
    config::{Config, GateKind, LogConfig},
    coupon::{
        gate::{Gate, GateError, embedded::EmbeddedGate, memo::SoldOutMemo},
        ledger::Ledger,
    },
    streams::client::{ClientSupplier, embedded::EmbeddedLog, kafka::KafkaClients},
};

/// How long to wait before a dependency that is not there yet is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How often retention and compaction are applied to the embedded log.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Makes the data directory, so that the first part that writes into it does not have to.
pub fn data_dir(config: &Config) -> Result<(), Failure> {
    make_dir(&config.data_dir, "data_dir")
}

fn make_dir(path: &Path, key: &str) -> Result<(), Failure> {
    std::fs::create_dir_all(path)
        .map_err(|error| Failure::of(format!("{key}: cannot make the directory {}", path.display()), error))
}

/// Opens the ledger; the schema is not touched.
pub async fn ledger(config: &Config) -> Result<Ledger, Failure> {
    Ledger::open(config.ledger.url.expose(), config.ledger.db.clone())
        .await
        .map_err(|error| Failure::of("ledger.url", error))
}

/// Brings the ledger's schema up to date, waiting for a database that is not there yet.
pub async fn migrate(ledger: &Ledger) -> Result<(), Failure> {
    use crate::coupon::db::DbError;
    loop {
        match ledger.ping().await {
            Ok(()) => break,
            Err(error @ DbError::Unavailable(_)) => {
                tracing::warn!(%error, "waiting for the ledger");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(error) => return Err(Failure::of("ledger", error)),
        }
    }
    ledger.migrate().await.map(drop).map_err(|error| Failure::of("migrating the ledger", error))
}

/// Builds the gate, waiting for a Redis that is not there yet.
pub async fn gate(config: &Config) -> Result<Arc<dyn Gate>, Failure> {
    let GateKind::Redis { url, connections, timeout } = &config.gate.kind else {
        return Ok(Arc::new(EmbeddedGate::new(config.gate.pending_timeout)));
    };
    loop {
        let settings = RedisGateConfig {
            url: url.expose().into(),
            connections: *connections,
            connect_timeout: *timeout,
            response_timeout: *timeout,
            pending_lease: config.gate.pending_timeout,
            gather: config.gate.gather,
        };
        match RedisGate::connect(settings).await {
            Ok(gate) if config.gate.sold_out_memo.is_zero() => return Ok(Arc::new(gate)),
            Ok(gate) => return Ok(Arc::new(SoldOutMemo::new(gate, config.gate.sold_out_memo))),
            Err(error @ GateError::Misconfigured { .. }) => return Err(Failure::of("redis.url", error)),
            Err(error) => {
                tracing::warn!(%error, "waiting for the gate's Redis");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Opens the log: the file of the embedded one, or Kafka's clients (which connect by themselves, when they can).
pub fn log(config: &Config) -> Result<Arc<dyn ClientSupplier>, Failure> {
    match &config.log {
        LogConfig::Embedded { path } => {
            if let Some(directory) = path.parent() {
                make_dir(directory, "log.path")?;
            }
            let log = EmbeddedLog::open(path)
                .map_err(|error| Failure::of(format!("log.path: {}", path.display()), error))?;
            keep_up(&log);
            Ok(Arc::new(log))
        }
        LogConfig::Kafka(kafka) => {
            let clients = KafkaClients::new(kafka.clone()).map_err(|error| Failure::of("kafka", error))?;
            Ok(Arc::new(clients))
        }
    }
}

/// Retention and compaction in the background, until nobody holds the log any more.
fn keep_up(log: &EmbeddedLog) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let maintenance = Arc::new(log.maintenance());
    runtime.spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        // The first tick comes at once, when a start has better things to do.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let maintenance = maintenance.clone();
            match tokio::task::spawn_blocking(move || maintenance.run()).await {
                Ok(Some(Ok(done))) => tracing::debug!(?done, "maintained the log"),
                Ok(Some(Err(error))) => tracing::warn!(%error, "maintaining the log"),
                Ok(None) | Err(_) => return,
            }
        }
    });
}
