//! What a partition's state machine is told, and what it asks for.
//!
//! The machine does no I/O and knows no clock: each call brings the time and a view of the
//! storage nodes, and leaves actions for its driver. Simulator and broker drive the same code.

use std::collections::BTreeMap;

use bytes::Bytes;
use forebay_meta::model::{ManifestRef, Partition, Segment};
use forebay_proto::data::front::Acks;
use forebay_proto::data::replica::{FenceItem, FramesRequest, HeadersRequest, MissingRequest};
use forebay_proto::error::Failure;
use forebay_record::frame::Frame;
use forebay_record::{Epoch, Generation, NodeId, Offset, SegmentId};

/// Identifies a produce to the driver, which knows whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A batch that a proxy has validated.
#[derive(Debug, Clone)]
pub struct Produce {
    /// Names it in the answer.
    pub ticket: Ticket,
    /// Epoch of the route that led here, zero where the sender knows none.
    pub epoch: Epoch,
    /// When to answer.
    pub acks: Acks,
    /// When the sender stops waiting, milliseconds on the driver's monotonic clock.
    pub deadline_ms: u64,
    /// One batch.
    pub batch: Bytes,
    /// The driver wants to know where it is placed: [`Action::Placed`].
    pub traced: bool,
}

/// A storage node as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its generation now.
    pub generation: Generation,
    /// Its zone; may be empty.
    pub zone: String,
    /// A session is up and the node takes new segments.
    pub usable: bool,
    /// A session is up.
    pub connected: bool,
    /// It is to be emptied: what it holds is to be held elsewhere.
    pub leaving: bool,
    /// Largest frame that it takes, in bytes of batches; none where its record does not say.
    pub frame_bytes_max: Option<u64>,
    /// When it last said something, milliseconds on the driver's monotonic clock.
    pub heard_ms: u64,
}

/// The storage nodes known, by id.
pub type Nodes = BTreeMap<NodeId, NodeView>;

/// What one call brings along.
pub struct Context<'a> {
    /// Milliseconds on the driver's monotonic clock.
    pub now_ms: u64,
    /// Milliseconds since 1970; informs, never decides.
    pub wall_ms: i64,
    /// The storage nodes.
    pub nodes: &'a Nodes,
    /// The least of the largest frames that they take, see [`super::least_frame`].
    pub least_frame: Option<(u64, NodeId)>,
    /// The metadata store has answered lately: planned changes may start.
    pub meta_healthy: bool,
    /// Newest revision of the metadata store that this broker has seen.
    pub meta_revision: u64,
    /// Since when this broker has not been held up itself: what it heard before may be old.
    pub steady_ms: u64,
    /// A number that was never used before, for the next change of the record.
    pub nonce: u64,
    /// What the driver must do, in order.
    pub out: &'a mut Vec<Action>,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Action {
    /// Send a frame to a replica, in order.
    Append {
        /// To whom.
        node: NodeId,
        /// Of the replica, as recorded.
        generation: Generation,
        /// The frame.
        frame: Frame,
    },
    /// Tell a replica a committed offset, when nothing else is going its way.
    Commit {
        /// To whom.
        node: NodeId,
        /// Of which segment.
        segment: SegmentId,
        /// The offset.
        committed: Offset,
    },
    /// Close a segment on a replica.
    Fence {
        /// To whom.
        node: NodeId,
        /// What.
        item: FenceItem,
    },
    /// Read frames of a fenced segment.
    ReadFrames {
        /// From whom.
        node: NodeId,
        /// What.
        request: FramesRequest,
    },
    /// Read state and batch headers.
    ReadHeaders {
        /// From whom.
        node: NodeId,
        /// What.
        request: HeadersRequest,
    },
    /// Read the state at the end of the offloaded past, whose newest object has it.
    ReadState,
    /// Copy a piece of a sealed segment into the object store, and verify the copy.
    Offload {
        /// The segment.
        segment: Box<Segment>,
        /// From where to where; all of it, where nothing of it was declared lost.
        piece: (Offset, Offset),
        /// A storage node runs short of space because of it.
        urged: bool,
    },
    /// Ask what a replica has of a sealed segment.
    Survey {
        /// Whom.
        node: NodeId,
        /// Of which segment.
        segment: SegmentId,
        /// Of the replica, as recorded.
        generation: Generation,
    },
    /// Ask which bytes of a segment cannot be read.
    FindMissing {
        /// Whom.
        node: NodeId,
        /// Of which segment.
        request: MissingRequest,
    },
    /// Copy a sealed segment from one storage node to another.
    Repair(Box<Repair>),
    /// Tell a node that its copy of a segment will not be needed.
    ForgetCopy {
        /// Whom.
        node: NodeId,
        /// Which.
        segment: SegmentId,
        /// Epoch of the owner that made it.
        by: Epoch,
    },
    /// A sealed segment has a sound replica more than before.
    Repaired(Box<Repair>),
    /// Write a manifest of what the record lists, without what retention does not want.
    Fold(Retention),
    /// Store a new record, if the stored one has not changed since.
    Store(Box<Partition>),
    /// Answer a produce.
    Answer {
        /// Which.
        ticket: Ticket,
        /// Offset of the first record.
        result: Result<Offset, Failure>,
    },
    /// A traced produce has its offsets; frames that hold them follow.
    Placed {
        /// Which.
        ticket: Ticket,
        /// Its first record's.
        base: Offset,
        /// After its last record.
        end: Offset,
    },
    /// Records below this offset may be read now.
    Visible(Offset),
    /// The partition is no longer owned here; why, and whether everything was sealed.
    Released {
        /// For the log.
        why: String,
    },
}

/// How soon a copy should be made; the smaller is the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Urgency {
    /// Whole copies that are left.
    pub copies: usize,
    /// Since when one is missing, milliseconds on the driver's monotonic clock.
    pub since_ms: u64,
    /// Bytes of the segment, 0 where unknown.
    pub bytes: u64,
}

/// A copy of a sealed segment that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The segment.
    pub segment: Segment,
    /// The replica whose place is taken.
    pub lost: (NodeId, Generation),
    /// Where the copy goes.
    pub to: (NodeId, Generation),
    /// The record names that one already: it completes what it has.
    pub listed: bool,
    /// Who may have the bytes, the best first.
    pub sources: Vec<(NodeId, Generation)>,
    /// Epoch of the owner that asks.
    pub by: Epoch,
    /// How soon.
    pub urgency: Urgency,
}

/// What of a partition's past may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// First offset kept so far.
    pub log_start: Offset,
    /// Milliseconds for which ranges are kept, unlimited where none.
    pub retention_ms: Option<u64>,
    /// Bytes that are kept, unlimited where none.
    pub retention_bytes: Option<u64>,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Bytes of the segments after the ranges, which count as well.
    pub newer_bytes: u64,
}

/// A manifest that was written and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// The manifest, none where nothing is left for it to list.
    pub manifest: Option<ManifestRef>,
    /// First offset kept.
    pub log_start: Offset,
    /// Largest timestamp of its oldest range, `i64::MAX` where it lists none.
    pub oldest_ms: i64,
    /// Bytes of its ranges.
    pub bytes: u64,
}

/// How a change of the record ended.
#[derive(Debug)]
pub enum Stored {
    /// It is stored, at this revision.
    Done(u64),
    /// It is not: this is the record as it stands, and its revision.
    Conflict(Box<Partition>, u64),
    /// The record or the broker's own session is gone.
    Gone,
}
