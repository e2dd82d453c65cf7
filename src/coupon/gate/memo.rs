//! A decorator that remembers "sold out" for a moment, so that the crowd after the last seat does not reach the gate.
//!
//! It stands between the API and any gate. After a refusal it learns, in the background, who holds a seat; from then
//! on newcomers are refused here and holders are still asked about below, because a holder who comes again must hear
//! "duplicate" and not "sold out".
//!
//! What must always hold:
//! * A memory is of one campaign and epoch, at most [`MEMORY_MAX`] old, and counts from the gate's answer, not from the
//!   end of the learning.
//! * Whatever may free or add seats through this process (release, open, change, rebuild) drops it; through another
//!   process it is noticed when the memory ends. So a freed seat is offered at most that much later, never lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::FutureExt;
use hashbrown::HashSet;
use uuid::Uuid;

use super::terms::PAGE_MAX;
use super::{
    Admission, Amendment, CampaignChange, CampaignMeta, Confirmation, Gate, GateError, GateFuture, GateState,
    GateStock, Member, Pending, Release, SeatView,
};
use crate::coupon::ids::{CouponId, UserId};

/// The longest a refusal is remembered.
pub const MEMORY_MAX: Duration = Duration::from_secs(1);

/// Campaigns with more holders are not remembered: 16 MB of ids.
const HOLDERS_MAX: usize = 2_000_000;

/// Campaigns not refused for this long give their memory back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A monotonic clock: time since some start.
pub type Elapsed = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A gate that remembers refusals for a moment.
pub struct SoldOutMemo<G> {
    gate: Arc<G>,
    campaigns: RwLock<HashMap<CouponId, Arc<Memory>>>,
    /// How long, at most [`MEMORY_MAX`].
    memory: Duration,
    elapsed: Elapsed,
}

/// What is remembered of one campaign.
#[derive(Default)]
struct Memory {
    /// Raised by whatever may free or add seats; learning that began before does not count.
    generation: AtomicU64,
    /// One learns at a time.
    learning: AtomicBool,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    /// Refuse newcomers until then; zero: nothing is remembered.
    until: Duration,
    /// The epoch whose holders these are.
    epoch: i64,
    /// Everybody who had a seat when last looked. Some may have lost it since; they are asked about below.
    holders: HashSet<UserId>,
    /// Admission time of the last holder read; the next look begins there.
    read_up_to_us: i64,
}

impl<G: Gate + 'static> SoldOutMemo<G> {
    /// Decorates a gate; a refusal is remembered for `memory`, at most [`MEMORY_MAX`].
    pub fn new(gate: G, memory: Duration) -> Self {
        let start = Instant::now();
        Self::with_clock(gate, memory, Arc::new(move || start.elapsed()))
    }

    /// The same with a clock of the caller's.
    pub fn with_clock(gate: G, memory: Duration, elapsed: Elapsed) -> Self {
        let memory = memory.min(MEMORY_MAX);
        Self { gate: Arc::new(gate), campaigns: RwLock::default(), memory, elapsed }
    }

    /// The gate below.
    pub fn inner(&self) -> &G {
        &self.gate
    }

    /// Would a newcomer be refused from memory now?
    pub fn remembers(&self, coupon: CouponId) -> bool {
        self.memory(coupon).is_some_and(|memory| read(&memory.known).until > (self.elapsed)())
    }

    fn memory(&self, coupon: CouponId) -> Option<Arc<Memory>> {
        read(&self.campaigns).get(&coupon).cloned()
    }

    fn refuses(&self, coupon: CouponId, user: UserId) -> bool {
        self.memory(coupon).is_some_and(|memory| {
            let known = read(&memory.known);
            known.until > (self.elapsed)() && !known.holders.contains(&user)
        })
    }

    fn forget(&self, coupon: CouponId) {
        if let Some(memory) = self.memory(coupon) {
            memory.generation.fetch_add(1, Ordering::SeqCst);
            write(&memory.known).until = Duration::ZERO;
        }
    }

    /// After a refusal at `refused_at`: learns who holds a seat, unless somebody is at it.
    fn learn(&self, coupon: CouponId, refused_at: Duration) {
        let memory = {
            let mut campaigns = write(&self.campaigns);
            if !campaigns.contains_key(&coupon) {
                campaigns.retain(|_, memory| read(&memory.known).until + FORGOTTEN_AFTER > refused_at);
            }
            campaigns.entry(coupon).or_default().clone()
        };
        if memory.learning.swap(true, Ordering::SeqCst) {
            return;
        }
        let (gate, memory_time) = (self.gate.clone(), self.memory);
        tokio::spawn(async move {
            // Failing to learn costs speed only; the next refusal tries again.
            let _ = memory.learn(&*gate, coupon, refused_at + memory_time).await;
            memory.learning.store(false, Ordering::SeqCst);
        });
    }
}

impl Memory {
    /// 1 note the generation 2 read the epoch 3 read the holders since the last look 4 remember, if nothing happened.
    async fn learn<G: Gate>(&self, gate: &G, coupon: CouponId, until: Duration) -> Result<(), GateError> {
        let generation = self.generation.load(Ordering::SeqCst);
        let stock = gate.stock(coupon).await?;
        if stock.state != GateState::Open || stock.admitted as usize > HOLDERS_MAX {
            return Ok(());
        }
        let mut after_us = {
            let mut known = write(&self.known);
            if known.epoch != stock.epoch {
                *known = Known { epoch: stock.epoch, ..Known::default() };
            }
            known.read_up_to_us
        };
        loop {
            let page = gate.members(coupon, after_us, PAGE_MAX).await?;
            let mut known = write(&self.known);
            if let Some(last) = page.last() {
                after_us = last.seat.admitted_at_us;
                known.read_up_to_us = after_us;
                known.holders.extend(page.iter().map(|member| member.user));
            }
            let of_this_epoch = page.iter().all(|member| member.seat.epoch == stock.epoch);
            if page.len() == PAGE_MAX && of_this_epoch {
                continue;
            }
            if of_this_epoch {
                self.remember(&mut known, generation, until);
            }
            return Ok(());
        }
    }

    /// Under the lock that [`SoldOutMemo::forget`] takes after raising the generation: whichever comes second wins.
    fn remember(&self, known: &mut Known, generation: u64, until: Duration) {
        if self.generation.load(Ordering::SeqCst) == generation {
            known.until = until;
        }
    }
}

impl<G: Gate + 'static> Gate for SoldOutMemo<G> {
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission> {
        if self.refuses(coupon, user) {
            return futures::future::ready(Ok(Admission::SoldOut)).boxed();
        }
        async move {
            let asked_at = (self.elapsed)();
            let admission = self.gate.admit(coupon, user, token).await?;
            if admission == Admission::SoldOut {
                self.learn(coupon, asked_at);
            }
            Ok(admission)
        }
        .boxed()
    }

    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation> {
        self.gate.confirm(coupon, user, token)
    }

    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release> {
        async move {
            let released = self.gate.release(coupon, user, token).await;
            self.forget(coupon);
            released
        }
        .boxed()
    }

    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()> {
        async move {
            let opened = self.gate.open(campaign).await;
            self.forget(campaign.coupon);
            opened
        }
        .boxed()
    }

    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment> {
        async move {
            let amended = self.gate.amend(coupon, change).await;
            self.forget(coupon);
            amended
        }
        .boxed()
    }

    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()> {
        async move {
            let rebuilt = self.gate.rebuild(campaign, members).await;
            self.forget(campaign.coupon);
            rebuilt
        }
        .boxed()
    }

    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>> {
        self.gate.pending_expired(coupon, max)
    }

    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool> {
        self.gate.extend(coupon, user, token)
    }

    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock> {
        self.gate.stock(coupon)
    }

    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>> {
        self.gate.members(coupon, after_us, max)
    }

    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>> {
        self.gate.seat(coupon, user)
    }

    fn health(&self) -> GateFuture<'_, ()> {
        self.gate.health()
    }
}

/// A poisoned memory is as good as any: it ends by itself.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::coupon::gate::embedded::EmbeddedGate;
    use crate::coupon::gate::{CampaignState, IssueWindow, Seat};

    struct Setting {
        memo: SoldOutMemo<EmbeddedGate>,
        now_ms: Arc<AtomicU64>,
    }

    fn coupon() -> CouponId {
        CouponId::new(42).unwrap()
    }

    fn user(id: i64) -> UserId {
        UserId::new(id).unwrap()
    }

    fn meta(limit: i64, epoch: i64) -> CampaignMeta {
        let window = IssueWindow::default();
        CampaignMeta { coupon: coupon(), state: CampaignState::Open, limit, window, epoch }
    }

    impl Setting {
        /// A campaign of two seats, held by users 1 and 2, and sold out in memory.
        async fn sold_out() -> (Self, [Seat; 2]) {
            let now_ms = Arc::new(AtomicU64::new(5_000));
            let clock = now_ms.clone();
            let elapsed: Elapsed = Arc::new(move || Duration::from_millis(clock.load(Ordering::SeqCst)));
            let memo =
                SoldOutMemo::with_clock(EmbeddedGate::new(Duration::from_secs(60)), MEMORY_MAX, elapsed);
            let setting = Self { memo, now_ms };
            setting.memo.open(meta(2, 1)).await.unwrap();
            let seats = [setting.seat(1).await, setting.seat(2).await];
            setting.learn_from_a_refusal().await;
            (setting, seats)
        }

        async fn admit(&self, id: i64) -> Admission {
            self.memo.admit(coupon(), user(id), Uuid::new_v4()).await.unwrap()
        }

        async fn seat(&self, id: i64) -> Seat {
            match self.admit(id).await {
                Admission::Admitted(seat) => seat,
                other => panic!("user {id}: {other:?}"),
            }
        }

        async fn learn_from_a_refusal(&self) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !self.memo.remembers(coupon()) {
                assert_eq!(self.admit(900).await, Admission::SoldOut);
                assert!(Instant::now() < deadline, "nothing was learnt");
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn newcomers_are_refused_from_memory_for_a_second_and_not_longer() {
        let (setting, _) = Setting::sold_out().await;
        // Another process adds a seat: this one does not hear of it.
        setting.memo.inner().set_limit(coupon(), 3).await.unwrap();
        setting.now_ms.fetch_add(999, Ordering::SeqCst);
        assert_eq!(setting.admit(3).await, Admission::SoldOut);
        setting.now_ms.fetch_add(1, Ordering::SeqCst);
        assert_eq!(setting.seat(3).await.slot, 3);
    }

    #[tokio::test]
    async fn holders_hear_that_they_hold_a_seat() {
        let (setting, [seat, _]) = Setting::sold_out().await;
        assert!(setting.memo.remembers(coupon()));
        assert_eq!(setting.admit(1).await, Admission::Duplicate { seat, pending: true });
        let again = setting.memo.admit(coupon(), user(1), seat.token).await.unwrap();
        assert_eq!(again, Admission::Admitted(seat));
    }

    #[tokio::test]
    async fn a_release_a_new_limit_and_a_rebuild_are_heard_at_once() {
        let (setting, [seat, _]) = Setting::sold_out().await;
        setting.memo.release(coupon(), user(1), seat.token).await.unwrap();
        assert_eq!(setting.seat(3).await.slot, 1);

        setting.learn_from_a_refusal().await;
        assert!(
            matches!(setting.admit(3).await, Admission::Duplicate { .. }),
            "later looks add later holders"
        );
        setting.memo.set_limit(coupon(), 3).await.unwrap();
        assert_eq!(setting.seat(4).await.slot, 3);

        setting.learn_from_a_refusal().await;
        setting.memo.rebuild(meta(1, 2), Vec::new()).await.unwrap();
        assert_eq!(setting.seat(5).await.epoch, 2);
        setting.learn_from_a_refusal().await;
        assert_eq!(setting.admit(1).await, Admission::SoldOut, "holders of the epoch before are forgotten");
        assert!(matches!(setting.admit(5).await, Admission::Duplicate { .. }));
    }

    #[tokio::test]
    async fn what_was_learnt_before_a_release_does_not_count() {
        let (setting, [seat, _]) = Setting::sold_out().await;
        let memory = setting.memo.memory(coupon()).unwrap();
        let before = memory.generation.load(Ordering::SeqCst);
        setting.memo.release(coupon(), user(1), seat.token).await.unwrap();
        memory.remember(&mut write(&memory.known), before, Duration::from_secs(100));
        assert!(!setting.memo.remembers(coupon()));
        assert_eq!(setting.seat(3).await.slot, 1);
    }
}
