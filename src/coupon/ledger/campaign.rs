//! Campaigns in the ledger: created, changed, moved along their states, counted, and read whole for a rebuild of the
//! gate.

use super::{
    Ledger,
    rows::{self, coupon_columns},
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbResult, Param, Row, Tx},
    gate::Member,
    ids::{CouponId, UserId},
    model::{Coupon, CouponStatus, DiscountType},
    service::PatchCoupon,
};

/// A campaign that has been judged and may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of Coupon")]
pub struct NewCoupon {
    pub coupon_name: String,
    pub discount_type: DiscountType,
    pub discount_value: i64,
    pub max_discount_amount: Option<i64>,
    pub min_order_amount: i64,
    pub max_issue_count: i64,
    pub issue_from: Option<UtcMicros>,
    pub issue_until: Option<UtcMicros>,
    pub valid_from: UtcMicros,
    pub valid_to: UtcMicros,
    pub created_by: String,
}

/// What became of a change of a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CampaignChanged {
    /// Done; `was` is the state before.
    Changed {
        /// The campaign now.
        coupon: Box<Coupon>,
        /// Its state before.
        was: CouponStatus,
    },
    /// There is no such campaign.
    NotFound,
    /// It stands where the change is not allowed.
    NotAllowed {
        /// Where.
        status: CouponStatus,
    },
}

impl Ledger {
    /// Writes a draft.
    pub async fn create_coupon(&self, new: &NewCoupon, now: UtcMicros) -> DbResult<Coupon> {
        let mut tx = self.db.begin().await?;
        let rows = tx
            .fetch(
                concat!(
                    "insert into coupons (coupon_name, discount_type, discount_value, max_discount_amount, \
                     min_order_amount, max_issue_count, issue_from, issue_until, valid_from, valid_to, created_by, \
                     created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12) returning ",
                    coupon_columns!()
                ),
                &[
                    Param::Text(&new.coupon_name),
                    Param::Text(new.discount_type.as_str()),
                    Param::Int(new.discount_value),
                    Param::OptInt(new.max_discount_amount),
                    Param::Int(new.min_order_amount),
                    Param::Int(new.max_issue_count),
                    Param::OptInt(new.issue_from.map(UtcMicros::micros)),
                    Param::OptInt(new.issue_until.map(UtcMicros::micros)),
                    Param::Int(new.valid_from.micros()),
                    Param::Int(new.valid_to.micros()),
                    Param::Text(&new.created_by),
                    Param::Int(now.micros()),
                ],
            )
            .await?;
        let row = super::only(&rows)?;
        let coupon = rows::coupon(row, 0, now)?;
        tx.commit().await?;
        Ok(coupon)
    }

    /// A campaign with its count of issued rows.
    pub async fn coupon(&self, id: CouponId, now: UtcMicros) -> DbResult<Option<Coupon>> {
        let rows = self
            .db
            .read(
                concat!(
                    "select ",
                    coupon_columns!(),
                    ", (select count(*) from user_coupons where user_coupons.coupon_id = coupons.coupon_id) as issued \
                     from coupons where coupon_id = $1"
                ),
                &[Param::Int(id.get())],
            )
            .await?;
        rows.first().map(|row| rows::coupon(row, row.int("issued")?, now)).transpose()
    }

    /// A campaign without counting: `issued_count` is 0.
    pub async fn campaign(&self, id: CouponId, now: UtcMicros) -> DbResult<Option<Coupon>> {
        let rows = self.db.read(CAMPAIGN, &[Param::Int(id.get())]).await?;
        rows.first().map(|row| rows::coupon(row, 0, now)).transpose()
    }

    /// Campaigns, newest first, below `before`.
    pub async fn coupons(
        &self,
        status: Option<CouponStatus>,
        before: i64,
        max: usize,
        now: UtcMicros,
    ) -> DbResult<Vec<Coupon>> {
        let rows = self
            .db
            .read(
                concat!(
                    "select ",
                    coupon_columns!(),
                    ", (select count(*) from user_coupons where user_coupons.coupon_id = coupons.coupon_id) as issued \
                     from coupons where coupon_id < $1 and ($2 = '' or coupons.status = $2) \
                     order by coupon_id desc limit $3"
                ),
                &[
                    Param::Int(before),
                    Param::Text(status.map_or("", CouponStatus::as_str)),
                    Param::Int(super::limit(max)),
                ],
            )
            .await?;
        rows.iter().map(|row| rows::coupon(row, row.int("issued")?, now)).collect()
    }

    /// How many rows a campaign has.
    pub async fn issued_count(&self, id: CouponId) -> DbResult<i64> {
        let rows = self
            .db
            .read("select count(*) as issued from user_coupons where coupon_id = $1", &[Param::Int(id.get())])
            .await?;
        super::only(&rows)?.int("issued")
    }

    /// Moves a campaign along one arrow of its state machine and marks the gate as not knowing yet.
    pub async fn move_coupon(
        &self,
        id: CouponId,
        to: CouponStatus,
        now: UtcMicros,
    ) -> DbResult<CampaignChanged> {
        self.change(id, now, |coupon| {
            if !coupon.status.can_become(to) {
                return false;
            }
            coupon.status = to;
            true
        })
        .await
    }

    /// Changes name, limit or windows. The database refuses a limit below a seat that is taken
    /// (`coupons_limit_covers_issued`) and windows that end before they begin.
    pub async fn patch_coupon(
        &self,
        id: CouponId,
        patch: &PatchCoupon,
        now: UtcMicros,
    ) -> DbResult<CampaignChanged> {
        self.change(id, now, |coupon| {
            if let Some(name) = &patch.coupon_name {
                coupon.coupon_name.clone_from(name);
            }
            coupon.max_issue_count = patch.max_issue_count.unwrap_or(coupon.max_issue_count);
            coupon.issue_from = patch.issue_from.unwrap_or(coupon.issue_from);
            coupon.issue_until = patch.issue_until.unwrap_or(coupon.issue_until);
            coupon.valid_from = patch.valid_from.unwrap_or(coupon.valid_from);
            coupon.valid_to = patch.valid_to.unwrap_or(coupon.valid_to);
            true
        })
        .await
    }

    /// Reads, changes and writes one campaign under its lock. `updated_at` strictly rises, so it names a version.
    async fn change(
        &self,
        id: CouponId,
        now: UtcMicros,
        change: impl FnOnce(&mut Coupon) -> bool,
    ) -> DbResult<CampaignChanged> {
        let mut tx = self.db.begin().await?;
        let Some(mut coupon) = self.lock_campaign(&mut tx, id, now).await? else {
            tx.rollback().await;
            return Ok(CampaignChanged::NotFound);
        };
        let was = coupon.status;
        if !change(&mut coupon) {
            tx.rollback().await;
            return Ok(CampaignChanged::NotAllowed { status: was });
        }
        coupon.updated_at = now.max(coupon.updated_at.plus_micros(1));
        // A draft is unknown to the gate, so there is nothing it could have missed.
        coupon.gate_stale = coupon.status != CouponStatus::Draft;
        tx.execute(
            "update coupons set coupon_name = $2, max_issue_count = $3, issue_from = $4, issue_until = $5,
                    valid_from = $6, valid_to = $7, status = $8, updated_at = $9, gate_stale = $10
             where coupon_id = $1",
            &[
                Param::Int(id.get()),
                Param::Text(&coupon.coupon_name),
                Param::Int(coupon.max_issue_count),
                Param::OptInt(coupon.issue_from.map(UtcMicros::micros)),
                Param::OptInt(coupon.issue_until.map(UtcMicros::micros)),
                Param::Int(coupon.valid_from.micros()),
                Param::Int(coupon.valid_to.micros()),
                Param::Text(coupon.status.as_str()),
                Param::Int(coupon.updated_at.micros()),
                Param::Bool(coupon.gate_stale),
            ],
        )
        .await?;
        let counted = tx
            .fetch(
                "select count(*) as issued from user_coupons where coupon_id = $1",
                &[Param::Int(id.get())],
            )
            .await?;
        coupon.issued_count = super::only(&counted)?.int("issued")?;
        coupon.is_available = coupon.available_at(now);
        tx.commit().await?;
        Ok(CampaignChanged::Changed { coupon: Box::new(coupon), was })
    }

    /// Reads a campaign so that nobody changes it, and no issuance of it commits, until the transaction ends.
    async fn lock_campaign(&self, tx: &mut Tx, id: CouponId, now: UtcMicros) -> DbResult<Option<Coupon>> {
        let sql = self.db.pick(
            concat!("select ", coupon_columns!(), " from coupons where coupon_id = $1 for no key update"),
            CAMPAIGN,
        );
        let rows = tx.fetch(sql, &[Param::Int(id.get())]).await?;
        rows.first().map(|row| rows::coupon(row, 0, now)).transpose()
    }

    /// The gate knows this version of the campaign. False when the campaign has moved on: tell the gate again.
    pub async fn mark_gate_current(&self, coupon: &Coupon) -> DbResult<bool> {
        let mut tx = self.db.begin().await?;
        let marked = tx
            .execute(
                "update coupons set gate_stale = false where coupon_id = $1 and updated_at = $2 and epoch = $3",
                &[
                    Param::Int(coupon.coupon_id.get()),
                    Param::Int(coupon.updated_at.micros()),
                    Param::Int(coupon.epoch),
                ],
            )
            .await?;
        tx.commit().await?;
        Ok(marked == 1)
    }

    /// The gate gave a wrong answer in this epoch: whoever repairs next must rebuild it. Nothing when it has been
    /// rebuilt since.
    pub async fn mark_gate_stale(&self, id: CouponId, epoch: i64) -> DbResult<()> {
        let mut tx = self.db.begin().await?;
        tx.execute(
            "update coupons set gate_stale = true where coupon_id = $1 and epoch = $2 and not gate_stale",
            &[Param::Int(id.get()), Param::Int(epoch)],
        )
        .await?;
        tx.commit().await
    }

    /// Campaigns whose gate needs looking after: open, paused, or closed since `closed_since`. `issued_count` is 0.
    pub async fn campaigns_to_sweep(&self, closed_since: UtcMicros, now: UtcMicros) -> DbResult<Vec<Coupon>> {
        let rows = self
            .db
            .read(
                concat!(
                    "select ",
                    coupon_columns!(),
                    " from coupons where status in ('OPEN', 'PAUSED') or (status = 'CLOSED' and updated_at >= $1) \
                     order by coupon_id"
                ),
                &[Param::Int(closed_since.micros())],
            )
            .await?;
        rows.iter().map(|row| rows::coupon(row, 0, now)).collect()
    }

    /// Raises the epoch, to at least `at_least`. Waits for every issuing transaction of the campaign; afterwards no
    /// row admitted under an older epoch can land any more.
    pub async fn raise_epoch(&self, id: CouponId, at_least: i64, now: UtcMicros) -> DbResult<Option<Coupon>> {
        let mut tx = self.db.begin().await?;
        let Some(mut coupon) = self.lock_campaign(&mut tx, id, now).await? else {
            tx.rollback().await;
            return Ok(None);
        };
        coupon.epoch = at_least.max(coupon.epoch + 1);
        coupon.gate_stale = true;
        tx.execute(
            "update coupons set epoch = $2, gate_stale = true where coupon_id = $1",
            &[Param::Int(id.get()), Param::Int(coupon.epoch)],
        )
        .await?;
        tx.commit().await?;
        Ok(Some(coupon))
    }

    /// Every row of a campaign as the gate's members, by slot.
    pub async fn members(&self, id: CouponId) -> DbResult<Vec<Member>> {
        const PAGE: i64 = 10_000;
        let (mut members, mut after) = (Vec::new(), 0);
        loop {
            let rows = self
                .db
                .read(
                    "select user_id, slot_no, admission_token, issued_at from user_coupons
                     where coupon_id = $1 and slot_no > $2 order by slot_no limit $3",
                    &[Param::Int(id.get()), Param::Int(after), Param::Int(PAGE)],
                )
                .await?;
            for row in &rows {
                members.push(member(row)?);
            }
            match members.last() {
                Some(last) if !rows.is_empty() => after = last.slot,
                _ => return Ok(members),
            }
        }
    }
}

const CAMPAIGN: &str = concat!("select ", coupon_columns!(), " from coupons where coupon_id = $1");

fn member(row: &Row) -> DbResult<Member> {
    Ok(Member {
        user: rows::id::<UserId>(row, "user_id")?,
        slot: row.int("slot_no")?,
        token: row.text("admission_token")?.parse().unwrap_or_else(|_| uuid::Uuid::new_v4()),
        admitted_at_us: row.int("issued_at")?,
    })
}
