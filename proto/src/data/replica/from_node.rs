//! Answers as bytes.

use bytes::Bytes;
use forebay_record::frame::ChainHash;
use forebay_record::{Epoch, Generation, NodeId, Offset, SegmentId};

use super::parts::{flag, frames, items, put_frames, put_segment, segment};
use super::{Ack, Copied, FencedState, FromNode, Headers, Missing, NodeFailure, Refusal, Surveyed, Uploaded};
use crate::data::Message;
use crate::data::wire::{Encoder, Reader, WireError};

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
        Err(NodeFailure::TooLarge(bytes_max)) => (9, *bytes_max),
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
        9 => NodeFailure::TooLarge(detail),
        other => return Err(reader.value("result", u64::from(other))),
    }))
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
