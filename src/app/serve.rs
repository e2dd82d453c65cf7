//! `sluice serve`: starts the parts a process is to run, and stops them in order.
//!
//! Start: ledger and schema, gate, service, log and topics, then the parts. Stop, on SIGTERM or SIGINT:
//! 1. no new connections; admitted requests finish (`http.shutdown_grace_ms`),
//! 2. the outbox is relayed as far as the log takes it,
//! 3. topologies commit and leave their group,
//! 4. connections close.
//!
//! A second signal ends the process at once; nothing is lost by that, only repeated.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use super::{parts, topics};
use crate::{
    cli::{Failure, Role},
    config::{Config, Secret, TopicsConfig},
    coupon::{clock::Clock, ledger::Ledger, relay::Relay, service::CouponService, sweeper::Sweeper},
    http::{self, ApiState, InFlight, admin::AdminGuard, ops::Check},
    streams::client::ClientSupplier,
    telemetry,
};

/// How long a dependency may take to answer a readiness check.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before topics are tried again on a cluster that does not answer.
const TOPICS_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Runs the given parts until a signal comes.
pub async fn serve(config: Config, roles: Vec<Role>) -> Result<(), Failure> {
    let stop = signals()?;
    let process = Process::start(config, &roles).await?;
    if let Some(address) = process.address {
        println!("sluice listens on http://{address}");
    }
    let mut stopped = stop;
    // An error means that the sender is gone, which only happens when the process ends.
    drop(stopped.wait_for(|stop| *stop).await);
    process.stop().await;
    Ok(())
}

/// Becomes true at the first SIGTERM or SIGINT; the second ends the process.
pub fn signals() -> Result<watch::Receiver<bool>, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::of("listening for signals", error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut seen = false;
        loop {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            if seen {
                // 128 + SIGINT, as shells report it.
                std::process::exit(130);
            }
            seen = true;
            tracing::info!("stopping: admitted requests finish; a second signal ends at once");
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}

/// Every part of a running process.
pub struct Process {
    /// Where the API listens, when it runs here.
    pub address: Option<SocketAddr>,
    /// The coupon service.
    pub service: Arc<CouponService>,
    /// The log.
    pub log: Arc<dyn ClientSupplier>,
    ledger: Ledger,
    http_stop: watch::Sender<bool>,
    http: Option<JoinHandle<usize>>,
    /// Stops what stands behind the API; later than the API itself, whose last requests it must still carry.
    behind_stop: watch::Sender<bool>,
    /// What stands behind the API, by name.
    behind: Vec<(&'static str, JoinHandle<()>)>,
}

impl Process {
    /// Starts the parts; returns when the API listens. Waits for a ledger or gate that is not there yet, never for
    /// Kafka: facts wait in the outbox.
    pub async fn start(config: Config, roles: &[Role]) -> Result<Self, Failure> {
        parts::data_dir(&config)?;
        let registry = telemetry::registry();
        let ledger = parts::ledger(&config).await?;
        parts::migrate(&ledger).await?;
        let gate = parts::gate(&config).await?;
        let service = CouponService::new(gate, ledger.clone(), Clock::system(), config.coupon.clone());
        let service = Arc::new(service);
        register(service.metrics().register(&registry))?;

        let log = parts::log(&config)?;
        let topics_ready = ensure_topics(log.clone(), config.topics.clone());

        let (http_stop, stopped) = watch::channel(false);
        let (behind_stop, behind_stopped) = watch::channel(false);
        let mut process = Self {
            address: None,
            service: service.clone(),
            log,
            ledger,
            http_stop,
            http: None,
            behind_stop,
            behind: Vec::new(),
        };
        if roles.contains(&Role::Relay) {
            process.start_relay(&config, &registry, behind_stopped.clone())?;
        }
        if roles.contains(&Role::Api) {
            let readiness = readiness(service.clone(), topics_ready);
            // Beside the API: an embedded gate lives in its process only.
            let sweeping = Sweeper::new((*service).clone()).run(config.gate.sweep_interval, behind_stopped);
            process.behind.push(("sweeper", tokio::spawn(sweeping)));
            process.start_http(&config, registry, readiness, stopped).await?;
        }
        Ok(process)
    }

    fn start_relay(
        &mut self,
        config: &Config,
        registry: &prometheus::Registry,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let relay = Relay::new(&self.ledger, self.log.clone(), Clock::system(), config.relay.clone());
        register(relay.metrics().register(registry))?;
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        self.behind.push(("relay", tokio::spawn(relay.run(stop))));
        Ok(())
    }

    async fn start_http(
        &mut self,
        config: &Config,
        registry: prometheus::Registry,
        readiness: http::ops::ReadinessProbe,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let listener = TcpListener::bind(config.http.listen)
            .await
            .map_err(|error| Failure::of(format!("http.listen: {}", config.http.listen), error))?;
        let address = listener.local_addr().map_err(|error| Failure::of("http.listen", error))?;
        let metrics = register(http::register_metrics(&registry))?;
        let state = Arc::new(ApiState {
            service: self.service.clone(),
            config: config.http.clone(),
            admin: AdminGuard::new(config.admin_token.as_ref().map(Secret::expose), address),
            in_flight: InFlight::default(),
            metrics: metrics.clone(),
            registry,
            readiness,
        });
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let serving = http::serve(listener, http::router(state), config.http.clone(), metrics, stop);
        self.address = Some(address);
        self.http = Some(tokio::spawn(serving));
        tracing::info!(%address, "the API listens");
        Ok(())
    }

    /// Stops in the order the file's description gives.
    pub async fn stop(mut self) {
        self.http_stop.send_replace(true);
        if let Some(http) = self.http.take() {
            match http.await {
                Ok(0) => {}
                Ok(cut) => tracing::warn!(cut, "requests longer than http.shutdown_grace_ms were cut off"),
                Err(error) => tracing::error!(%error, "the HTTP server failed"),
            }
        }
        self.behind_stop.send_replace(true);
        for (name, running) in self.behind.drain(..) {
            if let Err(error) = running.await {
                tracing::error!(%error, name, "a part of the process failed");
            }
        }
        self.ledger.close().await;
        tracing::info!("stopped");
    }
}

fn register<T>(result: prometheus::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::of("registering metrics", error))
}

/// Creates and checks the topics in the background, again and again until the log answers. What is wrong is logged
/// once and shown by `/readyz`.
fn ensure_topics(
    log: Arc<dyn ClientSupplier>,
    config: TopicsConfig,
) -> watch::Receiver<Option<Result<(), String>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let (log, config) = (log.clone(), config.clone());
            // Admin calls block: they must not hold a thread that serves requests.
            let created = tokio::task::spawn_blocking(move || topics::create(&*log.admin()?, &config)).await;
            let outcome = match created {
                Ok(Ok(findings)) if findings.is_empty() => Ok(()),
                Ok(Ok(findings)) => Err(findings.join("; ")),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = &outcome
                && *sender.borrow() != Some(outcome.clone())
            {
                tracing::warn!(reason, "the topics are not ready");
            }
            let is_done = outcome.is_ok();
            sender.send_replace(Some(outcome));
            if is_done {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(TOPICS_RETRY_INTERVAL) => {}
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// Ledger and gate are asked now; the topics' state is as last seen.
fn readiness(
    service: Arc<CouponService>,
    topics: watch::Receiver<Option<Result<(), String>>>,
) -> http::ops::ReadinessProbe {
    Arc::new(move || {
        let (service, topics) = (service.clone(), topics.clone());
        async move {
            let check = |name: &str, result: Result<(), String>| Check {
                name: name.into(),
                ready: result.is_ok(),
                detail: result.err().unwrap_or_default(),
            };
            let within = |result: Result<Result<(), String>, _>| {
                result.unwrap_or_else(|_: tokio::time::error::Elapsed| Err("no answer in time".into()))
            };
            let ledger = async { service.ledger().ping().await.map_err(|error| error.to_string()) };
            let gate = async { service.gate().health().await.map_err(|error| error.to_string()) };
            let (ledger, gate) = tokio::join!(
                tokio::time::timeout(PROBE_TIMEOUT, ledger),
                tokio::time::timeout(PROBE_TIMEOUT, gate),
            );
            let topics = topics.borrow().clone().unwrap_or_else(|| Err("being created".into()));
            vec![check("ledger", within(ledger)), check("gate", within(gate)), check("log", topics)]
        }
        .boxed()
    })
}
