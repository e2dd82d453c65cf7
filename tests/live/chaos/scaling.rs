//! One process, then three, then two, then each restarted in turn, all under load: results stay exact, tasks that stay are neither
//! restored nor taken away for a moment.

use std::time::{Duration, Instant};

use super::{
    fleet::{Fleet, PARTITIONS, PATIENCE},
    orders::{self, Load},
    progress::Progress,
};
use crate::{deployment::eventually, services::Services};

/// Two sub-topologies.
const TASKS: usize = 2 * PARTITIONS as usize;
/// Longer than a restart takes on a machine that does other things.
const SESSION: Duration = Duration::from_secs(20);
/// Range assignment goes topic by topic: of each the first process has two partitions, the second one.
const OF_TWO: [usize; 2] = [4, 2];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scaling_and_rolling_restarts_under_load_are_exact() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::private_only("scaling", "kafka") else { return };
    let mut fleet = Fleet::new(services, "scaling").await.serving().with_session(SESSION);
    let http = reqwest::Client::new();
    fleet.start(0);
    let load = Load::start(&fleet, 300);
    let progress = Progress::watch(&fleet);
    fleet.catch_up("one process").await;
    runs(&mut fleet, &http, &[TASKS]).await;

    let mut phases: Vec<(String, Instant, Instant)> = Vec::new();
    let mut phase = |what: &str, from: Instant| phases.push((what.to_owned(), from, Instant::now()));
    let from = Instant::now();
    fleet.start(1);
    fleet.start(2);
    runs(&mut fleet, &http, &[TASKS / 3; 3]).await;
    fleet.catch_up("three processes").await;
    phase("1 -> 3 processes", from);
    assert_eq!(restored(&fleet, &http, 0).await, 0.0, "what stays is not restored\n{}", fleet.logs());

    let from = Instant::now();
    fleet.members[2].leave();
    runs(&mut fleet, &http, &OF_TWO).await;
    fleet.catch_up("two processes").await;
    phase("3 -> 2 processes", from);

    let mut stayed = Vec::new();
    for place in [0, 1] {
        let other = 1 - place;
        let before = [restored(&fleet, &http, other).await, rebalances(&fleet, &http, other).await];
        let partitions = works_on(&fleet, &http, other).await;
        let from = Instant::now();
        fleet.members[place].leave();
        fleet.start(place);
        runs(&mut fleet, &http, &OF_TWO).await;
        fleet.catch_up("a restart").await;
        phase(&format!("restart of process {place}"), from);
        assert_eq!(restored(&fleet, &http, place).await, 0.0, "a clean stop leaves nothing to replay");
        let after = [restored(&fleet, &http, other).await, rebalances(&fleet, &http, other).await];
        assert_eq!(after, before, "process {other} does not notice that {place} restarts");
        stayed.push((other, partitions, from, Instant::now()));
    }

    let orders = load.stop();
    let seen = progress.stop();
    for (what, from, to) in &phases {
        println!(
            "{what}: done after {:.1} s, a partition stood still for at most {:.2} s",
            (*to - *from).as_secs_f64(),
            seen.longest_stand_of_any(*from, *to).as_secs_f64()
        );
    }
    for (other, partitions, from, to) in stayed {
        assert!(!partitions.is_empty(), "process {other} works on something");
        let longest = partitions.iter().map(|partition| seen.longest_stand(*partition, from, to)).max();
        println!(
            "what stayed with process {other}: at most {:.2} s",
            longest.unwrap_or_default().as_secs_f64()
        );
    }
    orders::close_windows(&fleet);
    orders::holds(&mut fleet, orders, &[]).await;
}

/// Waits until each of the first processes runs so many tasks.
async fn runs(fleet: &mut Fleet, http: &reqwest::Client, tasks: &[usize]) {
    let running = async |fleet: &Fleet| {
        let mut found = Vec::new();
        for member in &fleet.members[..tasks.len()] {
            found.push(
                member.metric(http, "streams_thread_tasks", "state=\"running\"").await.map(|n| n as usize),
            );
        }
        found
    };
    let wanted: Vec<Option<usize>> = tasks.iter().copied().map(Some).collect();
    let done = eventually(PATIENCE, async || (running(fleet).await == wanted).then_some(())).await;
    fleet.all_live();
    assert!(done.is_some(), "tasks running: {:?}, not {tasks:?}\n{}", running(fleet).await, fleet.logs());
}

/// Changelog records that a process has replayed since its start.
async fn restored(fleet: &Fleet, http: &reqwest::Client, place: usize) -> f64 {
    fleet.members[place].metric(http, "streams_store_restore_total", "").await.expect("metrics")
}

/// How often the group has given a process its partitions since its start.
async fn rebalances(fleet: &Fleet, http: &reqwest::Client, place: usize) -> f64 {
    fleet.members[place].metric(http, "streams_thread_rebalance_total", "").await.expect("metrics")
}

/// Input partitions that a process works on.
async fn works_on(fleet: &Fleet, http: &reqwest::Client, place: usize) -> Vec<usize> {
    let member = &fleet.members[place];
    let processed = async |partition: usize| {
        let task = format!("task_id=\"0_{partition}\"");
        member.metric(http, "streams_task_process_total", &task).await.expect("metrics")
    };
    let mut before = Vec::new();
    for partition in 0..PARTITIONS as usize {
        before.push(processed(partition).await);
    }
    let moved = eventually(Duration::from_secs(20), || {
        let (before, processed) = (&before, &processed);
        async move {
            let mut moved = Vec::new();
            for (partition, before) in before.iter().enumerate() {
                if processed(partition).await > before + 20.0 {
                    moved.push(partition);
                }
            }
            (!moved.is_empty()).then_some(moved)
        }
    });
    moved.await.unwrap_or_default()
}
