//! Bringing a script to Redis: connections that reconnect by themselves, calls that survive a server which forgot
//! the scripts, and errors sorted by what their receiver does next.
//!
//! Below the Redis gate. What must always hold:
//! * A server that could evict keys is refused at the start: an evicted seat is a seat given twice.
//! * No error text carries the URL: it may hold a password.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{Cmd, ErrorKind, RedisError, Value, cmd};

use super::RedisGateConfig;
use super::reply::text_of;
use crate::coupon::gate::scripts::{self, Script};
use crate::coupon::gate::terms::lease_us;
use crate::coupon::gate::{GateError, Outcome};
use crate::coupon::ids::CouponId;

/// The connections and what is said on them.
pub(super) struct Server {
    connections: Connections,
    digests: Vec<(&'static str, String)>,
    /// How long a seat stays pending.
    pub(super) lease_us: i64,
}

enum Connections {
    /// To one server, used in turn.
    Single { connections: Vec<ConnectionManager>, turn: AtomicUsize },
    /// To every node of a cluster; a campaign's keys share a hash tag, so its calls go to one node.
    Cluster(ClusterConnection),
}

impl Server {
    /// Connects, checks that the server keeps what it is given, and loads the scripts.
    pub(super) async fn connect(config: &RedisGateConfig) -> Result<Self, GateError> {
        let client =
            ::redis::Client::open(config.url.as_str()).map_err(|error| GateError::Misconfigured {
                problem: format!("redis.url is not the URL of a Redis ({})", error.category()),
                remedy:
                    "write redis://host:port or redis://user:password@host:port/database, with TLS rediss://"
                        .into(),
            })?;
        let connections = Connections::open(client, config).await.map_err(|error| connect_error(&error))?;
        let digests =
            scripts::ALL.iter().map(|s| (s.name, ::redis::Script::new(s.source).get_hash().into())).collect();
        let server = Server { connections, digests, lease_us: lease_us(config.pending_lease) };
        server.check_eviction().await?;
        for script in scripts::ALL {
            server
                .send(cmd("SCRIPT").arg("LOAD").arg(script.source))
                .await
                .map_err(|error| gate_error(&error, None))?;
        }
        Ok(server)
    }

    /// A server that evicts keys forgets seats; only `noeviction` refuses instead.
    pub(super) async fn check_eviction(&self) -> Result<(), GateError> {
        // INFO, not CONFIG GET: hosted servers often forbid CONFIG.
        let info = self.send(cmd("INFO").arg("memory")).await.map_err(|error| gate_error(&error, None))?;
        match &info {
            Value::Map(nodes) => nodes.iter().try_for_each(|(_, info)| check_policy(info)),
            info => check_policy(info),
        }
    }

    async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.connections.next().send(command).await
    }

    /// Runs one script. When the connection broke, runs it once more on a new one: every script may be repeated.
    pub(super) async fn run(
        &self,
        script: &Script,
        coupon: CouponId,
        arguments: impl Fn(&mut Cmd) + Send,
    ) -> Result<Value, GateError> {
        let digest =
            &self.digests.iter().find(|(name, _)| *name == script.name).expect("every script is listed").1;
        let call = |verb: &str, text: &str| {
            let mut command = cmd(verb);
            command.arg(text).arg(script.keys.len());
            for key in script.keys {
                command.arg(key.of(coupon));
            }
            arguments(&mut command);
            command
        };
        let by_digest = call("EVALSHA", digest);
        let mut connection = self.connections.next();
        let mut result = connection.send(&by_digest).await;
        if let Err(first) = &result
            && first.is_connection_dropped()
        {
            // The failure started a new connection; after an outage, the second attempt is the first to use it.
            let first_may_have_arrived = !first.is_connection_refusal();
            result = connection.send(&by_digest).await.map_err(|second| match first_may_have_arrived {
                true if second.is_connection_refusal() => {
                    RedisError::from((ErrorKind::Io, "the connection was lost and could not be made again"))
                }
                _ => second,
            });
        }
        if result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            result = connection.send(&call("EVAL", script.source)).await;
        }
        result.map_err(|error| gate_error(&error, Some(coupon)))
    }
}

impl Connections {
    /// Connects to the server, and to its whole cluster when it is part of one.
    async fn open(client: ::redis::Client, config: &RedisGateConfig) -> Result<Self, RedisError> {
        let options = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout))
            // A request during an outage makes one attempt of its own and fails fast; the next makes the next.
            .set_number_of_retries(0);
        let mut first = ConnectionManager::new_with_config(client.clone(), options.clone()).await?;
        let info: String = cmd("INFO").arg("server").query_async(&mut first).await?;
        if info.lines().any(|line| line.trim() == "redis_mode:cluster") {
            let cluster = ClusterClientBuilder::new([client.get_connection_info().clone()])
                .connection_timeout(config.connect_timeout)
                .response_timeout(config.response_timeout)
                // A moved slot is one retry; more would keep the caller waiting in an outage.
                .retries(2)
                .build()?;
            return Ok(Connections::Cluster(cluster.get_async_connection().await?));
        }
        let mut connections = vec![first];
        while connections.len() < config.connections {
            connections.push(ConnectionManager::new_with_config(client.clone(), options.clone()).await?);
        }
        Ok(Connections::Single { connections, turn: AtomicUsize::new(0) })
    }

    /// One to speak on; sending takes `&mut self`, so each call has a clone, and clones share the socket.
    fn next(&self) -> Connection {
        match self {
            Connections::Single { connections, turn } => {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                Connection::Single(connections[turn % connections.len()].clone())
            }
            Connections::Cluster(cluster) => Connection::Cluster(cluster.clone()),
        }
    }
}

enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        let value = match self {
            Connection::Single(connection) => connection.req_packed_command(command).await,
            Connection::Cluster(connection) => connection.req_packed_command(command).await,
        };
        // Errors of the server come as values.
        value.and_then(Value::extract_error)
    }
}

fn check_policy(info: &Value) -> Result<(), GateError> {
    let text = text_of(info).unwrap_or_default();
    match text.lines().find_map(|line| line.trim().strip_prefix("maxmemory_policy:")) {
        Some("noeviction") => Ok(()),
        Some(policy) => Err(GateError::Misconfigured {
            problem: format!(
                "Redis may evict keys (maxmemory-policy {policy}), and with them seats already given"
            ),
            remedy: "run CONFIG SET maxmemory-policy noeviction and put it in redis.conf".into(),
        }),
        None => Err(GateError::Misconfigured {
            problem: "the server at redis.url does not tell its maxmemory-policy".into(),
            remedy: "use Redis 6 or later, and let the user run INFO".into(),
        }),
    }
}

/// Of the first connection: a server that is not trusted is not waited for.
fn connect_error(error: &RedisError) -> GateError {
    // The crate keeps the cause in an `Arc`, and that is what `source` gives.
    let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let io = source.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    // How rustls refuses a certificate, or an answer that is not TLS.
    if io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData) {
        return GateError::Misconfigured {
            problem: format!("no TLS connection can be made to Redis: {error}"),
            remedy: "give the server a certificate for the name in redis.url, and name its authority's file in SSL_CERT_FILE \
                     when the system does not trust it"
                .into(),
        };
    }
    gate_error(error, None)
}

/// Sorts Redis' errors by what the receiver does next.
fn gate_error(error: &RedisError, coupon: Option<CouponId>) -> GateError {
    let misconfigured =
        |problem: String, remedy: &str| GateError::Misconfigured { problem, remedy: remedy.into() };
    let unavailable = |outcome| GateError::Unavailable { outcome, reason: error.to_string() };
    let detail = error.detail().unwrap_or_default();
    if error.code() == Some("WRONGTYPE") || detail.contains("WRONGTYPE") {
        let which = coupon.map_or(String::new(), |coupon| format!(" {coupon}"));
        return misconfigured(
            format!(
                "a Redis key of coupon{which} holds another type of value, so another program writes there"
            ),
            "give sluice a Redis database of its own; delete the coupon:* key of the wrong type and rebuild the campaign",
        );
    }
    match error.code() {
        Some("BADARG") => GateError::Refused(detail.to_string()),
        Some("OOM") => misconfigured(
            "Redis is at its maxmemory and refuses writes".into(),
            "raise maxmemory, or move other data off this server",
        ),
        Some("MISCONF") => misconfigured(
            format!("Redis refuses writes because it cannot save: {detail}"),
            "free its disk, or turn its snapshots off",
        ),
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => misconfigured(
            format!("Redis does not let this user in or run scripts: {detail}"),
            "put the right user and password in redis.url",
        ),
        Some("MOVED" | "ASK" | "CROSSSLOT") => misconfigured(
            "the nodes of the Redis Cluster do not agree where the campaign lives".into(),
            "let its resharding finish, and give sluice the address of a node that every other knows",
        ),
        Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY") => {
            unavailable(Outcome::NotDone)
        }
        _ if matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig) => {
            misconfigured(
                "Redis does not accept the connection's user, password or database".into(),
                "put the right ones in redis.url",
            )
        }
        _ if error.is_connection_refusal() => unavailable(Outcome::NotDone),
        _ => unavailable(Outcome::Unknown),
    }
}
