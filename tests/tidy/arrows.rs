//! Who may import whom: http -> coupon -> streams, and inside streams only downwards.
//!
//! The two tables are the rule; a new module needs a line in one of them, which is the moment to think where it stands.

use crate::{
    code::{self, Reference},
    source::{Repository, SourceFile, Violation},
};

/// Top-level module -> what it may import. The edges of the process (app, cli, main) may import everything.
const TOP: &[(&str, &[&str])] = &[
    ("http", &["coupon", "streams"]),
    ("coupon", &["streams"]),
    ("streams", &[]),
    ("config", &["http", "coupon", "streams"]),
    ("telemetry", &["config"]),
    ("app", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
];

/// The floors of the engine; a module imports its own floor's lower ones, the vocabulary also itself.
const FLOORS: &[&[&str]] = &[
    &["record", "serdes", "time", "error", "failpoint", "config", "metrics"],
    &["state"],
    &["processor"],
    &["stores"],
    &["topology"],
    &["client", "kstream"],
    // Files stand on the DSL's operators where both have them.
    &["file"],
    &["runtime"],
    &["test_utils"],
    &["internals"],
];

/// Single names that may be imported against the floors, each with its reason: from, the name below `streams`, why.
const EXTRA: &[(&str, &str, &str)] = &[
    ("config", "client::OffsetReset", "a setting of the port that topologies and configuration pass through"),
    (
        "topology",
        "client::OffsetReset",
        "a setting of the port that topologies and configuration pass through",
    ),
    (
        "kstream",
        "client::OffsetReset",
        "a setting of the port that topologies and configuration pass through",
    ),
    (
        "kstream",
        "client::partition_for_key",
        "where a key lies is part of the contract with every other client",
    ),
];

pub fn check(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("src/", ".rs") {
        let module = module_of(&file.path);
        for reference in code::references(&file.text, &module) {
            violations.extend(check_top(file, &module, &reference));
            violations.extend(check_floor(file, &module, &reference));
        }
        if !TOP.iter().any(|(name, _)| *name == top(&module)) {
            let rule = format!(
                "module '{}' has no line in the arrows of tests/tidy/arrows.rs: add one",
                top(&module)
            );
            violations.push(file.violation(1, rule));
        }
    }
    violations
}

/// `src/streams/client/mod.rs` -> `streams::client`; `src/main.rs` -> `main`.
pub fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| *part != "lib").map(String::from).collect()
}

fn top(module: &[String]) -> &str {
    module.first().map_or("lib", String::as_str)
}

fn check_top(file: &SourceFile, module: &[String], reference: &Reference) -> Option<Violation> {
    let (from, to) = (top(module), reference.path.first()?.as_str());
    let (_, allowed) = TOP.iter().find(|(name, _)| *name == from)?;
    // What is no module of ours (a macro, a name re-exported at the root) has no arrow.
    let known = TOP.iter().any(|(name, _)| *name == to);
    if !known || from == to || allowed.contains(&"*") || allowed.contains(&to) {
        return None;
    }
    let may = if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") };
    Some(file.violation(
        reference.line,
        format!("{from} may not import {to} (it may import {may}): turn the call around"),
    ))
}

fn check_floor(file: &SourceFile, module: &[String], reference: &Reference) -> Option<Violation> {
    // Tests of a lower floor may look at it through a higher one, such as the driver.
    if reference.in_tests || module.iter().any(|part| part.ends_with("tests")) {
        return None;
    }
    let ["streams", from, ..] = &module.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return None;
    };
    let ["streams", to, ..] = &reference.path.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return None;
    };
    let floor = |name: &str| FLOORS.iter().position(|names| names.contains(&name));
    match (floor(from), floor(to)) {
        (None, _) => Some(
            file.violation(1, format!("streams::{from} stands on no floor of tests/tidy/arrows.rs: add it")),
        ),
        (Some(_), None) => Some(file.violation(
            reference.line,
            format!("name the module of '{to}' instead of the engine's root, so that the arrow can be read"),
        )),
        _ if from == to
            || EXTRA.iter().any(|(who, name, _)| who == from && *name == reference.path[1..].join("::")) =>
        {
            None
        }
        (Some(0), Some(0)) => None,
        (Some(high), Some(low)) if low < high => None,
        _ => Some(file.violation(
            reference.line,
            format!(
                "streams::{from} may not import streams::{to}: inside the engine imports go only downwards"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_found;

    #[test]
    fn a_broken_arrow_is_found() {
        let broken = |path: &str, text: &str| {
            assert_found(check, &[(path, text)], &[&format!("{path}:{}", text.lines().count())]);
        };
        let fine = |path: &str, text: &str| assert_found(check, &[(path, text)], &[]);
        fine("src/http/coupons.rs", "use crate::coupon::issue;\nuse crate::streams::runtime::KafkaStreams;");
        broken("src/coupon/issue.rs", "//! x\nuse crate::http::Error;");
        broken("src/coupon/issue.rs", "use std::x;\nfn f() { crate::config::read() }");
        broken(
            "src/streams/record.rs",
            "use crate::{\n    coupon::ids::UserId};".replace("\n    ", "").as_str(),
        );
        fine("src/streams/record.rs", "use super::{error::Result, serdes};");
        fine("src/streams/runtime/task.rs", "use crate::streams::{client::Producer, topology::Topology};");
        broken("src/streams/state/sqlite.rs", "\nuse super::super::topology::Topology;");
        broken("src/streams/client/kafka.rs", "\n\nuse crate::streams::kstream::KStream;");
        broken("src/streams/state/mod.rs", "use super::KafkaStreams;");
        fine(
            "src/streams/file/mod.rs",
            "#[cfg(test)]\nmod tests {\n use crate::streams::test_utils::Driver;\n}",
        );
        broken(
            "src/streams/file/mod.rs",
            "#[cfg(test)]\nmod tests {}\nuse crate::streams::test_utils::Driver;",
        );
        fine("src/app.rs", "use crate::{coupon, http, streams};");
    }

    #[test]
    fn a_module_without_a_place_is_found() {
        assert_found(check, &[("src/utils.rs", "//! x")], &["src/utils.rs:1"]);
        assert_found(
            check,
            &[("src/streams/helpers.rs", "use super::record::X;")],
            &["src/streams/helpers.rs:1"],
        );
    }
}
