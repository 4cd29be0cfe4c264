//! What directed tests of an owner begin with: one partition, three storage nodes, a clock that stands.

use forebay_meta::model::Segment;
use forebay_record::{Generation, NodeId, Offset, SegmentId, Token};

use super::action::{Action, Context, NodeView, Nodes};
use super::placement;

/// Storage nodes 1, 2 and 3, connected and well.
pub(super) fn three_nodes() -> Nodes {
    let view = NodeView {
        generation: Generation(1),
        zone: String::new(),
        usable: true,
        connected: true,
        leaving: false,
        frame_bytes_max: None,
    };
    (1..=3).map(|node| (NodeId(node), view.clone())).collect()
}

/// An open segment on them, of which two acknowledge.
pub(super) fn open_segment(id: SegmentId, token: u64, base: u64) -> Segment {
    Segment {
        id,
        token: Token(token),
        base: Offset(base),
        end: None,
        ack_quorum: 2,
        replicas: (1..=3).map(|node| (NodeId(node), Generation(1))).collect(),
        bytes: 0,
        sealed_ms: 0,
    }
}

/// What an owner acts in.
pub(super) fn context<'a>(nodes: &'a Nodes, now_ms: u64, out: &'a mut Vec<Action>) -> Context<'a> {
    Context {
        now_ms,
        wall_ms: 77,
        nodes,
        least_frame: placement::least_frame(nodes),
        meta_healthy: true,
        meta_revision: 10,
        nonce: 7 + now_ms,
        out,
    }
}
