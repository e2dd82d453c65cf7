//! `sluice audit`, `sluice reconcile`, `sluice outbox`: what an operator asks the ledger's side, printed as a table or
//! as JSON.

use std::sync::Arc;

use super::parts;
use crate::{
    cli::{AuditArgs, AuditCommand, Failure, OutboxCommand, ReconcileArgs},
    config::{Config, GateKind},
    coupon::{
        audit::{self, AuditFilter},
        clock::Clock,
        gate::{Gate, embedded::EmbeddedGate},
        ids::CouponId,
        outbox,
        reconcile::CampaignDrift,
        service::CouponService,
    },
};

/// `sluice audit --as-of T`, `sluice audit replay`.
pub async fn audit(config: Config, args: AuditArgs) -> Result<(), Failure> {
    let ledger = parts::ledger(&config).await?;
    let failed = |error| Failure::of("auditing", error);
    let verdict = match (args.command, args.as_of) {
        (Some(AuditCommand::Replay { json }), _) => {
            let replay = audit::replay(ledger.db()).await.map_err(failed)?;
            if json {
                print_json(&replay)?;
            } else {
                println!("{} history lines replayed, {} rows compared", replay.lines, replay.rows);
                for difference in &replay.differences {
                    println!(
                        "user coupon {}: {} is {} by the history and {} in the table",
                        difference.user_coupon_id, difference.field, difference.history, difference.table
                    );
                }
                match replay.differences_total {
                    0 => println!("the history gives the tables"),
                    total => println!("{total} differences"),
                }
            }
            replay.is_equal()
        }
        (None, Some(at)) => {
            let filter = AuditFilter { coupon: args.coupon, user: args.user };
            let rows = audit::as_of(ledger.db(), at, filter).await.map_err(failed)?;
            if args.json {
                print_json(&rows)?;
            } else {
                println!(
                    "{:>14} {:>10} {:>14} {:>8} {:8} {:27} order",
                    "user coupon", "coupon", "user", "slot", "status", "since"
                );
                for row in &rows {
                    println!(
                        "{:>14} {:>10} {:>14} {:>8} {:8} {:27} {}",
                        row.user_coupon_id,
                        row.coupon_id,
                        row.user_id,
                        row.slot_no,
                        row.status,
                        row.at,
                        row.order_id.as_deref().unwrap_or("-")
                    );
                }
                println!("{} user coupons as of {at}", rows.len());
            }
            true
        }
        (None, None) => {
            return Err(Failure::Usage(
                "audit needs a moment or a replay: sluice audit --as-of 2026-03-01T09:00:00+09:00, or sluice audit replay"
                    .into(),
            ));
        }
    };
    ledger.close().await;
    if verdict { Ok(()) } else { Err(Failure::Verdict) }
}

/// `sluice reconcile [--fix]`.
pub async fn reconcile(config: Config, args: ReconcileArgs) -> Result<(), Failure> {
    let ledger = parts::ledger(&config).await?;
    // An embedded gate is in the memory of the process that serves; a new one here would know nothing.
    let ask_gate = matches!(config.gate.kind, GateKind::Redis { .. });
    let gate: Arc<dyn Gate> = match ask_gate {
        true => parts::gate(&config).await?,
        false => Arc::new(EmbeddedGate::new(config.gate.pending_timeout)),
    };
    let service = CouponService::new(gate, ledger.clone(), Clock::system(), config.coupon.clone());
    let failed = |error| Failure::of("reconciling", error);
    let mut drifts = service.reconcile(ask_gate).await.map_err(failed)?;
    if args.fix {
        for drift in drifts.iter().filter(|drift| drift.gate.as_ref().is_some_and(|gate| !gate.is_zero())) {
            let id = CouponId::try_from(drift.coupon_id).map_err(|error| Failure::of("coupon", error))?;
            let fixed = service.fix_gate(id).await.map_err(|error| Failure::of("fixing", error))?;
            eprintln!(
                "coupon {id}: {}",
                if fixed { "the gate was rebuilt" } else { "the gate could not be told" }
            );
        }
        drifts = service.reconcile(ask_gate).await.map_err(failed)?;
    }
    if args.json {
        print_json(&drifts)?;
    } else {
        print_drifts(&drifts, ask_gate);
    }
    ledger.close().await;
    if drifts.iter().all(CampaignDrift::is_zero) { Ok(()) } else { Err(Failure::Verdict) }
}

fn print_drifts(drifts: &[CampaignDrift], ask_gate: bool) {
    println!(
        "{:>10} {:7} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>7}",
        "coupon",
        "status",
        "rows",
        "members",
        "pending",
        "missing",
        "unknown",
        "misplaced",
        "history",
        "waiting",
        "parked"
    );
    for drift in drifts {
        let gate = drift.gate.clone().unwrap_or_default();
        println!(
            "{:>10} {:7} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>7}{}",
            drift.coupon_id,
            drift.status,
            drift.rows,
            drift.gate.as_ref().map_or_else(|| "-".into(), |gate| gate.members.to_string()),
            gate.pending,
            gate.missing.count,
            gate.unknown.count,
            gate.misplaced.count,
            drift.rows_without_history + drift.history_without_row,
            drift.outbox_waiting,
            drift.outbox_parked,
            if drift.is_zero() { "" } else { "  DRIFT" },
        );
        for (what, users) in
            [("missing", &gate.missing), ("unknown", &gate.unknown), ("misplaced", &gate.misplaced)]
        {
            if users.count > 0 {
                println!("           {what} at the gate: users {:?}", users.first);
            }
        }
        for term in &gate.terms {
            println!("           {term}");
        }
    }
    if !ask_gate {
        println!("the gate was not asked: with gate.kind = \"embedded\" it lives in the process that serves");
    }
}

/// `sluice outbox parked`, `sluice outbox resume ID`.
pub async fn outbox(config: Config, command: OutboxCommand) -> Result<(), Failure> {
    let ledger = parts::ledger(&config).await?;
    let failed = |error| Failure::of("the outbox", error);
    match command {
        OutboxCommand::Parked => {
            let parked = outbox::parked(ledger.db()).await.map_err(failed)?;
            for row in &parked {
                println!(
                    "{}  since {}  {} key {}  event {}  {} waiting behind it\n    {}",
                    row.id, row.parked_at, row.topic, row.key, row.event_id, row.waiting, row.reason
                );
            }
            println!("{} parked", parked.len());
        }
        OutboxCommand::Resume { id } => {
            if !outbox::resume(ledger.db(), id).await.map_err(failed)? {
                return Err(Failure::Failed(format!(
                    "row {id} is not parked; sluice outbox parked lists those that are"
                )));
            }
            println!("row {id} is sent again with the relay's next step, then what waits behind it");
        }
    }
    ledger.close().await;
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::of("the report", error))?;
    println!("{text}");
    Ok(())
}
