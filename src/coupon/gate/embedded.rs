//! The in-process gate: the same decisions as the Lua scripts, for one process without Redis.
//!
//! It stands where the Redis adapter does and answers the same contract; a differential test runs both on the same
//! calls. Nothing is kept on disk: after a start every campaign is not ready until it is opened or rebuilt from the
//! ledger, exactly like a flushed Redis.
//!
//! What must always hold: one campaign's decisions are made under its own mutex, so they have one total order; a
//! mutex is never held across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::ready;
use uuid::Uuid;

use super::terms::{PAGE_MAX, lease_us, plan_rebuild};
use super::{
    Admission, Amendment, CampaignChange, CampaignMeta, CampaignState, Confirmation, Gate, GateError,
    GateFuture, GateState, GateStock, Member, Pending, Release, Seat, SeatView,
};
use crate::coupon::ids::{CouponId, UserId};

/// A clock: microseconds since 1970. It may step back; admission times do not.
pub type ClockUs = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Campaigns are spread over this many maps, so that opening one does not stop the admissions of most others.
const SHARDS: usize = 16;

type Shard = RwLock<HashMap<CouponId, Arc<Mutex<Campaign>>>>;

/// The in-process gate.
pub struct EmbeddedGate {
    shards: Arc<[Shard; SHARDS]>,
    clock: ClockUs,
    lease_us: i64,
}

impl EmbeddedGate {
    /// A gate that knows no campaign yet. A seat stays pending for `pending_lease` before a sweeper may ask about it.
    pub fn new(pending_lease: Duration) -> Self {
        Self::with_clock(pending_lease, Arc::new(system_clock_us))
    }

    /// The same with a clock of the caller's.
    pub fn with_clock(pending_lease: Duration, clock: ClockUs) -> Self {
        Self { shards: Default::default(), clock, lease_us: lease_us(pending_lease) }
    }

    /// A second handle on the same campaigns, with another lease.
    pub fn with_lease(&self, pending_lease: Duration) -> Self {
        Self { shards: self.shards.clone(), clock: self.clock.clone(), lease_us: lease_us(pending_lease) }
    }

    /// Forgets every campaign, as a flushed Redis does.
    pub fn forget_all(&self) {
        for shard in self.shards.iter() {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn shard(&self, coupon: CouponId) -> &Shard {
        // A positive number's remainder is in range.
        &self.shards[(coupon.get() % SHARDS as i64) as usize]
    }

    fn campaign(&self, coupon: CouponId) -> Option<Arc<Mutex<Campaign>>> {
        self.shard(coupon).read().unwrap_or_else(PoisonError::into_inner).get(&coupon).cloned()
    }

    /// Runs `decide` on a known campaign, or gives `unknown`.
    fn on<T>(&self, coupon: CouponId, unknown: T, decide: impl FnOnce(&mut Campaign) -> T) -> T {
        match self.campaign(coupon) {
            Some(campaign) => decide(&mut lock(&campaign)),
            None => unknown,
        }
    }

    fn open_campaign(&self, meta: CampaignMeta) -> Result<(), GateError> {
        meta.validate()?;
        let mut shard = self.shard(meta.coupon).write().unwrap_or_else(PoisonError::into_inner);
        let campaign = shard.entry(meta.coupon).or_insert_with(|| Arc::new(Mutex::new(Campaign::new(meta))));
        let mut campaign = lock(campaign);
        if campaign.terms.epoch != meta.epoch {
            return Err(GateError::Stale { coupon: meta.coupon, epoch: campaign.terms.epoch });
        }
        campaign.terms = meta;
        Ok(())
    }

    fn rebuild_campaign(&self, meta: CampaignMeta, members: Vec<Member>) -> Result<(), GateError> {
        meta.validate()?;
        let plan = plan_rebuild(members)?;
        let mut rebuilt = Campaign::new(meta);
        rebuilt.slot_sequence = plan.slot_sequence;
        rebuilt.clock_us = plan.clock_us;
        rebuilt.free = plan.free.into_iter().collect();
        for member in plan.members {
            rebuilt.ordinal += 1;
            let seat = Seat {
                ordinal: rebuilt.ordinal,
                slot: member.slot,
                token: member.token,
                epoch: meta.epoch,
                admitted_at_us: member.admitted_at_us,
            };
            rebuilt.order.insert(seat.admitted_at_us, member.user);
            rebuilt.seats.insert(member.user, Held { seat, deadline_us: None });
        }
        let mut shard = self.shard(meta.coupon).write().unwrap_or_else(PoisonError::into_inner);
        let Some(stored) = shard.get(&meta.coupon) else {
            shard.insert(meta.coupon, Arc::new(Mutex::new(rebuilt)));
            return Ok(());
        };
        let mut stored = lock(stored);
        if stored.terms.epoch >= meta.epoch {
            return Err(GateError::Stale { coupon: meta.coupon, epoch: stored.terms.epoch });
        }
        rebuilt.clock_us = rebuilt.clock_us.max(stored.clock_us);
        // In place, under its own mutex: a caller that already holds the Arc must see the new members.
        *stored = rebuilt;
        Ok(())
    }
}

impl Gate for EmbeddedGate {
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission> {
        // The clock is read under the campaign's mutex: decisions and their times have the same order.
        let admission = self.on(coupon, Admission::NotReady, |campaign| {
            campaign.admit((self.clock)(), self.lease_us, user, token)
        });
        answer(Ok(admission))
    }

    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation> {
        answer(Ok(self.on(coupon, Confirmation::NotMine, |campaign| campaign.confirm(user, token))))
    }

    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release> {
        answer(Ok(self.on(coupon, Release::NotMine, |campaign| campaign.release(user, token))))
    }

    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()> {
        answer(self.open_campaign(campaign))
    }

    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment> {
        answer(change.validate().map(|()| {
            self.on(coupon, Amendment::NotReady, |campaign| {
                campaign.amend(change);
                Amendment::Amended
            })
        }))
    }

    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()> {
        answer(self.rebuild_campaign(campaign, members))
    }

    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>> {
        answer(Ok(self.on(coupon, Vec::new(), |campaign| {
            campaign.claim_pending((self.clock)(), self.lease_us, max.clamp(1, PAGE_MAX))
        })))
    }

    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool> {
        answer(Ok(self.on(coupon, false, |campaign| {
            campaign.extend(user, token, (self.clock)().saturating_add(self.lease_us))
        })))
    }

    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock> {
        answer(Ok(self.on(coupon, GateStock::NOT_READY, |campaign| campaign.stock())))
    }

    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>> {
        answer(Ok(self.on(coupon, Vec::new(), |campaign| {
            let page = campaign.order.range(after_us.saturating_add(1)..).take(max.clamp(1, PAGE_MAX));
            page.filter_map(|(_, user)| campaign.view(*user)).collect()
        })))
    }

    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>> {
        answer(Ok(self.on(coupon, None, |campaign| campaign.view(user))))
    }

    fn health(&self) -> GateFuture<'_, ()> {
        answer(Ok(()))
    }
}

/// One campaign's state.
///
/// Always: `order` has exactly the users of `seats`, by their admission time; `pending` exactly those with a deadline;
/// `free` and the slots held are disjoint and together 1..=`slot_sequence`.
struct Campaign {
    terms: CampaignMeta,
    slot_sequence: i64,
    ordinal: i64,
    /// The last admission time; the next is later even when the clock stepped back.
    clock_us: i64,
    seats: HashMap<UserId, Held, foldhash::fast::RandomState>,
    order: BTreeMap<i64, UserId>,
    free: BTreeSet<i64>,
    pending: BTreeSet<(i64, UserId)>,
}

struct Held {
    seat: Seat,
    /// Some while pending.
    deadline_us: Option<i64>,
}

impl Campaign {
    fn new(terms: CampaignMeta) -> Self {
        Self {
            terms,
            slot_sequence: 0,
            ordinal: 0,
            clock_us: 0,
            seats: HashMap::default(),
            order: BTreeMap::new(),
            free: BTreeSet::new(),
            pending: BTreeSet::new(),
        }
    }

    /// `admit_seat-5.lua`, line by line.
    fn admit(&mut self, now_us: i64, lease_us: i64, user: UserId, token: Uuid) -> Admission {
        if let Some(Held { seat, deadline_us }) = self.seats.get(&user) {
            return match seat.token == token {
                true => Admission::Admitted(*seat),
                false => Admission::Duplicate { seat: *seat, pending: deadline_us.is_some() },
            };
        }
        match self.terms.state {
            CampaignState::Closed => return Admission::Ended,
            CampaignState::Paused => return Admission::Paused,
            CampaignState::Open => {}
        }
        let admitted_at_us = now_us.max(self.clock_us + 1);
        let window = self.terms.window;
        if let Some(issue_from_us) = window.from_us.filter(|from| admitted_at_us < *from) {
            return Admission::NotStarted { issue_from_us };
        }
        if window.until_us.is_some_and(|until| admitted_at_us >= until) {
            return Admission::Ended;
        }
        let Some(slot) = self.take_slot() else { return Admission::SoldOut };
        self.ordinal += 1;
        self.clock_us = admitted_at_us;
        let seat = Seat { ordinal: self.ordinal, slot, token, epoch: self.terms.epoch, admitted_at_us };
        let deadline_us = admitted_at_us.saturating_add(lease_us);
        self.seats.insert(user, Held { seat, deadline_us: Some(deadline_us) });
        self.order.insert(admitted_at_us, user);
        self.pending.insert((deadline_us, user));
        Admission::Admitted(seat)
    }

    /// A never used slot, else the lowest released one, else none. Never used ones go first, so that a released one
    /// rests as long as possible.
    fn take_slot(&mut self) -> Option<i64> {
        if self.slot_sequence < self.terms.limit {
            self.slot_sequence += 1;
            return Some(self.slot_sequence);
        }
        let lowest = *self.free.first()?;
        // After the limit was lowered, members above it count too: the second condition.
        if lowest > self.terms.limit || self.seats.len() as i64 >= self.terms.limit {
            return None;
        }
        self.free.pop_first()
    }

    fn confirm(&mut self, user: UserId, token: Uuid) -> Confirmation {
        match self.seats.get_mut(&user) {
            Some(held) if held.seat.token == token => {
                if let Some(deadline_us) = held.deadline_us.take() {
                    self.pending.remove(&(deadline_us, user));
                }
                Confirmation::Confirmed
            }
            _ => Confirmation::NotMine,
        }
    }

    fn release(&mut self, user: UserId, token: Uuid) -> Release {
        let Some(Held { seat, deadline_us }) = self.seats.get(&user) else { return Release::NotMine };
        if seat.token != token {
            return Release::NotMine;
        }
        let (slot, admitted_at_us, deadline_us) = (seat.slot, seat.admitted_at_us, *deadline_us);
        self.seats.remove(&user);
        self.order.remove(&admitted_at_us);
        if let Some(deadline_us) = deadline_us {
            self.pending.remove(&(deadline_us, user));
        }
        self.free.insert(slot);
        Release::Released { slot }
    }

    fn amend(&mut self, change: CampaignChange) {
        self.terms.state = change.state.unwrap_or(self.terms.state);
        self.terms.limit = change.limit.unwrap_or(self.terms.limit);
        self.terms.window = change.window.unwrap_or(self.terms.window);
    }

    fn claim_pending(&mut self, now_us: i64, lease_us: i64, max: usize) -> Vec<Pending> {
        let due: Vec<_> =
            self.pending.iter().take_while(|(at, _)| *at <= now_us).take(max).copied().collect();
        let mut claimed = Vec::with_capacity(due.len());
        for (deadline_us, user) in due {
            // Each its own deadline, so that the next claim keeps the order.
            let next_us = now_us.saturating_add(lease_us).saturating_add(claimed.len() as i64);
            self.pending.remove(&(deadline_us, user));
            self.pending.insert((next_us, user));
            if let Some(held) = self.seats.get_mut(&user) {
                held.deadline_us = Some(next_us);
                claimed.push(Pending { user, seat: held.seat, deadline_us });
            }
        }
        claimed
    }

    fn extend(&mut self, user: UserId, token: Uuid, deadline_us: i64) -> bool {
        let Some(held) = self.seats.get_mut(&user).filter(|held| held.seat.token == token) else {
            return false;
        };
        let Some(before_us) = held.deadline_us else { return false };
        held.deadline_us = Some(deadline_us);
        self.pending.remove(&(before_us, user));
        self.pending.insert((deadline_us, user))
    }

    fn stock(&self) -> GateStock {
        GateStock {
            state: match self.terms.state {
                CampaignState::Open => GateState::Open,
                CampaignState::Paused => GateState::Paused,
                CampaignState::Closed => GateState::Closed,
            },
            limit: self.terms.limit,
            admitted: self.seats.len() as i64,
            pending: self.pending.len() as i64,
            free: self.free.len() as i64,
            slot_sequence: self.slot_sequence,
            epoch: self.terms.epoch,
        }
    }

    fn view(&self, user: UserId) -> Option<SeatView> {
        let held = self.seats.get(&user)?;
        Some(SeatView { user, seat: held.seat, pending: held.deadline_us.is_some() })
    }
}

/// A poisoned lock is taken anyway: nothing under it panics but an exhausted memory, and refusing every later request
/// of the campaign would be worse than the ledger catching what went wrong.
fn lock(campaign: &Mutex<Campaign>) -> MutexGuard<'_, Campaign> {
    campaign.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer<'a, T: Send + 'a>(answer: Result<T, GateError>) -> GateFuture<'a, T> {
    ready(answer).boxed()
}

fn system_clock_us() -> i64 {
    // Before 1970 there is no time to tell; the floor carries the order.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX)
}
