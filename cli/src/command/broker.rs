//! `broker drain`, `broker undrain`: empties a broker before it is stopped.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use forebay_client::Admin;
use forebay_runtime::config::HumanDuration;

use crate::connect::connect;
use crate::output::counted;

/// How often what is left is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What to do with a broker.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Move a broker's partitions to other brokers, and give it no others until it is started again
    Drain(DrainArgs),
    /// Let a drained broker have partitions again
    Undrain(UndrainArgs),
}

/// Which broker, and whether to wait.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Number of the broker, as `cluster status` shows it
    #[arg(value_name = "ID")]
    pub id: u32,
    /// Wait until the broker has no partitions left
    #[arg(long)]
    pub wait: bool,
    /// With --wait, how long at most
    #[arg(long, default_value = "5min", value_name = "DURATION", requires = "wait")]
    pub timeout: HumanDuration,
}

/// Which broker.
#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    /// Number of the broker, as `cluster status` shows it
    #[arg(value_name = "ID")]
    pub id: u32,
}

impl BrokerCommand {
    /// Carries it out.
    pub async fn run(self, servers: &[String]) -> anyhow::Result<()> {
        let admin = connect(servers).await?.admin();
        match self {
            Self::Drain(args) => drain(&args, &admin).await,
            Self::Undrain(args) => {
                let told = admin.drain_broker(args.id, false).await;
                told.with_context(|| format!("cannot end the draining of broker {}", args.id))?;
                println!("broker {} may have partitions again", args.id);
                Ok(())
            }
        }
    }
}

async fn drain(args: &DrainArgs, admin: &Admin) -> anyhow::Result<()> {
    let id = args.id;
    let told = admin.drain_broker(id, true).await;
    told.with_context(|| format!("cannot drain broker {id}"))?;
    if !args.wait {
        println!("broker {id} is being drained; `forebay cluster status` shows what it has left");
        let cluster = admin.describe_cluster().await;
        if cluster.is_ok_and(|cluster| cluster.brokers.iter().all(|broker| broker.draining)) {
            println!(
                "no other broker can take its partitions: it keeps them until there is one that is not drained"
            );
        }
        return Ok(());
    }
    let begun = Instant::now();
    loop {
        let cluster = admin
            .describe_cluster()
            .await
            .context("cannot describe the cluster")?;
        let Some(broker) = cluster.brokers.iter().find(|broker| broker.id == id) else {
            println!("broker {id} has ended");
            return Ok(());
        };
        if !broker.draining {
            bail!(
                "broker {id} is not drained any more: it was started again, or somebody ended the draining"
            );
        }
        let left = broker.summary.as_ref().map(|summary| summary.partitions);
        if left == Some(0) {
            println!("broker {id} has no partitions left");
            return Ok(());
        }
        if cluster.brokers.iter().all(|broker| broker.draining) {
            bail!("broker {id} cannot be emptied: there is no other broker that is not drained");
        }
        if begun.elapsed() >= args.timeout.get() {
            let left = left.map_or_else(
                || "an unknown number of partitions".to_owned(),
                |left| counted(left.into(), "partition"),
            );
            bail!("broker {id} still has {left} after {}", args.timeout);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
