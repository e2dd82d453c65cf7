//! `sluice verify`: the verifier over what the configuration names.

use crate::{
    cli::{Failure, VerifyArgs},
    config::{Config, GateKind},
    coupon::verify::{self, Report, answers, facts},
};

/// Most findings printed per invariant.
const FINDINGS_SHOWN: usize = 20;

/// Gathers, judges, prints; the verdict is no when anything is broken.
pub async fn run(config: Config, args: VerifyArgs) -> Result<(), Failure> {
    let told = match &args.answers {
        Some(path) => Some(
            answers::read(path).map_err(|error| Failure::of(format!("reading {}", path.display()), error))?,
        ),
        None => None,
    };
    let ledger = super::parts::ledger(&config).await?;
    // An embedded gate is in another process's memory; a new one here would know nothing.
    let gate = match config.gate.kind {
        GateKind::Embedded => None,
        GateKind::Redis { .. } => Some(super::parts::gate(&config).await?),
    };
    let log = super::parts::log(&config)?;
    let facts = facts::gather(ledger.db(), gate.as_ref(), Some(log), told)
        .await
        .map_err(|error| Failure::of("verifying", error))?;
    ledger.close().await;
    let report = verify::judge(&facts);
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|error| Failure::of("the report", error))?);
    } else {
        print(&report);
    }
    if report.holds() { Ok(()) } else { Err(Failure::Verdict) }
}

fn print(report: &Report) {
    for check in &report.checks {
        let verdict = match (check.holds(), check.compared) {
            (false, _) => "BROKEN".to_owned(),
            (true, Some(compared)) => format!("holds    {compared} compared"),
            (true, None) => "not checked: nothing to compare with".to_owned(),
        };
        println!("{:?}  {:58} {verdict}", check.invariant, check.promise);
        for finding in check.findings.iter().take(FINDINGS_SHOWN) {
            println!("      {}: {}", finding.subject, finding.detail);
        }
        if check.findings.len() > FINDINGS_SHOWN {
            println!("      and {} more; --json lists all", check.findings.len() - FINDINGS_SHOWN);
        }
    }
}
