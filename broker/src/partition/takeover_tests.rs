//! The hard cases of a takeover, one by one: who counts as a witness of what is not there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_meta::model::{Partition, Sealed};
use forebay_proto::data::replica::{FencedState, NodeFailure};
use forebay_record::frame::ChainHash;
use forebay_record::{BrokerId, Epoch, NodeId, Offset, PartitionId, SegmentId, SessionId};
use uuid::Uuid;

use super::action::{Action, Context, Nodes};
use super::case::{context, open_segment, three_nodes};
use super::owner::{Config, Owner};

const SEGMENT: SegmentId = SegmentId {
    partition: PartitionId(1),
    epoch: Epoch(1),
    seq: 1,
};

/// A new owner of a partition whose open segment lies on nodes 1, 2 and 3.
struct Case {
    owner: Owner,
    nodes: Nodes,
    now_ms: u64,
}

impl Case {
    fn new() -> Self {
        let segment = open_segment(SEGMENT, 5, 0);
        let record = Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(1), 1)
            .unwrap()
            .open_first(segment, 2)
            .unwrap()
            .grant(BrokerId(2), SessionId(2), 3)
            .unwrap();
        let nodes = three_nodes();
        let mut out = Vec::new();
        let mut ctx = context(&nodes, 0, &mut out);
        let owner = Owner::new(Config::default(), BrokerId(2), record, 10, &mut ctx);
        assert_eq!(fenced(&out), [1, 2, 3]);
        Self {
            owner,
            nodes,
            now_ms: 0,
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Owner, &mut Context<'_>)) -> Vec<Action> {
        let mut out = Vec::new();
        let mut ctx = context(&self.nodes, self.now_ms, &mut out);
        act(&mut self.owner, &mut ctx);
        out
    }

    fn fenced(&mut self, node: u32, authoritative: bool, committed: u64, tail: u64) -> Vec<Action> {
        let state = FencedState {
            segment: SEGMENT,
            authoritative,
            tail: Offset(tail),
            committed: Offset(committed),
            frames: u32::try_from(tail).unwrap(),
            hash: ChainHash::seed(SEGMENT),
        };
        self.act(|owner, ctx| owner.on_fenced(NodeId(node), state, ctx))
    }

    fn unread(&mut self, node: u32, failure: NodeFailure) -> Vec<Action> {
        self.act(|owner, ctx| owner.on_frames(NodeId(node), SEGMENT, Err(failure), ctx))
    }

    fn stateless(&mut self, node: u32, failure: NodeFailure) -> Vec<Action> {
        self.act(|owner, ctx| owner.on_headers(NodeId(node), SEGMENT, Err(failure), ctx))
    }

    fn later(&mut self) -> Vec<Action> {
        self.after(600)
    }

    fn after(&mut self, ms: u64) -> Vec<Action> {
        self.now_ms += ms;
        self.act(|owner, ctx| owner.on_tick(ctx))
    }
}

fn fenced(actions: &[Action]) -> Vec<u32> {
    let of = |action: &Action| match action {
        Action::Fence { node, .. } => Some(node.0),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn read_from(actions: &[Action]) -> Vec<u32> {
    let of = |action: &Action| match action {
        Action::ReadFrames { node, .. } => Some(node.0),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

/// The carry is decided once the state below it is asked for.
fn loads(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::ReadHeaders { .. }))
}

/// A broker on metadata that was put back must not show the end that they have, before storage nodes,
/// which remember more, had a chance to be there.
#[test]
fn with_nothing_open_the_end_is_shown_only_once_a_close_quorum_of_nodes_is_connected() {
    let record = Partition::new(PartitionId(1), Uuid::nil(), 0)
        .grant(BrokerId(1), SessionId(1), 1)
        .unwrap()
        .open_first(open_segment(SEGMENT, 5, 0), 2)
        .unwrap()
        .seal(Offset(9), Sealed::default(), None, 3)
        .unwrap()
        .grant(BrokerId(2), SessionId(2), 4)
        .unwrap();
    let mut nodes = three_nodes();
    nodes.values_mut().for_each(|view| view.connected = false);
    let mut out = Vec::new();
    let mut ctx = context(&nodes, 0, &mut out);
    let owner = Owner::new(Config::default(), BrokerId(2), record, 10, &mut ctx);
    let mut case = Case {
        owner,
        nodes,
        now_ms: 0,
    };
    for connected in [1, 2] {
        assert!(out.is_empty() && !case.owner.is_serving());
        assert_eq!(case.owner.settled(), Offset(0), "nothing is read meanwhile");
        let waits = case.owner.recovering(&case.nodes).unwrap();
        assert_eq!(waits.step, "WITNESSING");
        case.nodes.get_mut(&NodeId(connected)).unwrap().connected = true;
        out = case.later();
    }
    assert!(loads(&out), "the state is read now");
    assert_eq!(case.owner.settled(), Offset(9));
}

#[test]
fn a_replica_that_may_have_lost_bytes_closes_but_is_no_witness() {
    let mut case = Case::new();
    assert!(case.fenced(1, true, 4, 4).is_empty());
    // Another generation, or limbo: both others must be heard.
    assert!(case.fenced(2, false, 0, 0).is_empty());
    assert_eq!(fenced(&case.later()), [3], "who has not answered is asked again");
    assert!(loads(&case.fenced(3, true, 4, 4)));
}

#[test]
fn with_one_witness_alone_a_takeover_waits_for_as_long_as_it_takes() {
    let mut case = Case::new();
    case.fenced(1, true, 4, 4);
    for _ in 0..500 {
        assert_eq!(fenced(&case.later()), [2, 3]);
    }
    assert!(!case.owner.is_serving());
}

#[test]
fn an_entry_damaged_on_its_only_seen_copy_is_asked_for_at_the_third() {
    let mut case = Case::new();
    case.fenced(1, true, 4, 6);
    assert_eq!(read_from(&case.fenced(2, true, 4, 4)), [1]);
    assert!(
        case.unread(1, NodeFailure::Corrupt).is_empty(),
        "the third is unknown: wait"
    );
    assert_eq!(fenced(&case.later()), [3]);
    // It has a copy.
    case.fenced(3, true, 4, 6);
    assert_eq!(read_from(&case.later()), [1]);
    assert_eq!(read_from(&case.unread(1, NodeFailure::Corrupt)), [3]);
}

#[test]
fn an_entry_damaged_on_one_copy_and_absent_on_both_others_was_never_acknowledged() {
    let mut case = Case::new();
    case.fenced(1, true, 4, 6);
    case.fenced(2, true, 4, 4);
    case.unread(1, NodeFailure::Corrupt);
    case.fenced(3, true, 4, 4);
    case.later();
    assert!(loads(&case.unread(1, NodeFailure::Corrupt)), "the log ends at 4");
}

#[test]
fn a_failure_that_is_no_damage_and_a_third_in_limbo_decide_nothing() {
    for (failure, third) in [(NodeFailure::Failed, true), (NodeFailure::Corrupt, false)] {
        let mut case = Case::new();
        case.fenced(1, true, 4, 6);
        case.fenced(2, true, 4, 4);
        case.fenced(3, third, 4, 4);
        for _ in 0..20 {
            assert!(!loads(&case.unread(1, failure)), "{failure:?}");
            assert!(!loads(&case.later()));
        }
    }
}

#[test]
fn a_node_with_too_much_to_do_is_asked_again_soon_and_one_at_work_is_not() {
    let mut case = Case::new();
    case.fenced(1, true, 4, 6);
    assert_eq!(read_from(&case.fenced(2, true, 4, 6)), [2]);
    assert_eq!(read_from(&case.unread(2, NodeFailure::Overloaded)), [1]);
    assert!(read_from(&case.after(60)).is_empty(), "the other one is at work");
    assert!(case.unread(1, NodeFailure::Overloaded).is_empty());
    assert_eq!(read_from(&case.after(60)), [1]);
}

#[test]
fn a_state_is_asked_for_again_soon_where_nodes_have_too_much_to_do() {
    let mut case = Case::new();
    case.fenced(1, true, 4, 4);
    assert!(loads(&case.fenced(2, true, 4, 4)));
    assert!(
        loads(&case.stateless(1, NodeFailure::Overloaded)),
        "the other one"
    );
    assert!(case.stateless(2, NodeFailure::Overloaded).is_empty());
    assert!(loads(&case.after(60)));
    // Nobody is busy: it takes its time.
    assert!(loads(&case.stateless(2, NodeFailure::Failed)));
    assert!(case.stateless(1, NodeFailure::Failed).is_empty());
    assert!(!loads(&case.after(60)));
    assert!(loads(&case.later()));
}
