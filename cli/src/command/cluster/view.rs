//! The cluster as `--format json` shows it. A field is never renamed: programs read them.

use std::collections::BTreeMap;

use forebay_proto::v1;
use serde::Serialize;

use crate::command::topic::view::Recovery;

/// The whole of it.
#[derive(Debug, Serialize)]
pub struct Cluster {
    /// Its id.
    pub cluster: String,
    /// Raised after a restore of the metadata store.
    pub incarnation: u32,
    /// Replicas of each segment.
    pub replicas: u32,
    /// Replicas that must have synced an entry.
    pub ack_quorum: u32,
    /// Address of the process whose controller leads.
    pub controller: Option<String>,
    /// Topics.
    pub topics: u32,
    /// Partitions of all topics.
    pub partitions: u32,
    /// Partitions that no broker that answers owns.
    pub partitions_without_owner: u32,
    /// Segments that a storage node of theirs is away from.
    pub segments_under_replicated: u64,
    /// Bytes of sealed segments that are not offloaded.
    pub unoffloaded_bytes: u64,
    /// Bytes appended and not committed.
    pub undecided_bytes: u64,
    /// Sealed segments of which no copy is left.
    pub segments_lost: u64,
    /// Processes by their address, and what each of them is.
    pub processes: Vec<Process>,
    /// Brokers that have a session.
    pub brokers: Vec<Broker>,
    /// Storage nodes that are registered.
    pub storage_nodes: Vec<StorageNode>,
    /// Proxies that have a session.
    pub proxies: Vec<Proxy>,
    /// What the controller has moved lately, the newest last.
    pub moves: Vec<Move>,
    /// Partitions that have been recovering for longer than a second, the longest first.
    pub recovering: Vec<Recovering>,
}

/// A partition that is being taken over.
#[derive(Debug, Serialize)]
pub struct Recovering {
    /// Its topic.
    pub topic: String,
    /// Its number there.
    pub partition: u32,
    /// Its number in the cluster.
    pub partition_id: u64,
    /// Where its takeover is.
    pub recovery: Option<Recovery>,
}

impl From<v1::RecoveringPartition> for Recovering {
    fn from(one: v1::RecoveringPartition) -> Self {
        Self {
            topic: one.topic,
            partition: one.partition,
            partition_id: one.partition_id,
            recovery: one.recovery.map(Recovery::from),
        }
    }
}

/// Partitions that went from one broker to another for one reason, at one time.
#[derive(Debug, Serialize)]
pub struct Move {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// How many.
    pub partitions: u32,
    /// Who had them; none where nobody had.
    pub from: Option<u32>,
    /// Who got them.
    pub to: u32,
    /// Why.
    pub why: String,
}

/// A process: everything that is reached at one address.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Process {
    /// Of its gRPC services.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// What it is, such as `broker 1`.
    pub roles: Vec<String>,
}

/// A broker.
#[derive(Debug, Serialize)]
pub struct Broker {
    /// Its number.
    pub id: u32,
    /// Of its gRPC services.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its session.
    pub session: u64,
    /// Partitions that it owns.
    pub partitions: u32,
    /// It is being emptied, or is empty and gets no partitions.
    pub draining: bool,
    /// None where the broker could not be asked.
    pub summary: Option<BrokerSummary>,
}

/// What a broker says of its partitions.
#[derive(Debug, Serialize)]
pub struct BrokerSummary {
    /// Partitions that are still being taken over.
    pub partitions_recovering: u32,
    /// Segments of their chains.
    pub segments: u64,
    /// Of these, those that a storage node of theirs is away from.
    pub segments_under_replicated: u64,
    /// Bytes of sealed segments that are not offloaded.
    pub unoffloaded_bytes: u64,
    /// Bytes appended and not committed.
    pub undecided_bytes: u64,
}

/// A storage node.
#[derive(Debug, Serialize)]
pub struct StorageNode {
    /// Its number.
    pub id: u32,
    /// Of its gRPC services.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// As registered, or `UNREACHABLE`.
    pub state: String,
    /// Of its disk.
    pub generation: u32,
    /// Starts over its disk.
    pub boot: u64,
    /// Most bytes that its journal may take.
    pub capacity_bytes: u64,
    /// Bytes of batches in the largest frame that its journal files take: no larger batch is taken by the
    /// cluster. None where it did not say.
    pub frame_bytes_max: Option<u64>,
    /// When the proxy that was asked last had an answer of it, milliseconds since 1970.
    pub last_contact_ms: Option<i64>,
    /// None where the node could not be asked.
    pub status: Option<StorageStatus>,
}

/// What a storage node says of itself.
#[derive(Debug, Serialize)]
pub struct StorageStatus {
    /// Segments that take writes.
    pub segments_open: u64,
    /// Closed segments.
    pub segments_fenced: u64,
    /// Segments that may have lost bytes.
    pub segments_limbo: u64,
    /// Held segments that a chain names as sealed.
    pub segments_sealed: u64,
    /// Bytes of frames held.
    pub bytes_held: u64,
    /// Of these, the bytes that no record needs any more.
    pub bytes_trimmable: u64,
    /// Of these, the bytes of partitions without a record, which stay.
    pub bytes_unrecorded: u64,
    /// Files of the journal.
    pub journal_files: u64,
    /// Bytes of these files.
    pub journal_bytes: u64,
    /// Free bytes of the file system.
    pub disk_free_bytes: u64,
    /// Token up to which unknown segments are closed.
    pub floor: u64,
    /// Whether the journal is written past the page cache.
    pub direct_io: bool,
    /// Why the node only reads; none where it writes.
    pub failure: Option<String>,
    /// When all that is held was last read back from the disk, milliseconds since 1970; none where that
    /// has not come to an end since the start.
    pub scrubbed_ms: Option<i64>,
    /// What may be missing of segments: damaged, and not healed yet.
    pub damaged: Vec<Damaged>,
}

/// Offsets that a storage node may lack.
#[derive(Debug, Serialize)]
pub struct Damaged {
    /// Of the segment.
    pub partition: u64,
    /// Of the segment.
    pub epoch: u32,
    /// Of the segment.
    pub seq: u32,
    /// The first.
    pub first: u64,
    /// Exclusive; none where it is not known.
    pub end: Option<u64>,
}

/// A proxy.
#[derive(Debug, Serialize)]
pub struct Proxy {
    /// Its name.
    pub id: String,
    /// Of its gRPC services.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
}

impl From<v1::DescribeClusterResponse> for Cluster {
    fn from(found: v1::DescribeClusterResponse) -> Self {
        let proxy = |proxy: v1::ProxyDescription| Proxy {
            id: proxy.id,
            address: proxy.address,
            zone: proxy.zone,
        };
        Self {
            processes: processes(&found),
            cluster: found.cluster,
            incarnation: found.incarnation,
            replicas: found.replicas,
            ack_quorum: found.ack_quorum,
            controller: some_text(found.controller),
            topics: found.topics,
            partitions: found.partitions,
            partitions_without_owner: found.partitions_without_owner,
            segments_under_replicated: found.segments_under_replicated,
            unoffloaded_bytes: found.unoffloaded_bytes,
            undecided_bytes: found.undecided_bytes,
            segments_lost: found.segments_lost,
            brokers: found.brokers.into_iter().map(Broker::from).collect(),
            storage_nodes: found.storage_nodes.into_iter().map(StorageNode::from).collect(),
            proxies: found.proxies.into_iter().map(proxy).collect(),
            moves: found.moves.into_iter().map(Move::from).collect(),
            recovering: found.recovering.into_iter().map(Recovering::from).collect(),
        }
    }
}

/// Roles by the address that they share.
fn processes(found: &v1::DescribeClusterResponse) -> Vec<Process> {
    let mut processes: BTreeMap<&str, Process> = BTreeMap::new();
    let mut add = |address, zone: &str, role: String| {
        let process = processes.entry(address).or_insert_with(|| Process {
            address: String::from(address),
            zone: zone.to_owned(),
            roles: Vec::new(),
        });
        if process.zone.is_empty() {
            process.zone = zone.to_owned();
        }
        process.roles.push(role);
    };
    for one in &found.proxies {
        add(&one.address, &one.zone, "proxy".to_owned());
    }
    for one in &found.brokers {
        add(&one.address, &one.zone, format!("broker {}", one.id));
    }
    for one in &found.storage_nodes {
        add(&one.address, &one.zone, format!("storage {}", one.id));
    }
    if !found.controller.is_empty() {
        add(&found.controller, "", "controller".to_owned());
    }
    processes.into_values().collect()
}

impl From<v1::BrokerDescription> for Broker {
    fn from(broker: v1::BrokerDescription) -> Self {
        let summary = |summary: v1::BrokerSummary| BrokerSummary {
            partitions_recovering: summary.partitions_recovering,
            segments: summary.segments,
            segments_under_replicated: summary.segments_under_replicated,
            unoffloaded_bytes: summary.unoffloaded_bytes,
            undecided_bytes: summary.undecided_bytes,
        };
        Self {
            id: broker.id,
            address: broker.address,
            zone: broker.zone,
            session: broker.session,
            partitions: broker.partitions,
            draining: broker.draining,
            summary: broker.summary.map(summary),
        }
    }
}

impl From<v1::DamagedRange> for Damaged {
    fn from(range: v1::DamagedRange) -> Self {
        Self {
            partition: range.partition_id,
            epoch: range.epoch,
            seq: range.seq,
            first: range.first,
            end: range.end,
        }
    }
}

impl From<v1::StorageNodeDescription> for StorageNode {
    fn from(node: v1::StorageNodeDescription) -> Self {
        let status = |status: v1::StorageNodeStatus| StorageStatus {
            segments_open: status.segments_open,
            segments_fenced: status.segments_fenced,
            segments_limbo: status.segments_limbo,
            segments_sealed: status.segments_sealed,
            bytes_held: status.bytes_held,
            bytes_trimmable: status.bytes_trimmable,
            bytes_unrecorded: status.bytes_unrecorded,
            journal_files: status.journal_files,
            journal_bytes: status.journal_bytes,
            disk_free_bytes: status.disk_free_bytes,
            floor: status.floor,
            direct_io: status.direct_io,
            failure: some_text(status.failure),
            scrubbed_ms: i64::try_from(status.scrubbed_ms).ok().filter(|at| *at > 0),
            damaged: status.damaged.into_iter().map(Damaged::from).collect(),
        };
        Self {
            id: node.id,
            address: node.address,
            zone: node.zone,
            state: node.state,
            generation: node.generation,
            boot: node.boot,
            capacity_bytes: node.capacity_bytes,
            frame_bytes_max: (node.frame_bytes_max > 0).then_some(node.frame_bytes_max),
            last_contact_ms: node.last_contact_ms,
            status: node.status.map(status),
        }
    }
}

impl From<v1::MoveDescription> for Move {
    fn from(one: v1::MoveDescription) -> Self {
        Self {
            at_ms: one.at_ms,
            partitions: one.partitions,
            from: (one.from != 0).then_some(one.from),
            to: one.to,
            why: one.why,
        }
    }
}

/// A text, none where it is empty.
pub fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
