//! Join steps.

use sluice::streams::{
    error::ProcessingError,
    kstream::{GlobalKTable, JoinWindows, Joined, KStream, KTable, StreamJoined, TableJoined},
};

use crate::{
    case::Step,
    each_of,
    functions::{self, CaseKey, CaseValue, JoinFn},
    interpreter::{Interpreter, Node, Of, backend, materialized, millis, named},
};

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let node = match step.op() {
        "stream_table_join" => {
            let (left, right) = (interpreter.stream(step, "left")?, interpreter.table(step, "right")?);
            Node::Stream(Of::Text(each_of!(left, l => each_of!(right, r => stream_table(l, r, step)?))))
        }
        "stream_global_join" => {
            let left = interpreter.stream(step, "left")?;
            let Node::Global(right) = interpreter.node(step.text("right")?)? else {
                return Err("right of stream_global_join is no global table".into());
            };
            Node::Stream(Of::Text(each_of!(left, l => each_of!(right, r => stream_global(l, r, step)?))))
        }
        "stream_stream_join" => {
            let (left, right) = (interpreter.stream(step, "left")?, interpreter.stream(step, "right")?);
            Node::Stream(Of::Text(each_of!(left, l => each_of!(right, r => streams(l, r, step)?))))
        }
        "table_table_join" => {
            match (interpreter.node(step.text("left")?)?, interpreter.node(step.text("right")?)?) {
                (Node::Table(left), Node::Table(right)) => {
                    Node::Table(Of::Text(each_of!(left, l => each_of!(right, r => tables(l, r, step)?))))
                }
                (Node::WindowedTable(left, key), Node::WindowedTable(right, _)) => Node::WindowedTable(
                    Of::Text(each_of!(left, l => each_of!(right, r => tables(l, r, step)?))),
                    *key,
                ),
                _ => return Err("table_table_join needs two tables of one key type".into()),
            }
        }
        "fk_join" => {
            let (left, right) = (interpreter.table(step, "left")?, interpreter.table(step, "right")?);
            Node::Table(Of::Text(each_of!(left, l => each_of!(right, r => foreign_key(l, r, step)?))))
        }
        other => return Err(format!("unknown step {other}")),
    };
    interpreter.keep(step, node)
}

/// A joiner as the DSL wants it.
fn joiner<K: CaseKey, L: CaseValue, R: CaseValue>(
    f: JoinFn,
) -> impl Fn(Option<&K>, Option<&L>, Option<&R>) -> Result<Option<String>, ProcessingError> + Send + Sync + 'static
{
    move |key, left, right| {
        let (left, right) = (left.map(CaseValue::to_value), right.map(CaseValue::to_value));
        Ok(f(key.map(CaseKey::key), left.as_ref(), right.as_ref()))
    }
}

fn stream_table<L: CaseValue, R: CaseValue>(
    left: &KStream<String, L>,
    right: &KTable<String, R>,
    step: Step<'_>,
) -> Result<KStream<String, String>, String> {
    let f = joiner(functions::joiner(step.text("fn")?)?);
    let mut joined = Joined::named(named(step));
    if let Some(grace) = step.opt_number("grace_ms") {
        joined = joined.with_grace(millis(grace));
    }
    match step.text("kind")? {
        "inner" => Ok(left.join_table_with(right, f, joined)),
        "left" => Ok(left.left_join_table_with(right, f, joined)),
        other => Err(format!("unknown kind of stream-table join {other}")),
    }
}

fn stream_global<L: CaseValue, R: CaseValue>(
    left: &KStream<String, L>,
    right: &GlobalKTable<String, R>,
    step: Step<'_>,
) -> Result<KStream<String, String>, String> {
    let f = joiner(functions::joiner(step.text("fn")?)?);
    let select = functions::key_selector(step.text("key_fn")?)?;
    let select = move |key: Option<&String>, value: Option<&L>| {
        Ok(select(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref()))
    };
    match step.text("kind")? {
        "inner" => Ok(left.try_join_global(right, select, f, named(step))),
        "left" => Ok(left.try_left_join_global(right, select, f, named(step))),
        other => Err(format!("unknown kind of stream-global join {other}")),
    }
}

fn tables<K: CaseKey, L: CaseValue, R: CaseValue>(
    left: &KTable<K, L>,
    right: &KTable<K, R>,
    step: Step<'_>,
) -> Result<KTable<K, String>, String> {
    let f = joiner(functions::joiner(step.text("fn")?)?);
    let options = step.opt_text("store").is_some().then(|| materialized(step)).transpose()?;
    match step.text("kind")? {
        "inner" => Ok(left.join_with(right, f, named(step), options)),
        "left" => Ok(left.left_join_with(right, f, named(step), options)),
        "outer" => Ok(left.outer_join_with(right, f, named(step), options)),
        other => Err(format!("unknown kind of table-table join {other}")),
    }
}

fn streams<L: CaseValue, R: CaseValue>(
    left: &KStream<String, L>,
    right: &KStream<String, R>,
    step: Step<'_>,
) -> Result<KStream<String, String>, String> {
    let f = joiner(functions::joiner(step.text("fn")?)?);
    let window = step.object("window")?;
    let grace = millis(window.opt_number("grace_ms").unwrap_or(0));
    let windows = JoinWindows::of_time_difference_and_grace(std::time::Duration::ZERO, grace)
        .before_ms(window.number("before_ms")?)
        .after_ms(window.number("after_ms")?);
    let mut joined = StreamJoined::named(named(step)).with_logging(step.flag("logging", true));
    if let Some(store) = step.opt_text("store") {
        joined = joined.with_store_name(store);
    }
    if let Some(backend) = backend(step)? {
        joined = joined.with_backend(backend);
    }
    match step.text("kind")? {
        "inner" => Ok(left.join_with(right, f, windows, joined)),
        "left" => Ok(left.left_join_with(right, f, windows, joined)),
        "outer" => Ok(left.outer_join_with(right, f, windows, joined)),
        other => Err(format!("unknown kind of stream-stream join {other}")),
    }
}

fn foreign_key<L: CaseValue, R: CaseValue>(
    left: &KTable<String, L>,
    right: &KTable<String, R>,
    step: Step<'_>,
) -> Result<KTable<String, String>, String> {
    let f = joiner(functions::joiner(step.text("fn")?)?);
    let select = functions::key_selector(step.text("fk_fn")?)?;
    let select = move |key: Option<&String>, value: Option<&L>| {
        Ok(select(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref()))
    };
    let joined = TableJoined::named(named(step));
    match step.text("kind")? {
        "inner" => Ok(left.join_on_with(right, select, f, joined, materialized(step)?)),
        "left" => Ok(left.left_join_on_with(right, select, f, joined, materialized(step)?)),
        other => Err(format!("unknown kind of foreign-key join {other}")),
    }
}
