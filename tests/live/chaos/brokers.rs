//! A cluster of three brokers, one of which is killed while three processes work: leaders, and whatever coordinator stood on it, move, and
//! results stay exact.
//!
//! `SLUICE_CHAOS_BROKERS=3` kills as many, one after the other, each time the one that leads the first input partition.

use std::time::{Duration, Instant};

use super::{
    fleet::{Fleet, PATIENCE},
    orders::{self, Load},
    progress::Progress,
};
use crate::{deployment::eventually, services::Services, topic};

const BROKERS: i32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_leaders_are_followed() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::private_cluster("cluster", BROKERS as u32) else { return };
    let kills = std::env::var("SLUICE_CHAOS_BROKERS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut fleet = Fleet::replicated(services, "cluster", BROKERS).await;
    (0..3).for_each(|place| fleet.start(place));
    let load = Load::start(&fleet, 300);
    let progress = Progress::watch(&fleet);
    fleet.catch_up("the start").await;
    let mut phases = Vec::new();
    for _ in 0..kills {
        let whole = || async { topic::in_sync(&fleet.services.kafka, BROKERS as usize).then_some(()) };
        assert!(eventually(PATIENCE, whole).await.is_some(), "every partition has all of its replicas");
        let leader = topic::leader(&fleet.services.kafka, &fleet.topic("in"), 0);
        let from = Instant::now();
        fleet.services.act(&format!("kafka-{leader}"), "kill");
        let back = fleet.catch_up("without its leader").await;
        phases.push((leader, from, Instant::now(), back));
        fleet.services.act(&format!("kafka-{leader}"), "start");
        fleet.catch_up("with all brokers").await;
    }
    let orders = load.stop();
    let seen = progress.stop();
    for (leader, from, to, back) in phases {
        println!(
            "broker {leader} killed: everything there was is processed after {:.1} s, a partition stood still for at most {:.1} s",
            back.as_secs_f64(),
            seen.longest_stand_of_any(from, to + Duration::from_millis(500)).as_secs_f64()
        );
    }
    orders::close_windows(&fleet);
    orders::holds(&mut fleet, orders, &[]).await;
}
