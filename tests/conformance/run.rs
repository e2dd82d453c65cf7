//! Runs one case: build, feed, compare.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde_json::{Map, Value as Json};
use sluice::streams::{
    config::{Semantics, StreamsConfig},
    internals::{Hop, hops, store_builders},
    processor::{ErrorHandlers, ErrorResponse},
    record::{ConsumerRecord, Header, Headers, ProducerRecord},
    serdes::AnySerde,
    test_utils::{DriverOptions, TopologyTestDriver},
    topology::{RecordDecoder, Topology},
};

use crate::{
    case::Step,
    compare::{self, Difference},
    interpreter::{Interpreter, Output, millis},
    rows, streams,
};

/// The application id of all cases.
const APPLICATION: &str = "app";

/// Where the wall clock of all cases stands at the start.
const WALL_CLOCK_MS: i64 = 1_000_000;

/// Runs a case. `Err` is where it first differs.
pub fn run(case: &Json) -> Result<(), Difference> {
    let mut interpreter =
        Interpreter::new(case["cache"].as_i64().unwrap_or(0), Step::of(&case["config"]).ok());
    let expected_error = case["error"].as_str();
    let refused = expected_error.is_some() && case["error_at"].as_i64() == Some(-1);
    for step in case["topology"].as_array().into_iter().flatten() {
        let applied = Step::of(step).and_then(|step| interpreter.apply(step));
        applied.map_err(|error| Difference::new("the topology", "a known step", error))?;
    }
    let topology = interpreter.builder.build(APPLICATION);
    let topology = match (topology, refused) {
        (Err(_), true) => return Ok(()),
        (Ok(topology), false) => topology,
        (Ok(_), true) => {
            return Err(Difference::new("the topology", expected_error.unwrap_or_default(), "built"));
        }
        (Err(error), false) => return Err(Difference::new("the topology", "built", error)),
    };
    if case["describe"].as_bool() == Some(true) {
        let expected = case["description"].as_str().unwrap_or_default();
        let unordered = case["unordered"].as_bool() == Some(true);
        return compare::descriptions(expected, &topology.describe(), unordered).map_or(Ok(()), Err);
    }
    Run::new(case, interpreter, topology)?.feed()
}

/// Decoders of repartition topics by name without prefix, and whether each carries a table's changes.
type Repartitions = BTreeMap<String, (RecordDecoder, bool)>;

struct Run<'a> {
    case: &'a Json,
    driver: TopologyTestDriver,
    outputs: BTreeMap<String, Output>,
    prefixes: Vec<(String, Output)>,
    stores: BTreeMap<String, sluice::streams::stores::StoreBuilder>,
    repartitions: Repartitions,
    dead_letter_topic: Option<String>,
    written: BTreeMap<String, Vec<Json>>,
    logged: BTreeMap<String, Vec<Json>>,
    repartitioned: BTreeMap<String, Vec<Json>>,
}

impl<'a> Run<'a> {
    fn new(case: &'a Json, interpreter: Interpreter, topology: Topology) -> Result<Self, Difference> {
        let config = Step::of(&case["config"]).ok();
        let setting = |name: &str| config.and_then(|config| config.opt_text(name));
        let mut options = DriverOptions {
            config: StreamsConfig {
                application_id: APPLICATION.into(),
                semantics: Semantics::Kafka43,
                emit_interval_ms: config.and_then(|c| c.opt_number("emit_interval_ms")).unwrap_or(0),
                ..StreamsConfig::default()
            },
            handlers: ErrorHandlers::default(),
            timestamp_extractor: None,
            wall_clock_ms: WALL_CLOCK_MS,
            partitions: None,
        };
        let response = |name: &str| match setting(name) {
            Some("continue") => ErrorResponse::Continue,
            _ => ErrorResponse::Fail,
        };
        options.handlers.deserialization =
            ErrorHandlers::always(response("deserialization_handler")).deserialization;
        options.handlers.processing = ErrorHandlers::always(response("processing_handler")).processing;
        options.handlers.dead_letter_topic = setting("dead_letter_topic").map(Arc::from);
        if let Some(name) = setting("timestamp_extractor") {
            let extractor = streams::timestamp_extractor(name)
                .map_err(|error| Difference::new("the settings", "a known extractor", error))?;
            options.timestamp_extractor = Some(extractor);
        }
        let stores = store_builders(&topology).into_iter().map(|store| (store.name.clone(), store)).collect();
        let repartitions = repartitions(&topology);
        let driver = TopologyTestDriver::with_options(topology, options)
            .map_err(|error| Difference::new("the driver", "started", error))?;
        Ok(Self {
            case,
            driver,
            outputs: interpreter.outputs.into_iter().collect(),
            prefixes: interpreter.prefixes,
            stores,
            repartitions,
            dead_letter_topic: setting("dead_letter_topic").map(str::to_owned),
            written: BTreeMap::new(),
            logged: BTreeMap::new(),
            repartitioned: BTreeMap::new(),
        })
    }

    fn feed(mut self) -> Result<(), Difference> {
        let inputs: &[Json] = self.case["input"].as_array().map_or(&[], Vec::as_slice);
        let error_at = self.case["error_at"].as_i64();
        for (at, input) in inputs.iter().enumerate() {
            let at = at as i64;
            match (self.input(input), error_at == Some(at)) {
                (Ok(()), false) => self.collect(at)?,
                (Err(_), true) => break,
                (Ok(()), true) => {
                    let place = format!("input[{at}]");
                    return Err(Difference::new(place, &self.case["error"], "no error"));
                }
                (Err(error), false) => {
                    return Err(Difference::new(format!("input[{at}]"), "no error", error));
                }
            }
        }
        self.compare()
    }

    fn input(&self, input: &Json) -> Result<(), String> {
        let step = Step::of(input)?;
        if let Some(ms) = step.opt_number("advance_wall_clock_ms") {
            return self.driver.advance_wall_clock_time(millis(ms)).map_err(|error| error.to_string());
        }
        let topic = step.text("topic")?;
        let value = match (&input["value"], step.opt_text("value_hex")) {
            (_, Some(hex)) => Some(from_hex(hex)?),
            (Json::Null, None) => None,
            (Json::String(text), None) => Some(text.clone().into_bytes()),
            (Json::Number(number), None) => Some(number.as_i64().unwrap_or_default().to_be_bytes().to_vec()),
            (other, None) => return Err(format!("not a value: {other}")),
        };
        let headers: Headers = step
            .list("headers")
            .iter()
            .map(|header| Header {
                key: header[0].as_str().unwrap_or_default().to_owned(),
                value: header[1].as_str().map(|text| Bytes::from(text.to_owned())),
            })
            .collect();
        let record = ProducerRecord {
            topic: topic.into(),
            partition: Some(0),
            key: step.opt_text("key").map(|key| Bytes::from(key.to_owned())),
            value: value.map(Bytes::from),
            timestamp: Some(step.number("ts")?),
            headers,
        };
        self.driver.pipe_record(record).map_err(|error| error.to_string())
    }

    /// Takes everything written during one input step.
    fn collect(&mut self, at: i64) -> Result<(), Difference> {
        for topic in self.driver.produced_topic_names() {
            let records = self.driver.read_records(&topic);
            if records.is_empty() {
                continue;
            }
            let failed = |error: String| Difference::new(format!("topic {topic}"), "readable records", error);
            if self.dead_letter_topic.as_deref() == Some(&*topic) {
                let list = self.written.entry(topic.to_string()).or_default();
                list.extend(records.iter().map(|record| rows::dead_letter(record, at)));
            } else if let Some(output) = self.output(&topic) {
                let list = self.written.entry(topic.to_string()).or_default();
                for record in &records {
                    list.push(rows::output(record, output, at).map_err(failed)?);
                }
            } else if let Some(inner) = topic.strip_prefix("app-") {
                if let Some(builder) = inner
                    .strip_suffix("-changelog")
                    .filter(|store| !self.case["changelog"][*store].is_null())
                    .and_then(|store| self.stores.get(store))
                {
                    let mut of_step = Vec::new();
                    for record in &records {
                        let row = match self.join_values(&builder.name) {
                            Some((left, right)) => rows::pending(record, left, right, at),
                            None => rows::changelog(record, builder, at),
                        };
                        of_step.push(row.map_err(failed)?);
                    }
                    if matches!(builder.kind, sluice::streams::stores::StoreKind::Buffer) {
                        // The reference writes these in a hash order; the files sort one step's by key.
                        of_step.sort_by_key(|row| rows::key_text(&row["key"]));
                    }
                    let name = builder.name.clone();
                    self.logged.entry(name).or_default().extend(of_step);
                } else if let Some((decoder, regrouped)) = self.repartitions.get(inner) {
                    let list = self.repartitioned.entry(inner.to_owned()).or_default();
                    for record in &records {
                        let decode = |record: &ProducerRecord| {
                            decoder(&consumed(record))
                                .map(|decoded| (decoded.key, decoded.value, decoded.old))
                                .map_err(|error| error.to_string())
                        };
                        list.push(rows::repartition(record, decode, *regrouped, at).map_err(failed)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// For the store of a join's waiting rows: the serdes of left and right values, from the stores beside it.
    fn join_values(&self, store: &str) -> Option<(&AnySerde, &AnySerde)> {
        let base = store
            .strip_suffix("-left-shared-join-store")
            .or_else(|| store.strip_suffix("-outer-shared-join-store"))?;
        let find = |suffixes: [&str; 2]| {
            let found = suffixes.iter().find_map(|suffix| self.stores.get(&format!("{base}{suffix}")));
            found.map(|store| &store.value_serde)
        };
        let left = find(["-this-join-store", "-outer-this-join-store"])?;
        Some((left, find(["-other-join-store", "-outer-other-join-store"])?))
    }

    fn output(&self, topic: &str) -> Option<Output> {
        self.outputs.get(topic).copied().or_else(|| {
            self.prefixes.iter().find(|(prefix, _)| topic.starts_with(prefix)).map(|(_, output)| *output)
        })
    }

    fn compare(mut self) -> Result<(), Difference> {
        for topic in self.outputs.keys() {
            self.written.entry(topic.clone()).or_default();
        }
        lists("output", &self.case["output"], &self.written, true)?;
        if let Some(dropped) = self.case["dropped"].as_u64()
            && dropped != self.driver.dropped_records()
        {
            return Err(Difference::new("dropped", dropped, self.driver.dropped_records()));
        }
        lists("changelog", &self.case["changelog"], &self.logged, false)?;
        lists("repartition", &self.case["repartition"], &self.repartitioned, false)?;
        if self.case["error"].is_string() {
            return Ok(());
        }
        let mut keys: Vec<String> = self.case["input"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|input| input["key"].as_str().map(str::to_owned))
            .collect();
        keys.sort();
        keys.dedup();
        let empty = Map::new();
        for (name, expected) in self.case["stores"].as_object().unwrap_or(&empty) {
            let place = format!("stores.{name}");
            let builder = self
                .stores
                .get(name)
                .ok_or_else(|| Difference::new(&place, "a store", "no store of that name"))?;
            let listed = self
                .driver
                .with_store(name, |store| rows::store(store, builder, &keys))
                .map_err(|error| Difference::new(&place, "a store", error))?
                .map_err(|error| Difference::new(&place, "readable rows", error))?;
            let expected = expected.as_array().map_or(&[][..], Vec::as_slice);
            if let Some(difference) = compare::records(&place, expected, &listed) {
                return Err(difference);
            }
        }
        Ok(())
    }
}

/// Compares the lists a case names; with `exact`, no further list may have anything.
fn lists(
    place: &str,
    expected: &Json,
    actual: &BTreeMap<String, Vec<Json>>,
    exact: bool,
) -> Result<(), Difference> {
    let none = Vec::new();
    let empty = Map::new();
    let expected = expected.as_object().unwrap_or(&empty);
    for (name, records) in expected {
        let place = format!("{place}.{name}");
        let records = records.as_array().map_or(&[][..], Vec::as_slice);
        if let Some(difference) = compare::records(&place, records, actual.get(name).unwrap_or(&none)) {
            return Err(difference);
        }
    }
    let unexpected = actual.iter().find(|(name, list)| !list.is_empty() && !expected.contains_key(*name));
    match unexpected {
        Some((name, list)) if exact => Err(Difference::new(format!("{place}.{name}"), "(nothing)", &list[0])),
        _ => Ok(()),
    }
}

fn repartitions(topology: &Topology) -> Repartitions {
    let inner = |hop: &Hop| hop.topic.strip_prefix("app-").map(str::to_owned);
    // A stream's hop has a filter above its sink, a regrouped table's has the node that selects keys.
    let filters = |name: &String| name.contains("-repartition-filter") || name.starts_with("KSTREAM-FILTER-");
    let hops = hops(topology).into_iter().filter_map(|hop| {
        let regrouped = !hop.writers.is_empty() && !hop.writers.iter().any(filters);
        Some((inner(&hop)?, (hop.decoder, regrouped)))
    });
    hops.collect()
}

fn consumed(record: &ProducerRecord) -> ConsumerRecord {
    ConsumerRecord {
        topic: record.topic.clone(),
        partition: 0,
        offset: 0,
        timestamp: record.timestamp.unwrap_or(0),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    }
}

fn from_hex(hex: &str) -> Result<Vec<u8>, String> {
    (0..hex.len())
        .step_by(2)
        .map(|at| {
            hex.get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("not hexadecimal: {hex}"))
        })
        .collect()
}
