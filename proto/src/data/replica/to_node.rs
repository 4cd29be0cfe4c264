//! Requests as bytes.

use bytes::Bytes;
use forebay_record::{Epoch, Generation, NodeId, Offset, SessionId, Token};
use uuid::Uuid;

use super::parts::{flag, frame, frames, items, put_frame, put_frames, put_segment, segment};
use super::{
    CopyRequest, FenceItem, FramesRequest, HeadersRequest, Hello, MissingRequest, ReadRequest, SealedRequest,
    ToNode, UploadRequest,
};
use crate::data::Message;
use crate::data::wire::{Encoder, Reader, TRACED, WireError};

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

fn fence_item(reader: &mut Reader) -> Result<FenceItem, WireError> {
    Ok(FenceItem {
        segment: segment(reader)?,
        generation: Generation(reader.u32("generation")?),
        token: Token(reader.u64("token")?),
        base: Offset(reader.u64("base")?),
        by: Epoch(reader.u32("by")?),
    })
}
