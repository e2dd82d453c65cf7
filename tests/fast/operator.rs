//! What an operator asks from the command line, by the real binary on a real ledger: exit codes and words.

use std::process::Output;

use crate::{
    binary,
    ledger::{
        ledger_contract::{self, Fixture, context, order},
        sqlite_at,
    },
};

fn sluice(f: &Fixture, directory: &std::path::Path, args: &[&str]) -> Output {
    assert!(!f.ledger.db().is_postgres());
    binary::sluice(args)
        .env("SLUICE__DATA_DIR", directory)
        .env("SLUICE__LEDGER__URL", format!("sqlite://{}/ledger.db", directory.display()))
        .output()
        .expect("the binary starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_reconcile_and_outbox_answer_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let f = sqlite_at(directory.path()).await;
    let coupon = f.open(5).await;
    let row = f.issue(coupon, 1).await.done().unwrap().user_coupon_id;
    f.advance(1_000_000);
    f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await.done().unwrap();
    let check = |args: &[&str], code: i32, parts: &[&str]| {
        let output = sluice(&f, directory.path(), args);
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    };
    let begin = sluice::coupon::clock::UtcMicros::clamped(ledger_contract::START).to_string();
    check(&["audit", "replay"], 0, &["2 history lines", "1 rows", "the history gives the tables"]);
    check(&["audit", "replay", "--json"], 0, &["\"differencesTotal\":0"]);
    check(&["audit", "--as-of", &begin], 0, &["ACTIVE", "1 user coupons"]);
    check(
        &["audit", "--as-of", "2099-01-01T00:00:00Z", "--user", "1", "--json"],
        0,
        &["\"status\":\"USED\"", "o-1"],
    );
    check(&["audit", "--as-of", "2099-01-01T00:00:00Z", "--user", "2"], 0, &["0 user coupons"]);
    check(&["audit"], 2, &["--as-of", "replay"]);
    check(&["audit", "--as-of", "yesterday"], 2, &["RFC 3339"]);
    check(&["audit", "--as-of", &begin, "--coupon", "0"], 2, &["positive whole number"]);
    check(&["reconcile"], 0, &["OPEN", "the gate was not asked"]);
    check(&["outbox", "parked"], 0, &["0 parked"]);
    check(&["outbox", "resume", "1"], 1, &["row 1 is not parked"]);

    let mut tx = f.ledger.db().begin().await.unwrap();
    tx.execute("update user_coupons set order_id = 'o-9'", &[]).await.unwrap();
    tx.execute("update outbox set parked_at = 1, park_reason = 'too large' where id = 1", &[]).await.unwrap();
    tx.commit().await.unwrap();
    check(&["audit", "replay"], 1, &["order_id is o-1 by the history and o-9 in the table", "1 differences"]);
    check(&["reconcile"], 1, &["DRIFT"]);
    check(&["outbox", "parked"], 0, &["too large", "1 waiting behind it", "1 parked"]);
    check(&["outbox", "resume", "1"], 0, &["row 1 is sent again"]);
    check(&["reconcile"], 0, &[]);
}
