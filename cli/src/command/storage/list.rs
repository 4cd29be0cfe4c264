//! `storage list` and `storage describe`.

use anyhow::Context as _;
use forebay_client::Admin;

use super::view::Described;
use crate::command::cluster::view::{StorageNode, StorageStatus, some_text};
use crate::output::{FormatArgs, bytes, grouped, or_dash, table};
use crate::time::rfc3339;

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
        format!("{nodes}\npartitions need {} of it\n{sole}", found.left())
    })
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
