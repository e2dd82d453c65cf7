//! Limits of the HTTP server: every queue and every wait has a bound.

use std::{net::SocketAddr, time::Duration};

/// Limits of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Most requests worked on at once; one more is told to come back.
    pub max_in_flight: usize,
    /// Most open connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Time for the head of a request, and idle time of a connection.
    pub header_timeout: Duration,
    /// Time for the body of a request.
    pub body_timeout: Duration,
    /// Time from head to answer.
    pub request_timeout: Duration,
    /// Largest body.
    pub body_bytes_max: usize,
    /// Time for admitted requests to finish at shutdown.
    pub shutdown_grace: Duration,
}
