//! sluice as it is deployed: real processes of the real binary, configured by environment variables alone.
//!
//! Always true: a process is used only after its readiness endpoint said so; it is killed when the test ends; its log
//! is printed when it does not do what the test waits for.

use std::{
    fs::{self, File},
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::services::Services;

/// The token that admin calls carry.
pub const ADMIN_TOKEN: &str = "live-test-token";

/// One campaign service: services, a database, a directory, and any number of processes.
pub struct Deployment {
    pub services: Services,
    /// The ledger of this deployment.
    pub database: String,
    pub http: reqwest::Client,
    /// What every process of it is told besides its addresses.
    settings: Vec<(String, String)>,
    directory: tempfile::TempDir,
}

impl Deployment {
    pub async fn new(services: Services) -> Self {
        let database = services.database().await;
        let http =
            reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("an HTTP client");
        let directory = tempfile::tempdir().expect("a directory");
        Self { services, database, http, settings: Vec::new(), directory }
    }

    /// Tells every process started from now on: `SLUICE__SECTION__KEY`.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.push((key.to_owned(), value.to_string()));
    }

    /// A place for a file of this deployment.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Windows of two seconds instead of a minute, and input that counts as silent after three: results are final while a
    /// test waits.
    pub fn shorten_windows(&mut self) {
        self.set_windows("2s", "1s", "3s");
    }

    /// The statistics as shipped, but for the length of a minute and how long it waits for more.
    pub fn set_windows(&mut self, tumbling: &str, grace: &str, idle_close: &str) {
        let shipped = include_str!("../../topologies/coupon-statistics.toml");
        let shorter = [
            (r#"tumbling = "1m", grace = "10s""#, &*format!(r#"tumbling = "{tumbling}", grace = "{grace}""#)),
            (r#"idle_close = "30s""#, &*format!(r#"idle_close = "{idle_close}""#)),
        ];
        let text = shorter.iter().fold(shipped.to_owned(), |text, (shipped, shorter)| {
            assert!(text.contains(shipped), "the shipped statistics have no `{shipped}`");
            text.replace(shipped, shorter)
        });
        let file = self.file("coupon-statistics.toml");
        fs::write(&file, text).expect("a file");
        self.set("SLUICE__STREAMS__TOPOLOGIES", file.display());
    }

    /// Runs `sluice ARGS` as an operator of this deployment would; its exit code and what it printed.
    pub fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.command("operator").args(args).output().expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0 | 1) if !text.is_empty() => (output.status.code(), text),
            code => (code, format!("{text}{errors}")),
        }
    }

    /// The binary with everything that the processes of this deployment have in common.
    fn command(&self, name: &str) -> Command {
        let directory = self.directory.path().join(name);
        fs::create_dir_all(&directory).expect("a directory of the process");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command
            .current_dir(&directory)
            .envs(self.environment())
            .env("SLUICE__DATA_DIR", &directory)
            .stdin(Stdio::null());
        command
    }

    /// What every process of the deployment is told.
    pub fn environment(&self) -> Vec<(String, String)> {
        let of_all = [
            ("SLUICE__ADMIN__TOKEN", ADMIN_TOKEN),
            ("SLUICE__LOG__KIND", "kafka"),
            ("SLUICE__KAFKA__BOOTSTRAP_SERVERS", &self.services.kafka),
            ("SLUICE__TOPICS__REPLICATION_FACTOR", "1"),
            ("SLUICE__GATE__KIND", "redis"),
            ("SLUICE__REDIS__URL", &self.services.redis),
            ("SLUICE__LEDGER__URL", &self.database),
        ];
        let of_all = of_all.map(|(key, value)| (key.to_owned(), value.to_owned()));
        of_all.into_iter().chain(self.settings.iter().cloned()).collect()
    }

    /// Where the process of this name keeps its state.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.directory.path().join(name).join("state")
    }

    /// Starts `sluice serve --roles ROLES` and waits until it is ready.
    pub async fn start(&self, name: &str, roles: &str, settings: &[(&str, &str)]) -> Process {
        let mut process = self.spawn(name, roles, settings);
        process.wait_until_ready(&self.http).await;
        process
    }

    /// Starts `sluice serve`, which must give up by itself; what it said.
    pub async fn refuses_to_start(&self, name: &str, settings: &[(&str, &str)]) -> String {
        let mut process = self.spawn(name, "api", settings);
        let ended = eventually(Duration::from_secs(60), || {
            let ended = process.has_died().then_some(());
            async move { ended }
        });
        assert!(ended.await.is_some(), "{name} did not give up:\n{}", process.log_tail());
        process.log()
    }

    fn spawn(&self, name: &str, roles: &str, settings: &[(&str, &str)]) -> Process {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut command = self.command(name);
        let log = self.directory.path().join(name).join("log");
        let out = File::options().create(true).append(true).open(&log).expect("a log file");
        command
            .args(["serve", "--roles", roles])
            .env("SLUICE__HTTP__LISTEN", &listen)
            .envs(settings.iter().copied())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out);
        let child = command.spawn().expect("the binary starts");
        Process { name: name.to_owned(), url: format!("http://{listen}"), log, child }
    }

    /// The body that creates a campaign.
    pub fn campaign(seats: u64) -> Value {
        json!({
            "couponName": "live", "discountType": "FIXED", "discountValue": 1000, "maxIssueCount": seats,
            "validFrom": "2020-01-01T00:00:00Z", "validTo": "2099-01-01T00:00:00Z", "createdBy": "live-test",
        })
    }

    /// Creates a campaign with `seats` seats.
    pub async fn draft(&self, process: &Process, seats: u64) -> i64 {
        let created = self.admin(process, "/api/coupon", &Self::campaign(seats)).await;
        created["couponId"].as_i64().unwrap_or_else(|| panic!("no couponId in {created}"))
    }

    /// Creates a campaign with `seats` seats and opens it.
    pub async fn open_campaign(&self, process: &Process, seats: u64) -> i64 {
        let id = self.draft(process, seats).await;
        self.admin(process, &format!("/api/coupon/{id}/open"), &json!({})).await;
        id
    }

    /// Changes the number of seats; the answer's status.
    pub async fn set_seats(&self, process: &Process, coupon: i64, seats: i64) -> u16 {
        let url = format!("{}/api/coupon/{coupon}", process.url);
        let body = json!({ "maxIssueCount": seats });
        let response = self.http.patch(url).bearer_auth(ADMIN_TOKEN).json(&body).send().await;
        response.expect("an answer").status().as_u16()
    }

    /// A request that carries the admin token.
    pub fn admin_request(&self, method: reqwest::Method, url: String) -> reqwest::RequestBuilder {
        self.http.request(method, url).bearer_auth(ADMIN_TOKEN)
    }

    /// A call with the admin token that must succeed.
    pub async fn admin(&self, process: &Process, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", process.url);
        let request = self.http.post(&url).bearer_auth(ADMIN_TOKEN).json(body);
        let response = request
            .send()
            .await
            .unwrap_or_else(|error| panic!("POST {path}: {error}\n{}", process.log_tail()));
        let (status, text) = (response.status(), response.text().await.expect("a body"));
        assert!(status.is_success(), "POST {path}: {status} {text}\n{}", process.log_tail());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("POST {path}: {error} in {text}"))
    }

    /// A pool on the ledger, for asking what really happened.
    pub async fn ledger(&self) -> sqlx::PgPool {
        sqlx::PgPool::connect(&self.database).await.expect("the ledger answers")
    }
}

/// One running sluice.
pub struct Process {
    pub name: String,
    pub url: String,
    log: PathBuf,
    child: Child,
}

/// Whether the system may give a process huge pages, by its id or "self"; `None` where it does not say.
pub fn may_have_huge_pages(process: &str) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"))?;
    Some(line.trim() == "1")
}

impl Process {
    async fn wait_until_ready(&mut self, http: &reqwest::Client) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let response = http.get(format!("{}/readyz", self.url)).send().await;
            if response.is_ok_and(|response| response.status().is_success()) {
                return;
            }
            if self.has_died() || Instant::now() >= deadline {
                panic!("{} never got ready:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process was running");
        self.child.wait().expect("the killed process is reaped");
    }

    /// SIGTERM, and its end; whether it ended well.
    pub fn stop(mut self) -> bool {
        // SAFETY: kill has no memory effects here; the process is our child and not yet waited for.
        let signalled = unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        assert_eq!(signalled, 0, "the process was running");
        self.child.wait().expect("it ends").success()
    }

    /// See [`may_have_huge_pages`].
    pub fn may_have_huge_pages(&self) -> Option<bool> {
        may_have_huge_pages(&self.child.id().to_string())
    }

    /// Whether it has ended by itself.
    pub fn has_died(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log, for a failure message.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        format!("-- log of {} --\n{}", self.name, lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the condition gives something; `None` when the deadline passes first.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A port that is free now. Between this answer and the bind another process could take it; the readiness check would say so.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Whether a directory holds a file whose name contains `part`, at any depth.
pub fn holds_file(directory: &Path, part: &str) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        entry.file_name().to_string_lossy().contains(part)
            || (entry.path().is_dir() && holds_file(&entry.path(), part))
    })
}
