//! `storage reformat`: after the loss of a disk. The node starts empty, under the same id, and its old
//! generation is never answered for again.

use std::path::PathBuf;

use anyhow::Context as _;
use forebay_meta::model::Partition;
use forebay_meta::store::{MetaStore, scan};
use forebay_meta::{cluster, keys};
use forebay_record::{Generation, NodeId};
use forebay_runtime::tasks::Tasks;
use forebay_storage_node::{Config as StorageConfig, Reformat};
use serde::Serialize;

use crate::command::confirm::confirm;
use crate::command::{Usage, lifetime};
use crate::output::{FormatArgs, counted};
use crate::server::{Config, open_etcd};

/// Records that are read.
const PARTITIONS_MAX: usize = 1_000_000;

/// Which node.
#[derive(Debug, clap::Args)]
pub struct ReformatArgs {
    /// The node's own TOML file; may be repeated
    #[arg(long = "config", value_name = "FILE")]
    pub configs: Vec<PathBuf>,
    /// A setting, such as storage.data_dir=/data; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Reformatted {
    node: u32,
    generation: u32,
    folder: String,
    /// Segments that have lost this replica.
    segments: u64,
}

/// Reformats.
pub async fn run(args: ReformatArgs, log_level: Option<String>) -> anyhow::Result<()> {
    let config: Config = lifetime::layers(&args.configs, &args.settings, log_level)?.load()?;
    if config.metadata.etcd.is_empty() {
        let what = "metadata.etcd names no endpoint; a standalone server has no other copy to go on with";
        return Err(Usage(what.to_owned()).into());
    }
    let tasks = Tasks::new("storage");
    let store = open_etcd(&config, &tasks).await?;
    let (_, cluster) = cluster::stored(&store)
        .await?
        .context("there is no cluster in this metadata store")?;
    let node_config = StorageConfig {
        data_dir: config.storage.data_dir.clone(),
        node_id: config.storage.id,
        ..StorageConfig::default()
    };
    // From here on no process can start on the folder.
    let reformat = Reformat::begin(&node_config, cluster.incarnation, &store).await?;
    let segments = replicas_lost(&store, reformat.node(), reformat.generation()).await?;
    let folder = config.storage.data_dir.display().to_string();
    let warning = format!(
        "storage node {} gives up generation {} and everything in {folder} ({} of journals); {} will have \
         one replica fewer",
        reformat.node(),
        reformat.generation(),
        crate::output::bytes(reformat.bytes()),
        counted(segments, "segment"),
    );
    confirm(&warning, "reformat", args.yes)?;
    let node = reformat.node().0;
    let generation = reformat.finish(&store).await?;
    store.close().await;
    tasks.cancel();
    tasks.wait().await;
    let done = Reformatted {
        node,
        generation: generation.0,
        folder,
        segments,
    };
    args.format.print(&done, |done| {
        format!(
            "storage node {} will start empty with generation g{}; {} had a replica there",
            done.node,
            done.generation,
            counted(done.segments, "segment")
        )
    })
}

/// Segments that name this generation of the node as a replica.
async fn replicas_lost(store: &dyn MetaStore, node: NodeId, generation: Generation) -> anyhow::Result<u64> {
    let (entries, _) = scan(store, keys::PARTITIONS, PARTITIONS_MAX).await?;
    let mut lost = 0;
    for entry in entries {
        let record = Partition::decode(&entry.value).with_context(|| format!("record {}", entry.key))?;
        let has = |segment: &&forebay_meta::model::Segment| segment.generation_of(node) == Some(generation);
        lost += record.chain.iter().filter(has).count() as u64;
    }
    Ok(lost)
}
