//! Spoken with a storage node by brokers (append, fence, recover) and proxies (read).
//!
//! Appends are answered by cumulative acknowledgements and by refusals of single frames; the rest
//! are requests with an id, answered once each in any order. The first message is a
//! [`ToNode::Hello`]; a node that is not the one meant answers [`FromNode::Refused`] and closes.

use bytes::Bytes;
use forebay_record::frame::{ChainHash, Frame};
use forebay_record::{Epoch, Generation, NodeId, Offset, SegmentId, SessionId, Token};
use forebay_runtime::trace::TraceContext;
use uuid::Uuid;

mod from_node;
mod parts;
mod to_node;

/// Segments in one fence, confirm or commit message.
pub const ITEMS_MAX: usize = 65_536;

/// Who connects, and to whom it means to speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Cluster id.
    pub cluster: String,
    /// Cluster incarnation.
    pub incarnation: u32,
    /// The node that is meant.
    pub node: NodeId,
    /// The peer's name, for logs.
    pub peer: String,
}

/// Closes a segment on a node (I4, I5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceItem {
    /// The segment.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// The segment's token.
    pub token: Token,
    /// The segment's base, for a node that never saw it.
    pub base: Offset,
    /// Epoch of the owner that closes it.
    pub by: Epoch,
}

/// What a node holds of a closed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencedState {
    /// The segment.
    pub segment: SegmentId,
    /// False where the generation differs, or where bytes may be missing (I15): then the numbers
    /// say what is there and nothing about what is not.
    pub authoritative: bool,
    /// First offset not durable here.
    pub tail: Offset,
    /// Highest committed offset that the owner stated here.
    pub committed: Offset,
    /// Frames held.
    pub frames: u32,
    /// Chain hash after the last.
    pub hash: ChainHash,
}

/// Why a node did not take a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The node has another generation now.
    WrongGeneration(Generation),
    /// The segment is unknown and its token lies at or below the floor.
    Closed,
    /// The segment is fenced, by this epoch.
    Fenced(Epoch),
    /// The segment is unknown and this is not its first frame.
    UnknownSegment,
    /// The node takes no new segments.
    NoNewSegments,
    /// An earlier frame is missing; this number is expected.
    Gap(u32),
    /// The frame differs from the one held under the same number.
    Overlap,
    /// The chain hash differs: this is another history.
    Diverged,
    /// The disk is full.
    DiskFull,
    /// The journal has failed; the node only reads.
    Failed,
    /// Frame or record of it is malformed.
    Malformed,
}

/// Why a node did not answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFailure {
    /// The node has another generation now.
    WrongGeneration(Generation),
    /// The segment is not here, or no longer.
    NotFound,
    /// The offset is not held or not readable here yet.
    Behind(Offset),
    /// The bytes are damaged here.
    Corrupt,
    /// The disk failed.
    Failed,
    /// Too many requests wait.
    Overloaded,
    /// The object store did not take it, or there is none; the node's log says why.
    ObjectStore,
    /// The segment is held here, and not as a copy of the asking owner's that may go on.
    Held,
    /// A frame has more bytes of batches than the node's journal files take.
    TooLarge(u64),
}

/// What a reader may see of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// First offset wanted.
    pub from: Offset,
    /// Offsets below this are committed or sealed, as the owner or the record says (I14). The
    /// node serves below the larger of this and the committed offset it was told by the owner.
    pub until: Offset,
    /// About this many bytes; the first batch is returned whole.
    pub max_bytes: u32,
}

/// Frames of a segment for its recovery, regardless of commitment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramesRequest {
    /// The segment; it must be fenced.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// The first frame returned is the one that holds this offset, or the next after it.
    pub from: Offset,
    /// About this many bytes; the first frame is returned whole.
    pub max_bytes: u32,
}

/// State and batch headers of a segment, to rebuild duplicate detection without reading data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadersRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// Nothing at or after this offset.
    pub until: Offset,
}

/// Frames of a sealed segment, by number and whatever their kind, so that another node can hold
/// exactly the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// First frame wanted.
    pub number: u32,
    /// The sealed end: no frame that ends beyond it is given (I14).
    pub until: Offset,
    /// About this many bytes; the first frame is returned whole.
    pub max_bytes: u32,
}

/// What a node has of a segment, as a survey finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surveyed {
    /// Nothing here is damaged or missing below the tail.
    pub sound: bool,
    /// First offset not durable here.
    pub tail: Offset,
}

/// Asks which bytes of a segment cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation of the replica that is asked.
    pub generation: Generation,
    /// The sealed end, none where it is not sealed.
    pub until: Option<Offset>,
}

/// What of a segment cannot be read at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// After the last entry that can be read.
    pub tail: Offset,
    /// Rising ranges below the sealed end, or below the tail, that cannot be read.
    pub ranges: Vec<(Offset, Offset)>,
}

/// Frames of a sealed segment for a node that lacks them. The segment is closed there by the first
/// such message, whatever the node's floor is, and takes frames from nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation of the node.
    pub generation: Generation,
    /// The segment's token.
    pub token: Token,
    /// Its base.
    pub base: Offset,
    /// Its sealed end: the copy is whole once it reaches it.
    pub until: Offset,
    /// Epoch of the owner that copies.
    pub by: Epoch,
    /// The record names the node as a replica already: it completes what it has.
    pub listed: bool,
    /// In their order; none to learn how far the copy is.
    pub frames: Vec<Frame>,
}

/// How far a copy is, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Frames held.
    pub frames: u32,
    /// First offset not held. At the sealed end the copy is whole.
    pub tail: Offset,
}

/// Copies a sealed segment into the object store. The node has no say over metadata: it writes
/// the object that it is told to write, and what came of it is verified and committed by the owner
/// who asked (I19).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRequest {
    /// The segment.
    pub segment: SegmentId,
    /// Generation that the segment's record names for this node.
    pub generation: Generation,
    /// Its base.
    pub base: Offset,
    /// Its sealed end: nothing at or beyond it is copied (I14).
    pub until: Offset,
    /// The partition's topic.
    pub topic: Uuid,
    /// Session of the owner who asks, kept in the object.
    pub session: SessionId,
    /// The object's name, never used before.
    pub object: String,
}

/// The object that a node wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// Bytes of the object.
    pub object_len: u64,
    /// Where the run of batches starts.
    pub position: u64,
    /// Bytes of the run.
    pub len: u64,
    /// CRC-32C of the run.
    pub crc32c: u32,
    /// Largest timestamp of its records, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// CRC-32C of the footer.
    pub footer_crc32c: u32,
}

/// One request-or-append message to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToNode {
    /// First on a connection.
    Hello(Hello),
    /// Stores a frame.
    Append {
        /// Generation that the segment's record names for this node.
        generation: Generation,
        /// The frame.
        frame: Frame,
    },
    /// Committed offsets of quiet segments.
    Commit(Vec<(SegmentId, Offset)>),
    /// Closes segments.
    Fence {
        /// Echoed in the answer.
        request: u64,
        /// The segments.
        items: Vec<FenceItem>,
    },
    /// Asks for batches.
    Read {
        /// Echoed in the answer.
        request: u64,
        /// What.
        read: ReadRequest,
    },
    /// Asks for frames of a fenced segment.
    Frames {
        /// Echoed in the answer.
        request: u64,
        /// What.
        frames: FramesRequest,
    },
    /// Asks for state and batch headers.
    Headers {
        /// Echoed in the answer.
        request: u64,
        /// What.
        headers: HeadersRequest,
    },
    /// Asks for the first batch with a record at or after a time.
    Lookup {
        /// Echoed in the answer.
        request: u64,
        /// Segment, generation, and the bound of what may be seen.
        read: ReadRequest,
        /// Milliseconds since 1970.
        timestamp_ms: i64,
    },
    /// Asks which of these segments are still unfenced here, now.
    Confirm {
        /// Echoed in the answer.
        request: u64,
        /// Segments with the generations that their records name for this node.
        items: Vec<(SegmentId, Generation)>,
    },
    /// Asks for a copy in the object store.
    Upload {
        /// Echoed in the answer.
        request: u64,
        /// What.
        upload: UploadRequest,
    },
    /// Asks what the node has of segments, each with the generation that its record names.
    Survey {
        /// Echoed in the answer.
        request: u64,
        /// The segments.
        items: Vec<(SegmentId, Generation)>,
    },
    /// Asks which bytes of a segment cannot be read. All of it is read for that.
    Missing {
        /// Echoed in the answer.
        request: u64,
        /// Of which.
        missing: MissingRequest,
    },
    /// Asks for frames of a sealed segment; answered by [`FromNode::Frames`].
    Sealed {
        /// Echoed in the answer.
        request: u64,
        /// What.
        sealed: SealedRequest,
    },
    /// Stores frames of a sealed segment that another node lost.
    Copy {
        /// Echoed in the answer.
        request: u64,
        /// What.
        copy: Box<CopyRequest>,
    },
    /// The owner of this epoch will not name its copy of a segment in the record.
    ForgetCopy {
        /// The segment.
        segment: SegmentId,
        /// The epoch.
        by: Epoch,
    },
    /// Another message, as part of a trace that is recorded. All else is as if it came alone.
    Traced(Box<(TraceContext, Self)>),
}

/// How far a node holds a segment durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The segment.
    pub segment: SegmentId,
    /// First offset not durable.
    pub tail: Offset,
    /// Frames durable.
    pub frames: u32,
}

/// State and batch headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// Payload of the OPEN or STATE frame that the headers follow, with its kind's number.
    pub state_kind: u8,
    /// See above.
    pub state: Bytes,
    /// Offset of the state.
    pub state_at: Offset,
    /// Batch headers of 61 bytes each, as stored, one after the other.
    pub headers: Bytes,
}

/// A message from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromNode {
    /// The node is the one meant.
    Welcome {
        /// The node.
        node: NodeId,
        /// Its generation.
        generation: Generation,
        /// Counts its starts.
        boot: u64,
    },
    /// The node will not talk; the connection closes.
    Refused(String),
    /// Frames are durable.
    Acks {
        /// Cumulative, one per segment.
        acks: Vec<Ack>,
        /// Microseconds that the last write waited in the node before it was written.
        queue_delay_us: u32,
    },
    /// A frame was not taken.
    NotTaken {
        /// The segment.
        segment: SegmentId,
        /// The frame's number.
        number: u32,
        /// Why.
        refusal: Refusal,
    },
    /// Segments are closed, durably.
    Fenced {
        /// Of the request.
        request: u64,
        /// In the order asked.
        states: Vec<FencedState>,
    },
    /// Batches.
    Read {
        /// Of the request.
        request: u64,
        /// Whole batches in order; the first may begin below the offset asked for.
        result: Result<Bytes, NodeFailure>,
    },
    /// Frames.
    Frames {
        /// Of the request.
        request: u64,
        /// In order, without gaps.
        result: Result<Vec<Frame>, NodeFailure>,
    },
    /// State and headers.
    Headers {
        /// Of the request.
        request: u64,
        /// What was asked for.
        result: Result<Headers, NodeFailure>,
    },
    /// A time was looked up.
    Lookup {
        /// Of the request.
        request: u64,
        /// Base offset of the first batch whose largest timestamp is at or after the time.
        result: Result<Option<Offset>, NodeFailure>,
    },
    /// Which segments are unfenced.
    Confirm {
        /// Of the request.
        request: u64,
        /// In the order asked; false where closed or of another generation.
        open: Vec<bool>,
    },
    /// A segment was copied into the object store, or not.
    Uploaded {
        /// Of the request.
        request: u64,
        /// The object.
        result: Result<Uploaded, NodeFailure>,
    },
    /// What the node has of segments.
    Surveyed {
        /// Of the request.
        request: u64,
        /// In the order asked; none where nothing is held under that generation.
        found: Vec<Option<Surveyed>>,
    },
    /// What of a segment cannot be read.
    Missing {
        /// Of the request.
        request: u64,
        /// What.
        result: Result<Missing, NodeFailure>,
    },
    /// A copy went on, or not.
    Copied {
        /// Of the request.
        request: u64,
        /// How far it is now.
        result: Result<Copied, NodeFailure>,
    },
    /// The disk fills up, and these segments hold the oldest files: whoever owns them should seal
    /// what is open and offload. Sent unasked, repeated while it lasts.
    Urge(Vec<SegmentId>),
    /// Bytes of these segments are damaged here, or may be missing: whoever owns them should act. Sent
    /// unasked, repeated while it lasts.
    Damaged(Vec<SegmentId>),
}
