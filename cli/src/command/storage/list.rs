//! `storage list` and `storage describe`.

use anyhow::Context as _;
use forebay_client::Admin;

use super::view::Described;
use crate::command::cluster::view::{Damaged, StorageNode, StorageStatus, some_text};
use crate::output::{FormatArgs, bytes, grouped, or_dash, table};
use forebay_runtime::time::rfc3339;

/// How to show them.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Which one to show.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// Number of the storage node
    pub id: u32,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Lists all storage nodes.
pub async fn run(args: ListArgs, admin: &Admin) -> anyhow::Result<()> {
    let cluster = admin
        .describe_cluster()
        .await
        .context("cannot describe the cluster")?;
    let nodes: Vec<StorageNode> = cluster.storage_nodes.into_iter().map(StorageNode::from).collect();
    args.format.print(&nodes, |nodes| render(nodes))
}

/// Shows one.
pub async fn describe(args: DescribeArgs, admin: &Admin) -> anyhow::Result<()> {
    let id = args.id;
    let found = admin
        .describe_storage_node(id)
        .await
        .with_context(|| format!("cannot describe storage node {id}"))?;
    args.format.print(&Described::from(found), |found| {
        let sole = match found.segments_sole {
            0 => String::new(),
            count => format!("{} have no other copy that can be reached\n", grouped(count)),
        };
        let nodes = render(std::slice::from_ref(&found.node));
        let largest = found.node.frame_bytes_max.map(largest).unwrap_or_default();
        let health = found.node.status.as_ref().map(health).unwrap_or_default();
        format!(
            "{nodes}\npartitions need {} of it\n{sole}{largest}{health}",
            found.left()
        )
    })
}

/// What its journal files take.
fn largest(bytes: u64) -> String {
    format!(
        "its journal files take batches of up to {} bytes\n",
        grouped(bytes)
    )
}

/// What is known of the bytes on its disk.
fn health(status: &StorageStatus) -> String {
    let scrubbed = match status.scrubbed_ms {
        Some(at) => format!("all it holds was last read back at {}\n", rfc3339(at)),
        None => "not all it holds was read back since it started\n".to_owned(),
    };
    if status.damaged.is_empty() {
        return format!("{scrubbed}nothing is known to be damaged\n");
    }
    let row = |one: &Damaged| {
        vec![
            format!("{}/{}.{}", one.partition, one.epoch, one.seq),
            one.first.to_string(),
            or_dash(one.end),
        ]
    };
    let damaged = table(
        &["SEGMENT", "FROM", "TO"],
        &[1, 2],
        status.damaged.iter().map(row),
    );
    format!("{scrubbed}damaged, and not healed yet:\n{damaged}")
}

fn render(nodes: &[StorageNode]) -> String {
    let header = [
        "ID",
        "STATE",
        "ZONE",
        "GENERATION",
        "OPEN",
        "SEALED",
        "HELD",
        "TRIMMABLE",
        "DISK FREE",
        "LAST CONTACT",
    ];
    table(&header, &[0, 3, 4, 5, 6, 7, 8], nodes.iter().map(row))
}

fn row(node: &StorageNode) -> Vec<String> {
    let said = |of: fn(&StorageStatus) -> String| or_dash(node.status.as_ref().map(of));
    vec![
        node.id.to_string(),
        node.state.clone(),
        or_dash(some_text(node.zone.clone())),
        node.generation.to_string(),
        said(|status| grouped(status.segments_open)),
        said(|status| grouped(status.segments_sealed)),
        said(|status| bytes(status.bytes_held)),
        said(|status| bytes(status.bytes_trimmable)),
        said(|status| bytes(status.disk_free_bytes)),
        or_dash(node.last_contact_ms.map(rfc3339)),
    ]
}
