//! Rounds of random faults on three processes of one application under load: afterwards the output is what the input says,
//! each window is final once, nothing is undecided, and nobody died who was not killed.
//!
//! `SLUICE_CHAOS_ROUNDS=20` runs as many, `SLUICE_CHAOS_SEED=7` the faults of that seed. What is random is which faults come, on
//! whom, and for how long; what a fault meets is up to the machine.

use std::{
    fmt,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    fleet::Fleet,
    orders::{self, Load},
};
use crate::services::Services;

const MEMBERS: usize = 3;
/// Rounds where nothing is said: the suite's share.
const ROUNDS: u64 = 5;
const ORDERS_PER_SECOND: i64 = 300;

/// What happens to one member.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// kill -9, with or without its state.
    Kill { wipe: bool },
    /// It stands still until others have its partitions, and then goes on where it was.
    Freeze,
    /// The network: connections cut and refused.
    Cut,
    /// The network: connections stay, nothing is carried.
    Stall,
    /// A stop as it should be.
    Leave,
}

/// One fault and how long it lasts.
#[derive(Clone, Copy, Debug)]
struct Blow {
    member: usize,
    fault: Fault,
    /// Until others have taken over, instead of a moment.
    takeover: bool,
}

struct Round {
    blows: Vec<Blow>,
    /// `stop` or `kill`, then `start`.
    broker: Option<&'static str>,
}

impl Round {
    fn draw(random: &mut StdRng) -> Self {
        let broker = (random.random_range(0..6) == 0)
            .then(|| if random.random_range(0..2) == 0 { "stop" } else { "kill" });
        let first = random.random_range(0..MEMBERS);
        let mut members = vec![first];
        if random.random_range(0..4) == 0 {
            members.push((first + random.random_range(1..MEMBERS)) % MEMBERS);
        }
        let blows = members.into_iter().map(|member| {
            let fault = match random.random_range(0..7) {
                0 => Fault::Kill { wipe: false },
                1 => Fault::Kill { wipe: true },
                2 | 3 => Fault::Freeze,
                4 => Fault::Cut,
                5 => Fault::Stall,
                _ => Fault::Leave,
            };
            Blow { member, fault, takeover: matches!(fault, Fault::Freeze) || random.random_range(0..2) == 0 }
        });
        Self { blows: blows.collect(), broker }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        for Blow { member, fault, takeover } in &self.blows {
            let until = if *takeover { " until others took over" } else { "" };
            parts.push(format!("{fault:?} member {member}{until}"));
        }
        parts.extend(self.broker.map(|how| format!("{how} the broker")));
        f.write_str(&parts.join(", "))
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_faults_change_no_result() {
    if !super::is_asked_for() {
        return;
    }
    let Some(services) = Services::private_proxied("chaos", MEMBERS) else { return };
    let seed = number("SLUICE_CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let rounds = number("SLUICE_CHAOS_ROUNDS").unwrap_or(ROUNDS);
    println!("SLUICE_CHAOS_SEED={seed} SLUICE_CHAOS_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::new(services, "chaos").await;
    (0..MEMBERS).for_each(|place| fleet.start(place));
    let load = Load::start(&fleet, ORDERS_PER_SECOND);
    let began = Instant::now();
    fleet.catch_up("the start").await;
    for number in 1..=rounds {
        let round = Round::draw(&mut random);
        let what = format!("seed {seed}, round {number}: {round}");
        let began = Instant::now();
        blow(&mut fleet, &round, &what).await;
        let lasted = began.elapsed();
        let back = fleet.catch_up(&what).await;
        println!("{what}: {:.1} s, caught up after {:.1} s", lasted.as_secs_f64(), back.as_secs_f64());
    }
    let orders = load.stop();
    orders::close_windows(&fleet);
    let refused = fleet.said(&["tasks migrated", "transaction aborted"]);
    println!(
        "seed {seed}: {rounds} rounds in {:.0} s, {orders} orders, {refused} times commits were refused or aborted",
        began.elapsed().as_secs_f64(),
    );
    orders::holds(&mut fleet, orders, &[&format!("seed {seed}")]).await;
}

/// The faults of a round come, and pass.
async fn blow(fleet: &mut Fleet, round: &Round, what: &str) {
    for Blow { member, fault, .. } in &round.blows {
        match fault {
            Fault::Kill { wipe } => {
                fleet.members[*member].kill();
                if *wipe {
                    fleet.wipe(*member);
                }
            }
            Fault::Freeze => fleet.members[*member].freeze(),
            Fault::Cut => fleet.proxies[*member].set_closed(true),
            Fault::Stall => fleet.proxies[*member].set_stopped(true),
            Fault::Leave => fleet.members[*member].leave(),
        }
    }
    if let Some(how) = round.broker {
        fleet.services.act("kafka", how);
        fleet.services.act("kafka", "start");
    }
    if round.blows.iter().any(|blow| blow.takeover) {
        // Everything that is in the input now gets processed: whoever cannot, others do it for them.
        fleet.catch_up(what).await;
    } else {
        moments(5).await;
    }
    for Blow { member, fault, .. } in &round.blows {
        match fault {
            Fault::Kill { .. } | Fault::Leave => fleet.start(*member),
            Fault::Freeze => fleet.members[*member].thaw(),
            Fault::Cut => fleet.proxies[*member].set_closed(false),
            Fault::Stall => fleet.proxies[*member].set_stopped(false),
        }
    }
}

/// A fault that nobody else can see the end of lasts so many tenths of a second.
async fn moments(count: u32) {
    let deadline = Instant::now() + Duration::from_millis(100) * count;
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
