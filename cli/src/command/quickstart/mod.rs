//! `quickstart`: a file goes in and comes out, through a server of its own.
//!
//! 1. [`folder`]: a temporary folder, removed at the end.
//! 2. A standalone server over it, on the usual ports if they are free.
//! 3. [`sample`]: the log file to send, unless one was named.
//! 4. [`ingest`]: its lines become records of several partitions, by the order of [`turns`], each
//!    acknowledged after fsync.
//! 5. [`verify`]: read back through the proxy, put together again and compared byte for byte.
//! 6. [`show`]: what was seen, and what to type next.
//!
//! Nothing is shown as verified that was not compared, and the folder goes away however it ends,
//! a kill that cannot be handled apart.

mod folder;
mod ingest;
mod sample;
mod show;
mod turns;
mod verify;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use forebay_client::{Client, ClientConfig};
use forebay_runtime::config::ByteSize;

use super::lifetime::{self, Stop};
use crate::output::print;
use crate::server::{Running, StandaloneOptions, start_standalone};

/// The topic that is made.
const TOPIC: &str = "quickstart";
const PARTITIONS: u32 = 4;
/// Journal files are laid out in full when they are made; these suit a folder that goes away.
const JOURNAL_FILE: ByteSize = ByteSize::mib(128);

/// What to send, and when to end.
#[derive(Debug, clap::Args)]
pub struct QuickstartArgs {
    /// The file to send; a log file is made up when none is named
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Size of the log file that is made up
    #[arg(long, default_value = "100MiB", conflicts_with = "file", value_name = "SIZE")]
    pub size: ByteSize,
    /// End after the comparison, instead of serving on
    #[arg(long)]
    pub exit: bool,
}

/// Shows it, serves until stopped unless told to exit, and cleans up.
pub async fn run(args: QuickstartArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.file {
        // Before anything is started for it.
        File::open(path)?;
    }
    let folder = folder::make()?;
    let outcome = Box::pin(run_in(folder.path(), args)).await;
    let path = folder.path().to_path_buf();
    let removed = folder
        .close()
        .with_context(|| format!("cannot remove {}", path.display()));
    outcome.and(removed)
}

async fn run_in(folder: &Path, args: QuickstartArgs) -> anyhow::Result<()> {
    let options = options(folder);
    let running = start_standalone(options.clone()).await?;
    let shown = tokio::select! {
        shown = show(folder, &args, &options, &running) => shown,
        stop = lifetime::stop_wanted(&running) => match stop? {
            Stop::Asked(signal) => Err(anyhow!("{signal} before the file was verified")),
            Stop::Failed(reason) => Err(anyhow!("stopped before the file was verified, because of {reason}")),
        },
    };
    match shown {
        Ok(()) if !args.exit => lifetime::serve(running).await,
        shown => shown.and(lifetime::stop(running).await),
    }
}

/// Usual ports where they are free, others where not.
fn options(folder: &Path) -> StandaloneOptions {
    let mut options = StandaloneOptions {
        data_dir: folder.join("data"),
        ..StandaloneOptions::default()
    };
    options.config.storage.journal_file_bytes = JOURNAL_FILE;
    for address in [&mut options.grpc_listen, &mut options.admin_listen] {
        if TcpListener::bind(*address).is_err() {
            address.set_port(0);
        }
    }
    options
}

async fn show(
    folder: &Path,
    args: &QuickstartArgs,
    options: &StandaloneOptions,
    running: &Running,
) -> anyhow::Result<()> {
    let (grpc, admin) = (running.grpc_address(), running.admin_address());
    let usual = StandaloneOptions::default();
    for (asked, wanted, got) in [
        (options.grpc_listen, usual.grpc_listen, grpc),
        (options.admin_listen, usual.admin_listen, admin),
    ] {
        if asked != wanted {
            print(&format!(
                "note: port {} is taken, {} is used instead",
                wanted.port(),
                got.port()
            ))?;
        }
    }
    if folder::is_in_memory(folder) {
        print(&format!(
            "note: {} is in memory: fsync protects nothing there; TMPDIR names another place",
            folder.display()
        ))?;
    }
    print(&format!(
        "server    gRPC on {grpc}, metrics and health on {admin}, data in {}",
        options.data_dir.display()
    ))?;

    let path = match &args.file {
        Some(path) => path.clone(),
        None => sample::make(folder.join("access.log"), args.size.as_u64()).await?,
    };
    let file = File::open(&path)?;
    print(&show::file(&path, file.bytes, args.file.is_none()))?;

    let client = Client::connect(ClientConfig::new([grpc.to_string()])).await?;
    let made = client
        .admin()
        .create_topic(TOPIC, PARTITIONS, Default::default())
        .await;
    made.with_context(|| format!("cannot create topic {TOPIC:?}"))?;
    let sent = Box::pin(ingest::run(&client, &file)).await?;
    print(&show::sent(&sent))?;
    let read = Box::pin(verify::run(&client, &file, &sent)).await?;
    print(&show::read(&read))?;
    if !args.exit {
        print(&show::next_steps(
            &program(),
            grpc,
            admin,
            usual.grpc_listen == grpc,
        ))?;
    }
    Ok(())
}

/// A file as it was when it was opened: what is added to it later is not looked at.
struct File {
    path: PathBuf,
    bytes: u64,
}

impl File {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
        if !metadata.is_file() {
            bail!("{} is not a regular file", path.display());
        }
        Ok(Self {
            path: path.to_path_buf(),
            bytes: metadata.len(),
        })
    }

    /// Its bytes, from the first to the last that it had.
    async fn read(&self) -> anyhow::Result<tokio::io::Take<tokio::fs::File>> {
        use tokio::io::AsyncReadExt as _;
        let opened = tokio::fs::File::open(&self.path).await;
        Ok(opened
            .with_context(|| format!("cannot open {}", self.path.display()))?
            .take(self.bytes))
    }
}

/// How this program was called, so that what is shown can be typed.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "forebay".to_owned())
}

/// What a transfer did.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Transfer {
    records: u64,
    bytes: u64,
    crc32c: u32,
    seconds: f64,
}

/// A bar on standard error; nothing where that is not a terminal.
fn bar(name: &'static str, bytes: u64) -> indicatif::ProgressBar {
    let style =
        indicatif::ProgressStyle::with_template("{prefix:<9} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = indicatif::ProgressBar::new(bytes).with_prefix(name);
    match style {
        Ok(style) => bar.with_style(style),
        // The default style shows the same less well.
        Err(_malformed) => bar,
    }
}
