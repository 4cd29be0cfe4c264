//! Losses of sealed segments: who is asked, what counts as lost, what an operator's word changes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_meta::model::{Partition, Sealed, Segment};
use forebay_proto::data::replica::{Headers, Missing, NodeFailure};
use forebay_record::frame::FrameKind;
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId};
use uuid::Uuid;

use super::action::{Action, Context, Nodes, Stored};
use super::case::{context, open_segment, three_nodes};
use super::loss::{DeclareRefused, Declaring, Lost};
use super::owner::{Config, Owner};

fn id(seq: u32) -> SegmentId {
    SegmentId {
        partition: PartitionId(1),
        epoch: Epoch(1),
        seq,
    }
}

fn segment(seq: u32, base: u64) -> Segment {
    open_segment(id(seq), u64::from(seq), base)
}

/// Serves a partition with sealed segments 0..10 and 10..20 on nodes 1, 2 and 3.
struct Case {
    owner: Owner,
    nodes: Nodes,
    now_ms: u64,
    out: Vec<Action>,
}

impl Case {
    fn new() -> Self {
        let sealed = Sealed::default();
        let record = Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(1), 1)
            .unwrap()
            .open_first(segment(1, 0), 2)
            .unwrap()
            .seal(Offset(10), sealed, Some(segment(2, 10)), 3)
            .unwrap()
            .seal(Offset(20), sealed, None, 4)
            .unwrap()
            .grant(BrokerId(2), SessionId(2), 5)
            .unwrap();
        let nodes = three_nodes();
        let mut out = Vec::new();
        let config = Config {
            offload: true,
            ..Config::default()
        };
        let owner = Owner::new(config, BrokerId(2), record, 10, &mut context(&nodes, 0, &mut out));
        let mut case = Self {
            owner,
            nodes,
            now_ms: 0,
            out,
        };
        let open = OpenPayload {
            base: Offset(10),
            created_ms: 0,
            ack_quorum: 2,
            replicas: Vec::new(),
            state: PartitionState::default(),
        };
        let headers = Headers {
            state_kind: FrameKind::Open as u8,
            state: open.encode().into(),
            state_at: Offset(10),
            headers: bytes::Bytes::new(),
        };
        case.act(|owner, ctx| owner.on_headers(NodeId(1), id(2), Ok(headers), ctx));
        assert!(case.owner.is_serving());
        case.pass(10);
        case
    }

    fn act<T>(&mut self, act: impl FnOnce(&mut Owner, &mut Context<'_>) -> T) -> T {
        act(
            &mut self.owner,
            &mut context(&self.nodes, self.now_ms, &mut self.out),
        )
    }

    fn pass(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now_ms += 1_000;
            self.act(|owner, ctx| owner.on_tick(ctx));
        }
    }

    fn damaged(&mut self, seq: u32, node: u32) {
        self.act(|owner, ctx| owner.on_damaged(id(seq), NodeId(node), ctx));
    }

    fn asked(&mut self, seq: u32) -> Vec<u32> {
        let of = |action: Action| match action {
            Action::FindMissing { node, request } if request.segment == id(seq) => Some(node.0),
            _ => None,
        };
        self.out.drain(..).filter_map(of).collect()
    }

    fn misses(&mut self, seq: u32, node: u32, ranges: &[(u64, u64)]) {
        let missing = Missing {
            tail: Offset(20),
            ranges: offsets(ranges),
        };
        self.act(|owner, ctx| owner.on_missing(NodeId(node), id(seq), Ok(missing), ctx));
    }

    fn plan(&self) -> Result<Lost, DeclareRefused> {
        self.owner.plan_declare_lost(&self.nodes)
    }

    fn declare(&mut self, expected: &Lost, force: bool) -> Result<Lost, DeclareRefused> {
        let declaring = Declaring {
            force,
            expected: Some(expected.clone()),
        };
        self.act(|owner, ctx| owner.on_declare_lost(&declaring, ctx))
    }

    fn stored(&mut self) -> usize {
        let stores = self
            .out
            .drain(..)
            .filter(|action| matches!(action, Action::Store(_)));
        stores.count()
    }
}

fn offsets(ranges: &[(u64, u64)]) -> Vec<(Offset, Offset)> {
    ranges
        .iter()
        .map(|(base, end)| (Offset(*base), Offset(*end)))
        .collect()
}

#[test]
fn only_what_no_replica_can_read_is_lost() {
    let mut case = Case::new();
    assert_eq!(case.plan(), Err(DeclareRefused::Nothing(PartitionId(1))));
    case.damaged(1, 1);
    case.damaged(1, 2);
    case.pass(2);
    assert_eq!(case.asked(1), Vec::<u32>::new(), "node 3 has all of it");
    case.damaged(1, 3);
    case.pass(2);
    assert_eq!(case.asked(1), [1, 2, 3]);
    case.misses(1, 1, &[(2, 5)]);
    case.misses(1, 2, &[(4, 8)]);
    let early = case.plan().unwrap();
    assert!(early.still_possible.as_ref().unwrap().contains("n3"), "{early:?}");
    assert!(early.segments.is_empty());
    let failed = Err(NodeFailure::Overloaded);
    case.act(|owner, ctx| owner.on_missing(NodeId(3), id(1), failed, ctx));
    case.pass(11);
    assert_eq!(case.asked(1), [3], "it is asked again");
    case.misses(1, 3, &[(0, 1), (4, 5), (9, 10)]);
    let planned = case.plan().unwrap();
    assert_eq!(planned.segments[0].ranges, offsets(&[(4, 5)]));
    assert_eq!(planned.still_possible, None);
    let mut other = planned.clone();
    other.segments[0].ranges = offsets(&[(4, 6)]);
    assert_eq!(
        case.declare(&other, true),
        Err(DeclareRefused::Changed(PartitionId(1)))
    );
    case.declare(&planned, false).unwrap();
    assert!(case.owner.is_declaring());
    assert_eq!(case.stored(), 1);
    // Somebody was faster: it is declared on the record as it is then.
    let mut found = case.owner.record().clone();
    found.op = 99;
    case.act(|owner, ctx| owner.on_stored(Stored::Conflict(Box::new(found), 12), ctx));
    assert_eq!(case.stored(), 1);
    case.act(|owner, ctx| owner.on_stored(Stored::Done(13), ctx));
    assert!(!case.owner.is_declaring());
    let record = case.owner.record();
    assert_eq!(record.pieces(Offset(0), Offset(20)), offsets(&[(0, 4), (5, 20)]));
    assert!(
        record.gaps[0].reason.contains("by an operator"),
        "{:?}",
        record.gaps
    );
    assert_eq!(case.plan(), Err(DeclareRefused::Nothing(PartitionId(1))));
}

#[test]
fn a_segment_without_a_copy_leaves_the_chain_and_the_next_one_is_offloaded() {
    let mut case = Case::new();
    case.nodes.remove(&NodeId(2));
    case.nodes.get_mut(&NodeId(3)).unwrap().generation = Generation(2);
    case.nodes.get_mut(&NodeId(1)).unwrap().connected = false;
    case.pass(2);
    let planned = case.plan().unwrap();
    assert_eq!(planned.segments.len(), 2);
    assert!(matches!(
        case.declare(&planned, false),
        Err(DeclareRefused::StillPossible(..))
    ));
    // It comes back with the second segment only.
    case.nodes.get_mut(&NodeId(1)).unwrap().connected = true;
    case.act(|owner, ctx| owner.on_connected(NodeId(1), Generation(1), ctx));
    case.pass(2);
    case.damaged(1, 1);
    case.pass(1);
    assert_eq!(case.asked(1), [1]);
    case.misses(1, 1, &[(0, 10)]);
    let planned = case.plan().unwrap();
    assert_eq!(planned.segments.len(), 1);
    assert_eq!(planned.still_possible, None);
    case.declare(&planned, false).unwrap();
    assert_eq!(case.stored(), 1);
    // The copy of the first segment, that was asked for before, has failed.
    case.act(|owner, ctx| owner.on_stored(Stored::Done(13), ctx));
    assert_eq!(case.owner.record().chain.len(), 1);
    case.act(|owner, ctx| owner.on_offloaded(id(1), None, ctx));
    case.pass(70);
    let mut offloads = case.out.iter().filter_map(|action| match action {
        Action::Offload { segment, piece, .. } => Some((segment.id, *piece)),
        _ => None,
    });
    assert_eq!(offloads.next_back(), Some((id(2), (Offset(10), Offset(20)))));
}

#[test]
fn a_replica_that_never_had_a_frame_keeps_nothing_from_being_declared_lost() {
    let mut case = Case::new();
    case.nodes.remove(&NodeId(2));
    case.nodes.get_mut(&NodeId(3)).unwrap().generation = Generation(2);
    case.act(|owner, ctx| owner.on_surveyed(NodeId(1), id(1), None, ctx));
    case.pass(2);
    assert_eq!(case.asked(1), [1]);
    let early = case.plan().unwrap();
    assert!(early.still_possible.as_ref().unwrap().contains("n1"), "{early:?}");
    let absent = Err(NodeFailure::NotFound);
    case.act(|owner, ctx| owner.on_missing(NodeId(1), id(1), absent, ctx));
    let planned = case.plan().unwrap();
    assert_eq!(planned.segments.len(), 1);
    assert_eq!(planned.segments[0].ranges, offsets(&[(0, 10)]));
    assert_eq!(planned.still_possible, None);
    case.declare(&planned, false).unwrap();
    assert_eq!(case.stored(), 1);
}
