//! Spoken with a storage node by brokers (append, fence, recover) and proxies (read).
//!
//! Appends are answered by cumulative acknowledgements and by refusals of single frames; the rest
//! are requests with an id, answered once each in any order. The first message is a
//! [`ToNode::Hello`]; a node that is not the one meant answers [`FromNode::Refused`] and closes.

use bytes::Bytes;
use forebay_record::frame::{ChainHash, Frame, FrameHeader, HEADER_LEN};
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use forebay_runtime::trace::TraceContext;
use uuid::Uuid;

use super::Message;
use super::wire::{Encoder, Reader, TRACED, WireError};

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

fn put_segment(out: &mut Encoder, segment: SegmentId) {
    out.u64(segment.partition.0).u32(segment.epoch.0).u32(segment.seq);
}

fn segment(reader: &mut Reader) -> Result<SegmentId, WireError> {
    Ok(SegmentId {
        partition: PartitionId(reader.u64("partition")?),
        epoch: Epoch(reader.u32("epoch")?),
        seq: reader.u32("seq")?,
    })
}

fn put_read(out: &mut Encoder, read: &ReadRequest) {
    put_segment(out, read.segment);
    out.u32(read.generation.0)
        .u64(read.from.0)
        .u64(read.until.0)
        .u32(read.max_bytes);
}

fn read_request(reader: &mut Reader) -> Result<ReadRequest, WireError> {
    Ok(ReadRequest {
        segment: segment(reader)?,
        generation: Generation(reader.u32("generation")?),
        from: Offset(reader.u64("from")?),
        until: Offset(reader.u64("until")?),
        max_bytes: reader.u32("max bytes")?,
    })
}

fn put_frame(out: &mut Encoder, frame: &Frame) {
    out.raw(&frame.header.encode());
    for chunk in &frame.payload {
        out.chunk(chunk.clone());
    }
}

/// Headers first, then what they head.
fn put_frames(out: &mut Encoder, frames: &[Frame]) {
    out.len(frames.len());
    for frame in frames {
        out.raw(&frame.header.encode());
    }
    for chunk in frames.iter().flat_map(|frame| &frame.payload) {
        out.chunk(chunk.clone());
    }
}

/// A frame that fills the rest of a message. Its payload is checked where it is stored or used,
/// so that a frame that never left its process is checked just as well.
fn frame(reader: &mut Reader) -> Result<Frame, WireError> {
    let header = FrameHeader::parse(&reader.bytes(HEADER_LEN, "frame header")?)?;
    let payload = reader.bytes(header.payload_len as usize, "frame payload")?;
    Ok(Frame {
        header,
        payload: vec![payload],
    })
}

impl Message for ToNode {
    const PROTOCOL: u16 = 1;

    fn encode(&self) -> Encoder {
        match self {
            Self::Traced(traced) => traced.1.encode().traced(&traced.0),
            Self::Hello(hello) => {
                let mut out = Encoder::new(1, 0);
                out.u32(hello.incarnation)
                    .u32(hello.node.0)
                    .prefixed(hello.cluster.as_bytes())
                    .prefixed(hello.peer.as_bytes());
                out
            }
            Self::Append { generation, frame } => {
                let mut out = Encoder::new(2, u64::from(generation.0));
                put_frame(&mut out, frame);
                out
            }
            Self::Commit(items) => {
                let mut out = Encoder::new(3, 0);
                out.len(items.len());
                for (segment, offset) in items {
                    put_segment(&mut out, *segment);
                    out.u64(offset.0);
                }
                out
            }
            Self::Fence { request, items } => {
                let mut out = Encoder::new(4, *request);
                out.len(items.len());
                for item in items {
                    put_segment(&mut out, item.segment);
                    out.u32(item.generation.0)
                        .u64(item.token.0)
                        .u64(item.base.0)
                        .u32(item.by.0);
                }
                out
            }
            Self::Read { request, read } => {
                let mut out = Encoder::new(5, *request);
                put_read(&mut out, read);
                out
            }
            Self::Frames { request, frames } => {
                let mut out = Encoder::new(6, *request);
                put_segment(&mut out, frames.segment);
                out.u32(frames.generation.0)
                    .u64(frames.from.0)
                    .u32(frames.max_bytes);
                out
            }
            Self::Headers { request, headers } => {
                let mut out = Encoder::new(7, *request);
                put_segment(&mut out, headers.segment);
                out.u32(headers.generation.0).u64(headers.until.0);
                out
            }
            Self::Lookup {
                request,
                read,
                timestamp_ms,
            } => {
                let mut out = Encoder::new(8, *request);
                put_read(&mut out, read);
                out.i64(*timestamp_ms);
                out
            }
            Self::Confirm { request, items } => {
                let mut out = Encoder::new(9, *request);
                out.len(items.len());
                for (segment, generation) in items {
                    put_segment(&mut out, *segment);
                    out.u32(generation.0);
                }
                out
            }
            Self::Upload { request, upload } => {
                let mut out = Encoder::new(10, *request);
                put_segment(&mut out, upload.segment);
                out.u32(upload.generation.0)
                    .u64(upload.base.0)
                    .u64(upload.until.0)
                    .u64(upload.topic.as_u64_pair().0)
                    .u64(upload.topic.as_u64_pair().1)
                    .u64(upload.session.0)
                    .prefixed(upload.object.as_bytes());
                out
            }
            Self::Survey { request, items } => {
                let mut out = Encoder::new(21, *request);
                out.len(items.len());
                for (segment, generation) in items {
                    put_segment(&mut out, *segment);
                    out.u32(generation.0);
                }
                out
            }
            Self::Missing { request, missing } => {
                let mut out = Encoder::new(25, *request);
                put_segment(&mut out, missing.segment);
                out.u32(missing.generation.0)
                    .u8(u8::from(missing.until.is_some()))
                    .u64(missing.until.map_or(0, Offset::get));
                out
            }
            Self::Sealed { request, sealed } => {
                let mut out = Encoder::new(22, *request);
                put_segment(&mut out, sealed.segment);
                out.u32(sealed.generation.0)
                    .u32(sealed.number)
                    .u64(sealed.until.0)
                    .u32(sealed.max_bytes);
                out
            }
            Self::Copy { request, copy } => {
                let mut out = Encoder::new(23, *request);
                put_segment(&mut out, copy.segment);
                out.u32(copy.generation.0)
                    .u64(copy.token.0)
                    .u64(copy.base.0)
                    .u64(copy.until.0)
                    .u32(copy.by.0)
                    .u8(u8::from(copy.listed));
                put_frames(&mut out, &copy.frames);
                out
            }
            Self::ForgetCopy { segment, by } => {
                let mut out = Encoder::new(24, 0);
                put_segment(&mut out, *segment);
                out.u32(by.0);
                out
            }
        }
    }

    fn decode(kind: u8, id: u64, body: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, body);
        if kind & (TRACED | 0x40) == TRACED {
            let context = reader.trace()?;
            let message = Self::decode(kind & !TRACED, id, reader.rest())?;
            return Ok(Self::Traced(Box::new((context, message))));
        }
        let reader_ref = &mut reader;
        let message = match kind {
            1 => Self::Hello(Hello {
                incarnation: reader_ref.u32("incarnation")?,
                node: NodeId(reader_ref.u32("node")?),
                cluster: reader_ref.string("cluster")?,
                peer: reader_ref.string("peer")?,
            }),
            2 => {
                let generation = u32::try_from(id).map_err(|_| reader_ref.value("generation", id))?;
                Self::Append {
                    generation: Generation(generation),
                    frame: frame(reader_ref)?,
                }
            }
            3 => Self::Commit(items(reader_ref, 24, |r| {
                Ok((segment(r)?, Offset(r.u64("offset")?)))
            })?),
            4 => Self::Fence {
                request: id,
                items: items(reader_ref, 40, fence_item)?,
            },
            5 => Self::Read {
                request: id,
                read: read_request(reader_ref)?,
            },
            6 => Self::Frames {
                request: id,
                frames: FramesRequest {
                    segment: segment(reader_ref)?,
                    generation: Generation(reader_ref.u32("generation")?),
                    from: Offset(reader_ref.u64("from")?),
                    max_bytes: reader_ref.u32("max bytes")?,
                },
            },
            7 => Self::Headers {
                request: id,
                headers: HeadersRequest {
                    segment: segment(reader_ref)?,
                    generation: Generation(reader_ref.u32("generation")?),
                    until: Offset(reader_ref.u64("until")?),
                },
            },
            8 => Self::Lookup {
                request: id,
                read: read_request(reader_ref)?,
                timestamp_ms: reader_ref.i64("timestamp")?,
            },
            9 => Self::Confirm {
                request: id,
                items: items(reader_ref, 20, |r| {
                    Ok((segment(r)?, Generation(r.u32("generation")?)))
                })?,
            },
            10 => Self::Upload {
                request: id,
                upload: upload(reader_ref)?,
            },
            21 => Self::Survey {
                request: id,
                items: items(reader_ref, 20, |r| {
                    Ok((segment(r)?, Generation(r.u32("generation")?)))
                })?,
            },
            25 => Self::Missing {
                request: id,
                missing: missing_request(reader_ref)?,
            },
            22 => Self::Sealed {
                request: id,
                sealed: SealedRequest {
                    segment: segment(reader_ref)?,
                    generation: Generation(reader_ref.u32("generation")?),
                    number: reader_ref.u32("number")?,
                    until: Offset(reader_ref.u64("until")?),
                    max_bytes: reader_ref.u32("max bytes")?,
                },
            },
            23 => Self::Copy {
                request: id,
                copy: Box::new(copy(reader_ref)?),
            },
            24 => Self::ForgetCopy {
                segment: segment(reader_ref)?,
                by: Epoch(reader_ref.u32("by")?),
            },
            other => return Err(WireError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn copy(reader: &mut Reader) -> Result<CopyRequest, WireError> {
    Ok(CopyRequest {
        segment: segment(reader)?,
        generation: Generation(reader.u32("generation")?),
        token: Token(reader.u64("token")?),
        base: Offset(reader.u64("base")?),
        until: Offset(reader.u64("until")?),
        by: Epoch(reader.u32("by")?),
        listed: flag(reader, "listed")?,
        frames: frames(reader)?,
    })
}

fn missing_request(reader: &mut Reader) -> Result<MissingRequest, WireError> {
    let (segment, generation) = (segment(reader)?, Generation(reader.u32("generation")?));
    let sealed = flag(reader, "sealed")?;
    let until = Offset(reader.u64("until")?);
    Ok(MissingRequest {
        segment,
        generation,
        until: sealed.then_some(until),
    })
}

fn missing(reader: &mut Reader) -> Result<Missing, WireError> {
    Ok(Missing {
        tail: Offset(reader.u64("tail")?),
        ranges: items(reader, 16, |r| {
            Ok((Offset(r.u64("base")?), Offset(r.u64("end")?)))
        })?,
    })
}

fn surveyed(reader: &mut Reader) -> Result<Option<Surveyed>, WireError> {
    let held = flag(reader, "held")?;
    let found = Surveyed {
        sound: flag(reader, "sound")?,
        tail: Offset(reader.u64("tail")?),
    };
    Ok(held.then_some(found))
}

fn copied(reader: &mut Reader) -> Result<Copied, WireError> {
    Ok(Copied {
        frames: reader.u32("frames")?,
        tail: Offset(reader.u64("tail")?),
    })
}

fn upload(reader: &mut Reader) -> Result<UploadRequest, WireError> {
    Ok(UploadRequest {
        segment: segment(reader)?,
        generation: Generation(reader.u32("generation")?),
        base: Offset(reader.u64("base")?),
        until: Offset(reader.u64("until")?),
        topic: Uuid::from_u64_pair(reader.u64("topic")?, reader.u64("topic")?),
        session: SessionId(reader.u64("session")?),
        object: reader.string("object")?,
    })
}

fn uploaded(reader: &mut Reader) -> Result<Uploaded, WireError> {
    Ok(Uploaded {
        object_len: reader.u64("object length")?,
        position: reader.u64("position")?,
        len: reader.u64("length")?,
        crc32c: reader.u32("checksum")?,
        max_timestamp_ms: reader.i64("timestamp")?,
        footer_crc32c: reader.u32("footer checksum")?,
    })
}

fn items<T>(
    reader: &mut Reader,
    element_len: usize,
    read: impl Fn(&mut Reader) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let count = reader.count(element_len, "items")?;
    if count > ITEMS_MAX {
        return Err(reader.value("items", count as u64));
    }
    (0..count).map(|_| read(reader)).collect()
}

fn fence_item(reader: &mut Reader) -> Result<FenceItem, WireError> {
    Ok(FenceItem {
        segment: segment(reader)?,
        generation: Generation(reader.u32("generation")?),
        token: Token(reader.u64("token")?),
        base: Offset(reader.u64("base")?),
        by: Epoch(reader.u32("by")?),
    })
}

fn fenced_state(reader: &mut Reader) -> Result<FencedState, WireError> {
    Ok(FencedState {
        segment: segment(reader)?,
        authoritative: flag(reader, "authoritative")?,
        tail: Offset(reader.u64("tail")?),
        committed: Offset(reader.u64("committed")?),
        frames: reader.u32("frames")?,
        hash: ChainHash(reader.u64("hash")?),
    })
}

fn flag(reader: &mut Reader, field: &'static str) -> Result<bool, WireError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.value(field, u64::from(other))),
    }
}

fn put_refusal(out: &mut Encoder, refusal: Refusal) {
    let (number, detail) = match refusal {
        Refusal::WrongGeneration(generation) => (1, generation.0),
        Refusal::Closed => (2, 0),
        Refusal::Fenced(epoch) => (3, epoch.0),
        Refusal::UnknownSegment => (4, 0),
        Refusal::NoNewSegments => (5, 0),
        Refusal::Gap(expected) => (6, expected),
        Refusal::Overlap => (7, 0),
        Refusal::Diverged => (8, 0),
        Refusal::DiskFull => (9, 0),
        Refusal::Failed => (10, 0),
        Refusal::Malformed => (11, 0),
    };
    out.u8(number).u32(detail);
}

fn refusal(reader: &mut Reader) -> Result<Refusal, WireError> {
    let number = reader.u8("refusal")?;
    let detail = reader.u32("refusal detail")?;
    Ok(match number {
        1 => Refusal::WrongGeneration(Generation(detail)),
        2 => Refusal::Closed,
        3 => Refusal::Fenced(Epoch(detail)),
        4 => Refusal::UnknownSegment,
        5 => Refusal::NoNewSegments,
        6 => Refusal::Gap(detail),
        7 => Refusal::Overlap,
        8 => Refusal::Diverged,
        9 => Refusal::DiskFull,
        10 => Refusal::Failed,
        11 => Refusal::Malformed,
        other => return Err(reader.value("refusal", u64::from(other))),
    })
}

/// Writes 0 for success, else the failure; the success's fields follow.
fn put_result<T>(out: &mut Encoder, result: &Result<T, NodeFailure>) {
    let (number, detail) = match result {
        Ok(_) => (0, 0),
        Err(NodeFailure::WrongGeneration(generation)) => (1, u64::from(generation.0)),
        Err(NodeFailure::NotFound) => (2, 0),
        Err(NodeFailure::Behind(tail)) => (3, tail.0),
        Err(NodeFailure::Corrupt) => (4, 0),
        Err(NodeFailure::Failed) => (5, 0),
        Err(NodeFailure::Overloaded) => (6, 0),
        Err(NodeFailure::ObjectStore) => (7, 0),
        Err(NodeFailure::Held) => (8, 0),
    };
    out.u8(number).u64(detail);
}

fn result<T>(
    reader: &mut Reader,
    read: impl FnOnce(&mut Reader) -> Result<T, WireError>,
) -> Result<Result<T, NodeFailure>, WireError> {
    let number = reader.u8("result")?;
    let detail = reader.u64("result detail")?;
    Ok(Err(match number {
        0 => return read(reader).map(Ok),
        1 => {
            let generation = u32::try_from(detail).map_err(|_| reader.value("generation", detail))?;
            NodeFailure::WrongGeneration(Generation(generation))
        }
        2 => NodeFailure::NotFound,
        3 => NodeFailure::Behind(Offset(detail)),
        4 => NodeFailure::Corrupt,
        5 => NodeFailure::Failed,
        6 => NodeFailure::Overloaded,
        7 => NodeFailure::ObjectStore,
        8 => NodeFailure::Held,
        other => return Err(reader.value("result", u64::from(other))),
    }))
}

impl Message for FromNode {
    const PROTOCOL: u16 = 1;

    fn encode(&self) -> Encoder {
        match self {
            Self::Welcome {
                node,
                generation,
                boot,
            } => {
                let mut out = Encoder::new(65, 0);
                out.u32(node.0).u32(generation.0).u64(*boot);
                out
            }
            Self::Refused(reason) => {
                let mut out = Encoder::new(66, 0);
                out.prefixed(reason.as_bytes());
                out
            }
            Self::Acks { acks, queue_delay_us } => {
                let mut out = Encoder::new(67, 0);
                out.u32(*queue_delay_us).len(acks.len());
                for ack in acks {
                    put_segment(&mut out, ack.segment);
                    out.u64(ack.tail.0).u32(ack.frames);
                }
                out
            }
            Self::NotTaken {
                segment,
                number,
                refusal,
            } => {
                let mut out = Encoder::new(68, 0);
                put_segment(&mut out, *segment);
                out.u32(*number);
                put_refusal(&mut out, *refusal);
                out
            }
            Self::Fenced { request, states } => {
                let mut out = Encoder::new(69, *request);
                out.len(states.len());
                for state in states {
                    put_segment(&mut out, state.segment);
                    out.u8(u8::from(state.authoritative))
                        .u64(state.tail.0)
                        .u64(state.committed.0)
                        .u32(state.frames)
                        .u64(state.hash.0);
                }
                out
            }
            Self::Read { request, result } => {
                let mut out = Encoder::new(70, *request);
                put_result(&mut out, result);
                if let Ok(batches) = result {
                    out.chunk(batches.clone());
                }
                out
            }
            Self::Frames { request, result } => {
                let mut out = Encoder::new(71, *request);
                put_result(&mut out, result);
                if let Ok(frames) = result {
                    put_frames(&mut out, frames);
                }
                out
            }
            Self::Headers { request, result } => {
                let mut out = Encoder::new(72, *request);
                put_result(&mut out, result);
                if let Ok(headers) = result {
                    out.u8(headers.state_kind)
                        .u64(headers.state_at.0)
                        .len(headers.state.len());
                    out.chunk(headers.state.clone()).chunk(headers.headers.clone());
                }
                out
            }
            Self::Lookup { request, result } => {
                let mut out = Encoder::new(73, *request);
                put_result(&mut out, result);
                if let Ok(found) = result {
                    out.u8(u8::from(found.is_some())).u64(found.unwrap_or_default().0);
                }
                out
            }
            Self::Confirm { request, open } => {
                let mut out = Encoder::new(74, *request);
                out.len(open.len());
                for one in open {
                    out.u8(u8::from(*one));
                }
                out
            }
            Self::Uploaded { request, result } => {
                let mut out = Encoder::new(75, *request);
                put_result(&mut out, result);
                if let Ok(uploaded) = result {
                    out.u64(uploaded.object_len)
                        .u64(uploaded.position)
                        .u64(uploaded.len)
                        .u32(uploaded.crc32c)
                        .i64(uploaded.max_timestamp_ms)
                        .u32(uploaded.footer_crc32c);
                }
                out
            }
            Self::Surveyed { request, found } => {
                let mut out = Encoder::new(87, *request);
                out.len(found.len());
                for one in found {
                    out.u8(u8::from(one.is_some()))
                        .u8(u8::from(one.is_some_and(|one| one.sound)))
                        .u64(one.map_or(0, |one| one.tail.0));
                }
                out
            }
            Self::Missing { request, result } => {
                let mut out = Encoder::new(89, *request);
                put_result(&mut out, result);
                if let Ok(missing) = result {
                    out.u64(missing.tail.0).len(missing.ranges.len());
                    for (base, end) in &missing.ranges {
                        out.u64(base.0).u64(end.0);
                    }
                }
                out
            }
            Self::Copied { request, result } => {
                let mut out = Encoder::new(88, *request);
                put_result(&mut out, result);
                if let Ok(copied) = result {
                    out.u32(copied.frames).u64(copied.tail.0);
                }
                out
            }
            Self::Urge(segments) => segments_message(76, segments),
            Self::Damaged(segments) => segments_message(90, segments),
        }
    }

    fn decode(kind: u8, id: u64, body: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, body);
        let r = &mut reader;
        let message = match kind {
            65 => Self::Welcome {
                node: NodeId(r.u32("node")?),
                generation: Generation(r.u32("generation")?),
                boot: r.u64("boot")?,
            },
            66 => Self::Refused(r.string("reason")?),
            67 => {
                let queue_delay_us = r.u32("queue delay")?;
                Self::Acks {
                    acks: items(r, 28, ack)?,
                    queue_delay_us,
                }
            }
            68 => Self::NotTaken {
                segment: segment(r)?,
                number: r.u32("number")?,
                refusal: refusal(r)?,
            },
            69 => Self::Fenced {
                request: id,
                states: items(r, 45, fenced_state)?,
            },
            70 => Self::Read {
                request: id,
                result: result(r, |r| Ok(r.rest()))?,
            },
            71 => Self::Frames {
                request: id,
                result: result(r, frames)?,
            },
            72 => Self::Headers {
                request: id,
                result: result(r, headers)?,
            },
            73 => Self::Lookup {
                request: id,
                result: result(r, |r| {
                    let found = flag(r, "found")?;
                    let offset = Offset(r.u64("offset")?);
                    Ok(found.then_some(offset))
                })?,
            },
            74 => Self::Confirm {
                request: id,
                open: items(r, 1, |r| flag(r, "open"))?,
            },
            75 => Self::Uploaded {
                request: id,
                result: result(r, uploaded)?,
            },
            76 => Self::Urge(items(r, 16, segment)?),
            87 => Self::Surveyed {
                request: id,
                found: items(r, 10, surveyed)?,
            },
            89 => Self::Missing {
                request: id,
                result: result(r, missing)?,
            },
            88 => Self::Copied {
                request: id,
                result: result(r, copied)?,
            },
            90 => Self::Damaged(items(r, 16, segment)?),
            other => return Err(WireError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn segments_message(kind: u8, segments: &[SegmentId]) -> Encoder {
    let mut out = Encoder::new(kind, 0);
    out.len(segments.len());
    for segment in segments {
        put_segment(&mut out, *segment);
    }
    out
}

fn ack(reader: &mut Reader) -> Result<Ack, WireError> {
    Ok(Ack {
        segment: segment(reader)?,
        tail: Offset(reader.u64("tail")?),
        frames: reader.u32("frames")?,
    })
}

fn frames(reader: &mut Reader) -> Result<Vec<Frame>, WireError> {
    let headers: Vec<FrameHeader> = items(reader, HEADER_LEN, |r| {
        Ok(FrameHeader::parse(&r.bytes(HEADER_LEN, "frame header")?)?)
    })?;
    headers
        .into_iter()
        .map(|header| {
            let payload = reader.bytes(header.payload_len as usize, "frame payload")?;
            Ok(Frame {
                header,
                payload: vec![payload],
            })
        })
        .collect()
}

fn headers(reader: &mut Reader) -> Result<Headers, WireError> {
    let state_kind = reader.u8("state kind")?;
    let state_at = Offset(reader.u64("state offset")?);
    let state = reader.prefixed("state")?;
    Ok(Headers {
        state_kind,
        state,
        state_at,
        headers: reader.rest(),
    })
}
