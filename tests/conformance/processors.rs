//! Steps with code of their own: stores and the processors README §4 lists.

use std::{any::Any, collections::HashMap, sync::Arc};

use sluice::streams::{
    error::{ProcessingError, Result as StreamsResult},
    internals::{KeyValueStore, Order, Store, ValueAndTimestamp, VersionedRecord, with_store},
    kstream::KStream,
    processor::{
        FixedKeyProcessor, FixedKeyProcessorContext, FixedKeyRecord, ProcessingContext, Processor,
        ProcessorContext, PunctuationType, ScheduleId, StoreId,
    },
    record::{AnyValue, ByteKey, Record},
    serdes::HasSerde,
    stores::{StoreBuilder, StoreKind, VersionedPut},
};

use crate::{
    case::Step,
    each_of,
    functions::{CaseValue, Ty, Value, int0, text, txt},
    interpreter::{Interpreter, Node, Of, backend, millis, named},
};

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    if step.op() == "state_store" {
        return state_store(interpreter, step);
    }
    let node = match interpreter.from(step)? {
        Node::Stream(stream) => {
            let ty = stream.ty();
            Node::Stream(match result_type(step.text("processor")?, ty)? {
                Ty::Text => Of::Text(each_of!(stream, s => process(s, step)?)),
                Ty::Integer => Of::Integer(each_of!(stream, s => process(s, step)?)),
            })
        }
        _ => return Err(format!("{} needs a stream with plain keys", step.op())),
    };
    interpreter.keep(step, node)
}

fn result_type(processor: &str, input: Ty) -> Result<Ty, String> {
    match processor {
        "pass"
        | "collect"
        | "dedup"
        | "fail_on_x"
        | "forward_then_fail_on_x"
        | "add_header"
        | "restamp"
        | "route" => Ok(input),
        "count_in_store" => Ok(Ty::Integer),
        "issue_limit" | "context_probe" | "kv_commands" | "window_lookup" | "table_lookup"
        | "versioned_lookup" | "running_concat" => Ok(Ty::Text),
        other => Err(format!("unknown processor {other}")),
    }
}

fn state_store(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let kind = match step.opt_text("type").unwrap_or("key_value") {
        "key_value" => StoreKind::KeyValue { timestamped: false },
        "window" => StoreKind::Window {
            retention: millis(step.number("retention_ms")?),
            window_size: millis(step.number("size_ms")?),
            duplicates: step.flag("duplicates", false),
            timestamped: false,
            time_ordered: false,
        },
        "versioned" => StoreKind::Versioned { history: millis(step.number("history_ms")?) },
        other => return Err(format!("unknown store type {other}")),
    };
    let value = match Ty::named(step.opt_text("value").unwrap_or("string"))? {
        Ty::Text => String::serde(),
        Ty::Integer => i64::serde(),
    };
    let mut store = StoreBuilder::new(step.text("store")?, kind, String::serde(), value);
    store.caching = step.flag("caching", false);
    store.logging = step.flag("logging", true);
    if let Some(backend) = backend(step)? {
        store.backend = backend;
    }
    interpreter.builder.add_state_store(store);
    Ok(())
}

fn process<V: CaseValue, R: CaseValue>(
    stream: &KStream<String, V>,
    step: Step<'_>,
) -> Result<KStream<String, R>, String> {
    let stores = step.texts("stores");
    let spec = Arc::new(Spec::of(step)?);
    Ok(if step.op() == "process_values" {
        let make = move || FixedKey { spec: spec.clone(), store: None };
        stream.process_values(make, named(step), &stores)
    } else {
        let make = move || CaseProcessor { spec: spec.clone(), store: None, schedules: Vec::new() };
        stream.process(make, named(step), &stores)
    })
}

/// A schedule a processor makes at its start.
struct Schedule {
    kind: PunctuationType,
    interval_ms: i64,
    label: String,
    cancel_after: Option<i64>,
    flush_store: bool,
    throws: bool,
}

/// What a step says of its processor.
struct Spec {
    processor: String,
    store: Option<String>,
    echo: bool,
    limit: i64,
    ttl_ms: i64,
    delta_ms: i64,
    back_ms: i64,
    ahead_ms: i64,
    header: (String, String),
    routes: HashMap<String, String>,
    schedules: Vec<Schedule>,
}

impl Spec {
    fn of(step: Step<'_>) -> Result<Self, String> {
        let mut schedules = Vec::new();
        for schedule in step.list("punctuate") {
            let schedule = Step::of(schedule)?;
            schedules.push(Schedule {
                kind: match schedule.text("type")? {
                    "stream_time" => PunctuationType::StreamTime,
                    "wall_clock" => PunctuationType::WallClockTime,
                    other => return Err(format!("unknown punctuation type {other}")),
                },
                interval_ms: schedule.number("interval_ms")?,
                label: schedule.opt_text("label").unwrap_or("tick").to_owned(),
                cancel_after: schedule.opt_number("cancel_after"),
                flush_store: schedule.flag("flush_store", false),
                throws: schedule.opt_text("action") == Some("throw"),
            });
        }
        let routes = match step.object("routes") {
            Ok(routes) => routes
                .0
                .iter()
                .filter_map(|(first, child)| Some((first.clone(), child.as_str()?.to_owned())))
                .collect(),
            Err(_) => HashMap::new(),
        };
        let own = |field: &str| step.opt_text(field).unwrap_or_default().to_owned();
        Ok(Self {
            processor: step.text("processor")?.to_owned(),
            store: step.texts("stores").first().map(|store| (*store).to_owned()),
            echo: step.flag("echo", false),
            limit: step.opt_number("limit").unwrap_or(0),
            ttl_ms: step.opt_number("ttl_ms").unwrap_or(0),
            delta_ms: step.opt_number("delta_ms").unwrap_or(0),
            back_ms: step.opt_number("back_ms").unwrap_or(0),
            ahead_ms: step.opt_number("ahead_ms").unwrap_or(0),
            header: (own("header"), own("header_value")),
            routes,
            schedules,
        })
    }
}

fn failure(class: &str, message: impl Into<String>) -> sluice::streams::error::StreamsError {
    ProcessingError::new(class, message).into()
}

/// A key as the stores hold it.
fn bytes(key: &str) -> ByteKey {
    ByteKey::new(key.as_bytes())
}

/// A value as the stores hold it.
fn erase(value: Value) -> AnyValue {
    match value {
        Value::Text(text) => Arc::new(text),
        Value::Integer(number) => Arc::new(number),
    }
}

fn value_of(value: &AnyValue) -> Value {
    match (value.downcast_ref::<String>(), value.downcast_ref::<i64>()) {
        (Some(text), _) => Value::Text(text.clone()),
        (_, Some(number)) => Value::Integer(*number),
        _ => Value::Text("(neither text nor integer)".into()),
    }
}

struct CaseProcessor {
    spec: Arc<Spec>,
    store: Option<StoreId>,
    /// The living schedules and how often each was called.
    schedules: Vec<(ScheduleId, i64)>,
}

impl CaseProcessor {
    fn store(&self) -> StreamsResult<StoreId> {
        self.store.ok_or_else(|| failure("IllegalStateException", "the processor has no store"))
    }
}

/// Key-value access to the processor's store.
struct Rows<'a, 'b> {
    context: &'a ProcessingContext<'b>,
    id: StoreId,
}

impl Rows<'_, '_> {
    fn with<T>(&self, f: impl FnOnce(&mut dyn KeyValueStore) -> StreamsResult<T>) -> StreamsResult<T> {
        with_store(self.context, self.id, |store| match store {
            Store::KeyValue(store) => f(store.as_mut()),
            _ => Err(failure("ClassCastException", "the store is not a key-value store")),
        })
    }

    fn get(&self, key: &str) -> StreamsResult<Option<ValueAndTimestamp>> {
        self.with(|store| store.get(key.as_bytes()))
    }

    fn put(&self, key: &str, value: Option<Value>) -> StreamsResult<()> {
        let context = self.context.record_metadata();
        let value =
            value.map(|value| ValueAndTimestamp { value: erase(value), timestamp: context.timestamp });
        self.with(|store| store.put(bytes(key), value, &context))
    }

    fn range(
        &self,
        from: Option<&str>,
        to: Option<&str>,
        order: Order,
    ) -> StreamsResult<Vec<(String, Value)>> {
        let rows = self.with(|store| store.range(from.map(str::as_bytes), to.map(str::as_bytes), order))?;
        Ok(rows.into_iter().map(row).collect())
    }
}

fn row((key, value): (ByteKey, ValueAndTimestamp)) -> (String, Value) {
    (String::from_utf8_lossy(&key).into_owned(), value_of(&value.value))
}

impl<V: CaseValue, R: CaseValue> Processor<String, V, String, R> for CaseProcessor {
    fn init(&mut self, context: &ProcessorContext<'_, String, R>) -> StreamsResult<()> {
        self.store = self.spec.store.as_deref().map(|name| context.state_store(name)).transpose()?;
        for schedule in &self.spec.schedules {
            self.schedules.push((context.schedule(schedule.interval_ms, schedule.kind), 0));
        }
        Ok(())
    }

    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, R>,
        record: Record<String, V>,
    ) -> StreamsResult<()> {
        let spec = self.spec.clone();
        let value = record.value.as_ref().map(|value| value.to_value());
        let key = record.key.as_ref().map(|key| key.to_string());
        let out = |record: &Record<String, V>, value: Option<Value>| -> StreamsResult<Record<String, R>> {
            Ok(record.clone().with_value(value.map(R::from_value).transpose()?))
        };
        // What a processor hands on unchanged is the very record.
        let same = |record: &Record<String, V>| -> StreamsResult<Record<String, R>> {
            let record: Box<dyn Any> = Box::new(record.clone());
            let record = record.downcast::<Record<String, R>>();
            record.map(|record| *record).map_err(|_| failure("ClassCastException", "another type of value"))
        };
        let say = |text: String| context.forward(out(&record, Some(Value::Text(text)))?);
        match spec.processor.as_str() {
            "pass" => context.forward(same(&record)?),
            "collect" => {
                if let Some(key) = &key {
                    Rows { context, id: self.store()? }.put(key, value.clone())?;
                }
                if spec.echo { context.forward(same(&record)?) } else { Ok(()) }
            }
            "count_in_store" => {
                let rows = Rows { context, id: self.store()? };
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                let stored = rows.get(&key)?.map(|row| value_of(&row.value));
                let count = Value::Integer(int0(stored.as_ref()) + 1);
                rows.put(&key, Some(count.clone()))?;
                context.forward(out(&record, Some(count))?)
            }
            "issue_limit" => {
                let rows = Rows { context, id: self.store()? };
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                let issued = int0(rows.get(&key)?.map(|row| value_of(&row.value)).as_ref());
                if issued < spec.limit {
                    rows.put(&key, Some(Value::Integer(issued + 1)))?;
                    say(format!("ok:{}", txt(value.as_ref())))
                } else {
                    say(format!("full:{}", txt(value.as_ref())))
                }
            }
            "dedup" => {
                let rows = Rows { context, id: self.store()? };
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                let seen = rows.get(&key)?.map(|row| int0(Some(&value_of(&row.value))));
                if seen.is_none_or(|seen| record.timestamp - seen > spec.ttl_ms) {
                    context.forward(same(&record)?)?;
                    rows.put(&key, Some(Value::Integer(record.timestamp)))?;
                }
                Ok(())
            }
            "context_probe" => {
                let metadata = context.record_metadata();
                say(format!(
                    "{}/{}/{}/{}/{}/{}",
                    metadata.topic.as_deref().unwrap_or("null"),
                    metadata.partition,
                    metadata.offset,
                    context.current_stream_time_ms(),
                    context.current_system_time_ms(),
                    context.task_id()
                ))
            }
            "fail_on_x" | "forward_then_fail_on_x" => {
                let fails = value.as_ref().is_some_and(|value| text(value) == "x");
                if !fails || spec.processor == "forward_then_fail_on_x" {
                    context.forward(same(&record)?)?;
                }
                if fails { Err(failure("IllegalArgumentException", "value is x")) } else { Ok(()) }
            }
            "add_header" => {
                let mut record = out(&record, value)?;
                record.headers.add(spec.header.0.clone(), Some(spec.header.1.clone()));
                context.forward(record)
            }
            "restamp" => {
                let mut record = out(&record, value)?;
                record.timestamp += spec.delta_ms;
                context.forward(record)
            }
            "route" => {
                let first: String = txt(value.as_ref()).chars().take(1).collect();
                let record = same(&record)?;
                match spec.routes.get(&first) {
                    Some(child) => context.forward_to(child, record),
                    None => context.forward(record),
                }
            }
            "kv_commands" => {
                let rows = Rows { context, id: self.store()? };
                say(kv_command(&rows, key.as_deref(), &txt(value.as_ref()))?)
            }
            "table_lookup" => {
                let rows = Rows { context, id: self.store()? };
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                let found = rows.get(&key)?.map_or_else(
                    || "null".to_owned(),
                    |row| format!("{}@{}", text(&value_of(&row.value)), row.timestamp),
                );
                say(format!("{}|{found}", txt(value.as_ref())))
            }
            "window_lookup" => {
                let id = self.store()?;
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                let (metadata, time) = (context.record_metadata(), record.timestamp);
                let rows = with_store(context, id, |store| {
                    let Store::Window(store) = store else {
                        return Err(failure("ClassCastException", "the store is not a window store"));
                    };
                    let put = value.map(|value| ValueAndTimestamp {
                        value: erase(value),
                        timestamp: metadata.timestamp,
                    });
                    store.put(bytes(&key), put, time, &metadata)?;
                    let (from, to) = ((time - spec.back_ms).max(0), time + spec.ahead_ms);
                    store.fetch_range(key.as_bytes(), from, to, Order::Forward)
                })?;
                say(rows
                    .iter()
                    .map(|row| format!("{}={};", row.start, text(&value_of(&row.value.value))))
                    .collect())
            }
            "versioned_lookup" => {
                let id = self.store()?;
                let key = key.ok_or_else(|| failure("NullPointerException", "key cannot be null"))?;
                say(versioned_command(context, id, &key, &txt(value.as_ref()), record.timestamp)?)
            }
            other => Err(failure("UnsupportedOperationException", format!("unknown processor {other}"))),
        }
    }

    fn punctuate(
        &mut self,
        context: &ProcessorContext<'_, String, R>,
        schedule: ScheduleId,
        timestamp: i64,
    ) -> StreamsResult<()> {
        let spec = self.spec.clone();
        let Some(index) = self.schedules.iter().position(|(id, _)| *id == schedule) else { return Ok(()) };
        let settings = &spec.schedules[index];
        self.schedules[index].1 += 1;
        let count = self.schedules[index].1;
        if settings.cancel_after == Some(count) {
            context.cancel(schedule);
        }
        if settings.throws {
            return Err(failure("IllegalStateException", "the punctuator throws"));
        }
        let forward = |key: &str, text: String| {
            let value = R::from_value(Value::Text(text))?;
            context.forward(Record::new(Some(key.to_owned()), Some(value), timestamp))
        };
        if settings.flush_store {
            let rows = Rows { context, id: self.store()? };
            for (key, value) in rows.range(None, None, Order::Forward)? {
                forward(&key, text(&value))?;
                rows.put(&key, None)?;
            }
        }
        let metadata = context.record_metadata();
        forward(
            &settings.label,
            format!(
                "{count}@{timestamp}/{}/{},{},{}",
                context.current_stream_time_ms(),
                metadata.topic.as_deref().unwrap_or("null"),
                metadata.partition,
                metadata.offset
            ),
        )
    }
}

fn kv_command(rows: &Rows<'_, '_>, key: Option<&str>, command: &str) -> StreamsResult<String> {
    // Listings need no key.
    let key = || key.ok_or_else(|| failure("NullPointerException", "key cannot be null"));
    let (verb, argument) = command.split_once(':').unwrap_or((command, ""));
    let show = |row: Option<ValueAndTimestamp>| txt(row.map(|row| value_of(&row.value)).as_ref());
    let list = |rows: Vec<(String, Value)>| {
        rows.into_iter().map(|(key, value)| format!("{key}={};", text(&value))).collect::<String>()
    };
    let argument_value = || Some(Value::Text(argument.to_owned()));
    Ok(match verb {
        "put" => {
            rows.put(key()?, argument_value())?;
            "done".into()
        }
        "put_null" => {
            rows.put(key()?, None)?;
            "done".into()
        }
        "put_if_absent" => {
            let stored = rows.get(key()?)?;
            if stored.is_none() {
                rows.put(key()?, argument_value())?;
            }
            show(stored)
        }
        "delete" => {
            let stored = rows.get(key()?)?;
            rows.put(key()?, None)?;
            show(stored)
        }
        "get" => show(rows.get(key()?)?),
        "all" => list(rows.range(None, None, Order::Forward)?),
        "reverse_all" => list(rows.range(None, None, Order::Backward)?),
        "range" | "reverse_range" => {
            let (low, high) = argument.split_once('-').unwrap_or((argument, ""));
            let open = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let order = if verb == "range" { Order::Forward } else { Order::Backward };
            list(rows.range(open(low).as_deref(), open(high).as_deref(), order)?)
        }
        "prefix" => {
            let found = rows.with(|store| store.prefix_scan(argument.as_bytes()))?;
            list(found.into_iter().map(row).collect())
        }
        other => return Err(failure("IllegalArgumentException", format!("unknown command {other}"))),
    })
}

fn versioned_command(
    context: &ProcessingContext<'_>,
    id: StoreId,
    key: &str,
    command: &str,
    time: i64,
) -> StreamsResult<String> {
    let (verb, argument) = command.split_once(':').unwrap_or((command, ""));
    let metadata = context.record_metadata();
    let show = |row: Option<VersionedRecord>| {
        row.map_or_else(
            || "null".to_owned(),
            |row| format!("{}@{}..open", text(&value_of(&row.value)), row.timestamp),
        )
    };
    with_store(context, id, |store| {
        let Store::Versioned(store) = store else {
            return Err(failure("ClassCastException", "the store is not a versioned store"));
        };
        Ok(match verb {
            "put" | "put_null" => {
                let value = (verb == "put").then(|| erase(Value::Text(argument.to_owned())));
                match store.put(bytes(key), value, time, &metadata)? {
                    VersionedPut::Latest => "-1".into(),
                    VersionedPut::ValidTo(to) => to.to_string(),
                    VersionedPut::TooOld => i64::MIN.to_string(),
                }
            }
            "delete" => show(store.delete(bytes(key), time, &metadata)?),
            "get" if argument.is_empty() => show(store.get(key.as_bytes())?),
            "get" => {
                let as_of = int0(Some(&Value::Text(argument.to_owned())));
                show(store.get_as_of(key.as_bytes(), as_of)?)
            }
            other => return Err(failure("IllegalArgumentException", format!("unknown command {other}"))),
        })
    })
}

/// The processors that cannot change keys.
struct FixedKey {
    spec: Arc<Spec>,
    store: Option<StoreId>,
}

impl<V: CaseValue, R: CaseValue> FixedKeyProcessor<String, V, R> for FixedKey {
    fn init(&mut self, context: &FixedKeyProcessorContext<'_, String, R>) -> StreamsResult<()> {
        self.store = self.spec.store.as_deref().map(|name| context.state_store(name)).transpose()?;
        Ok(())
    }

    fn process(
        &mut self,
        context: &FixedKeyProcessorContext<'_, String, R>,
        record: FixedKeyRecord<String, V>,
    ) -> StreamsResult<()> {
        let value = record.value.as_ref().map(|value| value.to_value());
        let value = match self.spec.processor.as_str() {
            "pass" => value,
            "running_concat" => {
                let id = self
                    .store
                    .ok_or_else(|| failure("IllegalStateException", "the processor has no store"))?;
                let key = record
                    .key()
                    .ok_or_else(|| failure("NullPointerException", "key cannot be null"))?
                    .clone();
                let rows = Rows { context, id };
                let stored = rows.get(&key)?.map(|row| text(&value_of(&row.value))).unwrap_or_default();
                let joined = Value::Text(stored + &txt(value.as_ref()));
                rows.put(&key, Some(joined.clone()))?;
                Some(joined)
            }
            other => {
                return Err(failure("UnsupportedOperationException", format!("unknown processor {other}")));
            }
        };
        context.forward(record.with_value(value.map(R::from_value).transpose()?))
    }
}
