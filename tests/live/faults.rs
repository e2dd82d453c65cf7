//! Everything that can be taken away under a crowd, taken away: two processes of different configuration, a rush, a
//! fault in the middle of it, and all invariants judged afterwards.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::{
    coupon::verify::log::read_topic,
    streams::{
        client::{ClientSupplier, ProducerConfig, embedded::EmbeddedLog},
        record::{Headers, ProducerRecord},
    },
};
use sqlx::Connection;

use crate::{
    deployment::{Process, eventually},
    invariants::{Campaign, windows_are_over},
    private_redis::PrivateRedis,
    proxy::Proxy,
    services::Services,
    told::Told,
    truth,
    world::{PATIENCE, World, urls},
};

const SEATS: i64 = 120;
const USERS: i64 = 200;
/// Most seats pending at one moment: one per worker of the crowd. Redis forgets them when it forgets everything.
const PENDING_MAX: usize = 8;

/// A world in which two processes run and a campaign is open.
struct Scene {
    world: Arc<World>,
    processes: [Process; 2],
    urls: Vec<String>,
    coupon: i64,
    users: i64,
}

impl Scene {
    async fn in_world(world: World) -> Self {
        Self::of(world, SEATS, USERS).await
    }

    async fn of(world: World, seats: i64, users: i64) -> Self {
        let processes = world.two_processes().await;
        let coupon = world.deployment.open_campaign(&processes[0], seats as u64).await;
        let urls = urls(&processes);
        Self { world: Arc::new(world), processes, urls, coupon, users }
    }

    async fn new() -> Option<Self> {
        Some(Self::in_world(World::new().await?).await)
    }

    async fn rush(&self, fault: impl Future<Output = ()>) {
        self.world.rush(&self.urls, self.coupon, 1..=self.users, fault).await;
    }

    /// What the gate was told, it has kept.
    async fn judge(self, seats: i64) {
        self.world.judge(self.processes, &[Campaign::of(self.coupon, seats)]).await;
    }

    /// The gate was broken, and so many seats came back while the crowd was there.
    async fn judge_broken(self, seats: i64, freed: usize) {
        let campaign = Campaign { freed, rebuilt: true, ..Campaign::of(self.coupon, seats) };
        self.world.judge(self.processes, &[campaign]).await;
    }

    /// Waits until so many were told that the outcome is unknown.
    async fn until_unknown(&self, answers: usize) {
        let deadline = Instant::now() + PATIENCE;
        let is_unknown = |told: &&Told| told.code.as_deref() == Some("CP010");
        while self.world.answers().iter().filter(is_unknown).count() < answers {
            assert!(Instant::now() < deadline, "nobody was told CP010: {:?}", self.world.answers().last());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many answers were neither a seat nor sold out: the fault is felt.
    async fn until_felt(&self, answers: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.world.answers().iter().filter(|told| !told.is_final()).count() < answers {
            assert!(Instant::now() < deadline, "nobody felt the fault: {:?}", self.world.answers().last());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn redis(url: &str, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(url).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.expect("an answer")
}

fn sold(answers: &[Told]) -> usize {
    answers.iter().filter(|told| told.status == 201).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_different_configuration() {
    let Some(scene) = Scene::new().await else { return };
    scene.rush(async {}).await;
    let answers = scene.world.answers();
    assert_eq!(sold(&answers), SEATS as usize);
    assert!(answers.iter().all(|told| told.status != 0), "everybody was answered");
    scene.judge(SEATS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_flushed_in_the_middle() {
    let Some(scene) = Scene::new().await else { return };
    let address = scene.world.with_redis(|redis| redis.url());
    scene.rush(async { drop(redis(&address, &["FLUSHALL"]).await) }).await;
    scene.judge_broken(SEATS, PENDING_MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_flushed_after_the_last_seat() {
    let Some(scene) = Scene::new().await else { return };
    scene.rush(async {}).await;
    scene.world.settle(&scene.urls).await;
    let before = sold(&scene.world.answers());
    let address = scene.world.with_redis(|redis| redis.url());
    redis(&address, &["FLUSHALL"]).await;
    scene.world.rush(&scene.urls, scene.coupon, 1_001..=1_060, async {}).await;
    assert_eq!(sold(&scene.world.answers()), before, "a flushed gate gives nothing away");
    scene.judge_broken(SEATS, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty() {
    let Some(scene) = Scene::new().await else { return };
    let restart = async {
        scene.world.with_redis(PrivateRedis::stop);
        scene.until_felt(4).await;
        scene.world.with_redis(PrivateRedis::restart);
    };
    scene.rush(restart).await;
    scene.judge_broken(SEATS, PENDING_MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_writes_is_promoted() {
    let (Some(mut services), Some(primary)) = (Services::shared(), PrivateRedis::start()) else { return };
    let replica = primary.replica();
    let (proxy, url) = Proxy::in_front_of(&primary.url()).await;
    (services.redis, services.redis_is_proxied) = (url, true);
    let primary_url = primary.url();
    let scene = Scene::in_world(World::on(services, primary).await).await;

    scene.world.rush(&scene.urls, scene.coupon, 1..=40, async {}).await;
    // It has everything up to here, and nothing of what comes now.
    let deadline = Instant::now() + PATIENCE;
    while redis(&primary_url, &["WAIT", "1", "100"]).await != redis::Value::Int(1) {
        assert!(Instant::now() < deadline, "the replica never caught up");
    }
    redis(&replica.url(), &["REPLICAOF", "NO", "ONE"]).await;
    let promote = async { proxy.lead_to(format!("127.0.0.1:{}", replica.port)) };
    scene.world.rush(&scene.urls, scene.coupon, 41..=USERS, promote).await;
    let seats = redis(&replica.url(), &["ZCARD", &format!("coupon:issue:{{{}}}", scene.coupon)]).await;
    assert_ne!(seats, redis::Value::Int(0), "the promoted one is the gate now");
    scene.judge_broken(SEATS, PENDING_MAX).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_lowered_and_raised() {
    let Some(scene) = Scene::new().await else { return };
    let change = async {
        let [front, everything] = &scene.processes;
        // A third of the crowd is through, so fewer than this are issued.
        let lowered = scene.world.deployment.set_seats(front, scene.coupon, SEATS - 10).await;
        let raised = scene.world.deployment.set_seats(everything, scene.coupon, SEATS + 20).await;
        assert_eq!((lowered, raised), (200, 200));
    };
    scene.rush(change).await;
    scene.judge_broken(SEATS + 20, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_stopped_and_started() {
    let (Some(services), Some(own)) = (Services::private_only("postgres", "postgres"), PrivateRedis::start())
    else {
        return;
    };
    // So many that they are still at it when Postgres has stopped, which takes as long as a few hundred of them.
    let seats = 20 * SEATS;
    let scene = Scene::of(World::on(services, own).await, seats, seats + 100).await;
    let outage = async {
        tokio::task::block_in_place(|| scene.world.deployment.services.act("postgres", "stop"));
        scene.until_felt(8).await;
        tokio::task::block_in_place(|| scene.world.deployment.services.act("postgres", "start"));
    };
    scene.rush(outage).await;
    scene.judge(seats).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_commits_are_lost() {
    let Some(mut world) = World::new().await else { return };
    // The commits to be cut are those of issues: not of the relay, which the other process has, and not of uses.
    let (proxy, url) = Proxy::in_front_of(&world.deployment.database).await;
    (world.front_ledger, world.uses) = (Some(url), false);
    let scene = Scene::in_world(world).await;
    let cutting = async {
        for cuts in 1..=5 {
            // Every other time nobody can ask the ledger either, for longer than an issue waits for it.
            let is_closed = cuts % 2 == 0;
            if is_closed {
                proxy.arm_to_close("COMMIT")
            } else {
                proxy.arm("COMMIT")
            }
            let deadline = Instant::now() + PATIENCE;
            while proxy.cuts() < cuts {
                assert!(Instant::now() < deadline, "nobody committed");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if is_closed {
                scene.until_unknown(cuts / 2).await;
                proxy.set_closed(false);
            }
        }
    };
    scene.rush(cutting).await;
    // Nobody has had a reason to release a seat or to rebuild the gate: it knows everybody whose row was committed, those
    // too who were told that nobody knows.
    let (rows, members) = truth::rows_and_members(&scene.world.deployment, scene.coupon).await;
    let forgotten: Vec<_> = rows.difference(&members).collect();
    assert!(forgotten.is_empty(), "I5: these have a row and no seat at the gate: {forgotten:?}");
    scene.judge(SEATS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_to_the_ledger_is_busy() {
    let Some(mut world) = World::new().await else { return };
    world.deployment.set("SLUICE__LEDGER__CONNECTIONS_MAX", 2);
    let scene = Scene::in_world(world).await;
    let busy = async {
        // Somebody else's transaction: whoever writes user coupons waits, and holds a connection meanwhile.
        let mut other =
            sqlx::PgConnection::connect(&scene.world.deployment.database).await.expect("Postgres");
        let mut transaction = other.begin().await.expect("a transaction");
        sqlx::query("lock table user_coupons in exclusive mode")
            .execute(&mut *transaction)
            .await
            .expect("locked");
        scene.until_felt(8).await;
        transaction.rollback().await.expect("given up");
    };
    scene.rush(busy).await;
    let refused: Vec<Told> = scene.world.answers().into_iter().filter(|told| !told.is_final()).collect();
    let slowest = refused.iter().map(|told| told.told - told.asked).max().unwrap_or_default();
    assert!(slowest < Duration::from_secs(12), "a refusal took {slowest:?}");
    scene.judge(SEATS).await;
}

/// The relay is away for longer than the statistics wait for a silent input (3 s and a second of grace), with the
/// statistics at work: what arrives afterwards is old, and counts. What arrives twice counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_late_and_twice_are_counted_once_each() {
    let Some(world) = World::new().await else { return };
    let world = Arc::new(world);
    let everything = world.deployment.start("everything", "api,relay,streams", &[]).await;
    let coupon = world.deployment.open_campaign(&everything, SEATS as u64).await;
    world.rush(&urls([&everything]), coupon, 1..=30, async {}).await;
    truth::outbox_drains(&world.deployment, PATIENCE).await;
    assert!(everything.stop());

    let no_relay = world.deployment.start("everything", "api,streams", &[]).await;
    world.rush(&urls([&no_relay]), coupon, 31..=90, async {}).await;
    windows_are_over().await;
    assert!(no_relay.stop());
    let everything = world.deployment.start("everything", "api,relay,streams", &[]).await;
    truth::outbox_drains(&world.deployment, PATIENCE).await;
    assert!(everything.stop());

    // Every event once more, as a relay that died before it marked would send them.
    let log = world.deployment.file("log.sqlite");
    let events = read_topic(&EmbeddedLog::open(&log).expect("the log"), "coupon-issued").expect("the events");
    assert!(events.len() >= 90, "{} events", events.len());
    write(&log, events.into_iter().map(|event| (event.key, event.value)));
    let everything = world.deployment.start("everything", "api,relay,streams", &[]).await;
    world.judge([everything], &[Campaign::of(coupon, SEATS)]).await;

    // What is late all the same (nobody vouched for it) is counted as late, not dropped in silence.
    let late = r#"{"eventId":"late","userCouponId":1,"userId":1,"couponId":77,"couponName":"x",
        "issuedAt":"2026-01-01T00:00:00Z","slotNo":1,"requestId":"r","schemaVersion":1}"#;
    write(&log, [(Some("1".into()), Some(late.into()))]);
    let everything = world.deployment.start("everything", "api,relay,streams", &[]).await;
    let counted = eventually(PATIENCE, || async {
        let late = world.metric(&everything, "streams_task_dropped_records_total", "late").await;
        (late > 0.0).then_some(())
    });
    assert!(counted.await.is_some(), "a late record was dropped in silence\n{}", everything.log_tail());
}

/// Appends events to the log of a service that is stopped.
fn write(log: &Path, events: impl IntoIterator<Item = (Option<Bytes>, Option<Bytes>)>) {
    let log = EmbeddedLog::open(log).expect("the log");
    let mut producer = log.producer(&ProducerConfig::default()).expect("a producer");
    for (key, value) in events {
        let (topic, headers) = ("coupon-issued".into(), Headers::EMPTY);
        producer
            .send(ProducerRecord { topic, partition: None, key, value, timestamp: None, headers })
            .expect("sent");
    }
    producer.flush().expect("acknowledged");
}
