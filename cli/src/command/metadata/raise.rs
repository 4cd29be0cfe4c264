//! `metadata raise-incarnation`: the way on after etcd was restored from a backup.
//!
//! 1. Raises the incarnation; from here on only storage nodes run.
//! 2. Waits until all storage nodes that the backup knows run with it, and reads what they hold.
//! 3. Says what becomes of each partition, stores that, and lets everything run again.
//!
//! Stopped anywhere it may be called again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use forebay_meta::model::Partition;
use forebay_meta::restore::{self, FoundRun, Inventory};
use forebay_meta::store::{Entry, MetaStore, scan};
use forebay_meta::{cluster, keys, record};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_proto::v1;
use forebay_proto::v1::storage_node_client::StorageNodeClient;
use forebay_record::{Generation, NodeId};
use forebay_runtime::clock::SystemClock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::OsRandom;
use forebay_runtime::tasks::Tasks;
use forebay_tier::{Bucket, Manifests, Unnamed, find_unnamed};
use serde::Serialize;
use tonic::transport::Channel;

use crate::command::confirm::confirm;
use crate::command::{Usage, lifetime};
use crate::output::{FormatArgs, counted, grouped};
use crate::server::{Config, open_etcd};

/// Partitions, topics and nodes that are read.
const ENTRIES_MAX: usize = 1_000_000;
/// How often nodes are asked whether they are there.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often those are named that are not.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long one node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Memory for manifests that are read.
const MANIFEST_BYTES: usize = 32 << 20;

/// Where the metadata is, and what is meant.
#[derive(Debug, clap::Args)]
pub struct RaiseArgs {
    /// A TOML file that names metadata.etcd, as for `serve`; may be repeated
    #[arg(long = "config", value_name = "FILE")]
    pub configs: Vec<PathBuf>,
    /// A setting, such as metadata.etcd=["http://host:2379"]; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Storage nodes that will not come back: what only they hold is given up
    #[arg(long = "without-node", value_delimiter = ',', value_name = "ID,...")]
    pub without: Vec<u32>,
    /// Go on without the object store: what is only there and not named by the backup is given up
    #[arg(long)]
    pub without_objects: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Report {
    incarnation: u32,
    partitions: u64,
    /// Segments written after the backup that are in a chain again.
    adopted: u64,
    /// Segments that went into the object store after the backup and are listed again.
    offloaded: u64,
    /// Objects that nothing names and that cannot be used.
    unusable: Vec<String>,
    lost: Vec<Lost>,
    /// Segments that continue nothing; storage nodes trim them.
    left: Vec<String>,
    /// Partitions that the backup does not know and of which nodes hold something.
    unknown_partitions: Vec<u64>,
}

/// Offsets that are gone.
#[derive(Debug, Serialize)]
struct Lost {
    partition_id: u64,
    topic_id: String,
    partition: u32,
    base: u64,
    end: u64,
    reason: String,
}

/// Raises the incarnation and restores.
pub async fn run(args: RaiseArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let config: Config = lifetime::layers(&args.configs, &args.settings, log_level)?.load()?;
    if config.metadata.etcd.is_empty() {
        return Err(Usage("metadata.etcd names no endpoint; a standalone server keeps its metadata with its data, and both are restored together".to_owned()).into());
    }
    let tasks = Tasks::new("metadata");
    let store = open_etcd(&config, &tasks).await?;
    let (_, before) = cluster::stored(&store)
        .await?
        .context("there is no cluster in this metadata store")?;
    if !before.restoring {
        let warning = format!(
            "the incarnation of cluster {} goes from {} to {}: every broker and proxy must be stopped, and \
             what was written to etcd after its backup is made again from what storage nodes hold",
            before.id,
            before.incarnation,
            before.incarnation + 1
        );
        confirm(&warning, "raise", args.yes)?;
    }
    let raised = restore::raise(&store).await?;
    // Again, with the revisions of the new incarnation.
    drop(store);
    let store = open_etcd(&config, &tasks).await?;
    eprintln!(
        "incarnation {}: start all storage nodes, and nothing else",
        raised.incarnation
    );
    let mut nodes = wait_for_nodes(&store, raised.incarnation, &args.without).await?;
    let held = inventory(&mut nodes).await?;
    let records = records(&store).await?;
    let found = if args.without_objects {
        Unnamed::default()
    } else {
        objects(&config, &before.id, &records).await?
    };
    let planned = plan(records, &held, &found.runs);
    let mut report = report(raised.incarnation, &planned);
    report.unknown_partitions = unknown(&planned, &held, &found.runs);
    let told = found
        .unusable
        .into_iter()
        .map(|(name, why)| format!("{name}: {why}"));
    report.unusable = told.collect();
    if !report.lost.is_empty() || !report.left.is_empty() || !report.unknown_partitions.is_empty() {
        eprintln!("{}", render(&report));
        let warning = "the above is given up for good";
        confirm(warning, "give up", args.yes)?;
    }
    let highest = held
        .partitions()
        .chain(found.runs.iter().map(|one| one.segment.partition));
    restore::skip_ids(&store, highest.max()).await?;
    for (entry, one) in &planned {
        restore::store_record(&store, entry, &one.record).await?;
    }
    restore::finish(&store).await?;
    store.close().await;
    tasks.cancel();
    tasks.wait().await;
    args.format.print(&report, |report| {
        format!("{}\nstart brokers and proxies now", render(report))
    })
}

/// Asks until every node that is not given up runs with the incarnation.
async fn wait_for_nodes(
    store: &dyn MetaStore,
    incarnation: u32,
    without: &[u32],
) -> anyhow::Result<BTreeMap<NodeId, (Generation, StorageNodeClient<Channel>)>> {
    let mut told: Option<Instant> = None;
    loop {
        let (entries, _) = scan(store, keys::NODES, ENTRIES_MAX).await?;
        let mut there = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for entry in &entries {
            let node: NodeRecord = record::decode(&entry.value).context("record of a storage node")?;
            if node.state() == NodeState::Gone || without.contains(&node.id) {
                continue;
            }
            match reach(&node, incarnation).await {
                Ok(client) => {
                    there.insert(NodeId(node.id), (Generation(node.generation), client));
                }
                Err(why) => {
                    missing.insert(format!("{} ({why:#})", node.id));
                }
            }
        }
        if missing.is_empty() && !there.is_empty() {
            return Ok(there);
        }
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            told = Some(Instant::now());
            let names: Vec<_> = missing.into_iter().collect();
            let what = if names.is_empty() {
                "waits for a storage node".to_owned()
            } else {
                format!("waits for storage nodes: {}", names.join(", "))
            };
            eprintln!("{what}; --without-node gives one up");
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn reach(node: &NodeRecord, incarnation: u32) -> anyhow::Result<StorageNodeClient<Channel>> {
    let connecting = async {
        let mut client = StorageNodeClient::connect(node.control_address.clone())
            .await
            .map_err(|_| anyhow::anyhow!("does not answer at {}", node.control_address))?;
        let status = client.status(v1::StorageNodeStatusRequest {}).await?.into_inner();
        Ok::<_, anyhow::Error>((client, status))
    };
    let (client, status) = tokio::time::timeout(ANSWER_WITHIN, connecting)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {ANSWER_WITHIN:?}"))??;
    if status.id != node.id || status.incarnation != incarnation || status.boot != node.boot {
        bail!("runs since before the restore: restart it");
    }
    Ok(client)
}

/// What all nodes hold.
async fn inventory(
    nodes: &mut BTreeMap<NodeId, (Generation, StorageNodeClient<Channel>)>,
) -> anyhow::Result<Inventory> {
    let mut held = Inventory::default();
    for (node, (generation, client)) in nodes {
        let mut after = None;
        loop {
            let asking = client.inventory(v1::InventoryRequest { after: after.take() });
            let page = tokio::time::timeout(ANSWER_WITHIN * 6, asking)
                .await
                .with_context(|| format!("storage node {node} does not say what it holds"))??
                .into_inner();
            for one in &page.segments {
                held.take(*node, *generation, one);
            }
            after = page.segments.last().cloned();
            if !page.more || after.is_none() {
                break;
            }
        }
    }
    Ok(held)
}

async fn records(store: &dyn MetaStore) -> anyhow::Result<Vec<(Entry, Partition)>> {
    let (entries, _) = scan(store, keys::PARTITIONS, ENTRIES_MAX).await?;
    let read = |entry: Entry| {
        let record = Partition::decode(&entry.value).with_context(|| format!("record {}", entry.key))?;
        Ok((entry, record))
    };
    entries.into_iter().map(read).collect()
}

/// Objects that no record names.
async fn objects(config: &Config, cluster: &str, records: &[(Entry, Partition)]) -> anyhow::Result<Unnamed> {
    let environment = |name: &str| std::env::var(name).ok();
    let clock = Arc::new(SystemClock::new());
    let bucket =
        Bucket::open(&config.object_store, &Metrics::new(), clock, &environment).context("object_store")?;
    let Some(bucket) = bucket else {
        let uses = |record: &Partition| record.manifest.is_some() || !record.recent.is_empty();
        if let Some((entry, _)) = records.iter().find(|(_, record)| uses(record)) {
            bail!(
                "{} names objects, and object_store.url is empty: what went into the object store after the backup \
                 cannot be found; name the store, or add --without-objects",
                entry.key
            );
        }
        return Ok(Unnamed::default());
    };
    bucket.check(cluster, &OsRandom).await.context("object_store")?;
    let manifests = Manifests::new(bucket.clone(), MANIFEST_BYTES);
    let live: Vec<_> = records
        .iter()
        .filter(|(_, record)| !record.deleted)
        .map(|(_, record)| record.clone())
        .collect();
    eprintln!("looking for objects that the backup does not know");
    find_unnamed(&bucket, &manifests, &live, &OsRandom).await.context(
        "what went into the object store after the backup cannot be found; --without-objects gives it up",
    )
}

fn plan(
    records: Vec<(Entry, Partition)>,
    held: &Inventory,
    found: &[FoundRun],
) -> Vec<(Entry, restore::Planned)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    records
        .into_iter()
        .map(|(entry, before)| {
            let of = |one: &&FoundRun| one.segment.partition == before.id;
            let runs: Vec<_> = found.iter().filter(of).cloned().collect();
            let op = restore::nonce(&OsRandom);
            (
                entry,
                restore::plan(&before, held.of(before.id), &runs, now_ms, op),
            )
        })
        .collect()
}

fn report(incarnation: u32, planned: &[(Entry, restore::Planned)]) -> Report {
    let mut report = Report {
        incarnation,
        partitions: planned.len() as u64,
        ..Report::default()
    };
    for (_, one) in planned {
        report.adopted += one.adopted.len() as u64;
        report.offloaded += one.offloaded.len() as u64;
        report.left.extend(one.left.iter().map(ToString::to_string));
        report.lost.extend(one.lost.iter().map(|gap| Lost {
            partition_id: one.record.id.0,
            topic_id: one.record.topic.to_string(),
            partition: one.record.number,
            base: gap.base.0,
            end: gap.end.0,
            reason: gap.reason.clone(),
        }));
    }
    report
}

fn unknown(planned: &[(Entry, restore::Planned)], held: &Inventory, found: &[FoundRun]) -> Vec<u64> {
    let known: BTreeSet<_> = planned.iter().map(|(_, one)| one.record.id).collect();
    let found = found.iter().map(|one| one.segment.partition);
    let all: BTreeSet<_> = held.partitions().chain(found).collect();
    all.difference(&known).map(|id| id.0).collect()
}

fn render(report: &Report) -> String {
    let mut text = format!(
        "incarnation {}: {}, {} written after the backup taken back into the chain, {} listed again",
        report.incarnation,
        counted(report.partitions, "partition"),
        counted(report.adopted, "segment"),
        counted(report.offloaded, "offloaded segment"),
    );
    for one in &report.unusable {
        text.push_str(&format!("\nan object that nothing names cannot be used: {one}"));
    }
    for lost in &report.lost {
        text.push_str(&format!(
            "\nlost: topic {} partition {} ({}) offsets {} to {}: {}",
            lost.topic_id,
            lost.partition,
            lost.partition_id,
            grouped(lost.base),
            grouped(lost.end),
            lost.reason
        ));
    }
    for left in &report.left {
        text.push_str(&format!("\ncontinues nothing, will be trimmed: segment {left}"));
    }
    for id in &report.unknown_partitions {
        text.push_str(&format!(
            "\nof a topic that the backup does not know: partition {id}; its segments stay on the nodes unread, and its objects go after the grace"
        ));
    }
    text
}
