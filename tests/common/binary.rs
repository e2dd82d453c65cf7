//! The real binary, without the settings of whoever runs the tests.

use std::process::Command;

/// `sluice` with arguments; no `SLUICE_…` variable of the caller reaches it.
pub fn sluice(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}
