//! What is told of takeovers, as the control service puts it on the wire.

use forebay_proto::error::Failure;
use forebay_proto::v1::{self, ErrorCode};
use forebay_record::{Epoch, Offset, PartitionId, SegmentId};

use crate::owners::{Forced, Taking};
use crate::partition::{Awaited, ForcedEnd, Forcing};

fn awaited(one: &Awaited) -> v1::AwaitedNode {
    v1::AwaitedNode {
        node: one.node.0,
        generation: one.generation.0,
        state: one.evidence.name().to_owned(),
        tail: one.tail.map(Offset::get),
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
            replicas: Vec::new(),
            still_possible: None,
        }),
        None => None,
    };
    Ok(Forcing {
        next: request.next.map(Offset),
        force: request.force,
        expected,
    })
}
