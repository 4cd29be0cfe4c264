//! Topics: making, listing, describing, changing, deleting, and where their offsets are.

mod add_partitions;
mod alter;
mod create;
mod delete;
mod describe;
mod list;
mod offsets;
pub(super) mod view;

use clap::Subcommand;

use crate::connect::connect;

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Make a topic
    Create(create::CreateArgs),
    /// List all topics
    List(list::ListArgs),
    /// Show a topic's partitions, who owns them and what is in them
    Describe(describe::DescribeArgs),
    /// Change settings of a topic
    Alter(alter::AlterArgs),
    /// Give a topic more partitions
    AddPartitions(add_partitions::AddPartitionsArgs),
    /// Show where partitions begin and end, or what lies at a time
    Offsets(offsets::OffsetsArgs),
    /// Delete a topic and everything in it
    Delete(delete::DeleteArgs),
}

impl TopicCommand {
    /// Carries it out.
    pub async fn run(self, servers: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Create(args) => create::run(args, &connect(servers).await?.admin()).await,
            Self::List(args) => list::run(args, &connect(servers).await?.admin()).await,
            Self::Describe(args) => describe::run(args, &connect(servers).await?.admin()).await,
            Self::Alter(args) => {
                let change = alter::change_of(&args)?;
                alter::run(args, change, &connect(servers).await?.admin()).await
            }
            Self::AddPartitions(args) => add_partitions::run(args, &connect(servers).await?.admin()).await,
            Self::Offsets(args) => offsets::run(args, &connect(servers).await?.admin()).await,
            Self::Delete(args) => {
                // Asked before anything is done, be it only connecting.
                delete::confirmed(&args)?;
                delete::run(&args, &connect(servers).await?.admin()).await
            }
        }
    }
}
