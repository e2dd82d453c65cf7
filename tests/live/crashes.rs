//! The service killed at every named place, on real Redis and Postgres, and all invariants judged afterwards.
//!
//! Each case kills the real binary twice on the same data, at a commit three times. First in the middle of a rush, when most who
//! ask are granted a seat and some ask twice at once. Then when one seat is left and everybody asks: one is granted, the holders
//! are told that they have one, the rest that it is sold out, all while the process dies. The third time in the use of a coupon.
//! Then everyone who was left without a final answer asks again. Nobody may have been told a lie, no seat may be lost, and every
//! seat must be sold.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sluice::coupon::failpoint;

use crate::{
    invariants::Campaign,
    truth,
    world::{PATIENCE, World, urls},
};

/// Seats of a campaign, and users who want one.
const SEATS: i64 = 30;
const USERS: i64 = 45;
const ROLES: &str = "api,relay,streams";

/// True when failure points are compiled in; with `CI=true` they must be.
pub fn failpoints_are_armed() -> bool {
    if !cfg!(feature = "failpoints") {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "with CI=true the tests are built with --all-features, or no failure point is tried"
        );
        println!("skipped: built without the feature `failpoints`");
    }
    cfg!(feature = "failpoints")
}

/// Kills the service at `name` and judges what is left.
async fn killed_at(name: &str) {
    if !failpoints_are_armed() {
        return;
    }
    let Some(world) = World::new().await else { return };
    let world = Arc::new(world);
    let clean = world.deployment.start("service", ROLES, &[]).await;
    let rushed = world.deployment.open_campaign(&clean, SEATS as u64).await;
    let last_seat = world.deployment.open_campaign(&clean, SEATS as u64).await;
    assert!(clean.stop(), "a stop by SIGTERM is not a failure");

    // In a rush: at the third passage some of the crowd is through and some is on its way; the relay may carry all in one
    // step. At the last seat: the first passage, but for a commit, the first of which takes a block of ids.
    let (in_the_rush, at_the_last_seat) = match name {
        name if name.starts_with("relay") => (1, 1),
        "before_commit" | "after_commit" => (3, 2),
        _ => (3, 1),
    };
    dies_in_a_rush(&world, name, in_the_rush, rushed).await;

    let clean = world.deployment.start("service", ROLES, &[]).await;
    world.settle(&urls([&clean])).await;
    for user in 1..SEATS {
        world.issue(&clean.url, last_seat, user).await;
    }
    world.settle(&urls([&clean])).await;
    truth::outbox_drains(&world.deployment, PATIENCE).await;
    assert!(clean.stop());
    dies_in_a_rush(&world, name, at_the_last_seat, last_seat).await;
    if name.ends_with("_commit") {
        dies_in_a_use(&world, name).await;
    }

    let clean = world.deployment.start("service", ROLES, &[]).await;
    world.judge([clean], &[Campaign::of(rushed, SEATS), Campaign::of(last_seat, SEATS)]).await;
}

/// Starts a process that is to die at the failure point and lets everybody ask, again and again, until it has died.
async fn dies_in_a_rush(world: &Arc<World>, name: &str, passage: usize, coupon: i64) {
    let failpoint = format!("{name}:{passage}");
    // Only what is to die: other parts pass some of the places too.
    let roles = if name.starts_with("relay") { "api,relay" } else { "api" };
    let mut armed = world.deployment.start("service", roles, &[("SLUICE_FAILPOINT", &failpoint)]).await;
    let urls = urls([&armed]);
    let deadline = Instant::now() + PATIENCE;
    world.rush(&urls, coupon, 1..=USERS, async {}).await;
    while !armed.has_died() {
        assert!(Instant::now() < deadline, "the failure point {failpoint} was not met");
        world.rush(&urls, coupon, 1..=USERS, async {}).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts a process that is to die at the failure point, and uses coupons until it has died.
async fn dies_in_a_use(world: &Arc<World>, name: &str) {
    let ledger = world.deployment.ledger().await;
    let unused: Vec<i64> = sqlx::query_scalar(
        "select user_coupon_id from user_coupons where last_seq = 1 order by user_coupon_id",
    )
    .fetch_all(&ledger)
    .await
    .expect("the ledger answers");
    ledger.close().await;
    let mut armed = world.deployment.start("service", "api", &[("SLUICE_FAILPOINT", name)]).await;
    for user_coupon in unused {
        world.redeem(&armed.url, user_coupon).await;
        if armed.has_died() {
            return;
        }
    }
    panic!("the failure point {name} was not met");
}

macro_rules! killed {
    ($($name:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                killed_at(stringify!($name)).await;
            }
        )+

        /// Every failure point of the service has a test.
        #[test]
        fn every_failure_point_is_tried() {
            assert_eq!([$(stringify!($name)),+], failpoint::NAMES);
        }
    };
}

killed! { after_gate before_insert before_commit after_commit before_confirm relay_after_send relay_before_mark }
