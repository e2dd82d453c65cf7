//! Composition root: builds every part from the configuration and connects them. The only module that knows all the
//! others.
//!
//! [`run`] dispatches a command line; `parts` builds single parts, `serve` runs them together, `topics` knows which
//! topics the service has.

mod audit;
mod bench;
mod demo;
mod dlq;
mod memory;
mod parts;
mod serve;
mod streams;
mod topics;
mod topology;
mod verify;

use crate::{
    cli::{Cli, Command, ConfigCommand, Failure, Role, StreamsCommand, TopicsCommand},
    config::{self, Config},
    telemetry,
};

/// Does what the command line asks for.
pub fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Serve(args) = &cli.command
        && !args.roles.contains(&Role::Streams)
    {
        memory::small_pages();
    }
    if let Command::Config(ConfigCommand::Show) = cli.command {
        let layers = Config::layers(cli.config.as_deref());
        print!("{}", config::show(&layers));
        // Shown in any case: the values help to find the mistakes.
        return Config::from_layers(layers).map(drop).map_err(Failure::from);
    }
    if let Command::Demo(args) = cli.command {
        let layers = Config::layers(cli.config.as_deref());
        // Quiet unless asked: the view is what is looked at. `demo` checks the rest of the configuration itself.
        let layers = match layers.values["telemetry.log"].origin.starts_with("config/default.toml") {
            true => layers.set("telemetry.log", "warn", "sluice demo"),
            false => layers,
        };
        return block_on(demo::run(layers, args));
    }
    if let Command::Topology(command) = &cli.command {
        // Looks at files only: the configuration of a service plays no part.
        return topology::run(command);
    }
    let config = match &cli.command {
        Command::Streams(StreamsCommand::Run(args)) => {
            let layers = Config::layers(cli.config.as_deref());
            let given = args.settings().into_iter();
            Config::from_layers(
                given.fold(layers, |layers, (key, value)| layers.set(key, value, "the command line")),
            )?
        }
        _ => Config::load(cli.config.as_deref())?,
    };
    telemetry::init_logs(&config.telemetry);
    match cli.command {
        Command::Serve(args) => block_on(serve::serve(config, args.roles)),
        Command::Migrate => block_on(async {
            let ledger = parts::ledger(&config).await?;
            let count = ledger.migrate().await.map_err(|error| Failure::of("migrating the ledger", error))?;
            println!("the ledger ({}) is at migration {count}", ledger.db().engine());
            ledger.close().await;
            Ok(())
        }),
        Command::Streams(StreamsCommand::Run(args)) => block_on(streams::run::run(config, args)),
        Command::Bench(command) => bench::run(&config, command),
        // On a runtime, because the embedded log keeps itself up in the background.
        Command::Streams(StreamsCommand::Reset(args)) => {
            block_on(async move { streams::reset::run(&config, &args) })
        }
        Command::Topology(_) => unreachable!("answered above"),
        Command::Verify(args) => block_on(verify::run(config, args)),
        Command::Audit(args) => block_on(audit::audit(config, args)),
        Command::Reconcile(args) => block_on(audit::reconcile(config, args)),
        Command::Outbox(command) => block_on(audit::outbox(config, command)),
        // On a runtime, as above.
        Command::Dlq(command) => block_on(async move { dlq::run(&config, command) }),
        Command::Topics(command) => check_topics(&config, command),
        Command::Config(ConfigCommand::Check) => {
            println!("the configuration is valid");
            Ok(())
        }
        Command::Config(ConfigCommand::Show) | Command::Demo(_) => unreachable!("answered above"),
    }
}

fn check_topics(config: &Config, command: TopicsCommand) -> Result<(), Failure> {
    parts::data_dir(config)?;
    let admin = parts::log(config)?.admin().map_err(|error| Failure::of("log", error))?;
    let result = match command {
        TopicsCommand::Create => topics::create(&*admin, &config.topics),
        TopicsCommand::Validate => topics::validate(&*admin, &config.topics),
    };
    let findings = result.map_err(|error| Failure::of("topics", error))?;
    if findings.is_empty() {
        println!("{} topics are as configured", topics::names().len());
        return Ok(());
    }
    for finding in findings {
        println!("{finding}");
    }
    Err(Failure::Verdict)
}

/// Runs asynchronous work to its end on a runtime of its own.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sluice-async")
        .build()
        .map_err(|error| Failure::of("starting the asynchronous runtime", error))?;
    runtime.block_on(work)
}
