//! What an expression of a topology file costs on a row: `cargo bench --bench expressions`. Times are per evaluation.
//!
//! The conditions are those that files have: two terms over slots, with NULLs that may be there. The goal of the format is 100 ns for two
//! terms.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sluice::streams::{
    file::{Datum, Row},
    internals::{Column, ColumnType, DataType, Expression, Predicate, Scope, check, check_boolean},
};

fn columns() -> Vec<Column> {
    vec![
        Column::new("kind", ColumnType::required(DataType::Text)),
        Column::new("amount", ColumnType::nullable(DataType::Int)),
        Column::new("price", ColumnType::required(DataType::Float)),
        Column::new("at", ColumnType::required(DataType::Timestamp)),
    ]
}

fn rows() -> Vec<Row> {
    (0..64_i64)
        .map(|n| {
            let amount = if n % 7 == 0 { Datum::Null } else { Datum::Int(n * 10) };
            let kind = Datum::text(if n % 3 == 0 { "issued" } else { "used" });
            [kind, amount, Datum::float(n as f64 / 3.0), Datum::Timestamp(1_772_323_200_000 + n)]
                .into_iter()
                .collect()
        })
        .collect()
}

fn expressions(c: &mut Criterion) {
    let (scope, rows) = (Scope::of(None, &columns()), rows());
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % rows.len();
        &rows[at]
    };
    for text in [
        "amount > 100",
        "kind = 'used' and amount > 100",
        "amount > 100 and price < 20.5",
        "amount is not null or kind like 'us%'",
    ] {
        let predicate = Predicate::new(check_boolean(text, &scope).unwrap());
        c.bench_function(&format!("where {text}"), |b| {
            b.iter(|| predicate.holds(black_box(next()), &[]).unwrap());
        });
    }
    for text in ["amount * 2 + 1", "kind || ':' || amount", "at + interval '24h'"] {
        let expression = Expression::new(check(text, &scope).unwrap());
        c.bench_function(&format!("select {text}"), |b| {
            b.iter(|| expression.evaluate(black_box(next()), &[]).unwrap());
        });
    }
}

criterion_group!(benches, expressions);
criterion_main!(benches);
