//! A backlog read by one thread and by three, by one process and by three: records that were never late are not dropped, each window is
//! final once, and the totals are the input's.
//!
//! `SLUICE_CHAOS_BACKLOG=4000000` says how many records there are.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::fleet::{Fleet, PARTITIONS, PATIENCE, binary};
use crate::{deployment::eventually, services::Services, topic};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_counted_exactly_by_any_number_of_readers() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::private_only("backlog", "kafka") else { return };
    let records = std::env::var("SLUICE_CHAOS_BACKLOG").unwrap_or_else(|_| "30000".to_owned());
    let kafka = services.kafka.clone();
    let folder = tempfile::tempdir().expect("a directory");
    let sluice = |args: &[&str]| {
        let output = Command::new(binary())
            .args(args)
            .env("SLUICE__LOG__KIND", "kafka")
            .env("SLUICE__KAFKA__BOOTSTRAP_SERVERS", &kafka)
            .env("SLUICE__DATA_DIR", folder.path())
            .output()
            .expect("the binary starts");
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), text)
    };
    let (generated, text) = sluice(&["bench", "generate", "--records", &records]);
    assert!(generated, "{text}");
    let total: i64 = records.parse().expect("a number");
    let mut services = Some(services);
    for (processes, threads) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
        let what = format!("{processes} processes of {threads} threads");
        let app = format!("backlog-{processes}-{threads}");
        let topology = include_str!("../../../bench/w1.toml").replace("\"bench-w1", &format!("\"{app}"));
        let mut fleet =
            Fleet::of(services.take().expect("given back"), &app, &topology, "bench-issued").await.serving();
        fleet.set("SLUICE__STREAMS__NUM_STREAM_THREADS", threads);
        let began = Instant::now();
        (0..processes).for_each(|place| fleet.start(place));
        let read = fleet.catch_up(&what).await;
        let output = format!("{app}-out");
        let check = ["bench", "check", "w1", "--records", &records, "--topic", &output, "--all-final"];
        let mut found = String::new();
        let complete = eventually(PATIENCE, || {
            let (complete, text) = sluice(&check);
            found = text;
            async move { complete.then_some(()) }
        });
        let complete = complete.await.is_some();
        let all = began.elapsed();
        fleet.all_live();
        let http = reqwest::Client::new();
        let mut dropped = 0.0;
        for member in &fleet.members {
            dropped += member.metric(&http, "streams_task_dropped_records_total", "").await.expect("metrics");
        }
        fleet.stop();
        println!(
            "{what}: read in {:.1} s ({:.0} records a second), complete after {:.1} s, {dropped} dropped; {}",
            read.as_secs_f64(),
            total as f64 / read.as_secs_f64(),
            all.as_secs_f64(),
            found.trim()
        );
        assert!(complete, "{what}: {found}\n{}", fleet.logs());
        assert_eq!(dropped, 0.0, "{what}: nothing was late\n{}", fleet.logs());
        let undecided = || async { topic::undecided(&kafka).is_empty().then_some(()) };
        assert!(eventually(Duration::from_secs(30), undecided).await.is_some(), "{what}");
        assert_eq!(fleet.committed().map(|offsets| offsets.len()), Some(PARTITIONS as usize));
        services = Some(fleet.services);
    }
}

/// Each of several processes knows when all of them together are done, and stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_stop_when_all_is_read() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::shared() else { return };
    let app = format!("until-{}", std::process::id());
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("orders.toml");
    std::fs::write(&file, super::orders::TOPOLOGY.replace("APP", &app)).expect("written");
    topic::create(&services.kafka, &format!("{app}-in"), PARTITIONS).await;
    super::orders::write(&services.kafka, &format!("{app}-in"), 3_000, 400);
    let mut running: Vec<_> = (0..3)
        .map(|place| {
            Command::new(binary())
                .args(["streams", "run", "--until-caught-up", "--instance-id", &format!("p{place}")])
                .arg(&file)
                .env("SLUICE__LOG__KIND", "kafka")
                .env("SLUICE__KAFKA__BOOTSTRAP_SERVERS", &services.kafka)
                .env("SLUICE__DATA_DIR", folder.path().join(place.to_string()))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("the binary starts")
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    while running.iter_mut().any(|child| child.try_wait().expect("our child").is_none()) {
        if Instant::now() >= deadline {
            running.iter_mut().for_each(|child| drop(child.kill()));
            panic!("they never find that all is read");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut records = 0;
    for child in running {
        let output = child.wait_with_output().expect("it ended");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let summary: serde_json::Value =
            serde_json::from_str(text.lines().last().expect("a summary")).expect("JSON");
        records += summary["records"].as_i64().expect("a count");
    }
    assert!(records >= 3_000, "each order is processed by one of them: {records}");
    let counted = topic::read_all(&services.kafka, &format!("{app}-by-user"));
    let mut newest = std::collections::BTreeMap::new();
    for record in counted {
        newest.insert(record.key.clone(), record.json()["orders"].as_i64().expect("a count"));
    }
    assert_eq!(newest.values().sum::<i64>(), 3_000);
}
