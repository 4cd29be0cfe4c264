//! `topic add-partitions`.

use anyhow::Context as _;
use forebay_client::Admin;
use serde::Serialize;

use crate::output::{FormatArgs, counted};

/// What to make larger.
#[derive(Debug, clap::Args)]
pub struct AddPartitionsArgs {
    /// Name of the topic
    pub name: String,
    /// How many partitions it is to have in all. Records with a key go to other partitions from
    /// then on; what was written stays where it is
    #[arg(long, short = 'c', value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub count: u32,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The topic as it is afterwards, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Grown {
    name: String,
    partitions: u32,
}

/// Gives the topic more partitions.
pub async fn run(args: AddPartitionsArgs, admin: &Admin) -> anyhow::Result<()> {
    let partitions = admin
        .add_partitions(&args.name, args.count)
        .await
        .with_context(|| format!("cannot add partitions to topic {:?}", args.name))?;
    let grown = Grown {
        name: args.name,
        partitions,
    };
    args.format.print(&grown, |grown| {
        format!(
            "topic {} has {}",
            grown.name,
            counted(grown.partitions.into(), "partition")
        )
    })
}
