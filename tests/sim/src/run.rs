//! One seed from start to verdict.
//!
//! Start the cluster and its clients, break things for a while, mend everything, wait until all is
//! answered and all can be read, and let the history be checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use forebay_client::Admin;
use forebay_history::{ChainRecord, ChainSegment, Event, History, Range, Rules, check};
use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::store::{Revision, WatchKind};
use serde::{Deserialize, Serialize};

use crate::entropy::seed_thread;
use crate::eventlog::EventLog;
use crate::faults::Troublemaker;
use crate::host::{Host, HostId, Role};
use crate::load::{self, Numbers, TOPIC};
use crate::world::{Ends, Options, World};
use crate::{loss, rest, restore};

/// All must be answered and readable this long after everything was mended.
const RECOVERY: Duration = Duration::from_secs(180);

/// The limit of a partition's bytes.
const RETENTION: [&str; 2] = ["retention.ms", "retention.bytes"];

/// What became of a seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Broken promises, and what went wrong besides; none where all is well.
    pub violations: Vec<String>,
    /// Records acknowledged.
    pub acked: u64,
    /// Records of unknown outcome.
    pub unknown: u64,
    /// Records refused for sure.
    pub failed: u64,
    /// Records given to readers.
    pub reads: u64,
    /// Lines of the event log and their digest.
    pub log: (u64, u64),
    /// Processes that ended by themselves, starts that were refused.
    pub ends: Ends,
    /// Why starts were refused.
    pub refusals: Vec<String>,
    /// Real time that it took.
    pub seconds: f64,
}

/// Runs one seed on a thread of its own. Only the first run of a process repeats in another one:
/// libraries keep counters of their own.
///
/// # Panics
/// Where the simulation itself does.
#[must_use]
pub fn run(seed: u64, options: &Options, log: &EventLog) -> (Outcome, History) {
    let losses_allowed = options.quorum_lost;
    let (options, of_thread) = (options.clone(), log.clone());
    let simulate = move || {
        seed_thread(seed);
        tracing::subscriber::with_default(of_thread.clone(), || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without I/O needs nothing that could be missing");
            runtime.block_on(async {
                of_thread.begin();
                simulate(seed, options).await
            })
        })
    };
    let thread = std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(16 << 20)
        .spawn(simulate)
        .expect("a thread can be started");
    let (world, failure) = thread.join().expect("the simulation does not panic");
    let history = world.history();
    let rules = Rules {
        final_scans_min: 2,
        losses_allowed,
        ..Rules::default()
    };
    let report = check(&history, &rules);
    let mut violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    if let Some(failure) = failure {
        violations.insert(0, failure);
    }
    violations.extend(log.alarms());
    let (ends, refusals) = world.ends();
    let outcome = Outcome {
        seed,
        violations,
        acked: report.counts.acked,
        unknown: report.counts.unknown,
        failed: report.counts.failed,
        reads: report.counts.reads,
        log: log.digest(),
        ends,
        refusals,
        seconds: 0.0,
    };
    (outcome, history)
}

async fn simulate(seed: u64, options: Options) -> (World, Option<String>) {
    let world = World::new(seed, options);
    let failure = drive(&world).await.err();
    (world, failure.map(|error| format!("{error:#}")))
}

fn hosts(world: &World) -> Vec<Host> {
    let options = &world.options;
    let all = [
        (Role::Storage, options.nodes),
        (Role::Broker, options.brokers),
        (Role::Proxy, options.proxies),
    ];
    all.into_iter()
        .flat_map(|(role, count)| (1..=count).map(move |number| HostId { role, number }))
        .map(|id| Host::start(world, id))
        .collect()
}

async fn drive(world: &World) -> anyhow::Result<()> {
    let chains = tokio::spawn(watch_chains(world.clone()));
    let hosts = hosts(world);
    let admin = load::reach(world, "admin", 0).await?.admin();
    let config = [
        ("segment.bytes", "1048576"),
        (
            "segment.ms",
            if world.seed.is_multiple_of(3) {
                "1000"
            } else {
                "3000"
            },
        ),
        (
            "forebay.offload",
            if world.options.offload { "true" } else { "false" },
        ),
    ];
    let unlimited = RETENTION.iter().map(|key| (*key, "-1"));
    let mut config: BTreeMap<_, _> = config
        .into_iter()
        .chain(unlimited)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    if let Some(limit) = world.options.retention {
        let (key, value) = limit.config();
        config.insert(key.to_owned(), value);
    }
    admin
        .create_topic(TOPIC, world.options.partitions, config)
        .await
        .context("the topic cannot be made")?;
    let (numbers, stop) = (Arc::new(Numbers::default()), Arc::new(AtomicBool::new(false)));
    let mut producers = tokio::task::JoinSet::new();
    for number in 1..=world.options.producers {
        producers.spawn(load::produce(
            world.clone(),
            number,
            Arc::clone(&numbers),
            Arc::clone(&stop),
        ));
    }
    let mut readers = tokio::task::JoinSet::new();
    for number in 1..=world.options.readers {
        readers.spawn(load::follow(
            world.clone(),
            number,
            Arc::clone(&numbers),
            Arc::clone(&stop),
        ));
    }
    let time = Duration::from_secs(world.options.seconds);
    let middle = {
        let store = world.store.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time / 2).await;
            store.image()
        })
    };
    if world.options.calm {
        tokio::time::sleep(time).await;
    } else {
        Troublemaker::new(world, &hosts).run(time).await;
        // Faults that end by themselves may be under way still.
        tokio::time::sleep(Duration::from_secs(15)).await;
        Troublemaker::new(world, &hosts).mend();
    }
    stop.store(true, Ordering::Relaxed);
    let finish = async {
        while let Some(ended) = producers.join_next().await {
            ended.context("a producer panicked")?;
        }
        while let Some(ended) = readers.join_next().await {
            ended.context("a reader panicked")?;
        }
        if world.options.retention.is_some() {
            keep_all(&admin).await?;
        }
        load::scan_all(world, &numbers).await;
        anyhow::Ok(())
    };
    let finished = tokio::time::timeout(RECOVERY, finish).await;
    finished.with_context(|| {
        format!("not all was answered and readable {RECOVERY:?} after everything was mended")
    })??;
    // Its waits have bounds of their own.
    rest::note(world)
        .await
        .context("what is left cannot be looked at")?;
    if world.options.restore {
        chains.abort();
        restore::go_back(world, &hosts, middle.await?, &numbers).await;
        restore::raise(world, &hosts, &numbers).await?;
    }
    if world.options.quorum_lost {
        loss::lose_quorum(world, &hosts, &numbers).await?;
    }
    Ok(())
}

/// Retention ends before all is read, or two readers would find two beginnings.
async fn keep_all(admin: &Admin) -> anyhow::Result<()> {
    let unlimited: BTreeMap<_, _> = RETENTION
        .iter()
        .map(|key| ((*key).to_owned(), "-1".to_owned()))
        .collect();
    while let Err(error) = admin
        .alter_topic_config(TOPIC, unlimited.clone(), Vec::new())
        .await
    {
        tracing::info!(target: "sim", %error, "retention is not ended yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Owners hear of it, and what they began is done.
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

/// Notes every version of every partition's record.
async fn watch_chains(world: World) {
    let mut changes = world.store.follow(keys::PARTITIONS, Revision(0));
    while let Some(Ok(batch)) = changes.next().await {
        for event in batch.events {
            let WatchKind::Put(entry) = &event.kind else {
                continue;
            };
            match Partition::decode(&entry.value) {
                Ok(record) => world.note(Event::Chain(chain(&record, entry.mod_revision))),
                Err(error) => {
                    tracing::error!(target: "sim", key = entry.key, %error, "alarm: damaged record")
                }
            }
        }
    }
}

fn chain(record: &Partition, revision: Revision) -> ChainRecord {
    let runs = record.recent.last().map(|run| run.end);
    let manifest = record.manifest.as_ref().map(|manifest| manifest.end);
    ChainRecord {
        partition: u64::from(record.number),
        revision: revision.0,
        epoch: u64::from(record.epoch.0),
        log_start: record.log_start.get(),
        offloaded_end: runs.or(manifest).unwrap_or(record.log_start).get(),
        segments: record
            .chain
            .iter()
            .map(|segment| ChainSegment {
                epoch: u64::from(segment.id.epoch.0),
                seq: u64::from(segment.id.seq),
                token: segment.token.0,
                base: segment.base.get(),
                end: segment.end.map(|end| end.get()),
            })
            .collect(),
        gaps: record
            .gaps
            .iter()
            .map(|gap| Range {
                from: gap.base.get(),
                until: gap.end.get(),
            })
            .collect(),
    }
}
