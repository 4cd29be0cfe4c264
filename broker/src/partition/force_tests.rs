//! Segments that are ended by force: when that is refused, what is kept, what is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_meta::model::Partition;
use forebay_meta::restore::OFFSETS_SKIPPED;
use forebay_proto::data::replica::{FencedState, Missing, NodeFailure};
use forebay_record::frame::{ChainHash, Frame, FrameKind, FrameSpec};
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use uuid::Uuid;

use super::action::{Action, Context, Nodes, Stored};
use super::case::{context, open_segment, three_nodes};
use super::force::{Evidence, ForceRefused, ForcedEnd, Forcing};
use super::owner::{Config, Owner};

const SEGMENT: SegmentId = SegmentId {
    partition: PartitionId(1),
    epoch: Epoch(1),
    seq: 1,
};

/// A new owner of a partition whose open segment, from offset 100, lies on nodes 1, 2 and 3.
struct Case {
    owner: Owner,
    nodes: Nodes,
    now_ms: u64,
    out: Vec<Action>,
}

impl Case {
    fn new() -> Self {
        let segment = open_segment(SEGMENT, 5, 100);
        let mut record = Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(1), 1)
            .unwrap();
        record.log_start = Offset(100);
        let record = record
            .open_first(segment, 2)
            .unwrap()
            .grant(BrokerId(2), SessionId(2), 3)
            .unwrap();
        let nodes = three_nodes();
        let mut out = Vec::new();
        let owner = Owner::new(
            Config::default(),
            BrokerId(2),
            record,
            10,
            &mut context(&nodes, 0, &mut out),
        );
        Self {
            owner,
            nodes,
            now_ms: 0,
            out: Vec::new(),
        }
    }

    /// Node 1 answered, nodes 2 and 3 are away, and it has been so for a while.
    fn waiting() -> Self {
        let mut case = Self::new();
        case.away(2);
        case.away(3);
        case.fenced(1, true, 104, 106);
        case.pass(20);
        case
    }

    fn act<T>(&mut self, act: impl FnOnce(&mut Owner, &mut Context<'_>) -> T) -> T {
        act(
            &mut self.owner,
            &mut context(&self.nodes, self.now_ms, &mut self.out),
        )
    }

    fn away(&mut self, node: u32) {
        self.nodes.get_mut(&NodeId(node)).unwrap().connected = false;
    }

    fn pass(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now_ms += 600;
            self.act(|owner, ctx| owner.on_tick(ctx));
        }
    }

    fn fenced(&mut self, node: u32, authoritative: bool, committed: u64, tail: u64) {
        self.fenced_as(node, authoritative, committed, tail, ChainHash::seed(SEGMENT));
    }

    fn fenced_as(&mut self, node: u32, authoritative: bool, committed: u64, tail: u64, hash: ChainHash) {
        let state = FencedState {
            segment: SEGMENT,
            authoritative,
            tail: Offset(tail),
            committed: Offset(committed),
            frames: u32::try_from(tail - 99).unwrap(),
            hash,
        };
        self.act(|owner, ctx| owner.on_fenced(NodeId(node), state, ctx));
    }

    /// What a node was asked to look for, and what it finds.
    fn misses(&mut self, node: u32, tail: u64, ranges: &[(u64, u64)]) {
        let asked = self
            .out
            .iter()
            .any(|action| matches!(action, Action::FindMissing { node: of, .. } if *of == NodeId(node)));
        assert!(asked, "n{node} is not asked");
        let missing = Missing {
            tail: Offset(tail),
            ranges: ranges.iter().map(|(a, b)| (Offset(*a), Offset(*b))).collect(),
        };
        self.act(|owner, ctx| owner.on_missing(NodeId(node), SEGMENT, Ok(missing), ctx));
    }

    fn plan(&self) -> Result<ForcedEnd, ForceRefused> {
        self.owner.plan_force_seal(None, None, &self.nodes)
    }

    fn force(&mut self, expected: &ForcedEnd, force: bool) -> Result<ForcedEnd, ForceRefused> {
        let forcing = Forcing {
            next: Some(expected.next),
            force,
            trust: expected.trusted,
            expected: Some(expected.clone()),
        };
        self.act(|owner, ctx| owner.on_force_seal(&forcing, ctx))
    }

    /// The state is asked for and cannot be had; the change that follows is stored.
    fn store(&mut self) -> Partition {
        self.pass(20);
        let stored: Vec<_> = self
            .out
            .drain(..)
            .filter_map(|action| match action {
                Action::Store(next) => Some(next),
                _ => None,
            })
            .collect();
        assert_eq!(stored.len(), 1, "one change");
        self.act(|owner, ctx| owner.on_stored(Stored::Done(11), ctx));
        assert!(self.owner.is_serving());
        *stored[0].clone()
    }
}

#[test]
fn a_takeover_that_may_still_end_by_itself_is_not_forced() {
    let mut case = Case::new();
    case.away(3);
    case.fenced(1, true, 104, 106);
    case.pass(20);
    let planned = case.plan().unwrap();
    assert!(
        planned.still_possible.as_ref().unwrap().contains("n2"),
        "{planned:?}"
    );
    assert!(matches!(
        case.force(&planned, false),
        Err(ForceRefused::StillPossible(..))
    ));
    assert!(!case.owner.is_serving());

    // Away now, and just begun.
    let mut young = Case::new();
    young.away(2);
    young.away(3);
    young.fenced(1, true, 104, 106);
    let planned = young.plan().unwrap();
    assert!(matches!(
        young.force(&planned, false),
        Err(ForceRefused::StillPossible(..))
    ));
    young.force(&planned, true).unwrap();
}

#[test]
fn what_the_last_replica_has_is_kept_and_the_log_goes_on_far_above() {
    let mut case = Case::waiting();
    let told = case.owner.recovering(&case.nodes).unwrap();
    assert_eq!(told.step, "FENCING");
    assert!(told.waits_for.contains("n2, n3: 1 of 2"), "{}", told.waits_for);
    assert_eq!(
        told.nodes.iter().map(|one| one.node.0).collect::<Vec<_>>(),
        [2, 3]
    );
    let planned = case.plan().unwrap();
    let next = Offset(106 + OFFSETS_SKIPPED);
    assert_eq!(
        (planned.committed, planned.end, planned.next),
        (Offset(104), Offset(106), next)
    );
    assert_eq!(planned.still_possible, None);
    case.force(&planned, false).unwrap();
    let record = case.store();
    assert_eq!(record.chain.len(), 1);
    assert_eq!(record.chain[0].end, Some(Offset(106)));
    assert_eq!((record.gaps[0].base, record.gaps[0].end), (Offset(106), next));
    assert!(
        record.gaps[0].reason.contains("n2, n3"),
        "{}",
        record.gaps[0].reason
    );
    assert_eq!(
        (case.owner.tail(), case.owner.high_watermark()),
        (next, Some(next))
    );
    assert!(case.owner.recovering(&case.nodes).is_none());
    assert!(
        matches!(case.plan(), Err(ForceRefused::NotWaiting(..))),
        "done already"
    );
}

#[test]
fn with_no_replica_left_the_segment_is_dropped_and_all_of_it_is_declared_lost() {
    let mut case = Case::new();
    (1..=3).for_each(|node| case.away(node));
    case.nodes.remove(&NodeId(2));
    case.nodes.get_mut(&NodeId(3)).unwrap().generation = Generation(2);
    case.pass(20);
    let planned = case.plan().unwrap();
    let evidence: Vec<_> = planned.replicas.iter().map(|one| one.evidence).collect();
    assert_eq!(evidence, [Evidence::Away, Evidence::Lost, Evidence::Lost]);
    case.force(&planned, false).unwrap();
    let record = case.store();
    assert!(record.chain.is_empty());
    assert_eq!(record.gaps[0].base, Offset(100));
    assert_eq!(record.sealed_end(), Offset(100 + OFFSETS_SKIPPED));
}

#[test]
fn what_a_damaged_replica_has_in_one_piece_is_kept() {
    let mut case = Case::new();
    case.away(2);
    case.away(3);
    case.fenced(1, false, 103, 105);
    case.pass(20);
    let planned = case.plan().unwrap();
    assert_eq!(planned.replicas[0].evidence, Evidence::Damaged);
    assert!(matches!(
        case.force(&planned, false),
        Err(ForceRefused::StillPossible(..))
    ));
    case.misses(1, 105, &[]);
    let planned = case.plan().unwrap();
    case.force(&planned, false).unwrap();
    assert_eq!(case.store().chain[0].end, Some(Offset(105)));
}

#[test]
fn what_lies_behind_a_hole_is_kept_and_only_the_hole_and_what_may_have_followed_are_lost() {
    let mut case = Case::new();
    case.away(2);
    case.away(3);
    case.fenced(1, false, 120, 105);
    case.pass(20);
    case.misses(1, 120, &[(105, 110)]);
    let planned = case.plan().unwrap();
    assert_eq!(planned.end, Offset(120));
    assert_eq!(planned.lost, [(Offset(105), Offset(110))]);
    case.force(&planned, false).unwrap();
    let record = case.store();
    assert_eq!(record.chain[0].end, Some(Offset(120)));
    let pieces = record.pieces(Offset(100), Offset(120));
    assert_eq!(pieces, [(Offset(100), Offset(105)), (Offset(110), Offset(120))]);
    assert_eq!(record.after_gap(Offset(120)), planned.next);
    assert_eq!(Partition::decode(&record.encode()).unwrap(), record);
}

#[test]
fn of_replicas_that_contradict_each_other_the_operator_trusts_one() {
    let mut case = Case::new();
    case.away(3);
    case.fenced_as(1, true, 104, 106, ChainHash(1));
    case.fenced_as(2, true, 104, 106, ChainHash(2));
    let frame = |prev_hash| {
        let spec = FrameSpec {
            segment: SEGMENT,
            token: Token(5),
            number: 6,
            kind: FrameKind::Data,
            batches: 1,
            first: Offset(104),
            end: Offset(106),
            committed: Offset(104),
            prev_hash,
        };
        Frame::new(spec, vec![bytes::Bytes::from_static(b"batch")]).unwrap()
    };
    let frames = vec![frame(ChainHash(3))];
    let source = case.out.iter().rev().find_map(|action| match action {
        Action::ReadFrames { node, .. } => Some(*node),
        _ => None,
    });
    case.act(|owner, ctx| owner.on_frames(source.unwrap(), SEGMENT, Ok(frames), ctx));
    case.pass(20);
    let told = case.owner.recovering(&case.nodes).unwrap();
    assert_eq!((told.step, told.nodes.len()), ("HALTED", 3), "{told:?}");
    assert_eq!(told.nodes[0].said.unwrap().hash, ChainHash(1));
    assert_eq!(told.nodes[1].said.unwrap().hash, ChainHash(2));
    assert!(matches!(case.plan(), Err(ForceRefused::Disputed(..))));
    let with = |case: &Case, node| case.owner.plan_force_seal(None, Some(NodeId(node)), &case.nodes);
    assert!(matches!(with(&case, 3), Err(ForceRefused::Trust(..))));
    assert!(matches!(with(&case, 9), Err(ForceRefused::Trust(..))));
    let planned = with(&case, 2).unwrap();
    assert_eq!((planned.end, planned.trusted), (Offset(106), Some(NodeId(2))));
    case.force(&planned, false).unwrap();
    let record = case.store();
    let generations: Vec<_> = record.chain[0].replicas.iter().map(|(_, of)| of.0).collect();
    assert_eq!(generations, [0, 1, 0], "only the trusted copy counts");
    assert!(
        record.gaps[0].reason.contains("as n2 has it"),
        "{:?}",
        record.gaps
    );
}

#[test]
fn nobody_is_trusted_where_nobody_contradicts() {
    let case = Case::waiting();
    let refused = case.owner.plan_force_seal(None, Some(NodeId(1)), &case.nodes);
    assert!(matches!(refused, Err(ForceRefused::Trust(..))), "{refused:?}");
}

#[test]
fn a_commit_that_nobody_has_any_more_is_declared_lost() {
    let mut case = Case::new();
    case.away(3);
    case.fenced(1, true, 108, 104);
    case.fenced(2, true, 104, 104);
    assert_eq!(case.owner.recovering(&case.nodes).unwrap().step, "HALTED");
    let planned = case.plan().unwrap();
    assert_eq!(
        (planned.end, planned.committed, planned.next),
        (Offset(104), Offset(108), Offset(108 + OFFSETS_SKIPPED))
    );
    case.force(&planned, false).unwrap();
    assert_eq!(case.store().chain[0].end, Some(Offset(104)));
}

#[test]
fn a_takeover_that_waits_for_the_producers_state_goes_on_without_it_and_loses_no_record() {
    let mut case = Case::new();
    case.fenced(1, true, 106, 106);
    case.fenced(2, true, 106, 106);
    assert_eq!(case.owner.recovering(&case.nodes).unwrap().step, "LOADING");
    let early = case.plan().unwrap();
    assert!(early.state_only && early.still_possible.is_some());
    assert!(matches!(
        case.force(&early, false),
        Err(ForceRefused::StillPossible(..))
    ));
    case.pass(20);
    let planned = case.plan().unwrap();
    assert_eq!((planned.end, planned.still_possible.clone()), (Offset(106), None));
    case.force(&planned, false).unwrap();
    let record = case.store();
    assert!(record.gaps.is_empty());
    assert_eq!(
        (record.chain[0].end, case.owner.tail()),
        (Some(Offset(106)), Offset(106))
    );
}

#[test]
fn an_answer_that_comes_in_between_is_not_given_up() {
    let mut case = Case::new();
    case.away(2);
    case.away(3);
    case.pass(20);
    let nothing = case.plan().unwrap();
    assert_eq!(nothing.end, Offset(100));
    case.fenced(1, true, 104, 106);
    let refused = case.force(&nothing, false);
    assert!(
        matches!(refused, Err(ForceRefused::Changed { .. })),
        "{refused:?}"
    );
    // A second one ends the takeover without any force.
    let planned = case.plan().unwrap();
    case.fenced(2, true, 106, 106);
    assert!(matches!(
        case.force(&planned, true),
        Err(ForceRefused::Changed { .. })
    ));
}

#[test]
fn an_offset_that_may_have_been_seen_is_refused_to_go_on_at() {
    let case = Case::waiting();
    let low = case.owner.plan_force_seal(Some(Offset(106)), None, &case.nodes);
    assert!(
        matches!(
            low,
            Err(ForceRefused::Next {
                least: Offset(107),
                ..
            })
        ),
        "{low:?}"
    );
    let given = case
        .owner
        .plan_force_seal(Some(Offset(5_000)), None, &case.nodes)
        .unwrap();
    assert_eq!((given.end, given.next), (Offset(106), Offset(5_000)));
}

#[test]
fn a_change_that_lost_a_race_is_made_again_as_it_was_forced() {
    let mut case = Case::waiting();
    let planned = case.plan().unwrap();
    case.force(&planned, false).unwrap();
    case.pass(20);
    // Somebody repaired a sealed segment: the same epoch, another revision.
    let mut found = case.owner.record().clone();
    found.op = 99;
    case.act(|owner, ctx| owner.on_stored(Stored::Conflict(Box::new(found), 12), ctx));
    let stores = case
        .out
        .iter()
        .filter(|action| matches!(action, Action::Store(_)));
    assert_eq!(stores.count(), 2);
    case.out.drain(..).for_each(drop);
    case.act(|owner, ctx| owner.on_stored(Stored::Done(13), ctx));
    assert_eq!(case.owner.record().gaps[0].end, planned.next);
    assert_eq!(case.owner.high_watermark(), Some(planned.next));
}

#[test]
fn a_carry_that_nobody_can_give_any_more_is_forced_where_it_is_readable() {
    let mut case = Case::new();
    case.away(3);
    case.fenced(1, true, 104, 106);
    case.fenced(2, true, 104, 104);
    // The only one that has 104 and 105 finds them damaged; the third is unknown.
    case.act(|owner, ctx| owner.on_frames(NodeId(1), SEGMENT, Err(NodeFailure::Corrupt), ctx));
    case.pass(20);
    assert_eq!(case.owner.recovering(&case.nodes).unwrap().step, "CARRYING");
    let planned = case.plan().unwrap();
    assert_eq!(
        (planned.end, planned.next),
        (Offset(104), Offset(106 + OFFSETS_SKIPPED))
    );
    case.force(&planned, false).unwrap();
    assert_eq!(case.store().chain[0].end, Some(Offset(104)));
}
