//! A coupon service that a test breaks: real processes on a Redis, a database and a log of its own, and a crowd whose
//! every answer is written down. What must hold afterwards is in [`invariants`](crate::invariants).
//!
//! The log is the embedded one in a file, of one process at a time (what Kafka can do to the service has tests of its
//! own), so that the statistics run here too and are judged with the rest. Times are short: a seat is pending for two seconds, a lease of the relay
//! lasts one.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, Process},
    private_redis::PrivateRedis,
    services::Services,
    told::{Asked, Told},
};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct World {
    pub deployment: Deployment,
    /// Kafka is the log; else it is a file, of one process at a time.
    pub on_kafka: bool,
    /// Every third user of a rush uses the coupon at once.
    pub uses: bool,
    /// How the process that only answers reaches the ledger, where not as the others do.
    pub front_ledger: Option<String>,
    redis: Mutex<Option<PrivateRedis>>,
    answers: Mutex<Vec<Told>>,
    /// User coupons that are to be used, and how many of their steps were answered with yes.
    redeeming: Mutex<BTreeMap<i64, usize>>,
}

/// What becomes of a user coupon that is used: every other one is given back.
fn steps(user_coupon: i64) -> &'static [&'static str] {
    if user_coupon % 2 == 0 { &["use", "cancel-use"] } else { &["use"] }
}

impl World {
    /// On the shared Postgres; nothing runs yet. `None` after saying that the test is skipped.
    pub async fn new() -> Option<Self> {
        Some(Self::on(Services::shared()?, PrivateRedis::start()?).await)
    }

    /// On these; what is reached through a proxy has the proxy's address in `services`.
    pub async fn on(services: Services, redis: PrivateRedis) -> Self {
        let mut services = services;
        if !services.redis_is_proxied {
            services.redis = redis.url();
        }
        let mut deployment = Deployment::new(services).await;
        deployment.set("SLUICE__LOG__KIND", "embedded");
        deployment.set("SLUICE__LOG__PATH", deployment.file("log.sqlite").display());
        Self::of(deployment, Some(redis))
    }

    /// On Kafka and everything else of a private set.
    pub async fn on_kafka(services: Services) -> Self {
        Self::of(Deployment::new(services).await, None)
    }

    fn of(mut deployment: Deployment, redis: Option<PrivateRedis>) -> Self {
        deployment.set("SLUICE__LEDGER__ACQUIRE_TIMEOUT_MS", 500);
        deployment.set("SLUICE__LEDGER__STATEMENT_TIMEOUT_MS", 2_000);
        deployment.set("SLUICE__GATE__PENDING_TIMEOUT_MS", 7_000);
        deployment.set("SLUICE__GATE__SWEEP_INTERVAL_MS", 50);
        deployment.set("SLUICE__COUPON__DUPLICATE_WAIT_MS", 100);
        deployment.set("SLUICE__REDIS__TIMEOUT_MS", 500);
        deployment.set("SLUICE__RELAY__LEASE_MS", 1_000);
        deployment.shorten_windows();
        let on_kafka = redis.is_none();
        Self {
            deployment,
            on_kafka,
            uses: true,
            front_ledger: None,
            redis: Mutex::new(redis),
            answers: Mutex::default(),
            redeeming: Mutex::default(),
        }
    }

    /// Two processes as a deployment has them, of different configuration: one only answers, and believes what it knows
    /// for longer; the other does everything.
    pub async fn two_processes(&self) -> [Process; 2] {
        let everything = self.deployment.start("everything", "api,relay,streams", &[]).await;
        let ledger = self.front_ledger.as_ref().unwrap_or(&self.deployment.database);
        let front = [
            ("SLUICE__LEDGER__URL", ledger.as_str()),
            ("SLUICE__GATE__SOLD_OUT_MEMO_MS", "0"),
            ("SLUICE__LEDGER__CONNECTIONS_MAX", "2"),
            ("SLUICE__COUPON__SNAPSHOT_TTL_MS", "5000"),
            ("SLUICE__COUPON__DUPLICATE_WAIT_MS", "0"),
            ("SLUICE__GATE__SWEEP_INTERVAL_MS", "200"),
        ];
        [self.deployment.start("front", "api", &front).await, everything]
    }

    /// Does something to this test's Redis.
    pub fn with_redis<T>(&self, act: impl FnOnce(&mut PrivateRedis) -> T) -> T {
        act(self.redis.lock().unwrap().as_mut().expect("a Redis of its own"))
    }

    /// Everything that was answered so far.
    pub fn answers(&self) -> Vec<Told> {
        self.answers.lock().unwrap().clone()
    }

    /// A metric of the process, summed over the lines that have the label's value.
    pub async fn metric(&self, process: &Process, name: &str, label: &str) -> f64 {
        let response = self.deployment.http.get(format!("{}/metrics", process.url)).send().await;
        let text = response.expect("an answer").text().await.expect("a body");
        let of_it = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        of_it.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// One request, written down.
    pub async fn issue(&self, url: &str, coupon: i64, user: i64) -> Told {
        self.ask(url, coupon, user).await.0
    }

    /// The same with the id of the user coupon that was issued.
    async fn ask(&self, url: &str, coupon: i64, user: i64) -> (Told, Option<i64>) {
        let asked = Asked::now(coupon, user);
        let path = format!("{url}/api/coupon/{coupon}/issue-redis");
        let (status, body) =
            match self.deployment.http.post(path).json(&json!({ "userId": user })).send().await {
                Ok(response) => {
                    (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default())
                }
                Err(_) => (0, Value::Null),
            };
        let told = asked.told(status, body["errorCode"].as_str().map(str::to_owned));
        self.answers.lock().unwrap().push(told.clone());
        (told, body["userCouponId"].as_i64())
    }

    /// Uses a user coupon, and gives every other one back, as far as the answers are yes; [`settle`](Self::settle) does the rest.
    pub async fn redeem(&self, url: &str, user_coupon: i64) {
        let done = *self.redeeming.lock().unwrap().entry(user_coupon).or_default();
        for step in &steps(user_coupon)[done..] {
            let order = json!({ "orderId": format!("order of {user_coupon}"), "orderAmount": 5_000 });
            let path = format!("{url}/api/user-coupons/{user_coupon}/{step}");
            let status = match self.deployment.http.post(path).json(&order).send().await {
                Ok(response) => response.status().as_u16(),
                Err(_) => 0,
            };
            let may_be = matches!(status, 0 | 200 | 429 | 503);
            assert!(
                may_be,
                "I9: {step} of user coupon {user_coupon}, which its user was told to have: {status}"
            );
            if status != 200 {
                return;
            }
            *self.redeeming.lock().unwrap().get_mut(&user_coupon).expect("it was begun") += 1;
        }
    }

    /// The user coupons whose users were told that they are used, and nothing since.
    pub fn stay_used(&self) -> Vec<i64> {
        let redeeming = self.redeeming.lock().unwrap();
        redeeming.iter().filter(|(id, done)| steps(**id)[..**done] == ["use"]).map(|(id, _)| *id).collect()
    }

    /// The user coupons that are not yet what is to become of them.
    fn half_redeemed(&self) -> Vec<i64> {
        let redeeming = self.redeeming.lock().unwrap();
        redeeming.iter().filter(|(id, done)| **done < steps(**id).len()).map(|(id, _)| *id).collect()
    }

    /// Everyone asks once, every fifth twice at the same moment, eight at a time, taking turns between the processes, and
    /// every third who is told yes uses the coupon; when a third of the answers is there, the fault strikes.
    pub async fn rush(
        self: &Arc<Self>,
        urls: &[String],
        coupon: i64,
        users: std::ops::RangeInclusive<i64>,
        fault: impl Future<Output = ()>,
    ) {
        let requests: Vec<i64> =
            users.flat_map(|user| std::iter::repeat_n(user, if user % 5 == 0 { 2 } else { 1 })).collect();
        let third = requests.len() / 3;
        let (requests, next, answered) =
            (Arc::new(requests), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (world, urls) = (self.clone(), urls.to_vec());
                let (requests, next, answered) = (requests.clone(), next.clone(), answered.clone());
                tokio::spawn(async move {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        let Some(&user) = requests.get(at) else { return };
                        let url = &urls[at % urls.len()];
                        let (_, issued) = world.ask(url, coupon, user).await;
                        if let Some(user_coupon) = issued.filter(|_| world.uses && user % 3 == 0) {
                            world.redeem(url, user_coupon).await;
                        }
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while answered.load(Ordering::SeqCst) < third {
            assert!(Instant::now() < deadline, "a third of the crowd was never answered");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fault.await;
        for worker in workers {
            worker.await.expect("a worker does not panic");
        }
    }

    /// Whoever has no final answer yet, to an issue or to a use, asks again, as the answers say is safe, until everybody has one.
    pub async fn settle(&self, urls: &[String]) {
        let deadline = Instant::now() + PATIENCE;
        for turn in 0.. {
            let mut open: Vec<(i64, i64)> = Vec::new();
            let answers = self.answers();
            for told in &answers {
                let who = (told.coupon, told.user);
                let is_settled = |other: &Told| (other.coupon, other.user) == who && other.is_final();
                if !open.contains(&who) && !answers.iter().any(is_settled) {
                    open.push(who);
                }
            }
            let half_redeemed = self.half_redeemed();
            if open.is_empty() && half_redeemed.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no final answer for {open:?} (coupon, user), nor for the uses of {half_redeemed:?}"
            );
            if turn > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            for (coupon, user) in open {
                self.issue(&urls[turn % urls.len()], coupon, user).await;
            }
            for user_coupon in half_redeemed {
                self.redeem(&urls[turn % urls.len()], user_coupon).await;
            }
        }
    }
}

/// The addresses of some processes.
pub fn urls<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Vec<String> {
    processes.into_iter().map(|process| process.url.clone()).collect()
}
