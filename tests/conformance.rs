//! The conformance runner: builds each recorded case with the public DSL, feeds it, and compares what Kafka Streams produced with
//! what the engine produces, record for record (tests/conformance/README.md).
//!
//! Cases are read from `tests/conformance`, or from the directory `SLUICE_CONFORMANCE_DIR` names. `SLUICE_CONFORMANCE_FILTER` runs only the
//! cases whose `family/name` contains it. The last line counts: `conformance: N passed, M failed`.
//!
//! A comparison that lets everything pass would look like success: so one case of each family runs a second time with one of its expected
//! values changed, and fails unless that is noticed.

#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/compare.rs"]
mod compare;
#[path = "conformance/functions.rs"]
mod functions;
#[path = "conformance/interpreter.rs"]
mod interpreter;
#[path = "conformance/joins.rs"]
mod joins;
#[path = "conformance/processors.rs"]
mod processors;
#[path = "conformance/rows.rs"]
mod rows;
#[path = "conformance/run.rs"]
mod run;
#[path = "conformance/streams.rs"]
mod streams;
#[path = "conformance/tables.rs"]
mod tables;
#[path = "conformance/windows.rs"]
mod windows;

use std::{fs, panic, path::PathBuf, process::ExitCode};

use serde_json::Value as Json;

fn main() -> ExitCode {
    let directory = std::env::var_os("SLUICE_CONFORMANCE_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance"), PathBuf::from);
    let filter = std::env::var("SLUICE_CONFORMANCE_FILTER").unwrap_or_default();
    // A panic inside a case is reported as that case's failure; the default hook would interleave its own text.
    panic::set_hook(Box::new(|_| {}));
    let mut totals = (0, 0);
    let mut lines = Vec::new();
    for family in families(&directory) {
        let text = match fs::read_to_string(directory.join(format!("{family}.json"))) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("cannot read {family}.json: {error}");
                return ExitCode::FAILURE;
            }
        };
        let cases: Vec<Json> = match serde_json::from_str(&text) {
            Ok(cases) => cases,
            Err(error) => {
                eprintln!("{family}.json is not a list of cases: {error}");
                return ExitCode::FAILURE;
            }
        };
        let (mut passed, mut total) = (0, 0);
        let mut proven = false;
        for case in &cases {
            let name = case["name"].as_str().unwrap_or("(unnamed)");
            if !format!("{family}/{name}").contains(&filter) {
                continue;
            }
            total += 1;
            let outcome = panic::catch_unwind(|| run::run(case)).unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let text = text.unwrap_or_else(|| "(no message)".into());
                Err(compare::Difference::new("the run", "an end", format!("a panic: {text}")))
            });
            match outcome {
                Ok(()) => {
                    passed += 1;
                    if !proven && let Some((place, changed)) = compare::changed(case, lines.len()) {
                        proven = true;
                        if panic::catch_unwind(|| run::run(&changed).is_ok()).unwrap_or(false) {
                            passed -= 1;
                            println!(
                                "FAILED {family}/{name}: nobody noticed another expected value at {place}"
                            );
                        }
                    }
                }
                Err(difference) => println!(
                    "FAILED {family}/{name} at {}\n  expected {}\n  actual   {}",
                    difference.place, difference.expected, difference.actual
                ),
            }
        }
        totals = (totals.0 + passed, totals.1 + total - passed);
        if total > 0 {
            lines.push(format!("{family}: {passed}/{total}"));
        }
    }
    for line in lines {
        println!("{line}");
    }
    println!("conformance: {} passed, {} failed", totals.0, totals.1);
    // A run that found no case proves nothing.
    if totals.1 == 0 && totals.0 > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn families(directory: &PathBuf) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut families: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .collect();
    families.sort();
    families
}
