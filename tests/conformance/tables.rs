//! Steps on tables, and grouping and aggregating without windows.

use sluice::streams::{
    error::ProcessingError,
    kstream::{KGroupedStream, KGroupedTable, KStream, KTable},
};

use crate::{
    case::Step,
    each_of,
    functions::{self, AggregateFn, CaseKey, CaseValue, Ty, ValueFn},
    interpreter::{Interpreter, Node, Of, Tables, materialized, named},
    map_of,
    streams::{consumed, grouped, predicate},
    windows,
};

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let builder = &interpreter.builder;
    let node = match step.op() {
        "table" => {
            let topic = step.text("topic")?;
            Node::Table(match Ty::named(step.text("value")?)? {
                Ty::Text => Of::Text(builder.table_with(topic, consumed(step)?, materialized(step)?)),
                Ty::Integer => Of::Integer(builder.table_with(topic, consumed(step)?, materialized(step)?)),
            })
        }
        "global_table" => {
            let topic = step.text("topic")?;
            Node::Global(match Ty::named(step.text("value")?)? {
                Ty::Text => Of::Text(builder.global_table_with(topic, consumed(step)?, materialized(step)?)),
                Ty::Integer => {
                    Of::Integer(builder.global_table_with(topic, consumed(step)?, materialized(step)?))
                }
            })
        }
        "to_stream" => to_stream(interpreter.from(step)?, step)?,
        "group_by" => group_by(interpreter.from(step)?, step)?,
        "count" | "reduce" | "aggregate" => match interpreter.from(step)? {
            Node::Grouped(group) => Node::Table(each_of!(group, g => aggregate_stream(g, group.ty(), step)?)),
            Node::GroupedTable(group) => {
                Node::Table(each_of!(group, g => aggregate_table(g, group.ty(), step)?))
            }
            Node::Window(_) => return windows::apply(interpreter, step),
            _ => return Err(format!("{} needs a group", step.op())),
        },
        _ => match interpreter.from(step)? {
            Node::Table(table) => Node::Table(each_of!(table, t => keyed(t, table.ty(), step)?)),
            Node::WindowedTable(table, key) => {
                Node::WindowedTable(each_of!(table, t => keyed(t, table.ty(), step)?), *key)
            }
            _ => return Err(format!("{} does not work on this", step.op())),
        },
    };
    interpreter.keep(step, node)
}

/// A value mapper as the DSL wants it.
pub fn mapper<K: CaseKey, V: CaseValue, R: CaseValue>(
    f: ValueFn,
) -> impl Fn(Option<&K>, Option<&V>) -> Result<Option<R>, ProcessingError> + Send + Sync + 'static {
    move |key, value| {
        f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())?.map(R::from_value).transpose()
    }
}

/// An aggregator as the DSL wants it.
pub fn aggregator<K, V: CaseValue, A: CaseValue>(
    f: AggregateFn,
) -> impl Fn(Option<&K>, Option<&V>, Option<&A>) -> Result<Option<A>, ProcessingError> + Send + Sync + 'static
{
    move |_, value, aggregate| {
        let (value, aggregate) = (value.map(CaseValue::to_value), aggregate.map(CaseValue::to_value));
        f(value.as_ref(), aggregate.as_ref()).map(A::from_value).transpose()
    }
}

/// A reducer (or merger) as the DSL wants it.
pub fn reducer<V: CaseValue>(
    f: AggregateFn,
) -> impl Fn(Option<&V>, Option<&V>) -> Result<Option<V>, ProcessingError> + Send + Sync + 'static {
    move |a, b| {
        let (a, b) = (a.map(CaseValue::to_value), b.map(CaseValue::to_value));
        f(a.as_ref(), b.as_ref()).map(V::from_value).transpose()
    }
}

/// An initializer as the DSL wants it.
pub fn initializer<A: CaseValue>(
    name: &str,
) -> Result<impl Fn() -> Result<Option<A>, ProcessingError> + Send + Sync + 'static, String> {
    let initial = functions::initial(name)?;
    Ok(move || initial.clone().map(A::from_value).transpose())
}

/// Puts a table back under its value type.
pub trait FromTable<K, V> {
    /// The same table.
    fn from_table(table: KTable<K, V>) -> Self;
}

impl<K> FromTable<K, String> for Tables<K> {
    fn from_table(table: KTable<K, String>) -> Self {
        Of::Text(table)
    }
}

impl<K> FromTable<K, i64> for Tables<K> {
    fn from_table(table: KTable<K, i64>) -> Self {
        Of::Integer(table)
    }
}

fn keyed<K: CaseKey, V: CaseValue>(table: &KTable<K, V>, ty: Ty, step: Step<'_>) -> Result<Tables<K>, String>
where
    Tables<K>: FromTable<K, V>,
{
    let stored = step.opt_text("store").is_some();
    match step.op() {
        "filter" | "filter_not" => {
            let f = predicate::<K, V>(functions::predicate(step.text("pred")?)?);
            let f = move |key: Option<&K>, value: Option<&V>| Ok(f(key, value));
            let options = stored.then(|| materialized(step)).transpose()?;
            Ok(Tables::from_table(if step.op() == "filter" {
                table.filter_with(f, named(step), options)
            } else {
                table.filter_not_with(f, named(step), options)
            }))
        }
        "map_values" => {
            let (out, f) = functions::value_mapper(step.text("fn")?, ty)?;
            Ok(match out {
                Ty::Text => Of::Text(table.map_values_with(
                    mapper(f),
                    named(step),
                    stored.then(|| materialized(step)).transpose()?,
                )),
                Ty::Integer => Of::Integer(table.map_values_with(
                    mapper(f),
                    named(step),
                    stored.then(|| materialized(step)).transpose()?,
                )),
            })
        }
        other => Err(format!("unknown step {other} on a table")),
    }
}

fn to_stream(from: &Node, step: Step<'_>) -> Result<Node, String> {
    fn select<K: CaseKey, V: CaseValue>(
        stream: &KStream<K, V>,
        key_fn: &str,
    ) -> Result<KStream<String, V>, String> {
        let f = functions::key_selector(key_fn)?;
        Ok(stream
            .select_key(move |key, value| f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())))
    }
    Ok(match (from, step.opt_text("key_fn")) {
        (Node::Table(table), None) => Node::Stream(map_of!(table, t => t.to_stream_named(named(step)))),
        (Node::WindowedTable(table, key), None) => {
            Node::WindowedStream(map_of!(table, t => t.to_stream_named(named(step))), *key)
        }
        (Node::Table(table), Some(f)) => {
            Node::Stream(map_of!(table, t => select(&t.to_stream_named(named(step)), f)?))
        }
        (Node::WindowedTable(table, _), Some(f)) => {
            Node::Stream(map_of!(table, t => select(&t.to_stream_named(named(step)), f)?))
        }
        _ => return Err("to_stream needs a table".into()),
    })
}

fn group_by(from: &Node, step: Step<'_>) -> Result<Node, String> {
    fn stream<K: CaseKey, V: CaseValue>(
        stream: &KStream<K, V>,
        step: Step<'_>,
    ) -> Result<KGroupedStream<String, V>, String> {
        let f = functions::key_selector(step.text("key_fn")?)?;
        Ok(stream.group_by_with(
            move |key, value| Ok(f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())),
            grouped(step),
        ))
    }
    fn table<K: CaseKey, V: CaseValue, R: CaseValue>(
        table: &KTable<K, V>,
        step: Step<'_>,
        value: ValueFn,
    ) -> Result<KGroupedTable<String, R>, String> {
        let key_of = functions::key_selector(step.text("key_fn")?)?;
        let value_of = mapper::<K, V, R>(value);
        Ok(table.group_by_with(
            move |key, value| {
                let selected = key_of(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref());
                Ok((selected, value_of(key, value)?))
            },
            grouped(step),
        ))
    }
    fn tables<K: CaseKey>(from: &Tables<K>, step: Step<'_>) -> Result<Node, String> {
        let name = step.opt_text("value_fn").unwrap_or("identity");
        let (out, f) = functions::value_mapper(name, from.ty())?;
        Ok(Node::GroupedTable(match out {
            Ty::Text => Of::Text(each_of!(from, t => table(t, step, f)?)),
            Ty::Integer => Of::Integer(each_of!(from, t => table(t, step, f)?)),
        }))
    }
    match from {
        Node::Stream(from) => Ok(Node::Grouped(map_of!(from, s => stream(s, step)?))),
        Node::WindowedStream(from, _) => Ok(Node::Grouped(map_of!(from, s => stream(s, step)?))),
        Node::Table(from) => tables(from, step),
        Node::WindowedTable(from, _) => tables(from, step),
        _ => Err("group_by needs a stream or a table".into()),
    }
}

fn aggregate_stream<V: CaseValue>(
    group: &KGroupedStream<String, V>,
    ty: Ty,
    step: Step<'_>,
) -> Result<Tables<String>, String>
where
    Tables<String>: FromTable<String, V>,
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

fn aggregate_table<V: CaseValue>(
    group: &KGroupedTable<String, V>,
    ty: Ty,
    step: Step<'_>,
) -> Result<Tables<String>, String>
where
    Tables<String>: FromTable<String, V>,
{
    match step.op() {
        "count" => Ok(Of::Integer(group.count_with(named(step), materialized(step)?))),
        "reduce" => {
            let add = functions::reducer(step.text("adder")?, ty)?;
            let subtract = functions::reducer(step.text("subtractor")?, ty)?;
            Ok(Tables::from_table(group.reduce_with(
                reducer(add),
                reducer(subtract),
                named(step),
                materialized(step)?,
            )))
        }
        _ => {
            let (out, add) = functions::aggregator(step.text("adder")?)?;
            let (_, subtract) = functions::aggregator(step.text("subtractor")?)?;
            let init = step.text("init")?;
            Ok(match out {
                Ty::Text => Of::Text(group.aggregate_with(
                    initializer(init)?,
                    aggregator(add),
                    aggregator(subtract),
                    named(step),
                    materialized(step)?,
                )),
                Ty::Integer => Of::Integer(group.aggregate_with(
                    initializer(init)?,
                    aggregator(add),
                    aggregator(subtract),
                    named(step),
                    materialized(step)?,
                )),
            })
        }
    }
}
