//! Storage nodes: listing, emptying, removing and reformatting them.

mod drain;
mod list;
mod reformat;
mod remove;
mod view;

use clap::Subcommand;

use crate::connect::connect;

/// What to do with storage nodes.
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// List all storage nodes: where they are, how they are, and what they hold
    List(list::ListArgs),
    /// Show a storage node and what partitions still need of it
    Describe(list::DescribeArgs),
    /// Empty a storage node: no new segments, and what it holds goes elsewhere
    Drain(drain::DrainArgs),
    /// Let a storage node take new segments again
    Undrain(drain::UndrainArgs),
    /// Take a storage node out of the cluster, because it is empty or lost for good
    Remove(remove::RemoveArgs),
    /// Give a storage node whose data is lost a new generation and an empty folder
    Reformat(reformat::ReformatArgs),
}

impl StorageCommand {
    /// Carries it out.
    pub async fn run(self, servers: &[String], log_level: Option<String>) -> anyhow::Result<()> {
        match self {
            Self::List(args) => list::run(args, &connect(servers).await?.admin()).await,
            Self::Describe(args) => list::describe(args, &connect(servers).await?.admin()).await,
            Self::Drain(args) => drain::run(args, &connect(servers).await?.admin()).await,
            Self::Undrain(args) => drain::undrain(args, &connect(servers).await?.admin()).await,
            Self::Remove(args) => {
                // Asked before anything is done, be it only connecting.
                remove::confirm(&args)?;
                remove::run(args, &connect(servers).await?.admin()).await
            }
            Self::Reformat(args) => reformat::run(args, log_level).await,
        }
    }
}
