//! The live view: seats, rates, latency, statistics as their windows close, notification commands as they come.
//!
//! It only looks: at the crowd's counters, and at the derived topics through a consumer of its own, as anybody could.
//! On a terminal it is drawn in place on standard error; elsewhere a line is printed a second.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{crowd::Counters, data::Run};
use crate::{
    app::serve::Process,
    streams::{
        client::{ClientSupplier, ConsumerConfig},
        record::TopicPartition,
    },
};

/// How often the picture is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is printed where there is no terminal.
const PRINT_INTERVAL: Duration = Duration::from_secs(1);

/// What the derived topics have said so far.
#[derive(Default)]
struct Derived {
    windows: AtomicU64,
    finals: AtomicU64,
    commands: AtomicU64,
    latest_window: Mutex<String>,
}

/// A view of a running demo.
pub struct View {
    shared: Arc<Shared>,
}

struct Shared {
    bar: ProgressBar,
    is_terminal: bool,
    quiet: bool,
    seats: u64,
    phase: Mutex<&'static str>,
    counters: OnceLock<Arc<Counters>>,
    derived: Derived,
    done: AtomicBool,
    started: Instant,
}

impl View {
    /// Starts drawing; with `quiet` only a terminal sees anything.
    pub fn start(run: &Run, process: &Process, quiet: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(run.seats as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{prefix:6} seats [{bar:30}] {pos}/{len}\n{msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("#>-"));
        let shared = Arc::new(Shared {
            bar,
            is_terminal,
            quiet,
            seats: run.seats as u64,
            phase: Mutex::new("start"),
            counters: OnceLock::new(),
            derived: Derived::default(),
            done: AtomicBool::new(false),
            started: Instant::now(),
        });
        let (drawing, following) = (shared.clone(), shared.clone());
        tokio::spawn(async move { drawing.draw_until_done().await });
        if let Some(log) = process.log.clone() {
            // A consumer blocks, so it has a thread; a view that cannot be drawn must not stop the demo.
            std::thread::spawn(move || {
                if let Err(error) = following.follow(&*log) {
                    tracing::warn!(%error, "the live view cannot read the derived topics");
                }
            });
        }
        Self { shared }
    }

    /// From now on these counters are shown.
    pub fn watch(&self, counters: Arc<Counters>) {
        drop(self.shared.counters.set(counters));
    }

    /// Names what happens now.
    pub fn phase(&self, phase: &'static str) {
        *self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Prints a line that stays.
    pub fn say(&self, text: &str) {
        if self.shared.is_terminal {
            self.shared.bar.println(text);
        } else if !self.shared.quiet {
            println!("{text}");
        }
    }

    /// Takes the picture away.
    pub fn finish(&self) {
        self.shared.done.store(true, Ordering::Relaxed);
        self.shared.bar.finish_and_clear();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    async fn draw_until_done(&self) {
        let mut printed = Instant::now();
        let mut before = (Instant::now(), 0);
        let mut rate = 0.0;
        while !self.done.load(Ordering::Relaxed) {
            tokio::time::sleep(DRAW_INTERVAL).await;
            let Some(counters) = self.counters.get() else { continue };
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let requests = count(&counters.requests);
            let since = before.0.elapsed();
            if since >= Duration::from_millis(500) {
                rate = (requests - before.1) as f64 / since.as_secs_f64();
                before = (Instant::now(), requests);
            }
            let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
            let accepted = count(&counters.accepted);
            let crowd = format!(
                "{rate:.0} requests/s: {accepted} accepted, {} sold out, {} already held, {} tried again, {} used; \
                 p50 {:.1} ms, p99 {:.1} ms",
                count(&counters.sold_out),
                count(&counters.duplicates),
                count(&counters.retries),
                count(&counters.used),
                counters.latency_ms(0.5),
                counters.latency_ms(0.99),
            );
            let derived = format!(
                "statistics: {} updates, {} windows closed{}; notification commands: {}",
                count(&self.derived.windows),
                count(&self.derived.finals),
                self.derived.latest_window.lock().unwrap_or_else(PoisonError::into_inner),
                count(&self.derived.commands),
            );
            if self.is_terminal {
                self.bar.set_prefix(phase);
                self.bar.set_position(accepted.min(self.seats));
                self.bar.set_message(format!("{crowd}\n{derived}"));
            } else if !self.quiet && printed.elapsed() >= PRINT_INTERVAL {
                printed = Instant::now();
                println!("{:4.1} s {phase}: {crowd}; {derived}", self.started.elapsed().as_secs_f64());
            }
        }
    }

    /// Reads windows and commands as they become visible.
    fn follow(&self, log: &dyn ClientSupplier) -> crate::streams::error::Result<()> {
        let topics = ["coupon-stats-minute", "coupon-notification-commands"].map(str::to_owned);
        let admin = log.admin()?;
        let described = loop {
            let described = admin.describe(&topics)?;
            if described.len() == topics.len() || self.done.load(Ordering::Relaxed) {
                break described;
            }
            std::thread::sleep(DRAW_INTERVAL);
        };
        let partitions: Vec<_> = described
            .values()
            .flat_map(|topic| {
                (0..topic.partitions).map(|p| (TopicPartition::new(topic.name.as_str(), p), Some(0)))
            })
            .collect();
        let mut consumer =
            log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() })?;
        consumer.assign(&partitions)?;
        while !self.done.load(Ordering::Relaxed) {
            for record in consumer.poll(DRAW_INTERVAL)?.records {
                if &*record.topic == "coupon-notification-commands" {
                    self.derived.commands.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                self.derived.windows.fetch_add(1, Ordering::Relaxed);
                let value: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
                    .unwrap_or(Value::Null);
                if value["final"] == true {
                    self.derived.finals.fetch_add(1, Ordering::Relaxed);
                    let text = format!(" (last: {} issued, {} used)", value["issued"], value["used"]);
                    *self.derived.latest_window.lock().unwrap_or_else(PoisonError::into_inner) = text;
                }
            }
        }
        consumer.close();
        Ok(())
    }
}
