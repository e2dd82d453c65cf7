//! What must hold after every fault, once quiet: I1 to I10, judged from outside.
//!
//! One function, [`World::judge`]. It lets the last seats be sold, waits until nothing is under way, and then asks as an
//! operator would: `sluice verify` (I1 to I9, with what the crowd was told), `sluice reconcile` (zero drift) and `sluice
//! audit replay` (the history gives the tables). What only the crowd can know it computes itself: that the first and the last
//! word to each user are true (I9), that what is used is what its user was told so (I6), and that nobody came after somebody who
//! was refused and still got a seat, but for seats that came back (I10).

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, Process},
    told::Told,
    world::{PATIENCE, World, urls},
};

/// Users who come last, to see whether every seat that is left can be had.
const LATE_USERS: i64 = 10_000_000;

/// A campaign to be judged.
#[derive(Clone, Copy)]
pub struct Campaign {
    pub coupon: i64,
    /// All of them must be issued in the end, none more.
    pub seats: i64,
    /// Seats that the test itself freed while the crowd was there (a limit raised, pending seats forgotten by Redis).
    pub freed: usize,
    /// The gate was given a reason to be rebuilt from the ledger. Without one it must not have been: a seat given away twice
    /// is repaired by a rebuild, and would otherwise leave no trace.
    pub rebuilt: bool,
}

impl Campaign {
    /// All seats issued in the end, by a gate that kept what it was told.
    pub fn of(coupon: i64, seats: i64) -> Self {
        Self { coupon, seats, freed: 0, rebuilt: false }
    }
}

impl World {
    /// Fails, with everything that is known, unless all invariants hold. The last of the processes does everything; it is
    /// stopped for the judgement where it holds the log for itself.
    pub async fn judge(&self, processes: impl IntoIterator<Item = Process>, campaigns: &[Campaign]) {
        let mut processes: Vec<Process> = processes.into_iter().collect();
        let urls = urls(&processes);
        self.settle(&urls).await;
        for campaign in campaigns {
            self.sell_the_rest(&urls, *campaign).await;
        }
        let answers = self.answers();
        if !self.on_kafka {
            until_zero(&self.deployment, RECONCILE, is_quiet).await;
            let deadline = Instant::now() + PATIENCE;
            loop {
                windows_are_over().await;
                processes
                    .into_iter()
                    .rev()
                    .for_each(|process| assert!(process.stop(), "a stop is no failure"));
                let (code, report) = verify(&self.deployment, &answers);
                if code == Some(0) {
                    break;
                }
                assert!(Instant::now() < deadline, "sluice verify: exit code {code:?}\n{}", broken(&report));
                processes = vec![self.deployment.start("everything", "api,relay,streams", &[]).await];
            }
        }
        judged(&self.deployment, &answers, campaigns, |_| false).await;
        self.uses_stand().await;
    }

    /// Who was told that a coupon is used, or no longer, finds it so.
    async fn uses_stand(&self) {
        let ledger = self.deployment.ledger().await;
        let used: Vec<i64> = sqlx::query_scalar(
            "select user_coupon_id from user_coupons where status = 'USED' order by user_coupon_id",
        )
        .fetch_all(&ledger)
        .await
        .expect("the ledger answers");
        ledger.close().await;
        assert_eq!(used, self.stay_used(), "I6: the rows that are used, and those whose users were told so");
    }

    /// A seat that nobody can have is a lost seat.
    async fn sell_the_rest(&self, urls: &[String], campaign: Campaign) {
        let deadline = Instant::now() + PATIENCE;
        let mut late = LATE_USERS;
        loop {
            let issued = rows(&self.deployment).await.get(&campaign.coupon).map_or(0, BTreeMap::len) as i64;
            if issued >= campaign.seats {
                return self.settle(urls).await;
            }
            assert!(Instant::now() < deadline, "seats were lost: {issued} of {} issued", campaign.seats);
            late += 1;
            let told = self.issue(&urls[late as usize % urls.len()], campaign.coupon, late).await;
            if !told.is_yes() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

const RECONCILE: &[&str] = &["reconcile", "--json"];

/// Windows of two seconds, a second of grace, three seconds of silence: then they are final.
pub async fn windows_are_over() {
    let over = Instant::now() + Duration::from_secs(7);
    let deadline = over + PATIENCE;
    while Instant::now() < over.min(deadline) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `sluice verify` with what the crowd was told.
fn verify(deployment: &Deployment, answers: &[Told]) -> (Option<i32>, String) {
    let told = deployment.file("answers.jsonl");
    let mut file = std::fs::File::create(&told).expect("a file");
    for Told { coupon, user, status, code, .. } in answers {
        let line = json!({ "couponId": coupon, "userId": user, "status": status, "code": code });
        writeln!(file, "{line}").expect("written");
    }
    deployment.run(&["verify", "--json", "--answers", &told.display().to_string()])
}

/// I1 to I10 of a deployment that is about to be quiet, and so many rows as the campaigns say. A finding of `sluice verify` that the
/// test itself `planted` is none.
pub async fn judged(
    deployment: &Deployment,
    answers: &[Told],
    campaigns: &[Campaign],
    planted: impl Fn(&Value) -> bool,
) {
    holds(deployment, answers, planted).await;
    let rows = rows(deployment).await;
    for campaign in campaigns {
        let holders = rows.get(&campaign.coupon).map_or(0, BTreeMap::len) as i64;
        assert_eq!(holders, campaign.seats, "rows of coupon {}", campaign.coupon);
        nobody_was_overtaken(deployment, answers, *campaign).await;
        was_not_rebuilt(deployment, *campaign).await;
    }
}

/// I1 to I9, zero drift, and a history that gives the tables; waits until all is quiet.
pub async fn holds(deployment: &Deployment, answers: &[Told], planted: impl Fn(&Value) -> bool) {
    let drift = until_zero(deployment, RECONCILE, is_quiet).await;
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        let (code, text) = verify(deployment, answers);
        let report = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        match report {
            Some(report)
                if matches!(code, Some(0 | 1)) && is_complete(&report) && findings(&report).all(&planted) =>
            {
                break report;
            }
            _ => assert!(Instant::now() < deadline, "sluice verify: exit code {code:?}\n{}", broken(&text)),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(report["checks"].as_array().map(Vec::len), Some(9));
    let replay = until_zero(deployment, &["audit", "replay", "--json"], |_| true).await;
    assert_eq!((&replay["differencesTotal"], &replay["differences"]), (&json!(0), &json!([])));
    assert!(!drift.as_array().expect("campaigns").is_empty());

    // I9, strictly: the last word to each user, not only the sum of all words.
    let rows = rows(deployment).await;
    let mut last: BTreeMap<(i64, i64), &Told> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.is_yes() || answer.is_no()) {
        let known = last.entry((answer.coupon, answer.user)).or_insert(answer);
        // Of two requests at once either may be the last word; a yes is the stronger one.
        if answer.asked > known.told || (answer.is_yes() && !known.is_yes()) {
            *known = answer;
        }
    }
    let lies: Vec<&&Told> = last
        .values()
        .filter(|told| {
            let has_row = rows.get(&told.coupon).is_some_and(|users| users.contains_key(&told.user));
            let unknown_since = || {
                answers.iter().any(|later| {
                    (later.coupon, later.user) == (told.coupon, told.user)
                        && later.told > told.asked
                        && !later.is_yes()
                        && !later.is_no()
                })
            };
            if told.is_yes() { !has_row } else { has_row && !unknown_since() }
        })
        .collect();
    assert!(lies.is_empty(), "I9: the last word to these users is not true: {lies:#?}");

    // And the first: who was told "nothing was done" before asking again had nothing then.
    let lies: Vec<&Told> = answers
        .iter()
        .filter(|told| told.is_no())
        .filter(|told| {
            let issued_at = rows.get(&told.coupon).and_then(|users| users.get(&told.user));
            let is_alone = || {
                answers.iter().all(|other| {
                    (other.coupon, other.user) != (told.coupon, told.user)
                        || std::ptr::eq(other, *told)
                        || other.asked > told.told
                })
            };
            issued_at.is_some_and(|at| *at < told.told_at) && is_alone()
        })
        .collect();
    assert!(lies.is_empty(), "I9: these users were told that nothing was done, and it was: {lies:#?}");
}

/// Repeats a command until its verdict is yes and `quiet` agrees; its report as JSON.
async fn until_zero(deployment: &Deployment, args: &[&str], quiet: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (code, text) = deployment.run(args);
        let report = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        match report {
            Some(report) if code == Some(0) && quiet(&report) => return report,
            _ => {}
        }
        assert!(Instant::now() < deadline, "sluice {}: exit code {code:?}\n{}", args[0], broken(&text));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// No seat on its way, no event on its way.
fn is_quiet(drifts: &Value) -> bool {
    drifts.as_array().into_iter().flatten().all(|campaign| {
        campaign["outboxWaiting"] == 0 && matches!(campaign["gate"]["pending"].as_i64(), None | Some(0))
    })
}

/// Was there something to judge everything by? Of statistics that have not begun there is nothing yet.
fn is_complete(report: &Value) -> bool {
    report["checks"].as_array().is_some_and(|checks| checks.iter().all(|check| !check["compared"].is_null()))
}

/// Everything that a report of `sluice verify` finds wrong.
fn findings(report: &Value) -> impl Iterator<Item = &Value> {
    report["checks"].as_array().into_iter().flatten().flat_map(|check| check["findings"].as_array()).flatten()
}

/// What is wrong in a report, without what is right.
fn broken(text: &str) -> String {
    let Some(Ok(report)) = text.lines().last().map(serde_json::from_str::<Value>) else {
        return text.to_owned();
    };
    let Some(checks) = report["checks"].as_array() else { return format!("{report:#}") };
    let is_broken = |check: &&Value| check["findings"] != json!([]) || check["compared"].is_null();
    let broken: Vec<&Value> = checks.iter().filter(is_broken).collect();
    format!("{broken:#?}")
}

/// I10: who asked after somebody had been told "sold out" gets a seat only if one came back.
///
/// Seats come back from requests that were given no final answer (each may have held one), from what the sweeper fenced,
/// and from what the test itself freed.
async fn nobody_was_overtaken(deployment: &Deployment, answers: &[Told], campaign: Campaign) {
    let ledger = deployment.ledger().await;
    let fenced: i64 = sqlx::query_scalar("select count(*) from issuance_fence where coupon_id = $1")
        .bind(campaign.coupon)
        .fetch_one(&ledger)
        .await
        .expect("the ledger answers");
    ledger.close().await;
    not_overtaken(answers, campaign, fenced as usize);
}

/// I5, all the time: a gate that kept what it was told never gave a seat that was taken.
async fn was_not_rebuilt(deployment: &Deployment, campaign: Campaign) {
    let ledger = deployment.ledger().await;
    let older = sqlx::query_scalar(ROWS_OF_AN_OLDER_EPOCH).bind(campaign.coupon).fetch_one(&ledger).await;
    ledger.close().await;
    was_kept(campaign, older.expect("the ledger answers"));
}

/// Rows that the gate admitted before it was last rebuilt. One that was rebuilt before it admitted anybody is as good as new: the
/// sweeper does that to a campaign that it finds open in the ledger a moment before the gate is told.
pub const ROWS_OF_AN_OLDER_EPOCH: &str = "select count(*) as n from user_coupons
     join coupons on coupons.coupon_id = user_coupons.coupon_id
     where coupons.coupon_id = $1 and user_coupons.epoch < coupons.epoch";

/// The same by the number of [`ROWS_OF_AN_OLDER_EPOCH`].
pub fn was_kept(campaign: Campaign, older: i64) {
    assert!(
        campaign.rebuilt || older == 0,
        "I5: the gate of coupon {} forgot or gave away a seat that was taken: it was rebuilt after {older} rows",
        campaign.coupon
    );
}

/// I10 by the answers and the number of admissions that the sweeper decided to be "never".
pub fn not_overtaken(answers: &[Told], campaign: Campaign, fenced: usize) {
    let of_it = || answers.iter().filter(|told| told.coupon == campaign.coupon);
    let refused = of_it().filter(|told| told.code.as_deref() == Some("CP005")).map(|told| told.told).min();
    let Some(refused) = refused else { return };
    let overtook: Vec<&Told> = of_it().filter(|told| told.status == 201 && told.asked > refused).collect();
    let unsettled = of_it().filter(|told| !told.is_final()).count();
    let came_back = campaign.freed + fenced + unsettled;
    assert!(
        overtook.len() <= came_back,
        "I10: {} got a seat after somebody had been refused at {refused:?}, and only {came_back} seats came back: {:#?}",
        overtook.len(),
        &overtook[..overtook.len().min(5)]
    );
}

/// Who holds a row, by campaign, and since when.
async fn rows(deployment: &Deployment) -> BTreeMap<i64, BTreeMap<i64, i64>> {
    let ledger = deployment.ledger().await;
    let mut rows: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
    let all = sqlx::query_as::<_, (i64, i64, i64)>("select coupon_id, user_id, issued_at from user_coupons");
    for (coupon, user, issued_at) in all.fetch_all(&ledger).await.expect("the ledger answers") {
        rows.entry(coupon).or_default().insert(user, issued_at);
    }
    ledger.close().await;
    rows
}
