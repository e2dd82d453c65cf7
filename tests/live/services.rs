//! The services that a test talks to: those of this `./dev test`, or a private set that the test may stop and kill.
//!
//! Always true: a test that breaks a service breaks its own; a private set is taken down when the test ends, and a test
//! has a database of its own, whichever server it is on.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::service;

/// Addresses of one Kafka, one Redis and one Postgres.
pub struct Services {
    pub kafka: String,
    pub redis: String,
    /// The server's own database; [`Services::database`] makes one for the test.
    pub postgres: String,
    /// The address of Redis leads to a proxy.
    pub redis_is_proxied: bool,
    /// Of a broker behind proxies: where each proxy listens, and where it carries to.
    pub kafka_proxies: Vec<(u16, u16)>,
    /// Takes the private run down.
    run: Option<PrivateRun>,
}

/// A private run; taken down on drop.
struct PrivateRun(String);

impl Services {
    /// Those in the environment, shared with other tests; `None` after saying that the test is skipped.
    pub fn shared() -> Option<Self> {
        Some(Self {
            kafka: service("SLUICE_TEST_KAFKA")?,
            redis: service("SLUICE_TEST_REDIS")?,
            postgres: service("SLUICE_TEST_POSTGRES")?,
            redis_is_proxied: false,
            kafka_proxies: Vec::new(),
            run: None,
        })
    }

    /// A set of this test's own, from the same `./dev`. Skipped where the shared ones are absent.
    pub fn private(name: &str) -> Option<Self> {
        Self::private_only(name, "kafka,redis,postgres")
    }

    /// Only some services of this test's own, separated by commas; the others are the shared ones.
    pub fn private_only(name: &str, only: &str) -> Option<Self> {
        Self::private_with(name, only, &[])
    }

    /// A Kafka of this test's own of so many brokers (`kafka-1` to `kafka-N` for [`act`](Self::act)).
    pub fn private_cluster(name: &str, brokers: u32) -> Option<Self> {
        Self::private_with(name, "kafka", &["--brokers", &brokers.to_string()])
    }

    /// A broker of this test's own with so many further addresses, each behind a proxy that the test opens.
    pub fn private_proxied(name: &str, proxies: usize) -> Option<Self> {
        Self::private_with(name, "kafka", &["--proxied", &proxies.to_string()])
    }

    fn private_with(name: &str, only: &str, options: &[&str]) -> Option<Self> {
        let shared = Self::shared()?;
        let run = format!("test-{}-{name}", std::process::id());
        let addresses = dev(&[&["up", "--run", &run, "--only", only], options].concat());
        let line =
            |name: &str| addresses.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
        let proxy = |pair: &str| {
            let (listens, carries) = pair.split_once('=')?;
            Some((listens.parse().ok()?, carries.parse().ok()?))
        };
        let address = |name: &str| match line(name) {
            Some(address) => address.to_owned(),
            None if name.ends_with("KAFKA") => shared.kafka.clone(),
            None if name.ends_with("REDIS") => shared.redis.clone(),
            None => shared.postgres.clone(),
        };
        Some(Self {
            kafka: address("SLUICE_TEST_KAFKA"),
            redis: address("SLUICE_TEST_REDIS"),
            postgres: address("SLUICE_TEST_POSTGRES"),
            redis_is_proxied: false,
            kafka_proxies: line("SLUICE_TEST_KAFKA_PROXIES").map_or_else(Vec::new, |pairs| {
                pairs.split(',').map(|pair| proxy(pair).expect("two ports")).collect()
            }),
            run: Some(PrivateRun(run)),
        })
    }

    /// `./dev service NAME ACTION`: stop, start, kill, pause or resume one service of a private set.
    pub fn act(&self, name: &str, action: &str) {
        let run =
            self.run.as_ref().expect("only a private service may be stopped: others use the shared ones");
        dev(&["service", name, action, "--run", &run.0]);
    }

    /// Creates an empty database and returns its address.
    pub async fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("live_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pool = sqlx::PgPool::connect(&self.postgres).await.expect("Postgres of the test answers");
        // A name made of digits and underscores above needs no escaping.
        sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}")))
            .execute(&pool)
            .await
            .expect("create database");
        pool.close().await;
        let server = self.postgres.rsplit_once('/').expect("an address ends in /database").0;
        format!("{server}/{name}")
    }
}

impl Drop for PrivateRun {
    fn drop(&mut self) {
        // A panic here while the test already panics would hide what the test found.
        let _ = Command::new(DEV).args(["down", "--run", &self.0]).output();
    }
}

const DEV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dev");

/// Runs `./dev` and returns what it printed.
fn dev(args: &[&str]) -> String {
    let mut command = Command::new(DEV);
    if args.iter().any(|arg| matches!(*arg, "--brokers" | "--proxied")) {
        command.env("SLUICE_DEV_MODE", "local");
    }
    let output = command.args(args).output().expect("./dev runs");
    assert!(
        output.status.success(),
        "./dev {} failed:\n{}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("./dev prints text")
}
