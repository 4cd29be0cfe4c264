//! `ingest`: a log file through the product's own shipper, beside the bare loop, in turns.
//!
//! Each round runs the bare loop over as many bytes as the file has, in commits as large as the
//! product's largest, then `forebay ingest` of the
//! file against a standalone, without compression and with zstd. Both are the real programs; the
//! time of the shipper is that of its process, from start to exit. The file is in the page cache
//! from the start: what is measured is the shipper and the log, not the reading of a cold disk.

mod log_file;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use forebay_client::{Client, ClientConfig};
use forebay_runtime::config::ByteSize;
use serde::Deserialize;

use crate::disk::FILE_BYTES;
use crate::disk_loop::{DiskLoop, Until};
use crate::measure::{CLIENT, ClientCounts, Counts};
use crate::process::{Leave, Process, cpu_between, usage_by_role};
use crate::produce::deploy::Deployment;
use report::Report;

/// Bytes of the bare loop's commits: as many as a storage node commits at once at most
/// (`storage.commit_bytes_max`). With smaller ones the loop waits for flushes that the product, which
/// commits together what came during the last one, does not make, and would be no ceiling.
const COMMIT_BYTES: usize = 4 << 20;
const RUN_MAX: Duration = Duration::from_secs(600);
const WARM_UP_BYTES: u64 = 32 << 20;

/// What to measure, and where.
#[derive(Debug, Args)]
pub struct Ingest {
    /// Folder on the disk to be measured. The log file and the bare loop's file stay there to be
    /// used again; what the product writes is removed.
    #[arg(long)]
    pub dir: PathBuf,
    /// The `forebay` program.
    #[arg(long)]
    pub forebay: PathBuf,
    /// Write the report here too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Size of the log file.
    #[arg(long, default_value = "1GiB")]
    pub size: ByteSize,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Codecs.
    #[arg(long, value_delimiter = ',', default_value = "none,zstd")]
    pub codecs: Vec<String>,
    /// More arguments for `forebay ingest`, such as --batch-bytes=256KiB.
    #[arg(long, value_delimiter = ' ', allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// What `forebay ingest --format json` says of itself; it says more.
#[derive(Debug, Deserialize)]
struct Told {
    complete: bool,
    bytes: u64,
    records: u64,
}

impl Ingest {
    /// Measures, prints a table, and writes the report.
    ///
    /// # Errors
    /// Where anything fails: a run with a failure in it is not a measurement.
    pub fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0, "--rounds is 0");
        let size = self.size.as_u64();
        let log = self.dir.join(format!("ingest-{size}.log"));
        let bytes = log_file::make(&log, size).with_context(|| format!("cannot make {}", log.display()))?;
        let mut report = Report::new(self.rounds, bytes)?;
        let mut bare = DiskLoop::open(&self.dir.join("disk-loop.log"), FILE_BYTES)?;
        if !bare.is_direct() {
            report
                .notes
                .push("no direct writes on this file system: the bare loop is buffered".to_owned());
        }
        let folder = tempfile::Builder::new().prefix("ingest-").tempdir_in(&self.dir)?;
        let deployment = Deployment::standalone(&self.forebay, folder.path())?;
        let warm = folder.path().join("warm.log");
        log_file::make(&warm, WARM_UP_BYTES.min(size))?;
        self.ingest(&deployment, &warm, "warm-up", "none")?;
        // Into the page cache.
        std::io::copy(&mut std::fs::File::open(&log)?, &mut std::io::sink())?;
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}", self.rounds);
            let counts = bare.run(COMMIT_BYTES, Until::Bytes(bytes))?;
            report.add(report::BARE_LOOP, &counts);
            for codec in &self.codecs {
                let topic = format!("{codec}-{round}");
                let counts = self.ingest(&deployment, &log, &topic, codec)?;
                ensure!(
                    counts.client.bytes == bytes,
                    "{} bytes of {bytes} were ingested",
                    counts.client.bytes
                );
                report.add(&report::subject(codec), &counts);
            }
        }
        deployment.stop()?;
        report.judge();
        println!("{}", report.text());
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Ingests a file into a new topic of one partition.
    fn ingest(
        &self,
        deployment: &Deployment,
        log: &Path,
        topic: &str,
        codec: &str,
    ) -> anyhow::Result<Counts> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = Client::connect(ClientConfig::new([&deployment.endpoint])).await?;
            client.admin().create_topic(topic, 1, [].into()).await?;
            anyhow::Ok(())
        })?;
        let mut command = Command::new(&self.forebay);
        command
            .arg("ingest")
            .arg(log)
            .args(["--topic", topic, "--codec", codec]);
        command.args(["--format", "json", "--server", &deployment.endpoint]);
        command.args(&self.arguments);
        let members = || {
            deployment
                .members
                .iter()
                .map(|member| (member.role, &member.process))
        };
        let before = usage_by_role(members(), true)?;
        let began = Instant::now();
        let process = Process::spawn("ingest", command, Leave::Terminate, None)?;
        let (used, said) = process.await_end(RUN_MAX)?;
        let elapsed = began.elapsed();
        let after = usage_by_role(members(), false)?;
        let told: Told = serde_json::from_str(&said).with_context(|| format!("ingest said {said:?}"))?;
        ensure!(told.complete, "ingest did not complete: {said}");
        let roles = after.iter().map(|(role, usage)| (role.clone(), usage.rss_peak));
        Ok(Counts {
            client: ClientCounts {
                bytes: told.bytes,
                records: told.records,
                elapsed,
                latency_us: None,
                cpu: used.cpu,
            },
            cpu: cpu_between(&before, &after),
            rss_peak: roles.chain([(CLIENT.to_owned(), used.rss_peak)]).collect(),
            disk: None,
        })
    }
}
