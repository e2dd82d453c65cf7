//! The Redis gate: the contract of every gate, the same random calls on Redis and in process, and what only Redis can
//! do to it (flushes, restarts, foreign keys, eviction).
//!
//! Tests that would disturb others start a Redis of their own.

#[path = "../common/gate_contract.rs"]
mod gate_contract;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use gate_contract::{Fixture, meta, user};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sluice::coupon::gate::embedded::{ClockUs, EmbeddedGate};
use sluice::coupon::gate::redis::{RedisGate, RedisGateConfig};
use sluice::coupon::gate::*;
use sluice::coupon::ids::CouponId;
use uuid::Uuid;

use crate::private_redis::PrivateRedis;
use crate::service;

const HOUR: Duration = Duration::from_secs(3600);
const MICROSECOND: Duration = Duration::from_micros(1);

async fn connect(url: &str, pending_lease: Duration) -> RedisGate {
    RedisGate::connect(RedisGateConfig { pending_lease, ..RedisGateConfig::new(url) }).await.unwrap()
}

/// Campaigns nobody uses: a random start far above any that people choose.
fn fresh_coupon() -> i64 {
    rand::rng().random_range(1 << 40..1 << 50)
}

async fn redis() -> Option<Fixture> {
    let url = service("SLUICE_TEST_REDIS")?;
    let gate = Arc::new(connect(&url, HOUR).await);
    let hasty = Arc::new(connect(&url, MICROSECOND).await);
    Some(Fixture { gate, hasty, next_coupon: AtomicI64::new(fresh_coupon()) })
}

crate::gate_contract_tests!(redis);

// ---- the same random calls on both gates ---------------------------------------------------------------------------

/// One random call, applied to both gates. Times and deadlines are masked: the clocks differ.
async fn random_call(
    rng: &mut SmallRng,
    gate: &dyn Gate,
    coupon: CouponId,
    tokens: &[Uuid],
    epoch: i64,
) -> String {
    let who = user(rng.random_range(1..=25));
    let token = tokens[rng.random_range(0..tokens.len())];
    let terms = CampaignMeta {
        coupon,
        state: [CampaignState::Open, CampaignState::Open, CampaignState::Paused][rng.random_range(0..3)],
        limit: rng.random_range(1..=20),
        window: IssueWindow::default(),
        epoch,
    };
    match rng.random_range(0..100) {
        0..50 => format!("admit {who} {:?}", gate.admit(coupon, who, token).await.map(masked)),
        50..58 => format!("confirm {who} {:?}", gate.confirm(coupon, who, token).await),
        58..74 => {
            // Mostly with the right token, or nothing would ever be released.
            let held = gate.seat(coupon, who).await.unwrap().map_or(token, |view| view.seat.token);
            let token = if rng.random_bool(0.8) { held } else { token };
            format!("release {who} {:?}", gate.release(coupon, who, token).await)
        }
        74..78 => format!("extend {who} {}", gate.extend(coupon, who, token).await.unwrap()),
        78..82 => {
            let claimed = gate.pending_expired(coupon, 6).await.unwrap();
            format!(
                "claim {:?}",
                claimed.iter().map(|p| (p.user, p.seat.slot, p.seat.token)).collect::<Vec<_>>()
            )
        }
        82..88 => format!("limit {:?}", gate.set_limit(coupon, terms.limit).await),
        88..91 => {
            let ends = [None, Some(1_000_000), Some(4_000_000_000_000_000)];
            let window =
                IssueWindow { from_us: ends[rng.random_range(0..3)], until_us: ends[rng.random_range(0..3)] };
            format!("window {window:?} {:?}", gate.set_window(coupon, window).await)
        }
        91..93 => format!("pause {:?}", gate.pause(coupon).await),
        93..97 => format!("resume {:?}", gate.resume(coupon).await),
        97 => format!("open {:?}", gate.open(terms).await),
        98 => format!("close {:?}", gate.close(coupon).await),
        _ => {
            let members: Vec<Member> = (1..=25)
                .filter(|_| rng.random_bool(0.3))
                .enumerate()
                .map(|(n, id)| (n as i64, id))
                .map(|(n, id)| Member {
                    user: user(id),
                    slot: 2 * n + 1,
                    token,
                    admitted_at_us: 1_000 - n / 2,
                })
                .collect();
            format!("rebuild {epoch} {:?}", gate.rebuild(terms, members).await)
        }
    }
}

fn masked(admission: Admission) -> Admission {
    let masked = |seat| Seat { admitted_at_us: 0, ..seat };
    match admission {
        Admission::Admitted(seat) => Admission::Admitted(masked(seat)),
        Admission::Duplicate { seat, pending } => Admission::Duplicate { seat: masked(seat), pending },
        other => other,
    }
}

#[tokio::test]
async fn the_two_gates_agree_on_thousands_of_random_calls() {
    let Some(url) = service("SLUICE_TEST_REDIS") else { return };
    let seed =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SLUICE_SEED={seed} repeats this run");
    let mut rng = SmallRng::seed_from_u64(seed);
    for lease in [MICROSECOND, HOUR] {
        let redis = connect(&url, lease).await;
        let now_us = AtomicI64::new(1_700_000_000_000_000);
        // A millisecond a look: a lease of a microsecond is always over, as it is on Redis after a round trip.
        let clock: ClockUs = Arc::new(move || now_us.fetch_add(1_000, Ordering::Relaxed));
        let embedded = EmbeddedGate::with_clock(lease, clock);
        let mut decisions = 0;
        for _campaign in 0..12 {
            let coupon = CouponId::new(fresh_coupon()).unwrap();
            let tokens: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
            let mut epoch = 1;
            let mut history = Vec::new();
            for call in 0..300 {
                // The same random numbers for both.
                let fork: u64 = rng.random();
                epoch += i64::from(rng.random_bool(0.3));
                let mut said = Vec::new();
                for gate in [&redis as &dyn Gate, &embedded] {
                    let answer =
                        random_call(&mut SmallRng::seed_from_u64(fork), gate, coupon, &tokens, epoch).await;
                    let members = gate.members(coupon, 0, 100).await.unwrap();
                    let members: Vec<_> =
                        members.iter().map(|m| (m.user, m.seat.slot, m.seat.ordinal, m.pending)).collect();
                    said.push(format!("{answer} | {:?} {members:?}", gate.stock(coupon).await.unwrap()));
                }
                assert_eq!(
                    said[0],
                    said[1],
                    "call {call}, seed {seed}: Redis (left) and in process (right) differ after\n{}",
                    history.join("\n")
                );
                history.push(said.swap_remove(0));
            }
            let admitted = history.iter().filter(|said| said.contains("Admitted")).count();
            let refused = history.iter().filter(|said| said.contains("SoldOut")).count();
            decisions += admitted + refused;
        }
        assert!(decisions > 0, "seed {seed}: the calls never reached a decision");
    }
}

// ---- what only Redis can do ----------------------------------------------------------------------------------------

fn coupon() -> CouponId {
    CouponId::new(42).unwrap()
}

async fn run(server: &PrivateRedis, words: &[&str]) -> ::redis::Value {
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = ::redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(&mut connection).await.unwrap()
}

async fn keys(server: &PrivateRedis) -> Vec<String> {
    let mut keys: Vec<String> = ::redis::from_redis_value(run(server, &["KEYS", "*"]).await).unwrap();
    keys.sort();
    keys
}

#[tokio::test]
async fn keys_are_the_documented_ones_live_forever_and_unknown_ids_make_none() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    for id in 1..50 {
        let unknown = CouponId::new(id).unwrap();
        assert_eq!(gate.admit(unknown, user(1), Uuid::new_v4()).await.unwrap(), Admission::NotReady);
        gate.confirm(unknown, user(1), Uuid::new_v4()).await.unwrap();
        gate.release(unknown, user(1), Uuid::new_v4()).await.unwrap();
        gate.pause(unknown).await.unwrap();
        gate.pending_expired(unknown, 5).await.unwrap();
        gate.stock(unknown).await.unwrap();
    }
    assert_eq!(keys(&server).await, Vec::<String>::new());

    gate.open(meta(coupon(), 2)).await.unwrap();
    let Admission::Admitted(seat) = gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap() else {
        panic!()
    };
    gate.admit(coupon(), user(2), Uuid::new_v4()).await.unwrap();
    gate.release(coupon(), user(1), seat.token).await.unwrap();
    let expected = ["free", "issue", "meta", "pending", "slot"].map(|word| format!("coupon:{word}:{{42}}"));
    assert_eq!(keys(&server).await, expected);
    for key in &expected {
        assert_eq!(run(&server, &["TTL", key]).await, ::redis::Value::Int(-1), "{key} has no time to live");
    }
}

#[tokio::test]
async fn a_flushed_redis_closes_the_gate_until_it_is_rebuilt() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.open(meta(coupon(), 5)).await.unwrap();
    let token = Uuid::new_v4();
    let Admission::Admitted(seat) = gate.admit(coupon(), user(1), token).await.unwrap() else { panic!() };

    // FLUSHALL forgets the seats, SCRIPT FLUSH the scripts.
    run(&server, &["FLUSHALL"]).await;
    run(&server, &["SCRIPT", "FLUSH"]).await;
    assert_eq!(gate.admit(coupon(), user(2), Uuid::new_v4()).await.unwrap(), Admission::NotReady);
    assert_eq!(gate.confirm(coupon(), user(1), token).await.unwrap(), Confirmation::NotMine);
    assert_eq!(keys(&server).await, Vec::<String>::new(), "asking a flushed gate writes nothing");

    let row = Member { user: user(1), slot: seat.slot, token, admitted_at_us: seat.admitted_at_us };
    gate.rebuild(CampaignMeta { epoch: 2, ..meta(coupon(), 5) }, vec![row]).await.unwrap();
    assert!(matches!(
        gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap(),
        Admission::Duplicate { seat: Seat { slot: 1, epoch: 2, .. }, pending: false }
    ));
    let Admission::Admitted(next) = gate.admit(coupon(), user(2), Uuid::new_v4()).await.unwrap() else {
        panic!()
    };
    assert_eq!((next.slot, next.epoch), (2, 2));
}

#[tokio::test]
async fn scripts_the_server_forgot_are_sent_again() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.open(meta(coupon(), 100)).await.unwrap();
    for id in 1..=10 {
        run(&server, &["SCRIPT", "FLUSH"]).await;
        assert_eq!(gate.admit(coupon(), user(id), Uuid::new_v4()).await.unwrap().code(), id);
    }
}

#[tokio::test]
async fn those_who_come_soon_after_a_call_share_the_next() {
    let Some(server) = PrivateRedis::start() else { return };
    let config = RedisGateConfig { gather: Duration::from_millis(200), ..RedisGateConfig::new(server.url()) };
    let gate = RedisGate::connect(config).await.unwrap();
    gate.open(meta(coupon(), 100)).await.unwrap();
    run(&server, &["CONFIG", "RESETSTAT"]).await;
    let admit = async |id| gate.admit(coupon(), user(id), Uuid::new_v4()).await.unwrap().code();
    assert_eq!(admit(1).await, 1, "the first waits for nobody");
    // The second finds a call just made. Until its time is over, others come.
    let later = async |id| {
        for _ in 0..id {
            tokio::task::yield_now().await;
        }
        admit(id).await
    };
    let seats = tokio::join!(admit(2), later(3), later(4));
    assert_eq!(seats, (2, 3, 4), "in the order they came");
    let info: String = ::redis::from_redis_value(run(&server, &["INFO", "commandstats"]).await).unwrap();
    assert!(info.contains("cmdstat_evalsha:calls=2,"), "two calls for four: {info}");
}

#[tokio::test]
async fn an_admission_waiting_behind_an_unfinished_rebuild_is_not_ready() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.open(meta(coupon(), 5)).await.unwrap();
    // A process that died between begin and finish leaves this mark.
    run(&server, &["HSET", "coupon:meta:{42}", "rebuilding", "1"]).await;
    assert_eq!(gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap(), Admission::NotReady);
    assert_eq!(gate.stock(coupon()).await.unwrap().state, GateState::Rebuilding);
    assert_eq!(gate.pause(coupon()).await.unwrap(), Amendment::Amended, "terms may change meanwhile");
    gate.rebuild(CampaignMeta { epoch: 2, ..meta(coupon(), 5) }, Vec::new()).await.unwrap();
    assert_eq!(gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap().code(), 1);
}

#[tokio::test]
async fn a_foreign_value_under_a_key_is_named_and_nothing_is_half_written() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    for word in ["meta", "issue", "slot", "free", "pending"] {
        run(&server, &["FLUSHALL"]).await;
        gate.open(meta(coupon(), 5)).await.unwrap();
        let key = format!("coupon:{word}:{{42}}");
        run(&server, &["DEL", &key]).await;
        run(&server, &["SET", &key, "somebody else's"]).await;
        let before = keys(&server).await;
        let error = gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap_err();
        assert!(matches!(error, GateError::Misconfigured { .. }), "{word}: {error}");
        let text = error.to_string();
        assert!(text.contains("coupon 42") && text.contains("another type"), "{text}");
        assert_eq!(keys(&server).await, before, "{word}: a failed admission wrote something");
    }
}

#[tokio::test]
async fn a_redis_that_may_evict_seats_is_refused() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.health().await.unwrap();
    run(&server, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    for error in [
        RedisGate::connect(RedisGateConfig::new(server.url())).await.err().expect("must be refused"),
        gate.health().await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, GateError::Misconfigured { .. }), "{text}");
        assert!(
            text.contains("allkeys-lru") && text.contains("CONFIG SET maxmemory-policy noeviction"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_full_redis_is_a_clear_error() {
    let Some(server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.open(meta(coupon(), 5)).await.unwrap();
    run(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap_err();
    assert!(error.to_string().contains("raise maxmemory"), "{error}");
    run(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(gate.stock(coupon()).await.unwrap().admitted, 0, "nothing was half written");
    assert_eq!(gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap().code(), 1);
}

#[tokio::test]
async fn a_stopped_redis_is_unavailable_and_a_restarted_one_is_used_again() {
    let Some(mut server) = PrivateRedis::start() else { return };
    let gate = connect(&server.url(), HOUR).await;
    gate.open(meta(coupon(), 5)).await.unwrap();
    server.stop();
    let error = gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap_err();
    assert!(matches!(error, GateError::Unavailable { .. }), "{error}");
    // Every connection has met the outage by now: nothing leaves this process any more.
    for _ in 0..4 {
        gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap_err();
    }
    let error = gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap_err();
    assert!(!error.outcome_unknown(), "{error}");

    server.restart();
    // It kept nothing, so the gate is closed, not empty.
    assert_eq!(gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap(), Admission::NotReady);
    gate.rebuild(CampaignMeta { epoch: 2, ..meta(coupon(), 5) }, Vec::new()).await.unwrap();
    assert_eq!(gate.admit(coupon(), user(1), Uuid::new_v4()).await.unwrap().code(), 1);
}

#[tokio::test]
async fn a_silent_redis_leaves_the_outcome_unknown_and_asking_again_tells_it() {
    let Some(server) = PrivateRedis::start() else { return };
    let config = RedisGateConfig {
        response_timeout: Duration::from_millis(100),
        ..RedisGateConfig::new(server.url())
    };
    let gate = RedisGate::connect(config).await.unwrap();
    gate.open(meta(coupon(), 5)).await.unwrap();
    let token = Uuid::new_v4();
    server.freeze();
    let error = gate.admit(coupon(), user(1), token).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    server.thaw();
    // The frozen call was served after all; the same token gets the same seat, not a second one.
    let Admission::Admitted(seat) = gate.admit(coupon(), user(1), token).await.unwrap() else { panic!() };
    assert_eq!((seat.slot, seat.ordinal), (1, 1));
    assert_eq!(gate.stock(coupon()).await.unwrap().admitted, 1);
}

#[tokio::test]
async fn a_wrong_address_or_password_is_told_without_the_password() {
    let Some(server) = PrivateRedis::start() else { return };
    run(&server, &["CONFIG", "SET", "requirepass", "right"]).await;
    let port = server.port;
    let table = [
        ("http://somewhere:s3cret".to_string(), "not the URL of a Redis"),
        (format!("redis://:s3cret@127.0.0.1:{port}"), "redis.url"),
        (format!("redis://127.0.0.1:{port}"), "redis.url"),
        ("redis://:s3cret@127.0.0.1:1".to_string(), "unavailable (nothing was done)"),
    ];
    for (url, expected) in table {
        let error = RedisGate::connect(RedisGateConfig::new(&url)).await.err().expect(&url).to_string();
        assert!(error.contains(expected), "{url}: {error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_keeps_each_campaign_on_one_node_and_all_nodes_are_used() {
    let Some(nodes) = (0..3).map(|_| PrivateRedis::start_cluster_node()).collect::<Option<Vec<_>>>() else {
        return;
    };
    for (node, slots) in nodes.iter().zip([["0", "5000"], ["5001", "11000"], ["11001", "16383"]]) {
        run(node, &["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
        let info: String =
            ::redis::from_redis_value(run(&nodes[0], &["CONFIG", "GET", "cluster-port"]).await)
                .map(|pair: Vec<String>| pair[1].clone())
                .unwrap();
        run(node, &["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string(), &info]).await;
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    for node in &nodes {
        loop {
            let info: String = ::redis::from_redis_value(run(node, &["CLUSTER", "INFO"]).await).unwrap();
            if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "the cluster did not come up: {info}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    let gate = connect(&nodes[0].url(), HOUR).await;
    for id in 1..=40 {
        let coupon = CouponId::new(id).unwrap();
        gate.open(meta(coupon, 2)).await.unwrap();
        let mut codes = Vec::new();
        for holder in 1..=3 {
            codes.push(gate.admit(coupon, user(holder), Uuid::new_v4()).await.unwrap().code());
        }
        assert_eq!(codes, [1, 2, 0], "coupon {id}");
    }
    for node in &nodes {
        assert_ne!(run(node, &["DBSIZE"]).await, ::redis::Value::Int(0), "a node holds no campaign");
        run(node, &["SCRIPT", "FLUSH"]).await;
    }
    for id in 1..=40 {
        let coupon = CouponId::new(id).unwrap();
        assert_eq!(gate.admit(coupon, user(1), Uuid::new_v4()).await.unwrap().code(), -1);
        let members = gate.members(coupon, 0, 10).await.unwrap();
        gate.rebuild(CampaignMeta { epoch: 2, ..meta(coupon, 2) }, Vec::new()).await.unwrap();
        assert_eq!(members.len(), 2);
    }
    run(&nodes[2], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let error = gate.health().await.unwrap_err().to_string();
    assert!(error.contains("allkeys-lru"), "one wrong node is enough: {error}");
}
