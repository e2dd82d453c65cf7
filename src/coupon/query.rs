//! Reads: one campaign, campaigns, stock, one user coupon, a user's coupons.

use super::{
    error::{Dependency, Refusal},
    ids::{CouponId, UserCouponId, UserId},
    model::{
        Coupon, CouponStatus, Cursor, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, Page, Stock, UserCoupon,
        UserCouponStatus,
    },
    service::{CouponService, PageRequest},
};

impl CouponService {
    /// One campaign.
    pub async fn coupon(&self, coupon: CouponId) -> Result<Coupon, Refusal> {
        let found =
            self.timed(Dependency::Ledger, "coupon", self.ledger.coupon(coupon, self.clock.now())).await;
        found.map_err(|error| self.refuse_ledger("coupon", &error))?.ok_or(Refusal::CouponNotFound)
    }

    /// Campaigns, newest first.
    pub async fn coupons(
        &self,
        status: Option<CouponStatus>,
        page: PageRequest,
    ) -> Result<Page<Coupon>, Refusal> {
        let (before, limit) = bounds(page);
        let found = self
            .timed(
                Dependency::Ledger,
                "coupons",
                self.ledger.coupons(status, before, limit + 1, self.clock.now()),
            )
            .await;
        let items = found.map_err(|error| self.refuse_ledger("coupons", &error))?;
        Ok(cut(items, limit, |coupon| coupon.coupon_id.get()))
    }

    /// Seats of a campaign, by the ledger and by the gate. A gate that does not answer is left out.
    pub async fn stock(&self, coupon: CouponId) -> Result<Stock, Refusal> {
        let (found, gate) =
            tokio::join!(self.coupon(coupon), self.timed(Dependency::Gate, "stock", self.gate.stock(coupon)));
        let found = found?;
        let admitted = match gate {
            Ok(stock) => Some(stock.admitted),
            Err(error) => {
                self.gate_failed("stock", &error);
                None
            }
        };
        let taken = found.issued_count.max(admitted.unwrap_or(0));
        Ok(Stock {
            max_issue_count: found.max_issue_count,
            issued: found.issued_count,
            admitted,
            remaining: (found.max_issue_count - taken).max(0),
            as_of: self.clock.now(),
        })
    }

    /// One user coupon.
    pub async fn user_coupon(&self, id: UserCouponId) -> Result<UserCoupon, Refusal> {
        let found = self
            .timed(Dependency::Ledger, "user_coupon", self.ledger.user_coupon(id, self.clock.now()))
            .await;
        let stored = found.map_err(|error| self.refuse_ledger("user_coupon", &error))?;
        stored.map(|stored| stored.shown).ok_or(Refusal::UserCouponNotFound)
    }

    /// A user's coupons, newest first.
    pub async fn user_coupons(
        &self,
        user: UserId,
        status: Option<UserCouponStatus>,
        page: PageRequest,
    ) -> Result<Page<UserCoupon>, Refusal> {
        let (before, limit) = bounds(page);
        let found = self
            .timed(
                Dependency::Ledger,
                "user_coupons",
                self.ledger.user_coupons(user, status, before, limit + 1, self.clock.now()),
            )
            .await;
        let items = found.map_err(|error| self.refuse_ledger("user_coupons", &error))?;
        Ok(cut(items, limit, |coupon| coupon.user_coupon_id.get()))
    }
}

/// The id below which a page begins, and its length.
fn bounds(page: PageRequest) -> (i64, usize) {
    let before = page.cursor.map_or(i64::MAX, |cursor| cursor.0);
    (before, page.limit.unwrap_or(PAGE_LIMIT_DEFAULT).clamp(1, PAGE_LIMIT_MAX))
}

/// One entry more than asked for says that there is another page.
fn cut<T>(mut items: Vec<T>, limit: usize, id: impl Fn(&T) -> i64) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|last| Cursor(id(last)));
    Page { items, next_cursor }
}
