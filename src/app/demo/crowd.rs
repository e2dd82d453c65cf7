//! The crowd of the demo: users who rush a campaign over real HTTP, click twice, lose answers and try again, and
//! later use what they got, or do not.
//!
//! What each user does follows from the seed and the user's number alone, so a resumed run does the same. Every
//! answer is written to a file before it is counted: it is the evidence for I9 and survives a kill.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::{Value, json};

use crate::coupon::verify::{Answer, Answers};

/// Users being served at once; the rest of the crowd waits its turn in front of the door.
const USERS_AT_ONCE: usize = 256;

/// How often a user tries again after 429, 503 or no answer.
const TRIES_MAX: u32 = 50;

/// What the crowd has seen so far; the live view reads it.
#[derive(Default)]
pub struct Counters {
    /// Requests answered.
    pub requests: AtomicU64,
    /// 201, and 200 for a lost answer asked again.
    pub accepted: AtomicU64,
    /// CP005.
    pub sold_out: AtomicU64,
    /// CP007.
    pub duplicates: AtomicU64,
    /// Requests sent again after 429, 503 or no answer.
    pub retries: AtomicU64,
    /// Answers that should not be.
    pub unexpected: AtomicU64,
    /// Coupons used.
    pub used: AtomicU64,
    /// Uses taken back.
    pub cancelled: AtomicU64,
    latencies: Latencies,
}

impl Counters {
    /// The latency below which this share of the answers came, in milliseconds.
    pub fn latency_ms(&self, share: f64) -> f64 {
        self.latencies.quantile_ms(share)
    }
}

/// A histogram with 5 % wide buckets from 10 us to minutes; adding is one atomic addition.
struct Latencies([AtomicU64; 340]);

impl Default for Latencies {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 340])
    }
}

impl Latencies {
    const SMALLEST_MS: f64 = 0.01;
    const WIDTH: f64 = 1.05;

    fn add(&self, elapsed: Duration) {
        let steps = (elapsed.as_secs_f64() * 1e3 / Self::SMALLEST_MS).max(1.0).log(Self::WIDTH);
        let bucket = (steps as usize).min(self.0.len() - 1);
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    fn quantile_ms(&self, share: f64) -> f64 {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let rank = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank && rank > 0 {
                return Self::SMALLEST_MS * Self::WIDTH.powi(bucket as i32 + 1);
            }
        }
        0.0
    }
}

/// The crowd.
pub struct Crowd {
    client: reqwest::Client,
    base: String,
    coupon: i64,
    seed: u64,
    journal: Mutex<File>,
    /// What it has seen.
    pub counters: Arc<Counters>,
}

impl Crowd {
    /// A crowd in front of the API at `base`, which writes its answers to `journal`.
    pub fn new(base: String, coupon: i64, seed: u64, journal: &Path) -> std::io::Result<Self> {
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(USERS_AT_ONCE * 2)
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .map_err(std::io::Error::other)?;
        let journal = File::options().create(true).append(true).open(journal)?;
        let counters = Arc::default();
        Ok(Self { client, base, coupon, seed, journal: Mutex::new(journal), counters })
    }

    /// All users who have no certain answer yet come within `rush`, more of them early.
    pub async fn rush(&self, users: i64, told: &Answers, rush: Duration) {
        let started = Instant::now();
        let mut arrivals: Vec<(Duration, i64)> = (1..=users)
            .filter(|user| told.get(&(self.coupon, *user)).is_none_or(|told| !told.yes && !told.no))
            .map(|user| (rush.mul_f64(self.chance(user, "arrival").powi(2)), user))
            .collect();
        arrivals.sort_unstable();
        futures::stream::iter(arrivals)
            .for_each_concurrent(USERS_AT_ONCE, |(arrival, user)| async move {
                tokio::time::sleep_until((started + arrival).into()).await;
                self.want(user).await;
            })
            .await;
    }

    /// One user: most ask once, some click twice, some lose the answer and ask again with the same key.
    async fn want(&self, user: i64) {
        let habit = self.chance(user, "habit");
        if habit < 0.10 {
            tokio::join!(self.issue(user, None), self.issue(user, None));
        } else if habit < 0.15 {
            let key = format!("demo-{}-{user}", self.seed);
            // The user's train enters a tunnel: the request is on its way, the answer is never seen.
            let patience = Duration::from_micros(200 + (self.chance(user, "patience") * 4_000.0) as u64);
            if tokio::time::timeout(patience, self.issue(user, Some(&key))).await.is_err() {
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                self.issue(user, Some(&key)).await;
            }
        } else {
            self.issue(user, None).await;
        }
    }

    /// Asks until there is a certain answer.
    async fn issue(&self, user: i64, key: Option<&str>) {
        let url = format!("{}/api/coupon/{}/issue-redis", self.base, self.coupon);
        for attempt in 0..TRIES_MAX {
            let mut request = self.client.post(&url).json(&json!({ "userId": user }));
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            let (status, body) = self.send(request).await;
            let code = body["errorCode"].as_str().map(str::to_owned);
            self.note(&Answer { coupon_id: self.coupon, user_id: user, status, code: code.clone() });
            let counters = &self.counters;
            let counter = match (status, code.as_deref()) {
                (200 | 201, _) => &counters.accepted,
                (409, Some("CP005")) => &counters.sold_out,
                (409, Some("CP007")) => &counters.duplicates,
                (0 | 429 | 503, _) => {
                    counters.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(backoff(attempt)).await;
                    continue;
                }
                _ => &counters.unexpected,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counters.unexpected.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the user will ever use a coupon.
    pub fn is_user(&self, user: i64) -> bool {
        self.chance(user, "uses") < 0.6
    }

    /// Holders who want to, use theirs within `time`: some click twice, some order too little first, a few take it back.
    pub async fn use_coupons(&self, holders: &[Value], time: Duration) {
        let started = Instant::now();
        let mut uses: Vec<(Duration, i64, i64)> = holders
            .iter()
            .filter_map(|held| Some((held["userId"].as_i64()?, held["userCouponId"].as_i64()?)))
            .filter(|(user, _)| self.is_user(*user))
            .map(|(user, held)| (time.mul_f64(self.chance(user, "use time")), user, held))
            .collect();
        uses.sort_unstable();
        futures::stream::iter(uses)
            .for_each_concurrent(USERS_AT_ONCE, |(at, user, held)| async move {
                tokio::time::sleep_until((started + at).into()).await;
                self.use_one(user, held).await;
            })
            .await;
    }

    async fn use_one(&self, user: i64, held: i64) {
        let url = format!("{}/api/user-coupons/{held}/use", self.base);
        let habit = self.chance(user, "use habit");
        let amount = 10_000 + (self.chance(user, "amount") * 90_000.0) as i64;
        let body = json!({ "orderId": format!("order-{user}"), "orderAmount": amount, "userId": user });
        if habit < 0.05 {
            let small = json!({ "orderId": format!("order-{user}"), "orderAmount": 500, "userId": user });
            // In a resumed run the order may be there already, and then it is the same order again.
            self.expect(&url, &small, &[422, 200]).await;
        }
        if habit < 0.15 {
            tokio::join!(self.expect(&url, &body, &[200]), self.expect(&url, &body, &[200]));
        } else {
            self.expect(&url, &body, &[200]).await;
        }
        self.counters.used.fetch_add(1, Ordering::Relaxed);
        if habit > 0.97 {
            let url = format!("{}/api/user-coupons/{held}/cancel-use", self.base);
            self.expect(&url, &json!({ "orderId": format!("order-{user}"), "userId": user }), &[200]).await;
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Posts until there is a certain answer, which must be one of these.
    async fn expect(&self, url: &str, body: &Value, wanted: &[u16]) {
        for attempt in 0..TRIES_MAX {
            let (status, answer) = self.send(self.client.post(url).json(body)).await;
            if matches!(status, 0 | 429 | 503) {
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(backoff(attempt)).await;
                continue;
            }
            if !wanted.contains(&status) {
                tracing::warn!(url, status, %answer, ?wanted, "an unexpected answer");
                self.counters.unexpected.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        self.counters.unexpected.fetch_add(1, Ordering::Relaxed);
    }

    /// Status and body; status 0 when no answer came.
    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let started = Instant::now();
        let answer = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.json::<Value>().await.unwrap_or(Value::Null)))
        };
        let answer = answer.await.unwrap_or((0, Value::Null));
        self.counters.latencies.add(started.elapsed());
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// One call whose answer is needed.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.client.request(method, format!("{}{path}", self.base)).json(body);
        match self.send(request).await {
            (200 | 201, answer) => Ok(answer),
            (status, answer) => Err(format!("{path}: {status} {answer}")),
        }
    }

    fn note(&self, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        // One write a line: what the system has taken survives the death of this process.
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = journal.write_all(&line) {
            tracing::error!(%error, "an answer cannot be written down");
            self.counters.unexpected.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A number in 0..1 that follows from seed, user and purpose.
    fn chance(&self, user: i64, purpose: &str) -> f64 {
        let mut hash = self.seed ^ (user as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // The finalizer of splitmix64.
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        (hash >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(20 << attempt.min(5))
}

/// Users who were told yes.
pub fn holders(told: &Answers, coupon: i64) -> BTreeSet<i64> {
    told.iter().filter(|((id, _), told)| *id == coupon && told.yes).map(|((_, user), _)| *user).collect()
}
