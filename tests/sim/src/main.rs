//! `forebay-sim`: runs seeds, prints one line each, and the log and violations of those that fail.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use forebay_runtime::mutant::{self, Mutant};
use forebay_sim::eventlog::{EventLog, Keep};
use forebay_sim::run::{Outcome, run};
use forebay_sim::scenes::Scene;
use forebay_sim::world::Options;
use tracing::Level;

/// Simulates clusters in trouble, and checks what their clients saw.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// Runs this one seed, twice, and compares the two runs.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs so many seeds.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// First of those seeds.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads; each runs one seed at a time.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Simulated seconds of trouble.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Prints everything that happens, with --seed.
    #[arg(long)]
    log: bool,
    /// Least important events of the log.
    #[arg(long, default_value = "debug")]
    level: Level,
    /// Breaks nothing.
    #[arg(long)]
    calm: bool,
    /// Plays this scene again and again: divided, late-ack, witness, cut-at-change, full-disk, late-link or
    /// copied-disk.
    #[arg(long)]
    scene: Option<Scene>,
    /// Runs the seed in this process, once, and prints what became of it as JSON.
    #[arg(long, hide = true)]
    child: bool,
    /// Breaks one rule of the protocol on purpose: see --mutants.
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Breaks each rule in turn, and says which seed notices first; --seeds is how many are tried.
    #[arg(long)]
    mutants: bool,
    /// Writes the history of a run with --seed, one event a line.
    #[arg(long)]
    history: Option<std::path::PathBuf>,
}

impl Arguments {
    fn options(&self, seed: u64) -> Options {
        Options {
            seconds: self.seconds,
            calm: self.calm,
            scene: self.scene,
            ..Options::of_seed(seed)
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failed = match (arguments.seed, arguments.child) {
        (Some(seed), true) => child(seed, &arguments),
        (Some(seed), false) => one(seed, &arguments),
        (None, _) if arguments.mutants => mutants(&arguments),
        (None, _) => many(&arguments),
    };
    match failed {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a seed in this process and prints what became of it as JSON, the last line.
fn child(seed: u64, arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(mutant) = arguments.mutant {
        mutant::breaks(mutant);
    }
    let keep = if arguments.log { Keep::Print } else { Keep::None };
    let log = EventLog::new(arguments.level, keep);
    let started = Instant::now();
    let (mut outcome, history) = run(seed, &arguments.options(seed), &log);
    outcome.seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &arguments.history {
        let file = std::io::BufWriter::new(std::fs::File::create(path)?);
        history.write_to(file)?;
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(!outcome.violations.is_empty())
}

/// Has a seed run in a process of its own: a second run in the same one would find what the first
/// left behind in libraries.
fn spawn(seed: u64, arguments: &Arguments, mutant: Option<Mutant>, log: bool) -> anyhow::Result<Outcome> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--child", "--seed", &seed.to_string()])
        .args(["--seconds", &arguments.seconds.to_string()])
        .args(["--level", arguments.level.as_str()])
        .args(arguments.calm.then_some("--calm"))
        .args(log.then_some("--log"));
    if let Some(scene) = arguments.scene {
        command.args(["--scene", scene.name()]);
    }
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant.name()]);
    }
    if let (true, Some(path)) = (log || arguments.seed.is_some(), &arguments.history) {
        command.arg("--history").arg(path);
    }
    // A panic is told by the log; where it came from, by a run without others beside it.
    if arguments.seed.is_none() {
        command.stderr(Stdio::null());
    }
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = process.stdout.take().context("a child without output")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if !last.is_empty() {
            println!("{last}");
        }
        last = line;
    }
    let status = process.wait()?;
    serde_json::from_str(&last).with_context(|| format!("seed {seed} ended with {status} and said {last:?}"))
}

fn one(seed: u64, arguments: &Arguments) -> anyhow::Result<bool> {
    let outcome = spawn(seed, arguments, arguments.mutant, arguments.log)?;
    print(&outcome);
    let second = spawn(seed, arguments, arguments.mutant, false)?;
    let same = second.log == outcome.log;
    println!(
        "seed {seed} again: {}",
        if same { "the same log" } else { "ANOTHER LOG" }
    );
    Ok(!same || !outcome.violations.is_empty())
}

fn many(arguments: &Arguments) -> anyhow::Result<bool> {
    let next = AtomicU64::new(arguments.from);
    let until = arguments.from + arguments.seeds;
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= until {
                        return;
                    }
                    let clean = match spawn(seed, arguments, arguments.mutant, false) {
                        Ok(outcome) => {
                            print(&outcome);
                            outcome.violations.is_empty()
                        }
                        Err(error) => {
                            println!("seed {seed} FAILED: {error:#}");
                            false
                        }
                    };
                    if !clean && let Ok(mut failed) = failed.lock() {
                        failed.push(seed);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_unstable();
    match failed.first() {
        None => println!("{} seeds, none failed", arguments.seeds),
        Some(first) => {
            println!("{} of {} seeds failed: {failed:?}", failed.len(), arguments.seeds);
            println!("one of them again, with its log: ./dev sim --seed {first} --log");
        }
    }
    Ok(!failed.is_empty())
}

/// Tries seeds with each rule broken until one notices.
fn mutants(arguments: &Arguments) -> anyhow::Result<bool> {
    let next = AtomicUsize::new(0);
    let missed = AtomicUsize::new(0);
    println!("| mutant | instead | seed | seeds tried | what noticed |");
    println!("|---|---|---:|---:|---|");
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while let Some(mutant) = Mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let until = arguments.from + arguments.seeds;
                    let noticed = (arguments.from..until).find_map(|seed| {
                        match spawn(seed, arguments, Some(*mutant), false) {
                            Ok(outcome) => outcome.violations.first().map(|first| (seed, first.clone())),
                            Err(error) => Some((seed, format!("{error:#}"))),
                        }
                    });
                    let (name, what) = (mutant.name(), mutant.what());
                    if let Some((seed, violation)) = noticed {
                        let tried = seed - arguments.from + 1;
                        println!("| `{name}` | {what} | {seed} | {tried} | {violation} |");
                    } else {
                        missed.fetch_add(1, Ordering::Relaxed);
                        println!("| `{name}` | {what} | - | {} | nothing |", arguments.seeds);
                    }
                }
            });
        }
    });
    Ok(missed.into_inner() > 0)
}

fn print(outcome: &Outcome) {
    let verdict = if outcome.violations.is_empty() {
        "ok"
    } else {
        "FAILED"
    };
    println!(
        "seed {} {verdict}: {} acked, {} unknown, {} failed, {} reads, {} exits, {} refused starts, log {} lines {:016x}, {:.1} s",
        outcome.seed,
        outcome.acked,
        outcome.unknown,
        outcome.failed,
        outcome.reads,
        outcome.ends.exits,
        outcome.ends.refusals,
        outcome.log.0,
        outcome.log.1,
        outcome.seconds,
    );
    for violation in outcome.violations.iter().take(20) {
        println!("  {violation}");
    }
    for refusal in outcome.refusals.iter().take(5) {
        println!("  refused: {refusal}");
    }
}
