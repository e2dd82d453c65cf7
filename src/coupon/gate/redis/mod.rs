//! The Redis gate: one Lua script per decision, so that any number of API processes share one order of admissions.
//!
//! It stands where the in-process gate does, on one server or a cluster. This file says which script decides what;
//! `server.rs` brings a script to the server and sorts what goes wrong, `reply.rs` reads the answers. Claims and
//! confirmations of one campaign that wait at the same time share a call (`batch.rs`).
//!
//! What must always hold: a call that may have reached the server and has no answer is
//! [`Outcome::Unknown`](super::Outcome::Unknown), never a definite no.

mod reply;
mod server;

use std::sync::Arc;
use std::time::Duration;

use ::redis::Cmd;
use futures::FutureExt;
use uuid::Uuid;
use uuid::fmt::Simple;

use self::reply::{admission, done_or_stale, is_one, list, number, seat, text_of, unexpected, user_id};
use self::server::Server;
use super::batch::{Batcher, Claim};
use super::scripts;
use super::terms::{PAGE_MAX, RebuildPlan, plan_rebuild};
use super::{
    Admission, Amendment, CampaignChange, CampaignMeta, CampaignState, Confirmation, Gate, GateError,
    GateFuture, GateState, GateStock, Member, Pending, Release, SeatView,
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
    /// Least time between two calls that admit, while few wait. Those admitted together share a ledger transaction too.
    pub gather: Duration,
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
            gather: Duration::ZERO,
        }
    }
}

/// The Redis gate.
pub struct RedisGate {
    server: Arc<Server>,
    admissions: Batcher<Admission>,
    confirmations: Batcher<Confirmation>,
}

impl RedisGate {
    /// Connects, checks that the server keeps what it is given, and loads the scripts.
    pub async fn connect(config: RedisGateConfig) -> Result<Self, GateError> {
        let server = Arc::new(Server::connect(&config).await?);
        // Two batches a connection: one is decided while the next travels.
        let in_flight_max = 2 * config.connections.max(1);
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
            admissions: Batcher::new(in_flight_max, config.gather, Arc::new(admit)),
            confirmations: Batcher::new(in_flight_max, Duration::ZERO, Arc::new(confirm)),
        })
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
                Some("broken") => GateState::NotReady,
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

impl Server {
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
