//! What the tests of this crate write: batches, and the frames of one segment in their order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use bytes::Bytes;
use forebay_record::frame::{ChainHash, Frame, FrameKind, FrameSpec};
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, Token};

use crate::content::CheckedFrame;

pub(crate) const NODE: NodeId = NodeId(3);
pub(crate) const GENERATION: Generation = Generation(1);

/// A batch header with the fields that a node reads, and a body that depends on them.
pub(crate) fn batch(base: u64, records: u32, max_timestamp_ms: i64) -> Vec<u8> {
    batch_of_len(base, records, max_timestamp_ms, 20 + (base % 50) as usize)
}

pub(crate) fn batch_of_len(base: u64, records: u32, max_timestamp_ms: i64, body: usize) -> Vec<u8> {
    let mut out = vec![0; 61];
    out[..8].copy_from_slice(&base.to_be_bytes());
    out[8..12].copy_from_slice(&((49 + body) as i32).to_be_bytes());
    out[16] = 2;
    out[23..27].copy_from_slice(&(records as i32 - 1).to_be_bytes());
    out[35..43].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    out.extend((0..body).map(|at| (base as usize * 7 + at) as u8));
    out
}

/// The writer of one segment.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub segment: SegmentId,
    pub token: Token,
    pub next: Offset,
    pub hash: ChainHash,
    pub number: u32,
    pub committed: Offset,
}

pub(crate) fn segment(seq: u32) -> SegmentId {
    SegmentId {
        partition: PartitionId(7),
        epoch: Epoch(2),
        seq,
    }
}

impl Writer {
    pub fn new(seq: u32, base: u64) -> Self {
        let segment = segment(seq);
        Self {
            segment,
            token: Token(100 + u64::from(seq)),
            next: Offset(base),
            hash: ChainHash::seed(segment),
            number: 0,
            committed: Offset(base),
        }
    }

    pub fn spec(&self, kind: FrameKind, records: u64, batches: u32) -> FrameSpec {
        FrameSpec {
            kind,
            batches,
            segment: self.segment,
            token: self.token,
            first: self.next,
            end: Offset(self.next.0 + records),
            prev_hash: self.hash,
            number: self.number,
            committed: self.committed,
        }
    }

    pub fn push(&mut self, spec: FrameSpec, payload: Vec<Bytes>) -> Frame {
        let frame = Frame::new(spec, payload).unwrap();
        self.next = frame.header.end;
        self.hash = frame.header.hash();
        self.number += 1;
        frame
    }

    pub fn open(&mut self) -> Frame {
        let open = OpenPayload {
            base: self.next,
            created_ms: 0,
            ack_quorum: 2,
            replicas: vec![
                (NODE, GENERATION),
                (NodeId(4), GENERATION),
                (NodeId(5), GENERATION),
            ],
            state: PartitionState::default(),
        };
        self.push(self.spec(FrameKind::Open, 0, 0), vec![open.encode().into()])
    }

    pub fn data(&mut self, records: u32) -> Frame {
        self.data_of_len(records, 20 + (self.next.0 % 50) as usize)
    }

    pub fn data_of_len(&mut self, records: u32, body: usize) -> Frame {
        let timestamp_ms = self.next.0 as i64 * 10;
        let batch = batch_of_len(self.next.0, records, timestamp_ms, body);
        self.push(
            self.spec(FrameKind::Data, u64::from(records), 1),
            vec![batch.into()],
        )
    }

    /// A frame of these batches, right or not.
    pub fn data_of(&mut self, payload: Vec<Bytes>, batches: u32, end: u64) -> Frame {
        let spec = self.spec(FrameKind::Data, end - self.next.0, batches);
        self.push(spec, payload)
    }

    pub fn state(&mut self) -> Frame {
        let state = PartitionState {
            epochs: vec![(Epoch(2), self.next)],
            producers: vec![],
        };
        self.push(self.spec(FrameKind::State, 0, 0), vec![state.encode().into()])
    }
}

pub(crate) fn checked(frame: Frame) -> CheckedFrame {
    CheckedFrame::new(frame).unwrap()
}
