//! What is told of takeovers, as the control service puts it on the wire.

use forebay_proto::error::Failure;
use forebay_proto::v1::{self, ErrorCode};
use forebay_record::{Epoch, NodeId, Offset, PartitionId, SegmentId};

use crate::owners::{Declared, Forced, Taking};
use crate::partition::{Awaited, Declaring, ForcedEnd, Forcing, Lost, LostSegment};

fn awaited(one: &Awaited) -> v1::AwaitedNode {
    v1::AwaitedNode {
        node: one.node.0,
        generation: one.generation.0,
        state: one.evidence.name().to_owned(),
        tail: one.tail.map(Offset::get),
        frames: one.said.map(|said| said.frames),
        hash: one.said.map(|said| said.hash.0),
        committed: one.said.map(|said| said.committed.0),
    }
}

/// Where a takeover is.
pub fn recovery(taking: &Taking) -> v1::RecoveryDescription {
    v1::RecoveryDescription {
        step: taking.recovering.step.to_owned(),
        waits_for: taking.recovering.waits_for.clone(),
        nodes: taking.recovering.nodes.iter().map(awaited).collect(),
        for_ms: taking.for_ms,
    }
}

/// The same with the partition, whose topic only its id names.
pub fn recovering(taking: &Taking) -> v1::RecoveringPartition {
    v1::RecoveringPartition {
        topic: String::new(),
        topic_id: bytes::Bytes::copy_from_slice(taking.topic.as_bytes()),
        partition: taking.number,
        partition_id: taking.partition.0,
        recovery: Some(recovery(taking)),
    }
}

/// How a segment ended by force, or would.
pub fn forced(forced: Forced) -> v1::ForceSealResponse {
    let Forced { end, done } = forced;
    v1::ForceSealResponse {
        end: Some(v1::ForcedEnd {
            partition_id: end.segment.partition.0,
            epoch: end.segment.epoch.0,
            seq: end.segment.seq,
            base: end.base.0,
            committed: end.committed.0,
            end: end.end.0,
            next: end.next.0,
            replicas: end.replicas.iter().map(awaited).collect(),
            still_possible: end.still_possible.unwrap_or_default(),
            lost: end.lost.iter().map(range).collect(),
            trusted: end.trusted.map(|node| node.0),
            state_only: end.state_only,
        }),
        done,
    }
}

/// What is wanted of a partition.
pub fn forcing(request: &v1::ForceSealPartitionRequest) -> Result<Forcing, Failure> {
    let id = request.partition_id;
    let expected = match &request.expected {
        Some(expected) if expected.partition_id != id => {
            let found = expected.partition_id;
            let what = format!("what is expected is of partition {found}, and partition {id} is named");
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        Some(expected) => Some(ForcedEnd {
            segment: SegmentId {
                partition: PartitionId(id),
                epoch: Epoch(expected.epoch),
                seq: expected.seq,
            },
            base: Offset(expected.base),
            committed: Offset(expected.committed),
            end: Offset(expected.end),
            next: Offset(expected.next),
            lost: ranges(&expected.lost),
            trusted: expected.trusted.map(NodeId),
            state_only: expected.state_only,
            replicas: Vec::new(),
            still_possible: None,
        }),
        None => None,
    };
    Ok(Forcing {
        next: request.next.map(Offset),
        force: request.force,
        trust: request.trust.map(NodeId),
        expected,
    })
}

const fn range(range: &(Offset, Offset)) -> v1::OffsetRange {
    v1::OffsetRange {
        base: range.0.0,
        end: range.1.0,
    }
}

fn ranges(ranges: &[v1::OffsetRange]) -> Vec<(Offset, Offset)> {
    ranges
        .iter()
        .map(|range| (Offset(range.base), Offset(range.end)))
        .collect()
}

/// What of sealed segments was declared lost, or would be.
pub fn declared(declared: Declared) -> v1::DeclareLostResponse {
    let segment = |one: LostSegment| v1::LostSegment {
        epoch: one.segment.epoch.0,
        seq: one.segment.seq,
        base: one.base.0,
        end: one.end.0,
        lost: one.ranges.iter().map(range).collect(),
        replicas: one.replicas.iter().map(awaited).collect(),
    };
    v1::DeclareLostResponse {
        segments: declared.lost.segments.into_iter().map(segment).collect(),
        still_possible: declared.lost.still_possible.unwrap_or_default(),
        done: declared.done,
    }
}

/// What is wanted of a partition's sealed segments.
pub fn declaring(request: &v1::DeclareLostPartitionRequest) -> Declaring {
    let segment = |one: &v1::LostSegment| LostSegment {
        segment: SegmentId {
            partition: PartitionId(request.partition_id),
            epoch: Epoch(one.epoch),
            seq: one.seq,
        },
        base: Offset(one.base),
        end: Offset(one.end),
        ranges: ranges(&one.lost),
        replicas: Vec::new(),
    };
    let expected = Lost {
        segments: request.expected.iter().map(segment).collect(),
        still_possible: None,
    };
    Declaring {
        force: request.force,
        expected: Some(expected).filter(|expected| !expected.segments.is_empty()),
    }
}
