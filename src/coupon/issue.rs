//! Issuing a coupon: the only file with the order of an issue in it.
//!
//! Called by the API, calls the gate, then the ledger. What must always hold: a seat is released only when the
//! ledger's "no" is definite; an unknown outcome is answered as unknown and left to the sweeper; whoever is told yes
//! has a committed row. Once admitted, an issue runs to its end even when the client goes away.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use uuid::Uuid;

use super::{
    clock::UtcMicros,
    correlation,
    db::DbError,
    error::{Dependency, Outcome, Refusal},
    event::{CouponIssued, Event, SCHEMA_VERSION, new_event_id},
    failpoint,
    gate::{Admission, GateError, Seat},
    ids::{CouponId, UserId},
    ledger::{Issuance, KeyedResponse, Recorded},
    model::{Coupon, CouponStatus, UserCoupon, UserCouponStatus},
    rebuild::{Because, Told},
    service::{CouponService, RequestContext},
};

/// Longest that a request waits for a rebuild of the gate before it answers 503.
const REBUILD_WAIT: Duration = Duration::from_secs(1);
/// First and longest pause between two looks at somebody else's unfinished issue.
const DUPLICATE_POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

impl CouponService {
    /// Issues one of the campaign's coupons to the user. `Replayed` when the idempotency key is the first call's.
    pub async fn issue(
        &self,
        coupon: CouponId,
        user: UserId,
        context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        let (service, context) = (self.clone(), context.clone());
        // A client that hangs up must not leave a seat taken and no row written.
        let id = context.request_id.as_str().into();
        let issue = async move { service.issue_in_order(coupon, user, &context).await };
        let issue = correlation::within(id, issue);
        let outcome = ToTheEnd(Some(Box::pin(issue))).await;
        self.decided("issue", outcome)
    }

    /// The order of an issue.
    ///
    /// 1. Is the campaign known? The local snapshot answers; made-up ids never reach the gate.
    /// 2. Admit: the gate gives a seat, or says why not.
    /// 3. Record: user coupon, history and outbox row, in a ledger transaction shared with whoever else waits.
    /// 4. Commit, which fences by epoch and by token.
    /// 5. Confirm the seat, lazily.
    /// 6. Answer.
    ///
    /// A second round is made once when the first found the gate behind the ledger (and had it rebuilt) or its
    /// admission fenced.
    async fn issue_in_order(
        &self,
        coupon_id: CouponId,
        user: UserId,
        context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        let fingerprint = format!("issue:{coupon_id}:{user}");
        // 1
        let coupon = match self.snapshots.get(&self.ledger, &self.clock, coupon_id).await {
            Ok(Some(coupon)) => coupon,
            Ok(None) => return Outcome::Refused(Refusal::CouponNotFound),
            Err(error) => return Outcome::Refused(self.refuse_ledger("campaign", &error)),
        };
        if context.idempotency_key.is_some()
            && let Some(answer) = Box::pin(self.replay("issue", &fingerprint, context)).await
        {
            return answer;
        }
        let mut fallback = Refusal::SeatReleased { dependency: Dependency::Gate };
        for _round in 0..2 {
            // 2
            let token = Uuid::new_v4();
            let seat = match self.admit(&coupon, user, token, &fingerprint, context).await {
                Admitted::Seat(seat) => seat,
                Admitted::Answer(answer) => return answer,
            };
            failpoint::hit("after_gate");
            // 3, 4
            let issuing = Issuing { coupon: &coupon, user, seat, fingerprint: &fingerprint, context };
            match self.record(issuing).await {
                // 5, 6
                Written::Row(row) => {
                    self.confirmer.confirm(coupon_id, user, seat.token);
                    return Outcome::Done(row);
                }
                Written::Answer(answer) => return answer,
                Written::Again(refusal) => fallback = refusal,
            }
        }
        Outcome::Refused(fallback)
    }

    /// Step 2: a seat, or the answer. Waits for an earlier issue to the same user that is not finished.
    async fn admit(
        &self,
        coupon: &Coupon,
        user: UserId,
        token: Uuid,
        fingerprint: &str,
        context: &RequestContext,
    ) -> Admitted {
        let id = coupon.coupon_id;
        let deadline = tokio::time::Instant::now() + self.config.duplicate_wait;
        let mut pause = DUPLICATE_POLL.0;
        let mut rebuilt = false;
        loop {
            let admission = match self.ask_gate(id, user, token).await {
                Ok(admission) => admission,
                Err(refusal) => return Admitted::refused(refusal),
            };
            let (pending, epoch) = match admission {
                Admission::Admitted(seat) => return Admitted::Seat(seat),
                Admission::SoldOut => return Admitted::refused(Refusal::SoldOut),
                Admission::Paused => return Admitted::refused(Refusal::Paused),
                Admission::Ended => return Admitted::refused(issuing_ended()),
                Admission::NotStarted { issue_from_us } => {
                    let open_at = Some(UtcMicros::clamped(issue_from_us));
                    return Admitted::refused(Refusal::NotOpenYet { open_at, now: self.clock.now() });
                }
                // Boxed, as every path that is seldom taken: each issue carries the size of the largest.
                Admission::NotReady => match Box::pin(self.gate_not_ready(id, rebuilt)).await {
                    Some(refusal) => return Admitted::refused(refusal),
                    None => {
                        rebuilt = true;
                        continue;
                    }
                },
                Admission::Duplicate { pending, seat } => (pending, seat.epoch),
            };
            // The ledger is read after the gate: a confirmed seat has a row by now.
            let Ok(held) = self.holders.look(id, user).await else {
                return Admitted::refused(Refusal::Overloaded { retry_after_s: 1 });
            };
            match held {
                Ok(Some(stored)) => {
                    let first_call = Box::pin(self.replay("issue", fingerprint, context)).await;
                    let existing = Box::new(stored.shown);
                    return Admitted::Answer(
                        first_call.unwrap_or(Outcome::Refused(Refusal::AlreadyIssued { existing })),
                    );
                }
                Ok(None) if !pending => {
                    tracing::warn!(
                        coupon = id.get(),
                        user = user.get(),
                        request_id = %correlation::current(),
                        "the gate confirmed a seat without a row"
                    );
                    self.gate_is_behind(id, epoch).await;
                    return Admitted::refused(Refusal::SeatReleased { dependency: Dependency::Gate });
                }
                Ok(None) => {}
                Err(error) => {
                    // Nothing was done here, but the user's earlier issue may have come to a row: not "the seat is free".
                    self.refuse_ledger("holders", &error);
                    return Admitted::refused(Refusal::OutcomeUnknown { dependency: Dependency::Ledger });
                }
            }
            if tokio::time::Instant::now() >= deadline {
                return Admitted::refused(Refusal::OutcomeUnknown { dependency: Dependency::Ledger });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(DUPLICATE_POLL.1);
        }
    }

    /// One decision of the gate; a lost answer is asked for once more with the same token.
    async fn ask_gate(&self, coupon: CouponId, user: UserId, token: Uuid) -> Result<Admission, Refusal> {
        let ask = || self.timed(Dependency::Gate, "admit", self.gate.admit(coupon, user, token));
        let mut answer = ask().await;
        if answer.as_ref().is_err_and(GateError::outcome_unknown) {
            answer = ask().await;
        }
        answer.map_err(|error| {
            self.gate_failed("admit", &error);
            if error.outcome_unknown() {
                // The ledger was never asked, so a seat that was taken may be given back; without an answer to this
                // either, the sweeper does it.
                let gate = Arc::clone(&self.gate);
                tokio::spawn(async move { gate.release(coupon, user, token).await.map(drop) });
                Refusal::OutcomeUnknown { dependency: Dependency::Gate }
            } else {
                Refusal::SeatReleased { dependency: Dependency::Gate }
            }
        })
    }

    /// The gate does not know the campaign: the ledger says whether it should. `None`: it was rebuilt, ask again.
    async fn gate_not_ready(&self, id: CouponId, rebuilt_already: bool) -> Option<Refusal> {
        let coupon = match self.ledger.campaign(id, self.clock.now()).await {
            Ok(Some(coupon)) => coupon,
            Ok(None) => return Some(Refusal::CouponNotFound),
            Err(error) => return Some(self.refuse_ledger("campaign", &error)),
        };
        match coupon.status {
            CouponStatus::Draft => {
                return Some(Refusal::NotOpenYet { open_at: coupon.issue_from, now: self.clock.now() });
            }
            CouponStatus::Closed => return Some(issuing_ended()),
            CouponStatus::Open | CouponStatus::Paused => {}
        }
        let unavailable = Refusal::SeatReleased { dependency: Dependency::Gate };
        if rebuilt_already {
            return Some(unavailable);
        }
        let service = self.clone();
        // A task of its own: a large campaign is rebuilt to the end even when this request has stopped waiting.
        let rebuild = tokio::spawn(async move { service.rebuild_gate(id, Because::Unknown).await });
        match tokio::time::timeout(REBUILD_WAIT, rebuild).await {
            Ok(Ok(Ok(Told::Current))) => None,
            Ok(Ok(Err(error))) => Some(self.refuse_ledger("rebuild", &error)),
            Ok(Ok(Ok(Told::Stale)) | Err(_)) | Err(_) => Some(unavailable),
        }
    }

    /// Steps 3 and 4: the row, or what became of it.
    async fn record(&self, issuing: Issuing<'_>) -> Written {
        let Issuing { coupon, user, seat, .. } = issuing;
        let id = coupon.coupon_id;
        let (issuance, row) = match self.issuance(&issuing).await {
            Ok(made) => made,
            Err(error) => {
                self.release(id, user, seat.token).await;
                return Written::refused(self.refuse_ledger("user_coupon_id", &error));
            }
        };
        let Ok(recorded) = self.issuances.record(issuance).await else {
            self.release(id, user, seat.token).await;
            return Written::refused(Refusal::Overloaded { retry_after_s: 1 });
        };
        let recorded = match recorded {
            Ok(recorded) => recorded,
            Err(error) if error.is_unknown() => {
                return Box::pin(self.find_out(id, user, seat, &error)).await;
            }
            Err(error) => {
                self.release(id, user, seat.token).await;
                return Written::refused(self.refuse_ledger("issue", &error));
            }
        };
        match recorded {
            Recorded::Inserted => Written::Row(row),
            other => Box::pin(self.not_recorded(issuing, other)).await,
        }
    }

    /// Why there is no row, and what follows from it.
    async fn not_recorded(&self, issuing: Issuing<'_>, recorded: Recorded) -> Written {
        let Issuing { coupon, user, seat, .. } = issuing;
        let id = coupon.coupon_id;
        match recorded {
            Recorded::Inserted => unreachable!("the caller has answered it"),
            Recorded::AlreadyIssued(stored) => {
                // The user owns a row that the gate did not know of: the gate is right about the user now, but not
                // about the seat.
                self.confirmer.confirm(id, user, seat.token);
                if stored.shown.slot_no != seat.slot {
                    self.gate_is_behind(id, seat.epoch).await;
                }
                let first_call = self.replay("issue", issuing.fingerprint, issuing.context).await;
                let existing = Box::new(stored.shown);
                Written::Answer(first_call.unwrap_or(Outcome::Refused(Refusal::AlreadyIssued { existing })))
            }
            Recorded::SlotTaken => {
                if !self.gate_is_behind(id, seat.epoch).await {
                    self.release(id, user, seat.token).await;
                }
                Written::Again(Refusal::SeatReleased { dependency: Dependency::Gate })
            }
            Recorded::EpochOver | Recorded::Fenced => {
                self.release(id, user, seat.token).await;
                Written::Again(Refusal::SeatReleased { dependency: Dependency::Gate })
            }
            Recorded::AboveLimit => {
                self.release(id, user, seat.token).await;
                Written::refused(Refusal::SoldOut)
            }
            Recorded::NoSuchCoupon => {
                self.release(id, user, seat.token).await;
                Written::refused(Refusal::CouponNotFound)
            }
            Recorded::KeyTaken => {
                self.release(id, user, seat.token).await;
                let taken = self.replay("issue", issuing.fingerprint, issuing.context).await;
                Written::Answer(taken.unwrap_or(Outcome::Refused(Refusal::IdempotencyKeyReused)))
            }
        }
    }

    /// The row to write and the user coupon to answer with.
    async fn issuance(&self, issuing: &Issuing<'_>) -> Result<(Issuance, UserCoupon), DbError> {
        let Issuing { coupon, user, seat, fingerprint, context } = *issuing;
        // The gate's time: it orders admissions, also after a rebuild from these rows.
        let issued_at = UtcMicros::clamped(seat.admitted_at_us);
        let user_coupon_id = self.ledger.next_user_coupon_id().await?;
        let row = UserCoupon {
            user_coupon_id,
            user_id: user,
            coupon_id: coupon.coupon_id,
            coupon_name: coupon.coupon_name.clone(),
            discount_type: coupon.discount_type,
            discount_value: coupon.discount_value,
            min_order_amount: coupon.min_order_amount,
            status: UserCouponStatus::Active,
            slot_no: seat.slot,
            issued_at,
            valid_from: coupon.valid_from,
            valid_to: coupon.valid_to,
            order_id: None,
            used_at: None,
            discount_amount: None,
        };
        let event = CouponIssued {
            event_id: new_event_id(issued_at),
            user_coupon_id,
            user_id: user,
            coupon_id: coupon.coupon_id,
            coupon_name: coupon.coupon_name.clone(),
            issued_at,
            slot_no: seat.slot,
            request_id: context.request_id.clone(),
            schema_version: SCHEMA_VERSION,
            max_issue_count: Some(coupon.max_issue_count),
        };
        let idempotency = context.idempotency_key.as_ref().map(|key| KeyedResponse {
            key: key.as_str().into(),
            fingerprint: fingerprint.into(),
            response: serde_json::to_string(&row).expect("a user coupon has only texts and numbers"),
        });
        let issuance = Issuance {
            user_coupon_id,
            coupon_id: coupon.coupon_id,
            user_id: user,
            slot_no: seat.slot,
            epoch: seat.epoch,
            token: seat.token,
            issued_at,
            request_id: context.request_id.clone(),
            event: event.to_outbox(&self.config.event_source),
            idempotency,
        };
        Ok((issuance, row))
    }

    /// The ledger did not say whether it committed. A row with this admission's token is a yes; *no row is not a
    /// no*, the transaction may still be on its way, so nothing is released.
    async fn find_out(&self, id: CouponId, user: UserId, seat: Seat, error: &DbError) -> Written {
        let unknown = self.refuse_ledger("issue", error);
        match self.ledger.user_coupon_of(id, user, self.clock.now()).await {
            Ok(Some(stored)) if stored.admission_token == seat.token.to_string() => {
                Written::Row(stored.shown)
            }
            _ => Written::refused(unknown),
        }
    }

    /// Gives a seat back after a definite no. A gate that cannot be told leaves it to the sweeper.
    async fn release(&self, coupon: CouponId, user: UserId, token: Uuid) {
        let released = self.timed(Dependency::Gate, "release", self.gate.release(coupon, user, token)).await;
        if let Err(error) = released {
            self.gate_failed("release", &error);
        }
    }

    /// The gate gave what the ledger has given already: has it rebuilt. True when it is.
    async fn gate_is_behind(&self, id: CouponId, epoch: i64) -> bool {
        if let Err(error) = self.ledger.mark_gate_stale(id, epoch).await {
            self.refuse_ledger("mark_gate_stale", &error);
            return false;
        }
        let service = self.clone();
        let rebuild =
            tokio::spawn(async move { service.rebuild_gate(id, Because::Collision { epoch }).await });
        matches!(tokio::time::timeout(REBUILD_WAIT, rebuild).await, Ok(Ok(Ok(Told::Current))))
    }
}

/// Runs a future where it is awaited, and, when whoever awaits it goes away, to its end in a task of its own. As a
/// spawned task it would cost every request two more hops between threads.
struct ToTheEnd<F>(Option<Pin<Box<F>>>)
where
    F: Future<Output: Send> + Send + 'static;

impl<F: Future<Output: Send> + Send + 'static> Future for ToTheEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let running = self.0.as_mut().expect("a future is not polled after it was ready");
        let result = running.as_mut().poll(context);
        if result.is_ready() {
            self.0 = None;
        }
        result
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToTheEnd<F> {
    fn drop(&mut self) {
        // What panicked cannot go on; without a runtime nothing can.
        if let Some(running) = self.0.take()
            && !std::thread::panicking()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(running);
        }
    }
}

/// What step 2 came to.
enum Admitted {
    Seat(Seat),
    Answer(Outcome<UserCoupon>),
}

impl Admitted {
    fn refused(refusal: Refusal) -> Self {
        Admitted::Answer(Outcome::Refused(refusal))
    }
}

/// An issue between admission and row.
#[derive(Clone, Copy)]
struct Issuing<'a> {
    coupon: &'a Coupon,
    user: UserId,
    seat: Seat,
    fingerprint: &'a str,
    context: &'a RequestContext,
}

/// What steps 3 and 4 came to.
enum Written {
    /// The row is committed.
    Row(UserCoupon),
    /// Something else is the answer.
    Answer(Outcome<UserCoupon>),
    /// Nothing was written and another round may succeed; otherwise this is the answer.
    Again(Refusal),
}

impl Written {
    fn refused(refusal: Refusal) -> Self {
        Written::Answer(Outcome::Refused(refusal))
    }
}

fn issuing_ended() -> Refusal {
    Refusal::Ended { detail: "issuing of this coupon has ended".into() }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_has_begun_runs_to_its_end_without_its_caller() {
        let (go_on, waits) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let begun = async move {
            waits.await.unwrap();
            done.send(7).unwrap();
        };
        let mut begun = ToTheEnd(Some(Box::pin(begun)));
        assert!(futures::poll!(&mut begun).is_pending());
        drop(begun);
        go_on.send(()).unwrap();
        assert_eq!(is_done.await, Ok(7));
        assert_eq!(ToTheEnd(Some(Box::pin(async { 8 }))).await, 8);
    }
}
