//! On real Kafka: the statistics die at every named place of a commit, the relay at each of its own, and afterwards every
//! event is counted exactly once.

use std::{sync::Arc, time::Instant};

use sluice::streams::internals::FAILPOINTS;

use crate::{
    crashes::failpoints_are_armed,
    invariants::Campaign,
    services::Services,
    truth,
    world::{PATIENCE, World, urls},
};

const SEATS: i64 = 300;
/// Users that come while one failure point is armed; enough for every partition.
const CROWD: i64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_and_relay_die_at_every_place_on_kafka() {
    if !failpoints_are_armed() {
        return;
    }
    let Some(services) = Services::private("runner") else { return };
    let world = Arc::new(World::on_kafka(services).await);
    let api = world.deployment.start("api", "api", &[]).await;
    let coupon = world.deployment.open_campaign(&api, SEATS as u64).await;
    let urls = urls([&api]);
    let mut came = 0;
    let mut crowd = async || {
        came += CROWD;
        world.rush(&urls, coupon, came - CROWD + 1..=came, async {}).await;
    };

    for name in ["relay_after_send", "relay_before_mark"] {
        let mut relay = world.deployment.start("relay", "relay", &[("SLUICE_FAILPOINT", name)]).await;
        crowd().await;
        until(|| relay.has_died(), name).await;
        let relay = world.deployment.start("relay", "relay", &[]).await;
        truth::outbox_drains(&world.deployment, PATIENCE).await;
        assert!(relay.stop());
    }
    let relay = world.deployment.start("relay", "relay", &[]).await;
    for name in FAILPOINTS {
        // State files are saved at a clean stop here, one task after the other: each save is the last thing of one process, and
        // the next process shows what was lost. At the third commit there is something in the stores and in the transaction.
        let at_stop = name == "runner_before_save";
        for passage in if at_stop { 1.. } else { 3.. } {
            let armed = format!("{name}:{passage}");
            let mut statistics =
                world.deployment.start("statistics", "streams", &[("SLUICE_FAILPOINT", &armed)]).await;
            crowd().await;
            if !at_stop {
                until(|| statistics.has_died(), name).await;
                break;
            }
            truth::totals_agree(&world.deployment, coupon, PATIENCE).await;
            if statistics.stop() {
                assert!(passage > 1, "{name}: it was to die while it stops");
                break;
            }
        }
    }
    let statistics = world.deployment.start("statistics", "streams", &[]).await;
    world.judge([api], &[Campaign::of(coupon, SEATS)]).await;
    drop((statistics, relay));
    // Everything is there, sound and stopped: what a verifier can be tried on.
    crate::corruptions::are_found_as_what_they_are(&world.deployment, coupon).await;
}

async fn until(mut condition: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} was not met");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
