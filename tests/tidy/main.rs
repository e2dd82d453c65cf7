//! House rules as tests: what a reviewer would otherwise have to remember.
//!
//! Where it stands: `./dev check` and `./dev test` run it; it reads the repository as text and needs no service. Each rule
//! is a function from files to [`Violation`]s and has a table of small samples that break it, so that a rule that
//! went blind would fail too.
//!
//! Always true: a violation names the file, the line, the rule and the way out.

mod arrows;
mod code;
mod doors;
mod examples;
mod promises;
mod source;
mod words;

use source::{Repository, Violation};

/// Fails with every violation at once.
fn hold(violations: Vec<Violation>) {
    assert!(
        violations.is_empty(),
        "{} house rule(s) broken:\n{}",
        violations.len(),
        violations.iter().map(|violation| format!("  {violation}\n")).collect::<String>()
    );
}

#[test]
fn imports_follow_the_arrows() {
    hold(arrows::check(&Repository::read()));
}

#[test]
fn foreign_crates_stay_behind_their_doors() {
    hold(doors::check(&Repository::read()));
}

#[test]
fn below_the_stream_thread_nothing_awaits_or_reads_the_clock() {
    hold(doors::check_synchronous_core(&Repository::read()));
}

#[test]
fn the_engine_knows_no_coupon() {
    hold(words::check_engine_vocabulary(&Repository::read()));
}

#[test]
fn every_rust_file_says_what_it_is() {
    hold(words::check_module_headers(&Repository::read()));
}

#[test]
fn no_left_over_words() {
    hold(words::check_left_overs(&Repository::read()));
}

#[test]
fn tests_poll_instead_of_sleeping() {
    hold(words::check_sleeps(&Repository::read()));
}

#[test]
fn lua_scripts_state_their_guarantee() {
    hold(words::check_lua_headers(&Repository::read()));
}

#[test]
fn every_test_file_is_run() {
    hold(promises::check_test_binaries(&Repository::read()));
}

#[test]
fn every_named_test_and_file_exists() {
    hold(promises::check_documents(&Repository::read()));
}

#[test]
fn every_operator_has_an_example_that_runs() {
    hold(examples::check(&Repository::read()));
}

#[test]
fn every_alert_has_its_metric() {
    hold(promises::check_alerts(&Repository::read()));
}

/// What a sample must give: the rule's violations as `path:line`, in order.
fn assert_found(rule: fn(&Repository) -> Vec<Violation>, files: &[(&str, &str)], expected: &[&str]) {
    let found: Vec<String> = rule(&Repository::of(files))
        .iter()
        .map(|violation| format!("{}:{}", violation.path, violation.line))
        .collect();
    assert_eq!(found, expected, "files: {files:#?}");
}
