//! Operators of tables.

use std::time::Duration;

use sluice::streams::{
    error::Result,
    kstream::{BufferConfig, Materialized, Named, Suppressed, ValueTransformer},
    processor::ProcessingContext,
};

use super::{Case, check, check_cached, compare::Agree::Everything};

fn even(n: Option<&i64>) -> bool {
    n.is_some_and(|n| n % 2 == 0)
}

/// Adds the row's time.
struct Timed;

impl ValueTransformer<String, i64, i64> for Timed {
    fn transform(
        &mut self,
        context: &ProcessingContext<'_>,
        _: Option<&String>,
        value: Option<&i64>,
    ) -> Result<Option<i64>> {
        Ok(value.map(|n| n * 1_000_000 + context.record_metadata().timestamp))
    }
}

const CASES: &[Case] = &[
    Case { name: "table", agree: Everything, build: |i, out| i.table().to_stream().to(out) },
    Case { name: "to_table", agree: Everything, build: |i, out| i.stream().to_table().to_stream().to(out) },
    Case {
        name: "filter_table",
        agree: Everything,
        build: |i, out| i.table().filter(|_, n| even(n)).to_stream().to(out),
    },
    Case {
        name: "filter_not_table",
        agree: Everything,
        build: |i, out| {
            let stored = Some(Materialized::named("odd"));
            i.table().filter_not_with(|_, n| Ok(even(n)), Named::default(), stored).to_stream().to(out);
        },
    },
    Case {
        name: "map_values_table",
        agree: Everything,
        build: |i, out| i.table().map_values(|_, n| n.map(|n| n + 1)).to_stream().to(out),
    },
    Case {
        name: "map_values_stored",
        agree: Everything,
        build: |i, out| {
            let stored = Some(Materialized::named("mapped"));
            let mapped = i.table().map_values_with(|_, n| Ok(n.map(|n| n + 1)), Named::default(), stored);
            mapped.filter(|_, n| even(n)).to_stream().to(out);
        },
    },
    Case {
        name: "transform_values",
        agree: Everything,
        build: |i, out| {
            i.table().transform_values(|| Timed, Named::default(), None, &[]).to_stream().to(out);
        },
    },
    Case {
        name: "suppress_until_time_limit",
        agree: Everything,
        build: |i, out| {
            let later = Suppressed::until_time_limit(Duration::from_millis(300), BufferConfig::unbounded());
            i.table().suppress(later).to_stream().to(out);
        },
    },
    Case {
        name: "suppress_when_full",
        agree: Everything,
        build: |i, out| {
            let few = BufferConfig::max_records(2).emit_early_when_full();
            i.table()
                .suppress(Suppressed::until_time_limit(Duration::from_secs(3_600), few))
                .to_stream()
                .to(out);
        },
    },
];

#[test]
fn table_operators() {
    check(CASES);
}

#[test]
fn table_operators_with_caches() {
    // What suppress holds back at the end depends on when the cache let updates go.
    let count = CASES.iter().filter(|case| !case.name.starts_with("suppress")).count();
    check_cached(&CASES[..count]);
}
