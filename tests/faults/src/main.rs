//! `forebay-faults`: rounds of real faults, one line each; ends with 1 where a promise was broken.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use forebay_faults::abilities::Abilities;
use forebay_faults::round::{Outcome, Settings, run};
use forebay_history::{History, Rules, check};
use forebay_runtime::random::{OsRandom, Random};

#[derive(Debug, Parser)]
#[command(
    name = "forebay-faults",
    about = "Breaks a cluster under load and checks what its clients saw."
)]
struct Arguments {
    /// Rounds, each with a cluster of its own.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Seed of the first round, the next has the next; without it one is drawn.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on in each round.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The forebay binary.
    #[arg(long)]
    forebay: Option<PathBuf>,
    /// Folder for what rounds need and for what failed rounds leave.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Gets one line of JSON for each round.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keeps logs and histories of all rounds.
    #[arg(long)]
    keep: bool,
    /// Leaves out all faults that need root, whoever runs this.
    #[arg(long)]
    plain: bool,
    /// Checks a history that a failed round left, and does nothing else.
    #[arg(long)]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("forebay-faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(path) = &arguments.check {
        return check_file(path);
    }
    let binary = arguments
        .forebay
        .clone()
        .context("--forebay names the binary; ./dev faults builds it and says where it is")?;
    let binary = std::path::absolute(binary)?;
    anyhow::ensure!(binary.is_file(), "there is no {}", binary.display());
    let folder = match &arguments.dir {
        Some(folder) => std::path::absolute(folder)?,
        None => std::env::temp_dir().join(format!("forebay-faults-{}", std::process::id())),
    };
    let settings = Settings {
        binary,
        folder,
        keep: arguments.keep,
        length: Duration::from_secs(arguments.seconds),
        abilities: if arguments.plain {
            Abilities::default()
        } else {
            Abilities::probe()
        },
    };
    for missing in settings.abilities.missing() {
        println!("left out: {missing}");
    }
    let seed = arguments.seed.unwrap_or_else(|| OsRandom.u64() >> 16);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        tokio::select! {
            clean = rounds(&settings, seed, arguments) => clean,
            // Dropping the rounds ends every process.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn rounds(settings: &Settings, first: u64, arguments: &Arguments) -> anyhow::Result<bool> {
    let mut json = arguments
        .json
        .as_ref()
        .map(|path| std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display())))
        .transpose()?;
    let mut bad = 0_u64;
    for seed in first..first.saturating_add(arguments.rounds) {
        let outcome = run(settings, seed).await?;
        tell(&outcome);
        if let Some(file) = &mut json {
            writeln!(file, "{}", serde_json::to_string(&outcome)?)?;
        }
        bad += u64::from(!outcome.is_clean());
    }
    println!("{} rounds, {bad} failed", arguments.rounds);
    Ok(bad == 0)
}

fn tell(outcome: &Outcome) {
    println!("{}", outcome.line());
    if let Some(kept) = &outcome.kept {
        println!("  logs and history.jsonl are in {}", kept.display());
    }
    if outcome.is_clean() {
        return;
    }
    for (what, lines) in [
        ("note", &outcome.notes),
        ("exit", &outcome.exits),
        ("failure", &outcome.failures),
    ] {
        for line in lines.iter().take(20) {
            println!("  {what}: {line}");
        }
        if lines.len() > 20 {
            println!("  {what}: {} more", lines.len() - 20);
        }
    }
}

fn check_file(path: &Path) -> anyhow::Result<bool> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = History::read_from(std::io::BufReader::new(file))?;
    let report = check(&history, &Rules::default());
    for violation in &report.violations {
        println!("{violation}");
    }
    println!("{:?}", report.counts);
    Ok(report.is_clean())
}
