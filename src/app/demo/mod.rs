//! `sluice demo`: the whole path in one process, on embedded parts, and the proof that it held.
//!
//! It starts what `serve` starts, lets a [`crowd`] rush one campaign over real HTTP, waits until all is quiet, and has
//! the verifier compare ledger, gate, log, derived topics and what every user was told. What must always hold: the
//! exit code is the verdict, and nothing is taken from memory that a third party could not read from the ledger or
//! the log afterwards. Killed at any moment, `--resume` goes on and ends with the same invariants.

mod crowd;
mod data;
mod summary;
mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{
    crowd::{Counters, Crowd},
    data::{DemoData, Run},
    summary::Summary,
    view::View,
};
use super::serve::{Process, signals};
use crate::{
    cli::{DemoArgs, Failure, Role},
    config::Layers,
    coupon::verify::{self, Report, answers, facts},
    telemetry,
};

/// Time in which the crowd comes.
const RUSH: Duration = Duration::from_secs(3);
/// Time in which holders use their coupons.
const USE: Duration = Duration::from_secs(3);
/// Longest wait for the outbox, the topologies and the reminders to become quiet.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether all is quiet.
const QUIET_POLL: Duration = Duration::from_millis(500);

/// Runs the demo; the verdict is no when any check fails.
pub async fn run(layers: Layers, args: DemoArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let stop = signals()?;
    let data = DemoData::open(&args.data_dir, args.resume)?;
    let config = data.configure(layers)?;
    telemetry::init_logs(&config.telemetry);
    let mut run = data.run(args.seats, args.users)?;
    let files = data.topologies()?;
    let process = Process::start(config, &[Role::Api, Role::Relay, Role::Streams], files).await?;
    let address = process.address.ok_or_else(|| Failure::Failed("the API did not start".into()))?;
    let base = format!("http://{address}");
    let view = View::start(&run, &process, args.json);
    view.say(&format!("API at {base}, data in {}", data.directory().display()));

    let mut stopped = stop.clone();
    let outcome = tokio::select! {
        outcome = play(&base, &mut run, &data, &process, &view) => outcome,
        // An error means that the sender is gone: nobody can stop us any more.
        Ok(_) = stopped.wait_for(|stop| *stop) => {
            Err(Failure::Failed(format!("stopped; `sluice demo --resume --data-dir {}` goes on", data.directory().display())))
        }
    };
    view.finish();
    let (report, facts, counters) = match outcome {
        Ok(played) => played,
        Err(failure) => {
            process.stop().await;
            return Err(failure);
        }
    };
    let summary = Summary::new(&run, &report, &facts, &counters, started.elapsed());
    let text = format!("{}\n{}", summary.table(), data.how_to_look());
    if args.json {
        eprintln!("{text}")
    } else {
        println!("{text}")
    }
    if args.serve {
        let urls = format!(
            "still serving:\n  {base}/api/coupon/{}\n  {base}/metrics\n  {base}/openapi.json",
            run.coupon
        );
        if args.json {
            eprintln!("{urls}")
        } else {
            println!("{urls}")
        }
        let mut stop = stop;
        drop(stop.wait_for(|stop| *stop).await);
    }
    process.stop().await;
    if args.json {
        println!("{}", summary.json());
    }
    if summary.holds() { Ok(()) } else { Err(Failure::Verdict) }
}

type Played = (Report, facts::Facts, Arc<Counters>);

/// Campaign, rush, use, quiet, judgement.
async fn play(
    base: &str,
    run: &mut Run,
    data: &DemoData,
    process: &Process,
    view: &View,
) -> Result<Played, Failure> {
    let journal = data.answers();
    if run.coupon == 0 {
        let setup =
            Crowd::new(base.into(), 0, run.seed, &journal).map_err(|error| Failure::of("answers", error))?;
        let created = setup
            .call(reqwest::Method::POST, "/api/coupon", &campaign(run))
            .await
            .map_err(Failure::Failed)?;
        let id = created["couponId"]
            .as_i64()
            .ok_or_else(|| Failure::Failed("no couponId in the answer".into()))?;
        setup
            .call(reqwest::Method::POST, &format!("/api/coupon/{id}/open"), &json!({}))
            .await
            .map_err(Failure::Failed)?;
        run.coupon = id;
        data.remember(run)?;
    }
    let crowd = Crowd::new(base.into(), run.coupon, run.seed, &journal)
        .map_err(|error| Failure::of("answers", error))?;
    view.watch(crowd.counters.clone());

    let told = read_answers(&journal)?;
    view.phase("rush");
    crowd.rush(run.users, &told, RUSH).await;
    view.phase("use");
    let holders = holders(&crowd, &read_answers(&journal)?, run.coupon).await?;
    crowd.use_coupons(&holders, USE).await;
    view.phase("quiet");
    let (report, facts) = until_quiet(process, &journal, run).await?;
    Ok((report, facts, crowd.counters.clone()))
}

fn campaign(run: &Run) -> Value {
    json!({
        "couponName": "Demo", "discountType": "PERCENTAGE", "discountValue": 10, "maxDiscountAmount": 5_000,
        "minOrderAmount": 1_000, "maxIssueCount": run.seats, "validFrom": "2020-01-01T00:00:00Z",
        "validTo": "2100-01-01T00:00:00Z", "createdBy": "demo"
    })
}

fn read_answers(journal: &std::path::Path) -> Result<answers::Answers, Failure> {
    answers::read(journal).map_err(|error| Failure::of(format!("reading {}", journal.display()), error))
}

/// The user coupons of everyone who was told yes, read over HTTP.
async fn holders(crowd: &Crowd, told: &answers::Answers, coupon: i64) -> Result<Vec<Value>, Failure> {
    use futures::{StreamExt, TryStreamExt};
    let users = crowd::holders(told, coupon).into_iter().filter(|user| crowd.is_user(*user));
    futures::stream::iter(users)
        .map(|user| async move {
            let page = crowd
                .call(reqwest::Method::GET, &format!("/api/coupon/user/{user}?limit=1"), &Value::Null)
                .await
                .map_err(Failure::Failed)?;
            Ok(page["items"][0].clone())
        })
        .buffer_unordered(64)
        .try_collect()
        .await
}

/// Judges again and again until everything holds, or the time is up: events need a moment to become statistics.
async fn until_quiet(
    process: &Process,
    journal: &std::path::Path,
    run: &Run,
) -> Result<(Report, facts::Facts), Failure> {
    let deadline = Instant::now() + QUIET_MAX;
    loop {
        let told = read_answers(journal)?;
        let Some(service) = &process.service else {
            return Err(Failure::Failed("the API does not run".into()));
        };
        let db = service.ledger().db();
        let facts = facts::gather(db, Some(service.gate()), process.log.clone(), Some(told))
            .await
            .map_err(|error| Failure::of("verifying", error))?;
        let report = verify::judge(&facts);
        let holds = summary::checks(run, &report, &facts).iter().all(|check| check.holds);
        if holds || Instant::now() >= deadline {
            return Ok((report, facts));
        }
        tokio::time::sleep(QUIET_POLL).await;
    }
}
