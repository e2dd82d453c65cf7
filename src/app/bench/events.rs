//! The events of the bench workloads, each a pure function of seed and index: the same topics everywhere.
//!
//! One issue a millisecond, give or take two seconds; a million users alike, a hundred coupons of which one takes about
//! 30 %; 40 % of the issues are used, an exponential delay (mean five minutes) later. Random numbers are Java's
//! `SplittableRandom`, so that a peer written in Java can make the same events.

use std::fmt::Write;

use jiff::Timestamp;

/// Users, uniform.
const USERS: u32 = 1_000_000;
/// Coupons, by Zipf's law.
const COUPONS: usize = 100;
/// Exponent of that law: the first coupon gets about 30 %.
const ZIPF: f64 = 1.25;
/// An event is this far from its place at most, ms.
const JITTER_MS: i64 = 2_000;
/// 2026-11-22T10:00:00Z: the time of the first event, ms.
const BASE_MS: i64 = 1_795_341_600_000;
/// Mean time from issue to use, ms.
const USED_AFTER_MS: f64 = 300_000.0;

/// Java's `SplittableRandom`.
struct SplittableRandom(u64);

impl SplittableRandom {
    fn next_seed(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0
    }

    fn next_long(&mut self) -> u64 {
        let z = self.next_seed();
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn next_int(&mut self) -> u32 {
        let z = self.next_seed();
        let z = (z ^ (z >> 33)).wrapping_mul(0x62a9_d9ed_7997_05f5);
        ((z ^ (z >> 28)).wrapping_mul(0xcb24_d0a5_c88c_35b3) >> 32) as u32
    }

    /// Below `bound`, which is no power of two.
    fn below(&mut self, bound: u32) -> u32 {
        loop {
            let drawn = self.next_int() >> 1;
            let remainder = drawn % bound;
            // The last, incomplete round of remainders would favour small ones.
            if drawn - remainder + (bound - 1) <= i32::MAX as u32 {
                return remainder;
            }
        }
    }

    fn next_double(&mut self) -> f64 {
        (self.next_long() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn uuid(&mut self) -> uuid::Uuid {
        uuid::Uuid::from_u64_pair(self.next_long(), self.next_long())
    }
}

/// One record of a bench topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Who.
    pub user_id: u32,
    /// Which campaign.
    pub coupon_id: usize,
    /// When, ms.
    pub at: i64,
    /// The record's value.
    pub json: String,
}

/// Makes events.
pub struct Events {
    seed: u64,
    cumulative: Vec<f64>,
}

impl Events {
    /// Events of a seed.
    pub fn new(seed: u64) -> Self {
        let weights = (1..=COUPONS).map(|rank| (rank as f64).powf(-ZIPF));
        let mut cumulative: Vec<f64> = weights
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        let total = cumulative[COUPONS - 1];
        cumulative.iter_mut().for_each(|sum| *sum /= total);
        Self { seed, cumulative }
    }

    /// The issue of this index.
    pub fn issued(&self, index: u32) -> Event {
        let mut random = SplittableRandom(self.seed.wrapping_add(u64::from(index)));
        let user_id = 1 + random.below(USERS);
        let jitter = i64::from(random.below(2 * JITTER_MS as u32 + 1)) - JITTER_MS;
        let at = BASE_MS + i64::from(index) + jitter;
        let drawn = random.next_double();
        let coupon_id = self.cumulative.partition_point(|sum| *sum < drawn).min(COUPONS - 1) + 1;
        let mut json = String::with_capacity(200);
        let _ = write!(
            json,
            "{{\"eventId\":\"{}\",\"userCouponId\":{},\"userId\":{user_id},\"couponId\":{coupon_id},\
             \"couponName\":\"선착순 5천원 쿠폰 {coupon_id}\",\"issuedAt\":\"{}\"}}",
            random.uuid(),
            index + 1,
            iso(at)
        );
        Event { user_id, coupon_id, at, json }
    }

    /// How long after its issue it was used, ms; `None` = never.
    pub fn used_after_ms(&self, index: u32) -> Option<i64> {
        let mut random = SplittableRandom((!self.seed).wrapping_sub(u64::from(index)));
        (random.next_double() < 0.4).then(|| (-(1.0 - random.next_double()).ln() * USED_AFTER_MS) as i64)
    }

    /// The use of the issue of this index, `after` ms later.
    pub fn used(&self, index: u32, after: i64) -> Event {
        let issued = self.issued(index);
        let mut random = SplittableRandom(self.seed.wrapping_mul(31).wrapping_add(u64::from(index)));
        let event_id = random.uuid();
        let at = issued.at + after;
        let json = format!(
            "{{\"eventId\":\"{event_id}\",\"userCouponId\":{},\"userId\":{},\"couponId\":{},\"orderId\":\"ord-{:x}\",\
             \"discountAmount\":5000,\"usedAt\":\"{}\"}}",
            index + 1,
            issued.user_id,
            issued.coupon_id,
            random.next_long(),
            iso(at)
        );
        Event { at, json, ..issued }
    }

    /// Uses of the first `count` issues in the order of their arrival: the index of the issue and the delay.
    pub fn uses(&self, count: u32) -> Vec<(u32, i64)> {
        let mut uses: Vec<(i64, u32, i64)> = (0..count)
            .filter_map(|index| {
                let after = self.used_after_ms(index)?;
                let jitter = (u64::from(index) * 2_654_435_761 % (2 * JITTER_MS as u64)) as i64;
                Some((self.issued(index).at + after + jitter, index, after))
            })
            .collect();
        uses.sort_unstable();
        uses.into_iter().map(|(_, index, after)| (index, after)).collect()
    }
}

fn iso(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from the generator in Java that fills the topics of the peers.
    #[test]
    fn events_are_those_of_the_generator_in_java() {
        let events = Events::new(42);
        let recorded = [
            (
                3,
                r#"{"eventId":"c8031cf7-ec10-e77e-5c8f-e603551f9992","userCouponId":3,"userId":600874,"couponId":2,"couponName":"선착순 5천원 쿠폰 2","issuedAt":"2026-11-22T10:00:01.706Z"}"#,
            ),
            (
                7,
                r#"{"eventId":"70254acf-5b9f-3d7f-3ee4-e3559434bb2f","userCouponId":7,"userId":299678,"couponId":4,"couponName":"선착순 5천원 쿠폰 4","issuedAt":"2026-11-22T09:59:58.743Z"}"#,
            ),
            (
                12,
                r#"{"eventId":"8210a048-158e-bb16-b4ca-bd87763534b6","userCouponId":12,"userId":955511,"couponId":2,"couponName":"선착순 5천원 쿠폰 2","issuedAt":"2026-11-22T09:59:58.460Z"}"#,
            ),
        ];
        for (number, json) in recorded {
            assert_eq!(events.issued(number - 1).json, json);
        }
        let recorded = [
            (
                880,
                r#"{"eventId":"26162d14-9ed9-b854-0f9c-8f74c3fd4f0f","userCouponId":880,"userId":310745,"couponId":4,"orderId":"ord-5e3ff21a1c38a534","discountAmount":5000,"usedAt":"2026-11-22T10:00:00.947Z"}"#,
            ),
            (
                2275,
                r#"{"eventId":"037b6590-9449-ab4a-1228-4d189ac15045","userCouponId":2275,"userId":755166,"couponId":10,"orderId":"ord-76d50a640f2bfbcd","discountAmount":5000,"usedAt":"2026-11-22T10:00:05.687Z"}"#,
            ),
        ];
        let order = events.uses(3_000);
        for (number, json) in recorded {
            let after = events.used_after_ms(number - 1).expect("it was used");
            assert_eq!(events.used(number - 1, after).json, json);
        }
        let place = |number: u32| order.iter().position(|(index, _)| *index == number - 1);
        assert!(place(880) < place(2275), "uses arrive in the order of their time");
    }
}
