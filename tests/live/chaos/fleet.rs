//! Processes of one application on a Kafka of their own, and everything that a test does to them.
//!
//! Always true: what runs is the real binary, `sluice streams run` (or `serve`, where a test reads its metrics), configured by
//! environment variables alone; it is killed when the test ends; its log is printed when it does not do what the test waits for.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use super::orders;
use crate::{proxy::Proxy, services::Services, topic};

/// Partitions of the input.
pub const PARTITIONS: i32 = 3;
/// Time after which the group gives the partitions of a silent member away, where nothing else is said.
pub const SESSION: Duration = Duration::from_secs(3);
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// See the module's documentation.
pub struct Fleet {
    pub services: Services,
    /// One in front of the broker for each member, where the services have them.
    pub proxies: Vec<Arc<Proxy>>,
    pub app: String,
    pub members: Vec<Member>,
    file: PathBuf,
    folder: tempfile::TempDir,
    settings: Vec<(String, String)>,
    replicas: i32,
    session: Duration,
    observer: topic::Observer,
    /// Whether members have an HTTP port.
    serves: bool,
}

impl Fleet {
    /// Nothing runs yet; the input topic is there.
    pub async fn new(services: Services, name: &str) -> Self {
        Self::replicated(services, name, 1).await
    }

    /// Every topic has so many replicas.
    pub async fn replicated(services: Services, name: &str, replicas: i32) -> Self {
        let app = format!("{name}-{}", std::process::id());
        topic::create_replicated(&services.kafka, &format!("{app}-in"), PARTITIONS, replicas).await;
        let topology = orders::TOPOLOGY.replace("APP", &app);
        let mut fleet = Self::of(services, &app, &topology, &format!("{app}-in")).await;
        fleet.replicas = replicas;
        fleet
    }

    /// For a topology of another kind; `input` is the topic whose progress is looked at.
    pub async fn of(services: Services, app: &str, topology: &str, input: &str) -> Self {
        let mut proxies = Vec::new();
        for (listens, carries) in &services.kafka_proxies {
            proxies.push(Proxy::between(*listens, *carries).await);
        }
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("topology.toml");
        fs::write(&file, topology).expect("written");
        let observer = topic::Observer::new(&services.kafka, app, input, PARTITIONS);
        let mut fleet = Self {
            services,
            proxies,
            app: app.to_owned(),
            members: Vec::new(),
            file,
            folder,
            settings: Vec::new(),
            replicas: 1,
            session: SESSION,
            observer,
            serves: false,
        };
        fleet.set("SLUICE__STREAMS__TRANSACTION_TIMEOUT_MS", 5_000);
        fleet
    }

    /// Members have an HTTP port, for metrics and readiness.
    pub fn serving(mut self) -> Self {
        self.serves = true;
        self
    }

    /// Another session timeout.
    pub fn with_session(mut self, session: Duration) -> Self {
        self.session = session;
        self
    }

    /// Tells every member started from now on: `SLUICE__SECTION__KEY`.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.push((key.to_owned(), value.to_string()));
    }

    /// One of the topics of the application.
    pub fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.app)
    }

    /// Where the member of this place keeps its state.
    pub fn state_dir(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("state-{place}"))
    }

    /// Starts the member of this place, again or for the first time.
    pub fn start(&mut self, place: usize) {
        let bootstrap = match self.proxies.get(place) {
            Some(proxy) => format!("127.0.0.1:{}", proxy.port),
            None => self.services.kafka.clone(),
        };
        let properties = format!(
            r#"{{ "consumer.session.timeout.ms" = "{}", "consumer.heartbeat.interval.ms" = "500", "reconnect.backoff.max.ms" = "1000" }}"#,
            self.session.as_millis()
        );
        let log = self.folder.path().join(format!("log-{place}"));
        let out = File::options().create(true).append(true).open(&log).expect("a log file");
        let data = self.folder.path().join(format!("data-{place}"));
        let port = self.serves.then(free_port);
        let mut command = Command::new(binary());
        command
            .env("SLUICE__LOG__KIND", "kafka")
            .env("SLUICE__KAFKA__BOOTSTRAP_SERVERS", bootstrap)
            .env("SLUICE__KAFKA__PROPERTIES", properties)
            .env("SLUICE__TOPICS__REPLICATION_FACTOR", self.replicas.to_string())
            .env("SLUICE__DATA_DIR", data)
            .env("SLUICE__STREAMS__STATE_DIR", self.state_dir(place))
            .env("SLUICE__STREAMS__INSTANCE_ID", format!("member-{place}"))
            .env("SLUICE__STREAMS__TOPOLOGIES", &self.file)
            .envs(self.settings.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out);
        match port {
            Some(port) => {
                command.args(["serve", "--roles", "streams"]);
                command.env("SLUICE__HTTP__LISTEN", format!("127.0.0.1:{port}"));
            }
            None => {
                command.args(["streams", "run"]).arg(&self.file);
            }
        }
        let child = command.spawn().expect("the binary starts");
        let url = port.map(|port| format!("http://127.0.0.1:{port}"));
        let member = Member { place, log, url, child: Some(child) };
        match self.members.get_mut(place) {
            Some(known) => *known = member,
            None => {
                assert_eq!(place, self.members.len(), "members start in their order");
                self.members.push(member);
            }
        }
    }

    /// Deletes what the member of this place, which does not run, has kept.
    pub fn wipe(&self, place: usize) {
        match fs::remove_dir_all(self.state_dir(place)) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
    }

    /// Every member that should run does.
    pub fn all_live(&mut self) {
        for member in &mut self.members {
            let died = member.child.as_mut().and_then(|child| child.try_wait().expect("it is our child"));
            assert!(
                died.is_none(),
                "member {} died by itself: {died:?}\n{}",
                member.place,
                member.log_tail()
            );
        }
    }

    /// The next offset to read of each input partition, as the group has committed it.
    pub fn committed(&self) -> Option<Vec<i64>> {
        self.observer.committed()
    }

    /// The end of each input partition.
    pub fn ends(&self) -> Option<Vec<i64>> {
        self.observer.ends()
    }

    /// Waits until everything that is in the input now is processed and committed; how long that took.
    pub async fn catch_up(&mut self, what: &str) -> Duration {
        let began = Instant::now();
        let deadline = began + PATIENCE;
        let mut ends = None;
        loop {
            ends = ends.or_else(|| self.ends());
            if let (Some(ends), Some(committed)) = (&ends, self.committed())
                && committed.iter().zip(ends).all(|(at, end)| at >= end)
            {
                return began.elapsed();
            }
            self.all_live();
            assert!(
                Instant::now() < deadline,
                "{what}: {:?} of {ends:?} after {PATIENCE:?}; undecided (topic, partition, stable, end): {:?}\n{}",
                self.committed(),
                topic::undecided(&self.services.kafka),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ends of the logs of all members.
    pub fn logs(&self) -> String {
        self.members.iter().map(Member::log_tail).collect()
    }

    /// How often the logs have a line with one of these.
    pub fn said(&self, words: &[&str]) -> usize {
        let count =
            |log: String| log.lines().filter(|line| words.iter().any(|word| line.contains(word))).count();
        self.members.iter().map(|member| count(member.log())).sum()
    }

    /// All members stop as they should.
    pub fn stop(&mut self) {
        for member in &mut self.members {
            member.signal(libc::SIGTERM);
        }
        for member in &mut self.members {
            member.ends_well();
        }
    }
}

/// One process.
pub struct Member {
    pub place: usize,
    /// Where it answers, of one that serves.
    pub url: Option<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Member {
    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it was running");
        child.wait().expect("it is reaped");
    }

    /// SIGSTOP: it stands still, its connections stay.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGTERM, and its end, which is a good one.
    pub fn leave(&mut self) {
        self.signal(libc::SIGTERM);
        self.ends_well();
    }

    fn ends_well(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                assert!(status.success(), "member {} ended with {status}\n{}", self.place, self.log_tail());
                return;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                panic!("member {} does not end\n{}", self.place, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: i32) {
        let Some(child) = &self.child else { return };
        // SAFETY: kill has no memory effects here; the process is our child and not yet waited for.
        let sent = unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(sent, 0, "member {} was running", self.place);
    }

    /// The sum of a metric over its labels; `None` while it does not answer.
    pub async fn metric(&self, http: &reqwest::Client, name: &str, label: &str) -> Option<f64> {
        let url = format!("{}/metrics", self.url.as_ref()?);
        let text = http.get(url).send().await.ok()?.text().await.ok()?;
        let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
        let of_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        };
        Some(text.lines().filter(of_name).filter_map(value).sum())
    }

    /// The most memory it has had at a time.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = self.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "-- log of member {} --\n{}\n",
            self.place,
            lines[lines.len().saturating_sub(60)..].join("\n")
        )
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The binary of this build, or another build of it: `SLUICE_TEST_BINARY` (a release build, to measure).
pub fn binary() -> String {
    std::env::var("SLUICE_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sluice").to_owned())
}

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
