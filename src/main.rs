//! Parses the command line, calls the app, maps errors to exit codes.

use std::process::ExitCode;

use clap::Parser;
use sluice::{
    app,
    cli::{Cli, Failure},
};

fn main() -> ExitCode {
    // clap itself exits with 2 on a mistake, and with 0 for --help and --version.
    match app::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Verdict) {
                eprintln!("sluice: {failure}");
            }
            failure.exit_code()
        }
    }
}
