//! What clients see while brokers and storage nodes are lost, paused, drained and restarted.
//!
//! Real processes on loopback: etcd, storage nodes, brokers, a controller, a proxy, and load by the
//! Rust client. Losses are by SIGKILL. Detection is the time until the survivor that must act says
//! in its log that it knows; recovery is the rest. Every record is followed, so that every error and
//! every gap between acknowledgements is seen.

mod cluster;
mod load;
mod stats;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use cluster::{Cluster, Controllers, kill, pause};
use load::{Load, Sample, Weight, first_acknowledged};
use stats::{Spread, ms};

const STORAGE_NODES: u32 = 4;
const RECOVERED_MAX: Duration = Duration::from_secs(60);
/// Load before each fault.
const CALM: Duration = Duration::from_millis(700);
/// Partitions while storage nodes are lost, and while brokers are drained.
const PARTITIONS: u32 = 30;
/// What the controller and a broker log of a loss; the one that is lost follows, since sessions of those
/// that were lost before may end meanwhile.
const BROKER_LOST: [&str; 2] = ["broker counts as dead", "broker session ended"];
const NODE_LOST: &str = "session with storage node ended";

/// What to lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The owner of 1, 100 and 1,000 partitions.
    Brokers,
    /// The owner of 30, whose process is the leading controller too.
    Leader,
    /// A storage node; two at once; one that hangs.
    Nodes,
    /// Nothing: all brokers are drained and restarted, one after the other.
    Drain,
}

/// What to run.
#[derive(Debug, Args)]
pub struct Failover {
    /// Folder on the disk to be used; removed at the end.
    #[arg(long)]
    pub dir: PathBuf,
    /// The `forebay` program.
    #[arg(long)]
    pub forebay: PathBuf,
    /// The etcd program.
    #[arg(long, default_value = "etcd")]
    pub etcd: PathBuf,
    /// Losses of each kind.
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Partitions of the broker that is lost.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    pub partitions: Vec<u32>,
    /// Records a second over all partitions; each gets at most 200.
    #[arg(long, default_value_t = 2_000)]
    pub records: u32,
    /// Bytes of each record.
    #[arg(long, default_value_t = 256)]
    pub record_bytes: usize,
    /// Parts, all by default.
    #[arg(long = "part", value_enum)]
    pub parts: Vec<Part>,
    /// Write the report here too.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    records_per_second: u32,
    record_bytes: usize,
    brokers: Vec<Takeover>,
    nodes: Vec<Loss>,
    restart: Option<Restart>,
}

/// The owner of some partitions was lost.
#[derive(Debug, Serialize)]
struct Takeover {
    partitions: u32,
    /// Its process was the leading controller too.
    leads: bool,
    rounds: usize,
    /// From the kill until the controller knows, ms.
    detection: Spread,
    /// From there to the first acknowledgement by the new owner, ms.
    first: Spread,
    /// From there until every partition has acknowledged something, ms.
    all: Spread,
    /// Bytes that storage nodes answered to reads of each takeover, per partition.
    read_bytes: Spread,
    errors: usize,
}

/// Storage nodes were lost.
#[derive(Debug, Serialize)]
struct Loss {
    what: &'static str,
    rounds: usize,
    /// From the fault until a broker knows, ms; none where nothing says so.
    detection: Option<Spread>,
    /// Largest time without an acknowledgement in a partition, ms.
    gap: Spread,
    /// The same beyond detection.
    beyond: Option<Spread>,
    errors: usize,
}

/// All brokers were drained and restarted.
#[derive(Debug, Serialize)]
struct Restart {
    restarts: usize,
    records: usize,
    errors: usize,
    /// Latency in calm times, ms.
    calm_p99: f64,
    /// Latency over all the time, ms.
    p50: f64,
    p99: f64,
    max: f64,
}

impl Failover {
    /// Runs it and prints the report.
    ///
    /// # Errors
    /// Where a process fails that was not meant to, or a partition does not come back.
    pub fn run(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let mut report = Report {
            records_per_second: self.records,
            record_bytes: self.record_bytes,
            ..Report::default()
        };
        let wants = |part| self.parts.is_empty() || self.parts.contains(&part);
        if wants(Part::Brokers) {
            for partitions in &self.partitions {
                let apart = Controllers::Apart { rebalance: false };
                let takeover = self.scratch(|folder| self.brokers(folder, *partitions, apart))?;
                takeover.print();
                report.brokers.push(takeover);
            }
        }
        if wants(Part::Leader) {
            let takeover =
                self.scratch(|folder| self.brokers(folder, PARTITIONS, Controllers::WithBrokers))?;
            takeover.print();
            report.brokers.push(takeover);
        }
        if wants(Part::Nodes) {
            report.nodes = self.scratch(|folder| self.nodes(folder))?;
        }
        if wants(Part::Drain) {
            let restart = self.scratch(|folder| self.drain(folder))?;
            restart.print();
            report.restart = Some(restart);
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn scratch<T>(&self, run: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let folder = tempfile::Builder::new()
            .prefix("failover-")
            .tempdir_in(&self.dir)?;
        match run(folder.path()) {
            Ok(done) => {
                folder.close()?;
                Ok(done)
            }
            Err(error) => Err(error.context(format!("logs are in {}", folder.keep().display()))),
        }
    }

    fn start(&self, folder: &Path, brokers: u32, controllers: Controllers) -> anyhow::Result<Cluster> {
        Cluster::start(
            &self.forebay,
            &self.etcd,
            folder,
            STORAGE_NODES,
            brokers,
            controllers,
        )
    }

    fn load(&self, cluster: &Cluster, partitions: u32) -> anyhow::Result<Load> {
        let weight = Weight {
            records: self.records,
            bytes: self.record_bytes,
        };
        Load::start(&cluster.endpoint, "failover", partitions, weight)
    }

    /// Each round a new broker is started, and the one that owns everything is killed.
    fn brokers(&self, folder: &Path, partitions: u32, controllers: Controllers) -> anyhow::Result<Takeover> {
        let mut cluster = self.start(folder, 1, controllers)?;
        let mut load = self.load(&cluster, partitions)?;
        load.await_all(Instant::now(), RECOVERED_MAX)?;
        let (mut detection, mut first, mut all, mut read) = (vec![], vec![], vec![], vec![]);
        let mut errors = 0;
        for round in 1..=self.rounds {
            let owner = u32::try_from(round)?;
            cluster.add_broker(owner + 1)?;
            std::thread::sleep(CALM);
            load.await_all(Instant::now(), RECOVERED_MAX)?;
            let mut log = cluster.controller_log(owner + 1)?;
            let read_before = cluster.node_metric("forebay_storage_recovery_bytes_total")?;
            let killed = kill(cluster.brokers.remove(&owner).context("no broker")?)?;
            let lost = BROKER_LOST.map(|text| format!("{text} broker={owner} "));
            let known = log.await_any(&lost, RECOVERED_MAX)?;
            let mut samples = load.await_all(killed, RECOVERED_MAX)?;
            let read_after = cluster.node_metric("forebay_storage_recovery_bytes_total")?;
            std::thread::sleep(CALM);
            samples.extend(load.take()?);
            errors += samples.iter().filter(|sample| !sample.acknowledged).count();
            let back = first_acknowledged(&samples, killed);
            let since = |at: Option<&Instant>| at.map_or(0.0, |at| ms(at.saturating_duration_since(known)));
            detection.push(ms(known.duration_since(killed)));
            first.push(since(back.values().min()));
            all.push(since(back.values().max()));
            read.push((read_after - read_before) / f64::from(partitions));
            eprintln!(
                "{partitions} partitions, round {round}: known after {:.0} ms, first {:.0} ms, all {:.0} ms later",
                detection.last().unwrap_or(&0.0),
                first.last().unwrap_or(&0.0),
                all.last().unwrap_or(&0.0)
            );
        }
        load.stop()?;
        cluster.stop()?;
        Ok(Takeover {
            partitions,
            leads: controllers == Controllers::WithBrokers,
            rounds: self.rounds,
            detection: Spread::of(detection),
            first: Spread::of(first),
            all: Spread::of(all),
            read_bytes: Spread::of(read),
            errors,
        })
    }

    fn nodes(&self, folder: &Path) -> anyhow::Result<Vec<Loss>> {
        let mut cluster = self.start(folder, 1, Controllers::Apart { rebalance: false })?;
        let mut load = self.load(&cluster, PARTITIONS)?;
        load.await_all(Instant::now(), RECOVERED_MAX)?;
        let mut losses = Vec::new();
        for (what, count) in [("a storage node killed", 1), ("two storage nodes killed", 2)] {
            let loss = self.lose_nodes(&mut cluster, &mut load, what, count)?;
            loss.print();
            losses.push(loss);
        }
        let loss = self.pause_nodes(&mut cluster, &mut load)?;
        loss.print();
        losses.push(loss);
        load.stop()?;
        cluster.stop()?;
        Ok(losses)
    }

    fn lose_nodes(
        &self,
        cluster: &mut Cluster,
        load: &mut Load,
        what: &'static str,
        count: u32,
    ) -> anyhow::Result<Loss> {
        let (mut detection, mut gaps, mut beyond, mut errors) = (vec![], vec![], vec![], 0);
        for round in 0..u32::try_from(self.rounds)? {
            load.await_all(Instant::now(), RECOVERED_MAX)?;
            std::thread::sleep(CALM);
            load.take()?;
            std::thread::sleep(CALM / 4);
            let mut log = cluster.broker_log(1)?;
            let lost: Vec<_> = (0..count).map(|one| (round + one) % STORAGE_NODES + 1).collect();
            let mut killed = Instant::now();
            for node in &lost {
                killed = kill(cluster.nodes.remove(node).context("no node")?)?;
            }
            let texts: Vec<_> = lost
                .iter()
                .map(|node| format!("{NODE_LOST} node=n{node} "))
                .collect();
            let known = log.await_any(&texts, RECOVERED_MAX)?;
            std::thread::sleep(CALM);
            let mut samples = load.await_all(Instant::now(), RECOVERED_MAX)?;
            samples.extend(load.take()?);
            errors += samples.iter().filter(|sample| !sample.acknowledged).count();
            let gap = largest_gap(&samples);
            let noticed = ms(known.saturating_duration_since(killed));
            detection.push(noticed);
            gaps.push(gap);
            beyond.push((gap - noticed).max(0.0));
            eprintln!(
                "{what}, round {}: known after {noticed:.0} ms, gap {gap:.0} ms",
                round + 1
            );
            for node in lost {
                cluster.add_node(node)?;
            }
        }
        Ok(Loss {
            what,
            rounds: self.rounds,
            detection: Some(Spread::of(detection)),
            gap: Spread::of(gaps),
            beyond: Some(Spread::of(beyond)),
            errors,
        })
    }

    /// A node that hangs and later goes on: nobody is told, it is only slow.
    fn pause_nodes(&self, cluster: &mut Cluster, load: &mut Load) -> anyhow::Result<Loss> {
        let (mut gaps, mut errors) = (vec![], 0);
        for round in 0..u32::try_from(self.rounds)? {
            load.await_all(Instant::now(), RECOVERED_MAX)?;
            std::thread::sleep(CALM);
            load.take()?;
            // A pause is seen only between two acknowledgements: each partition has one before it.
            std::thread::sleep(CALM / 4);
            let node = round % STORAGE_NODES + 1;
            let process = &cluster.nodes.get(&node).context("no node")?.process;
            pause(process, true)?;
            std::thread::sleep(Duration::from_secs(4));
            let samples = load.await_all(Instant::now(), RECOVERED_MAX);
            pause(process, false)?;
            let samples = samples?;
            errors += samples.iter().filter(|sample| !sample.acknowledged).count();
            gaps.push(largest_gap(&samples));
            eprintln!(
                "a storage node paused, round {}: gap {:.0} ms",
                round + 1,
                gaps.last().unwrap_or(&0.0)
            );
            std::thread::sleep(Duration::from_secs(1));
            cluster.await_nodes()?;
        }
        Ok(Loss {
            what: "a storage node paused",
            rounds: self.rounds,
            detection: None,
            gap: Spread::of(gaps),
            beyond: None,
            errors,
        })
    }

    fn drain(&self, folder: &Path) -> anyhow::Result<Restart> {
        const BROKERS: u32 = 3;
        let mut cluster = self.start(folder, BROKERS, Controllers::Apart { rebalance: true })?;
        let mut load = self.load(&cluster, PARTITIONS)?;
        load.await_all(Instant::now(), RECOVERED_MAX)?;
        std::thread::sleep(CALM);
        load.take()?;
        std::thread::sleep(CALM * 5);
        let calm = latencies(&load.take()?);
        let (mut samples, mut restarts) = (Vec::new(), 0);
        for round in 0..self.rounds.div_ceil(BROKERS as usize) {
            for broker in 1..=BROKERS {
                // Every other restart is without a drain: the broker hands over by itself.
                if round % 2 == 0 {
                    cluster.command(&["broker", "drain", &broker.to_string(), "--wait"])?;
                }
                let member = cluster.brokers.remove(&broker).context("no broker")?;
                member.process.stop()?;
                cluster.add_broker(broker)?;
                std::thread::sleep(CALM);
                samples.extend(load.await_all(Instant::now(), RECOVERED_MAX)?);
                restarts += 1;
                let errors = samples.iter().filter(|sample| !sample.acknowledged).count();
                eprintln!(
                    "restart {restarts}: {} records so far, {errors} errors",
                    samples.len()
                );
            }
        }
        samples.extend(load.stop()?);
        cluster.stop()?;
        let all = latencies(&samples);
        ensure!(!all.is_empty(), "no record was acknowledged");
        Ok(Restart {
            restarts,
            records: samples.len(),
            errors: samples.iter().filter(|sample| !sample.acknowledged).count(),
            calm_p99: stats::quantile(&calm, 0.99),
            p50: stats::quantile(&all, 0.5),
            p99: stats::quantile(&all, 0.99),
            max: stats::quantile(&all, 1.0),
        })
    }
}

/// Latencies of acknowledged records, sorted, ms.
fn latencies(samples: &[Sample]) -> Vec<f64> {
    let mut all: Vec<_> = samples
        .iter()
        .filter(|sample| sample.acknowledged)
        .map(|sample| ms(sample.ended.duration_since(sample.began)))
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The largest time between two acknowledgements of one partition, ms.
fn largest_gap(samples: &[Sample]) -> f64 {
    let mut by_partition = std::collections::BTreeMap::<u32, Vec<Instant>>::new();
    for sample in samples.iter().filter(|sample| sample.acknowledged) {
        by_partition
            .entry(sample.partition)
            .or_default()
            .push(sample.ended);
    }
    let mut largest = 0.0_f64;
    for times in by_partition.values_mut() {
        times.sort_unstable();
        for pair in times.windows(2) {
            if let [earlier, later] = pair {
                largest = largest.max(ms(later.duration_since(*earlier)));
            }
        }
    }
    largest
}

impl Takeover {
    fn print(&self) {
        let leads = if self.leads {
            ", the leading controller,"
        } else {
            ""
        };
        println!(
            "owner of {} partitions{leads} killed, {} times",
            self.partitions, self.rounds
        );
        println!("  detection              {} ms", self.detection);
        println!("  first acknowledgement  {} ms after it", self.first);
        println!("  all partitions         {} ms after it", self.all);
        println!("  bytes read             {} per partition", self.read_bytes);
        println!("  errors seen by clients {}", self.errors);
    }
}

impl Loss {
    fn print(&self) {
        println!("{}, {} times", self.what, self.rounds);
        if let Some(detection) = &self.detection {
            println!("  detection              {detection} ms");
        }
        println!("  largest gap            {} ms", self.gap);
        if let Some(beyond) = &self.beyond {
            println!("  beyond detection       {beyond} ms");
        }
        println!("  errors seen by clients {}", self.errors);
    }
}

impl Restart {
    fn print(&self) {
        println!("{} orderly restarts of brokers", self.restarts);
        println!("  records                {}", self.records);
        println!("  errors seen by clients {}", self.errors);
        println!("  p99 in calm times      {:.1} ms", self.calm_p99);
        println!(
            "  p50, p99, most         {:.1}, {:.1}, {:.1} ms",
            self.p50, self.p99, self.max
        );
    }
}
