//! `sluice dlq`: the words of the command line for dead letters.

use clap::{Args, Subcommand};

/// Dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DlqCommand {
    /// Say what lies in the dead-letter topics: how many letters, of which processor and error.
    List {
        /// Topics to look at; those whose names end in -dlq when none is given.
        topics: Vec<String>,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print letters whole: the record as it came, and what happened to it.
    Show(DlqShowArgs),
    /// Send letters back to the partition they were read from. Says what it would do; --execute does it.
    Redrive(DlqRedriveArgs),
}

/// Print letters.
#[derive(Clone, Debug, Args)]
pub struct DlqShowArgs {
    /// The dead-letter topic.
    pub topic: String,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Print at most so many, the newest.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// Send letters back.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "A letter goes back to the topic and partition it was read from, with its key, value, headers and time, and every
application that reads there gets it. It is sent once, however often this is run: not if the same eventId, or the
record itself, is there again after the place it was read. A run that died is repeated as a whole.

Examples:
  sluice dlq redrive coupon-issued-dlq                      what would be sent
  sluice dlq redrive coupon-issued-dlq --execute            send it
  sluice dlq redrive coupon-issued-dlq --event 0197… --execute   one event

Exit code 1 when a letter could not be sent because where it was read is not known."
)]
pub struct DlqRedriveArgs {
    /// The dead-letter topic.
    pub topic: String,
    /// Which letters.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Do it.
    #[arg(long)]
    pub execute: bool,
    /// Print the counts as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which letters are meant; all of the topic when nothing is given.
#[derive(Clone, Debug, Default, Args)]
pub struct LetterFilter {
    /// Those of one event.
    #[arg(long, value_name = "EVENT_ID")]
    pub event: Option<String>,
    /// Those that failed in this processor.
    #[arg(long)]
    pub node: Option<String>,
    /// Those that failed with this error, as `list` names it.
    #[arg(long)]
    pub error: Option<String>,
    /// The letter at this place of the dead-letter topic.
    #[arg(long, value_name = "PARTITION@OFFSET", value_parser = place)]
    pub at: Option<(i32, i64)>,
}

fn place(text: &str) -> Result<(i32, i64), String> {
    text.split_once('@')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)))
        .ok_or_else(|| format!("must be a partition and an offset, as 0@42, not `{text}`"))
}
