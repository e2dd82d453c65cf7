//! The command line: what can be asked for, in words worth reading.
//!
//! Only the shape stands here; [`app`](crate::app) does the work. A mistake on the command line or in the
//! configuration is exit code 2 and changes nothing; a command that could not do its work, or whose verdict is no,
//! is exit code 1.

mod dlq;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::dlq::{DlqCommand, DlqRedriveArgs, DlqShowArgs, LetterFilter};
use crate::{
    config::ConfigError,
    coupon::{
        clock::UtcMicros,
        ids::{CouponId, UserId},
    },
};

/// First-come-first-served coupons, and the Kafka Streams for Rust that runs under them.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about,
    after_help = "Examples:
  sluice demo                                   the whole path in one process, checked; needs no services
  sluice serve                                  API, relay and topologies on embedded parts, at 127.0.0.1:8080
  sluice serve --config config/production.toml  the same on Kafka, Redis and Postgres
  sluice config show                            every key with its value and where it came from

Every key can be set in the environment: SLUICE__HTTP__LISTEN=0.0.0.0:8080 sets http.listen.
Exit codes: 0 done, 1 failed or the verdict is no, 2 a mistake on the command line or in the configuration."
)]
pub struct Cli {
    /// Configuration file; what it does not say keeps its default (config/default.toml lists every key).
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT: the API, the relay and the topologies, or some of them.
    Serve(ServeArgs),
    /// See it work: the whole path in this process, without services, in half a minute, with a verdict.
    Demo(DemoArgs),
    /// Bring the ledger's schema up to date. `serve` does it too; this is for doing it beforehand.
    Migrate,
    /// Run topology files by themselves.
    #[command(subcommand)]
    Streams(StreamsCommand),
    /// Fill the topics of the bench workloads, and check what they wrote.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check, test and look at topology files.
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// Compare ledger, gate, log and derived topics, and say which invariant (I1 to I9) is broken, where.
    Verify(VerifyArgs),
    /// Show what every user coupon was at a moment, or replay the history and compare it with the tables.
    Audit(AuditArgs),
    /// Hold gate, history and outbox against the ledger, campaign by campaign, and repair the gate.
    Reconcile(ReconcileArgs),
    /// Look at events the log refused for good, and have them sent again.
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Look at records that could not be processed, and send them back.
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Create or check the topics of the service.
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Serve until told to stop.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice serve                       everything in one process
  sluice serve --roles api           one of several API processes (gate.kind = \"redis\", a Postgres ledger)
  sluice serve --roles relay,streams the rest, elsewhere

SIGTERM or SIGINT stops in order: no new requests, admitted ones finish, the outbox is relayed, topologies commit.")]
pub struct ServeArgs {
    /// Which parts to run in this process.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["api", "relay", "streams"])]
    pub roles: Vec<Role>,
}

/// See it work.
#[derive(Debug, Args)]
#[command(
    after_help = "A campaign of 1,000 seats, 5,000 users who rush it over real HTTP (double clicks, lost answers,
retries), some who use their coupon and some who never do; then the invariants I1 to I9 are
checked against the ledger, the gate, the log and what every user was told.

Examples:
  sluice demo                  run it; exit code 0 only when everything holds
  sluice demo --json           the last line on standard output is the summary as JSON
  sluice demo --serve          stay up afterwards, to look around
  kill -9 it, then sluice demo --resume   it goes on where it was, to the same verdict"
)]
pub struct DemoArgs {
    /// Print the summary as one final JSON line; everything else goes to standard error.
    #[arg(long)]
    pub json: bool,
    /// Stay up afterwards until SIGINT or SIGTERM.
    #[arg(long)]
    pub serve: bool,
    /// Go on with a run that was killed.
    #[arg(long)]
    pub resume: bool,
    /// Where the run leaves its data. A new run empties the directory of an older run, and no other.
    #[arg(long, value_name = "DIR", default_value = "sluice-demo")]
    pub data_dir: PathBuf,
    /// Seats of the campaign.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub seats: i64,
    /// Users who want one.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub users: i64,
}

/// Compare everything with everything.
#[derive(Debug, Args)]
#[command(
    after_help = "Run it when all is quiet: what is on its way counts as missing. It changes nothing. An embedded gate
lives in the process that serves, so I5 is only checked with gate.kind = \"redis\".

Exit code 0: everything that could be checked holds; 1: something is broken."
)]
pub struct VerifyArgs {
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// What clients were told, for I9: one {\"couponId\",\"userId\",\"status\",\"code\"} a line.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
}

/// Topologies by themselves.
#[derive(Debug, Subcommand)]
pub enum StreamsCommand {
    /// Run files until SIGTERM or SIGINT, or until they have caught up.
    Run(StreamsRunArgs),
    /// Make an application begin anew: offsets of its inputs, internal topics, local state.
    Reset(StreamsResetArgs),
}

/// Begin anew.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --execute it only says what it would do. Output topics are never touched: what was written stays, and what is
processed again is written again.

Examples:
  sluice streams reset topologies/my-statistics.toml                         look
  sluice streams reset topologies/my-statistics.toml --execute               from the earliest record on
  sluice streams reset topologies/my-statistics.toml --to-datetime 2026-03-01T00:00:00+09:00 --execute

Exit code 1: the group has active members, or it could not be done."
)]
pub struct StreamsResetArgs {
    /// A topology file; builtin:NAME is one shipped in the binary.
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Do it.
    #[arg(long)]
    pub execute: bool,
    /// Wait up to a minute for members that were stopped and still count as alive.
    #[arg(long)]
    pub force: bool,
    /// Inputs from the earliest record on (the default).
    #[arg(long, group = "target")]
    pub to_earliest: bool,
    /// Only what comes from now on.
    #[arg(long, group = "target")]
    pub to_latest: bool,
    /// Every input partition from this offset on, or from where it begins.
    #[arg(long, group = "target", value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    pub to_offset: Option<i64>,
    /// From the first record at or after a moment on, RFC 3339 with an offset.
    #[arg(long, group = "target", value_name = "TIME")]
    pub to_datetime: Option<String>,
    /// From the first record of the last so much time on, as 90m, 12h or 7d.
    #[arg(long, group = "target", value_name = "DURATION")]
    pub by_duration: Option<String>,
    /// So many records on from what is committed, or back when negative.
    #[arg(long, group = "target", value_name = "N", allow_hyphen_values = true)]
    pub shift_by: Option<i64>,
    /// Further topics to delete: of nodes that were taken out of the file before.
    #[arg(long, value_delimiter = ',', value_name = "TOPIC")]
    pub internal_topics: Vec<String>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Run files.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice streams run topologies/my-statistics.toml
  sluice streams run --until-caught-up builtin:coupon-statistics   a backfill: stops at what was there at start

With --until-caught-up the last line is one JSON object: records, seconds, cpu_seconds, peak_rss_bytes, commits,
restored, late, dropped.")]
pub struct StreamsRunArgs {
    /// Topology files; builtin:NAME is one shipped in the binary.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Stop when every input has reached the offset it had at start.
    #[arg(long)]
    pub until_caught_up: bool,
    /// Where tasks keep their state, in place of streams.state_dir.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// "exactly_once" or "at_least_once", in place of streams.processing_guarantee.
    #[arg(long, value_name = "GUARANTEE")]
    pub guarantee: Option<String>,
    /// "sluice" or "kafka-4.3", in place of streams.semantics.
    #[arg(long, value_name = "SEMANTICS")]
    pub semantics: Option<String>,
    /// Stream threads per application, in place of streams.num_stream_threads.
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Name of this process in its groups, in place of streams.instance_id.
    #[arg(long, value_name = "NAME")]
    pub instance_id: Option<String>,
    /// Milliseconds between commits, in place of streams.commit_interval_ms.
    #[arg(long, value_name = "MS")]
    pub commit_interval_ms: Option<String>,
}

impl StreamsRunArgs {
    /// Keys of the configuration that the command line sets.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("streams.state_dir", &self.state_dir),
            ("streams.processing_guarantee", &self.guarantee),
            ("streams.semantics", &self.semantics),
            ("streams.num_stream_threads", &self.threads),
            ("streams.instance_id", &self.instance_id),
            ("streams.commit_interval_ms", &self.commit_interval_ms),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))).collect()
    }
}

/// The bench workloads (bench/*.toml). `./dev bench` does all of it: generate, run, check, print a table.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Fill bench-issued, bench-issued-by-coupon and bench-used. Topics that exist are left as they are.
    Generate(BenchGenerateArgs),
    /// Hold what a workload wrote against its input. Exit code 1: it is wrong.
    Check(BenchCheckArgs),
}

/// Fill the topics.
#[derive(Clone, Copy, Debug, Args)]
pub struct BenchGenerateArgs {
    /// Issues; about 40 % as many uses.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1..=8_000_000))]
    pub records: u32,
    /// Same seed, same records.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Partitions of each topic.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub partitions: i32,
}

/// Check the output.
#[derive(Clone, Debug, Args)]
pub struct BenchCheckArgs {
    /// Which workload.
    #[arg(value_enum)]
    pub workload: Workload,
    /// As given to `generate`.
    #[arg(long, default_value_t = 4_000_000)]
    pub records: u32,
    /// As given to `generate`.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// The output topic; default bench-WORKLOAD-out.
    #[arg(long)]
    pub topic: Option<String>,
    /// Every window must be final, exactly once: it ran on until its inputs counted as silent.
    #[arg(long)]
    pub all_final: bool,
}

/// A bench workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Counts per coupon and minute, repartitioned.
    W1,
    /// The same from events that are keyed by coupon already.
    W1n,
    /// Totals per user.
    W2,
    /// Issues joined with uses.
    W3,
}

impl Workload {
    /// Its name in topics and files.
    pub fn name(self) -> &'static str {
        match self {
            Workload::W1 => "w1",
            Workload::W1n => "w1n",
            Workload::W2 => "w2",
            Workload::W3 => "w3",
        }
    }
}

/// Topology files.
#[derive(Debug, Subcommand)]
pub enum TopologyCommand {
    /// Load files and report every mistake with its line, a caret and advice.
    Check(TopologyFiles),
    /// Run the tests beside files (x.test.toml beside x.toml).
    Test(TopologyFiles),
    /// Print the graph as Kafka Streams' describe() does, or draw it.
    Describe(TopologyDescribeArgs),
    /// Print the plan: nodes, internal topics and state in canonical form, as JSON.
    Plan(TopologyPlanArgs),
    /// Compare a file with its committed plan, or with what a server runs: what each change means for kept state.
    Diff(TopologyDiffArgs),
    /// Print the JSON Schema of topology files, for completion and checks in editors.
    Schema,
}

/// Print or draw.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sluice topology describe builtin:coupon-statistics
  sluice topology describe --svg topologies/my-statistics.toml > my-statistics.svg
  sluice topology describe --dot topologies/my-statistics.toml | dot -Tpng > my-statistics.png")]
pub struct TopologyDescribeArgs {
    /// A topology file; builtin:NAME is one shipped in the binary.
    #[arg(value_name = "FILE")]
    pub file: String,
    /// As a graph for Graphviz.
    #[arg(long, conflicts_with = "svg")]
    pub dot: bool,
    /// As a picture.
    #[arg(long)]
    pub svg: bool,
}

/// Plans.
#[derive(Debug, Args)]
#[command(
    after_help = "The lock of a file is its plan, committed beside it as .plan/APP.json; a reviewer sees there what a change means.

Examples:
  sluice topology plan topologies/my-statistics.toml
  sluice topology plan --write topologies/*.toml     write the locks (files of tests are passed over)"
)]
pub struct TopologyPlanArgs {
    /// Topology files; builtin:NAME is one shipped in the binary.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Write each plan to its lock in place of printing it.
    #[arg(long)]
    pub write: bool,
}

/// Compare.
#[derive(Debug, Args)]
#[command(after_help = "Classes, mildest first:
  transparent              no result changes
  forward-only             results of records that come after the change
  a new node               begins empty, with the records that come after the change
  a removed node           its state is left behind
  state_version + 1        the state is built anew beside the old, then takes over
  needs state_version + 1  kept state would mean something else: refused, until the file says so
  refused                  cannot be applied to what runs

Examples:
  sluice topology diff topologies/my-statistics.toml
  sluice topology diff --check topologies/*.toml                 in CI: exit code 1 when a lock is missing or differs
  sluice topology diff --server http://127.0.0.1:8080 topologies/my-statistics.toml

Exit code 1: with --check, there is a difference; else, a change is refused.")]
pub struct TopologyDiffArgs {
    /// Topology files; builtin:NAME is one shipped in the binary.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Any difference is a failure.
    #[arg(long)]
    pub check: bool,
    /// Compare with what this server runs, not with the lock.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// The server's admin token.
    #[arg(long, value_name = "TOKEN", env = "SLUICE__ADMIN__TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Some files.
#[derive(Debug, Args)]
pub struct TopologyFiles {
    /// Topology files; builtin:NAME is one shipped in the binary.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
}

/// Ask the history.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  sluice audit --as-of 2026-03-01T09:00:00+09:00 --user 7   what user 7 held then
  sluice audit replay                                      exit code 1 and the differences, if there are any"
)]
pub struct AuditArgs {
    /// The moment, RFC 3339 with an offset.
    #[arg(long, value_name = "TIME")]
    pub as_of: Option<UtcMicros>,
    /// Only of this campaign.
    #[arg(long, value_name = "ID", value_parser = id::<CouponId>)]
    pub coupon: Option<CouponId>,
    /// Only of this user.
    #[arg(long, value_name = "ID", value_parser = id::<UserId>)]
    pub user: Option<UserId>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
    /// Replay instead.
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
}

/// What else to ask the history.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum AuditCommand {
    /// Replay the whole history and compare it with the tables.
    Replay {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Hold everything against the ledger.
#[derive(Clone, Copy, Debug, Args)]
#[command(
    after_help = "Seats on their way and events on their way are no drift. Exit code 0: no drift; 1: drift, or what is
left of it after --fix. Only a gate in Redis can be asked from another process."
)]
pub struct ReconcileArgs {
    /// Rebuild the gate of every campaign it differs in, then look again.
    #[arg(long)]
    pub fix: bool,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The outbox.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum OutboxCommand {
    /// List events the log refused for good; later events of the same user wait behind them.
    Parked,
    /// Have a parked event sent again, once the log would take it.
    Resume {
        /// The row, as `parked` lists it.
        id: i64,
    },
}

/// Parses an id of the domain.
fn id<T: TryFrom<i64, Error = String>>(text: &str) -> Result<T, String> {
    let number: i64 = text.parse().map_err(|_| format!("must be a positive whole number, not `{text}`"))?;
    T::try_from(number)
}

/// A part of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The HTTP API with gate and ledger.
    Api,
    /// Outbox to log.
    Relay,
    /// The topologies.
    Streams,
}

/// Topics of the service.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum TopicsCommand {
    /// Create those that do not exist, then check all.
    Create,
    /// Check that all exist as configured; change nothing.
    Validate,
}

/// The configuration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every mistake, with the place it was written at and the remedy.
    Check,
    /// Print every key with its value (secrets hidden) and where it came from.
    Show,
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Mistakes in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A mistake on the command line that clap cannot see.
    #[error("{0}")]
    Usage(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
    /// It was done and the verdict is no; the report is printed already.
    #[error("the verdict is no")]
    Verdict,
}

impl Failure {
    /// A failure with the thing that was tried in front of the cause.
    pub fn of(what: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Config(_) | Failure::Usage(_) => ExitCode::from(2),
            Failure::Failed(_) | Failure::Verdict => ExitCode::from(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn roles_are_a_list() {
        let cli = Cli::try_parse_from(["sluice", "serve", "--roles", "api,relay"]).unwrap();
        let Command::Serve(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.roles, [Role::Api, Role::Relay]);
        let cli = Cli::try_parse_from(["sluice", "serve"]).unwrap();
        let Command::Serve(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.roles, [Role::Api, Role::Relay, Role::Streams]);
        assert!(Cli::try_parse_from(["sluice", "serve", "--roles", "apy"]).is_err());
    }
}
