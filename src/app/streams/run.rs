//! `sluice streams run`: topologies by themselves, forever or until they have caught up: backfills and benchmarks.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::watch;

use super::{Application, Applications, files, reload};
use crate::{
    app::{parts, serve::signals},
    cli::{Failure, StreamsRunArgs},
    config::Config,
    streams::{error::StreamsError, processor::DropReason, record::TopicPartition, runtime::State},
    telemetry,
};

/// How often it is looked whether everything is done.
const POLL: Duration = Duration::from_millis(20);
/// Pause between attempts to start.
const START_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the files; with `--until-caught-up` the last line on standard output is the summary as JSON.
pub async fn run(config: Config, args: StreamsRunArgs) -> Result<(), Failure> {
    let files = files::load_named(&args.files)?;
    parts::data_dir(&config)?;
    let mut stop = signals()?;
    let log = parts::log(&config)?;
    let registry = telemetry::registry();
    let metrics = crate::streams::metrics::StreamsMetrics::register(&registry)
        .map_err(|error| Failure::of("registering metrics", error))?;
    let applications = Arc::new(Applications::new(files, &config, log, &metrics)?);
    reload::reload_on_hangup(applications.clone())?;
    let started = Instant::now();
    let cpu_before = telemetry::cpu_seconds();

    let (starting, stopped) = (applications.clone(), stop.clone());
    let deadline = started + config.streams.runtime.task_timeout;
    let targets =
        tokio::task::spawn_blocking(move || start(&starting, args.until_caught_up, deadline, &stopped))
            .await
            .map_err(|error| Failure::of("starting the topologies", error))?
            .map_err(|error| Failure::of("starting the topologies", error))?;

    reload::finish_start(&applications);
    let bar = progress(args.until_caught_up, &targets);
    let outcome = loop {
        if let Some(bar) = &bar {
            bar.set_position(reached(&applications, &targets));
        }
        if *stop.borrow_and_update() {
            break Ok(());
        }
        if let Some(reason) = applications.failure() {
            break Err(Failure::Failed(reason));
        }
        if args.until_caught_up {
            let (looking, targets) = (applications.clone(), targets.clone());
            let caught_up = tokio::task::spawn_blocking(move || {
                let mut targets = targets.iter();
                looking
                    .each(|app| match targets.next() {
                        Some(target) => {
                            Ok(app.streams.state() == State::Running && app.streams.is_caught_up(target)?)
                        }
                        None => Ok(true),
                    })
                    .into_iter()
                    .collect::<Result<Vec<bool>, StreamsError>>()
            })
            .await
            .map_err(|error| Failure::of("looking at the topologies", error))?;
            match caught_up {
                Ok(all) if all.iter().all(|done| *done) => break Ok(()),
                Ok(_) | Err(StreamsError::Retriable(_)) => {}
                Err(error) => break Err(Failure::of("looking at the topologies", error)),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stop.changed() => {}
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let seconds = started.elapsed().as_secs_f64();
    let closing = applications.clone();
    tokio::task::spawn_blocking(move || closing.close())
        .await
        .map_err(|error| Failure::of("closing the topologies", error))?;
    if args.until_caught_up {
        println!("{}", summary(&applications, seconds, telemetry::cpu_seconds() - cpu_before));
    }
    outcome
}

/// Starts all, again and again until the deadline while what is in the way may pass by itself. Returns the ends of all inputs, where they
/// are needed. Blocks.
fn start(
    applications: &Applications,
    until_caught_up: bool,
    deadline: Instant,
    stop: &watch::Receiver<bool>,
) -> Result<Targets, StreamsError> {
    let in_time = || Instant::now() < deadline;
    while !applications.start()? {
        if *stop.borrow() {
            return Ok(Targets::new());
        }
        if !applications.start_may_pass() || !in_time() {
            let reasons: Vec<String> = applications.checks().into_iter().map(|check| check.detail).collect();
            return Err(StreamsError::Fatal(reasons.join("; ")));
        }
        std::thread::park_timeout(START_RETRY_INTERVAL);
    }
    loop {
        let ends = applications.each(|app| match until_caught_up {
            true => app.streams.input_end_offsets(),
            false => Ok(BTreeMap::new()),
        });
        match ends.into_iter().collect() {
            Err(StreamsError::Retriable(_)) if *stop.borrow() => return Ok(Targets::new()),
            Err(StreamsError::Retriable(_)) if in_time() => std::thread::park_timeout(START_RETRY_INTERVAL),
            result => return result,
        }
    }
}

type Targets = Vec<BTreeMap<TopicPartition, i64>>;

/// A bar over the offsets of all inputs, where somebody looks at standard error.
fn progress(until_caught_up: bool, targets: &Targets) -> Option<ProgressBar> {
    if !until_caught_up || !std::io::stderr().is_terminal() {
        return None;
    }
    let template = "{wide_bar} {human_pos}/{human_len} offsets, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let all = targets.iter().flat_map(|of_app| of_app.values()).map(|end| end.unsigned_abs()).sum();
    Some(ProgressBar::new(all).with_style(style))
}

/// Offsets committed, as far as they count.
fn reached(applications: &Applications, targets: &Targets) -> u64 {
    let mut targets = targets.iter();
    let of_apps = applications.each(|app| {
        let statuses = app.streams.statuses();
        let committed =
            |partition: &TopicPartition| statuses.iter().find_map(|status| status.committed.get(partition));
        let target = targets.next().into_iter().flatten();
        target
            .map(|(partition, end)| committed(partition).map_or(0, |at| *at.min(end)).unsigned_abs())
            .sum::<u64>()
    });
    of_apps.into_iter().sum()
}

fn summary(applications: &Applications, seconds: f64, cpu_seconds: f64) -> serde_json::Value {
    let totals = applications.each(Application::totals);
    let sum = |of: &dyn Fn(&crate::streams::runtime::Totals) -> u64| totals.iter().map(of).sum::<u64>();
    let late = |reason: &DropReason| matches!(reason, DropReason::Late | DropReason::Expired);
    let records = sum(&|totals| totals.processed);
    json!({
        "records": records,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "records_per_second": (records as f64 / seconds.max(1e-9)).round(),
        "records_per_cpu_second": (records as f64 / cpu_seconds.max(1e-9)).round(),
        "peak_rss_bytes": telemetry::peak_resident_bytes(),
        "commits": sum(&|totals| totals.commits),
        "restored": sum(&|totals| totals.restored),
        "late": sum(&|totals| totals.dropped.iter().filter(|(reason, _)| late(reason)).map(|(_, n)| n).sum()),
        "dropped": sum(&|totals| totals.dropped.values().sum()),
    })
}

fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}
