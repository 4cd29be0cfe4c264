//! Parts that messages of both directions are made of.

use forebay_record::frame::{Frame, FrameHeader, HEADER_LEN};
use forebay_record::{Epoch, PartitionId, SegmentId};

use super::ITEMS_MAX;
use crate::data::wire::{Encoder, Reader, WireError};

pub(super) fn put_segment(out: &mut Encoder, segment: SegmentId) {
    out.u64(segment.partition.0).u32(segment.epoch.0).u32(segment.seq);
}

pub(super) fn segment(reader: &mut Reader) -> Result<SegmentId, WireError> {
    Ok(SegmentId {
        partition: PartitionId(reader.u64("partition")?),
        epoch: Epoch(reader.u32("epoch")?),
        seq: reader.u32("seq")?,
    })
}

pub(super) fn put_frame(out: &mut Encoder, frame: &Frame) {
    out.raw(&frame.header.encode());
    for chunk in &frame.payload {
        out.chunk(chunk.clone());
    }
}

/// Headers first, then what they head.
pub(super) fn put_frames(out: &mut Encoder, frames: &[Frame]) {
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
pub(super) fn frame(reader: &mut Reader) -> Result<Frame, WireError> {
    let header = FrameHeader::parse(&reader.bytes(HEADER_LEN, "frame header")?)?;
    let payload = reader.bytes(header.payload_len as usize, "frame payload")?;
    Ok(Frame {
        header,
        payload: vec![payload],
    })
}

pub(super) fn items<T>(
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

pub(super) fn flag(reader: &mut Reader, field: &'static str) -> Result<bool, WireError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.value(field, u64::from(other))),
    }
}

pub(super) fn frames(reader: &mut Reader) -> Result<Vec<Frame>, WireError> {
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
