//! Topologies exchanged under continuous load on Kafka: no record is lost and none counts twice.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, Process, eventually},
    services::Services,
    topic,
};

const STATISTICS: &str = r#"version = 1
app     = "APP"

[source.issued]
topic  = "APP-issued"
key    = "userId"
bad    = "skip"
fields = { eventId = "text", userId = "int", couponId = "int", maxIssueCount = "int" }

[dedupe.once]
from   = "issued"
by     = "eventId"
within = "24h"

[table.totals]
from     = "once"
group_by = ["couponId"]
select   = { issued = "count(*)" }
to       = { topic = "APP-totals", key = "couponId" }
"#;

/// Distinct users per coupon and hour, of campaigns with more than 100 seats.
const NEWCOMER: &str = r#"
[table.users_hour]
from     = "once"
where    = "maxIssueCount > 100"
group_by = ["couponId"]
window   = { tumbling = "1h", grace = "24h" }
select   = { users = "count(distinct userId)", issued = "count(*)" }
to       = { topic = "APP-users-hour", key = "couponId || '@' || window_start" }
"#;

struct World {
    deployment: Deployment,
    process: Process,
    app: String,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl World {
    fn text(&self, text: &str) -> String {
        text.replace("APP", &self.app)
    }

    /// Puts a text in place and waits until its plan runs. Returns where it began in its inputs.
    async fn reload(&self, text: &str, runs: impl Fn(&Value) -> bool) -> Value {
        std::fs::write(&self.file, self.text(text)).expect("written");
        let answer = self.deployment.admin(&self.process, "/api/streams/reload", &json!({})).await;
        let looked = || async {
            let url = format!("{}/api/streams/topologies", self.process.url);
            let request = self.deployment.http.get(url).bearer_auth(crate::deployment::ADMIN_TOKEN);
            let list: Value = serde_json::from_str(&request.send().await.ok()?.text().await.ok()?).ok()?;
            let first = &list["items"][0];
            (runs(&first["plan"]) && first["state"] == "Running").then(|| first["from"].clone())
        };
        let in_place = eventually(Duration::from_secs(90), looked).await;
        in_place.unwrap_or_else(|| panic!("never in place: {answer}\n{}", self.process.log_tail()))
    }

    fn newest(&self, name: &str) -> BTreeMap<String, Value> {
        let topic = format!("{}-{name}", self.app);
        let records = topic::read_all(&self.deployment.services.kafka, &topic);
        records.into_iter().map(|record| (record.key.clone(), record.json())).collect()
    }

    fn issued(&self) -> i64 {
        self.newest("totals").values().map(|total| total["issued"].as_i64().expect("a count")).sum()
    }

    async fn counted(&self, at_least: i64) {
        let reached = || async { (self.issued() >= at_least).then_some(()) };
        let reached = eventually(Duration::from_secs(90), reached).await;
        assert!(reached.is_some(), "{} of {at_least} counted\n{}", self.issued(), self.process.log_tail());
    }
}

fn event(id: i64) -> (String, Vec<u8>) {
    let (coupon, user) = (id % 5, id * 7 % 300);
    let seats = if coupon < 2 { 50 } else { 500 };
    let event =
        json!({ "eventId": format!("e{id}"), "userId": user, "couponId": coupon, "maxIssueCount": seats });
    (user.to_string(), event.to_string().into_bytes())
}

fn has_node(plan: &Value, name: &str, version: i64) -> bool {
    let nodes = plan["nodes"].as_array().into_iter().flatten();
    nodes
        .into_iter()
        .any(|node| node["name"] == name && node["state"]["stateVersion"].as_i64().unwrap_or(1) == version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_statistic_and_a_new_state_take_over_under_load() {
    let Some(services) = Services::shared() else { return };
    let deployment = Deployment::new(services).await;
    let app = format!("reload-{}", std::process::id());
    let input = format!("{app}-issued");
    topic::create(&deployment.services.kafka, &input, 3).await;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("statistics.toml");
    std::fs::write(&file, STATISTICS.replace("APP", &app)).expect("written");
    let settings = [
        ("SLUICE__STREAMS__TOPOLOGIES", file.to_str().expect("text")),
        ("SLUICE__STREAMS__COMMIT_INTERVAL_MS", "50"),
    ];
    let process = deployment.start("streams", "streams", &settings).await;
    let world = World { deployment, process, app, file, _folder: folder };

    let stop = Arc::new(AtomicBool::new(false));
    let (kafka, topic_name, stopped) = (world.deployment.services.kafka.clone(), input.clone(), stop.clone());
    let load = std::thread::spawn(move || {
        let mut number = 0;
        // Bounded, should nobody stop it.
        while !stopped.load(Ordering::Relaxed) && number < 200_000 {
            // Each hundredth is told again, a thousand events later.
            let ids = (number..number + 100).chain((number >= 1_000).then_some(number - 1_000));
            let events: Vec<(String, Vec<u8>)> = ids.map(event).collect();
            let events: Vec<(&str, &[u8])> =
                events.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
            topic::write(&kafka, &topic_name, &events);
            number += 100;
        }
    });
    world.counted(1_000).await;
    let from = world.reload(&format!("{STATISTICS}{NEWCOMER}"), |plan| has_node(plan, "users_hour", 1)).await;
    let more = world.issued() + 1_000;
    world.counted(more).await;
    let anew = format!("{STATISTICS}{NEWCOMER}")
        .replacen("group_by = [\"couponId\"]\nselect   = { issued = \"count(*)\" }", "group_by = [\"couponId\"]\nstate_version = 2\nselect   = { issued = \"count(*)\", users = \"count(distinct userId)\" }", 1);
    world.reload(&anew, |plan| has_node(plan, "totals", 2)).await;
    let more = world.issued() + 1_000;
    world.counted(more).await;
    stop.store(true, Ordering::Relaxed);
    load.join().expect("the load ran");

    // What a third party reads from the input, each event once.
    let mut seen = HashSet::new();
    let mut totals: BTreeMap<String, (i64, HashSet<i64>)> = BTreeMap::new();
    let mut since: BTreeMap<String, (i64, HashSet<i64>)> = BTreeMap::new();
    for record in topic::read_all(&world.deployment.services.kafka, &input) {
        let event = record.json();
        if !seen.insert(event["eventId"].to_string()) {
            continue;
        }
        let (coupon, user) = (event["couponId"].to_string(), event["userId"].as_i64().expect("an id"));
        let begin = from.get(format!("{input}-{}", record.partition)).and_then(Value::as_i64).unwrap_or(0);
        let newcomer =
            (record.offset >= begin && event["maxIssueCount"].as_i64() > Some(100)).then_some(&mut since);
        for counted in [Some(&mut totals), newcomer].into_iter().flatten() {
            let counted = counted.entry(coupon.clone()).or_default();
            counted.0 += 1;
            counted.1.insert(user);
        }
    }
    let all: i64 = totals.values().map(|(issued, _)| issued).sum();
    world.counted(all).await;
    let found: BTreeMap<String, (i64, i64)> = world
        .newest("totals")
        .into_iter()
        .map(|(coupon, total)| {
            (coupon, (total["issued"].as_i64().expect("a count"), total["users"].as_i64().expect("anew")))
        })
        .collect();
    let expected: BTreeMap<String, (i64, i64)> =
        totals.into_iter().map(|(coupon, (issued, users))| (coupon, (issued, users.len() as i64))).collect();
    assert_eq!(found, expected, "{}", world.process.log_tail());
    let counted = || async {
        let mut found: BTreeMap<String, i64> = BTreeMap::new();
        for (key, value) in world.newest("users-hour") {
            *found.entry(key.split('@').next().expect("a coupon").to_owned()).or_default() +=
                value["issued"].as_i64().expect("a count");
        }
        let expected: BTreeMap<String, i64> =
            since.iter().map(|(coupon, (issued, _))| (coupon.clone(), *issued)).collect();
        (found == expected).then_some(found.len())
    };
    let counted = eventually(Duration::from_secs(60), counted).await;
    assert_eq!(counted, Some(3), "the newcomer's statistic counts from {from}\n{}", world.process.log_tail());
}
