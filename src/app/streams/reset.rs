//! `sluice streams reset`: an application made to begin anew, as Kafka's application reset tool does it.
//!
//! What it finds and would do is a [`Plan`], printed first; `--execute` then does exactly that: internal topics and local state are
//! deleted, and the group's offsets on the inputs are set, last, so that a run that broke off is repeated as a whole. What must always
//! hold: nothing is touched without `--execute`, nor while a member of the group may be alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp as Moment;
use serde_json::{Value, json};

use super::{accepted, files};
use crate::{
    app::parts,
    cli::{Failure, StreamsResetArgs},
    config::Config,
    streams::{
        client::{Admin, ClientSupplier, Consumer, ConsumerConfig, OffsetAndMetadata},
        error::StreamsError,
        file::{LoadedFile, time::parse_duration},
        record::TopicPartition,
        runtime::{internal_topics, plan_partitions, system_clock},
    },
};

/// How long `--force` waits for members that were stopped to be counted out: longer than Kafka's default session.
const FORCE_WAIT: Duration = Duration::from_secs(60);
/// How often it asks.
const FORCE_POLL: Duration = Duration::from_millis(250);

/// Where the inputs are set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Earliest,
    Latest,
    Offset(i64),
    Time(i64),
    Shift(i64),
}

/// One input partition.
#[derive(Debug)]
struct Move {
    from: Option<i64>,
    to: i64,
    end: i64,
}

/// Everything a reset does.
#[derive(Debug)]
struct Plan {
    application: String,
    group: String,
    inputs: BTreeMap<TopicPartition, Move>,
    topics: Vec<String>,
    /// Topics that look like the application's and are not of this file.
    unknown: Vec<String>,
    state: Option<PathBuf>,
    members: Vec<String>,
}

/// Plans, prints, and with `--execute` does it.
pub fn run(config: &Config, args: &StreamsResetArgs) -> Result<(), Failure> {
    let target = target(args).map_err(Failure::Usage)?;
    parts::data_dir(config)?;
    let log = parts::log(config)?;
    let mut files = files::load_named(std::slice::from_ref(&args.file))?;
    let Some(file) = files.pop() else { return Ok(()) };
    let failed = |error: StreamsError| Failure::of("reset", error);
    let admin = log.admin().map_err(failed)?;
    let state_dir = &config.streams.runtime.state_dir;
    let mut plan =
        planned(&file, target, &*log, &*admin, state_dir, &args.internal_topics).map_err(failed)?;
    if args.execute && args.force && !plan.members.is_empty() {
        plan.members = wait_until_inactive(&*admin, &plan.group).map_err(failed)?;
    }
    match args.json {
        true => println!("{}", plan.json(args.execute)),
        false => print!("{}", plan.text(args.execute)),
    }
    if !args.execute {
        return Ok(());
    }
    if !plan.members.is_empty() {
        return Err(Failure::Failed(format!(
            "group {} has active members ({}), nothing was changed. Stop them; one that was killed counts as alive \
             until its session times out: --force waits for that",
            plan.group,
            plan.members.join(", ")
        )));
    }
    execute(&plan, &*admin).map_err(|failure| match failure {
        Failure::Failed(reason) => {
            Failure::Failed(format!("{reason}; run the same reset again before the application starts"))
        }
        other => other,
    })
}

fn target(args: &StreamsResetArgs) -> Result<Target, String> {
    if args.to_latest {
        return Ok(Target::Latest);
    }
    if let Some(offset) = args.to_offset {
        return Ok(Target::Offset(offset));
    }
    if let Some(shift) = args.shift_by {
        return Ok(Target::Shift(shift));
    }
    if let Some(moment) = &args.to_datetime {
        let moment: Moment = moment.parse().map_err(|error| {
            format!(
                "--to-datetime {moment}: {error}; write RFC 3339 with an offset, as 2026-03-01T09:00:00+09:00"
            )
        })?;
        return Ok(Target::Time(moment.as_millisecond()));
    }
    if let Some(duration) = &args.by_duration {
        let ms = parse_duration(duration)
            .ok_or_else(|| format!("--by-duration {duration} is no duration; write it as 90m, 12h or 7d"))?;
        return Ok(Target::Time(system_clock() - ms));
    }
    Ok(Target::Earliest)
}

fn planned(
    file: &LoadedFile,
    target: Target,
    log: &dyn ClientSupplier,
    admin: &dyn Admin,
    state_dir: &Path,
    more: &[String],
) -> Result<Plan, StreamsError> {
    let topology = &file.topology;
    let application = topology.application_id.to_string();
    let mut consumer = log.consumer(&ConsumerConfig::default())?;
    let committed = admin.group_offsets(&file.group)?;
    let external: Vec<String> = topology.external_source_topics().iter().map(ToString::to_string).collect();
    let mut inputs = BTreeMap::new();
    for (topic, described) in admin.describe(&external)? {
        for partition in 0..described.partitions {
            let partition = TopicPartition::new(topic.as_str(), partition);
            let from = committed.get(&partition).map(|offset| offset.offset);
            let (to, end) = moved(&mut *consumer, &partition, from, target)?;
            inputs.insert(partition, Move { from, to, end });
        }
    }
    let wanted = plan_partitions(topology, admin)?;
    let mut own: BTreeSet<String> =
        internal_topics(topology, &wanted, -1).into_iter().map(|topic| topic.name).collect();
    own.extend(repartitions_and_changelogs(&file.plan));
    if let Some(last) = accepted::read(state_dir, &application) {
        own.extend(repartitions_and_changelogs(&last.plan));
    }
    let all = admin.list_topics()?;
    let prefix = format!("{application}-");
    let internal = |name: &str| name.ends_with("-changelog") || name.ends_with("-repartition");
    let looks_own = |name: &&String| name.starts_with(&prefix) && internal(name);
    let unknown = all.iter().filter(looks_own).filter(|name| !own.contains(*name) && !more.contains(name));
    let unknown = unknown.cloned().collect();
    let topics = all.iter().filter(|name| own.contains(*name) || more.contains(name)).cloned().collect();
    let folder = state_dir.join(&application);
    let members = members(admin, &file.group)?;
    let state = folder.is_dir().then_some(folder);
    Ok(Plan { application, group: file.group.clone(), inputs, topics, unknown, state, members })
}

fn repartitions_and_changelogs(plan: &Value) -> impl Iterator<Item = String> + '_ {
    plan["internalTopics"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
}

/// Where a partition goes, within what the log has, and where that ends.
fn moved(
    consumer: &mut dyn Consumer,
    partition: &TopicPartition,
    from: Option<i64>,
    target: Target,
) -> Result<(i64, i64), StreamsError> {
    let (first, end) = consumer.watermarks(partition)?;
    let to = match target {
        Target::Earliest => first,
        Target::Latest => end,
        Target::Offset(offset) => offset,
        Target::Shift(shift) => from.unwrap_or(first).saturating_add(shift),
        Target::Time(time) => consumer.offset_for_time(partition, time)?.unwrap_or(end),
    };
    Ok((to.clamp(first, end), end))
}

fn members(admin: &dyn Admin, group: &str) -> Result<Vec<String>, StreamsError> {
    let members = admin.group_members(group)?.into_iter();
    Ok(members.map(|member| member.group_instance_id.unwrap_or(member.member_id)).collect())
}

fn wait_until_inactive(admin: &dyn Admin, group: &str) -> Result<Vec<String>, StreamsError> {
    let deadline = Instant::now() + FORCE_WAIT;
    loop {
        let members = members(admin, group)?;
        if members.is_empty() || Instant::now() >= deadline {
            return Ok(members);
        }
        eprintln!("waiting until the group counts out {}", members.join(", "));
        std::thread::park_timeout(FORCE_POLL);
    }
}

fn execute(plan: &Plan, admin: &dyn Admin) -> Result<(), Failure> {
    admin.delete_topics(&plan.topics).map_err(|error| Failure::of("deleting internal topics", error))?;
    if let Some(state) = &plan.state {
        std::fs::remove_dir_all(state)
            .map_err(|error| Failure::of(format!("deleting {}", state.display()), error))?;
    }
    // Without text: clocks of the life before must not outlive it.
    let offset = |to: i64| OffsetAndMetadata { offset: to, metadata: String::new() };
    let offsets = plan.inputs.iter().map(|(partition, step)| (partition.clone(), offset(step.to))).collect();
    admin
        .alter_group_offsets(&plan.group, &offsets)
        .map_err(|error| Failure::of(format!("setting offsets of group {}", plan.group), error))
}

impl Plan {
    fn json(&self, executed: bool) -> Value {
        let inputs: Vec<Value> = (self.inputs.iter())
            .map(|(at, step)| {
                json!({ "topic": &*at.topic, "partition": at.partition, "from": step.from, "to": step.to, "end": step.end })
            })
            .collect();
        json!({
            "application": self.application,
            "group": self.group,
            "members": self.members,
            "offsets": inputs,
            "deletedTopics": self.topics,
            "untouchedTopics": self.unknown,
            "deletedState": self.state.as_ref().map(|path| path.display().to_string()),
            "executed": executed && self.members.is_empty(),
        })
    }

    fn text(&self, execute: bool) -> String {
        let mut text = format!("application {}, group {}\n", self.application, self.group);
        for member in &self.members {
            text += &format!("  active member     {member}\n");
        }
        for (partition, step) in &self.inputs {
            let from = step.from.map_or_else(|| "none".to_owned(), |from| from.to_string());
            text += &format!("  offset            {partition}: {from} -> {} (of {})\n", step.to, step.end);
        }
        for topic in &self.topics {
            text += &format!("  delete topic      {topic}\n");
        }
        for topic in &self.unknown {
            text += &format!(
                "  leave topic       {topic} (not of this file; --internal-topics {topic} deletes it too)\n"
            );
        }
        if let Some(state) = &self.state {
            text += &format!("  delete state      {}\n", state.display());
        }
        if !execute {
            text += "nothing was changed; --execute does this\n";
        }
        text
    }
}
