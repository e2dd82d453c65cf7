//! `sluice streams reset` on Kafka: refused while a member may live, then everything is counted anew.

use std::collections::BTreeMap;

use crate::{deployment::Deployment, services::Services, topic};

const FILE: &str = r#"version = 1
app = "APP"

[source.clicks]
topic  = "APP-clicks"
bad    = "skip"
fields = { page = "text" }

[table.pages]
from     = "clicks"
group_by = ["page"]
select   = { clicks = "count(*)" }
to       = { topic = "APP-pages", key = "page" }
"#;

const CLICKS: i64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_on_kafka_counts_anew_and_not_on_top() {
    let Some(services) = Services::shared() else { return };
    let deployment = Deployment::new(services).await;
    let app = format!("reset-{}", std::process::id());
    let kafka = deployment.services.kafka.clone();
    topic::create(&kafka, &format!("{app}-clicks"), 3).await;
    let clicks: Vec<(String, String)> =
        (0..CLICKS).map(|n| (n.to_string(), format!(r#"{{"page":"p{}"}}"#, n % 3))).collect();
    let clicks: Vec<(&str, &[u8])> =
        clicks.iter().map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
    topic::write(&kafka, &format!("{app}-clicks"), &clicks);
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("clicks.toml");
    std::fs::write(&file, FILE.replace("APP", &app)).expect("written");
    let file = file.to_str().expect("text");

    let check = |args: &[&str], code: i32, parts: &[&str]| {
        let (found, said) = deployment.run(args);
        assert_eq!(found, Some(code), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    };
    let pages = || -> BTreeMap<String, i64> {
        let records = topic::read_all(&kafka, &format!("{app}-pages"));
        records
            .iter()
            .map(|record| (record.key.clone(), record.json()["clicks"].as_i64().expect("a count")))
            .collect()
    };
    let all = BTreeMap::from(["p0", "p1", "p2"].map(|page| (page.to_owned(), CLICKS / 3)));
    let run = &["streams", "run", "--until-caught-up", file];
    check(run, 0, &[]);
    assert_eq!(pages(), all);

    check(&["streams", "reset", file], 0, &["-> 0 (of", &format!("{app}-pages-changelog"), "--execute"]);
    // The member has stopped, and counts as alive until its session is over.
    check(&["streams", "reset", file, "--execute"], 1, &[]);
    check(run, 0, &[]);
    assert_eq!(pages(), all, "nothing was touched");
    check(&["streams", "reset", file, "--execute", "--force"], 0, &[]);
    check(run, 0, &["\"restored\":0"]);
    assert_eq!(pages(), all, "counted anew, not on top of what was");
}
