//! `partition`: what an operator decides where copies are lost for good.

mod declare_lost;
mod force_seal;

use clap::Subcommand;
use forebay_proto::v1;
use serde::Serialize;

use crate::connect::connect;
use crate::output::grouped;

/// What to do with a partition.
#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// End the open segment of a partition that cannot be taken over: what only lost storage nodes had, or what is
    /// damaged, is given up
    ForceSeal(force_seal::ForceSealArgs),
    /// Declare lost what no copy of sealed segments has any more: readers are led over it, and what follows
    /// is offloaded
    DeclareLost(declare_lost::DeclareLostArgs),
}

impl PartitionCommand {
    /// Carries it out.
    pub async fn run(self, servers: &[String]) -> anyhow::Result<()> {
        let admin = connect(servers).await?.admin();
        match self {
            Self::ForceSeal(args) => force_seal::run(&args, &admin).await,
            Self::DeclareLost(args) => declare_lost::run(&args, &admin).await,
        }
    }
}

/// Offsets from the first to the one after the last.
#[derive(Debug, Clone, Copy, Serialize)]
struct Range {
    base: u64,
    end: u64,
}

impl From<v1::OffsetRange> for Range {
    fn from(range: v1::OffsetRange) -> Self {
        Self {
            base: range.base,
            end: range.end,
        }
    }
}

fn ranges_text(ranges: &[Range]) -> String {
    let texts = ranges
        .iter()
        .map(|range| format!("{} to {}", grouped(range.base), grouped(range.end)));
    texts.collect::<Vec<_>>().join(", ")
}
