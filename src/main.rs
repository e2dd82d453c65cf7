//! Parses the command line, calls the app, maps errors to exit codes.

use std::process::ExitCode;

use clap::Parser;
use sluice::{
    app,
    cli::{Cli, Failure},
};

/// Streams allocate per record and free on other threads, where glibc's allocator is slow and fragments. C code keeps its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
