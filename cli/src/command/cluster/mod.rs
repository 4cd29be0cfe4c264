//! `cluster status`: who is there, and how they are.

pub(crate) mod view;

use anyhow::Context as _;
use clap::Subcommand;
use forebay_client::Admin;

use self::view::{Broker, BrokerSummary, Cluster, StorageNode, StorageStatus, some_text};
use crate::command::topic::view::recovery_text;
use crate::connect::connect;
use crate::output::{FormatArgs, bytes, counted, grouped, or_dash, table};
use forebay_runtime::time::rfc3339;

/// Moves in the table; JSON has all that are kept.
const MOVES_SHOWN: usize = 10;
/// Partitions that recover, as above.
const RECOVERING_SHOWN: usize = 8;

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

fn render(cluster: &Cluster) -> String {
    let mut text = format!(
        "cluster {}, incarnation {}, controller {}\n{} of each segment, {} to acknowledge\n\
         {}, {}, {} without an owner\n{} under-replicated, {} not offloaded, {} not committed\n",
        cluster.cluster,
        cluster.incarnation,
        cluster.controller.as_deref().unwrap_or("none"),
        counted(cluster.replicas.into(), "replica"),
        cluster.ack_quorum,
        counted(cluster.topics.into(), "topic"),
        counted(cluster.partitions.into(), "partition"),
        grouped(cluster.partitions_without_owner.into()),
        counted(cluster.segments_under_replicated, "segment"),
        bytes(cluster.unoffloaded_bytes),
        bytes(cluster.undecided_bytes),
    );
    if cluster.segments_lost > 0 {
        let lost = counted(cluster.segments_lost, "segment");
        text.push_str(&format!("DATA LOSS: no copy of {lost} is left\n"));
    }
    for one in cluster.recovering.iter().take(RECOVERING_SHOWN) {
        let what = one.recovery.as_ref().map_or_else(String::new, recovery_text);
        text.push_str(&format!(
            "partition {} of topic {} {what}\n",
            one.partition, one.topic
        ));
    }
    let hidden = cluster.recovering.len().saturating_sub(RECOVERING_SHOWN);
    if hidden > 0 {
        text.push_str(&format!(
            "and {} more that recover\n",
            counted(hidden as u64, "partition")
        ));
    }
    let processes = cluster
        .processes
        .iter()
        .map(|one| vec![one.address.clone(), zone(&one.zone), one.roles.join(", ")]);
    section(
        &mut text,
        "processes",
        &["ADDRESS", "ZONE", "ROLES"],
        &[],
        processes,
    );
    let header = [
        "ID",
        "STATE",
        "SESSION",
        "PARTITIONS",
        "RECOVERING",
        "SEGMENTS",
        "UNDER-REPLICATED",
        "NOT OFFLOADED",
    ];
    let brokers = cluster.brokers.iter().map(broker);
    section(&mut text, "brokers", &header, &[0, 2, 3, 4, 5, 6, 7], brokers);
    let header = [
        "ID",
        "STATE",
        "GENERATION",
        "BOOT",
        "OPEN",
        "SEALED",
        "LIMBO",
        "JOURNAL",
        "OF BUDGET",
        "DISK FREE",
        "LAST CONTACT",
        "WRITES",
    ];
    let nodes = cluster.storage_nodes.iter().map(storage_node);
    section(
        &mut text,
        "storage nodes",
        &header,
        &[0, 2, 3, 4, 5, 6, 7, 8, 9],
        nodes,
    );
    let proxies = cluster
        .proxies
        .iter()
        .map(|proxy| vec![proxy.id.clone(), proxy.address.clone(), zone(&proxy.zone)]);
    section(&mut text, "proxies", &["ID", "ADDRESS", "ZONE"], &[], proxies);
    let moves = cluster.moves.iter().rev().take(MOVES_SHOWN).map(|one| {
        vec![
            rfc3339(one.at_ms),
            grouped(one.partitions.into()),
            or_dash(one.from),
            one.to.to_string(),
            one.why.clone(),
        ]
    });
    let header = ["TIME", "PARTITIONS", "FROM", "TO", "WHY"];
    section(&mut text, "moves of partitions", &header, &[1, 2, 3], moves);
    text
}

fn broker(broker: &Broker) -> Vec<String> {
    let said = |of: fn(&BrokerSummary) -> String| or_dash(broker.summary.as_ref().map(of));
    vec![
        broker.id.to_string(),
        if broker.draining { "DRAINING" } else { "ACTIVE" }.to_owned(),
        broker.session.to_string(),
        or_dash(broker.summary.as_ref().map(|_| grouped(broker.partitions.into()))),
        said(|summary| grouped(summary.partitions_recovering.into())),
        said(|summary| grouped(summary.segments)),
        said(|summary| grouped(summary.segments_under_replicated)),
        said(|summary| bytes(summary.unoffloaded_bytes)),
    ]
}

fn storage_node(node: &StorageNode) -> Vec<String> {
    let status = node.status.as_ref();
    let writes = status.map(|status| match (&status.failure, status.direct_io) {
        (Some(failure), _) => format!("stopped: {failure}"),
        (None, true) => "direct".to_owned(),
        (None, false) => "buffered".to_owned(),
    });
    let said = |of: fn(&StorageStatus) -> String| or_dash(status.map(of));
    vec![
        node.id.to_string(),
        node.state.clone(),
        node.generation.to_string(),
        node.boot.to_string(),
        said(|status| grouped(status.segments_open)),
        said(|status| grouped(status.segments_fenced)),
        said(|status| grouped(status.segments_limbo)),
        said(|status| bytes(status.journal_bytes)),
        or_dash(status.and_then(|status| percent(status.journal_bytes, node.capacity_bytes))),
        said(|status| bytes(status.disk_free_bytes)),
        or_dash(node.last_contact_ms.map(rfc3339)),
        or_dash(writes),
    ]
}

/// A part of a whole in per cent; none where there is no whole.
fn percent(part: u64, whole: u64) -> Option<String> {
    (whole > 0).then(|| format!("{:.1} %", part as f64 * 100.0 / whole as f64))
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

    use forebay_proto::v1;

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
        let node = |id, state: &str, status: Option<v1::StorageNodeStatus>| v1::StorageNodeDescription {
            id,
            address: format!("http://10.0.0.{id}:7450"),
            zone: "a".to_owned(),
            generation: 2,
            boot: 9,
            state: state.to_owned(),
            last_contact_ms: status.is_some().then_some(1_700_000_000_123),
            capacity_bytes: 20 << 20,
            frame_bytes_max: 0,
            status,
        };
        let broker = |id, summary: Option<v1::BrokerSummary>| v1::BrokerDescription {
            id,
            address: format!("http://10.0.0.{id}:7450"),
            zone: String::new(),
            session: 77,
            partitions: 1_200,
            draining: summary.is_none(),
            summary,
        };
        let summary = v1::BrokerSummary {
            partitions: 1_200,
            segments: 3_000,
            segments_under_replicated: 4,
            unoffloaded_bytes: 9 << 30,
            ..Default::default()
        };
        Cluster::from(v1::DescribeClusterResponse {
            cluster: "c1".to_owned(),
            controller: "http://10.0.0.2:7450".to_owned(),
            brokers: vec![broker(2, Some(summary)), broker(9, None)],
            storage_nodes: vec![
                node(1, "ACTIVE", Some(status)),
                node(2, "UNREACHABLE", None),
                node(3, "ACTIVE", Some(failed)),
            ],
            proxies: Vec::new(),
            topics: 2,
            partitions: 1_205,
            partitions_without_owner: 5,
            segments_under_replicated: 4,
            unoffloaded_bytes: 9 << 30,
            undecided_bytes: 0,
            segments_lost: 0,
            incarnation: 1,
            replicas: 3,
            ack_quorum: 2,
            moves: vec![v1::MoveDescription {
                at_ms: 1_700_000_000_123,
                partitions: 7,
                from: 9,
                to: 2,
                why: "broker 9 is drained".to_owned(),
            }],
            recovering: vec![v1::RecoveringPartition {
                topic: "orders".to_owned(),
                partition: 4,
                recovery: Some(v1::RecoveryDescription {
                    waits_for: "storage nodes n2".to_owned(),
                    for_ms: 9_000,
                    ..Default::default()
                }),
                ..Default::default()
            }],
        })
    }

    #[test]
    fn the_table_shows_who_is_there_and_who_does_not_answer() {
        let text = render(&found());
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "cluster c1, incarnation 1, controller http://10.0.0.2:7450",
            "3 replicas of each segment, 2 to acknowledge",
            "2 topics, 1,205 partitions, 5 without an owner",
            "4 segments under-replicated, 9.0 GiB not offloaded, 0 B not committed",
            "partition 4 of topic orders recovers since 9 s: waits for storage nodes n2",
            "",
            "processes",
            "ADDRESS ZONE ROLES",
            "http://10.0.0.1:7450 a storage 1",
            "http://10.0.0.2:7450 a broker 2, storage 2, controller",
            "http://10.0.0.3:7450 a storage 3",
            "http://10.0.0.9:7450 - broker 9",
            "",
            "brokers",
            "ID STATE SESSION PARTITIONS RECOVERING SEGMENTS UNDER-REPLICATED NOT OFFLOADED",
            "2 ACTIVE 77 1,200 0 3,000 4 9.0 GiB",
            "9 DRAINING 77 - - - - -",
            "",
            "storage nodes",
            "ID STATE GENERATION BOOT OPEN SEALED LIMBO JOURNAL OF BUDGET DISK FREE LAST CONTACT WRITES",
            "1 ACTIVE 2 9 3 0 0 5.0 MiB 25.0 % 7.0 GiB 2023-11-14T22:13:20.123Z direct",
            "2 UNREACHABLE 2 9 - - - - - - - -",
            "3 ACTIVE 2 9 3 0 0 5.0 MiB 25.0 % 7.0 GiB 2023-11-14T22:13:20.123Z stopped: fsync of file 3",
            "",
            "no proxies",
            "",
            "moves of partitions",
            "TIME PARTITIONS FROM TO WHY",
            "2023-11-14T22:13:20.123Z 7 9 2 broker 9 is drained",
        ];
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn json_says_null_for_what_is_not_known() {
        let json = serde_json::to_value(found()).unwrap();
        assert_eq!(json["partitions_without_owner"], 5);
        assert_eq!(json["brokers"][0]["session"], 77);
        assert_eq!(json["brokers"][0]["summary"]["segments"], 3_000);
        assert_eq!(json["brokers"][1]["summary"], serde_json::Value::Null);
        assert_eq!(json["processes"][1]["roles"][2], "controller");
        let nodes = &json["storage_nodes"];
        assert_eq!(nodes[0]["status"]["disk_free_bytes"], 7_u64 << 30);
        assert_eq!(nodes[0]["status"]["failure"], serde_json::Value::Null);
        assert_eq!(nodes[0]["capacity_bytes"], 20 << 20);
        assert_eq!(nodes[1]["status"], serde_json::Value::Null);
        assert_eq!(nodes[1]["last_contact_ms"], serde_json::Value::Null);
        assert_eq!(nodes[2]["status"]["failure"], "fsync of file 3");
    }
}
