//! Steps on windows: windowed groups, emission, cogroups, suppress.

use sluice::streams::{
    error::ProcessingError,
    kstream::{
        BufferConfig, CogroupedKStream, EmitStrategy, KGroupedStream, SessionWindowedCogroupedKStream,
        SessionWindowedKStream, SessionWindows, SlidingWindows, Suppressed, TimeWindowedCogroupedKStream,
        TimeWindowedKStream, TimeWindows, UnlimitedWindows, Windows,
    },
};

use crate::{
    case::Step,
    each_of,
    functions::{self, AggregateFn, CaseValue, Ty},
    interpreter::{Interpreter, KeyKind, Node, Of, Tables, W, materialized, millis, named},
    map_of,
    tables::{FromTable, aggregator, initializer, reducer},
};

type Cogrouped = Of<CogroupedKStream<String, String>, CogroupedKStream<String, i64>>;

/// What these steps make besides tables.
pub enum WindowNode {
    Time(Of<TimeWindowedKStream<String, String>, TimeWindowedKStream<String, i64>>, i64),
    Session(Of<SessionWindowedKStream<String, String>, SessionWindowedKStream<String, i64>>),
    Cogrouped(Cogrouped),
    TimeCogrouped(
        Of<TimeWindowedCogroupedKStream<String, String>, TimeWindowedCogroupedKStream<String, i64>>,
        i64,
    ),
    SessionCogrouped(
        Of<SessionWindowedCogroupedKStream<String, String>, SessionWindowedCogroupedKStream<String, i64>>,
    ),
}

/// A window specification of a case.
enum Spec {
    /// With the size its keys are written with.
    Time(Windows, i64),
    Session(SessionWindows),
}

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let node = match step.op() {
        "windowed_by" => windowed_by(interpreter.from(step)?, step)?,
        "emit" => emit(interpreter.from(step)?, step)?,
        "cogroup" => match interpreter.from(step)? {
            Node::Grouped(group) => {
                Node::Window(WindowNode::Cogrouped(each_of!(group, g => cogroup(g, step)?)))
            }
            _ => return Err("cogroup needs a grouped stream".into()),
        },
        "cogroup_add" => cogroup_add(interpreter, step)?,
        "suppress" => suppress(interpreter.from(step)?, step)?,
        "count" | "reduce" | "aggregate" => aggregate(interpreter.from(step)?, step)?,
        other => return Err(format!("unknown step {other}")),
    };
    interpreter.keep(step, node)
}

fn spec(step: Step<'_>) -> Result<Spec, String> {
    let window = step.object("window")?;
    let ms = |field: &str| window.number(field).map(millis);
    let grace = millis(window.opt_number("grace_ms").unwrap_or(0));
    Ok(match window.text("type")? {
        "tumbling" => Spec::Time(
            TimeWindows::of_size_and_grace(ms("size_ms")?, grace).into(),
            window.number("size_ms")?,
        ),
        "hopping" => Spec::Time(
            TimeWindows::of_size_and_grace(ms("size_ms")?, grace).advance_by(ms("advance_ms")?).into(),
            window.number("size_ms")?,
        ),
        "sliding" => Spec::Time(
            SlidingWindows::of_time_difference_and_grace(ms("difference_ms")?, grace).into(),
            window.number("difference_ms")?,
        ),
        "unlimited" => Spec::Time(
            UnlimitedWindows::of().start_on(window.opt_number("start_ms").unwrap_or(0)).into(),
            i64::MAX,
        ),
        "session" => Spec::Session(SessionWindows::of_inactivity_gap_and_grace(ms("gap_ms")?, grace)),
        other => return Err(format!("unknown window type {other}")),
    })
}

fn windowed_by(from: &Node, step: Step<'_>) -> Result<Node, String> {
    Ok(Node::Window(match (from, spec(step)?) {
        (Node::Grouped(group), Spec::Time(windows, size)) => {
            WindowNode::Time(map_of!(group, g => g.windowed_by(windows)), size)
        }
        (Node::Grouped(group), Spec::Session(windows)) => {
            WindowNode::Session(map_of!(group, g => g.windowed_by_session(windows)))
        }
        (Node::Window(WindowNode::Cogrouped(group)), Spec::Time(windows, size)) => {
            WindowNode::TimeCogrouped(map_of!(group, g => g.windowed_by(windows)), size)
        }
        (Node::Window(WindowNode::Cogrouped(group)), Spec::Session(windows)) => {
            WindowNode::SessionCogrouped(map_of!(group, g => g.windowed_by_session(windows)))
        }
        _ => return Err("windowed_by needs a grouped stream".into()),
    }))
}

fn emit(from: &Node, step: Step<'_>) -> Result<Node, String> {
    let strategy = match step.text("strategy")? {
        "on_window_update" => EmitStrategy::OnWindowUpdate,
        "on_window_close" => EmitStrategy::OnWindowClose,
        other => return Err(format!("unknown emit strategy {other}")),
    };
    Ok(Node::Window(match from {
        Node::Window(WindowNode::Time(group, size)) => {
            WindowNode::Time(map_of!(group, g => g.clone().emit_strategy(strategy)), *size)
        }
        Node::Window(WindowNode::Session(group)) => {
            WindowNode::Session(map_of!(group, g => g.clone().emit_strategy(strategy)))
        }
        _ => return Err("emit needs a windowed group".into()),
    }))
}

fn cogroup<V: CaseValue>(group: &KGroupedStream<String, V>, step: Step<'_>) -> Result<Cogrouped, String> {
    let (out, f) = functions::aggregator(step.text("fn")?)?;
    Ok(match out {
        Ty::Text => Of::Text(group.try_cogroup(aggregator(f))),
        Ty::Integer => Of::Integer(group.try_cogroup(aggregator(f))),
    })
}

fn cogroup_add(interpreter: &Interpreter, step: Step<'_>) -> Result<Node, String> {
    let (_, f) = functions::aggregator(step.text("fn")?)?;
    let (Node::Window(WindowNode::Cogrouped(cogrouped)), Node::Grouped(with)) =
        (interpreter.from(step)?, interpreter.node(step.text("with")?)?)
    else {
        return Err("cogroup_add needs a cogroup and a grouped stream".into());
    };
    Ok(Node::Window(WindowNode::Cogrouped(
        map_of!(cogrouped, c => each_of!(with, g => c.clone().try_cogroup(g, aggregator(f)))),
    )))
}

fn suppress(from: &Node, step: Step<'_>) -> Result<Node, String> {
    let closes = step.text("until")? == "window_closes";
    let mut buffer = BufferConfig::unbounded();
    if let Ok(limits) = step.object("buffer") {
        if let Some(records) = limits.opt_number("max_records") {
            buffer = buffer.with_max_records(records as u64);
        }
        if let Some(bytes) = limits.opt_number("max_bytes") {
            buffer = buffer.with_max_bytes(bytes as u64);
        }
        buffer = match limits.opt_text("when_full") {
            Some("emit_early") => buffer.emit_early_when_full(),
            _ => buffer.shut_down_when_full(),
        };
    }
    let suppressed = match closes {
        true => Suppressed::until_window_closes(buffer),
        false => Suppressed::until_time_limit(millis(step.number("limit_ms")?), buffer),
    }
    .with_name(named(step));
    Ok(match from {
        Node::Table(table) => Node::Table(map_of!(table, t => t.suppress(suppressed.clone()))),
        Node::WindowedTable(table, key) => {
            Node::WindowedTable(map_of!(table, t => t.suppress_windows(suppressed.clone())), *key)
        }
        _ => return Err("suppress needs a table".into()),
    })
}

/// A merger as the DSL wants it.
fn merger<A: CaseValue>(
    f: AggregateFn,
) -> impl Fn(Option<&String>, Option<&A>, Option<&A>) -> Result<Option<A>, ProcessingError> + Send + Sync + 'static
{
    let f = reducer(f);
    move |_, a, b| f(a, b)
}

fn aggregate(from: &Node, step: Step<'_>) -> Result<Node, String> {
    Ok(match from {
        Node::Window(WindowNode::Time(group, size)) => Node::WindowedTable(
            each_of!(group, g => aggregate_time(g, group.ty(), step)?),
            KeyKind::Time(*size),
        ),
        Node::Window(WindowNode::Session(group)) => Node::WindowedTable(
            each_of!(group, g => aggregate_session(g, group.ty(), step)?),
            KeyKind::Session,
        ),
        Node::Window(WindowNode::Cogrouped(group)) => Node::Table(map_of!(group, g => {
            g.aggregate_with(initializer(step.text("init")?)?, named(step), materialized(step)?)
        })),
        Node::Window(WindowNode::TimeCogrouped(group, size)) => Node::WindowedTable(
            map_of!(group, g => {
                g.aggregate_with(initializer(step.text("init")?)?, named(step), materialized(step)?)
            }),
            KeyKind::Time(*size),
        ),
        Node::Window(WindowNode::SessionCogrouped(group)) => Node::WindowedTable(
            map_of!(group, g => {
                let merge = merger(functions::merger(step.text("merger")?)?);
                g.aggregate_with(initializer(step.text("init")?)?, merge, named(step), materialized(step)?)
            }),
            KeyKind::Session,
        ),
        _ => return Err(format!("{} needs a windowed group", step.op())),
    })
}

fn aggregate_time<V: CaseValue>(
    group: &TimeWindowedKStream<String, V>,
    ty: Ty,
    step: Step<'_>,
) -> Result<Tables<W>, String>
where
    Tables<W>: FromTable<W, V>,
{
    match step.op() {
        "count" => Ok(Of::Integer(group.count_with(named(step), materialized(step)?))),
        "reduce" => {
            let f = functions::reducer(step.text("fn")?, ty)?;
            Ok(Tables::from_table(group.reduce_with(reducer(f), named(step), materialized(step)?)))
        }
        _ => {
            let (out, f) = functions::aggregator(step.text("fn")?)?;
            let init = step.text("init")?;
            Ok(match out {
                Ty::Text => Of::Text(group.aggregate_with(
                    initializer(init)?,
                    aggregator(f),
                    named(step),
                    materialized(step)?,
                )),
                Ty::Integer => Of::Integer(group.aggregate_with(
                    initializer(init)?,
                    aggregator(f),
                    named(step),
                    materialized(step)?,
                )),
            })
        }
    }
}

fn aggregate_session<V: CaseValue>(
    group: &SessionWindowedKStream<String, V>,
    ty: Ty,
    step: Step<'_>,
) -> Result<Tables<W>, String>
where
    Tables<W>: FromTable<W, V>,
{
    match step.op() {
        "count" => Ok(Of::Integer(group.count_with(named(step), materialized(step)?))),
        "reduce" => {
            let f = functions::reducer(step.text("fn")?, ty)?;
            Ok(Tables::from_table(group.reduce_with(reducer(f), named(step), materialized(step)?)))
        }
        _ => {
            let (out, f) = functions::aggregator(step.text("fn")?)?;
            let init = step.text("init")?;
            let merge = functions::merger(step.text("merger")?)?;
            Ok(match out {
                Ty::Text => Of::Text(group.aggregate_with(
                    initializer(init)?,
                    aggregator(f),
                    merger(merge),
                    named(step),
                    materialized(step)?,
                )),
                Ty::Integer => Of::Integer(group.aggregate_with(
                    initializer(init)?,
                    aggregator(f),
                    merger(merge),
                    named(step),
                    materialized(step)?,
                )),
            })
        }
    }
}
