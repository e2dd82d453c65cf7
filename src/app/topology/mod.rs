//! `sluice topology`: check, test and look at topology files, without a log or a service.

mod compare;
mod lock;

use std::io::IsTerminal;

use super::streams::files;
use crate::{
    cli::{Failure, TopologyCommand, TopologyPlanArgs},
    streams::{
        file::{Processors, schema},
        test_utils::run_test_file,
    },
};

/// Does what is asked for.
pub fn run(command: &TopologyCommand) -> Result<(), Failure> {
    match command {
        TopologyCommand::Check(args) => {
            for file in files::load_named(&args.files)? {
                println!("{}: valid", file.topology.application_id);
            }
            Ok(())
        }
        TopologyCommand::Test(args) => test(&args.files),
        TopologyCommand::Describe(args) => {
            for file in files::load_named(std::slice::from_ref(&args.file))? {
                let text = match (args.dot, args.svg) {
                    (true, _) => file.topology.dot(),
                    (_, true) => file.topology.svg(),
                    _ => file.topology.describe(),
                };
                print!("{text}");
            }
            Ok(())
        }
        TopologyCommand::Plan(args) => plan(args),
        TopologyCommand::Diff(args) => compare::run(args),
        TopologyCommand::Schema => {
            print!("{}", schema());
            Ok(())
        }
    }
}

/// Prints plans, or writes locks.
fn plan(args: &TopologyPlanArgs) -> Result<(), Failure> {
    let names: Vec<String> =
        args.files.iter().filter(|name| !name.ends_with(".test.toml")).cloned().collect();
    for file in files::load_named(&names)? {
        if !args.write {
            print!("{}", lock::text(&file.plan));
            continue;
        }
        let path = lock::path(&file);
        let written = lock::write(&path, &file.plan)?;
        println!("{} {}", path.display(), if written { "written" } else { "is as it was" });
    }
    Ok(())
}

/// Runs the tests beside each file; the verdict is no when any fails.
fn test(names: &[String]) -> Result<(), Failure> {
    let (mut passed, mut failed) = (0, 0);
    for name in names {
        let (topology, tests) = (files::read(name)?, files::read_tests(name)?);
        let outcomes = run_test_file(
            (&topology.name, &topology.text),
            (&tests.name, &tests.text),
            &Processors::default(),
        )
        .map_err(|error| Failure::Usage(error.to_string()))?;
        for outcome in outcomes {
            if outcome.failures.is_empty() {
                passed += 1;
                println!("ok      {}: {}", topology.name, outcome.name);
                continue;
            }
            failed += 1;
            println!("FAILED  {}: {}", topology.name, outcome.name);
            for line in outcome.lines(std::io::stdout().is_terminal()) {
                println!("          {line}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { Ok(()) } else { Err(Failure::Verdict) }
}
