//! What every gate must do, written once and run on the in-process gate (tests/fast) and on Redis (tests/live).
//!
//! Each function is one test; [`gate_contract_tests`] turns the list into `#[tokio::test]`s over a fixture. A fixture
//! gives gates that share one memory, and campaigns that nobody else uses.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::future::join_all;
use sluice::coupon::gate::*;
use sluice::coupon::ids::{CouponId, UserId};
use uuid::Uuid;

/// A gate under test.
pub struct Fixture {
    /// Seats stay pending for an hour.
    pub gate: Arc<dyn Gate>,
    /// The same memory, but a seat is past its deadline one microsecond after its admission.
    pub hasty: Arc<dyn Gate>,
    /// The next campaign nobody uses.
    pub next_coupon: AtomicI64,
}

impl Fixture {
    fn coupon(&self) -> CouponId {
        CouponId::new(self.next_coupon.fetch_add(1, Ordering::Relaxed)).unwrap()
    }

    async fn opened(&self, limit: i64) -> CouponId {
        let coupon = self.coupon();
        self.gate.open(meta(coupon, limit)).await.unwrap();
        coupon
    }
}

/// A moment long past and one far ahead, microseconds since 1970.
const PAST_US: i64 = 1_000_000;
const FUTURE_US: i64 = 4_000_000_000_000_000;

pub fn meta(coupon: CouponId, limit: i64) -> CampaignMeta {
    CampaignMeta { coupon, state: CampaignState::Open, limit, window: IssueWindow::default(), epoch: 1 }
}

pub fn user(id: i64) -> UserId {
    UserId::new(id).unwrap()
}

async fn admit(gate: &dyn Gate, coupon: CouponId, id: i64) -> Admission {
    gate.admit(coupon, user(id), Uuid::new_v4()).await.unwrap()
}

async fn admitted(gate: &dyn Gate, coupon: CouponId, id: i64) -> Seat {
    match admit(gate, coupon, id).await {
        Admission::Admitted(seat) => seat,
        other => panic!("user {id} was not admitted: {other:?}"),
    }
}

async fn release(gate: &dyn Gate, coupon: CouponId, id: i64, seat: Seat) {
    let released = gate.release(coupon, user(id), seat.token).await.unwrap();
    assert_eq!(released, Release::Released { slot: seat.slot });
}

pub async fn an_unknown_campaign_is_not_ready_and_stays_unknown(f: &Fixture) {
    let (gate, coupon, token) = (&*f.gate, f.coupon(), Uuid::new_v4());
    assert_eq!(admit(gate, coupon, 1).await, Admission::NotReady);
    assert_eq!(gate.confirm(coupon, user(1), token).await.unwrap(), Confirmation::NotMine);
    assert_eq!(gate.release(coupon, user(1), token).await.unwrap(), Release::NotMine);
    assert_eq!(gate.pause(coupon).await.unwrap(), Amendment::NotReady);
    assert_eq!(gate.set_limit(coupon, 5).await.unwrap(), Amendment::NotReady);
    assert!(!gate.extend(coupon, user(1), token).await.unwrap());
    assert_eq!(gate.pending_expired(coupon, 10).await.unwrap(), []);
    assert_eq!(gate.members(coupon, 0, 10).await.unwrap(), []);
    assert_eq!(gate.seat(coupon, user(1)).await.unwrap(), None);
    assert_eq!(gate.stock(coupon).await.unwrap(), GateStock::NOT_READY);
}

pub async fn seats_are_given_in_order_up_to_the_limit(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(3).await);
    let mut last_us = 0;
    for n in 1..=3 {
        let seat = admitted(gate, coupon, 100 + n).await;
        assert_eq!((seat.ordinal, seat.slot, seat.epoch), (n, n, 1));
        assert!(seat.admitted_at_us > last_us, "admission times increase strictly");
        last_us = seat.admitted_at_us;
    }
    let before = gate.stock(coupon).await.unwrap();
    assert_eq!(admit(gate, coupon, 200).await, Admission::SoldOut);
    assert_eq!(gate.stock(coupon).await.unwrap(), before, "a refusal writes nothing");
    assert_eq!(gate.seat(coupon, user(200)).await.unwrap(), None);
    assert_eq!(
        before,
        GateStock {
            state: GateState::Open,
            limit: 3,
            admitted: 3,
            pending: 3,
            free: 0,
            slot_sequence: 3,
            epoch: 1
        }
    );
    assert_eq!(before.remaining(), 0);
}

pub async fn a_repeat_with_the_token_gets_the_same_seat_and_another_token_is_a_duplicate(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(2).await);
    let seat = admitted(gate, coupon, 1).await;
    assert_eq!(gate.admit(coupon, user(1), seat.token).await.unwrap(), Admission::Admitted(seat));
    assert_eq!(admit(gate, coupon, 1).await, Admission::Duplicate { seat, pending: true });
    assert_eq!(gate.confirm(coupon, user(1), seat.token).await.unwrap(), Confirmation::Confirmed);
    assert_eq!(gate.confirm(coupon, user(1), seat.token).await.unwrap(), Confirmation::Confirmed);
    assert_eq!(admit(gate, coupon, 1).await, Admission::Duplicate { seat, pending: false });
    assert_eq!(
        gate.seat(coupon, user(1)).await.unwrap(),
        Some(SeatView { user: user(1), seat, pending: false })
    );
    assert_eq!(gate.stock(coupon).await.unwrap().admitted, 1);
}

pub async fn only_the_token_holder_confirms_releases_or_extends(f: &Fixture) {
    let (gate, coupon, stranger) = (&*f.gate, f.opened(1).await, Uuid::new_v4());
    let seat = admitted(gate, coupon, 1).await;
    assert_eq!(gate.confirm(coupon, user(1), stranger).await.unwrap(), Confirmation::NotMine);
    assert_eq!(gate.release(coupon, user(1), stranger).await.unwrap(), Release::NotMine);
    assert_eq!(gate.release(coupon, user(2), seat.token).await.unwrap(), Release::NotMine);
    assert!(!gate.extend(coupon, user(1), stranger).await.unwrap());
    assert!(gate.extend(coupon, user(1), seat.token).await.unwrap());
    let stock = gate.stock(coupon).await.unwrap();
    assert_eq!((stock.admitted, stock.pending, stock.free), (1, 1, 0));
    gate.confirm(coupon, user(1), seat.token).await.unwrap();
    assert!(
        !gate.extend(coupon, user(1), seat.token).await.unwrap(),
        "a confirmed seat is not pending again"
    );
}

pub async fn a_released_slot_goes_to_the_next_one(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(3).await);
    let first = admitted(gate, coupon, 1).await;
    let second = admitted(gate, coupon, 2).await;
    release(gate, coupon, 1, first).await;
    assert_eq!(gate.release(coupon, user(1), first.token).await.unwrap(), Release::NotMine, "once only");
    assert_eq!(admitted(gate, coupon, 3).await.slot, 3, "never used slots go before released ones");
    let again = admitted(gate, coupon, 4).await;
    assert_eq!((again.slot, again.ordinal), (1, 4), "an ordinal is never reused");
    assert_eq!(admit(gate, coupon, 1).await, Admission::SoldOut);
    release(gate, coupon, 4, again).await;
    release(gate, coupon, 2, second).await;
    let stock = gate.stock(coupon).await.unwrap();
    assert_eq!((stock.admitted, stock.free, stock.remaining()), (1, 2, 2));
    assert_eq!(
        admitted(gate, coupon, 1).await.slot,
        1,
        "who was released may come again; the lowest slot first"
    );
    assert_eq!(admitted(gate, coupon, 5).await.slot, 2);
    assert_eq!(admit(gate, coupon, 6).await, Admission::SoldOut);
}

pub async fn the_window_is_kept(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(10).await);
    let window = |from_us, until_us| IssueWindow { from_us, until_us };
    let table = [
        (window(Some(FUTURE_US), None), Admission::NotStarted { issue_from_us: FUTURE_US }),
        (window(None, Some(PAST_US)), Admission::Ended),
        (window(Some(1), Some(PAST_US)), Admission::Ended),
    ];
    for (window, expected) in table {
        assert_eq!(gate.set_window(coupon, window).await.unwrap(), Amendment::Amended);
        assert_eq!(admit(gate, coupon, 1).await, expected, "{window:?}");
    }
    for (id, window) in [(1, window(Some(PAST_US), Some(FUTURE_US))), (2, window(None, None))] {
        gate.set_window(coupon, window).await.unwrap();
        admitted(gate, coupon, id).await;
    }
}

pub async fn paused_and_closed_refuse_newcomers_and_still_know_the_holders(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(10).await);
    let seat = admitted(gate, coupon, 1).await;
    assert_eq!(gate.pause(coupon).await.unwrap(), Amendment::Amended);
    assert_eq!(admit(gate, coupon, 2).await, Admission::Paused);
    assert_eq!(admit(gate, coupon, 1).await, Admission::Duplicate { seat, pending: true });
    assert_eq!(gate.stock(coupon).await.unwrap().state, GateState::Paused);
    gate.resume(coupon).await.unwrap();
    admitted(gate, coupon, 2).await;
    gate.close(coupon).await.unwrap();
    assert_eq!(admit(gate, coupon, 3).await, Admission::Ended);
    assert_eq!(admit(gate, coupon, 1).await, Admission::Duplicate { seat, pending: true });
    assert_eq!(gate.confirm(coupon, user(1), seat.token).await.unwrap(), Confirmation::Confirmed);
    assert_eq!(gate.stock(coupon).await.unwrap().state, GateState::Closed);
}

pub async fn the_limit_is_lowered_and_raised_under_members(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(4).await);
    let mut seats = Vec::new();
    for id in 1..=4 {
        seats.push(admitted(gate, coupon, id).await);
    }
    gate.set_limit(coupon, 2).await.unwrap();
    assert_eq!(admit(gate, coupon, 5).await, Admission::SoldOut);
    release(gate, coupon, 4, seats[3]).await;
    assert_eq!(admit(gate, coupon, 5).await, Admission::SoldOut, "slot 4 lies above the limit");
    release(gate, coupon, 1, seats[0]).await;
    assert_eq!(
        admit(gate, coupon, 5).await,
        Admission::SoldOut,
        "slot 1 is free, but two members are the limit"
    );
    release(gate, coupon, 2, seats[1]).await;
    assert_eq!(admitted(gate, coupon, 5).await.slot, 1);
    assert_eq!(admit(gate, coupon, 6).await, Admission::SoldOut, "members 3 and 5 hold slots 3 and 1");
    gate.set_limit(coupon, 5).await.unwrap();
    let mut slots = Vec::new();
    for id in 6..=8 {
        slots.push(admitted(gate, coupon, id).await.slot);
    }
    assert_eq!(slots, [5, 2, 4], "the new slot, then the released ones");
    assert_eq!(admit(gate, coupon, 9).await, Admission::SoldOut);
}

pub async fn opening_again_keeps_members_and_another_epoch_is_stale(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(1).await);
    let seat = admitted(gate, coupon, 1).await;
    gate.open(CampaignMeta { limit: 2, ..meta(coupon, 2) }).await.unwrap();
    assert_eq!(admit(gate, coupon, 1).await, Admission::Duplicate { seat, pending: true });
    assert_eq!(admitted(gate, coupon, 2).await.slot, 2);
    let stale = gate.open(CampaignMeta { epoch: 2, ..meta(coupon, 9) }).await.unwrap_err();
    assert_eq!(stale, GateError::Stale { coupon, epoch: 1 });
    assert_eq!(gate.stock(coupon).await.unwrap().limit, 2, "a stale open changes nothing");
}

pub async fn a_rebuild_replaces_everything_under_a_higher_epoch(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.opened(6).await);
    let forgotten = admitted(gate, coupon, 1).await;
    let member =
        |id, slot, admitted_at_us| Member { user: user(id), slot, token: Uuid::new_v4(), admitted_at_us };
    let rows = vec![member(10, 5, FUTURE_US), member(11, 2, PAST_US), member(12, 3, PAST_US)];

    let again = CampaignMeta { epoch: 1, ..meta(coupon, 6) };
    assert_eq!(gate.rebuild(again, rows.clone()).await.unwrap_err(), GateError::Stale { coupon, epoch: 1 });
    assert_eq!(gate.stock(coupon).await.unwrap().admitted, 1, "a stale rebuild changes nothing");

    gate.rebuild(CampaignMeta { epoch: 7, ..again }, rows.clone()).await.unwrap();
    let stock = gate.stock(coupon).await.unwrap();
    assert_eq!((stock.admitted, stock.pending, stock.free), (3, 0, 2));
    assert_eq!((stock.epoch, stock.slot_sequence, stock.state), (7, 5, GateState::Open));
    assert_eq!(gate.release(coupon, user(1), forgotten.token).await.unwrap(), Release::NotMine);

    let members = gate.members(coupon, 0, 10).await.unwrap();
    let seen: Vec<_> =
        members.iter().map(|m| (m.user.get(), m.seat.slot, m.seat.ordinal, m.pending)).collect();
    assert_eq!(seen, [(11, 2, 1, false), (12, 3, 2, false), (10, 5, 3, false)]);
    assert_eq!(members[1].seat.admitted_at_us, PAST_US + 1, "equal times are made distinct");
    assert_eq!(members[1].seat.token, rows[2].token);

    assert!(matches!(admit(gate, coupon, 10).await, Admission::Duplicate { pending: false, .. }));
    let next = admitted(gate, coupon, 1).await;
    assert_eq!((next.slot, next.ordinal, next.epoch), (6, 4, 7));
    assert!(next.admitted_at_us > FUTURE_US, "the floor holds although the clock says less");
    assert_eq!([admitted(gate, coupon, 2).await.slot, admitted(gate, coupon, 3).await.slot], [1, 4]);
    assert_eq!(admit(gate, coupon, 4).await, Admission::SoldOut);
}

pub async fn a_rebuild_of_nothing_and_of_a_paused_campaign(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.coupon());
    let paused = CampaignMeta { state: CampaignState::Paused, epoch: 3, ..meta(coupon, 2) };
    gate.rebuild(paused, Vec::new()).await.unwrap();
    assert_eq!(admit(gate, coupon, 1).await, Admission::Paused);
    gate.resume(coupon).await.unwrap();
    assert_eq!(admitted(gate, coupon, 1).await.epoch, 3);
}

pub async fn a_large_rebuild_keeps_every_row(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.coupon());
    // Every third slot is free; several portions of members and of free slots.
    let rows: Vec<Member> = (1..=6_000)
        .filter(|slot| slot % 3 != 0)
        .map(|slot| Member {
            user: user(10_000 - slot),
            slot,
            token: Uuid::new_v4(),
            admitted_at_us: 10 + slot,
        })
        .collect();
    gate.rebuild(CampaignMeta { epoch: 2, ..meta(coupon, 6_000) }, rows.clone()).await.unwrap();
    let mut after_us = 0;
    let mut seen = Vec::new();
    loop {
        let page = gate.members(coupon, after_us, 700).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 700);
        after_us = last.seat.admitted_at_us;
        seen.extend(page);
    }
    assert_eq!(seen.len(), rows.len());
    for (n, (view, row)) in seen.iter().zip(&rows).enumerate() {
        assert_eq!((view.user, view.seat.slot, view.seat.token), (row.user, row.slot, row.token));
        assert_eq!(view.seat.ordinal, n as i64 + 1);
    }
    let stock = gate.stock(coupon).await.unwrap();
    // The highest slot held is 5999; 6000 was never used.
    assert_eq!((stock.admitted, stock.free, stock.slot_sequence), (4_000, 1_999, 5_999));
    assert_eq!(admitted(gate, coupon, 20_000).await.slot, 6_000);
    assert_eq!(admitted(gate, coupon, 20_001).await.slot, 3);
}

pub async fn expired_pending_seats_are_claimed_once_per_lease(f: &Fixture) {
    let (gate, hasty, coupon) = (&*f.gate, &*f.hasty, f.opened(10).await);
    let overdue = [admitted(hasty, coupon, 1).await, admitted(hasty, coupon, 2).await];
    let confirmed = admitted(hasty, coupon, 3).await;
    gate.confirm(coupon, user(3), confirmed.token).await.unwrap();
    let patient = admitted(gate, coupon, 4).await;
    assert_eq!(gate.stock(coupon).await.unwrap().pending, 3);

    let first = gate.pending_expired(coupon, 1).await.unwrap();
    assert_eq!(
        first.iter().map(|p| (p.user, p.seat)).collect::<Vec<_>>(),
        [(user(1), overdue[0])],
        "oldest first"
    );
    assert_eq!(first[0].deadline_us, overdue[0].admitted_at_us + 1);
    let second = gate.pending_expired(coupon, 10).await.unwrap();
    assert_eq!(second.iter().map(|p| p.user).collect::<Vec<_>>(), [user(2)], "user 1 is claimed, 4 has time");
    assert_eq!(gate.pending_expired(coupon, 10).await.unwrap(), [], "claimed for a lease");
    assert_eq!(gate.stock(coupon).await.unwrap().pending, 3, "a claim keeps them pending");

    assert!(hasty.extend(coupon, user(4), patient.token).await.unwrap());
    let third = gate.pending_expired(coupon, 10).await.unwrap();
    assert_eq!(third.iter().map(|p| p.user).collect::<Vec<_>>(), [user(4)], "one hasty lease is over");
    release(gate, coupon, 4, patient).await;
    assert_eq!(gate.stock(coupon).await.unwrap().pending, 2);
}

pub async fn senseless_terms_are_refused_and_nothing_is_written(f: &Fixture) {
    let (gate, coupon) = (&*f.gate, f.coupon());
    let upside_down = IssueWindow { from_us: Some(10), until_us: Some(5) };
    let table = [
        (meta(coupon, 0), "limit must be in"),
        (meta(coupon, -3), "limit must be in"),
        (meta(coupon, i64::MAX), "limit must be in"),
        (CampaignMeta { epoch: 0, ..meta(coupon, 5) }, "epoch must be in"),
        (CampaignMeta { window: upside_down, ..meta(coupon, 5) }, "must be later than issue_from"),
    ];
    for (terms, expected) in table {
        for error in [gate.open(terms).await.unwrap_err(), gate.rebuild(terms, Vec::new()).await.unwrap_err()]
        {
            assert!(matches!(error, GateError::Refused(_)), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(gate.stock(coupon).await.unwrap(), GateStock::NOT_READY);
    assert!(matches!(gate.set_limit(coupon, 0).await, Err(GateError::Refused(_))));
}

pub async fn a_crowd_gets_exactly_the_seats(f: &Fixture) {
    const LIMIT: i64 = 500;
    let coupon = f.opened(LIMIT).await;
    let sold_out_seen = Arc::new(AtomicBool::new(false));
    let tasks = (0..32).map(|task| {
        let (gate, sold_out_seen) = (f.gate.clone(), sold_out_seen.clone());
        tokio::spawn(async move {
            let mut seats = Vec::new();
            for n in 0..60 {
                // Every user comes in two tasks.
                let id = 1 + (task / 2) * 60 + n;
                let too_late = sold_out_seen.load(Ordering::SeqCst);
                match admit(&*gate, coupon, id).await {
                    Admission::Admitted(seat) => {
                        assert!(!too_late, "user {id} was admitted after somebody had been refused");
                        seats.push((id, seat));
                    }
                    Admission::SoldOut => sold_out_seen.store(true, Ordering::SeqCst),
                    Admission::Duplicate { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            seats
        })
    });
    let mut seats: Vec<(i64, Seat)> = Vec::new();
    for task in join_all(tasks).await {
        seats.extend(task.unwrap());
    }
    seats.sort_by_key(|(_, seat)| seat.ordinal);
    assert_eq!(seats.len() as i64, LIMIT);
    assert!(seats.iter().map(|(_, seat)| seat.ordinal).eq(1..=LIMIT), "ordinals are 1..=limit, each once");
    assert!(seats.is_sorted_by(|(_, a), (_, b)| a.admitted_at_us < b.admitted_at_us), "and in order of time");
    assert_eq!(seats.iter().map(|(_, seat)| seat.slot).collect::<HashSet<_>>().len() as i64, LIMIT);
    assert_eq!(seats.iter().map(|(id, _)| id).collect::<HashSet<_>>().len() as i64, LIMIT);
    assert!(sold_out_seen.load(Ordering::SeqCst), "the crowd was larger than the stock");
}

pub async fn a_crowd_that_gives_seats_back_never_exceeds_the_limit(f: &Fixture) {
    const LIMIT: i64 = 40;
    let coupon = f.opened(LIMIT).await;
    let held = Arc::new(AtomicI64::new(0));
    let tasks = (0..16_i64).map(|task| {
        let (gate, held) = (f.gate.clone(), held.clone());
        tokio::spawn(async move {
            for n in 0..80 {
                let id = 1 + task * 80 + n;
                let Admission::Admitted(seat) = admit(&*gate, coupon, id).await else { continue };
                assert!((1..=LIMIT).contains(&seat.slot));
                let now_held = held.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now_held <= LIMIT, "{now_held} seats are held at once");
                tokio::task::yield_now().await;
                if (id + n) % 3 != 0 {
                    held.fetch_sub(1, Ordering::SeqCst);
                    release(&*gate, coupon, id, seat).await;
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let members = f.gate.members(coupon, 0, 1000).await.unwrap();
    let stock = f.gate.stock(coupon).await.unwrap();
    assert_eq!(members.len() as i64, held.load(Ordering::SeqCst));
    assert_eq!(stock.admitted + stock.free, stock.slot_sequence, "every slot is held or free");
    let slots: HashSet<i64> = members.iter().map(|member| member.seat.slot).collect();
    assert_eq!(slots.len(), members.len(), "no slot is held twice");
}

/// The contract as tests: `$fixture` is an async function giving `Option<Fixture>`, `None` to skip.
#[macro_export]
macro_rules! gate_contract_tests {
    ($fixture:path) => {
        $crate::gate_contract_tests! { $fixture:
            an_unknown_campaign_is_not_ready_and_stays_unknown
            seats_are_given_in_order_up_to_the_limit
            a_repeat_with_the_token_gets_the_same_seat_and_another_token_is_a_duplicate
            only_the_token_holder_confirms_releases_or_extends
            a_released_slot_goes_to_the_next_one
            the_window_is_kept
            paused_and_closed_refuse_newcomers_and_still_know_the_holders
            the_limit_is_lowered_and_raised_under_members
            opening_again_keeps_members_and_another_epoch_is_stale
            a_rebuild_replaces_everything_under_a_higher_epoch
            a_rebuild_of_nothing_and_of_a_paused_campaign
            a_large_rebuild_keeps_every_row
            expired_pending_seats_are_claimed_once_per_lease
            senseless_terms_are_refused_and_nothing_is_written
            a_crowd_gets_exactly_the_seats
            a_crowd_that_gives_seats_back_never_exceeds_the_limit
        }
    };
    ($fixture:path: $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if let Some(fixture) = $fixture().await {
                gate_contract::$name(&fixture).await;
            }
        })*
    };
}
