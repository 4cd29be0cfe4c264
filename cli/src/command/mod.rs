//! The command line: one file per verb.
//!
//! Exit codes: 0 for done, 1 for an error, 2 for a command line that cannot be carried out,
//! 130 for a stop before everything was done.
//! Results go to standard output, everything else to standard error.

mod broker;
mod cluster;
mod completion;
mod config;
mod confirm;
mod consume;
mod ingest;
mod lifetime;
mod metadata;
mod partition;
mod produce;
mod quickstart;
mod serve;
mod standalone;
mod storage;
pub(crate) mod topic;
mod version;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use forebay_runtime::config::{ConfigError, Validate as _};
use forebay_runtime::random::OsRandom;
use forebay_runtime::telemetry::{self, Service, TelemetryConfig, TelemetryGuard};

use crate::output::ReaderGone;

/// A command line that parses and still cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

/// A stop that came before everything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Interrupted(pub String);

/// Messaging with compute and storage apart: a durable log that clients reach through proxies
#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
struct Global {
    /// Forebay servers to talk to, separated by commas; tried in turn
    #[arg(
        long = "server",
        global = true,
        env = "FOREBAY_SERVER",
        default_value = "127.0.0.1:7450",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    servers: Vec<String>,
    /// What is logged to standard error: error, warn, info, debug, trace, or directives such as
    /// info,forebay_broker=debug
    #[arg(long, global = true, value_parser = parse_log_level, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: send a file through a server of its own, read it back and compare
    Quickstart(quickstart::QuickstartArgs),
    /// Run everything in one process, over one folder
    Standalone(standalone::StandaloneArgs),
    /// Run one or more roles of a cluster
    Serve(serve::ServeArgs),
    /// Make, list, describe and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Send lines from standard input to a topic, each as one record
    Produce(produce::ProduceArgs),
    /// Send files, or what is added to them, to a topic: each line as one record
    Ingest(ingest::IngestArgs),
    /// Print the values of a topic's records, one a line
    Consume(consume::ConsumeArgs),
    /// Look at the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// List, empty, remove and reformat storage nodes
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Get a partition going again that waits for storage nodes which are lost
    #[command(subcommand)]
    Partition(partition::PartitionCommand),
    /// Empty a broker before it is stopped
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
    /// Repair what a restore of the metadata store leaves behind
    #[command(subcommand)]
    Metadata(metadata::MetadataCommand),
    /// Look at what a server is configured with, and at what can be configured
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print what makes a shell complete this command line
    Completion(completion::CompletionArgs),
    /// Show the version
    Version(version::VersionArgs),
}

/// Carries out a command line and says on standard error what went wrong.
pub async fn run(cli: Cli) -> ExitCode {
    // On the heap: servers and clients in one future are large.
    let Err(error) = Box::pin(cli.execute()).await else {
        return ExitCode::SUCCESS;
    };
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("forebay: {error:#}");
    if error.is::<Usage>() {
        ExitCode::from(2)
    } else if error.is::<Interrupted>() {
        ExitCode::from(130)
    } else {
        ExitCode::FAILURE
    }
}

impl Cli {
    async fn execute(self) -> anyhow::Result<()> {
        let Global { servers, log_level } = self.global;
        let quiet = |level: Option<String>| TelemetryConfig {
            log_filter: level.unwrap_or_else(|| "warn".to_owned()),
            ..TelemetryConfig::default()
        };
        let logs = match &self.command {
            Command::Serve(_) | Command::Standalone(_) | Command::Config(_) => None,
            _ => Some(log(&quiet(log_level.clone()), &command_line())?),
        };
        let outcome = match self.command {
            Command::Quickstart(args) => Box::pin(quickstart::run(args)).await,
            Command::Standalone(args) => Box::pin(standalone::run(args, log_level)).await,
            Command::Serve(args) => Box::pin(serve::run(args, log_level)).await,
            Command::Topic(command) => Box::pin(command.run(&servers)).await,
            Command::Produce(args) => Box::pin(produce::run(args, &servers)).await,
            Command::Ingest(args) => Box::pin(ingest::run(args, &servers)).await,
            Command::Consume(args) => Box::pin(consume::run(args, &servers)).await,
            Command::Cluster(command) => Box::pin(command.run(&servers)).await,
            Command::Storage(command) => Box::pin(command.run(&servers, log_level)).await,
            Command::Partition(command) => Box::pin(command.run(&servers)).await,
            Command::Broker(command) => Box::pin(command.run(&servers)).await,
            Command::Metadata(command) => Box::pin(command.run(log_level)).await,
            Command::Config(command) => command.run(log_level),
            Command::Completion(args) => completion::run(args),
            Command::Version(args) => version::run(args),
        };
        if let Some(logs) = logs {
            end_log(logs).await;
        }
        outcome
    }
}

fn parse_log_level(text: &str) -> Result<String, ConfigError> {
    TelemetryConfig {
        log_filter: text.to_owned(),
        ..TelemetryConfig::default()
    }
    .validate()?;
    Ok(text.to_owned())
}

/// What a command that serves nothing is called.
fn command_line() -> Service {
    Service {
        name: "forebay-cli".to_owned(),
        instance: format!("pid-{}", std::process::id()),
        namespace: "forebay".to_owned(),
    }
}

/// Begins to log.
fn log(config: &TelemetryConfig, service: &Service) -> anyhow::Result<TelemetryGuard> {
    Ok(telemetry::init(config, service, &OsRandom)?)
}

/// Exports the last spans. That nobody takes them is no failure of what the process did.
async fn end_log(logs: TelemetryGuard) {
    if let Err(error) = logs.shutdown().await {
        tracing::warn!(%error, "traces end incomplete");
    }
}

#[cfg(test)]
mod tests;
