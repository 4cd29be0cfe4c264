//! Topics as `--format json` shows them. A field is never renamed: programs read them.

use std::collections::BTreeMap;

use forebay_proto::v1;
use serde::Serialize;

/// One topic of a list.
#[derive(Debug, Clone, Serialize)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Its id, as UUIDs are written.
    pub id: String,
    /// How many partitions it has.
    pub partitions: u32,
}

impl From<v1::TopicSummary> for TopicSummary {
    fn from(topic: v1::TopicSummary) -> Self {
        Self {
            id: id_text(&topic.id),
            name: topic.name,
            partitions: topic.partitions,
        }
    }
}

/// A topic in full.
#[derive(Debug, Clone, Serialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id, as UUIDs are written.
    pub id: String,
    /// Its settings that differ from the defaults.
    pub config: BTreeMap<String, String>,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    /// Its number in the topic.
    pub partition: u32,
    /// Its number in the cluster.
    pub partition_id: u64,
    /// How often it was granted to a broker.
    pub epoch: u32,
    /// The broker that owns it.
    pub owner: Option<u32>,
    /// First offset kept.
    pub log_start: u64,
    /// First offset not committed; none where its owner could not be asked.
    pub high_watermark: Option<u64>,
    /// Its chain, oldest first.
    pub segments: Vec<Segment>,
}

/// A segment of a partition.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// The epoch that wrote it.
    pub epoch: u32,
    /// Its number in the epoch.
    pub seq: u32,
    /// Its first offset.
    pub base: u64,
    /// The first offset after it; none while it is open.
    pub end: Option<u64>,
    /// Its size.
    pub bytes: u64,
    /// Where it is kept.
    pub replicas: Vec<Replica>,
}

/// A copy of a segment.
#[derive(Debug, Clone, Serialize)]
pub struct Replica {
    /// The storage node.
    pub node: u32,
    /// That node's generation.
    pub generation: u32,
}

impl From<v1::TopicDescription> for Topic {
    fn from(topic: v1::TopicDescription) -> Self {
        Self {
            id: id_text(&topic.id),
            name: topic.name,
            config: topic.config.into_iter().collect(),
            partitions: topic.partitions.into_iter().map(Partition::from).collect(),
        }
    }
}

impl From<v1::PartitionDescription> for Partition {
    fn from(partition: v1::PartitionDescription) -> Self {
        Self {
            partition: partition.partition,
            partition_id: partition.partition_id,
            epoch: partition.epoch,
            owner: (partition.owner != 0).then_some(partition.owner),
            log_start: partition.log_start,
            high_watermark: partition.high_watermark,
            segments: partition.segments.into_iter().map(Segment::from).collect(),
        }
    }
}

impl From<v1::SegmentDescription> for Segment {
    fn from(segment: v1::SegmentDescription) -> Self {
        let replica = |replica: v1::ReplicaDescription| Replica {
            node: replica.node,
            generation: replica.generation,
        };
        Self {
            epoch: segment.epoch,
            seq: segment.seq,
            base: segment.base,
            end: segment.end,
            bytes: segment.bytes,
            replicas: segment.replicas.into_iter().map(replica).collect(),
        }
    }
}

/// An id of 16 bytes as UUIDs are written; any other in hexadecimal, so that it can be seen.
fn id_text(id: &[u8]) -> String {
    match uuid::Uuid::from_slice(id) {
        Ok(id) => id.to_string(),
        Err(_wrong_length) => id.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}
