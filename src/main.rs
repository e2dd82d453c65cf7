//! Parses the command line, calls the app, maps errors to exit codes.

fn main() {}
