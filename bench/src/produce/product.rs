//! The product as a subject: its processes, and the programs that write to it and read from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::deploy::{ClusterOptions, Deployment};
use super::report::{CLUSTER, STANDALONE};
use super::scrape;
use super::subject::{Operation, Subject};
use crate::measure::{CLIENT, ClientCounts, Counts, DiskCounts};
use crate::pack::{Load, VALUE_BYTES};
use crate::pipe::load_arguments;
use crate::process::{Leave, Process, Usage, cpu_between, usage_by_role};

const TOPIC: &str = "bench";
const RUN_MAX: Duration = Duration::from_secs(600);
const SETTLE_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Bytes of a tail fetch over all partitions: well within what a broker keeps in memory.
const TAIL_BYTES: u64 = 32 << 20;

/// Counters on a storage node's metrics page; what was written is the sum of both.
const WRITTEN: [&str; 2] = [
    "forebay_storage_journal_data_bytes_total",
    "forebay_storage_journal_overhead_bytes_total",
];
const ZEROED: &str = "forebay_storage_journal_zeroed_bytes_total";
const FSYNCS: &str = "forebay_storage_journal_fsyncs_total";

/// The product, started anew for each cell in a folder of its own.
#[derive(Debug)]
pub struct Product {
    shape: Shape,
    forebay: PathBuf,
    scratch: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
enum Shape {
    Standalone,
    Cluster { etcd: PathBuf },
}

#[derive(Debug)]
struct Running {
    deployment: Deployment,
    /// Removed when this is dropped.
    folder: tempfile::TempDir,
    topic_exists: bool,
}

impl Product {
    /// All roles in one process.
    pub fn standalone(forebay: &Path, scratch: &Path) -> Self {
        Self::new(Shape::Standalone, forebay, scratch)
    }

    /// Each role in a process of its own, with etcd.
    pub fn cluster(forebay: &Path, etcd: &Path, scratch: &Path) -> Self {
        Self::new(
            Shape::Cluster {
                etcd: etcd.to_owned(),
            },
            forebay,
            scratch,
        )
    }

    fn new(shape: Shape, forebay: &Path, scratch: &Path) -> Self {
        Self {
            shape,
            forebay: forebay.to_owned(),
            scratch: scratch.to_owned(),
            running: None,
        }
    }
}

impl Subject for Product {
    fn name(&self) -> &'static str {
        match self.shape {
            Shape::Standalone => STANDALONE,
            Shape::Cluster { .. } => CLUSTER,
        }
    }

    fn start(&mut self, _: &Load) -> anyhow::Result<Option<String>> {
        let folder = tempfile::Builder::new()
            .prefix(self.name())
            .tempdir_in(&self.scratch)?;
        let deployment = match &self.shape {
            Shape::Standalone => Deployment::standalone(&self.forebay, folder.path())?,
            Shape::Cluster { etcd } => {
                Deployment::cluster(&self.forebay, etcd, folder.path(), &ClusterOptions::default())?
            }
        };
        self.running = Some(Running {
            deployment,
            folder,
            topic_exists: false,
        });
        Ok(None)
    }

    fn round(&mut self, load: &Load) -> anyhow::Result<Vec<(Operation, Counts)>> {
        let running = self.running.as_mut().context("not started")?;
        Ok(vec![
            (Operation::Produce, running.produce(load)?),
            (
                Operation::FetchTail,
                running.fetch(load, TAIL_BYTES.min(load.bytes), load.bytes)?,
            ),
            (Operation::FetchAll, running.fetch(load, load.bytes, load.bytes)?),
        ])
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let Some(Running {
            deployment, folder, ..
        }) = self.running.take()
        else {
            return Ok(());
        };
        deployment.stop()?;
        Ok(folder.close()?)
    }
}

impl Running {
    fn produce(&mut self, load: &Load) -> anyhow::Result<Counts> {
        let mut command = self.program("send")?;
        command.args(load_arguments(load));
        if !self.topic_exists {
            command.arg("--create");
        }
        let counts = self.measure("producer", command, true)?;
        self.topic_exists = true;
        Ok(counts)
    }

    /// Reads the newest `tail_bytes` as often as it takes to read `bytes`.
    fn fetch(&mut self, load: &Load, tail_bytes: u64, bytes: u64) -> anyhow::Result<Counts> {
        let records = tail_bytes / u64::from(load.partitions.max(1)) / VALUE_BYTES as u64;
        let passes = bytes.div_ceil(tail_bytes.max(1));
        let mut command = self.program("fetch")?;
        command.arg(format!("--partitions={}", load.partitions));
        command
            .arg(format!("--records={}", records.max(1)))
            .arg(format!("--passes={passes}"));
        if passes > 1 {
            command.arg("--warm-up");
        }
        self.measure("consumer", command, false)
    }

    fn program(&self, role: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "role",
            role,
            "--endpoint",
            &self.deployment.endpoint,
            "--topic",
            TOPIC,
        ]);
        Ok(command)
    }

    fn measure(&mut self, name: &str, command: Command, writes: bool) -> anyhow::Result<Counts> {
        let mut client = Process::spawn(name, command, Leave::InputCloses, None)?;
        client.await_line("ready", RUN_MAX)?;
        let disk_before = self.settled_disk()?;
        let before = self.usage(true)?;
        client.tell("go")?;
        let counts: ClientCounts = serde_json::from_str(&client.await_line("done", RUN_MAX)?)?;
        let disk = self.settled_disk()?.since(disk_before);
        let after = self.usage(false)?;
        let client_peak = client.usage()?.rss_peak;
        client.stop()?;
        for member in &mut self.deployment.members {
            member.process.check()?;
        }
        let roles = after.iter().map(|(role, usage)| (role.clone(), usage.rss_peak));
        let rss_peak = roles.chain([(CLIENT.to_owned(), client_peak)]).collect();
        Ok(Counts {
            client: counts,
            cpu: cpu_between(&before, &after),
            rss_peak,
            disk: writes.then_some(disk),
        })
    }

    fn usage(&self, forget_peak: bool) -> anyhow::Result<BTreeMap<String, Usage>> {
        let members = self
            .deployment
            .members
            .iter()
            .map(|member| (member.role, &member.process));
        usage_by_role(members, forget_peak)
    }

    /// What the disks did, once they are at rest: the third replica may lag behind the quorum,
    /// and new files may still be in preparation.
    fn settled_disk(&self) -> anyhow::Result<DiskCounts> {
        let deadline = Instant::now() + SETTLE_MAX;
        let mut last = self.disk()?;
        loop {
            std::thread::sleep(POLL);
            let now = self.disk()?;
            if now == last {
                return Ok(now);
            }
            if Instant::now() > deadline {
                bail!("disks are not at rest after {SETTLE_MAX:?}: {last:?}, then {now:?}");
            }
            last = now;
        }
    }

    fn disk(&self) -> anyhow::Result<DiskCounts> {
        let mut sum = DiskCounts::default();
        let storing = self.deployment.members.iter().filter(|member| member.stores);
        for address in storing.filter_map(|member| member.metrics) {
            let page = scrape::metrics(address)?;
            let count = |name: &str| {
                let value =
                    scrape::sum(&page, name).with_context(|| format!("{address} has no metric {name}"))?;
                anyhow::Ok(value as u64)
            };
            let [data, overhead] = WRITTEN;
            let written = count(data)? + count(overhead)?;
            sum = sum.plus(DiskCounts {
                written,
                zeroed: count(ZEROED)?,
                fsyncs: count(FSYNCS)?,
            });
        }
        Ok(sum)
    }
}
