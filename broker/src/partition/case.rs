//! What directed tests of an owner begin with: one partition, three storage nodes, a clock that stands.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use forebay_meta::model::{Partition, Segment};
use forebay_proto::data::front::Acks;
use forebay_record::batch::{Builder, Codec};
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use uuid::Uuid;

use super::action::{Action, Context, NodeView, Nodes, Produce, Stored, Ticket};
use super::owner::{Config, Owner};
use super::placement;

/// Storage nodes 1, 2 and 3, connected and well.
pub(super) fn three_nodes() -> Nodes {
    nodes(3)
}

/// So many of them.
pub(super) fn nodes(count: u32) -> Nodes {
    let view = NodeView {
        generation: Generation(1),
        zone: String::new(),
        usable: true,
        connected: true,
        leaving: false,
        frame_bytes_max: None,
        heard_ms: 0,
    };
    (1..=count).map(|node| (NodeId(node), view.clone())).collect()
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
        steady_ms: 0,
        nonce: 7 + now_ms,
        out,
    }
}

/// An owner that serves a new partition.
pub(super) struct Serving {
    pub owner: Owner,
    pub nodes: Nodes,
    pub now_ms: u64,
    pub steady_ms: u64,
}

impl Serving {
    pub(super) fn new(nodes: Nodes, config: Config) -> Self {
        let record = Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(1), 1)
            .unwrap();
        let mut out = Vec::new();
        let owner = Owner::new(config, BrokerId(1), record, 10, &mut context(&nodes, 0, &mut out));
        assert!(owner.is_serving());
        Self {
            owner,
            nodes,
            now_ms: 1,
            steady_ms: 0,
        }
    }

    pub(super) fn act(&mut self, act: impl FnOnce(&mut Owner, &mut Context<'_>)) -> Vec<Action> {
        let mut out = Vec::new();
        let mut ctx = context(&self.nodes, self.now_ms, &mut out);
        ctx.steady_ms = self.steady_ms;
        act(&mut self.owner, &mut ctx);
        out
    }

    /// Produces batches that arrive together; tickets are their numbers.
    pub(super) fn produce(&mut self, lens: &[usize]) -> Vec<Action> {
        let batches: Vec<_> = (1..)
            .map(Ticket)
            .zip(lens.iter().map(|len| batch(*len)))
            .collect();
        self.act(|owner, ctx| {
            for (ticket, batch) in batches {
                let produce = Produce {
                    ticket,
                    epoch: Epoch(0),
                    acks: Acks::All,
                    deadline_ms: 5_000,
                    batch,
                    traced: false,
                };
                owner.on_produce(produce, ctx);
            }
            owner.flush(ctx);
        })
    }

    /// The change of the record that is asked for is stored.
    pub(super) fn stored(&mut self) -> Vec<Action> {
        self.act(|owner, ctx| owner.on_stored(Stored::Done(11), ctx))
    }
}

/// A batch of exactly this length.
fn batch(len: usize) -> Bytes {
    let of = |value: usize| {
        let mut builder = Builder::new(Codec::None, 64);
        builder
            .append(5, None, Some(&vec![7; value]), &[] as &[(&str, Option<&[u8]>)])
            .unwrap();
        builder.finish(None).unwrap()
    };
    let batch = of(len - (of(len).len() - len));
    assert_eq!(batch.len(), len);
    batch
}
