//! `sluice serve`: starts the parts a process is to run, and stops them in order.
//!
//! Start: log and topics (in the background), ledger and schema, gate, service, topologies, then it listens. Stop, on
//! SIGTERM or SIGINT:
//! 1. no new connections; admitted requests finish (`http.shutdown_grace_ms`),
//! 2. the outbox is relayed as far as the log takes it, while topologies commit and leave their group,
//! 3. connections close.
//!
//! A second signal ends the process at once; nothing is lost by that, only repeated. SIGHUP reads the topology files again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use super::{
    parts,
    streams::{self, Applications},
    topics::{self, TopicsState},
};
use crate::{
    cli::{Failure, Role},
    config::{Config, Secret, TopicsConfig},
    coupon::{clock::Clock, ledger::Ledger, relay::Relay, service::CouponService, sweeper::Sweeper},
    http::{self, ApiState, InFlight, OpsState, admin::AdminGuard, ops::Check},
    streams::{client::ClientSupplier, file::LoadedFile, metrics::StreamsMetrics},
    telemetry,
};

/// How long a dependency may take to answer a readiness check.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before topics are tried again on a cluster that does not answer.
const TOPICS_RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is looked whether a topology has stopped for good.
const FAILURE_POLL: Duration = Duration::from_millis(500);

/// Runs the given parts until a signal comes. Where only topologies and relay run, a topology that stops for good ends
/// the process with a failure, so that whoever supervises it knows; beside the API it only shows in `/readyz`.
pub async fn serve(config: Config, roles: Vec<Role>) -> Result<(), Failure> {
    let mut stop = signals()?;
    let files = match roles.contains(&Role::Streams) {
        true => streams::files::load_named(&config.streams.topologies)?,
        false => Vec::new(),
    };
    let starting = Process::start(config, &roles, files);
    let process = tokio::select! {
        process = starting => process?,
        // Stopped while it waits for a dependency: nothing has begun that would have to be finished.
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    if let Some(address) = process.address {
        println!("sluice listens on http://{address}");
    }
    let failure = loop {
        tokio::select! {
            // An error means that the sender is gone, which only happens when the process ends.
            _ = stop.wait_for(|stop| *stop) => break None,
            () = tokio::time::sleep(FAILURE_POLL) => {}
        }
        let failure = process.applications.as_ref().and_then(|applications| applications.failure());
        if failure.is_some() && !roles.contains(&Role::Api) {
            break failure;
        }
    };
    process.stop().await;
    failure.map_or(Ok(()), |reason| Err(Failure::of("a topology stopped for good", reason)))
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
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// The coupon service, where the API runs.
    pub service: Option<Arc<CouponService>>,
    /// The log, where relay or topologies run.
    pub log: Option<Arc<dyn ClientSupplier>>,
    /// The topologies that run here.
    pub applications: Option<Arc<Applications>>,
    ledger: Option<Ledger>,
    http_stop: watch::Sender<bool>,
    http: Option<JoinHandle<usize>>,
    /// Stops what stands behind the API; later than the API itself, whose last requests it must still carry.
    behind_stop: watch::Sender<bool>,
    /// What stands behind the API, by name, in the order in which it is waited for.
    behind: Vec<(&'static str, JoinHandle<()>)>,
}

impl Process {
    /// Starts the parts; returns when it listens. Waits for a ledger or gate that is not there yet, never for Kafka:
    /// facts wait in the outbox.
    pub async fn start(config: Config, roles: &[Role], files: Vec<LoadedFile>) -> Result<Self, Failure> {
        parts::data_dir(&config)?;
        let registry = telemetry::registry();
        let (http_stop, http_stopped) = watch::channel(false);
        let (behind_stop, behind_stopped) = watch::channel(false);
        let mut process = Self {
            address: None,
            service: None,
            log: None,
            applications: None,
            ledger: None,
            http_stop,
            http: None,
            behind_stop,
            behind: Vec::new(),
        };
        let has = |role| roles.contains(&role);
        let mut topics = None;
        if has(Role::Relay) || has(Role::Streams) {
            let log = parts::log(&config)?;
            topics = Some(ensure_topics(log.clone(), config.topics.clone()));
            process.log = Some(log);
        }
        if has(Role::Api) || has(Role::Relay) {
            let ledger = parts::ledger(&config).await?;
            parts::migrate(&ledger).await?;
            process.ledger = Some(ledger.clone());
            if has(Role::Relay)
                && let Some(log) = process.log.clone()
            {
                process.start_relay(&config, &ledger, log, &registry, behind_stopped.clone())?;
            }
            if has(Role::Api) {
                process.start_service(&config, ledger, &registry, behind_stopped.clone()).await?;
            }
        }
        if let (Some(log), Some(topics)) = (process.log.clone(), topics.clone())
            && has(Role::Streams)
        {
            process.start_streams(&config, files, log, topics, &registry, behind_stopped)?;
        }
        process.start_http(&config, registry, topics, http_stopped).await?;
        Ok(process)
    }

    fn start_relay(
        &mut self,
        config: &Config,
        ledger: &Ledger,
        log: Arc<dyn ClientSupplier>,
        registry: &prometheus::Registry,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let relay = Relay::new(ledger, log, Clock::system(), config.relay.clone());
        register(relay.metrics().register(registry))?;
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        self.behind.push(("relay", tokio::spawn(relay.run(stop))));
        Ok(())
    }

    async fn start_service(
        &mut self,
        config: &Config,
        ledger: Ledger,
        registry: &prometheus::Registry,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let gate = parts::gate(config).await?;
        let service = CouponService::new(gate, ledger, Clock::system(), config.coupon.clone());
        register(service.metrics().register(registry))?;
        // Beside the API: an embedded gate lives in its process only.
        let sweeping = Sweeper::new(service.clone()).run(config.gate.sweep_interval, stopped);
        self.behind.push(("sweeper", tokio::spawn(sweeping)));
        self.service = Some(Arc::new(service));
        Ok(())
    }

    fn start_streams(
        &mut self,
        config: &Config,
        files: Vec<LoadedFile>,
        log: Arc<dyn ClientSupplier>,
        topics: watch::Receiver<TopicsState>,
        registry: &prometheus::Registry,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let metrics = register(StreamsMetrics::register(registry))?;
        let applications = Arc::new(Applications::new(files, config, log, &metrics)?);
        streams::reload::reload_on_hangup(applications.clone())?;
        let supervising = streams::supervise(applications.clone(), topics, stopped);
        self.behind.push(("streams", tokio::spawn(supervising)));
        self.applications = Some(applications);
        Ok(())
    }

    async fn start_http(
        &mut self,
        config: &Config,
        registry: prometheus::Registry,
        topics: Option<watch::Receiver<TopicsState>>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::of(format!("http.listen: {}", config.http.listen), error);
        let listener = match TcpListener::bind(config.http.listen).await {
            Ok(listener) => listener,
            // Several processes of one configuration on one machine: only the API must be reachable.
            Err(error) if self.service.is_none() => {
                let listen = config.http.listen;
                tracing::warn!(%error, %listen, "no health and metrics here: the address cannot be had");
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let address = listener.local_addr().map_err(failed)?;
        let metrics = register(http::register_metrics(&registry))?;
        let ops = Arc::new(OpsState {
            config: config.http.clone(),
            in_flight: InFlight::default(),
            metrics: metrics.clone(),
            registry,
            readiness: readiness(self.service.clone(), topics, self.applications.clone()),
        });
        let admin = AdminGuard::new(config.admin_token.as_ref().map(Secret::expose), address);
        let api = (self.service.clone())
            .map(|service| Arc::new(ApiState { service, admin: admin.clone(), ops: ops.clone() }));
        let streams = self.applications.clone().map(|applications| {
            let control = Arc::new(streams::control::Control(applications));
            Arc::new(http::streams::StreamsState { control, admin })
        });
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let serving =
            http::serve(listener, http::router(ops, api, streams), config.http.clone(), metrics, stop);
        self.address = Some(address);
        self.http = Some(tokio::spawn(serving));
        tracing::info!(%address, "listening");
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
        if let Some(ledger) = self.ledger.take() {
            ledger.close().await;
        }
        tracing::info!("stopped");
    }
}

fn register<T>(result: prometheus::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::of("registering metrics", error))
}

/// Creates and checks the topics in the background, again and again until the log answers. What is wrong is logged
/// once and shown by `/readyz`.
fn ensure_topics(log: Arc<dyn ClientSupplier>, config: TopicsConfig) -> watch::Receiver<TopicsState> {
    let (sender, receiver) = watch::channel(TopicsState::Pending);
    tokio::spawn(async move {
        loop {
            let (log, config) = (log.clone(), config.clone());
            // Admin calls block: they must not hold a thread that serves requests.
            let created = tokio::task::spawn_blocking(move || topics::create(&*log.admin()?, &config)).await;
            let state = match created {
                Ok(Ok(findings)) if findings.is_empty() => TopicsState::Ready,
                Ok(Ok(findings)) => TopicsState::Differ(findings),
                Ok(Err(error)) => TopicsState::Unreachable(error.to_string()),
                Err(error) => TopicsState::Unreachable(error.to_string()),
            };
            if let Err(reason) = state.check()
                && *sender.borrow() != state
            {
                tracing::warn!(reason, "the topics are not ready");
            }
            let is_done = state.exist();
            sender.send_replace(state);
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

/// Ledger and gate are asked now; topics and topologies say how they last stood. Beside the API these two are shown
/// but not required: a log that is away changes nothing for a caller.
fn readiness(
    service: Option<Arc<CouponService>>,
    topics: Option<watch::Receiver<TopicsState>>,
    applications: Option<Arc<Applications>>,
) -> http::ops::ReadinessProbe {
    Arc::new(move || {
        let (service, topics, applications) = (service.clone(), topics.clone(), applications.clone());
        async move {
            let mut behind = Vec::new();
            if let Some(topics) = topics {
                behind.push(Check::new("log", topics.borrow().check()));
            }
            behind.extend(applications.iter().flat_map(|applications| applications.checks()));
            let Some(service) = service else { return behind };
            let within = |result: Result<Result<(), String>, _>| {
                result.unwrap_or_else(|_: tokio::time::error::Elapsed| Err("no answer in time".into()))
            };
            let ledger = async { service.ledger().ping().await.map_err(|error| error.to_string()) };
            let gate = async { service.gate().health().await.map_err(|error| error.to_string()) };
            let (ledger, gate) = tokio::join!(
                tokio::time::timeout(PROBE_TIMEOUT, ledger),
                tokio::time::timeout(PROBE_TIMEOUT, gate),
            );
            let mut checks = vec![Check::new("ledger", within(ledger)), Check::new("gate", within(gate))];
            checks.extend(behind.into_iter().map(Check::optional));
            checks
        }
        .boxed()
    })
}
