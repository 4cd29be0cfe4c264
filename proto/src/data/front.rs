//! Spoken with a broker by proxies: produce, fetch, positions, and plans for reading around it.
//!
//! Every request carries an id and is answered once, in any order; produces of one partition take
//! effect in the order they arrive. The first message is a [`ToBroker::Hello`].

use bytes::Bytes;
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId};
use forebay_runtime::trace::TraceContext;

use super::Message;
use super::wire::{Encoder, Reader, TRACED, WireError};
use crate::error::Failure;
use crate::v1::ErrorCode;

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

fn put_failure(out: &mut Encoder, failure: &Failure) {
    out.u32(u32::try_from(failure.code as i32).unwrap_or_default())
        .prefixed(failure.message.as_bytes());
}

fn put_result<T>(out: &mut Encoder, result: &Result<T, Failure>, put: impl FnOnce(&mut Encoder, &T)) {
    match result {
        Ok(value) => {
            out.u8(0);
            put(out, value);
        }
        Err(failure) => {
            out.u8(1);
            put_failure(out, failure);
        }
    }
}

fn result<T>(
    reader: &mut Reader,
    read: impl FnOnce(&mut Reader) -> Result<T, WireError>,
) -> Result<Result<T, Failure>, WireError> {
    match reader.u8("result")? {
        0 => read(reader).map(Ok),
        1 => {
            let number = reader.u32("error code")?;
            let code = i32::try_from(number)
                .ok()
                .and_then(|number| ErrorCode::try_from(number).ok())
                .ok_or_else(|| reader.value("error code", u64::from(number)))?;
            Ok(Err(Failure::new(code, reader.string("error message")?)))
        }
        other => Err(reader.value("result", u64::from(other))),
    }
}

impl Message for ToBroker {
    const PROTOCOL: u16 = 2;

    fn encode(&self) -> Encoder {
        match self {
            Self::Traced(traced) => traced.1.encode().traced(&traced.0),
            Self::Hello {
                cluster,
                peer,
                broker,
            } => {
                let mut out = Encoder::new(1, 0);
                out.u32(broker.0)
                    .prefixed(cluster.as_bytes())
                    .prefixed(peer.as_bytes());
                out
            }
            Self::Produce(produce) => {
                let mut out = Encoder::new(2, produce.request);
                let acks = match produce.acks {
                    Acks::None => 0,
                    Acks::One => 1,
                    Acks::All => 2,
                };
                out.u64(produce.partition.0)
                    .u32(produce.epoch.0)
                    .u8(acks)
                    .u32(produce.deadline_ms)
                    .chunk(produce.batch.clone());
                out
            }
            Self::Fetch(fetch) => {
                let mut out = Encoder::new(3, fetch.request);
                out.u32(fetch.min_bytes)
                    .u32(fetch.max_bytes)
                    .u32(fetch.max_wait_ms)
                    .len(fetch.partitions.len());
                for one in &fetch.partitions {
                    out.u64(one.partition.0)
                        .u32(one.epoch.0)
                        .u64(one.offset.0)
                        .u32(one.max_bytes);
                }
                out
            }
            Self::CancelFetch(request) => Encoder::new(4, *request),
            Self::Offsets {
                request,
                partition,
                epoch,
                position,
            } => {
                let mut out = Encoder::new(5, *request);
                let kind = match position {
                    Position::Earliest => 0,
                    Position::Latest => 1,
                };
                out.u64(partition.0).u32(epoch.0).u8(kind);
                out
            }
            Self::Plan {
                request,
                partition,
                epoch,
                from,
            } => {
                let mut out = Encoder::new(6, *request);
                out.u64(partition.0).u32(epoch.0).u64(from.0);
                out
            }
            Self::Goodbye => Encoder::new(7, 0),
        }
    }

    fn decode(kind: u8, id: u64, body: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, body);
        if kind & (TRACED | 0x40) == TRACED {
            let context = reader.trace()?;
            let message = Self::decode(kind & !TRACED, id, reader.rest())?;
            return Ok(Self::Traced(Box::new((context, message))));
        }
        let r = &mut reader;
        let message = match kind {
            1 => Self::Hello {
                broker: BrokerId(r.u32("broker")?),
                cluster: r.string("cluster")?,
                peer: r.string("peer")?,
            },
            2 => Self::Produce(Produce {
                request: id,
                partition: PartitionId(r.u64("partition")?),
                epoch: Epoch(r.u32("epoch")?),
                acks: match r.u8("acks")? {
                    0 => Acks::None,
                    1 => Acks::One,
                    2 => Acks::All,
                    other => return Err(r.value("acks", u64::from(other))),
                },
                deadline_ms: r.u32("deadline")?,
                batch: r.rest(),
            }),
            3 => Self::Fetch(fetch(r, id)?),
            4 => Self::CancelFetch(id),
            5 => Self::Offsets {
                request: id,
                partition: PartitionId(r.u64("partition")?),
                epoch: Epoch(r.u32("epoch")?),
                position: match r.u8("position")? {
                    0 => Position::Earliest,
                    1 => Position::Latest,
                    other => return Err(r.value("position", u64::from(other))),
                },
            },
            6 => Self::Plan {
                request: id,
                partition: PartitionId(r.u64("partition")?),
                epoch: Epoch(r.u32("epoch")?),
                from: Offset(r.u64("from")?),
            },
            7 => Self::Goodbye,
            other => return Err(WireError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn fetch(r: &mut Reader, request: u64) -> Result<Fetch, WireError> {
    let (min_bytes, max_bytes, max_wait_ms) = (r.u32("min bytes")?, r.u32("max bytes")?, r.u32("max wait")?);
    let count = r.count(24, "partitions")?;
    if count > FETCH_PARTITIONS_MAX {
        return Err(r.value("partitions", count as u64));
    }
    let mut partitions = Vec::with_capacity(count);
    for _ in 0..count {
        partitions.push(FetchPartition {
            partition: PartitionId(r.u64("partition")?),
            epoch: Epoch(r.u32("epoch")?),
            offset: Offset(r.u64("offset")?),
            max_bytes: r.u32("max bytes")?,
        });
    }
    Ok(Fetch {
        request,
        min_bytes,
        max_bytes,
        max_wait_ms,
        partitions,
    })
}

fn put_fetched(out: &mut Encoder, fetched: &Fetched) {
    out.u64(fetched.high_watermark.0)
        .u64(fetched.log_start.0)
        .u8(u8::from(fetched.behind))
        .len(fetched.batches.iter().map(Bytes::len).sum());
}

fn put_plan(out: &mut Encoder, plan: &ReadPlan) {
    out.u32(plan.epoch.0)
        .u64(plan.log_start.0)
        .u64(plan.high_watermark.0)
        .u8(u8::from(plan.manifest.is_some()));
    if let Some(manifest) = &plan.manifest {
        out.prefixed(manifest.object.as_bytes())
            .u64(manifest.generation)
            .u64(manifest.end.0)
            .u64(manifest.len)
            .u32(manifest.crc32c);
    }
    out.len(plan.runs.len());
    for run in &plan.runs {
        out.u64(run.base.0)
            .u64(run.end.0)
            .prefixed(run.object.as_bytes())
            .u64(run.position)
            .u64(run.len)
            .u32(run.crc32c)
            .i64(run.max_timestamp_ms);
    }
    out.len(plan.segments.len());
    for one in &plan.segments {
        out.u64(one.segment.partition.0)
            .u32(one.segment.epoch.0)
            .u32(one.segment.seq)
            .u64(one.base.0)
            .u64(one.until.0)
            .u8(u8::from(one.sealed))
            .len(one.replicas.len());
        for (node, generation) in &one.replicas {
            out.u32(node.0).u32(generation.0);
        }
    }
    out.len(plan.gaps.len());
    for (base, end) in &plan.gaps {
        out.u64(base.0).u64(end.0);
    }
}

impl Message for FromBroker {
    const PROTOCOL: u16 = 2;

    fn encode(&self) -> Encoder {
        match self {
            Self::Welcome { broker, session } => {
                let mut out = Encoder::new(65, 0);
                out.u32(broker.0).u64(session.0);
                out
            }
            Self::Refused(reason) => {
                let mut out = Encoder::new(66, 0);
                out.prefixed(reason.as_bytes());
                out
            }
            Self::Produced { request, result } => {
                let mut out = Encoder::new(67, *request);
                put_result(&mut out, result, |out, offset| {
                    out.u64(offset.0);
                });
                out
            }
            Self::Fetched { request, partitions } => {
                let mut out = Encoder::new(68, *request);
                out.len(partitions.len());
                for one in partitions {
                    put_result(&mut out, one, put_fetched);
                }
                for batch in partitions.iter().flatten().flat_map(|one| &one.batches) {
                    out.chunk(batch.clone());
                }
                out
            }
            Self::Offsets { request, result } => {
                let mut out = Encoder::new(69, *request);
                put_result(&mut out, result, |out, offset| {
                    out.u8(u8::from(offset.is_some()))
                        .u64(offset.unwrap_or_default().0);
                });
                out
            }
            Self::Plan { request, result } => {
                let mut out = Encoder::new(70, *request);
                put_result(&mut out, result, put_plan);
                out
            }
            Self::Leaving => Encoder::new(71, 0),
        }
    }

    fn decode(kind: u8, id: u64, body: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(kind, body);
        let r = &mut reader;
        let message = match kind {
            65 => Self::Welcome {
                broker: BrokerId(r.u32("broker")?),
                session: SessionId(r.u64("session")?),
            },
            66 => Self::Refused(r.string("reason")?),
            67 => Self::Produced {
                request: id,
                result: result(r, |r| Ok(Offset(r.u64("offset")?)))?,
            },
            68 => Self::Fetched {
                request: id,
                partitions: fetched(r)?,
            },
            69 => Self::Offsets {
                request: id,
                result: result(r, |r| {
                    let some = r.u8("found")? == 1;
                    let offset = Offset(r.u64("offset")?);
                    Ok(some.then_some(offset))
                })?,
            },
            70 => Self::Plan {
                request: id,
                result: result(r, plan)?,
            },
            71 => Self::Leaving,
            other => return Err(WireError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn fetched(r: &mut Reader) -> Result<Vec<Result<Fetched, Failure>>, WireError> {
    let count = r.count(5, "partitions")?;
    let mut partitions = Vec::with_capacity(count);
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        let one = result(r, |r| {
            let fetched = Fetched {
                high_watermark: Offset(r.u64("high watermark")?),
                log_start: Offset(r.u64("log start")?),
                batches: Vec::new(),
                behind: r.u8("behind")? == 1,
            };
            Ok((fetched, r.u32("length")? as usize))
        })?;
        lengths.push(one.as_ref().map_or(0, |(_, len)| *len));
        partitions.push(one.map(|(fetched, _)| fetched));
    }
    for (one, len) in partitions.iter_mut().zip(lengths) {
        if let Ok(fetched) = one
            && len > 0
        {
            fetched.batches.push(r.bytes(len, "batches")?);
        }
    }
    Ok(partitions)
}

fn plan(r: &mut Reader) -> Result<ReadPlan, WireError> {
    let mut plan = ReadPlan {
        epoch: Epoch(r.u32("epoch")?),
        log_start: Offset(r.u64("log start")?),
        high_watermark: Offset(r.u64("high watermark")?),
        manifest: None,
        runs: Vec::new(),
        segments: Vec::new(),
        gaps: Vec::new(),
    };
    plan.manifest = match r.u8("manifest")? {
        0 => None,
        1 => Some(PlanManifest {
            object: r.string("object")?,
            generation: r.u64("generation")?,
            end: Offset(r.u64("end")?),
            len: r.u64("length")?,
            crc32c: r.u32("checksum")?,
        }),
        other => return Err(r.value("manifest", u64::from(other))),
    };
    let count = r.count(48, "runs")?;
    for _ in 0..count {
        plan.runs.push(PlanRun {
            base: Offset(r.u64("base")?),
            end: Offset(r.u64("end")?),
            object: r.string("object")?,
            position: r.u64("position")?,
            len: r.u64("length")?,
            crc32c: r.u32("checksum")?,
            max_timestamp_ms: r.i64("timestamp")?,
        });
    }
    let count = r.count(37, "segments")?;
    for _ in 0..count {
        let segment = SegmentId {
            partition: PartitionId(r.u64("partition")?),
            epoch: Epoch(r.u32("epoch")?),
            seq: r.u32("seq")?,
        };
        let (base, until) = (Offset(r.u64("base")?), Offset(r.u64("until")?));
        let sealed = r.u8("sealed")? == 1;
        let replicas = r.count(8, "replicas")?;
        let replicas = (0..replicas)
            .map(|_| Ok((NodeId(r.u32("node")?), Generation(r.u32("generation")?))))
            .collect::<Result<_, WireError>>()?;
        plan.segments.push(PlanSegment {
            segment,
            base,
            until,
            sealed,
            replicas,
        });
    }
    let count = r.count(16, "gaps")?;
    for _ in 0..count {
        plan.gaps.push((Offset(r.u64("base")?), Offset(r.u64("end")?)));
    }
    Ok(plan)
}
