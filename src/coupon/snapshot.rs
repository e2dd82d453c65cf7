//! The local snapshot of campaigns: which exist, and what does not change an issue's decision (name, discount).
//!
//! First step of an issue. Whether a campaign issues is the gate's to say; the snapshot only keeps requests for
//! unknown ids away from the gate and saves a read per request. What must always hold: an id the ledger does not
//! know is remembered for a moment only and in bounded number, so made-up ids cost neither the gate nor memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    clock::Clock, db::DbError, db::DbResult, ids::CouponId, ledger::Ledger, model::Coupon,
    service::CouponConfig,
};

/// Most ids remembered; beyond it everything is forgotten and read again.
const ENTRIES_MAX: usize = 100_000;
/// Most lookups of unknown ids at once: a flood of made-up ids leaves the ledger to others.
const LOOKUPS_MAX: usize = 2;

pub(super) struct Snapshots {
    entries: RwLock<HashMap<CouponId, Entry>>,
    lookups: Semaphore,
    ttl: Duration,
    unknown_ttl: Duration,
}

struct Entry {
    /// `None`: the ledger did not know it.
    coupon: Option<Arc<Coupon>>,
    read_at: Instant,
    /// One request reads it again while the others go on with what is known.
    refreshing: AtomicBool,
}

impl Snapshots {
    pub(super) fn new(config: &CouponConfig) -> Self {
        Self {
            entries: RwLock::default(),
            lookups: Semaphore::new(LOOKUPS_MAX),
            ttl: config.snapshot_ttl,
            unknown_ttl: config.unknown_ttl,
        }
    }

    /// The campaign as last seen, at most its time to live ago; a ledger that is down leaves it as it was.
    pub(super) async fn get(
        &self,
        ledger: &Ledger,
        clock: &Clock,
        id: CouponId,
    ) -> DbResult<Option<Arc<Coupon>>> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let _place = self.lookups.acquire().await.map_err(|error| DbError::Unavailable(error.to_string()))?;
        // Whoever waited here may find that another has read it meanwhile.
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        match ledger.campaign(id, clock.now()).await {
            Ok(coupon) => {
                let coupon = coupon.map(Arc::new);
                self.put(id, coupon.clone());
                Ok(coupon)
            }
            // A known campaign is served from memory while the ledger is away.
            Err(error) => self.last_seen(id).map(Some).ok_or(error),
        }
    }

    fn known(&self, id: CouponId) -> Option<Option<Arc<Coupon>>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&id)?;
        let ttl = if entry.coupon.is_some() { self.ttl } else { self.unknown_ttl };
        let fresh = entry.read_at.elapsed() < ttl;
        let leave_to_another = || entry.coupon.is_some() && entry.refreshing.swap(true, Ordering::Relaxed);
        (fresh || leave_to_another()).then(|| entry.coupon.clone())
    }

    fn last_seen(&self, id: CouponId) -> Option<Arc<Coupon>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&id)?;
        entry.refreshing.store(false, Ordering::Relaxed);
        entry.coupon.clone()
    }

    /// Remembers what the ledger just said.
    pub(super) fn put(&self, id: CouponId, coupon: Option<Arc<Coupon>>) {
        let entry = Entry { coupon, read_at: Instant::now(), refreshing: AtomicBool::new(false) };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&id) {
            entries.clear();
        }
        entries.insert(id, entry);
    }
}
