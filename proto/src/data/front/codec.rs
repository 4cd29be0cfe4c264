//! The bytes of the front protocol's messages.

use bytes::Bytes;
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId};

use super::{
    Acks, FETCH_PARTITIONS_MAX, Fetch, FetchPartition, Fetched, FromBroker, PlanManifest, PlanRun,
    PlanSegment, Position, Produce, ReadPlan, ToBroker,
};
use crate::data::Message;
use crate::data::wire::{Encoder, Reader, TRACED, WireError};
use crate::error::Failure;
use crate::v1::ErrorCode;

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
