//! The service killed at every named place, on real Redis and Postgres, and all invariants judged afterwards.
//!
//! Each case runs the real binary three times on the same data: once to open a campaign; once armed, under a crowd,
//! until it aborts at its failure point; once more to finish. Then everyone who was left without a definite answer
//! asks again, the sweeper and the relay get to work, and when all is quiet the verifier looks at ledger, gate and log
//! from outside. Nobody may have been told a lie, no seat may be lost, and every seat that is left must be sold.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sluice::{
    coupon::{
        db::DbConfig,
        failpoint,
        gate::{
            Gate,
            redis::{RedisGate, RedisGateConfig},
        },
        ids::CouponId,
        ledger::Ledger,
        outbox,
        verify::{self, Answer, Answers, Invariant, answers, facts},
    },
    streams::client::embedded::EmbeddedLog,
};

use crate::{ledger::own_database, private_redis::PrivateRedis};

/// Seats of the campaign, and users who want one.
const SEATS: i64 = 30;
const USERS: i64 = 45;
/// Requests under way at once.
const CROWD: usize = 8;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// One process of the service on the case's data.
struct Server {
    child: Child,
    url: String,
    _output: BufReader<std::process::ChildStdout>,
}

struct Case {
    directory: tempfile::TempDir,
    redis: PrivateRedis,
    ledger_url: String,
    answers: Mutex<Answers>,
}

impl Case {
    fn start(&self, failpoint: Option<&str>) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--roles", "api,relay"])
            .env("SLUICE__HTTP__LISTEN", "127.0.0.1:0")
            .env("SLUICE__DATA_DIR", self.directory.path())
            .env("SLUICE__GATE__KIND", "redis")
            .env("SLUICE__REDIS__URL", self.redis.url())
            .env("SLUICE__LEDGER__URL", &self.ledger_url)
            // Short times, so that the sweeper need not be waited for.
            .env("SLUICE__LEDGER__ACQUIRE_TIMEOUT_MS", "500")
            .env("SLUICE__LEDGER__STATEMENT_TIMEOUT_MS", "500")
            .env("SLUICE__GATE__PENDING_TIMEOUT_MS", "4000")
            .env("SLUICE__GATE__SWEEP_INTERVAL_MS", "50")
            .env("SLUICE__COUPON__DUPLICATE_WAIT_MS", "100")
            .env("SLUICE__RELAY__LEASE_MS", "1000")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(name) = failpoint {
            command.env("SLUICE_FAILPOINT", name);
        }
        let mut child = command.spawn().expect("the binary starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listens on ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("text"), 0, "it ended before it listened");
        }
        let url = line.split_once("listens on ").expect("just seen").1.trim().to_owned();
        Server { child, url, _output: output }
    }

    /// One issue request; what the user was told is written down. True when the answer is definite.
    async fn issue(&self, http: &reqwest::Client, url: &str, coupon: i64, user: i64) -> bool {
        let path = format!("{url}/api/coupon/{coupon}/issue-redis");
        let (status, code) = match http.post(path).json(&json!({ "userId": user })).send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                let body: Value = response.json().await.unwrap_or_default();
                (status, body["errorCode"].as_str().map(str::to_owned))
            }
            Err(_) => (0, None),
        };
        let definite = matches!((status, code.as_deref()), (200 | 201, _) | (_, Some("CP005" | "CP007")));
        // A "nothing was done, try again" is a definite no about this request, but the user does try again.
        if code.as_deref() != Some("CP009") {
            let answer = Answer { coupon_id: coupon, user_id: user, status, code };
            answers::add(&mut self.answers.lock().unwrap(), &answer);
        }
        definite
    }

    /// Lets every user ask once, a few at a time; returns who got no definite answer.
    async fn crowd(self: &Arc<Self>, url: &str, coupon: i64, users: Vec<i64>) -> Vec<i64> {
        use futures::StreamExt;
        let http = reqwest::Client::new();
        let asked = futures::stream::iter(users).map(|user| {
            let (case, http, url) = (self.clone(), http.clone(), url.to_owned());
            async move { (user, case.issue(&http, &url, coupon, user).await) }
        });
        let answered: Vec<(i64, bool)> = asked.buffer_unordered(CROWD).collect().await;
        answered.into_iter().filter(|(_, definite)| !definite).map(|(user, _)| user).collect()
    }
}

impl Server {
    async fn post(&self, path: &str, body: Value) -> Value {
        let response = reqwest::Client::new().post(format!("{}{path}", self.url)).json(&body).send().await;
        let response = response.expect("an answer");
        let status = response.status();
        let body: Value = response.json().await.expect("JSON");
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// SIGTERM, and the end.
    fn stop(mut self) {
        // SAFETY: kill has no memory effects here; the process is our child and not yet waited for.
        let signalled = unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        assert_eq!(signalled, 0);
        assert!(self.child.wait().expect("it ends").success(), "a stop by SIGTERM is not a failure");
    }

    fn has_died(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills the service at `name` and judges what is left.
async fn killed_at(name: &str) {
    if !cfg!(feature = "failpoints") {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "with CI=true the tests are built with --all-features, or no failure point is tried"
        );
        println!("skipped: built without the feature `failpoints`");
        return;
    }
    assert!(failpoint::NAMES.contains(&name));
    let Some(ledger_url) = own_database().await else { return };
    let Some(redis) = PrivateRedis::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let case = Arc::new(Case { directory, redis, ledger_url, answers: Mutex::default() });

    let server = case.start(None);
    let campaign = json!({
        "couponName": "crash", "discountType": "FIXED", "discountValue": 1000, "maxIssueCount": SEATS,
        "validFrom": "2020-01-01T00:00:00Z", "validTo": "2099-01-01T00:00:00Z", "createdBy": "test",
    });
    let coupon = server.post("/api/coupon", campaign).await["couponId"].as_i64().expect("an id");
    server.post(&format!("/api/coupon/{coupon}/open"), json!({})).await;
    server.stop();

    // At the third passage some of the crowd is through and some is on its way; the relay may carry all in one step.
    let passage = if name.starts_with("relay") { 1 } else { 3 };
    let mut armed = case.start(Some(&format!("{name}:{passage}")));
    let url = armed.url.clone();
    let mut unanswered = case.crowd(&url, coupon, (1..=USERS).collect()).await;
    let deadline = Instant::now() + PATIENCE;
    while !armed.has_died() {
        assert!(Instant::now() < deadline, "the failure point {name} was not met");
        unanswered = case.crowd(&url, coupon, unanswered).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(armed);

    let server = case.start(None);
    let deadline = Instant::now() + PATIENCE;
    unanswered = (1..=USERS).collect();
    while !unanswered.is_empty() {
        assert!(Instant::now() < deadline, "{name}: users {unanswered:?} never got a definite answer");
        unanswered = case.crowd(&server.url, coupon, unanswered).await;
    }
    let ledger = Ledger::open(&case.ledger_url, DbConfig::default()).await.unwrap();
    let gate = RedisGate::connect(RedisGateConfig::new(case.redis.url())).await.unwrap();
    let gate: Arc<dyn Gate> = Arc::new(gate);
    let id = CouponId::new(coupon).unwrap();
    // Seats that a sold-out user was refused for the sake of, and which then came back, are for sale again.
    let mut late = USERS + 1;
    while ledger.issued_count(id).await.unwrap() < SEATS {
        assert!(Instant::now() < deadline, "{name}: a seat was lost: {:?}", gate.stock(id).await);
        case.crowd(&server.url, coupon, vec![late]).await;
        late += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    loop {
        let (stock, backlog) = (gate.stock(id).await.unwrap(), outbox::backlog(ledger.db()).await.unwrap());
        if (stock.pending, stock.admitted, backlog.unsent) == (0, SEATS, 0) {
            break;
        }
        assert!(Instant::now() < deadline, "{name}: not quiet: {stock:?} {backlog:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop();

    let log = EmbeddedLog::open(case.directory.path().join("log.sqlite")).unwrap();
    let told = case.answers.lock().unwrap().clone();
    let facts = facts::gather(ledger.db(), Some(&gate), Some(Arc::new(log)), Some(told)).await.unwrap();
    assert_eq!(facts.user_coupons.len() as i64, SEATS);
    let report = verify::judge(&facts);
    // No topology ran here, so there are no statistics to compare (I8).
    let findings: Vec<_> = report.findings().filter(|finding| finding.invariant != Invariant::I8).collect();
    assert!(findings.is_empty(), "killed at {name}: {findings:#?}");
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
