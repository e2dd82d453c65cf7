//! `sluice bench`: fills the topics of the bench workloads (`bench/*.toml`), and holds their output against what is known
//! of the input. Running and timing them is `./dev bench`.

mod check;
mod events;

use std::{collections::BTreeMap, time::Duration};

use events::{Event, Events};

use super::parts;
use crate::{
    cli::{BenchCommand, BenchGenerateArgs, Failure},
    config::Config,
    streams::{
        client::{NewTopic, Producer, ProducerConfig},
        error::StreamsError,
        record::{Headers, ProducerRecord},
    },
};

/// A new topic is known to every part of a cluster after this time; what is sent before can be refused.
const TOPIC_SETTLES: Duration = Duration::from_secs(1);

/// Generates or checks.
pub fn run(config: &Config, command: BenchCommand) -> Result<(), Failure> {
    parts::data_dir(config)?;
    match command {
        BenchCommand::Generate(args) => {
            generate(config, &args).map_err(|error| Failure::of("bench generate", error))
        }
        BenchCommand::Check(args) => {
            let report = check::check(&*parts::log(config)?, &args)
                .map_err(|error| Failure::of("bench check", error))?;
            println!("{}", report.summary);
            if report.mistakes.is_empty() {
                return Ok(());
            }
            report.mistakes.iter().for_each(|mistake| eprintln!("{mistake}"));
            Err(Failure::Verdict)
        }
    }
}

fn generate(config: &Config, args: &BenchGenerateArgs) -> Result<(), StreamsError> {
    let log = parts::log(config).map_err(|failure| StreamsError::Fatal(failure.to_string()))?;
    let events = Events::new(args.seed);
    let uses = events.uses(args.records);
    let issued = |index: usize| events.issued(index as u32);
    let used = |place: usize| events.used(uses[place].0, uses[place].1);
    let by_user = |event: &Event| event.user_id.to_string();
    let by_coupon = |event: &Event| event.coupon_id.to_string();
    type Topic<'a> = (&'a str, usize, &'a dyn Fn(usize) -> Event, &'a dyn Fn(&Event) -> String);
    let topics: [Topic<'_>; 3] = [
        ("bench-issued", args.records as usize, &issued, &by_user),
        ("bench-issued-by-coupon", args.records as usize, &issued, &by_coupon),
        ("bench-used", uses.len(), &used, &by_user),
    ];
    let admin = log.admin()?;
    let names: Vec<String> = topics.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let existing = admin.describe(&names)?;
    let missing = |name: &str| !existing.contains_key(name);
    let new: Vec<NewTopic> = names
        .iter()
        .filter(|name| missing(name))
        .map(|name| NewTopic {
            name: name.clone(),
            partitions: args.partitions,
            replication_factor: config.topics.replication_factor,
            // The events are of a fixed day: they must not expire.
            config: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
        })
        .collect();
    if !new.is_empty() {
        admin.create_topics(&new)?;
        std::thread::sleep(TOPIC_SETTLES);
    }
    let mut producer = log.producer(&ProducerConfig::default())?;
    for (name, count, event, key) in topics {
        if missing(name) {
            fill(&mut *producer, name, (0..count).map(event), key)?;
            println!("{name}: {count} records");
        } else {
            println!("{name}: exists, left as it is");
        }
    }
    Ok(())
}

fn fill(
    producer: &mut dyn Producer,
    topic: &str,
    events: impl Iterator<Item = Event>,
    key: &dyn Fn(&Event) -> String,
) -> Result<(), StreamsError> {
    let topic: std::sync::Arc<str> = topic.into();
    for event in events {
        producer.send(ProducerRecord {
            topic: topic.clone(),
            partition: None,
            key: Some(key(&event).into()),
            value: Some(event.json.into()),
            timestamp: Some(event.at),
            headers: Headers::EMPTY,
        })?;
    }
    producer.flush()
}
