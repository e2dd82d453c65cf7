//! Joins of every kind.

use std::time::Duration;

use sluice::streams::kstream::{
    Consumed, JoinWindows, Joined, Materialized, Named, StreamJoined, TableJoined,
};

use super::{
    Case, check, check_cached,
    compare::Agree::{Everything, Last, Results},
};

fn pair(a: Option<&i64>, b: Option<&i64>) -> Option<i64> {
    Some(a.unwrap_or(&-1) * 1_000 + b.unwrap_or(&-1))
}

fn windows() -> JoinWindows {
    JoinWindows::of_time_difference_and_grace(Duration::from_millis(150), Duration::from_millis(100))
}

fn group(n: Option<&i64>) -> Option<String> {
    n.map(|n| format!("k{}", n % 13))
}

const CASES: &[Case] = &[
    Case {
        name: "join",
        agree: Everything,
        build: |i, out| i.stream().join(&i.other(), pair, windows()).to(out),
    },
    Case {
        name: "join_before_after",
        agree: Everything,
        build: |i, out| {
            let windows = windows().before_ms(30).after_ms(200);
            let joined = StreamJoined::named("asymmetric").with_store_name("asymmetric");
            i.stream().join_with(&i.other(), |_, a, b| Ok(pair(a, b)), windows, joined).to(out);
        },
    },
    Case {
        name: "left_join",
        agree: Everything,
        build: |i, out| i.stream().left_join(&i.other(), pair, windows()).to(out),
    },
    Case {
        name: "outer_join",
        agree: Everything,
        build: |i, out| i.stream().outer_join(&i.other(), pair, windows()).to(out),
    },
    Case {
        name: "self_join",
        agree: Everything,
        build: |i, out| {
            let stream = i.stream();
            stream.join(&stream, pair, windows()).to(out);
        },
    },
    Case {
        name: "join_behind_a_hop",
        agree: Results,
        build: |i, out| {
            // A window over everything: how upstream tasks interleave must not decide what meets.
            let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_secs(3_600));
            let stream = i.stream().filter(|_, n| n.is_some_and(|n| n % 9 == 0));
            let keyed = stream.map(|_, n| (group(n), n.copied()));
            let other = i.other().filter(|_, n| n.is_some_and(|n| n % 9 == 0));
            // The time of a pair is the later one's, whichever came last.
            keyed.join(&other.map(|_, n| (group(n), n.copied())), pair, windows).to(out);
        },
    },
    Case {
        name: "join_table",
        agree: Everything,
        build: |i, out| i.stream().join_table(i.table(), pair).to(out),
    },
    Case {
        name: "left_join_table",
        agree: Everything,
        build: |i, out| i.stream().left_join_table(i.table(), pair).to(out),
    },
    Case {
        name: "join_versioned_table_with_grace",
        agree: Everything,
        build: |i, out| {
            let versioned = Materialized::named("versions").versioned(Duration::from_secs(3_600));
            // A topic may be read as a table once only: this one goes through a stream.
            let table = i.other().to_table_with(Named::default(), versioned);
            let joined = Joined::named("patient").with_grace(Duration::from_millis(120));
            // As in Kafka Streams, a left join with grace fails at a null key.
            let stream = i.stream().filter(|key, _| key.is_some());
            stream.left_join_table_with(&table, |_, a, b| Ok(pair(a, b)), joined).to(out);
        },
    },
    Case {
        name: "join_global",
        agree: Everything,
        build: |i, out| i.stream().join_global(i.global(), |_, n| group(n), pair, Named::default()).to(out),
    },
    Case {
        name: "left_join_global",
        agree: Everything,
        build: |i, out| {
            i.stream().left_join_global(i.global(), |_, n| group(n), pair, Named::default()).to(out)
        },
    },
    Case {
        name: "table_join",
        agree: Everything,
        build: |i, out| i.table().join(i.rows(), pair).to_stream().to(out),
    },
    Case {
        name: "table_left_join",
        agree: Everything,
        build: |i, out| i.table().left_join(i.rows(), pair).to_stream().to(out),
    },
    Case {
        name: "table_outer_join",
        agree: Everything,
        build: |i, out| {
            let stored = Some(Materialized::named("outer-joined"));
            let joined =
                i.table().outer_join_with(i.rows(), |_, a, b| Ok(pair(a, b)), Named::default(), stored);
            joined.to_stream().to(out);
        },
    },
    Case {
        name: "join_on",
        agree: Last,
        build: |i, out| i.table().join_on(i.rows(), |_, n| group(n), pair).to_stream().to(out),
    },
    Case {
        name: "left_join_on",
        agree: Last,
        build: |i, out| {
            let joined = TableJoined::named("by-row");
            let stored = Materialized::named("joined-by-row");
            let table = i.table().left_join_on_with(
                i.rows(),
                |_, n| Ok(group(n)),
                |_, a, b| Ok(pair(a, b)),
                joined,
                stored,
            );
            table.to_stream().to(out);
        },
    },
];

#[test]
fn joins() {
    check(CASES);
}

/// Results of stream joins do not depend on caches, and a reader of the last value of a key sees the last pair.
#[test]
fn joins_with_caches() {
    check_cached(CASES);
}

/// A source table whose topic is its changelog is restored from there.
#[test]
fn a_table_is_restored_from_its_own_topic() {
    check_cached(&[Case {
        name: "join_reused_topic",
        agree: Everything,
        build: |i, out| {
            let table = i.builder.table_with("table", Consumed::default(), Materialized::named("reused"));
            i.stream().left_join_table(&table, pair).to(out);
        },
    }]);
}
