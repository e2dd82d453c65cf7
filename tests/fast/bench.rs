//! The bench workloads, small, by the real binary on the embedded log: a fast engine that counts wrong is no engine.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::binary;

/// Issues: a few windows of every coupon that matters, in a few seconds of a debug build.
const RECORDS: &str = "20000";

fn sluice(directory: &Path, guarantee: &str, args: &[&str]) -> Command {
    let mut command = binary::sluice(args);
    command
        .env("SLUICE__DATA_DIR", directory)
        .env("SLUICE__STREAMS__PROCESSING_GUARANTEE", guarantee)
        .env("SLUICE__TELEMETRY__LOG", "warn");
    command
}

/// The last line of what a command printed, as JSON. The command must succeed.
fn summary(mut command: Command) -> Value {
    let output = command.output().expect("the binary starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Each workload: caught up, nothing late, and the output equal to what the input says.
fn check_workloads(guarantee: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let generated =
        sluice(directory.path(), guarantee, &["bench", "generate", "--records", RECORDS]).status();
    assert!(generated.expect("the binary starts").success());
    for workload in ["w1", "w1n", "w2", "w3"] {
        let file = format!("{}/bench/{workload}.toml", env!("CARGO_MANIFEST_DIR"));
        let mut run = sluice(directory.path(), guarantee, &["streams", "run", "--until-caught-up", &file]);
        if guarantee == "at_least_once" {
            // Commits so far apart must not put off the end of the run: what one writes downstream is for the next to settle.
            run.env("SLUICE__STREAMS__COMMIT_INTERVAL_MS", "30000");
        }
        let began = Instant::now();
        let run = summary(run);
        assert!(began.elapsed() < Duration::from_secs(25), "{workload} took {:?} to end", began.elapsed());
        assert_eq!((&run["dropped"], &run["late"]), (&Value::from(0), &Value::from(0)), "{workload}: {run}");
        let check = ["bench", "check", workload, "--records", RECORDS];
        let report = summary(sluice(directory.path(), guarantee, &check));
        assert_eq!(report["sum"], report["expected"], "{workload}: {report}");
    }
    every_window_is_final_once(directory.path(), guarantee);
}

/// Windows close on silent inputs: W1 runs on, longer each time, until its last windows are final. An embedded log is one process's at a
/// time, so the run ends before the check looks.
fn every_window_is_final_once(directory: &Path, guarantee: &str) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/w1.toml");
    let check = ["bench", "check", "w1", "--records", RECORDS, "--all-final"];
    let mut told = String::new();
    for patience in [5, 10, 20, 40].map(Duration::from_secs) {
        let mut running = sluice(directory, guarantee, &["streams", "run", file])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // Its output ends when it does, which it should not.
        let mut output = running.stdout.take().expect("it is piped");
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || ended.send(std::io::copy(&mut output, &mut std::io::sink())));
        assert!(end.recv_timeout(patience).is_err(), "it runs until it is told to stop");
        running.kill().expect("it runs");
        running.wait().expect("it ends");
        let output = sluice(directory, guarantee, &check).output().expect("the binary starts");
        if output.status.success() {
            return;
        }
        told = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    panic!("{told}");
}

#[test]
fn workloads_are_right_exactly_once() {
    check_workloads("exactly_once");
}

#[test]
fn workloads_are_right_at_least_once() {
    check_workloads("at_least_once");
}

/// Windows close while parts of them wait for a commit that is far off: they leave first.
#[test]
fn what_came_in_time_is_not_late_because_it_waited_for_the_commit() {
    let directory = tempfile::tempdir().expect("a directory");
    // 95 seconds of events: the second window closes 90 s after the first event, in one commit with the rest.
    let records = "95000";
    let run = |args: &[&str]| {
        let mut command = sluice(directory.path(), "at_least_once", args);
        command.env("SLUICE__STREAMS__COMMIT_INTERVAL_MS", "30000");
        command
    };
    assert!(run(&["bench", "generate", "--records", records]).status().expect("the binary starts").success());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/w1n.toml");
    let summed_up = summary(run(&["streams", "run", "--until-caught-up", file]));
    assert_eq!(summed_up["late"], 0, "{summed_up}");
    let report = summary(run(&["bench", "check", "w1n", "--records", records]));
    assert!(report["final"].as_i64() > Some(0), "no window closed: {report}");
}

/// The check is worth something: it sees an input that was not all counted.
#[test]
fn a_wrong_sum_is_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let run =
        |args: &[&str]| sluice(directory.path(), "exactly_once", args).output().expect("the binary starts");
    assert!(run(&["bench", "generate", "--records", "500"]).status.success());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/w2.toml");
    assert!(run(&["streams", "run", "--until-caught-up", file]).status.success());
    assert!(run(&["bench", "check", "w2", "--records", "500"]).status.success());
    let wrong = run(&["bench", "check", "w2", "--records", "501"]);
    assert_eq!(wrong.status.code(), Some(1));
    let told = String::from_utf8_lossy(&wrong.stderr);
    assert!(told.contains("bench-w2-out tells of 500, the input of 501"), "{told}");
}
