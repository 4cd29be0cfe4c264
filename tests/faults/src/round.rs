//! One round: a cluster, its load, its faults, and the verdict.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_client::Client;
use forebay_history::{Counts, Event, Rules, check};
use forebay_runtime::random::SeededRandom;
use forebay_runtime::tasks::Tasks;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::abilities::Abilities;
use crate::chain::Chains;
use crate::inject::Active;
use crate::load::{self, PARTITIONS, TOPIC};
use crate::network::Network;
use crate::plan::{Fault, Kind, Planned, plan};
use crate::recorder::Recorder;
use crate::site::{Site, targets};

const PRODUCERS: u64 = 4;
const TAILING: u64 = 2;
/// Readers from this number on scan.
const SCANNING: u64 = 1_000;
/// Readers from this number on scan what is there at the end.
const FINAL: u64 = 1_000_000;
const START_DEADLINE: Duration = Duration::from_secs(90);
const HEAL_DEADLINE: Duration = Duration::from_secs(90);
const READ_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const SUPERVISE_EVERY: Duration = Duration::from_millis(100);

/// What all rounds of a run have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The product.
    pub binary: PathBuf,
    /// Folder in which each round has its own.
    pub folder: PathBuf,
    /// How long faults go on.
    pub length: Duration,
    /// What can be broken here.
    pub abilities: Abilities,
    /// Keep logs and history of rounds where all is well, too.
    pub keep: bool,
}

/// What became of a round.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Its faults, with their times.
    pub faults: Vec<String>,
    /// What faults had to say.
    pub notes: Vec<String>,
    /// Records acknowledged.
    pub acked: u64,
    /// Records of unknown outcome.
    pub unknown: u64,
    /// Records refused.
    pub failed: u64,
    /// Records given to readers.
    pub reads: u64,
    /// Scans of a partition up to its end.
    pub scans: u64,
    /// Versions of records checked.
    pub chain_records: u64,
    /// Longest time that a partition went without an acknowledgement.
    pub longest_gap_ms: u64,
    /// Which partition that was.
    pub longest_gap_partition: u64,
    /// When it began, counted as the faults' times are.
    pub longest_gap_at_ms: i64,
    /// From the end of the last fault until every partition took records again.
    pub healed_ms: u64,
    /// Processes that ended by themselves and were started again.
    pub exits: Vec<String>,
    /// What is wrong; empty where all is well.
    pub failures: Vec<String>,
    /// How long all of it took.
    pub seconds: f64,
    /// Logs and history, where they are kept.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// Whether all is well.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "seed {}: {}; acked {} unknown {} failed {} reads {} scans {} gap {:.1}s (partition {} at {:.1}s) healed {:.1}s exits {} {:.0}s {}",
            self.seed,
            self.faults.join(", "),
            self.acked,
            self.unknown,
            self.failed,
            self.reads,
            self.scans,
            self.longest_gap_ms as f64 / 1e3,
            self.longest_gap_partition,
            self.longest_gap_at_ms as f64 / 1e3,
            self.healed_ms as f64 / 1e3,
            self.exits.len(),
            self.seconds,
            if self.is_clean() { "ok" } else { "FAILED" }
        )
    }
}

/// A producer or a reader; ends with the round, also with one that fails.
type Load = AbortOnDropHandle<anyhow::Result<()>>;

/// What a round has while it runs.
struct Round {
    site: Arc<Mutex<Site>>,
    recorder: Arc<Recorder>,
    proxies: Vec<SocketAddr>,
    brokers: Vec<SocketAddr>,
    notes: Vec<String>,
    failures: Vec<String>,
    healed_ms: u64,
    /// When the faults began, microseconds since the round did.
    broken_us: u64,
}

/// Runs one round. Its folder is removed where all is well, unless it is to be kept.
///
/// # Errors
/// Where the harness itself cannot do its work.
pub async fn run(settings: &Settings, seed: u64) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let length_ms = u64::try_from(settings.length.as_millis())?;
    let planned = plan(seed, length_ms, settings.abilities);
    let folder = settings.folder.join(format!("round-{seed}"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let site = start(settings, &planned, &folder)?;
    let mut round = Round {
        proxies: site.addresses(Kind::Proxy),
        brokers: site.addresses(Kind::Broker),
        site: Arc::new(Mutex::new(site)),
        recorder: Arc::new(Recorder::default()),
        notes: Vec::new(),
        failures: Vec::new(),
        healed_ms: 0,
        broken_us: 0,
    };
    let supervisor = round.supervisor();
    if let Err(error) = round.go(seed, &planned).await {
        round.failures.push(format!("{error:#}"));
    }
    // It holds the site: only when it has ended does dropping that end the processes.
    supervisor.abort();
    let _ = supervisor.await;
    round.end(seed, &planned, (&folder, settings.keep), began)
}

fn start(settings: &Settings, planned: &[Planned], folder: &Path) -> anyhow::Result<Site> {
    let network = if settings.abilities.network {
        Some(Network::create(targets().count())?)
    } else {
        None
    };
    let small_disk = planned.iter().find_map(|one| match one.fault {
        Fault::FillDisk(number) => Some(number),
        _ => None,
    });
    Site::start(&settings.binary, folder, network, small_disk)
}

impl Round {
    async fn go(&mut self, seed: u64, planned: &[Planned]) -> anyhow::Result<()> {
        let client = self.make_topic().await?;
        let tasks = Tasks::new("faults");
        let etcd = self.site.lock().addresses(Kind::Etcd);
        let endpoints = etcd.iter().map(|address| format!("http://{address}")).collect();
        let chains = Chains::follow(endpoints, &tasks, Arc::clone(&self.recorder)).await?;
        let (writing, reading) = (CancellationToken::new(), CancellationToken::new());
        let producers = self.producers(&writing).await?;
        let readers = self.readers(&reading).await?;
        self.wait_for_acks("at the start", START_DEADLINE).await?;

        self.inject(seed, planned).await?;

        let healed = Instant::now();
        let took = self.wait_for_acks("after the last fault", HEAL_DEADLINE).await;
        self.healed_ms = u64::try_from(healed.elapsed().as_millis())?;
        writing.cancel();
        for producer in producers {
            producer.await??;
        }
        took?;
        self.wait_for_tails().await?;
        reading.cancel();
        for reader in readers {
            reader.await??;
        }
        drop(client);
        self.recorder.note(Event::Quiesced);
        self.scan_all().await?;
        chains.catch_up().await?;
        tasks.cancel();
        Ok(())
    }

    fn supervisor(&self) -> JoinHandle<()> {
        let (site, recorder) = (Arc::clone(&self.site), Arc::clone(&self.recorder));
        tokio::spawn(async move {
            loop {
                if let Err(error) = site.lock().supervise() {
                    recorder.complain(format!("the supervisor failed: {error:#}"));
                }
                tokio::time::sleep(SUPERVISE_EVERY).await;
            }
        })
    }

    /// Waits for the cluster, and makes the topic.
    async fn make_topic(&self) -> anyhow::Result<Client> {
        let deadline = Instant::now() + START_DEADLINE;
        let settings: BTreeMap<_, _> = [("segment.bytes", "1048576"), ("segment.ms", "4000")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        loop {
            let tried = async {
                let client = load::client(&self.proxies, 0).await?;
                let admin = client.admin();
                if admin.describe_topic(TOPIC).await.is_err() {
                    admin
                        .create_topic(TOPIC, PARTITIONS.get(), settings.clone())
                        .await?;
                }
                anyhow::Ok(client)
            };
            match tried.await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the cluster does not start"));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn producers(&self, stop: &CancellationToken) -> anyhow::Result<Vec<Load>> {
        let mut tasks = Vec::new();
        for producer in 1..=PRODUCERS {
            let client = load::client(&self.proxies, usize::try_from(producer)?).await?;
            let recorder = Arc::clone(&self.recorder);
            let task = load::produce(client, producer, recorder, stop.clone());
            tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        Ok(tasks)
    }

    async fn readers(&self, stop: &CancellationToken) -> anyhow::Result<Vec<Load>> {
        let mut tasks = Vec::new();
        for reader in 1..=TAILING {
            let client = load::client(&self.proxies, usize::try_from(reader)?).await?;
            let recorder = Arc::clone(&self.recorder);
            let task = load::tail(client, reader, recorder, stop.clone());
            tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        let client = load::client(&self.proxies, 0).await?;
        let (recorder, stop) = (Arc::clone(&self.recorder), stop.clone());
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut reader = SCANNING;
            while !stop.is_cancelled() {
                for partition in 0..PARTITIONS.get() {
                    let scan = load::scan(&client, reader, partition, &recorder, READ_DEADLINE);
                    tokio::select! {
                        // What cannot be read while something is broken is read at the end.
                        _ = scan => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                    reader += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            Ok(())
        })));
        Ok(tasks)
    }

    /// Waits until every partition acknowledged something that was sent from now on.
    async fn wait_for_acks(&self, when: &str, limit: Duration) -> anyhow::Result<()> {
        let since = self.recorder.now_us();
        let deadline = Instant::now() + limit;
        loop {
            let silent = self.recorder.silent_since(since, PARTITIONS.get());
            if silent.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{when}, partitions {silent:?} acknowledge nothing for {limit:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn wait_for_tails(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READ_DEADLINE;
        loop {
            let behind = self.recorder.behind();
            if behind.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "tailing readers do not come to the end (reader, partition, position, end): {behind:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn inject(&mut self, seed: u64, planned: &[Planned]) -> anyhow::Result<()> {
        let random = SeededRandom::stream(seed, 1);
        let began = tokio::time::Instant::now();
        self.broken_us = self.recorder.now_us();
        let mut moments: Vec<(u64, usize, bool)> = Vec::new();
        for (index, one) in planned.iter().enumerate() {
            moments.push((one.at_ms, index, true));
            moments.push((one.until_ms, index, false));
        }
        moments.sort_unstable();
        let mut active: BTreeMap<usize, Active> = BTreeMap::new();
        for (at_ms, index, begins) in moments {
            tokio::time::sleep_until(began + Duration::from_millis(at_ms)).await;
            let Some(one) = planned.get(index) else { continue };
            if begins {
                match Active::begin(&mut self.site.lock(), one.fault, &random) {
                    Ok(mut begun) => {
                        let note = begun.note.take();
                        self.notes
                            .extend(note.map(|note| format!("{}: {note}", one.fault)));
                        active.insert(index, begun);
                    }
                    Err(error) => self.notes.push(format!("{} was not done: {error:#}", one.fault)),
                }
            } else if let Some(begun) = active.remove(&index) {
                begun
                    .end(&mut self.site.lock())
                    .with_context(|| format!("{} cannot be undone", one.fault))?;
            }
        }
        Ok(())
    }

    /// Everything, by every proxy and every broker.
    async fn scan_all(&self) -> anyhow::Result<()> {
        let mut reader = FINAL;
        for address in self.proxies.iter().chain(&self.brokers) {
            let client = self.reach(*address).await?;
            for partition in 0..PARTITIONS.get() {
                load::scan(&client, reader, partition, &self.recorder, READ_DEADLINE)
                    .await
                    .with_context(|| format!("final scan by {address}"))?;
                reader += 1;
            }
        }
        Ok(())
    }

    /// One that was started just now may still be on its way up.
    async fn reach(&self, address: SocketAddr) -> anyhow::Result<Client> {
        let deadline = Instant::now() + HEAL_DEADLINE;
        loop {
            match load::client(&[address], 0).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{address} is not reached")));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    fn end(
        mut self,
        seed: u64,
        planned: &[Planned],
        (folder, keep): (&Path, bool),
        began: Instant,
    ) -> anyhow::Result<Outcome> {
        let (exits, panics) = {
            let mut site = self.site.lock();
            (std::mem::take(&mut site.exits), site.panics())
        };
        // Ends every process and takes the network away.
        anyhow::ensure!(
            Arc::into_inner(self.site).is_some(),
            "somebody still holds the processes"
        );
        self.failures.extend(panics);
        self.failures.extend(self.recorder.complaints());
        let history = self.recorder.history();
        let whole = self.failures.is_empty();
        let rules = Rules {
            // A round that did not come to its end has no final scans, and says so already.
            final_scans_min: if whole { 2 } else { 0 },
            ..Rules::default()
        };
        let report = check(&history, &rules);
        self.failures
            .extend(report.violations.iter().map(ToString::to_string));
        let Counts {
            acked,
            unknown,
            failed,
            reads,
            complete_scans,
            chain_records,
            ..
        } = report.counts;
        let gap = self.recorder.longest_gap();
        let mut kept = None;
        if self.failures.is_empty() && !keep {
            std::fs::remove_dir_all(folder)?;
        } else {
            let file = std::fs::File::create(folder.join("history.jsonl"))?;
            history.write_to(std::io::BufWriter::new(file))?;
            kept = Some(folder.to_owned());
        }
        Ok(Outcome {
            seed,
            faults: planned.iter().map(ToString::to_string).collect(),
            notes: self.notes,
            acked,
            unknown,
            failed,
            reads,
            scans: complete_scans,
            chain_records,
            longest_gap_ms: gap.us / 1_000,
            longest_gap_partition: gap.partition,
            longest_gap_at_ms: (gap.from_us.cast_signed() - self.broken_us.cast_signed()) / 1_000,
            healed_ms: self.healed_ms,
            exits,
            failures: self.failures,
            seconds: began.elapsed().as_secs_f64(),
            kept,
        })
    }
}
