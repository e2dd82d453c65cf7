//! The shipped topologies: each loads, has tests beside it, and they hold on the driver.

use std::{fs, path::PathBuf};

use sluice::streams::{
    file::{Processors, load},
    test_utils::run_test_file,
};

fn shipped() -> Vec<(PathBuf, String)> {
    let files = files_in("topologies");
    assert!(files.len() >= 2, "the topologies are gone: {files:?}");
    read(files)
}

/// The examples, which are no part of the service.
fn examples() -> Vec<(PathBuf, String)> {
    let files = files_in("topologies/examples");
    assert!(files.len() >= 7, "the examples are gone: {files:?}");
    read(files)
}

fn files_in(folder: &str) -> Vec<PathBuf> {
    let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".toml") && !name.ends_with(".test.toml")
    });
    files.sort();
    files
}

fn read(files: Vec<PathBuf>) -> Vec<(PathBuf, String)> {
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn the_tests_beside_the_topologies_hold() {
    let mut failures = Vec::new();
    for (path, text) in shipped().into_iter().chain(examples()) {
        let tests = path.with_extension("test.toml");
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let test_text = fs::read_to_string(&tests).expect("every shipped topology has tests beside it");
        let outcomes =
            run_test_file((&name(&path), &text), (&name(&tests), &test_text), &Processors::default());
        let outcomes = outcomes.unwrap_or_else(|error| panic!("{error}"));
        assert!(!outcomes.is_empty());
        for outcome in outcomes {
            for failure in outcome.failures {
                failures.push(format!("{}: {}\n  {failure}", name(&tests), outcome.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} failure(s)\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_test_that_should_fail_does() {
    let (path, text) = shipped().pop().unwrap();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let tests = "[[test]]\nname = \"wrong\"\nsend = [ { to = \"issued\", at = \"00:00:05\", value = { eventId = \"e1\", userId = 1, couponId = 7 } } ]\n\
                 expect = [ { topic = \"coupon-totals\", value = { issuedTotal = 2 } } ]\ncounts = { coupon-totals = 3 }\nlate = { coupon_stats_minute = 1 }\n";
    let outcomes = run_test_file((&name, &text), ("wrong.test.toml", tests), &Processors::default()).unwrap();
    let failures = &outcomes[0].failures;
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(
        failures[0].contains("has no record with value {\"issuedTotal\":2}; it has:\n  7 {\"couponId\":7"),
        "{failures:?}"
    );
    assert!(failures[1].contains("got 1 records, not 3"), "{failures:?}");
    assert!(failures[2].contains("dropped 0 records as late, not 1"), "{failures:?}");
}

#[test]
fn only_what_is_read_is_decoded_and_repartitioned() {
    let (_, text) = shipped().into_iter().find(|(path, _)| path.ends_with("coupon-statistics.toml")).unwrap();
    let loaded = load("coupon-statistics.toml", &text, &Processors::default()).unwrap();
    let node = |name: &str| {
        let nodes = loaded.plan["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap().clone()
    };
    assert_eq!(
        node("issued")["columns"],
        serde_json::json!(["eventId text", "couponId int", "issuedAt timestamp"])
    );
    assert_eq!(node("coupon_stats_minute")["operator"]["partial"], true);
    assert_eq!(loaded.group, "coupon-statistics-group");
    assert_eq!(loaded.idle_close_ms, Some(30_000));
    assert_eq!(
        loaded.sink_topics,
        ["coupon-issued-dlq", "coupon-used-dlq", "coupon-stats-minute", "coupon-stats-day", "coupon-totals"]
    );
}
