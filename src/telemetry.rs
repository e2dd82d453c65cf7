//! Logs and metrics of the process.
//!
//! One registry for the whole process: each part brings a `Metrics` struct of its own and registers it here through
//! the composition root. Names follow one grammar, `<part>_<what>_<unit or total>`: `http_`, `coupon_`, `streams_`.
//! Nothing is logged per request at info: a request that works is a number, not a line.

use std::io::{self, IsTerminal};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::config::{LogFormat, TelemetryConfig};

/// Sends log lines to standard error. A second call changes nothing (tests share a process).
pub fn init_logs(config: &TelemetryConfig) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match config.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only failure is that a subscriber is set already, and then logs go somewhere as it is.
    drop(result);
}

/// The registry of the process, with the process's own figures in it.
pub fn registry() -> Registry {
    let registry = Registry::new();
    registry
        .register(Box::new(ProcessCollector::new()))
        .expect("a new registry holds nothing to collide with");
    registry
}

/// CPU time and memory, read when scraped. Names as every Prometheus client has them.
struct ProcessCollector {
    cpu_seconds: prometheus::Gauge,
    resident_bytes: prometheus::IntGauge,
}

impl ProcessCollector {
    fn new() -> Self {
        let gauge =
            |name: &str, help: &str| prometheus::Gauge::new(name, help).expect("a constant, valid name");
        Self {
            cpu_seconds: gauge("process_cpu_seconds_total", "User and system CPU time, in seconds."),
            resident_bytes: prometheus::IntGauge::new(
                "process_resident_memory_bytes",
                "Resident memory, in bytes.",
            )
            .expect("a constant, valid name"),
        }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        [self.cpu_seconds.desc(), self.resident_bytes.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.cpu_seconds.set(cpu_seconds());
        self.resident_bytes.set(i64::try_from(resident_bytes()).unwrap_or(i64::MAX));
        [self.cpu_seconds.collect(), self.resident_bytes.collect()].concat()
    }
}

/// CPU time this process has used, user and system, in seconds.
pub fn cpu_seconds() -> f64 {
    let usage = resource_usage();
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Most memory this process ever had resident, in bytes.
pub fn peak_resident_bytes() -> u64 {
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(resource_usage().ru_maxrss).unwrap_or(0) * unit
}

fn resource_usage() -> libc::rusage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage of ours, which the call only writes; all zeroes is a valid one.
    unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    }
}

/// Memory resident now; where the system has no /proc, the peak.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    // SAFETY: sysconf has no preconditions.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    match (pages, u64::try_from(page_bytes)) {
        (Some(pages), Ok(page_bytes)) => pages * page_bytes,
        _ => peak_resident_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_measures_itself() {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry().gather()).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_cpu_seconds_total") > 0.0, "{text}");
        assert!(peak_resident_bytes() as f64 >= value("process_resident_memory_bytes") * 0.5);
    }
}
