//! The Redis gate: one Lua script per decision, so that any number of API processes share one order of admissions.
//!
//! It stands where the in-process gate does. Calls are pipelined on a few multiplexed connections that reconnect by
//! themselves; claims and confirmations of one campaign that wait at the same time share a call (`batch.rs`). A
//! script goes by its digest and, when the server does not know it, once by its text.
//!
//! What must always hold:
//! * A call that may have reached the server and has no answer is [`Outcome::Unknown`], never a definite no.
//! * A server that could evict keys is refused at the start: an evicted seat is a seat given twice.
//! * No error text carries the URL: it may hold a password.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Cmd, ErrorKind, RedisError, Value, cmd};
use futures::FutureExt;
use uuid::Uuid;
use uuid::fmt::Simple;

use super::batch::{Batcher, Claim};
use super::scripts::{self, Script};
use super::terms::{PAGE_MAX, RebuildPlan, lease_us, plan_rebuild};
use super::{
    Admission, Amendment, CampaignChange, CampaignMeta, CampaignState, Confirmation, Gate, GateError,
    GateFuture, GateState, GateStock, Member, Outcome, Pending, Release, Seat, SeatView,
};
use crate::coupon::ids::{CouponId, UserId};

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisGateConfig {
    /// `redis://[user:password@]host:port[/database]`.
    pub url: String,
    /// Multiplexed connections; two keep one script's reply from waiting behind another's request.
    pub connections: usize,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take before its outcome counts as unknown.
    pub response_timeout: Duration,
    /// How long a seat stays pending before a sweeper may ask about it.
    pub pending_lease: Duration,
}

impl RedisGateConfig {
    /// The defaults for an address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections: 2,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            pending_lease: Duration::from_secs(10),
        }
    }
}

/// The Redis gate.
pub struct RedisGate {
    server: Arc<Server>,
    admissions: Batcher<Admission>,
    confirmations: Batcher<Confirmation>,
}

/// The connections and what is said on them.
struct Server {
    connections: Vec<ConnectionManager>,
    /// Round robin over the connections.
    turn: AtomicUsize,
    digests: Vec<(&'static str, String)>,
    lease_us: i64,
}

impl RedisGate {
    /// Connects, checks that the server keeps what it is given, and loads the scripts.
    pub async fn connect(config: RedisGateConfig) -> Result<Self, GateError> {
        let client =
            ::redis::Client::open(config.url.as_str()).map_err(|error| GateError::Misconfigured {
                problem: format!("redis.url is not the URL of a Redis ({})", error.category()),
                remedy: "write redis://host:port or redis://user:password@host:port/database".into(),
            })?;
        let options = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout))
            // A request during an outage makes one attempt of its own and fails fast; the next makes the next.
            .set_number_of_retries(0);
        let mut connections = Vec::with_capacity(config.connections.max(1));
        for _ in 0..config.connections.max(1) {
            let connected = ConnectionManager::new_with_config(client.clone(), options.clone()).await;
            connections.push(connected.map_err(|error| gate_error(&error, None))?);
        }
        let digests =
            scripts::ALL.iter().map(|s| (s.name, ::redis::Script::new(s.source).get_hash().into())).collect();
        let lease_us = lease_us(config.pending_lease);
        let server = Arc::new(Server { connections, turn: AtomicUsize::new(0), digests, lease_us });
        server.check_eviction().await?;
        for script in scripts::ALL {
            server
                .send(cmd("SCRIPT").arg("LOAD").arg(script.source))
                .await
                .map_err(|error| gate_error(&error, None))?;
        }
        // Two batches a connection: one is decided while the next travels.
        let in_flight_max = 2 * server.connections.len();
        let (admitting, confirming) = (server.clone(), server.clone());
        let admit = move |coupon, claims| {
            let server = admitting.clone();
            async move { server.admit(coupon, claims).await }.boxed()
        };
        let confirm = move |coupon, claims| {
            let server = confirming.clone();
            async move { server.confirm(coupon, claims).await }.boxed()
        };
        Ok(Self {
            server,
            admissions: Batcher::start(in_flight_max, Arc::new(admit)),
            confirmations: Batcher::start(in_flight_max, Arc::new(confirm)),
        })
    }
}

impl Server {
    /// A server that evicts keys forgets seats; only `noeviction` refuses instead.
    async fn check_eviction(&self) -> Result<(), GateError> {
        // INFO, not CONFIG GET: hosted servers often forbid CONFIG.
        let info = self.send(cmd("INFO").arg("memory")).await.map_err(|error| gate_error(&error, None))?;
        let text = text_of(&info).unwrap_or_default();
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

    async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.send_on(turn, command).await
    }

    async fn send_on(&self, turn: usize, command: &Cmd) -> Result<Value, RedisError> {
        // A clone shares the connection; sending takes `&mut self` only for the sake of other connection kinds.
        let mut connection = self.connections[turn % self.connections.len()].clone();
        // Errors of the server come as values.
        connection.send_packed_command(command).await.and_then(Value::extract_error)
    }

    /// Runs one script. When the connection broke, runs it once more on a new one: every script may be repeated.
    async fn run(
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
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut result = self.send_on(turn, &by_digest).await;
        if let Err(first) = &result
            && first.is_connection_dropped()
        {
            // The failure started a new connection; after an outage, the second attempt is the first to use it.
            let first_may_have_arrived = !first.is_connection_refusal();
            result = self.send_on(turn, &by_digest).await.map_err(|second| match first_may_have_arrived {
                true if second.is_connection_refusal() => {
                    RedisError::from((ErrorKind::Io, "the connection was lost and could not be made again"))
                }
                _ => second,
            });
        }
        if result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            result = self.send_on(turn, &call("EVAL", script.source)).await;
        }
        result.map_err(|error| gate_error(&error, Some(coupon)))
    }

    async fn admit(&self, coupon: CouponId, claims: Vec<Claim>) -> Result<Vec<Admission>, GateError> {
        let reply = self
            .run(&scripts::ADMIT_SEAT, coupon, |command| {
                command.arg(self.lease_us);
                write_claims(command, &claims);
            })
            .await?;
        list(&reply)?.iter().map(admission).collect()
    }

    async fn confirm(&self, coupon: CouponId, claims: Vec<Claim>) -> Result<Vec<Confirmation>, GateError> {
        let reply =
            self.run(&scripts::CONFIRM_SEAT, coupon, |command| write_claims(command, &claims)).await?;
        let confirmed = list(&reply)?
            .iter()
            .map(|value| Ok(if is_one(value)? { Confirmation::Confirmed } else { Confirmation::NotMine }));
        confirmed.collect()
    }

    /// 1 begin, which stops admissions under the new epoch; 2 load portions; 3 finish.
    async fn rebuild_campaign(&self, meta: CampaignMeta, members: Vec<Member>) -> Result<(), GateError> {
        /// Rows or slots per call: a few milliseconds each, so that other campaigns' calls are not held up.
        const PORTION: usize = 1000;
        meta.validate()?;
        let RebuildPlan { members, slot_sequence, free, clock_us } = plan_rebuild(members)?;
        let begun = self
            .run(&scripts::BEGIN_REBUILD, meta.coupon, |command| {
                write_terms(command, &meta);
                command.arg(slot_sequence).arg(members.len()).arg(clock_us);
            })
            .await?;
        done_or_stale(&begun, meta.coupon)?;

        let taken_over = || GateError::Stale { coupon: meta.coupon, epoch: meta.epoch };
        for (portion, rows) in members.chunks(PORTION).enumerate() {
            let loaded = self
                .run(&scripts::LOAD_MEMBERS, meta.coupon, |command| {
                    command.arg(meta.epoch).arg(rows.len());
                    for (i, row) in rows.iter().enumerate() {
                        let ordinal = portion * PORTION + i + 1;
                        let held = format!("{}:{ordinal}:{}:{}", row.slot, meta.epoch, row.token.simple());
                        command.arg(row.user.get()).arg(row.admitted_at_us).arg(held);
                    }
                })
                .await?;
            is_one(&loaded)?.then_some(()).ok_or_else(taken_over)?;
        }
        for slots in free.chunks(PORTION) {
            let loaded = self
                .run(&scripts::LOAD_MEMBERS, meta.coupon, |command| {
                    command.arg(meta.epoch).arg(0).arg(slots);
                })
                .await?;
            is_one(&loaded)?.then_some(()).ok_or_else(taken_over)?;
        }
        let finished = self
            .run(&scripts::FINISH_REBUILD, meta.coupon, |command| {
                command.arg(meta.epoch);
            })
            .await?;
        is_one(&finished)?.then_some(()).ok_or_else(taken_over)
    }
}

impl Gate for RedisGate {
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission> {
        self.admissions.decide(coupon, (user, token)).boxed()
    }

    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation> {
        self.confirmations.decide(coupon, (user, token)).boxed()
    }

    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release> {
        async move {
            let reply = self
                .server
                .run(&scripts::RELEASE_SEAT, coupon, |command| {
                    command.arg(user.get()).arg(token.simple().to_string());
                })
                .await?;
            match number(&reply)? {
                0 => Ok(Release::NotMine),
                slot => Ok(Release::Released { slot }),
            }
        }
        .boxed()
    }

    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()> {
        async move {
            campaign.validate()?;
            let reply = self
                .server
                .run(&scripts::OPEN_CAMPAIGN, campaign.coupon, |command| write_terms(command, &campaign))
                .await?;
            done_or_stale(&reply, campaign.coupon)
        }
        .boxed()
    }

    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment> {
        async move {
            change.validate()?;
            let reply = self
                .server
                .run(&scripts::AMEND_CAMPAIGN, coupon, |command| {
                    command.arg(change.state.map_or("", state_word));
                    command.arg(change.limit.map_or(String::new(), |limit| limit.to_string()));
                    for end in [change.window.map(|w| w.from_us), change.window.map(|w| w.until_us)] {
                        command.arg(end.map_or(String::new(), |end| end.unwrap_or(0).to_string()));
                    }
                })
                .await?;
            Ok(if is_one(&reply)? { Amendment::Amended } else { Amendment::NotReady })
        }
        .boxed()
    }

    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()> {
        self.server.rebuild_campaign(campaign, members).boxed()
    }

    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>> {
        async move {
            let reply = self
                .server
                .run(&scripts::CLAIM_PENDING, coupon, |command| {
                    command.arg(self.server.lease_us).arg(max.clamp(1, PAGE_MAX));
                })
                .await?;
            let claimed = list(&reply)?.iter().map(|item| match list(item)? {
                [user, held, at, deadline] => Ok(Pending {
                    user: user_id(user)?,
                    seat: seat(held, at)?,
                    deadline_us: number(deadline)?,
                }),
                _ => Err(unexpected("user, held, time, deadline", item)),
            });
            claimed.collect()
        }
        .boxed()
    }

    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool> {
        async move {
            let reply = self
                .server
                .run(&scripts::EXTEND_PENDING, coupon, |command| {
                    command.arg(user.get()).arg(token.simple().to_string()).arg(self.server.lease_us);
                })
                .await?;
            is_one(&reply)
        }
        .boxed()
    }

    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock> {
        async move {
            let reply = self.server.run(&scripts::READ_STOCK, coupon, |_| {}).await?;
            let [state, numbers @ ..] = list(&reply)? else { return Ok(GateStock::NOT_READY) };
            let state = match text_of(state) {
                Some("open") => GateState::Open,
                Some("paused") => GateState::Paused,
                Some("closed") => GateState::Closed,
                Some("rebuilding") => GateState::Rebuilding,
                _ => return Err(unexpected("a state", state)),
            };
            let [limit, epoch, slot_sequence, admitted, pending, free] = numbers else {
                return Err(unexpected("seven values", &reply));
            };
            Ok(GateStock {
                state,
                limit: number(limit)?,
                admitted: number(admitted)?,
                pending: number(pending)?,
                free: number(free)?,
                slot_sequence: number(slot_sequence)?,
                epoch: number(epoch)?,
            })
        }
        .boxed()
    }

    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>> {
        async move {
            let reply = self
                .server
                .run(&scripts::READ_MEMBERS, coupon, |command| {
                    command.arg(after_us.max(0)).arg(max.clamp(1, PAGE_MAX));
                })
                .await?;
            let members = list(&reply)?.iter().map(|item| match list(item)? {
                [user, held, at, pending] => {
                    Ok(SeatView { user: user_id(user)?, seat: seat(held, at)?, pending: is_one(pending)? })
                }
                _ => Err(unexpected("user, held, time, pending", item)),
            });
            members.collect()
        }
        .boxed()
    }

    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>> {
        async move {
            let reply = self
                .server
                .run(&scripts::READ_SEAT, coupon, |command| {
                    command.arg(user.get());
                })
                .await?;
            match list(&reply)? {
                [] => Ok(None),
                [held, at, pending] => {
                    Ok(Some(SeatView { user, seat: seat(held, at)?, pending: is_one(pending)? }))
                }
                _ => Err(unexpected("held, time, pending", &reply)),
            }
        }
        .boxed()
    }

    fn health(&self) -> GateFuture<'_, ()> {
        self.server.check_eviction().boxed()
    }
}

fn write_claims(command: &mut Cmd, claims: &[Claim]) {
    let mut token_text = [0; Simple::LENGTH];
    for (user, token) in claims {
        command.arg(user.get()).arg(&*token.simple().encode_lower(&mut token_text));
    }
}

fn write_terms(command: &mut Cmd, meta: &CampaignMeta) {
    command.arg(state_word(meta.state)).arg(meta.limit);
    command.arg(meta.window.from_us.unwrap_or(0)).arg(meta.window.until_us.unwrap_or(0)).arg(meta.epoch);
}

fn state_word(state: CampaignState) -> &'static str {
    match state {
        CampaignState::Open => "open",
        CampaignState::Paused => "paused",
        CampaignState::Closed => "closed",
    }
}

/// One claim's answer of `admit_seat`.
fn admission(answer: &Value) -> Result<Admission, GateError> {
    let values = list(answer)?;
    let [code, rest @ ..] = values else { return Err(unexpected("a code", answer)) };
    match (number(code)?, rest) {
        (0, []) => Ok(Admission::SoldOut),
        (-1, [held, at, pending]) => {
            Ok(Admission::Duplicate { seat: seat(held, at)?, pending: is_one(pending)? })
        }
        (-2, [from]) => Ok(Admission::NotStarted { issue_from_us: number(from)? }),
        (-3, []) => Ok(Admission::Ended),
        (-4, []) => Ok(Admission::Paused),
        (-5, []) => Ok(Admission::NotReady),
        (1.., [held, at]) => Ok(Admission::Admitted(seat(held, at)?)),
        _ => Err(unexpected("an admission", answer)),
    }
}

/// `slot:ordinal:epoch:token` and the admission time.
fn seat(held: &Value, at: &Value) -> Result<Seat, GateError> {
    let parse = |text: &str| -> Option<Seat> {
        let mut parts = text.splitn(4, ':');
        Some(Seat {
            slot: parts.next()?.parse().ok()?,
            ordinal: parts.next()?.parse().ok()?,
            epoch: parts.next()?.parse().ok()?,
            token: Uuid::try_parse(parts.next()?).ok()?,
            admitted_at_us: number(at).ok()?,
        })
    };
    text_of(held).and_then(parse).ok_or_else(|| unexpected("slot:ordinal:epoch:token and a time", held))
}

fn user_id(value: &Value) -> Result<UserId, GateError> {
    UserId::new(number(value)?).ok_or_else(|| unexpected("a user id", value))
}

fn done_or_stale(reply: &Value, coupon: CouponId) -> Result<(), GateError> {
    match list(reply)? {
        [Value::Int(1)] => Ok(()),
        [Value::Int(0), epoch] => Err(GateError::Stale { coupon, epoch: number(epoch)? }),
        _ => Err(unexpected("{1} or {0, epoch}", reply)),
    }
}

fn is_one(value: &Value) -> Result<bool, GateError> {
    match value {
        Value::Int(1) => Ok(true),
        Value::Int(0) => Ok(false),
        _ => Err(unexpected("1 or 0", value)),
    }
}

fn number(value: &Value) -> Result<i64, GateError> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => text_of(value)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unexpected("a whole number", value)),
    }
}

fn list(value: &Value) -> Result<&[Value], GateError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected("an array", value)),
    }
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// The script ran and said something else: whatever it did is done.
fn unexpected(expected: &str, value: &Value) -> GateError {
    GateError::Unavailable {
        outcome: Outcome::Unknown,
        reason: format!(
            "Redis answered {value:?} where {expected} was expected; do other programs write its keys?"
        ),
    }
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
            "redis.url is one node of a Redis Cluster, and the campaign lives on another".into(),
            "use a proxy in front of the cluster, or a Redis that is not clustered",
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
