//! `budget`: whether storage nodes keep within their disks while far more than their disks passes.
//!
//! 1. A cluster of etcd, three storage nodes with a small disk budget, a broker and a proxy, with a
//!    folder or a bucket as its object store.
//! 2. [`load::Trickle`] writes numbered records at a fixed rate; meanwhile the folders of the storage
//!    nodes are measured, every second, as the file system counts them.
//! 3. Once all is offloaded and trimmed, [`load::Check`] reads every record back.
//! 4. Printed: each node's peak as a part of its budget, the metadata store's writes per segment, and
//!    its bytes per partition.

mod load;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use forebay_runtime::config::ByteSize;
use serde::Serialize;

use crate::process::{Leave, Process};
use crate::produce::deploy::{ClusterOptions, Deployment};
use crate::produce::scrape;

pub use load::{Check, Trickle};

const TOPIC: &str = "budget";
const GOAL: f64 = 1.1;
const SHOW_EVERY: Duration = Duration::from_secs(60);
/// How long the last segments may take to be offloaded and trimmed.
const SETTLE_MAX: Duration = Duration::from_secs(240);
const CHECK_MAX: Duration = Duration::from_secs(3_600);

/// What to run.
#[derive(Debug, Args)]
pub struct Budget {
    /// Folder on the disk to be used; removed at the end.
    #[arg(long)]
    pub dir: PathBuf,
    /// The `forebay` program.
    #[arg(long)]
    pub forebay: PathBuf,
    /// The etcd program.
    #[arg(long, default_value = "etcd")]
    pub etcd: PathBuf,
    /// The etcdctl program, which counts writes.
    #[arg(long, default_value = "etcdctl")]
    pub etcdctl: PathBuf,
    /// Disk budget of each storage node.
    #[arg(long, default_value = "2GiB")]
    pub disk: ByteSize,
    /// Partitions.
    #[arg(long, default_value_t = 10)]
    pub partitions: u32,
    /// Bytes a second, over all partitions.
    #[arg(long, default_value = "5MiB")]
    pub rate: ByteSize,
    /// Bytes in all.
    #[arg(long, default_value = "20GiB")]
    pub bytes: ByteSize,
    /// Settings of the topic, `key=value`.
    #[arg(long = "set")]
    pub settings: Vec<String>,
    /// Object store: `file:///folder` or `s3://bucket`; a folder beside the data by default.
    #[arg(long)]
    pub object_store: Option<String>,
    /// Further lines of the `[object_store]` section.
    #[arg(long)]
    pub object_store_settings: Vec<String>,
    /// Write the report here too.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    disk_bytes: u64,
    bytes_sent: u64,
    seconds: f64,
    /// Most bytes in a storage node's folder, and that as a part of the budget.
    peaks: Vec<(u64, f64)>,
    /// The same once all was offloaded and trimmed.
    rest: Vec<u64>,
    offload_lag_peak_bytes: u64,
    segments_offloaded: u64,
    bytes_offloaded: u64,
    record_writes_per_segment: f64,
    etcd_puts_per_segment: f64,
    bytes_per_partition: f64,
    partition_record_bytes_max: u64,
    records_checked: u64,
    check_seconds: f64,
    goal: f64,
    met: bool,
}

impl Budget {
    /// Runs it and prints the report.
    ///
    /// # Errors
    /// Where anything fails: a lost record, a refused write, a process that ends.
    pub fn run(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let folder = tempfile::Builder::new().prefix("budget-").tempdir_in(&self.dir)?;
        let mut deployment = self.deploy(folder.path())?;
        let etcd = deployment.etcd.clone().context("no etcd")?;
        let mut report = Report {
            disk_bytes: self.disk.as_u64(),
            peaks: vec![(0, 0.0); deployment.folders.len()],
            goal: GOAL,
            ..Report::default()
        };
        let puts_before = etcd_puts(&etcd)?;
        self.write(&mut deployment, &mut report)?;
        self.settle(&mut deployment, &mut report)?;
        self.count_metadata(&deployment, &etcd, puts_before, &mut report)?;
        self.read_back(&deployment, &mut report)?;
        report.met = report.peaks.iter().all(|(_, part)| *part <= GOAL);
        print(&report);
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        deployment.stop()?;
        folder.close()?;
        Ok(())
    }

    fn deploy(&self, folder: &Path) -> anyhow::Result<Deployment> {
        let objects = folder.join("objects");
        let url = self
            .object_store
            .clone()
            .unwrap_or_else(|| format!("file://{}", objects.display()));
        let mut common = format!("[object_store]\nurl = \"{url}\"\n");
        for line in &self.object_store_settings {
            common.push_str(line);
            common.push('\n');
        }
        let options = ClusterOptions {
            storage: format!("disk_budget_bytes = \"{}\"\n", self.disk.as_u64()),
            common,
        };
        Deployment::cluster(&self.forebay, &self.etcd, folder, &options)
    }

    fn write(&self, deployment: &mut Deployment, report: &mut Report) -> anyhow::Result<()> {
        let mut command = program("trickle", deployment)?;
        command
            .arg(format!("--partitions={}", self.partitions))
            .arg(format!("--rate={}", self.rate.as_u64()))
            .arg(format!("--bytes={}", self.bytes.as_u64()));
        for setting in &self.settings {
            command.arg(format!("--set={setting}"));
        }
        let mut writer = Process::spawn("writer", command, Leave::InputCloses, None)?;
        let (start, mut shown) = (Instant::now(), Instant::now());
        let expected = self.bytes.as_u64() as f64 / self.rate.as_u64() as f64;
        let give_up = Duration::from_secs_f64(expected * 1.5 + 120.0);
        loop {
            let line = writer.await_line("", give_up.saturating_sub(start.elapsed()))?;
            self.sample(deployment, report)?;
            if let Some(done) = line.strip_prefix("done ") {
                report.bytes_sent = done.trim().parse::<u64>()? * crate::pack::VALUE_BYTES as u64;
                break;
            }
            if let Some(sent) = line.strip_prefix("sent ") {
                report.bytes_sent = sent.trim().parse()?;
            }
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                self.show(start.elapsed(), deployment, report)?;
            }
        }
        report.seconds = start.elapsed().as_secs_f64();
        writer.stop()
    }

    fn sample(&self, deployment: &mut Deployment, report: &mut Report) -> anyhow::Result<()> {
        for member in &mut deployment.members {
            member.process.check()?;
        }
        for (folder, (peak, part)) in deployment.folders.iter().zip(&mut report.peaks) {
            *peak = folder_bytes(folder)?.max(*peak);
            *part = *peak as f64 / self.disk.as_u64() as f64;
        }
        let lag = broker_sum(deployment, "forebay_broker_offload_lag_bytes")?;
        report.offload_lag_peak_bytes = report.offload_lag_peak_bytes.max(lag);
        Ok(())
    }

    fn show(&self, after: Duration, deployment: &Deployment, report: &Report) -> anyhow::Result<()> {
        let now = deployment
            .folders
            .iter()
            .map(|folder| {
                Ok(format!(
                    "{:.2}",
                    folder_bytes(folder)? as f64 / self.disk.as_u64() as f64
                ))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        eprintln!(
            "{:>5.0} s  {:>7.0} MiB sent  disk {}  peak {:.3}  {} segments offloaded  lag {:.0} MiB",
            after.as_secs_f64(),
            mib(report.bytes_sent),
            now.join(" "),
            report.peaks.iter().map(|(_, part)| *part).fold(0.0, f64::max),
            broker_sum(deployment, "forebay_broker_offload_segments_total")?,
            mib(broker_sum(deployment, "forebay_broker_offload_lag_bytes")?),
        );
        Ok(())
    }

    /// Waits until nothing sealed is left to offload.
    fn settle(&self, deployment: &mut Deployment, report: &mut Report) -> anyhow::Result<()> {
        let start = Instant::now();
        while broker_sum(deployment, "forebay_broker_offload_lag_bytes")? > 0 {
            ensure!(
                start.elapsed() < SETTLE_MAX,
                "sealed segments were not offloaded within {SETTLE_MAX:?}"
            );
            std::thread::sleep(Duration::from_millis(500));
            self.sample(deployment, report)?;
        }
        report.rest = deployment
            .folders
            .iter()
            .map(|folder| folder_bytes(folder))
            .collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    fn count_metadata(
        &self,
        deployment: &Deployment,
        etcd: &str,
        puts_before: u64,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        report.segments_offloaded = broker_sum(deployment, "forebay_broker_offload_segments_total")?;
        report.bytes_offloaded = broker_sum(deployment, "forebay_broker_offload_bytes_total")?;
        let output = Command::new(&self.etcdctl)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", etcd, "get", "--prefix", "", "-w", "json"])
            .output()
            .context("etcdctl")?;
        ensure!(
            output.status.success(),
            "etcdctl failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let all: Keys = serde_json::from_slice(&output.stdout).context("etcdctl's answer")?;
        let records: Vec<_> = all.kvs.iter().filter(|entry| entry.is_partition()).collect();
        ensure!(
            records.len() == self.partitions as usize,
            "etcd holds {} partition records, {} expected",
            records.len(),
            self.partitions
        );
        let writes: u64 = records.iter().map(|entry| entry.version).sum();
        let bytes: usize = records.iter().map(|entry| entry.bytes()).sum();
        let segments = report.segments_offloaded.max(1) as f64;
        report.record_writes_per_segment = writes as f64 / segments;
        report.etcd_puts_per_segment = etcd_puts(etcd)?.saturating_sub(puts_before) as f64 / segments;
        report.bytes_per_partition = bytes as f64 / f64::from(self.partitions);
        report.partition_record_bytes_max = records
            .iter()
            .map(|entry| entry.bytes() as u64)
            .max()
            .unwrap_or(0);
        Ok(())
    }

    fn read_back(&self, deployment: &Deployment, report: &mut Report) -> anyhow::Result<()> {
        let records = report.bytes_sent / crate::pack::VALUE_BYTES as u64 / u64::from(self.partitions);
        let mut command = program("check", deployment)?;
        command
            .arg(format!("--partitions={}", self.partitions))
            .arg(format!("--records={records}"));
        let mut reader = Process::spawn("reader", command, Leave::InputCloses, None)?;
        let start = Instant::now();
        report.records_checked = reader.await_line("done", CHECK_MAX)?.parse()?;
        report.check_seconds = start.elapsed().as_secs_f64();
        reader.stop()
    }
}

fn program(role: &str, deployment: &Deployment) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["role", role, "--endpoint", &deployment.endpoint, "--topic", TOPIC]);
    Ok(command)
}

/// Bytes that the file system gave to a folder's files.
fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A file may be recycled between the two calls.
        let Ok(found) = entry.metadata() else { continue };
        bytes += if found.is_dir() {
            folder_bytes(&entry.path())?
        } else {
            found.blocks() * 512
        };
    }
    Ok(bytes)
}

fn broker_sum(deployment: &Deployment, metric: &str) -> anyhow::Result<u64> {
    let brokers = deployment.members.iter().filter(|member| member.role == "broker");
    let mut sum = 0.0;
    for address in brokers.filter_map(|member| member.metrics) {
        sum += scrape::sum(&scrape::metrics(address)?, metric)
            .with_context(|| format!("{address} has no metric {metric}"))?;
    }
    Ok(sum as u64)
}

fn etcd_puts(endpoint: &str) -> anyhow::Result<u64> {
    let address = endpoint.trim_start_matches("http://").parse()?;
    let page = scrape::metrics(address)?;
    let puts = ["etcd_mvcc_put_total", "etcd_debugging_mvcc_put_total"];
    let puts = puts.iter().find_map(|name| scrape::sum(&page, name));
    Ok(puts.context("etcd has no counter of puts")? as u64)
}

#[derive(Debug, serde::Deserialize)]
struct Keys {
    #[serde(default)]
    kvs: Vec<Entry>,
}

#[derive(Debug, serde::Deserialize)]
struct Entry {
    /// Base64.
    key: String,
    #[serde(default)]
    value: String,
    version: u64,
}

impl Entry {
    /// A partition's record is under `…/p/`, whose first bytes no other key of a cluster has.
    fn is_partition(&self) -> bool {
        decoded(&self.key).windows(3).any(|part| part == b"/p/")
    }

    fn bytes(&self) -> usize {
        decoded(&self.key).len() + decoded(&self.value).len()
    }
}

/// Base64, as etcdctl prints keys and values.
fn decoded(text: &str) -> Vec<u8> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for byte in text.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits & 0xff) as u8);
        }
    }
    out
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 20) as f64
}

fn print(report: &Report) {
    println!(
        "{:.0} MiB in {:.0} s ({:.2} MiB/s), budget {:.0} MiB a node",
        mib(report.bytes_sent),
        report.seconds,
        mib(report.bytes_sent) / report.seconds.max(0.001),
        mib(report.disk_bytes)
    );
    for (node, ((peak, part), rest)) in (1..).zip(report.peaks.iter().zip(&report.rest)) {
        println!(
            "storage node {node}: peak {:.0} MiB, {part:.3} of its budget; {:.0} MiB at the end",
            mib(*peak),
            mib(*rest)
        );
    }
    println!(
        "{} segments, {:.0} MiB offloaded; at most {:.0} MiB waited",
        report.segments_offloaded,
        mib(report.bytes_offloaded),
        mib(report.offload_lag_peak_bytes)
    );
    println!(
        "metadata: {:.2} writes of partition records per segment ({:.2} puts in all), {:.0} bytes per partition, {} at most",
        report.record_writes_per_segment,
        report.etcd_puts_per_segment,
        report.bytes_per_partition,
        report.partition_record_bytes_max
    );
    println!(
        "read back: {} records, each as written, in {:.0} s ({:.0} MiB/s)",
        report.records_checked,
        report.check_seconds,
        mib(report.bytes_sent) / report.check_seconds.max(0.001)
    );
    let word = if report.met { "met" } else { "missed" };
    println!("goal: peaks at most {GOAL} of the budget: {word}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_etcdctl_prints_it() {
        assert_eq!(decoded("L3AvMDE="), b"/p/01");
        assert_eq!(decoded(""), b"");
        assert_eq!(decoded("AP8Q"), [0, 255, 16]);
    }
}
