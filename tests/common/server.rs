//! A real `sluice serve` on a port of its own, for tests that speak to it over HTTP.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

/// A server that listens; killed on drop.
pub struct Server {
    child: Child,
    /// Where it listens: `http://127.0.0.1:PORT`.
    pub url: String,
    // Held open: a program whose output nobody takes would fail at its next line.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Runs the command, a `serve`, until it says where it listens.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .env("SLUICE__HTTP__LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listens on ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("text"), 0, "it ended before it listened");
        }
        let url = line.split_once("listens on ").expect("just seen").1.trim().to_owned();
        Self { child, url, _output: output }
    }

    /// Its process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
