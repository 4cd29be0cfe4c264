//! `cluster status`: who is there, and how they are.

use anyhow::Context as _;
use clap::Subcommand;
use forebay_client::Admin;
use forebay_proto::v1;
use serde::Serialize;

use crate::connect::connect;
use crate::output::{FormatArgs, bytes, counted, grouped, or_dash, table};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show brokers, storage nodes and proxies, and how they are
    Status(StatusArgs),
}

/// How to show it.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

impl ClusterCommand {
    /// Carries it out.
    pub async fn run(self, servers: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Status(args) => status(args, &connect(servers).await?.admin()).await,
        }
    }
}

async fn status(args: StatusArgs, admin: &Admin) -> anyhow::Result<()> {
    let cluster = admin
        .describe_cluster()
        .await
        .context("cannot describe the cluster")?;
    args.format.print(&Cluster::from(cluster), render)
}

/// The cluster as `--format json` shows it. A field is never renamed: programs read them.
#[derive(Debug, Serialize)]
struct Cluster {
    cluster: String,
    controller: Option<String>,
    topics: u32,
    partitions: u32,
    partitions_without_owner: u32,
    brokers: Vec<Broker>,
    storage_nodes: Vec<StorageNode>,
    proxies: Vec<Proxy>,
}

#[derive(Debug, Serialize)]
struct Broker {
    id: u32,
    address: String,
    zone: String,
    session: u64,
    partitions: u32,
}

#[derive(Debug, Serialize)]
struct StorageNode {
    id: u32,
    address: String,
    zone: String,
    state: String,
    generation: u32,
    boot: u64,
    /// None where the node could not be asked.
    status: Option<StorageStatus>,
}

#[derive(Debug, Serialize)]
struct StorageStatus {
    segments_open: u64,
    segments_fenced: u64,
    segments_limbo: u64,
    journal_files: u64,
    journal_bytes: u64,
    disk_free_bytes: u64,
    floor: u64,
    direct_io: bool,
    /// Why the node only reads; none where it writes.
    failure: Option<String>,
}

#[derive(Debug, Serialize)]
struct Proxy {
    id: String,
    address: String,
    zone: String,
}

impl From<v1::DescribeClusterResponse> for Cluster {
    fn from(found: v1::DescribeClusterResponse) -> Self {
        let broker = |broker: v1::BrokerDescription| Broker {
            id: broker.id,
            address: broker.address,
            zone: broker.zone,
            session: broker.session,
            partitions: broker.partitions,
        };
        let proxy = |proxy: v1::ProxyDescription| Proxy {
            id: proxy.id,
            address: proxy.address,
            zone: proxy.zone,
        };
        Self {
            cluster: found.cluster,
            controller: some_text(found.controller),
            topics: found.topics,
            partitions: found.partitions,
            partitions_without_owner: found.partitions_without_owner,
            brokers: found.brokers.into_iter().map(broker).collect(),
            storage_nodes: found.storage_nodes.into_iter().map(StorageNode::from).collect(),
            proxies: found.proxies.into_iter().map(proxy).collect(),
        }
    }
}

impl From<v1::StorageNodeDescription> for StorageNode {
    fn from(node: v1::StorageNodeDescription) -> Self {
        let status = |status: v1::StorageNodeStatus| StorageStatus {
            segments_open: status.segments_open,
            segments_fenced: status.segments_fenced,
            segments_limbo: status.segments_limbo,
            journal_files: status.journal_files,
            journal_bytes: status.journal_bytes,
            disk_free_bytes: status.disk_free_bytes,
            floor: status.floor,
            direct_io: status.direct_io,
            failure: some_text(status.failure),
        };
        Self {
            id: node.id,
            address: node.address,
            zone: node.zone,
            state: node.state,
            generation: node.generation,
            boot: node.boot,
            status: node.status.map(status),
        }
    }
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn render(cluster: &Cluster) -> String {
    let mut text = format!(
        "cluster {}, controller {}\n{}, {}, {} without an owner\n",
        cluster.cluster,
        cluster.controller.as_deref().unwrap_or("none"),
        counted(cluster.topics.into(), "topic"),
        counted(cluster.partitions.into(), "partition"),
        grouped(cluster.partitions_without_owner.into()),
    );
    let brokers = cluster.brokers.iter().map(|broker| {
        vec![
            broker.id.to_string(),
            broker.address.clone(),
            zone(&broker.zone),
            broker.session.to_string(),
            grouped(broker.partitions.into()),
        ]
    });
    section(
        &mut text,
        "brokers",
        &["ID", "ADDRESS", "ZONE", "SESSION", "PARTITIONS"],
        &[0, 3, 4],
        brokers,
    );
    let header = [
        "ID",
        "ADDRESS",
        "ZONE",
        "STATE",
        "GENERATION",
        "BOOT",
        "OPEN",
        "FENCED",
        "JOURNAL",
        "DISK FREE",
        "WRITES",
    ];
    let nodes = cluster.storage_nodes.iter().map(storage_node);
    section(&mut text, "storage nodes", &header, &[0, 4, 5, 6, 7, 8, 9], nodes);
    let proxies = cluster
        .proxies
        .iter()
        .map(|proxy| vec![proxy.id.clone(), proxy.address.clone(), zone(&proxy.zone)]);
    section(&mut text, "proxies", &["ID", "ADDRESS", "ZONE"], &[], proxies);
    text
}

fn storage_node(node: &StorageNode) -> Vec<String> {
    let status = node.status.as_ref();
    let writes = status.map(|status| match (&status.failure, status.direct_io) {
        (Some(failure), _) => format!("stopped: {failure}"),
        (None, true) => "direct".to_owned(),
        (None, false) => "buffered".to_owned(),
    });
    vec![
        node.id.to_string(),
        node.address.clone(),
        zone(&node.zone),
        node.state.clone(),
        node.generation.to_string(),
        node.boot.to_string(),
        or_dash(status.map(|status| grouped(status.segments_open))),
        or_dash(status.map(|status| grouped(status.segments_fenced))),
        or_dash(status.map(|status| bytes(status.journal_bytes))),
        or_dash(status.map(|status| bytes(status.disk_free_bytes))),
        or_dash(writes),
    ]
}

fn zone(zone: &str) -> String {
    or_dash(some_text(zone.to_owned()))
}

/// Adds a headed table, or says that there is nothing to show.
fn section(
    text: &mut String,
    name: &str,
    header: &[&str],
    right: &[usize],
    rows: impl ExactSizeIterator<Item = Vec<String>>,
) {
    if rows.len() == 0 {
        text.push_str(&format!("\nno {name}"));
    } else {
        text.push_str(&format!("\n{name}\n{}", table(header, right, rows)));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn found() -> Cluster {
        let status = v1::StorageNodeStatus {
            segments_open: 3,
            journal_bytes: 5 << 20,
            disk_free_bytes: 7 << 30,
            direct_io: true,
            ..Default::default()
        };
        let failed = v1::StorageNodeStatus {
            failure: "fsync of file 3".to_owned(),
            ..status.clone()
        };
        let node = |id, state: &str, status| v1::StorageNodeDescription {
            id,
            address: format!("tcp://10.0.0.{id}:7470"),
            zone: "a".to_owned(),
            generation: 2,
            boot: 9,
            state: state.to_owned(),
            status,
        };
        Cluster::from(v1::DescribeClusterResponse {
            cluster: "c1".to_owned(),
            controller: String::new(),
            brokers: vec![v1::BrokerDescription {
                id: 1,
                address: "tcp://10.0.0.9:7460".to_owned(),
                zone: String::new(),
                session: 77,
                partitions: 1_200,
            }],
            storage_nodes: vec![
                node(1, "ACTIVE", Some(status)),
                node(2, "UNREACHABLE", None),
                node(3, "ACTIVE", Some(failed)),
            ],
            proxies: Vec::new(),
            topics: 2,
            partitions: 1_200,
            partitions_without_owner: 5,
        })
    }

    #[test]
    fn the_table_shows_who_is_there_and_who_does_not_answer() {
        let text = render(&found());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0].join(" "), "cluster c1, controller none");
        assert_eq!(
            lines[1].join(" "),
            "2 topics, 1,200 partitions, 5 without an owner"
        );
        assert_eq!(lines[5], ["1", "tcp://10.0.0.9:7460", "-", "77", "1,200"]);
        assert_eq!(
            lines[9],
            [
                "1",
                "tcp://10.0.0.1:7470",
                "a",
                "ACTIVE",
                "2",
                "9",
                "3",
                "0",
                "5.0",
                "MiB",
                "7.0",
                "GiB",
                "direct"
            ]
        );
        assert_eq!(
            lines[10],
            [
                "2",
                "tcp://10.0.0.2:7470",
                "a",
                "UNREACHABLE",
                "2",
                "9",
                "-",
                "-",
                "-",
                "-",
                "-"
            ]
        );
        assert!(
            lines[11].join(" ").ends_with("stopped: fsync of file 3"),
            "{text}"
        );
        assert_eq!(lines[13].join(" "), "no proxies");
    }

    #[test]
    fn json_says_null_for_what_is_not_known() {
        let json = serde_json::to_value(found()).unwrap();
        assert_eq!(json["controller"], serde_json::Value::Null);
        assert_eq!(json["partitions_without_owner"], 5);
        assert_eq!(json["brokers"][0]["session"], 77);
        assert_eq!(json["storage_nodes"][0]["status"]["disk_free_bytes"], 7_u64 << 30);
        assert_eq!(
            json["storage_nodes"][0]["status"]["failure"],
            serde_json::Value::Null
        );
        assert_eq!(json["storage_nodes"][1]["status"], serde_json::Value::Null);
        assert_eq!(json["storage_nodes"][2]["status"]["failure"], "fsync of file 3");
    }
}
