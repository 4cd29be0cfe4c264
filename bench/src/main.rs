//! `forebay-bench`: the bare loop, the raw pipe, and the product beside them.
//!
//! The same program plays all the roles that it starts, under the hidden verb `role`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use forebay_bench::budget::{Budget, Check, Trickle};
use forebay_bench::disk_loop::{DiskLoop, Until};
use forebay_bench::failover::Failover;
use forebay_bench::ingest::Ingest;
use forebay_bench::measure::{Counts, Measurement};
use forebay_bench::pack::Load;
use forebay_bench::pipe::{Broker, Client, Node, Pipe, Proxy};
use forebay_bench::produce::{Fetch, Produce, Send, single};
use forebay_runtime::config::ByteSize;

// Keeps freed pages: fresh ones are dear, and a baseline shall not pay for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "forebay-bench",
    about = "Measures Forebay beside a bare disk and a raw pipe."
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The product beside its yardsticks, in turns.
    Produce(Produce),
    /// A cluster with small disks while far more than its disks passes.
    Budget(Budget),
    /// What clients see while brokers and storage nodes are lost, drained and restarted.
    Failover(Failover),
    /// A log file through `forebay ingest`, beside the bare loop, in turns.
    Ingest(Ingest),
    /// One thread that writes and flushes a recycled file.
    DiskLoop(DiskLoopArguments),
    /// Client, proxy, broker and three nodes that only move, check and sync bytes.
    Pipe(PipeArguments),
    /// One process of a run.
    #[command(hide = true, subcommand)]
    Role(Role),
}

#[derive(Debug, Subcommand)]
enum Role {
    Node(Node),
    Broker(Broker),
    Proxy(Proxy),
    Client(Client),
    Send(Send),
    Fetch(Fetch),
    Trickle(Trickle),
    Check(Check),
}

#[derive(Debug, Args)]
struct Output {
    /// Folder for the recycled files, on the disk to be measured; they stay, to be used again.
    #[arg(long)]
    dir: PathBuf,
    /// Bytes of a recycled file.
    #[arg(long, default_value = "1GiB")]
    file_size: ByteSize,
    /// Write the measurements here too.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DiskLoopArguments {
    #[command(flatten)]
    output: Output,
    /// Bytes of a commit, one run for each.
    #[arg(long, value_delimiter = ',', default_value = "16KiB,256KiB,960KiB,1MiB")]
    commits: Vec<ByteSize>,
    /// Length of a run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct PipeArguments {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    load: Load,
    /// Runs.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> ExitCode {
    match run(Command::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Produce(produce) => produce.run(),
        Verb::Budget(budget) => budget.run(),
        Verb::Failover(failover) => failover.run(),
        Verb::Ingest(ingest) => ingest.run(),
        Verb::DiskLoop(arguments) => disk_loop(&arguments),
        Verb::Pipe(arguments) => pipe(&arguments),
        Verb::Role(Role::Node(node)) => node.run(),
        Verb::Role(Role::Broker(broker)) => broker.run(),
        Verb::Role(Role::Proxy(proxy)) => proxy.run(),
        Verb::Role(Role::Client(client)) => client.run(),
        Verb::Role(Role::Send(send)) => send.run(),
        Verb::Role(Role::Fetch(fetch)) => fetch.run(),
        Verb::Role(Role::Trickle(trickle)) => trickle.run(),
        Verb::Role(Role::Check(check)) => check.run(),
    }
}

fn disk_loop(arguments: &DiskLoopArguments) -> anyhow::Result<()> {
    let mut disk_loop = DiskLoop::open(
        &arguments.output.dir.join("disk-loop.log"),
        arguments.output.file_size.as_u64(),
    )?;
    report_direct(disk_loop.is_direct());
    let mut all = Vec::new();
    for commit in &arguments.commits {
        let counts = disk_loop.run(
            commit.as_usize(),
            Until::Elapsed(Duration::from_secs(arguments.seconds)),
        )?;
        all.push(show(&format!("commits of {commit}"), &counts));
    }
    arguments.output.write(&all)
}

fn pipe(arguments: &PipeArguments) -> anyhow::Result<()> {
    let output = &arguments.output;
    let mut pipe = Pipe::start(&std::env::current_exe()?, &output.dir, output.file_size.as_u64())?;
    report_direct(pipe.is_direct()?);
    let mut all = Vec::new();
    for round in 1..=arguments.rounds {
        let counts = pipe.run(&arguments.load)?;
        all.push(show(&format!("round {round}"), &counts));
    }
    pipe.stop()?;
    arguments.output.write(&all)
}

fn report_direct(direct: bool) {
    if !direct {
        println!("no direct writes on this file system: these figures are of buffered ones");
    }
}

fn show(name: &str, counts: &Counts) -> Measurement {
    let measured = Measurement::from(counts);
    println!("{}", single(name, &measured));
    measured
}

impl Output {
    fn write(&self, measured: &[Measurement]) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(measured)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}
