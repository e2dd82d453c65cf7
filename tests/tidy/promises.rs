//! What documents and manifests promise exists: named tests, linked files, test binaries.
//!
//! A table that says which test holds an invariant is worth something only while that test is there.

use std::collections::BTreeSet;

use crate::{
    code,
    source::{Repository, SourceFile, Violation},
};

/// The documents a reader starts from.
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/api.md", "docs/operations.md"];

/// In a document `path/to/file.rs::name` in backticks names a test, and a relative link names a file.
pub fn check_documents(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in DOCUMENTS.iter().filter_map(|path| repository.file(path)) {
        for (number, line) in file.lines() {
            for (path, test) in named_tests(line) {
                let holds = repository.file(path).is_some_and(|file| tests_of(file).contains(test));
                if !holds {
                    violations.push(file.violation(number, format!("there is no test `{test}` in {path}")));
                }
            }
            for target in relative_links(line) {
                let target = &from_root(&file.path, target);
                let folder = format!("{}/", target.trim_end_matches('/'));
                let exists =
                    repository.all().any(|file| file.path == *target || file.path.starts_with(&folder));
                let bare = ["LICENSE-MIT", "LICENSE-APACHE"].contains(&target.as_str());
                if !exists && !bare {
                    violations.push(file.violation(number, format!("the link to {target} leads nowhere")));
                }
            }
        }
    }
    violations
}

/// A link as it stands in a document, from the root of the repository: documents lie there or one folder below.
fn from_root(document: &str, target: &str) -> String {
    match (document.rsplit_once('/'), target.strip_prefix("../")) {
        (Some(_), Some(target)) => target.to_owned(),
        (Some((folder, _)), None) => format!("{folder}/{target}"),
        (None, _) => target.to_owned(),
    }
}

fn named_tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split('`').skip(1).step_by(2).filter_map(|code| {
        let (path, test) = code.split_once(".rs::")?;
        Some((&code[..path.len() + 3], test))
    })
}

fn relative_links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#']).next()?;
        (!target.is_empty() && !target.contains("://")).then_some(target)
    })
}

/// Names of the functions under a `#[test]` or `#[tokio::test]` (or in a `proptest!` block).
fn tests_of(file: &SourceFile) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in file.text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or(line.strip_prefix("fn ")) {
            if marked {
                found.extend(rest.split(['(', '<']).next());
            }
            marked = false;
        }
    }
    found
}

/// An alert on a metric that nobody counts is silent for ever: each name in an expression stands in the code.
pub fn check_alerts(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("config/prometheus/", ".yml") {
        for (number, line) in file.lines() {
            let Some((_, expression)) = line.split_once("expr: ") else { continue };
            let words = expression.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            // A metric's name has its part's in front; labels and functions of Prometheus are of one or two words.
            for metric in words.filter(|word| word.matches('_').count() >= 2) {
                // A histogram is registered under one name and scraped under three.
                let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
                let quoted = format!("\"{}\"", name.unwrap_or(metric));
                if !repository.like("src/", ".rs").any(|source| source.text.contains(&quoted)) {
                    violations
                        .push(file.violation(number, format!("no part of the program counts {metric}")));
                }
            }
        }
    }
    violations
}

/// Test binaries are declared by hand (`autotests = false`): one that is not, or a file without its `mod`, never runs.
pub fn check_test_binaries(repository: &Repository) -> Vec<Violation> {
    let Some(manifest) = repository.file("Cargo.toml") else { return Vec::new() };
    let mut violations = Vec::new();
    // `#[path = "../common/contract.rs"]` takes a file from beside the binary's own, `#[path = "conformance/case.rs"]` one from
    // the directory of a binary whose root is beside it.
    let included = |path: &str| {
        let inner = path.trim_start_matches("tests/");
        let paths = [format!("\"../{inner}\""), format!("#[path = \"{inner}\"]")];
        repository.like("tests/", ".rs").any(|file| paths.iter().any(|path| file.text.contains(path)))
    };
    for file in repository.like("tests/", ".rs").filter(|file| !included(&file.path)) {
        let parts: Vec<&str> = file.path.split('/').collect();
        match parts[..] {
            [_, _] | [_, _, "main.rs"] if !manifest.text.contains(&format!("\"{}\"", file.path)) => {
                violations
                    .push(file.violation(1, "no [[test]] in Cargo.toml names this file: it never runs"));
            }
            [_, binary, name] if name != "main.rs" => {
                let module = name.trim_end_matches(".rs");
                let roots =
                    ["main.rs", "mod.rs"].map(|root| repository.file(&format!("tests/{binary}/{root}")));
                let declared = roots.iter().flatten().any(|root| {
                    code::blank_comments_and_strings(&root.text).contains(&format!("mod {module};"))
                });
                if !declared {
                    violations.push(file.violation(
                        1,
                        format!("tests/{binary}/main.rs has no `mod {module};`: it never runs"),
                    ));
                }
            }
            _ => {}
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_found;

    const TESTED: (&str, &str) =
        ("src/a.rs", "#[cfg(test)]\nmod tests {\n    #[test]\n    fn holds() {}\n    fn helper() {}\n}");

    #[test]
    fn a_promised_test_that_is_not_there_is_found() {
        let document = |text| [TESTED, ("ARCHITECTURE.md", text)];
        assert_found(check_documents, &document("| 1 | `src/a.rs::holds` |"), &[]);
        assert_found(check_documents, &document("| 1 | `src/a.rs::gone` |"), &["ARCHITECTURE.md:1"]);
        assert_found(check_documents, &document("| 1 | `src/a.rs::helper` |"), &["ARCHITECTURE.md:1"]);
        assert_found(check_documents, &document("\n`src/b.rs::holds`"), &["ARCHITECTURE.md:2"]);
    }

    #[test]
    fn an_alert_on_nothing_is_found() {
        let alert = ("config/prometheus/a.yml", "a:\n  expr: rate(relay_rows_sent_total[5m]) > 0");
        assert_found(check_alerts, &[alert, ("src/m.rs", "\"relay_rows_sent_total\"")], &[]);
        let histogram = ("config/prometheus/b.yml", "  expr: rate(relay_step_seconds_bucket[5m]) > 0");
        assert_found(check_alerts, &[histogram, ("src/m.rs", "\"relay_step_seconds\"")], &[]);
        assert_found(
            check_alerts,
            &[alert, ("src/m.rs", "\"relay_rows_total\"")],
            &["config/prometheus/a.yml:2"],
        );
    }

    #[test]
    fn a_link_to_nowhere_is_found() {
        let document = |text| [TESTED, ("README.md", text)];
        assert_found(
            check_documents,
            &document("[a](src/a.rs), [b](src), [c](https://x.y/z), [d](#part)"),
            &[],
        );
        assert_found(check_documents, &document("[a](src/gone.rs#l1)"), &["README.md:1"]);
        let below = |text| [TESTED, ("docs/api.md", text)];
        assert_found(check_documents, &below("[a](../src/a.rs), [b](api.md)"), &[]);
        assert_found(check_documents, &below("[a](src/a.rs)"), &["docs/api.md:1"]);
    }

    #[test]
    fn a_test_file_that_never_runs_is_found() {
        let manifest = ("Cargo.toml", "path = \"tests/fast/main.rs\"");
        let main = ("tests/fast/main.rs", "mod a;");
        assert_found(check_test_binaries, &[manifest, main, ("tests/fast/a.rs", "")], &[]);
        assert_found(check_test_binaries, &[manifest, main, ("tests/fast/b.rs", "")], &["tests/fast/b.rs:1"]);
        let shared = ("tests/common/c.rs", "");
        let user = ("tests/fast/a.rs", "#[path = \"../common/c.rs\"]\nmod c;");
        assert_found(check_test_binaries, &[manifest, main, user, shared], &[]);
        assert_found(check_test_binaries, &[manifest, main, shared], &["tests/common/c.rs:1"]);
        assert_found(check_test_binaries, &[manifest, ("tests/slow/main.rs", "")], &["tests/slow/main.rs:1"]);
        assert_found(check_test_binaries, &[manifest, ("tests/slow.rs", "")], &["tests/slow.rs:1"]);
    }
}
