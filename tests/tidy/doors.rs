//! One door per foreign crate, and a synchronous core: which file may name which crate, and which may touch time.

use crate::{
    code,
    source::{Repository, Violation},
};

/// Crates and the only places that may name them, as starts of paths.
const DOORS: &[(&[&str], &[&str])] = &[
    (&["rdkafka"], &["src/streams/client/kafka"]),
    // The last two are tests: a state file is opened as anybody would, expressions are compared with SQLite itself.
    (
        &["rusqlite"],
        &[
            "src/streams/state/sqlite",
            "src/streams/client/embedded",
            "src/streams/state/tests/",
            "src/streams/file/expression/sqlite_property.rs",
        ],
    ),
    (&["redis"], &["src/coupon/gate/redis"]),
    (&["sqlx"], &["src/coupon/db", "src/coupon/ledger", "src/coupon/outbox", "src/coupon/audit"]),
    (&["axum", "tower_http"], &["src/http/"]),
    (&["sqlparser"], &["src/streams/file/"]),
    (&["toml", "toml_edit"], &["src/streams/file/", "src/config"]),
];

/// Files of the engine that may wait, start threads or read the clock: the edge of the synchronous core.
const EDGE: &[(&str, &str)] = &[
    ("src/streams/client/", "a port waits for its broker"),
    ("src/streams/runtime/", "the stream thread is where time enters"),
    ("src/streams/topology/timestamp_extractor.rs", "one of the extractors is defined as the wall clock"),
];

/// What waits, starts threads or reads the clock.
const EFFECTS: &[&str] =
    &[".await", "async fn", "tokio::", "thread::sleep", "thread::spawn", "Instant::now", "SystemTime::now"];

pub fn check(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("src/", ".rs") {
        let code = code::blank_comments_and_strings(&file.text);
        for (crates, places) in DOORS {
            if places.iter().any(|place| file.path.starts_with(place)) {
                continue;
            }
            for name in *crates {
                // `mod redis;` makes the bare name a module of ours.
                if code.contains(&format!("mod {name};")) {
                    continue;
                }
                for (index, line) in code.lines().enumerate() {
                    if names_crate(line, name) {
                        let rule =
                            format!("{name} is named only in {}: convert at that door", places.join(", "));
                        violations.push(file.violation(index + 1, rule));
                    }
                }
            }
        }
    }
    violations
}

/// `redis::X` and `use redis` name the crate; `gate::redis::X`, `my_redis::X` and a field `redis` do not.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let starts = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let qualified = before.ends_with("::")
            && !before.trim_end_matches("::").ends_with([' ', '(', '<', '&'])
            && before.trim() != "::";
        let imported = before.trim_end().ends_with("use") || before.trim_end().ends_with("use ::");
        starts && !qualified && (after.starts_with("::") || (imported && after.starts_with([';', ' '])))
    })
}

pub fn check_synchronous_core(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("src/streams/", ".rs") {
        if EDGE.iter().any(|(place, _)| file.path.starts_with(place)) {
            continue;
        }
        let code = code::blank_comments_and_strings(&file.text);
        for (index, line) in code.lines().enumerate() {
            for effect in EFFECTS {
                if line.contains(effect) {
                    let rule = format!(
                        "{effect} in the synchronous core: take `now` as an argument, or move it to the edge"
                    );
                    violations.push(file.violation(index + 1, rule));
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_found;

    #[test]
    fn a_crate_outside_its_door_is_found() {
        let broken = |path: &str, text: &str| assert_found(check, &[(path, text)], &[&format!("{path}:1")]);
        let fine = |path: &str, text: &str| assert_found(check, &[(path, text)], &[]);
        broken("src/coupon/relay.rs", "use rdkafka::producer::FutureProducer;");
        fine("src/streams/client/kafka.rs", "use rdkafka::producer::FutureProducer;");
        fine("src/streams/client/kafka/producer.rs", "use rdkafka::producer::FutureProducer;");
        broken("src/coupon/gate/mod.rs", "fn f(c: &redis::Client) {}");
        broken("src/coupon/gate/mod.rs", "use ::redis::Client;");
        broken("src/app.rs", "use redis;");
        fine("src/coupon/gate/mod.rs", "mod redis; pub use redis::RedisGate;");
        fine("src/app.rs", "let gate = coupon::gate::redis::open(config.redis);");
        fine("src/app.rs", "// redis::Client\nlet x = \"redis://localhost\";");
        broken("src/coupon/issue.rs", "use axum::http::StatusCode;");
        broken("src/streams/topology/mod.rs", "let x = toml::from_str(text);");
        fine("src/streams/topology/mod.rs", "let x = my_toml::from_str(text);");
    }

    #[test]
    fn time_in_the_core_is_found() {
        let rule = check_synchronous_core;
        assert_found(
            rule,
            &[("src/streams/topology/node.rs", "let now = Instant::now();")],
            &["src/streams/topology/node.rs:1"],
        );
        assert_found(
            rule,
            &[("src/streams/state/mod.rs", "\nasync fn save() {}")],
            &["src/streams/state/mod.rs:2"],
        );
        assert_found(rule, &[("src/streams/runtime/stream_thread.rs", "let now = Instant::now();")], &[]);
        assert_found(rule, &[("src/coupon/relay.rs", "let now = Instant::now();")], &[]);
    }
}
