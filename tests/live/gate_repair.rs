//! The coupon service over a Redis that is flushed, restarted, set back or rebuilt by somebody else, in the middle of
//! a rush of two processes' worth of requests. Afterwards, once quiet, gate and ledger must agree and all invariants hold.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use sluice::coupon::clock::Clock;
use sluice::coupon::db::DbConfig;
use sluice::coupon::error::Refusal;
use sluice::coupon::gate::memo::{MEMORY_MAX, SoldOutMemo};
use sluice::coupon::gate::redis::{RedisGate, RedisGateConfig};
use sluice::coupon::gate::{Gate, GateState};
use sluice::coupon::ids::{CouponId, UserId};
use sluice::coupon::ledger::Ledger;
use sluice::coupon::service::{CouponConfig, CouponService, CreateCoupon, RequestContext};
use sluice::coupon::sweeper::Sweeper;

use crate::invariants::Campaign;
use crate::private_redis::PrivateRedis;
use crate::told::{Asked, Told};
use crate::verdict;

const LEASE: Duration = Duration::from_millis(400);

/// How many of a rush ask at once: as many seats may be pending, and forgotten with everything else.
const AT_ONCE: usize = 32;

/// Two services, as two processes would have them: each its own connections, one ledger, one Redis.
struct Setting {
    services: [CouponService; 2],
    ledger: Ledger,
    redis: PrivateRedis,
    coupon: CouponId,
    /// What everybody was told so far.
    told: Mutex<Vec<Told>>,
    _directory: tempfile::TempDir,
}

impl Setting {
    async fn new(limit: i64) -> Option<Self> {
        let redis = PrivateRedis::start()?;
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("ledger.db").display());
        let ledger =
            Ledger::open(&url, DbConfig { sync_commits: false, ..DbConfig::default() }).await.unwrap();
        ledger.migrate().await.unwrap();
        let service = async || {
            let config = RedisGateConfig {
                pending_lease: LEASE,
                response_timeout: Duration::from_millis(500),
                ..RedisGateConfig::new(redis.url())
            };
            let gate = SoldOutMemo::new(RedisGate::connect(config).await.unwrap(), MEMORY_MAX);
            let config =
                CouponConfig { duplicate_wait: Duration::from_millis(200), ..CouponConfig::default() };
            CouponService::new(Arc::new(gate), ledger.clone(), Clock::system(), config)
        };
        let services = [service().await, service().await];
        let campaign = CreateCoupon {
            coupon_name: "rush".into(),
            discount_type: "FIXED".into(),
            discount_value: 100,
            max_discount_amount: None,
            min_order_amount: 0,
            max_issue_count: limit,
            issue_from: None,
            issue_until: None,
            valid_from: "2020-01-01T00:00:00Z".parse().unwrap(),
            valid_to: "2099-01-01T00:00:00Z".parse().unwrap(),
            created_by: "test".into(),
        };
        let coupon = services[0].create(campaign).await.done().unwrap().coupon_id;
        services[0].open(coupon).await.done().unwrap();
        Some(Self { services, ledger, redis, coupon, told: Mutex::default(), _directory: directory })
    }

    async fn issue(&self, service: usize, id: i64) -> Result<i64, Refusal> {
        let user = UserId::new(id).unwrap();
        let asked = Asked::now(self.coupon.get(), id);
        let issued = self.services[service].issue(self.coupon, user, &RequestContext::default()).await;
        self.told.lock().unwrap().push(verdict::told(asked, &issued));
        issued.done().map(|row| row.slot_no)
    }

    /// `users` come, half of them to each service, thirty-two at a time; `fault` strikes when a third are through.
    /// Returns who was told yes.
    async fn rush(&self, users: std::ops::Range<i64>, mut fault: impl AsyncFnMut(&Self)) -> Vec<i64> {
        let (third, mut struck) = (users.start + (users.end - users.start) / 3, false);
        let mut told_yes = Vec::new();
        let ids: Vec<i64> = users.collect();
        for crowd in ids.chunks(AT_ONCE) {
            let answers = join_all(crowd.iter().map(|&id| self.issue((id % 2) as usize, id)));
            let strikes = !struck && crowd[0] >= third;
            let (answers, ()) = futures::join!(answers, async {
                if strikes {
                    fault(self).await;
                }
            });
            struck |= strikes;
            told_yes
                .extend(crowd.iter().zip(answers).filter_map(|(id, answer)| answer.is_ok().then_some(*id)));
        }
        told_yes
    }

    /// Sweeps until gate and ledger agree and nothing is pending.
    async fn quiet(&self) {
        let mut sweepers = self.services.clone().map(Sweeper::new);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let [one, two] = &mut sweepers;
            futures::join!(one.sweep_once(), two.sweep_once());
            let gate = self.services[0].gate();
            let stock = gate.stock(self.coupon).await.unwrap();
            let mut members = BTreeSet::new();
            let mut after_us = 0;
            while let Some(last) = {
                let page = gate.members(self.coupon, after_us, 1000).await.unwrap();
                members.extend(page.iter().map(|view| (view.user, view.seat.slot)));
                page.last().copied()
            } {
                after_us = last.seat.admitted_at_us;
            }
            let rows: BTreeSet<_> =
                self.ledger.members(self.coupon).await.unwrap().iter().map(|m| (m.user, m.slot)).collect();
            if members == rows && stock.pending == 0 && stock.state == GateState::Open {
                return;
            }
            let behind: Vec<_> = rows.symmetric_difference(&members).take(5).collect();
            assert!(
                Instant::now() < deadline,
                "not quiet: {stock:?}, {} rows, differing {behind:?}",
                rows.len()
            );
            tokio::time::sleep(LEASE / 4).await;
        }
    }

    /// What must hold after every fault: nobody told yes lacks a row, the last seat can be had, not one more, and all
    /// invariants hold. So many seats came back while the crowd was there.
    async fn check(&self, limit: i64, told_yes: &[i64], freed: usize) {
        self.quiet().await;
        let holders: BTreeSet<i64> =
            self.ledger.members(self.coupon).await.unwrap().iter().map(|member| member.user.get()).collect();
        let broken: Vec<_> = told_yes.iter().filter(|id| !holders.contains(id)).collect();
        assert!(broken.is_empty(), "told yes without a row: {broken:?}");
        let mut more = 0;
        for id in 1_000_000..1_000_000 + limit {
            match self.issue((id % 2) as usize, id).await {
                Ok(_) => more += 1,
                Err(Refusal::SoldOut) => break,
                Err(other) => panic!("user {id}: {other:?}"),
            }
        }
        let rows = self.ledger.members(self.coupon).await.unwrap().len() as i64;
        assert_eq!((holders.len() as i64 + more, rows), (limit, limit), "every seat is issued, none twice");
        self.quiet().await;
        let told = self.told.lock().unwrap().clone();
        let campaign = Campaign { coupon: self.coupon.get(), seats: limit, freed, rebuilt: true };
        verdict::holds(&self.services[0], &told, &[campaign]).await;
    }

    async fn redis(&self, words: &[&str]) -> ::redis::Value {
        let client = ::redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = ::redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// How many scripts the server has run.
    async fn scripts_run(&self) -> u64 {
        let stats: String = ::redis::from_redis_value(self.redis(&["INFO", "commandstats"]).await).unwrap();
        let calls = stats.split("cmdstat_evalsha:calls=").nth(1).and_then(|after| after.split(',').next());
        calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
    }

    fn key(&self, word: &str) -> String {
        format!("coupon:{word}:{{{}}}", self.coupon)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_over_a_quiet_redis_is_exact() {
    let Some(setting) = Setting::new(200).await else { return };
    let told_yes = setting.rush(1..600, async |_| {}).await;
    assert_eq!(told_yes.len(), 200);
    setting.check(200, &told_yes, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_in_the_middle_of_a_rush_costs_nobody_a_coupon_and_issues_none_too_many() {
    let Some(setting) = Setting::new(300).await else { return };
    let told_yes = setting.rush(1..500, async |s| drop(s.redis(&["FLUSHALL"]).await)).await;
    setting.check(300, &told_yes, AT_ONCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_that_missed_writes_is_caught_by_the_ledger() {
    let Some(setting) = Setting::new(300).await else { return };
    let words = ["meta", "issue", "slot", "free", "pending"];
    let mut told_yes = setting.rush(1..60, async |_| {}).await;
    for word in words {
        setting.redis(&["COPY", &setting.key(word), &setting.key(&format!("old-{word}"))]).await;
    }
    // Back to what the replica had, without the last hundred admissions.
    let set_back = async |s: &Setting| {
        // In one step: a replica that missed writes is old, but of one moment.
        let script = "for i = 1, 5 do
            redis.call('DEL', KEYS[i])
            if redis.call('EXISTS', KEYS[i + 5]) == 1 then redis.call('COPY', KEYS[i + 5], KEYS[i]) end
        end";
        let keys: Vec<String> = words.iter().map(|word| s.key(word)).collect();
        let old: Vec<String> = words.iter().map(|word| s.key(&format!("old-{word}"))).collect();
        let mut command = vec!["EVAL", script, "10"];
        command.extend(keys.iter().chain(&old).map(String::as_str));
        s.redis(&command).await;
    };
    told_yes.extend(setting.rush(60..400, set_back).await);
    setting.check(300, &told_yes, AT_ONCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_deleted_from_outside_is_noticed_and_rebuilt() {
    for word in ["meta", "issue", "slot", "free"] {
        let Some(setting) = Setting::new(40).await else { return };
        // Somebody's issue died and was swept, so that one slot is free.
        let gate = setting.services[0].gate();
        let dead = gate.admit(setting.coupon, UserId::new(999).unwrap(), uuid::Uuid::new_v4()).await.unwrap();
        assert_eq!(dead.code(), 1);
        let told_yes = setting.rush(1..20, async |_| {}).await;
        setting.quiet().await;
        assert_eq!(gate.stock(setting.coupon).await.unwrap().free, 1);

        setting.redis(&["DEL", &setting.key(word)]).await;
        let broken = gate.stock(setting.coupon).await.unwrap();
        assert_eq!(broken.state, GateState::NotReady, "{word}: {broken:?}");
        // The dead issue's seat.
        setting.check(40, &told_yes, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_empty_is_rebuilt() {
    let Some(mut setting) = Setting::new(100).await else { return };
    let told_yes = setting.rush(1..60, async |_| {}).await;
    setting.redis.stop();
    for id in 60..70 {
        let refusal = setting.issue((id % 2) as usize, id).await.unwrap_err();
        assert!(
            matches!(refusal, Refusal::SeatReleased { .. } | Refusal::OutcomeUnknown { .. }),
            "user {id}: {refusal:?}"
        );
    }
    setting.redis.restart();
    setting.check(100, &told_yes, AT_ONCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anothers_rebuild_is_waited_for_and_an_abandoned_one_taken_over() {
    let Some(setting) = Setting::new(100).await else { return };
    assert_eq!(setting.issue(0, 1).await, Ok(1));
    let epoch = async || setting.services[0].gate().stock(setting.coupon).await.unwrap().epoch;
    let (meta, before) = (setting.key("meta"), epoch().await);

    // Somebody rebuilds and is done soon: nobody interferes.
    setting.redis(&["HSET", &meta, "rebuilding", "1"]).await;
    let finish = async {
        // Not before the service has looked a few times: the admission, and then the state again and again.
        let (deadline, before) = (Instant::now() + Duration::from_secs(10), setting.scripts_run().await);
        while setting.scripts_run().await < before + 5 {
            assert!(Instant::now() < deadline, "the service does not wait for the rebuild");
            tokio::task::yield_now().await;
        }
        setting.redis(&["HDEL", &meta, "rebuilding"]).await;
    };
    let (answer, ()) = futures::join!(setting.issue(1, 2), finish);
    assert_eq!(answer, Ok(2));
    assert_eq!(epoch().await, before, "the other's rebuild was left to it");

    // Somebody began and died.
    setting.redis(&["HSET", &meta, "rebuilding", "1"]).await;
    setting.quiet().await;
    assert!(epoch().await > before, "taken over");
    assert_eq!(setting.issue(1, 3).await, Ok(3));
    setting.check(100, &[1, 2, 3], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_services_that_find_redis_flushed_at_once_end_with_one_working_gate() {
    let Some(setting) = Setting::new(50).await else { return };
    let told_yes = setting.rush(1..20, async |_| {}).await;
    for round in 0..10 {
        setting.redis(&["FLUSHALL"]).await;
        let mut sweepers = setting.services.clone().map(Sweeper::new);
        let [one, two] = &mut sweepers;
        let user = 100 + round;
        let (one, two, _) = futures::join!(one.sweep_once(), two.sweep_once(), setting.issue(0, user));
        assert_eq!((one.failed, two.failed), (0, 0));
        let state = setting.services[0].gate().stock(setting.coupon).await.unwrap().state;
        assert_eq!(state, GateState::Open, "round {round}: {one:?} {two:?}");
    }
    setting.check(50, &told_yes, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_lowered_and_raised_in_the_middle_of_a_rush_is_kept() {
    use sluice::coupon::service::PatchCoupon;
    let Some(setting) = Setting::new(400).await else { return };
    let limit = async |s: &Setting, seats| {
        let change = PatchCoupon { max_issue_count: Some(seats), ..PatchCoupon::default() };
        s.services[1].patch(s.coupon, change).await.done()
    };
    // Some seats are issued by then, so this may be refused (never below what is issued); then 400 stands.
    let mut told_yes = setting.rush(1..200, async |s| drop(limit(s, 150).await)).await;
    let stands = setting.ledger.campaign(setting.coupon, Clock::system().now()).await.unwrap().unwrap();
    assert_eq!(stands.max_issue_count, 150, "two thirds of the crowd were still to come");
    assert!(told_yes.len() <= 150, "{} were told yes", told_yes.len());
    told_yes.extend(setting.rush(200..700, async |s| drop(limit(s, 260).await)).await);
    setting.check(260, &told_yes, 260 - 150).await;
}
