//! Steps on streams: sources, stateless operators, sinks.

use std::{collections::BTreeMap, sync::Arc};

use sluice::streams::{
    error::ProcessingError,
    kstream::{Consumed, Grouped, KStream, Produced, Repartitioned},
    record::AnyValue,
    topology::{
        TimestampExtractor, fail_on_invalid_timestamp, log_and_skip_on_invalid_timestamp,
        use_partition_time_on_invalid_timestamp,
    },
};

use crate::{
    case::Step,
    each_of,
    functions::{self, CaseKey, CaseValue, PredicateFn, Ty, Value, int0, txt},
    interpreter::{Interpreter, KeyKind, Node, Of, Output, Streams, materialized, named},
    map_of, tables,
};

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let node = match step.op() {
        "stream" => source(interpreter, step)?,
        "split" => return split(interpreter, step),
        "to" | "to_dynamic" => return sink(interpreter, step),
        "merge" => merge(interpreter, step)?,
        "map" => Node::Stream(match interpreter.from(step)? {
            Node::Stream(stream) => Of::Text(each_of!(stream, s => map(s, step)?)),
            Node::WindowedStream(stream, _) => Of::Text(each_of!(stream, s => map(s, step)?)),
            _ => return Err("map needs a stream".into()),
        }),
        "flat_map" => Node::Stream(match interpreter.from(step)? {
            Node::Stream(stream) => Of::Text(each_of!(stream, s => flat_map(s, step)?)),
            Node::WindowedStream(stream, _) => Of::Text(each_of!(stream, s => flat_map(s, step)?)),
            _ => return Err("flat_map needs a stream".into()),
        }),
        "select_key" => Node::Stream(match interpreter.from(step)? {
            Node::Stream(stream) => map_of!(stream, s => select_key(s, step)?),
            Node::WindowedStream(stream, _) => map_of!(stream, s => select_key(s, step)?),
            _ => return Err("select_key needs a stream".into()),
        }),
        "group_by_key" => match interpreter.from(step)? {
            Node::Stream(stream) => Node::Grouped(map_of!(stream, s => s.group_by_key_with(grouped(step)))),
            _ => return Err("group_by_key needs a stream with plain keys".into()),
        },
        "to_table" => match interpreter.from(step)? {
            Node::Stream(stream) => {
                Node::Table(map_of!(stream, s => s.to_table_with(named(step), materialized(step)?)))
            }
            Node::WindowedStream(stream, key) => Node::WindowedTable(
                map_of!(stream, s => s.to_table_with(named(step), materialized(step)?)),
                *key,
            ),
            _ => return Err("to_table needs a stream".into()),
        },
        "repartition" => match interpreter.from(step)? {
            Node::Stream(stream) => {
                Node::Stream(map_of!(stream, s => s.repartition_with(repartitioned(step))))
            }
            _ => return Err("repartition needs a stream with plain keys".into()),
        },
        _ => match interpreter.from(step)? {
            Node::Stream(stream) => Node::Stream(each_of!(stream, s => keyed(s, stream.ty(), step)?)),
            Node::WindowedStream(stream, key) => {
                Node::WindowedStream(each_of!(stream, s => keyed(s, stream.ty(), step)?), *key)
            }
            _ => return tables::apply(interpreter, step),
        },
    };
    interpreter.keep(step, node)
}

/// Serdes of a grouping come from the types; only the name is told.
pub fn grouped<K, V>(step: Step<'_>) -> Grouped<K, V> {
    step.opt_text("name").map_or_else(Grouped::default, Grouped::named)
}

fn repartitioned<K, V>(step: Step<'_>) -> Repartitioned<K, V> {
    let options = step.opt_text("name").map_or_else(Repartitioned::default, Repartitioned::named);
    match step.opt_number("partitions") {
        Some(partitions) => options.with_number_of_partitions(partitions as i32),
        None => options,
    }
}

fn source(interpreter: &Interpreter, step: Step<'_>) -> Result<Node, String> {
    let mut topics = step.texts("topics");
    if let Some(topic) = step.opt_text("topic") {
        topics.push(topic);
    }
    let builder = &interpreter.builder;
    Ok(Node::Stream(match Ty::named(step.text("value")?)? {
        Ty::Text => Of::Text(builder.stream_with(&topics, consumed(step)?)),
        Ty::Integer => Of::Integer(builder.stream_with(&topics, consumed(step)?)),
    }))
}

/// Name and extractor of a source.
pub fn consumed<K, V>(step: Step<'_>) -> Result<Consumed<K, V>, String> {
    let consumed = Consumed::default().with_name(named(step));
    match step.opt_text("timestamp_extractor") {
        Some(name) => Ok(consumed.with_timestamp_extractor(timestamp_extractor(name)?)),
        None => Ok(consumed),
    }
}

/// A timestamp extractor by name.
pub fn timestamp_extractor(name: &str) -> Result<TimestampExtractor, String> {
    fn value(value: Option<&AnyValue>) -> Result<Option<Value>, ProcessingError> {
        let Some(value) = value else { return Ok(None) };
        if let Some(text) = value.downcast_ref::<String>() {
            return Ok(Some(Value::Text(text.clone())));
        }
        Ok(value.downcast_ref::<i64>().map(|number| Value::Integer(*number)))
    }
    Ok(match name {
        "fail_on_invalid" => fail_on_invalid_timestamp(),
        "log_and_skip_on_invalid" => log_and_skip_on_invalid_timestamp(),
        "use_partition_time_on_invalid" => use_partition_time_on_invalid_timestamp(),
        "value_number" => Arc::new(|_, record, _| Ok(int0(value(record.value.as_ref())?.as_ref()))),
        "after_colon_time" => Arc::new(|_, record, _| {
            let text = txt(value(record.value.as_ref())?.as_ref());
            let after = text.split_once(':').map_or(text.clone(), |(_, after)| after.to_owned());
            Ok(int0(Some(&Value::Text(after))))
        }),
        "partition_time" => Arc::new(|_, _, partition_time| Ok(partition_time)),
        other => return Err(format!("unknown timestamp extractor {other}")),
    })
}

/// A predicate as the DSL wants it.
pub fn predicate<K: CaseKey, V: CaseValue>(
    f: PredicateFn,
) -> impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static {
    move |key, value| f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())
}

/// Steps that keep the key.
fn keyed<K: CaseKey, V: CaseValue>(
    stream: &KStream<K, V>,
    ty: Ty,
    step: Step<'_>,
) -> Result<Streams<K>, String>
where
    Streams<K>: FromStream<K, V>,
{
    let same = |stream| Ok(Streams::<K>::from_stream(stream));
    match step.op() {
        "filter" => {
            same(stream.filter_named(predicate(functions::predicate(step.text("pred")?)?), named(step)))
        }
        "filter_not" => {
            same(stream.filter_not_named(predicate(functions::predicate(step.text("pred")?)?), named(step)))
        }
        "peek" => same(stream.peek_named(|_, _| {}, named(step))),
        "map_values" => {
            let (out, f) = functions::value_mapper(step.text("fn")?, ty)?;
            Ok(match out {
                Ty::Text => Of::Text(stream.try_map_values(tables::mapper(f), named(step))),
                Ty::Integer => Of::Integer(stream.try_map_values(tables::mapper(f), named(step))),
            })
        }
        "flat_map_values" => {
            let (out, f) = functions::flat_value_mapper(step.text("fn")?, ty)?;
            fn flat<K, V: CaseValue, R: CaseValue>(
                f: functions::ValuesFn,
            ) -> impl Fn(Option<&K>, Option<&V>) -> Result<Vec<Option<R>>, ProcessingError> + Send + Sync
            {
                move |_, value| {
                    let values = f(value.map(CaseValue::to_value).as_ref());
                    values.into_iter().map(|value| value.map(R::from_value).transpose()).collect()
                }
            }
            Ok(match out {
                Ty::Text => Of::Text(stream.try_flat_map_values(flat(f), named(step))),
                Ty::Integer => Of::Integer(stream.try_flat_map_values(flat(f), named(step))),
            })
        }
        other => Err(format!("unknown step {other}")),
    }
}

/// Puts a stream back under its value type.
pub trait FromStream<K, V> {
    /// The same stream.
    fn from_stream(stream: KStream<K, V>) -> Self;
}

impl<K> FromStream<K, String> for Streams<K> {
    fn from_stream(stream: KStream<K, String>) -> Self {
        Of::Text(stream)
    }
}

impl<K> FromStream<K, i64> for Streams<K> {
    fn from_stream(stream: KStream<K, i64>) -> Self {
        Of::Integer(stream)
    }
}

fn map<K: CaseKey, V: CaseValue>(
    stream: &KStream<K, V>,
    step: Step<'_>,
) -> Result<KStream<String, String>, String> {
    let f = functions::pair_mapper(step.text("fn")?)?;
    Ok(stream.try_map(
        move |key, value| f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref()),
        named(step),
    ))
}

fn flat_map<K: CaseKey, V: CaseValue>(
    stream: &KStream<K, V>,
    step: Step<'_>,
) -> Result<KStream<String, String>, String> {
    let f = functions::flat_pair_mapper(step.text("fn")?)?;
    Ok(stream.try_flat_map(
        move |key, value| Ok(f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())),
        named(step),
    ))
}

fn select_key<K: CaseKey, V: CaseValue>(
    stream: &KStream<K, V>,
    step: Step<'_>,
) -> Result<KStream<String, V>, String> {
    let f = functions::key_selector(step.text("fn")?)?;
    Ok(stream.try_select_key(
        move |key, value| Ok(f(key.map(CaseKey::key), value.map(CaseValue::to_value).as_ref())),
        named(step),
    ))
}

fn merge(interpreter: &Interpreter, step: Step<'_>) -> Result<Node, String> {
    match (interpreter.node(step.text("left")?)?, interpreter.node(step.text("right")?)?) {
        (Node::Stream(left), Node::Stream(right)) => Ok(Node::Stream(match (left, right) {
            (Of::Text(left), Of::Text(right)) => Of::Text(left.merge_named(right, named(step))),
            (Of::Integer(left), Of::Integer(right)) => Of::Integer(left.merge_named(right, named(step))),
            _ => return Err("merge of different value types".into()),
        })),
        (Node::WindowedStream(left, key), Node::WindowedStream(right, _)) => {
            let merged = match (left, right) {
                (Of::Text(left), Of::Text(right)) => Of::Text(left.merge_named(right, named(step))),
                (Of::Integer(left), Of::Integer(right)) => Of::Integer(left.merge_named(right, named(step))),
                _ => return Err("merge of different value types".into()),
            };
            Ok(Node::WindowedStream(merged, *key))
        }
        _ => Err("merge needs two streams of one key type".into()),
    }
}

fn split(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    // A branch is found by its name, or else by its position (the default branch by 0).
    let mut ids: Vec<(String, String)> = Vec::new();
    for (index, branch) in step.list("branches").iter().enumerate() {
        let branch = Step::of(branch)?;
        let suffix = branch.opt_text("name").map_or_else(|| (index + 1).to_string(), str::to_owned);
        ids.push((suffix, branch.text("id")?.to_owned()));
    }
    let default = step.object("default").ok();
    if let Some(default) = default {
        let suffix = default.opt_text("name").unwrap_or("0").to_owned();
        ids.push((suffix, default.text("id")?.to_owned()));
    }
    fn branches<V: CaseValue>(
        stream: &KStream<String, V>,
        step: Step<'_>,
    ) -> Result<BTreeMap<String, KStream<String, V>>, String> {
        let mut split = stream.split(named(step));
        for branch in step.list("branches") {
            let branch = Step::of(branch)?;
            split = split.branch(predicate(functions::predicate(branch.text("pred")?)?), named(branch));
        }
        Ok(match step.object("default") {
            Ok(default) => split.default_branch(named(default)),
            Err(_) => split.no_default_branch(),
        })
    }
    let mut found: Vec<(String, Node)> = Vec::new();
    match interpreter.stream(step, "from")? {
        Of::Text(stream) => {
            for (name, branch) in branches(stream, step)? {
                found.push((name, Node::Stream(Of::Text(branch))));
            }
        }
        Of::Integer(stream) => {
            for (name, branch) in branches(stream, step)? {
                found.push((name, Node::Stream(Of::Integer(branch))));
            }
        }
    }
    for (name, node) in found {
        // The longest suffix wins: one branch's name may end another's.
        let id = ids
            .iter()
            .filter(|(suffix, _)| name.ends_with(suffix.as_str()))
            .max_by_key(|(suffix, _)| suffix.len())
            .map(|(_, id)| id.clone())
            .ok_or_else(|| format!("branch {name} was not asked for"))?;
        interpreter.nodes.insert(id, node);
    }
    Ok(())
}

fn sink(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let output = match interpreter.from(step)? {
        Node::Stream(stream) => {
            each_of!(stream, s => write(s, step)?);
            Output { key: KeyKind::Plain, ty: stream.ty() }
        }
        Node::WindowedStream(stream, key) => {
            each_of!(stream, s => write(s, step)?);
            Output { key: *key, ty: stream.ty() }
        }
        _ => return Err(format!("{} needs a stream", step.op())),
    };
    match step.opt_text("topic") {
        Some(topic) => drop(interpreter.outputs.insert(topic.to_owned(), output)),
        None => interpreter.prefixes.push((step.text("prefix")?.to_owned(), output)),
    }
    Ok(())
}

fn write<K: CaseKey, V: CaseValue>(stream: &KStream<K, V>, step: Step<'_>) -> Result<(), String> {
    let produced = Produced::default().with_name(named(step));
    match step.opt_text("topic") {
        Some(topic) => stream.to_with(topic, produced),
        None => {
            let prefix = step.text("prefix")?.to_owned();
            stream.to_dynamic(
                move |_, value: Option<&V>, _| {
                    let text = txt(value.map(CaseValue::to_value).as_ref());
                    let first = text.chars().next().unwrap_or('_');
                    format!("{prefix}{first}")
                },
                produced,
            );
        }
    }
    Ok(())
}
