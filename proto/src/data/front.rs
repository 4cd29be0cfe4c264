//! Spoken with a broker by proxies: produce, fetch, positions, and plans for reading around it.
//!
//! Every request carries an id and is answered once, in any order; produces of one partition take
//! effect in the order they arrive. The first message is a [`ToBroker::Hello`].

mod codec;

use bytes::Bytes;
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId};
use forebay_runtime::trace::TraceContext;

use crate::error::Failure;

/// Partitions in one fetch.
pub const FETCH_PARTITIONS_MAX: usize = 10_000;

/// When a produce is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// Not at all.
    None,
    /// After the first durable replica.
    One,
    /// After a durable quorum.
    All,
}

/// A batch on its way to the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produce {
    /// Echoed in the answer.
    pub request: u64,
    /// The partition.
    pub partition: PartitionId,
    /// Epoch of the route that led here.
    pub epoch: Epoch,
    /// When to answer.
    pub acks: Acks,
    /// Milliseconds from arrival until the sender stops waiting.
    pub deadline_ms: u32,
    /// One batch, fully validated by the proxy.
    pub batch: Bytes,
}

/// One partition of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPartition {
    /// The partition.
    pub partition: PartitionId,
    /// Epoch of the route that led here.
    pub epoch: Epoch,
    /// First offset wanted.
    pub offset: Offset,
    /// About this much; the first batch is returned whole.
    pub max_bytes: u32,
}

/// Batches wanted from the owner's tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Echoed in the answer.
    pub request: u64,
    /// Answer as soon as this much is there.
    pub min_bytes: u32,
    /// About this much in all.
    pub max_bytes: u32,
    /// How long to wait for `min_bytes`, milliseconds.
    pub max_wait_ms: u32,
    /// From where.
    pub partitions: Vec<FetchPartition>,
}

/// A place in a partition, as a client asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// First offset kept.
    Earliest,
    /// First offset not committed, confirmed with the storage nodes.
    Latest,
}

/// Where one range of a partition can be read without its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanSegment {
    /// The segment.
    pub segment: SegmentId,
    /// First offset.
    pub base: Offset,
    /// Sealed end, or the committed offset of the open segment when the plan was made.
    pub until: Offset,
    /// True where `until` is the sealed end.
    pub sealed: bool,
    /// Its replicas.
    pub replicas: Vec<(NodeId, Generation)>,
}

/// A range of a partition in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRun {
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// The object's name.
    pub object: String,
    /// Where the run starts in the object.
    pub position: u64,
    /// Bytes of the run.
    pub len: u64,
    /// CRC-32C of the run.
    pub crc32c: u32,
    /// Largest timestamp of its records, milliseconds since 1970.
    pub max_timestamp_ms: i64,
}

/// Where the runs before those of a plan are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanManifest {
    /// The root object's name.
    pub object: String,
    /// Counts its versions.
    pub generation: u64,
    /// End of what it covers, exclusive.
    pub end: Offset,
    /// Bytes of the root object.
    pub len: u64,
    /// CRC-32C of the root object.
    pub crc32c: u32,
}

/// How to read a partition around its owner (I13, I14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPlan {
    /// Epoch of the owner that made it.
    pub epoch: Epoch,
    /// First offset kept.
    pub log_start: Offset,
    /// First offset not committed.
    pub high_watermark: Offset,
    /// The oldest part, where the offset asked for lies in it or before the runs.
    pub manifest: Option<PlanManifest>,
    /// Offloaded ranges after the manifest, in order.
    pub runs: Vec<PlanRun>,
    /// Segments after those, in order, contiguous but for the gaps.
    pub segments: Vec<PlanSegment>,
    /// Ranges declared lost: first offset, and end, exclusive; rising.
    pub gaps: Vec<(Offset, Offset)>,
}

/// What a broker found for one partition of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// First offset not committed.
    pub high_watermark: Offset,
    /// First offset kept.
    pub log_start: Offset,
    /// Whole batches from the tail; empty where `behind` or at the end.
    pub batches: Vec<Bytes>,
    /// The offset lies below the broker's tail cache: read it by a plan.
    pub behind: bool,
}

/// A message to a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToBroker {
    /// First on a connection.
    Hello {
        /// Cluster id.
        cluster: String,
        /// The peer's name, for logs.
        peer: String,
        /// The broker that is meant.
        broker: BrokerId,
    },
    /// Appends a batch.
    Produce(Produce),
    /// Reads the tail.
    Fetch(Fetch),
    /// Gives up a fetch that waits.
    CancelFetch(u64),
    /// Resolves a position.
    Offsets {
        /// Echoed in the answer.
        request: u64,
        /// The partition.
        partition: PartitionId,
        /// Epoch of the route that led here.
        epoch: Epoch,
        /// Which place.
        position: Position,
    },
    /// Asks how to read from an offset without the broker.
    Plan {
        /// Echoed in the answer.
        request: u64,
        /// The partition.
        partition: PartitionId,
        /// Epoch of the route that led here.
        epoch: Epoch,
        /// Segments that end at or before this are left out.
        from: Offset,
    },
    /// The last message of a connection whose broker is [`FromBroker::Leaving`].
    Goodbye,
    /// Another message, as part of a trace that is recorded. All else is as if it came alone.
    Traced(Box<(TraceContext, Self)>),
}

/// A message from a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromBroker {
    /// The broker is the one meant.
    Welcome {
        /// The broker.
        broker: BrokerId,
        /// Its session.
        session: SessionId,
    },
    /// The broker will not talk; the connection closes.
    Refused(String),
    /// The broker owns nothing any more and will end. It answers every produce that was sent before the
    /// peer's [`ToBroker::Goodbye`], and then closes the connection.
    Leaving,
    /// A batch reached its acknowledgement level, or did not.
    Produced {
        /// Of the request.
        request: u64,
        /// Offset of the batch's first record.
        result: Result<Offset, Failure>,
    },
    /// A fetch is answered.
    Fetched {
        /// Of the request.
        request: u64,
        /// In the order of the request's partitions.
        partitions: Vec<Result<Fetched, Failure>>,
    },
    /// A position is resolved.
    Offsets {
        /// Of the request.
        request: u64,
        /// The offset, none where no record is that young.
        result: Result<Option<Offset>, Failure>,
    },
    /// A plan.
    Plan {
        /// Of the request.
        request: u64,
        /// How to read.
        result: Result<ReadPlan, Failure>,
    },
}
