//! How long a partition stands still after a kill -9, and how much is replayed: into the same place, into an empty one, and by a process
//! that keeps copies, which finds a transaction open.
//!
//! `SLUICE_CHAOS_KEYS=1000000` says how many rows there are.

use std::time::{Duration, Instant};

use super::{
    fleet::{Fleet, PARTITIONS, PATIENCE, SESSION},
    orders::{self, Load},
    progress::Progress,
};
use crate::{deployment::eventually, services::Services, topic};

const TASKS: usize = 2 * PARTITIONS as usize;
/// Range assignment goes topic by topic: of each the first process has two partitions, the second one.
const OF_TWO: [usize; 2] = [4, 2];
/// What has changed is saved after this time at the latest.
const SAVE_AGE: Duration = Duration::from_secs(2);
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// A save is a thread's work: it may take so long on a busy machine.
const SAVE_TAKES: Duration = Duration::from_secs(2);
const ORDERS_PER_SECOND: i64 = 1_000;
/// As shipped. The broker looks every 10 s for what is older.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// From the end of a session until another process has the tasks, and has ended the transaction that the dead one left open.
const TAKES_OVER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kill_9_is_soon_made_good() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::private_only("recovery", "kafka") else { return };
    let keys = std::env::var("SLUICE_CHAOS_KEYS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let mut fleet = Fleet::new(services, "recovery").await.serving();
    fleet.set("SLUICE__STREAMS__SAVE_AGE_MAX_MS", SAVE_AGE.as_millis());
    fleet.set("SLUICE__STREAMS__COMMIT_INTERVAL_MS", COMMIT_INTERVAL.as_millis());
    fleet.set("SLUICE__STREAMS__TRANSACTION_TIMEOUT_MS", TRANSACTION_TIMEOUT.as_millis());
    let http = reqwest::Client::new();
    let mut orders = orders::fill(&fleet, keys);
    fleet.start(0);
    let filled = fleet.catch_up("every row is there").await;
    println!("{keys} rows after {:.1} s", filled.as_secs_f64());

    // Into its old place, while orders keep coming and some of what they change is not saved yet.
    let load = Load::among(&fleet, ORDERS_PER_SECOND, keys);
    let written = topic::Growth::watch(&fleet.services.kafka, &changelogs(&fleet), PARTITIONS);
    let steady = eventually(PATIENCE, || {
        let old = written.since(SAVE_AGE * 3);
        async move { old.is_some_and(|count| count > 0.0).then_some(()) }
    });
    assert!(steady.await.is_some(), "the load runs for three save intervals");
    let progress = Progress::watch(&fleet);
    fleet.members[0].kill();
    let killed = Instant::now();
    let allowed =
        written.since(SAVE_AGE + COMMIT_INTERVAL * 2 + SAVE_TAKES).expect("it was watched for longer");
    fleet.start(0);
    until_running(&mut fleet, &http, 0, TASKS).await;
    let took = killed.elapsed();
    fleet.catch_up("restarted in place").await;
    let replayed = restored(&fleet, &http, 0).await;
    println!(
        "killed and restarted: running after {:.2} s, {replayed} records replayed of at most {allowed} since the save before",
        took.as_secs_f64()
    );
    assert!(replayed <= allowed, "{replayed} records replayed, {allowed} were written since the last save");

    // A second process, so that each has half; the first is killed and restarted before its session ends: nothing moves.
    fleet.start(1);
    until_running(&mut fleet, &http, 0, OF_TWO[0]).await;
    until_running(&mut fleet, &http, 1, OF_TWO[1]).await;
    fleet.catch_up("two processes").await;
    let from = Instant::now();
    fleet.members[0].kill();
    fleet.start(0);
    until_running(&mut fleet, &http, 0, OF_TWO[0]).await;
    fleet.catch_up("a static member is back").await;
    let static_restart = (from, Instant::now());

    // Copies: each process keeps those of the other's tasks. One dies for good.
    fleet.set("SLUICE__STREAMS__NUM_STANDBY_REPLICAS", 1);
    for place in [0, 1] {
        fleet.members[place].leave();
        fleet.start(place);
        until_running(&mut fleet, &http, place, OF_TWO[place]).await;
    }
    fleet.catch_up("with copies").await;
    let warm = eventually(PATIENCE, || {
        let member = &fleet.members[1];
        let http = &http;
        async move {
            let lag = member.metric(http, "streams_standby_lag_records", "").await?;
            let copies = member.metric(http, "streams_standby_tasks", "").await?;
            (copies as usize == OF_TWO[0] && lag < 2.0 * ORDERS_PER_SECOND as f64).then_some(())
        }
    });
    assert!(warm.await.is_some(), "the copies are warm\n{}", fleet.logs());
    let before = restored(&fleet, &http, 1).await;
    let from = kill_in_a_transaction(&mut fleet).await;
    until_running(&mut fleet, &http, 1, TASKS).await;
    fleet.catch_up("failed over").await;
    let failover = (from, Instant::now());
    let tail = restored(&fleet, &http, 1).await - before;

    let seen = progress.stop();
    let stands = [("restarted at once (static member)", static_restart), ("failed over to a copy", failover)];
    let [_, failed_over] = stands.map(|(what, (from, to))| {
        let stood = seen.longest_stand_of_any(from, to);
        println!("{what}: a partition stood still for at most {:.2} s", stood.as_secs_f64());
        stood
    });
    assert!(failed_over < SESSION + TAKES_OVER, "{failed_over:?} for a failover\n{}", fleet.logs());
    println!("the copies were behind by {tail} records; a session ends after {SESSION:?}");
    assert!(tail <= allowed.max(3.0 * ORDERS_PER_SECOND as f64), "a copy replays only the tail, not {tail}");

    // Everything from the changelog.
    orders += load.stop();
    fleet.catch_up("quiet").await;
    fleet.members[1].leave();
    fleet.wipe(1);
    let from = Instant::now();
    fleet.start(1);
    until_running(&mut fleet, &http, 1, TASKS).await;
    let seconds = from.elapsed().as_secs_f64();
    let replayed = restored(&fleet, &http, 1).await;
    println!(
        "from an empty directory: {replayed} records in {seconds:.1} s, {:.0} a second; peak memory {} MB",
        replayed / seconds,
        fleet.members[1].peak_memory_bytes() >> 20
    );
    assert!(replayed >= keys as f64, "every row comes from the changelog");
    orders::close_windows(&fleet);
    orders::holds(&mut fleet, orders, &[]).await;
}

fn changelogs(fleet: &Fleet) -> [String; 2] {
    ["by_user", "by_shop"].map(|table| format!("{}-{table}-changelog", fleet.app))
}

/// kill -9 of the first process in the middle of a transaction: it is frozen again and again, until one of its own is seen open. Since when
/// it stands still.
async fn kill_in_a_transaction(fleet: &mut Fleet) -> Instant {
    let changelogs = changelogs(fleet);
    let own = |(topic, partition, ..): &(String, i32, i64, i64)| {
        changelogs.contains(topic) && (*partition as usize) < OF_TWO[0] / 2
    };
    let patience = Instant::now() + PATIENCE;
    for attempt in 0.. {
        // At another moment of the commit interval each time: a thawed process commits at once, and then by its clock.
        let deadline = Instant::now() + COMMIT_INTERVAL * (attempt % 13) / 10;
        tokio::time::sleep_until(deadline.into()).await;
        let since = Instant::now();
        fleet.members[0].freeze();
        if topic::undecided(&fleet.services.kafka).iter().any(own) {
            fleet.members[0].kill();
            return since;
        }
        fleet.members[0].thaw();
        assert!(since < patience, "it has a transaction open now and then");
    }
    unreachable!("patience ends")
}

/// Waits until a process runs so many tasks.
async fn until_running(fleet: &mut Fleet, http: &reqwest::Client, place: usize, tasks: usize) {
    let running = eventually(PATIENCE, || {
        let member = &fleet.members[place];
        async move {
            let running = member.metric(http, "streams_thread_tasks", "state=\"running\"").await?;
            (running as usize == tasks).then_some(())
        }
    });
    let running = running.await;
    fleet.all_live();
    assert!(running.is_some(), "process {place} does not run {tasks} tasks\n{}", fleet.logs());
}

/// Changelog records that a process has replayed since its start.
async fn restored(fleet: &Fleet, http: &reqwest::Client, place: usize) -> f64 {
    fleet.members[place].metric(http, "streams_store_restore_total", "").await.expect("metrics")
}
