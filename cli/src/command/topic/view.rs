//! Topics as `--format json` shows them. A field is never renamed: programs read them.

use std::collections::BTreeMap;

use forebay_proto::v1;
use serde::Serialize;

use crate::output::{counted, grouped};

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
    /// Where its takeover is; none once it is over.
    pub recovery: Option<Recovery>,
    /// Offsets declared lost.
    pub gaps: Vec<Gap>,
}

/// Offsets that are declared lost.
#[derive(Debug, Clone, Serialize)]
pub struct Gap {
    /// The first of them.
    pub base: u64,
    /// The first offset after them.
    pub end: u64,
    /// Why.
    pub reason: String,
}

/// A takeover that is not over.
#[derive(Debug, Clone, Serialize)]
pub struct Recovery {
    /// Its step.
    pub step: String,
    /// What it waits for.
    pub waits_for: String,
    /// Storage nodes whose answer is missing or is no evidence.
    pub nodes: Vec<Awaited>,
    /// Milliseconds since the partition was granted.
    pub for_ms: u64,
}

/// A replica of a segment that is being closed.
#[derive(Debug, Clone, Serialize)]
pub struct Awaited {
    /// Its storage node.
    pub node: u32,
    /// As the segment names it.
    pub generation: u32,
    /// `ANSWERED`, `SILENT`, `AWAY`, `LOST` or `DAMAGED`.
    pub state: String,
    /// First offset that it does not have; none where it did not answer.
    pub tail: Option<u64>,
    /// Frames that it has, as it said when it was closed; none where it did not answer.
    pub frames: Option<u32>,
    /// Hash over all of them, hexadecimal.
    pub hash: Option<String>,
    /// Highest committed offset that it was told.
    pub committed: Option<u64>,
}

impl From<v1::AwaitedNode> for Awaited {
    fn from(one: v1::AwaitedNode) -> Self {
        Self {
            node: one.node,
            generation: one.generation,
            state: one.state,
            tail: one.tail,
            frames: one.frames,
            hash: one.hash.map(|hash| format!("{hash:016x}")),
            committed: one.committed,
        }
    }
}

impl From<v1::RecoveryDescription> for Recovery {
    fn from(recovery: v1::RecoveryDescription) -> Self {
        Self {
            step: recovery.step,
            waits_for: recovery.waits_for,
            nodes: recovery.nodes.into_iter().map(Awaited::from).collect(),
            for_ms: recovery.for_ms,
        }
    }
}

/// A replica that is waited for, for people.
pub fn awaited_text(one: &Awaited) -> String {
    let said = match one.state.as_str() {
        "ANSWERED" => "answered",
        "SILENT" => "connected, no answer yet",
        "AWAY" => "away",
        "LOST" => "lost: out of the cluster, or another generation now",
        "DAMAGED" => "answered, and may have lost bytes",
        other => other,
    };
    let has = one
        .tail
        .map_or_else(String::new, |tail| format!(", has it up to {}", grouped(tail)));
    let knows = match (one.frames, &one.hash, one.committed) {
        (Some(frames), Some(hash), Some(committed)) => format!(
            ", {} with hash {hash}, told that {} is committed",
            counted(u64::from(frames), "frame"),
            grouped(committed)
        ),
        _ => String::new(),
    };
    format!(
        "storage node {} (generation {}): {said}{has}{knows}",
        one.node, one.generation
    )
}

/// A takeover, for people.
pub fn recovery_text(recovery: &Recovery) -> String {
    format!(
        "recovers since {}: waits for {}",
        seconds(recovery.for_ms),
        recovery.waits_for
    )
}

fn seconds(ms: u64) -> String {
    format!("{} s", grouped(ms / 1_000))
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
        let gap = |gap: v1::GapDescription| Gap {
            base: gap.base,
            end: gap.end,
            reason: gap.reason,
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
            recovery: partition.recovery.map(Recovery::from),
            gaps: partition.gaps.into_iter().map(gap).collect(),
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
