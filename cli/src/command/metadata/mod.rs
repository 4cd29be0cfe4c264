//! The metadata store, for operators.

mod raise;

use clap::Subcommand;

/// What to do with the metadata store.
#[derive(Debug, Subcommand)]
pub enum MetadataCommand {
    /// After etcd was restored from a backup: bring its records and the storage nodes together again
    RaiseIncarnation(raise::RaiseArgs),
}

impl MetadataCommand {
    /// Carries it out.
    pub async fn run(self, log_level: Option<String>) -> anyhow::Result<()> {
        match self {
            Self::RaiseIncarnation(args) => raise::run(args, log_level).await,
        }
    }
}
