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
    /// What is set on it.
    pub config: BTreeMap<String, String>,
    /// Every setting with the value in force, by key.
    pub settings: Vec<Setting>,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
}

/// A setting of a topic.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// As Kafka names it.
    pub key: String,
    /// In force.
    pub value: String,
    /// Whether it is the default, and not set on the topic.
    pub is_default: bool,
}

impl Setting {
    /// As a row of a table: key, value, where it comes from.
    pub fn row(&self) -> Vec<String> {
        let source = if self.is_default { "default" } else { "set" };
        vec![self.key.clone(), self.value.clone(), source.to_owned()]
    }
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
    /// The oldest offloaded part.
    pub manifest: Option<Manifest>,
    /// Offloaded ranges after it, oldest first.
    pub offloaded: Vec<Offloaded>,
    /// What is not offloaded, oldest first.
    pub segments: Vec<Segment>,
}

/// Where the oldest offloaded part of a partition is listed.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// Counts its versions.
    pub generation: u64,
    /// The first offset after what it covers.
    pub end: u64,
    /// Name of its object.
    pub object: String,
}

/// A range of a partition in the object store.
#[derive(Debug, Clone, Serialize)]
pub struct Offloaded {
    /// Its first offset.
    pub base: u64,
    /// The first offset after it.
    pub end: u64,
    /// Its size.
    pub bytes: u64,
    /// Name of its object.
    pub object: String,
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
            settings: topic.settings.into_iter().map(Setting::from).collect(),
            partitions: topic.partitions.into_iter().map(Partition::from).collect(),
        }
    }
}

impl From<v1::TopicSetting> for Setting {
    fn from(setting: v1::TopicSetting) -> Self {
        Self {
            key: setting.key,
            value: setting.value,
            is_default: setting.is_default,
        }
    }
}

impl From<v1::PartitionDescription> for Partition {
    fn from(partition: v1::PartitionDescription) -> Self {
        let manifest = |manifest: v1::ManifestDescription| Manifest {
            generation: manifest.generation,
            end: manifest.end,
            object: manifest.object,
        };
        let offloaded = |range: v1::OffloadedDescription| Offloaded {
            base: range.base,
            end: range.end,
            bytes: range.bytes,
            object: range.object,
        };
        Self {
            partition: partition.partition,
            partition_id: partition.partition_id,
            epoch: partition.epoch,
            owner: (partition.owner != 0).then_some(partition.owner),
            log_start: partition.log_start,
            high_watermark: partition.high_watermark,
            manifest: partition.manifest.map(manifest),
            offloaded: partition.offloaded.into_iter().map(offloaded).collect(),
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
