//! Windowed aggregations of every window type, both emit strategies, and suppress.

use std::time::Duration;

use sluice::streams::kstream::{
    BufferConfig, EmitStrategy, KGroupedStream, SessionWindowedKStream, SessionWindows, SlidingWindows,
    Suppressed, TimeWindowedKStream, TimeWindows, UnlimitedWindows, Windows,
};

use super::{
    Case, Inputs, check, check_cached,
    compare::Agree::{Everything, Last},
};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn hash(_: Option<&String>, n: Option<&i64>, hash: Option<&i64>) -> Option<i64> {
    Some((hash? * 31 + n.copied().unwrap_or(5)) % 1_000_003)
}

fn grouped(i: &Inputs) -> KGroupedStream<String, i64> {
    i.stream().group_by_key()
}

fn tumbling() -> TimeWindows {
    TimeWindows::of_size_and_grace(ms(600), ms(100))
}

fn windowed(i: &Inputs, windows: impl Into<Windows>) -> TimeWindowedKStream<String, i64> {
    grouped(i).windowed_by(windows)
}

fn on_close(i: &Inputs, windows: impl Into<Windows>) -> TimeWindowedKStream<String, i64> {
    windowed(i, windows).emit_strategy(EmitStrategy::OnWindowClose)
}

fn sessions(i: &Inputs) -> SessionWindowedKStream<String, i64> {
    grouped(i).windowed_by_session(SessionWindows::of_inactivity_gap_and_grace(ms(300), ms(100)))
}

const CASES: &[Case] = &[
    Case {
        name: "tumbling",
        agree: Everything,
        build: |i, out| windowed(i, tumbling()).count().to_stream().to(out),
    },
    Case {
        name: "hopping",
        agree: Everything,
        build: |i, out| {
            windowed(i, tumbling().advance_by(ms(250))).aggregate(|| Some(1_i64), hash).to_stream().to(out);
        },
    },
    Case {
        name: "sliding",
        agree: Everything,
        build: |i, out| {
            let windows = SlidingWindows::of_time_difference_and_grace(ms(400), ms(100));
            windowed(i, windows).reduce(|a, b| Some((a? * 31 + b?) % 1_009)).to_stream().to(out);
        },
    },
    Case {
        name: "unlimited",
        agree: Everything,
        build: |i, out| windowed(i, UnlimitedWindows::of().start_on(500)).count().to_stream().to(out),
    },
    Case {
        name: "session_count",
        agree: Everything,
        build: |i, out| sessions(i).count().to_stream().to(out),
    },
    Case {
        name: "session_reduce",
        agree: Everything,
        build: |i, out| sessions(i).reduce(|a, b| Some((a? * 31 + b?) % 1_009)).to_stream().to(out),
    },
    Case {
        name: "session_aggregate",
        agree: Everything,
        build: |i, out| {
            sessions(i).aggregate(|| Some(1_i64), hash, |_, a, b| Some(a? + b?)).to_stream().to(out);
        },
    },
    Case {
        name: "tumbling_on_close",
        agree: Everything,
        build: |i, out| on_close(i, tumbling()).count().to_stream().to(out),
    },
    Case {
        name: "hopping_on_close",
        agree: Everything,
        build: |i, out| on_close(i, tumbling().advance_by(ms(250))).count().to_stream().to(out),
    },
    Case {
        name: "sliding_on_close",
        agree: Everything,
        build: |i, out| {
            let windows = SlidingWindows::of_time_difference_and_grace(ms(400), ms(100));
            on_close(i, windows).count().to_stream().to(out);
        },
    },
    Case {
        name: "session_on_close",
        agree: Everything,
        build: |i, out| sessions(i).emit_strategy(EmitStrategy::OnWindowClose).count().to_stream().to(out),
    },
    Case {
        name: "windowed_cogroup",
        agree: Everything,
        build: |i, out| {
            let cogrouped = grouped(i).cogroup(hash).cogroup(&i.other().group_by_key(), hash);
            cogrouped.windowed_by(tumbling()).aggregate(|| Some(1)).to_stream().to(out);
        },
    },
    Case {
        name: "session_cogroup",
        agree: Everything,
        build: |i, out| {
            let cogrouped = grouped(i).cogroup(hash).cogroup(&i.other().group_by_key(), hash);
            let windows = SessionWindows::of_inactivity_gap_and_grace(ms(300), ms(100));
            cogrouped
                .windowed_by_session(windows)
                .aggregate(|| Some(1), |_, a, b| Some(a? + b?))
                .to_stream()
                .to(out);
        },
    },
    Case {
        name: "suppress_until_windows_close",
        agree: Everything,
        build: |i, out| {
            let final_only = Suppressed::until_window_closes(BufferConfig::unbounded());
            windowed(i, tumbling()).count().suppress_windows(final_only).to_stream().to(out);
        },
    },
    Case {
        name: "suppress_sessions_until_they_close",
        agree: Everything,
        build: |i, out| {
            let final_only = Suppressed::until_window_closes(BufferConfig::unbounded());
            sessions(i).count().suppress_windows(final_only).to_stream().to(out);
        },
    },
    Case {
        name: "windowed_behind_a_hop",
        agree: Last,
        build: |i, out| {
            // Grace beyond all disorder: how upstream tasks interleave must not decide what is late.
            let windows = TimeWindows::of_size_and_grace(ms(600), ms(60_000));
            let by_value = i.stream().group_by(|_, n| n.map(|n| format!("v{}", n % 5)));
            by_value.windowed_by(windows).count().to_stream().to(out);
        },
    },
];

#[test]
fn windowed_aggregations() {
    check(CASES);
}

#[test]
fn windowed_aggregations_with_caches() {
    // Once caches come into play, when an update is forwarded decides what has been seen of a session that merges, and what
    // suppress holds; the results that stay are the same.
    check_cached(CASES);
}
