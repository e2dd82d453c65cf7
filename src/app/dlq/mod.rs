//! `sluice dlq`: what could not be processed, looked at and sent back.
//!
//! A dead-letter topic is one that says so by its name, `…-dlq`, or is named on the command line. Letters are never removed:
//! the topic forgets them by its retention, and what was sent back is known by the input.

mod letter;
mod redrive;

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use self::{letter::Letter, redrive::Fate};
use crate::{
    app::parts,
    cli::{DlqCommand, DlqRedriveArgs, DlqShowArgs, Failure, LetterFilter},
    config::Config,
    streams::{
        client::{ClientSupplier, read_topic},
        error::StreamsError,
        file::time::format_timestamp,
    },
};

/// How the name of a dead-letter topic ends.
const SUFFIX: &str = "-dlq";

/// Does what is asked.
pub fn run(config: &Config, command: DlqCommand) -> Result<(), Failure> {
    parts::data_dir(config)?;
    let log = &*parts::log(config)?;
    match command {
        DlqCommand::List { topics, json } => list(log, topics, json),
        DlqCommand::Show(args) => show(log, &args),
        DlqCommand::Redrive(args) => redrive(log, &args),
    }
}

fn failed(error: StreamsError) -> Failure {
    Failure::of("dlq", error)
}

/// The letters of a topic that a filter lets pass, in the order of the log.
fn letters(log: &dyn ClientSupplier, topic: &str, filter: &LetterFilter) -> Result<Vec<Letter>, Failure> {
    let admin = log.admin().map_err(failed)?;
    if admin.describe(&[topic.to_owned()]).map_err(failed)?.is_empty() {
        return Err(Failure::Failed(format!(
            "there is no topic {topic}; `sluice dlq list` names those there are"
        )));
    }
    let mut letters = Vec::new();
    read_topic(log, topic, |record| {
        letters.push(Letter::read(record));
        Ok(())
    })
    .map_err(failed)?;
    letters.retain(|letter| passes(letter, filter));
    letters.sort_by(|a, b| a.at.cmp(&b.at));
    Ok(letters)
}

fn passes(letter: &Letter, filter: &LetterFilter) -> bool {
    let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
    is(&filter.event, letter.event_id.as_deref())
        && is(&filter.node, letter.node.as_deref())
        && is(&filter.error, letter.error.as_deref())
        && filter.at.is_none_or(|(partition, offset)| {
            letter.at.partition.partition == partition && letter.at.offset == offset
        })
}

/// Letters of one topic that failed in the same way.
#[derive(Default)]
struct Kind {
    letters: usize,
    oldest: i64,
    newest: i64,
    example: Option<String>,
}

fn list(log: &dyn ClientSupplier, topics: Vec<String>, as_json: bool) -> Result<(), Failure> {
    let topics = match topics.is_empty() {
        false => topics,
        true => {
            let mut all = log.admin().and_then(|admin| admin.list_topics()).map_err(failed)?;
            all.retain(|name| name.ends_with(SUFFIX));
            all.sort();
            all
        }
    };
    let mut kinds: BTreeMap<(String, String, String), Kind> = BTreeMap::new();
    for topic in &topics {
        for letter in letters(log, topic, &LetterFilter::default())? {
            let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".into());
            let key = (topic.clone(), named(&letter.node), named(&letter.error));
            let kind = kinds.entry(key).or_insert_with(|| Kind {
                oldest: i64::MAX,
                newest: i64::MIN,
                ..Kind::default()
            });
            kind.letters += 1;
            kind.oldest = kind.oldest.min(letter.timestamp);
            kind.newest = kind.newest.max(letter.timestamp);
            kind.example = letter.message.or(kind.example.take());
        }
    }
    let total: usize = kinds.values().map(|kind| kind.letters).sum();
    if as_json {
        let kinds: Vec<_> = kinds
            .iter()
            .map(|((topic, node, error), kind)| {
                json!({
                    "topic": topic, "node": node, "error": error, "letters": kind.letters,
                    "oldest": format_timestamp(kind.oldest), "newest": format_timestamp(kind.newest), "message": kind.example,
                })
            })
            .collect();
        println!("{}", json!({ "topics": topics, "letters": total, "kinds": kinds }));
        return Ok(());
    }
    if total > 0 {
        println!(
            "{:>8} {:24} {:24} {:24} {:24} what it said last",
            "letters", "topic", "node", "oldest record", "newest record"
        );
    }
    for ((topic, node, error), kind) in &kinds {
        let said = kind.example.as_deref().unwrap_or_default();
        println!(
            "{:>8} {topic:24} {node:24} {:24} {:24} {error}: {said}",
            kind.letters,
            format_timestamp(kind.oldest),
            format_timestamp(kind.newest)
        );
    }
    println!("{total} dead letters in {} topics ({})", topics.len(), topics.join(", "));
    Ok(())
}

fn show(log: &dyn ClientSupplier, args: &DlqShowArgs) -> Result<(), Failure> {
    let letters = letters(log, &args.topic, &args.filter)?;
    let skipped = letters.len().saturating_sub(args.limit);
    for letter in &letters[skipped..] {
        let view = letter.view();
        if args.json {
            println!("{}", serde_json::to_string(&view).map_err(|error| Failure::of("dlq", error))?);
            continue;
        }
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        println!("{}", view.at);
        println!("  read at   {}, attempt {}", or_none(view.origin.as_deref()), view.attempts);
        println!("  failed in {}: {}: {}", or_none(view.node), or_none(view.error), or_none(view.message));
        println!("  time      {}", view.time);
        println!("  key       {}", or_none(view.key.as_deref()));
        println!("  value     {}", view.value.as_ref().map_or("-".to_owned(), ToString::to_string));
        for (name, value) in &view.headers {
            println!("  header    {name}: {}", or_none(value.as_deref()));
        }
    }
    if !args.json {
        println!(
            "{} letters{}",
            letters.len(),
            match skipped {
                0 => String::new(),
                skipped => format!(", the {skipped} oldest not shown (--limit {})", letters.len()),
            }
        );
    }
    Ok(())
}

fn redrive(log: &dyn ClientSupplier, args: &DlqRedriveArgs) -> Result<(), Failure> {
    let letters = letters(log, &args.topic, &args.filter)?;
    let fates = match args.execute {
        false => redrive::plan(log, &letters).map_err(failed)?,
        true => {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} letters sent back")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(letters.len() as u64).with_style(style);
            let fates = redrive::execute(log, &args.topic, &letters, |sent| bar.set_position(sent as u64));
            bar.finish_and_clear();
            fates.map_err(|error| {
                Failure::Failed(format!(
                    "redrive: {error}; what was sent is kept: run the same command again for the rest"
                ))
            })?
        }
    };
    let count = |fate: Fate| fates.iter().filter(|found| **found == fate).count();
    let (send, unknown) = (count(Fate::Send), count(Fate::NoOrigin));
    if args.json {
        println!(
            "{}",
            json!({
                "executed": args.execute, "letters": letters.len(), "send": send, "sentBefore": count(Fate::AlreadyThere),
                "sameEvent": count(Fate::SameEvent), "noOrigin": unknown,
            })
        );
    } else {
        for (letter, fate) in letters.iter().zip(&fates) {
            let origin = letter.origin.as_ref().map_or("-".to_owned(), ToString::to_string);
            let event = letter.event_id.as_deref().unwrap_or("-");
            println!("{:32} {origin:32} {event:36} {}", letter.at.to_string(), fate.words(args.execute));
        }
        match args.execute {
            true => println!("{send} of {} letters sent back", letters.len()),
            false => {
                println!("{send} of {} letters would be sent back; nothing was: add --execute", letters.len())
            }
        }
    }
    // Asked to send everything, and could not.
    if args.execute && unknown > 0 { Err(Failure::Verdict) } else { Ok(()) }
}
