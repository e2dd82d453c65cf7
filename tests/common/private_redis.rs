//! A Redis of a test's own, for tests that flush, stop, freeze or misconfigure it.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::service;

/// A running redis-server; killed when dropped. It keeps nothing across a restart.
pub struct PrivateRedis {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    directory: tempfile::TempDir,
    child: Child,
}

impl PrivateRedis {
    /// A fresh server, or `None` where no Redis is given to the tests at all.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// A node that has not joined any cluster yet.
    pub fn start_cluster_node() -> Option<Self> {
        let bus = free_port().to_string();
        Self::start_with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            "2000",
        ])
    }

    /// A server that copies every write of this one, once it has caught up.
    pub fn replica(&self) -> Self {
        let replica = Self::start_with(&["--replicaof", &format!("127.0.0.1 {}", self.port)]);
        replica.expect("a service that was there a moment ago")
    }

    /// A server that also speaks TLS, on the port given beside it, with the certificate and key of these files.
    pub fn start_tls(certificate: &Path, key: &Path) -> Option<(Self, u16)> {
        let port = free_port();
        let [certificate, key] = [certificate, key].map(|file| file.display().to_string());
        let (tls_port, files) = (port.to_string(), ["--tls-cert-file", &certificate, "--tls-key-file", &key]);
        let options = [&["--tls-port", &tls_port, "--tls-auth-clients", "no"], &files[..]].concat();
        Some((Self::start_with(&options)?, port))
    }

    fn start_with(options: &[&str]) -> Option<Self> {
        service("SLUICE_TEST_REDIS")?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The port may be taken between asking and using it: try others.
        for _ in 0..20 {
            let port = free_port();
            let mut child = spawn(port, &directory, options);
            if answers(port, &mut child) {
                return Some(Self { port, directory, child });
            }
        }
        panic!("no redis-server came up in 20 attempts")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.child.kill().expect("redis-server runs");
        self.child.wait().expect("a killed process ends");
    }

    /// Starts it again on its port, empty.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, &self.directory, &[]);
        assert!(answers(self.port, &mut self.child), "redis-server did not come back on port {}", self.port);
    }

    /// Stops it without closing its connections: requests are taken in and not answered.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Ends [`PrivateRedis::freeze`].
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects here; the process is our child and not yet waited for.
        let result = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(result, 0, "signal {signal} to redis-server");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

fn spawn(port: u16, directory: &tempfile::TempDir, options: &[&str]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(directory.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is on the path (Debian: apt-get install redis-server)")
}

fn answers(port: u16, child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
