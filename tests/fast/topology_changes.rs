//! Locks, comparisons, resets and reloads by the real binary on the embedded log.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    record::{Headers, ProducerRecord, TopicPartition},
};

use crate::{binary, server::Server};

const FILE: &str = r#"version = 1
app = "clicks"

[source.clicks]
topic  = "clicks"
bad    = "skip"
fields = { user = "int", page = "text" }

[table.pages]
from     = "clicks"
group_by = ["page"]
select   = { clicks = "count(*)" }
to       = { topic = "pages", key = "page" }
"#;

fn sluice(directory: &Path, args: &[&str]) -> Command {
    let mut command = binary::sluice(args);
    command.current_dir(directory).env("SLUICE__DATA_DIR", "data");
    command
}

/// Runs to the end: exit code, standard output, standard error.
#[track_caller]
fn run(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = sluice(directory, args).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("written");
}

fn has_class(changes: &Value, class: &str) -> bool {
    changes.as_array().into_iter().flatten().any(|change| change["class"] == class)
}

#[test]
fn a_changed_plan_without_its_lock_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "clicks.toml", FILE);
    let check = ["topology", "diff", "--check", "clicks.toml"];
    let (code, out, _) = run(at, &check);
    assert!(code == 1 && out.contains("there is no .plan/clicks.json"), "{code} {out}");
    assert_eq!(run(at, &["topology", "plan", "--write", "clicks.toml"]).0, 0);
    let lock: Value =
        serde_json::from_str(&std::fs::read_to_string(at.join(".plan/clicks.json")).unwrap()).unwrap();
    assert_eq!(lock["app"], "clicks");
    assert_eq!(run(at, &check).0, 0);
    // Not every difference in the text is one.
    write(at, "clicks.toml", &FILE.replace("version = 1", "# by page\nversion = 1"));
    assert_eq!(run(at, &check).0, 0);

    write(at, "clicks.toml", &FILE.replace("topic = \"pages\"", "topic = \"pages2\""));
    let (code, out, _) = run(at, &check);
    assert!(
        code == 1 && out.contains("forward-only") && out.contains("pages: to.topic: pages -> pages2"),
        "{code} {out}"
    );
    assert_eq!(run(at, &["topology", "diff", "clicks.toml"]).0, 0, "it may be applied");
    write(at, "clicks.toml", &FILE.replace("count(*)", "count(user)"));
    let (code, out, _) = run(at, &["topology", "diff", "clicks.toml"]);
    assert!(
        code == 1 && out.contains("needs state_version + 1") && out.contains("write state_version = 2"),
        "{code} {out}"
    );
    let (code, out, _) = run(at, &["topology", "diff", "--json", "clicks.toml"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert!(code == 1 && has_class(&json[0]["changes"], "needs-state-version"), "{json}");
}

#[test]
fn a_topology_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "clicks.toml", FILE);
    let (code, svg, _) = run(folder.path(), &["topology", "describe", "--svg", "clicks.toml"]);
    assert!(code == 0 && svg.starts_with("<svg") && svg.contains(">clicks-pages-repartition<"), "{svg}");
    let (code, dot, _) = run(folder.path(), &["topology", "describe", "--dot", "clicks.toml"]);
    assert!(code == 0 && dot.starts_with("digraph") && dot.contains("subgraph cluster_1"), "{dot}");
}

/// Writes clicks into the log of a data directory.
fn click(directory: &Path, from: i64, count: i64) {
    std::fs::create_dir_all(directory.join("data")).unwrap();
    let log = EmbeddedLog::open(directory.join("data/log.sqlite")).unwrap();
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: 2,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&[topic("clicks"), topic("pages")]).unwrap();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for n in from..from + count {
        producer
            .send(ProducerRecord {
                topic: "clicks".into(),
                partition: Some((n % 2) as i32),
                key: None,
                value: Some(Bytes::from(json!({ "user": n, "page": format!("p{}", n % 3) }).to_string())),
                timestamp: Some(1_000 * n),
                headers: Headers::EMPTY,
            })
            .unwrap();
    }
    producer.flush().unwrap();
}

/// The newest result of each page.
fn pages(directory: &Path) -> BTreeMap<String, i64> {
    let log = EmbeddedLog::open(directory.join("data/log.sqlite")).unwrap();
    let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    consumer.assign(&[0, 1].map(|p| (TopicPartition::new("pages", p), Some(0)))).unwrap();
    let mut newest = BTreeMap::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            return newest;
        }
        for record in records {
            let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
            newest.insert(value["page"].as_str().unwrap().to_owned(), value["clicks"].as_i64().unwrap());
        }
    }
}

fn run_to_end(directory: &Path, more: &[&str]) -> Value {
    let args = [&["streams", "run", "--until-caught-up", "clicks.toml"], more].concat();
    let (code, out, err) = run(directory, &args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn a_reset_looks_first_and_then_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "clicks.toml", FILE);
    click(at, 0, 300);
    let summary =
        run_to_end(at, &["--guarantee", "at_least_once", "--state-dir", "elsewhere", "--threads", "2"]);
    for key in
        ["records", "seconds", "cpu_seconds", "peak_rss_bytes", "commits", "restored", "late", "dropped"]
    {
        assert!(summary[key].is_number(), "no {key} in {summary}");
    }
    // 300 clicks, and what came through the repartition topic.
    assert!(summary["records"].as_i64().unwrap() > 300 && at.join("elsewhere/clicks").is_dir(), "{summary}");
    let all = BTreeMap::from(["p0", "p1", "p2"].map(|page| (page.to_owned(), 100)));
    assert_eq!(pages(at), all);
    let again = run_to_end(at, &["--state-dir", "elsewhere"]);
    assert_eq!(again["records"], 0, "{again}");
    let (code, _, err) =
        run(at, &["streams", "run", "--until-caught-up", "clicks.toml", "--guarantee", "perhaps"]);
    assert!(
        code == 2 && err.contains("streams.processing_guarantee") && err.contains("the command line"),
        "{err}"
    );

    let reset = |more: &[&str]| {
        let given = [&["streams", "reset", "clicks.toml"], more].concat();
        let mut command = sluice(at, &given);
        let output = command.env("SLUICE__STREAMS__STATE_DIR", "elsewhere").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, out) = reset(&["--force"]);
    assert!(code == 0 && out.contains("clicks-0: 150 -> 0 (of 150)") && out.contains("--execute"), "{out}");
    assert!(out.contains("clicks-pages-changelog") && out.contains("clicks-pages-repartition"), "{out}");
    assert_eq!(run_to_end(at, &["--state-dir", "elsewhere"])["records"], 0, "nothing was touched");
    for (target, to) in [
        (&["--to-latest"][..], 150),
        (&["--to-offset", "7"], 7),
        (&["--to-offset", "7000"], 150),
        (&["--shift-by", "-10"], 140),
        (&["--to-datetime", "1970-01-01T00:01:40Z"], 50),
    ] {
        let (_, out) = reset(&[&["--json"], target].concat());
        let json: Value = serde_json::from_str(&out).unwrap();
        let first = json["offsets"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["topic"] == "clicks" && one["partition"] == 0);
        assert_eq!(
            (&json["executed"], &first.unwrap()["to"]),
            (&json!(false), &json!(to)),
            "{target:?} {json}"
        );
    }
    let (code, out) = reset(&["--execute", "--force"]);
    assert!(code == 0 && !at.join("elsewhere/clicks").exists(), "{out}");
    let summary = run_to_end(at, &["--state-dir", "elsewhere"]);
    assert!(summary["records"].as_i64().unwrap() > 300 && summary["restored"] == 0, "{summary}");
    assert_eq!(pages(at), all, "counted anew, not on top of what was");
}

/// A server that runs `clicks.toml`.
struct Clicks(Server);

impl Clicks {
    fn start(directory: &Path) -> Self {
        let mut command = sluice(directory, &["serve", "--roles", "streams"]);
        command.env("SLUICE__ADMIN__TOKEN", "t0ken").env("SLUICE__STREAMS__TOPOLOGIES", "clicks.toml");
        Self(Server::start(&mut command))
    }

    async fn call(&self, method: reqwest::Method, path: &str, token: &str) -> (u16, Value) {
        let request =
            reqwest::Client::new().request(method, format!("{}{path}", self.0.url)).bearer_auth(token);
        let response = request.send().await.expect("an answer");
        (
            response.status().as_u16(),
            serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default(),
        )
    }

    async fn sink(&self) -> Value {
        let (status, list) = self.call(reqwest::Method::GET, "/api/streams/topologies", "t0ken").await;
        assert_eq!(status, 200, "{list}");
        let nodes = list["items"][0]["plan"]["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == "pages").unwrap()["sink"]["topic"].clone()
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(Instant::now() < deadline, "waited for long: {what}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_changed_files_and_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, "clicks.toml", FILE);
    click(at, 0, 10);
    let server = Clicks::start(at);
    let reload = async |path: &str| server.call(reqwest::Method::POST, path, "t0ken").await;
    server
        .until("it runs", async || {
            server.call(reqwest::Method::GET, "/api/streams/topologies", "t0ken").await.1["items"][0]["state"]
                == "Running"
        })
        .await;
    assert_eq!(server.call(reqwest::Method::POST, "/api/streams/reload", "token").await.0, 401);
    assert_eq!(server.call(reqwest::Method::GET, "/api/streams/topologies", "token").await.0, 401);
    let (status, same) = reload("/api/streams/reload").await;
    assert_eq!((status, &same["applications"][0]["changes"]), (200, &json!([])), "{same}");

    write(at, "clicks.toml", &FILE.replace("topic = \"pages\"", "topic = \"pages2\""));
    let (status, looked) = reload("/api/streams/reload?dryRun=true").await;
    assert_eq!((status, &looked["progress"]), (200, &json!("compared")), "{looked}");
    assert_eq!(server.sink().await, "pages");
    let (code, out, err) =
        run(at, &["topology", "diff", "--server", &server.0.url, "--token", "t0ken", "clicks.toml"]);
    assert!(code == 0 && out.contains("pages: to.topic: pages -> pages2"), "{out}{err}");
    let (status, applied) = reload("/api/streams/reload").await;
    assert!(status == 200 || status == 202, "{applied}");
    assert_eq!(applied["applications"][0]["changes"][0]["class"], "forward-only", "{applied}");
    server.until("the new plan runs", async || server.sink().await == "pages2").await;

    // By signal.
    write(at, "clicks.toml", FILE);
    let kill = Command::new("kill").args(["-HUP", &server.0.process_id().to_string()]).status().unwrap();
    assert!(kill.success());
    server.until("the old plan runs again", async || server.sink().await == "pages").await;

    write(at, "clicks.toml", &FILE.replace("count(*)", "count(usr)"));
    let (status, broken) = reload("/api/streams/reload").await;
    assert!(status == 422 && broken["detail"].as_str().unwrap().contains("clicks.toml:12:"), "{broken}");
    write(at, "clicks.toml", &FILE.replace("count(*)", "count(user)"));
    let (status, refused) = reload("/api/streams/reload").await;
    assert!(status == 409 && has_class(&refused["changes"], "needs-state-version"), "{refused}");
    assert_eq!(reload("/api/streams/reload?dryrun=1").await.0, 400);
    assert_eq!(server.sink().await, "pages", "what runs goes on");
}

/// Killed somewhere between the signal and the end of a rebuild, again and again, with more clicks each time: the totals are those of the
/// input, and the newest file runs in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_of_a_rebuild_loses_and_repeats_nothing() {
    const ROUNDS: u64 = 8;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let version = |version: u64| {
        let counted = if version.is_multiple_of(2) { "count(user)" } else { "count(*)" };
        let text = FILE.replace("count(*)", counted);
        text.replace("from     = \"clicks\"", &format!("from     = \"clicks\"\nstate_version = {version}"))
    };
    write(at, "clicks.toml", &version(1));
    click(at, 0, 3_000);
    let mut clicked = 3_000;
    let seed: u64 =
        std::env::var("SLUICE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("SLUICE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 1..=ROUNDS {
        let server = Clicks::start(at);
        write(at, "clicks.toml", &version(round + 1));
        let hangup =
            Command::new("kill").args(["-HUP", &server.0.process_id().to_string()]).status().unwrap();
        assert!(hangup.success());
        let life = Duration::from_millis(random.random_range(0..1_500));
        let _ = tokio::time::timeout(life, std::future::pending::<()>()).await;
        drop(server);
        // Input that the next life finds, while it builds anew.
        click(at, clicked, 1_000);
        clicked += 1_000;
    }
    let server = Clicks::start(at);
    let expected: BTreeMap<String, i64> = (0..3)
        .map(|page| (format!("p{page}"), (0..clicked + 3).filter(|n| n % 3 == page).count() as i64))
        .collect();
    server
        .until("the newest file runs", async || {
            let (_, list) = server.call(reqwest::Method::GET, "/api/streams/topologies", "t0ken").await;
            let nodes = list["items"][0]["plan"]["nodes"].as_array().unwrap();
            let pages = nodes.iter().find(|node| node["name"] == "pages").unwrap();
            pages["state"]["stateVersion"] == ROUNDS + 1 && list["items"][0]["state"] == "Running"
        })
        .await;
    drop(server);
    run_to_end(at, &[]);
    // One click more of each page: what the state of now counts, not what was written before.
    click(at, clicked, 3);
    run_to_end(at, &[]);
    assert_eq!(pages(at), expected);
}
